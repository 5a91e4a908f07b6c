"""Any vision model of transformers by its repository: hf:org/repo, or hf:org/repo@revision.

No code of the repository is run: config.json must describe a network that the installed library
has a class for, and its plain numbers alone are used. What the feature is follows from what the
network gives, found out without weights:

1. the image side of a model of images and texts: its pooled output,
2. a network with a class token: that token after the last layer norm (BEiT, which averages the
   other tokens instead, says so in its configuration),
3. a network with a pooled output, such as a convolutional one: that output,
4. any other: the mean over all positions.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from medretrieval.embedders import weights as stored_weights
from medretrieval.embedders.base import TorchEmbedder
from medretrieval.embedders.checkpoint import identity_of, read_tensors, weights_file
from medretrieval.embedders.compute import Compute
from medretrieval.embedders.options import chosen
from medretrieval.embedders.patches import (
    FeatureMaps,
    of_channels_first,
    of_tokens,
    pools_by_mean,
)
from medretrieval.embedders.preprocessor_config import described_preprocessing, read_json
from medretrieval.embedders.rows.common import WEIGHT_FILES
from medretrieval.embedders.spec import (
    CONFIG_FILE,
    NOT_PINNED,
    PREPROCESSOR_FILE,
    EmbedderSpec,
)
from medretrieval.embedders.transformers_folder import (
    architecture_of,
    filled,
    never_used,
    plain_config,
    section_of,
    silent_transformers,
)
from medretrieval.errors import InputError, UsageError

_REFERENCE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^@\s]+))?", re.ASCII)

_TOWER = "vision_config"
_TOWER_PREFIX = "vision_model."

# Networks that transformers has, but whose features are not a function of the picture alone, or
# that another prefix is for.
_REFUSED: Mapping[str, str] = {
    "vit_mae": "it hides patches at random; `mae-vit-b`, or a file: like it, hides none",
    "timm_wrapper": "it is a model of timm; name it with timm:",
    "timm_backbone": "it is a model of timm; name it with timm:",
}

# Class token, distillation token and registers.
MOST_OTHERS = 16

_CLASS_TOKENS = ("cls_token", "class_embedding")

CLASS_TOKEN, POOLED, MEAN = "class token", "pooled output", "mean over all positions"


class _Network(NamedTuple):
    """What config.json of a repository describes.

    Attributes:
        tower: whether it is the image side of a model of images and texts.
    """

    model_class: Any
    config: transformers.PreTrainedConfig
    tower: bool


def describe(reference: str, local: Path | None) -> EmbedderSpec:
    """The specification of a repository on the Hub at one commit, or of a local copy of it.

    The name of the specification holds the commit, so that an index finds the same weights again.

    Args:
        reference: "org/repo" or "org/repo@revision".
        local: a folder with config.json, preprocessor_config.json and the weights.

    Raises:
        UsageError: `reference` is no such name.
        InputError: the repository holds no network that can be used this way.
        UnavailableError: its configuration cannot be had here.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageError(
            f"hf:{reference} names no repository; expected hf:<owner>/<name>, or "
            "hf:<owner>/<name>@<branch, tag or commit>, as in hf:facebook/dinov2-large"
        )
    repo, revision = match["repo"], match["revision"] or NOT_PINNED
    if local is None:
        folder, commit = stored_weights.fetch_config(repo, revision, CONFIG_FILE)
        # A cache that another program filled may hold the one without the other.
        stored_weights.fetch_config(repo, commit, PREPROCESSOR_FILE)
        name, revision = f"hf:{repo}@{commit}", commit
    else:
        folder, name = local, f"hf:{reference}"
    network = _described(folder, name)
    fields = _preprocessing(folder, name)
    feature, dim = _probed(network, fields["input_size"], name)
    return EmbedderSpec(
        name=name,
        adapter=f"{__name__}:AnyTransformer",
        source="hub",
        weights=repo,
        revision=revision,
        filenames=WEIGHT_FILES,
        config_files=(CONFIG_FILE, PREPROCESSOR_FILE),
        dim=dim,
        **fields,
        pooling=feature,
        options={"feature": feature},
        license="unknown",
        requires=("transformers",),
        note=f"{network.model_class.__name__} of transformers",
    )


class AnyTransformer(TorchEmbedder):
    """A vision model of transformers, by what its folder says."""

    @classmethod
    def load(
        cls, spec: EmbedderSpec, location: Path, *, revision: str, compute: Compute
    ) -> AnyTransformer:
        """Read the folder `location`; `revision` goes into the identity.

        Raises:
            InputError: the folder is incomplete, or of another network than `spec` says.
        """
        weights = weights_file(spec, location)
        network = _described(location, spec.name)
        tensors = _used(read_tensors(weights), network, spec)
        prefix = _TOWER_PREFIX if network.tower else ""
        loaded = filled(
            network.model_class,
            network.config,
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items()},
            unused=lambda name: _unused(name, spec),
            spec=spec,
            where=weights,
            options=_options(network.model_class, _said(spec)),
        )
        identity = identity_of(
            spec, tensors, revision, architecture=architecture_of(network.config)
        )
        return cls(spec, loaded, identity=identity, compute=compute)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return _feature(self.network(pixel_values=pixels), _said(self.spec))

    @cached_property
    def mean_pooled(self) -> bool:
        return pools_by_mean(self)

    def feature_maps(self, pixels: torch.Tensor) -> FeatureMaps:
        network: Any = self.network
        states: torch.Tensor = network(pixel_values=pixels).last_hidden_state
        size = self.spec.input_size
        if states.ndim == 4:
            return of_channels_first(states, size)
        patch = getattr(network.config, "patch_size", None)
        # Of networks that merge patches the tokens are fewer; others have detections at the end.
        patches = (size // patch) ** 2 if isinstance(patch, int) else -1
        fits = 0 <= states.shape[1] - patches <= MOST_OTHERS and patches > 0
        return of_tokens(states, self.spec.name, input_size=size, patch=patch if fits else None)


def _said(spec: EmbedderSpec) -> str:
    return chosen(spec, "feature", (CLASS_TOKEN, POOLED, MEAN))


def _described(folder: Path, name: str) -> _Network:
    """The network that config.json in `folder` describes."""
    if not folder.is_dir():
        raise InputError(
            f"{folder} is no folder; {name} needs one with {CONFIG_FILE}, {PREPROCESSOR_FILE} and "
            f"{' or '.join(WEIGHT_FILES)}"
        )
    path = folder / CONFIG_FILE
    stored = read_json(path)
    if "auto_map" in stored:
        raise InputError(
            f"{path} asks for code of its repository (auto_map), and {name} is loaded without "
            "running any; expected a network that transformers itself has"
        )
    if "quantization_config" in stored:
        raise InputError(f"{path} describes quantised weights; expected those of full precision")
    config_class = _config_class(stored.get("model_type"), path)
    found: str = stored["model_type"]
    if found in _REFUSED:
        raise InputError(f"{path} describes a network of type {found!r}: {_REFUSED[found]}")
    tower = _TOWER in config_class.sub_configs
    if tower:
        stored = section_of(stored, _TOWER, path)
        config_class = config_class.sub_configs[_TOWER]
        if config_class is transformers.AutoConfig:
            config_class = _config_class(stored.get("model_type"), path)
    model_class = _model_class(config_class)
    if model_class is None or model_class.main_input_name != "pixel_values":
        raise InputError(
            f"{path} describes a network of type {found!r}, of which transformers has no "
            "model that takes pictures alone; expected a vision model, or one of images and texts "
            "such as CLIP"
        )
    return _Network(model_class, plain_config(config_class, stored, path), tower)


def _config_class(model_type: Any, path: Path) -> Any:
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        raise InputError(
            f"{path} describes a network of type {model_type!r}, which transformers "
            f"{transformers.__version__} does not have; expected one that it has"
        )
    return transformers.CONFIG_MAPPING[model_type]


def _model_class(config_class: Any) -> Any:
    found = MODEL_MAPPING[config_class] if config_class in MODEL_MAPPING else None
    return found[0] if isinstance(found, tuple) else found


def _preprocessing(folder: Path, name: str) -> dict[str, Any]:
    """Fields of a specification; all must be said, since nothing is known to fall back on."""
    path = folder / PREPROCESSOR_FILE
    if not path.is_file():
        raise InputError(
            f"{name} has no {PREPROCESSOR_FILE}, so that nobody knows which pixels it wants; give "
            f"a local folder that has one as weights=FOLDER (--embedder-weights FOLDER)"
        )
    if "auto_map" in read_json(path):
        raise InputError(
            f"{path} asks for code of its repository (auto_map), and {name} is loaded without "
            "running any; expected an image processor of transformers"
        )
    fields = described_preprocessing(path)
    wanted = {"resize": "size", "interpolation": "resample", "mean": "image_mean"}
    missing = [key for field, key in {**wanted, "std": "image_std"}.items() if field not in fields]
    if missing:
        raise InputError(f"{path} does not say {', '.join(missing)}; expected all of them")
    return fields


def _probed(network: _Network, side: int, name: str) -> tuple[str, int]:
    """Which feature to take and its length, from a pass without weights or numbers."""
    try:
        with silent_transformers(), torch.device("meta"), torch.no_grad():
            model = network.model_class(network.config).eval()
            output = model(pixel_values=torch.empty(1, 3, side, side))
        feature = _chosen(network, model, output)
        _, dim = _feature(output, feature).shape
    except Exception as error:  # whatever a network raises for an input that is not its own
        raise InputError(
            f"{name} ({network.model_class.__name__}) cannot be given one picture of {side} "
            f"pixels: {str(error).strip().splitlines()[0] if str(error).strip() else error!r}; "
            "expected a network from pictures to features"
        ) from error
    return feature, int(dim)


def _chosen(network: _Network, model: torch.nn.Module, output: Any) -> str:
    pooled = output.get("pooler_output") is not None
    side = network.tower or network.config.model_type.endswith("_vision_model")
    averages = side or bool(getattr(network.config, "use_mean_pooling", False))
    tokens = output.last_hidden_state.ndim == 3 and any(
        name.endswith(_CLASS_TOKENS) for name, _ in model.named_parameters()
    )
    if tokens and not (pooled and averages):
        return CLASS_TOKEN
    return POOLED if pooled else MEAN


def _feature(output: Any, feature: str) -> torch.Tensor:
    """(n, dim) of what a network gives."""
    if feature == POOLED:
        pooled: torch.Tensor | None = output.get("pooler_output")  # (n, dim), or (n, dim, 1, 1)
        if pooled is None:
            raise ValueError(f"the network has no {POOLED}")
        return pooled.flatten(1)
    states: torch.Tensor = output.last_hidden_state
    if feature == CLASS_TOKEN:
        return states[:, 0]  # (n, tokens, dim) -> (n, dim)
    # (n, tokens, dim), or a map of (n, dim, rows, columns)
    return states.mean(dim=1) if states.ndim == 3 else states.mean(dim=(2, 3))


def _options(model_class: Any, feature: str) -> dict[str, Any]:
    """Leave out a pooler that is not used, as files often do."""
    known = inspect.signature(model_class.__init__).parameters
    return (
        {"add_pooling_layer": False} if feature != POOLED and "add_pooling_layer" in known else {}
    )


def _unused(name: str, spec: EmbedderSpec) -> bool:
    pooler = _said(spec) != POOLED and name.startswith("pooler.")
    return pooler or name.endswith("mask_token") or never_used(name)


def _used(
    tensors: Mapping[str, torch.Tensor], network: _Network, spec: EmbedderSpec
) -> dict[str, torch.Tensor]:
    """The tensors of a file without heads, the other side of a model, and what does not count.

    A file saved with a head has a prefix for what is not the head. One without has no head, so
    that everything in it must be used.
    """
    prefix = _TOWER_PREFIX if network.tower else f"{network.model_class.base_model_prefix}."
    if any(name.startswith(prefix) for name in tensors):
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not _unused(name.removeprefix(prefix), spec)
    }
