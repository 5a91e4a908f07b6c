"""The image side of models of open_clip: CLIP, BiomedCLIP, BMC-CLIP, and any other by its name.

Only the image tower is built, with random weights, and filled from the tensors "visual.*" of the
file; no text tower, no tokenizer and none of the library's own downloads.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from open_clip.model import _build_vision_tower
from open_clip.pretrained import get_pretrained_cfg
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from open_clip.transformer import VisionTransformer

from medretrieval.embedders import weights as stored_weights
from medretrieval.embedders.base import TorchEmbedder
from medretrieval.embedders.checkpoint import (
    identity_of,
    load_but_counters,
    read_tensors,
    weights_file,
)
from medretrieval.embedders.compute import Compute
from medretrieval.embedders.options import chosen, section, whole, wrong
from medretrieval.embedders.patches import FeatureMaps, of_channels_first, pools_by_mean
from medretrieval.embedders.preprocessor_config import read_json
from medretrieval.embedders.rows.common import OPEN_CLIP
from medretrieval.embedders.rows.contrastive import (
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_FILES,
    PROJECTED,
)
from medretrieval.embedders.spec import NOT_PINNED, EmbedderSpec
from medretrieval.embedders.timm_models import maps_of
from medretrieval.errors import InputError, UnavailableError, UsageError, unknown_name
from medretrieval.folders import weights_dir

PREFIX = "open_clip:"
HUB = "hf-hub:"

_ADAPTER = f"{__name__}:OpenClipImage"
# Far beyond any model of open_clip, and small enough for memory.
MOST_DIM = 16384
_IMAGE = "visual."
# Everything else that the library's models have (CLIP, CustomTextCLIP, CoCa), and what OpenAI's
# files hold besides.
_NOT_OF_THE_IMAGE = (
    "text.",
    "text_decoder.",
    "text_projection",
    "transformer.",
    "token_embedding.",
    "positional_embedding",
    "ln_final.",
    "attn_mask",
    "logit_scale",
    "logit_bias",
    "input_resolution",
    "context_length",
    "vocab_size",
)
_RESIZE: Mapping[str, Any] = {"shortest": "crop", "squash": "squash"}
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class OpenClipImage(TorchEmbedder):
    """The image tower of one model of open_clip.

    `spec.options` hold "embed_dim", "vision_cfg" and "quick_gelu" as a model configuration of the
    library does, and "head": "projected" for what `encode_image` returns, "backbone" for the same
    without the projection into the space that images and texts share.
    """

    @classmethod
    def load(
        cls, spec: EmbedderSpec, location: Path, *, revision: str, compute: Compute
    ) -> OpenClipImage:
        """Read the weights file or the folder `location`; `revision` goes into the identity.

        Files are those of `open_clip.load_state_dict`: a state dict, or a checkpoint of training
        that has one under "state_dict" with names that begin with "module.".

        Raises:
            InputError: the file holds other tensors than this tower's, or `spec` has options that
                no tower has.
        """
        path = weights_file(spec, location)
        projected = _projected(spec)
        tower = build_tower(spec)
        unused = () if projected else _without_projection(tower, spec)
        tensors = {
            name: tensor
            for name, tensor in _image_side(read_tensors(path, sections=("state_dict",))).items()
            if not name.startswith(unused)
        }
        network = torch.nn.ModuleDict({_IMAGE.rstrip("."): tower})
        used = load_but_counters(network, tensors, spec, path)
        identity = identity_of(spec, used, revision)
        return cls(spec, network, identity=identity, compute=compute)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        network: Any = self.network
        out: Any = network["visual"](pixels)
        features: torch.Tensor = out[0] if isinstance(out, tuple) else out  # CoCa adds tokens
        return features

    @cached_property
    def mean_pooled(self) -> bool:
        return pools_by_mean(self)

    def feature_maps(self, pixels: torch.Tensor) -> FeatureMaps:
        network: Any = self.network
        tower, size = network["visual"], self.spec.input_size
        if isinstance(tower, TimmModel):
            maps = maps_of(tower.trunk, pixels, self.spec)
            head = list(tower.head.children())
            # Parts are projected where that is linear: a dropout, which does nothing, and a layer.
            linear = all(isinstance(m, (torch.nn.Dropout, torch.nn.Linear)) for m in head)
            return maps._replace(features=tower.head(maps.features)) if linear else maps
        if not isinstance(tower, VisionTransformer):
            (features,) = tower.forward_intermediates(pixels, indices=1, intermediates_only=True)[
                "image_intermediates"
            ]
            return of_channels_first(features, size)
        plain = tower.attn_pool is None
        (tokens,) = tower.forward_intermediates(
            pixels, indices=1, normalize_intermediates=plain, intermediates_only=True
        )["image_intermediates"]
        maps = FeatureMaps(tokens.permute(0, 2, 3, 1), tokens.shape[2] * tower.patch_size[0])
        projected = plain and tower.proj is not None
        return maps._replace(features=maps.features @ tower.proj) if projected else maps


def build_tower(spec: EmbedderSpec) -> torch.nn.Module:
    """The image tower that `spec.options` describe, with random weights.

    Raises:
        InputError: the library knows no such tower.
    """
    vision = {**section(spec, "vision_cfg"), "timm_model_pretrained": False}
    embed_dim = whole(spec, "embed_dim", most=MOST_DIM)
    quick_gelu = spec.options.get("quick_gelu")
    if not isinstance(quick_gelu, bool):
        raise wrong(spec, "quick_gelu", "true or false")
    timm_name = vision.get("timm_model_name")
    # timm would fetch a name that begins with "hf-hub:".
    if timm_name and not timm.is_model(str(timm_name).partition(".")[0]):
        raise InputError(
            f"{spec.name} has the image tower {timm_name!r}, which timm {timm.__version__} does "
            "not have; give a model whose configuration names one of timm.list_models()"
        )
    try:
        tower: torch.nn.Module = _build_vision_tower(embed_dim, vision, quick_gelu=quick_gelu)
    except Exception as error:  # the classes check what they are given with errors of their own
        raise InputError(
            f"the image tower of {spec.name} cannot be built from "
            f"{dict(spec.options['vision_cfg'])} "
            f"({type(error).__name__}: {error}); expected a vision_cfg of open_clip "
            f"{open_clip.__version__}"
        ) from error
    return tower


def _projected(spec: EmbedderSpec) -> bool:
    return chosen(spec, "head", ("projected", "backbone")) == "projected"


def _without_projection(tower: Any, spec: EmbedderSpec) -> tuple[str, ...]:
    """Take the projection off `tower`; beginnings of the names of its tensors in a file."""
    if isinstance(tower, TimmModel) and len(tower.head):
        tower.head = torch.nn.Sequential()
        return (f"{_IMAGE}head.",)
    if isinstance(tower, VisionTransformer):
        tower.proj = None
        return (f"{_IMAGE}proj",)
    raise UsageError(
        f"{spec.name}: a {type(tower).__name__} has no projection to leave out; "
        'use head "projected"'
    )


def _image_side(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors` without those of the text side; unknown names stay, to be refused."""
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return {k: v for k, v in plain.items() if not k.startswith(_NOT_OF_THE_IMAGE)}


def describe(reference: str, local: Path | None) -> EmbedderSpec:
    """The specification of `<model>/<tag>` or of `hf-hub:<org>/<repo>[@revision]`.

    A model without a tag is one whose weights are in a local file.

    Args:
        local: weights to use instead of the published ones; for a repository a folder that has
            its open_clip_config.json too.

    Raises:
        UsageError: there is no such model, or no such weights of it.
        UnavailableError: the configuration or the weights can be fetched from nowhere.
        InputError: the configuration asks for something this library does not do.
    """
    if reference.startswith(HUB):
        return _of_repository(reference.removeprefix(HUB), local)
    return _of_table(reference, local)


def _of_table(reference: str, local: Path | None) -> EmbedderSpec:
    model, _, tag = reference.rpartition("/") if "/" in reference else (reference, "", "")
    model = model.replace("/", "-")  # as open_clip does: ViT-B/32 is ViT-B-32
    known = open_clip.list_models()
    if model not in known:
        command = 'python -c "import open_clip; print(*open_clip.list_models())"'
        raise unknown_name("model of open_clip", model, known, command)
    config = open_clip.get_model_config(model)
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not tag:
        spec = _spec(
            f"{PREFIX}{model}", config, {}, source="file", weights=f"{model} of open_clip",
            note="image side of open_clip, weights of your own",
        )  # fmt: skip
        if local is None and stored_weights.local([spec.name]) is None:
            raise UsageError(
                f"{spec.name} names no weights; expected one of "
                f"{', '.join(f'{spec.name}/{tag}' for tag in tags) or '(none are published)'}, "
                "or a local file as weights=FILE (--embedder-weights FILE)"
            )
        return spec
    pretrained = get_pretrained_cfg(model, tag)
    if not pretrained:
        command = (
            f'python -c "import open_clip as o; print(o.list_pretrained_tags_by_model({model!r}))"'
        )
        raise unknown_name(f"weights of {PREFIX}{model}", tag, tags, command)
    tag = next(name for name in tags if get_pretrained_cfg(model, name) is pretrained)
    if pretrained.get("quick_gelu") and not config.get("quick_gelu"):
        raise UsageError(
            f"{PREFIX}{model}/{tag} was trained with QuickGELU, which {model} does not have, so "
            f"that its features would be wrong; use {PREFIX}{model}-quickgelu/{tag}"
        )
    repository, _, filename = pretrained.get("hf_hub", "").rpartition("/")
    if not repository and local is None:
        raise UnavailableError(
            f"open_clip {open_clip.__version__} has the weights {tag} of {model} in no repository "
            f"of the Hugging Face Hub ({pretrained.get('url') or 'no address'}). Fetch them and "
            "give the file as weights=FILE (--embedder-weights FILE)"
        )
    return _spec(
        f"{PREFIX}{model}/{tag}",
        config,
        pretrained,
        source="hub" if repository else "file",
        weights=repository or f"{tag} of {model}",
        # As open_clip.pretrained.download_pretrained_from_hf: safetensors first.
        filenames=(f"{Path(filename).stem}.safetensors", filename) if filename else OPEN_CLIP_FILES,
        note="image side of open_clip",
    )


def _of_repository(reference: str, local: Path | None) -> EmbedderSpec:
    repository, at, revision = reference.partition("@")
    if not _REPOSITORY.fullmatch(repository) or (at and not revision):
        raise UsageError(
            f"{PREFIX}{HUB}{reference} names no repository; expected "
            f"{PREFIX}{HUB}organisation/name, or {PREFIX}{HUB}organisation/name@commit"
        )
    name = f"{PREFIX}{HUB}{reference}"
    own = weights_dir() / name
    folder = own if local is None and (own / OPEN_CLIP_CONFIG).is_file() else local
    revision = revision or NOT_PINNED
    if folder is None:
        folder, revision = stored_weights.fetch_config(repository, revision, OPEN_CLIP_CONFIG)
        # The commit that was found is part of the name, so that an index of these embeddings
        # opens with the same weights when the repository has moved on.
        name = f"{PREFIX}{HUB}{repository}@{revision}"
    path = folder / OPEN_CLIP_CONFIG
    if not path.is_file():
        raise InputError(
            f"{folder} is no folder with {OPEN_CLIP_CONFIG}; {name} needs one with "
            f"{OPEN_CLIP_CONFIG} and {' or '.join(OPEN_CLIP_FILES)}"
        )
    stored = read_json(path)
    config, preprocess = stored.get("model_cfg"), stored.get("preprocess_cfg", {})
    if not isinstance(config, dict) or not isinstance(preprocess, dict):
        raise InputError(
            f"{path} is no configuration of open_clip; expected an object with model_cfg and "
            "preprocess_cfg"
        )
    return _spec(
        name,
        config,
        preprocess,
        source="hub",
        weights=repository,
        revision=revision,
        config_files=(OPEN_CLIP_CONFIG,),
        note="image side of a repository of open_clip",
    )


def _spec(
    name: str, config: Mapping[str, Any], preprocess: Mapping[str, Any], **known: Any
) -> EmbedderSpec:
    """A specification from a model configuration and a preprocessing of open_clip.

    Raises:
        InputError: one of them asks for something that is not supported.
    """
    vision, dim = config.get("vision_cfg"), config.get("embed_dim")
    if not isinstance(vision, dict) or not isinstance(dim, int):
        raise InputError(
            f"the configuration of {name} has no vision_cfg and embed_dim; expected those of a "
            "model of open_clip"
        )
    merged = merge_preprocess_dict(PreprocessCfg(), dict(preprocess))
    size = vision.get("image_size", 224)  # the default of open_clip.CLIPVisionCfg
    if isinstance(size, (list, tuple)) and len(set(size)) == 1:
        size = size[0]
    mode = str(merged["resize_mode"])
    if not isinstance(size, int) or mode not in _RESIZE:
        raise InputError(
            f"{name} takes pictures of size {size}, resized by {mode!r}; expected a square and "
            f"{' or '.join(_RESIZE)}"
        )
    return EmbedderSpec(
        **{
            "revision": NOT_PINNED,
            "filenames": OPEN_CLIP_FILES,
            "license": "see its model card",
            **known,
        },
        name=name,
        adapter=_ADAPTER,
        dim=dim,
        input_size=size,
        resize=_RESIZE[mode],
        resize_to=size,
        crop_rounding="even" if _RESIZE[mode] == "crop" else "down",
        # open_clip takes "random", which is of training, as bicubic.
        interpolation="bilinear" if merged["interpolation"] == "bilinear" else "bicubic",
        mean=_channels(merged["mean"], name),
        std=_channels(merged["std"], name),
        pooling=PROJECTED,
        options={
            "embed_dim": dim,
            "vision_cfg": copy.deepcopy(vision),
            "quick_gelu": bool(config.get("quick_gelu", False)),
            "head": "projected",
        },
        requires=OPEN_CLIP,
    )


def _channels(values: Any, name: str) -> tuple[float, float, float]:
    try:
        red, green, blue = values if isinstance(values, (list, tuple)) else (values,) * 3
        return float(red), float(green), float(blue)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} gives {values} for 3 channels; expected 3 numbers") from error
