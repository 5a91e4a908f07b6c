"""Models of timm, by any name it knows, and the Swin transformers of the papers.

The feature is what timm gives for `num_classes=0`: pooled, and passed through what the head does
before the classifier. No downloader of timm is used: the weights come as one file of tensors.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, get_args

import timm
import torch

from medretrieval.embedders.base import TorchEmbedder
from medretrieval.embedders.checkpoint import (
    identity_of,
    load_but_counters,
    read_tensors,
    weights_file,
)
from medretrieval.embedders.compute import Compute
from medretrieval.embedders.options import chosen, section
from medretrieval.embedders.patches import (
    FeatureMaps,
    no_patches,
    of_channels_first,
    of_tokens,
    pools_by_mean,
)
from medretrieval.embedders.rows.common import TIMM, WEIGHT_FILES
from medretrieval.embedders.spec import NOT_PINNED, EmbedderSpec, Interpolation, Resize
from medretrieval.errors import UsageError, unknown_name

PROJECTED = "projected"

_LIST_COMMAND = """python -c "import timm; print(*timm.list_models(pretrained=True), sep='\\n')\""""
# Arguments of timm.create_model that say what is read, or are this module's own.
_LOADING = frozenset(
    {
        "cache_dir", "checkpoint_path", "num_classes", "pretrained", "pretrained_cfg",
        "pretrained_cfg_overlay",
    }
)  # fmt: skip
_EXAMPLES = ("resnet50.a1_in1k", "convnext_tiny.in12k_ft_in1k")


class TimmModel(TorchEmbedder):
    """A model of timm without its classifier.

    `options` of the specification: "architecture", timm's name of the network, and "arguments" of
    `timm.create_model`, such as img_size.

    Attributes:
        sections: keys under which files may hold the state dict, as `timm.models.load_state_dict`
            tries them.
    """

    sections: ClassVar[tuple[str, ...]] = ("state_dict_ema", "model_ema", "state_dict", "model")

    @classmethod
    def load(
        cls, spec: EmbedderSpec, location: Path, *, revision: str, compute: Compute
    ) -> TimmModel:
        """Read the weights in `location`; `revision` goes into the identity.

        Raises:
            InputError: the file holds other tensors than those of the network.
            UsageError: timm cannot make the network that `options` describe.
        """
        path = weights_file(spec, location)
        projects = cls._projects(spec)
        stored = read_tensors(path, sections=cls.sections)
        architecture, arguments = spec.options["architecture"], section(spec, "arguments")
        dim = _dimension(architecture, arguments, spec.input_size)
        if dim != spec.dim and not projects:
            raise UsageError(
                f"{spec.name} is described as {spec.dim}-d; the features of timm's {architecture} "
                f"are {dim}-d: correct the description"
            )
        network = _network(architecture, arguments)
        tensors = {name.removeprefix("module."): tensor for name, tensor in stored.items()}
        tensors = cls._of_feature(tensors, network, spec)
        used = load_but_counters(network, tensors, spec, path)
        identity = identity_of(spec, used, revision)
        return cls(spec, network, identity=identity, compute=compute)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network(pixels)
        return features

    @cached_property
    def mean_pooled(self) -> bool:
        return pools_by_mean(self)

    def feature_maps(self, pixels: torch.Tensor) -> FeatureMaps:
        return maps_of(self.network, pixels, self.spec)

    @classmethod
    def _projects(cls, spec: EmbedderSpec) -> bool:
        """Whether the length of the feature is another than that of the network's."""
        return False

    @classmethod
    def _of_feature(
        cls, tensors: dict[str, torch.Tensor], network: Any, spec: EmbedderSpec
    ) -> dict[str, torch.Tensor]:
        """The tensors of the feature, under the names of this version of timm."""
        own = network.state_dict()
        kept = _without_classifier(tensors, network, own)
        if kept.keys() == own.keys():
            return kept
        # timm has a function of this name in the module of most networks. It translates files of
        # the network's authors and of older versions of timm.
        convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        if convert is None:
            return kept
        try:
            converted = convert(dict(tensors), network)
        except Exception:  # made for files of this network: for others it fails in many ways
            return kept
        return _without_classifier(converted, network, own)


class SwinTransformer(TimmModel):
    """Mean of the last layer's normalised tokens of a Swin transformer.

    Files of Microsoft's code base and of timm before 0.9 merge patches at the end of a stage, those
    of later versions at the beginning of the next: names are translated. Nothing is resized: a
    network of another window is refused.

    Attributes:
        unused: beginnings of the names of tensors that the feature does not depend on; they may be
            there or not, are not loaded, and do not count in `weights_sha256`.
    """

    sections: ClassVar[tuple[str, ...]] = ("state_dict", "model", "model_state_dict")
    unused: ClassVar[tuple[str, ...]] = ("head.",)

    @classmethod
    def _of_feature(
        cls, tensors: dict[str, torch.Tensor], network: Any, spec: EmbedderSpec
    ) -> dict[str, torch.Tensor]:
        shift = int("layers.0.downsample.reduction.weight" in tensors)
        kept = {}
        for name, tensor in tensors.items():
            # Both are computed from the sizes, not learned.
            if name.startswith(cls.unused) or name.endswith(("_position_index", ".attn_mask")):
                continue
            stage, merge, rest = name.partition(".downsample.")
            if merge and stage.removeprefix("layers.").isdecimal():
                name = f"layers.{int(stage.removeprefix('layers.')) + shift}{merge}{rest}"
            kept[name] = tensor
        return kept


class Ark(SwinTransformer):
    """The teacher of Ark, which is a Swin transformer, with or without its projector.

    jlianglab/Ark, Ark_MICCAI2023/models.py: the projector is one linear layer, or two with a ReLU
    between them (Ark-6), and `generate_embeddings` gives the feature before or after it. The
    published file is the teacher's state dict; a checkpoint of training holds it under "teacher".

    `options` of the specification: "head" is "backbone" or "projected".
    """

    sections: ClassVar[tuple[str, ...]] = ("teacher",)

    @classmethod
    def _projects(cls, spec: EmbedderSpec) -> bool:
        return chosen(spec, "head", ("backbone", PROJECTED)) == PROJECTED

    @classmethod
    def _of_feature(
        cls, tensors: dict[str, torch.Tensor], network: Any, spec: EmbedderSpec
    ) -> dict[str, torch.Tensor]:
        kept = super()._of_feature(tensors, network, spec)
        kept = {name: tensor for name, tensor in kept.items() if not name.startswith("omni_heads.")}
        if not cls._projects(spec):
            return {n: tensor for n, tensor in kept.items() if not n.startswith("projector.")}
        width, linear = network.num_features, torch.nn.Linear
        network.projector = (
            torch.nn.Sequential(
                linear(width, spec.dim), torch.nn.ReLU(), linear(spec.dim, spec.dim)
            )
            if "projector.0.weight" in kept
            else linear(width, spec.dim)
        )
        return kept

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        network: Any = self.network
        features = super().forward(pixels)
        if self._projects(self.spec):
            features = network.projector(features)
        return features

    def feature_maps(self, pixels: torch.Tensor) -> FeatureMaps:
        network: Any = self.network
        maps = super().feature_maps(pixels)
        if self._projects(self.spec) and isinstance(network.projector, torch.nn.Linear):
            return maps._replace(features=network.projector(maps.features))
        return maps


def maps_of(network: Any, pixels: torch.Tensor, spec: EmbedderSpec) -> FeatureMaps:
    """What a network of timm gives before its head, whatever the order of its axes.

    Raises:
        UnavailableError: it is no grid.
    """
    features: torch.Tensor = network.forward_features(pixels)
    width = network.num_features
    if features.ndim == 4 and features.shape[1] == width != features.shape[3]:
        return of_channels_first(features, spec.input_size)
    if features.ndim == 4 and features.shape[3] == width:
        return FeatureMaps(features, spec.input_size)
    if features.ndim != 3 or features.shape[2] != width:
        raise no_patches(spec.name, f"it gives features of shape {tuple(features.shape[1:])}")
    if isinstance(getattr(network, "norm", None), torch.nn.Identity):
        # The last layer norm then is that of the pooled feature.
        features = getattr(network, "fc_norm", torch.nn.Identity())(features)
    tokens = features[:, getattr(network, "num_prefix_tokens", 0) :]
    # Exact for networks that keep their patches; those that merge them have no size to go by.
    stride = getattr(getattr(network, "patch_embed", None), "patch_size", (0,))[0]
    kept = stride > 0 and tokens.shape[1] == (spec.input_size // stride) ** 2
    return of_tokens(tokens, spec.name, input_size=spec.input_size, patch=stride if kept else None)


def describe(reference: str, local: Path | None = None) -> EmbedderSpec:
    """The specification of timm's model called `reference`, such as "convnext_tiny.in12k_ft_in1k".

    A name without the tag of its weights stands for timm's default weights; the specification has
    the full name, so that it means the same in other versions of timm. The preprocessing is that
    of timm's evaluation. Asks no network.

    Raises:
        UsageError: timm has no such model, or it cannot be used for pictures as they are here.
    """
    architecture, tag = timm.models.split_model_name_tag(reference)
    try:
        published = timm.models.get_pretrained_cfg(reference) if _known(architecture) else None
    except RuntimeError:  # no such tag
        published = None
    if published is None and (tag or not _known(architecture)):
        names = [*timm.list_models(pretrained=True), *timm.list_models()]
        close = difflib.get_close_matches(reference, names, cutoff=0.5)
        raise unknown_name("timm model", reference, close or _EXAMPLES, _LIST_COMMAND)
    with torch.device("meta"):  # shapes alone: no memory, no time
        network = _network(reference, {})
    stored = network.pretrained_cfg
    name = ".".join(filter(None, [stored.get("architecture") or architecture, stored.get("tag")]))
    library: Any = timm.data
    data = library.resolve_model_data_config(network)
    size, larger, resize = _sizes(name, data)
    repository = stored.get("hf_hub_id") if stored.get("custom_load") != "hf" else None
    parameters = sum(parameter.numel() for parameter in network.parameters())
    red, green, blue = (float(value) for value in data["mean"])
    deviations = tuple(float(value) for value in data["std"])
    return EmbedderSpec(
        name=f"timm:{name}",
        adapter=f"{__name__}:{TimmModel.__name__}",
        source="hub" if repository else "file",
        weights=repository or f"timm's {name}",
        revision=NOT_PINNED,
        filenames=(stored["hf_hub_filename"],) if stored.get("hf_hub_filename") else WEIGHT_FILES,
        dim=_dimension(name, {}, size),
        input_size=size,
        resize=resize,
        resize_to=larger,
        crop_rounding="even",
        interpolation=data["interpolation"],
        mean=(red, green, blue),
        std=(deviations[0], deviations[1], deviations[2]),
        pooling="timm's, before the classifier",
        options={"architecture": name, "arguments": {}},
        license=stored.get("license") or "unknown",
        size_mb=round(4 * parameters / 1e6),
        requires=TIMM,
        note=f"timm {timm.__version__}",
    )


def _sizes(name: str, data: Mapping[str, Any]) -> tuple[int, int, Resize]:
    """Input size, size before the crop and the way of resizing, as `timm.data.create_transform`.

    Raises:
        UsageError: they are none that this library has.
    """
    channels, height, width = data["input_size"]
    size, larger = height, math.floor(height / data["crop_pct"])
    refused = [
        what
        for what, wrong in (
            (f"{channels} channels, not 3", channels != 3),
            (f"{height} by {width} pixels, not a square", height != width),
            (f"interpolation {data['interpolation']}, not {' or '.join(get_args(Interpolation))}",
             data["interpolation"] not in get_args(Interpolation)),
            (f"crop mode {data['crop_mode']}, not center or squash",
             data["crop_mode"] not in ("center", "squash")),
            (f"crop fraction {data['crop_pct']}, above 1", larger < size),
        )
        if wrong
    ]  # fmt: skip
    if refused:
        raise UsageError(
            f"timm model {name} needs pictures in a way that is not supported: "
            f"{'; '.join(refused)}. Choose another model"
        )
    if data["crop_mode"] == "center":
        return size, larger, "crop"
    return size, larger, "squash" if larger == size else "squash-crop"


def _known(architecture: str) -> bool:
    return bool(timm.is_model(architecture))


def _network(architecture: str, arguments: Mapping[str, Any]) -> Any:
    # timm takes addresses of the Hub and of folders for names, too.
    named = isinstance(architecture, str) and ":" not in architecture
    loading = sorted(_LOADING & set(arguments))
    if not named or loading:
        raise UsageError(
            f"timm's network {architecture!r} is described with "
            f"{', '.join(loading) or 'an address'}; expected the name of an architecture and what "
            "shapes it, as img_size: weights come from the file that is given"
        )
    try:
        return timm.create_model(
            architecture, pretrained=False, num_classes=0, **dict(arguments)
        ).eval()
    except Exception as error:  # networks check their arguments in ways of their own
        raise UsageError(
            f"timm {timm.__version__} makes no network {architecture!r} with the arguments "
            f"{dict(arguments)} ({type(error).__name__}: {error}); correct them"
        ) from error


def _dimension(architecture: str, arguments: Mapping[str, Any], size: int) -> int:
    """Length of the feature of a picture of `size` pixels.

    Raises:
        UsageError: the network does not take such pictures, or gives no vector.
    """
    with torch.device("meta"), torch.inference_mode():
        network = _network(architecture, arguments)
        try:
            shape = tuple(network(torch.empty(1, 3, size, size)).shape[1:])
        except Exception as error:  # networks check sizes in ways of their own
            raise UsageError(
                f"timm's {architecture} does not take pictures of {size} by {size} pixels "
                f"({type(error).__name__}: {error}); choose another input size or model"
            ) from error
    if len(shape) != 1:
        raise UsageError(
            f"timm's {architecture} gives features of shape {shape} for a picture; expected one "
            "vector: choose a model that pools"
        )
    return int(shape[0])


def _without_classifier(
    tensors: Mapping[str, torch.Tensor], network: Any, own: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    classifier = network.pretrained_cfg.get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    prefixes = tuple(f"{name}." for name in names)
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name in own or not name.startswith(prefixes)
    }
