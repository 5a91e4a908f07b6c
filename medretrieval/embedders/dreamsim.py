"""DreamSim: vision transformers tuned by low-rank updates to human judgements of likeness.

Built from the modules of the package dreamsim, but neither by torch.hub nor by its download: the
weights come from the archive of its release. The low-rank updates are added to the weights that
they update (W + alpha / r * B A), which is what they do at inference, so that peft is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from dreamsim.feature_extraction.load_clip_as_dino import QuickGELU
from dreamsim.feature_extraction.vision_transformer import VisionTransformer

from medretrieval.embedders.base import TorchEmbedder
from medretrieval.embedders.checkpoint import (
    difference,
    identity_of,
    load_exactly,
    read_tensors,
    refuse_other_weights,
    without_prefix,
)
from medretrieval.embedders.compute import Compute
from medretrieval.embedders.dreamsim_archive import unpacked
from medretrieval.embedders.options import section, whole, wrong
from medretrieval.embedders.preprocessor_config import read_json
from medretrieval.embedders.rows.common import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from medretrieval.embedders.spec import EmbedderSpec
from medretrieval.errors import InputError

# The backbone of DINO. The package takes it from torch.hub, which leaves the first of these in the
# package's folder; the last is of the archive, a checkpoint of DINO's training of which the package
# uses the student's head. Its teacher is what torch.hub publishes (facebookresearch/dino#44).
_DINO_URL = (
    "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
)
_FILES: Mapping[str, tuple[str, ...]] = {
    "dino_vitb16": (
        "checkpoints/dino_vitbase16_pretrain.pth",
        "dino_vitbase16_pretrain.pth",
        "dino_vitb16_pretrain.pth",
    ),
    "clip_vitb16": ("clip_vitb16_pretrain.pth.tar",),
    "open_clip_vitb16": ("open_clip_vitb16_pretrain.pth.tar",),
}
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_ADAPTER_CONFIG = "adapter_config.json"
# Of the names in an adapter: peft wraps the package's model, whose list of networks this is.
_ADAPTER_PREFIX = "base_model.model.extractor_list"
# What else an adapter of peft may do, and what it says where it does not.
_PLAIN_ADAPTER: Mapping[str, Any] = {
    "peft_type": "LORA",
    "target_modules": ["qkv"],
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "layers_to_transform": None,
    "layer_replication": None,
}
# The feature is the class token before the last layer norm: dreamsim's extractor takes the tokens
# that leave the last block.
_UNUSED_OF_DINO = ("norm.", "head.")
# Far beyond the published networks, and small enough for memory.
MOST_WIDTH, MOST_DEPTH = 4096, 64


class DreamSim(TorchEmbedder):
    """The embedding of `dreamsim.dreamsim(normalize_embeds=True)`, before its unit length.

    `spec.options` hold "branches", the networks side by side, each with the length it is projected
    to, or None for a class token as it is; and "width", "depth", "heads" and "patch" of all.
    """

    @classmethod
    def load(
        cls, spec: EmbedderSpec, location: Path, *, revision: str, compute: Compute
    ) -> DreamSim:
        """Read the folder of an unzipped release, or the zip; `revision` goes into the identity.

        Raises:
            InputError: a file is missing, or of another network; or `spec` has options that no
                such network has.
        """
        check_options(spec)
        branches: Mapping[str, int | None] = spec.options["branches"]
        (adapter,) = spec.filenames
        wanted = [name for branch in branches for name in _FILES[branch]]
        wanted += [f"{adapter}/{name}" for name in (*_ADAPTER_FILES, _ADAPTER_CONFIG)]
        network: Any = torch.nn.ModuleList(_Branch(name, spec) for name in branches)
        used: dict[str, torch.Tensor] = {}
        with unpacked(location, wanted) as folder:
            for name, branch in zip(branches, network, strict=True):
                path = _existing(spec, location, folder, _FILES[name])
                tensors = _dino(path) if name == "dino_vitb16" else _clip(path)
                load_exactly(branch.vit, tensors, spec, location / path.relative_to(folder))
                used |= {f"{name}.{key}": tensor for key, tensor in tensors.items()}
            used |= _update(spec, network, location, folder / adapter)
        identity = identity_of(spec, used, revision)
        return cls(spec, network, identity=identity, compute=compute)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        branches: Any = self.network
        features = torch.cat([branch(pixels) for branch in branches], dim=1)
        # Changes the angles between embeddings, unlike the division by the norm that follows.
        return features - features.mean(dim=1, keepdim=True)


def check_options(spec: EmbedderSpec) -> None:
    """Refuse options that describe no networks of this kind.

    Raises:
        InputError: one of them does; the message names it.
    """
    width = whole(spec, "width", most=MOST_WIDTH)
    whole(spec, "depth", most=MOST_DEPTH)
    if width % whole(spec, "heads", most=width):
        raise wrong(spec, "heads", f"a divisor of the width, {width}")
    if spec.input_size % whole(spec, "patch", most=spec.input_size):
        raise wrong(spec, "patch", f"a divisor of the input size, {spec.input_size}")
    branches = section(spec, "branches")
    if not branches or not set(branches) <= set(_FILES):
        raise wrong(spec, "branches", f"some of {', '.join(_FILES)}")
    for name, length in branches.items():
        if length is not None:
            whole(spec, f"branches.{name}", most=MOST_WIDTH)


class _Branch(torch.nn.Module):
    """One vision transformer of dreamsim's, and the normalisation of what it gets."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, name: str, spec: EmbedderSpec) -> None:
        super().__init__()
        options = spec.options
        dino = name == "dino_vitb16"
        # What vit_base of the package is, and load_clip_as_dino and load_open_clip_as_dino make
        # of it: another epsilon, a layer norm before the blocks, QuickGELU for OpenAI's weights.
        self.vit: Any = VisionTransformer(
            img_size=[spec.input_size],
            patch_size=options["patch"],
            embed_dim=options["width"],
            depth=options["depth"],
            num_heads=options["heads"],
            qkv_bias=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6 if dino else 1e-5),
        )
        self.projected_to: int | None = options["branches"][name]
        if self.projected_to is None:
            self.vit.norm = torch.nn.Identity()
        else:
            self.vit.pos_drop = torch.nn.LayerNorm(options["width"], eps=1e-5)
            # The files hold it among the tensors of the transformer.
            projection = torch.empty(options["width"], self.projected_to)
            self.vit.register_parameter("proj", torch.nn.Parameter(projection))
        if name == "clip_vitb16":
            for block in self.vit.blocks:
                block.mlp.act = QuickGELU()
        for what, values in (
            ("mean", IMAGENET_MEAN if dino else CLIP_MEAN),
            ("std", IMAGENET_STD if dino else CLIP_STD),
        ):
            tensor = torch.tensor(values).reshape(1, 3, 1, 1)
            self.register_buffer(what, tensor, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) of intensities in 0..1 -> (n, width), or what it is projected to."""
        features: torch.Tensor = self.vit((pixels - self.mean) / self.std)
        return features if self.projected_to is None else features @ self.vit.proj


def _update(
    spec: EmbedderSpec, network: Any, location: Path, folder: Path
) -> dict[str, torch.Tensor]:
    """Add the low-rank updates in `folder` to `network`; the tensors that they depend on."""
    path = _existing(spec, location, folder, _ADAPTER_FILES)
    rank, scale = _rank_and_scale(_existing(spec, location, folder, (_ADAPTER_CONFIG,)))
    tensors = read_tensors(path)
    layers = {
        f"{_ADAPTER_PREFIX}.{i}.model.blocks.{j}.attn.qkv.lora": block.attn.qkv
        for i, branch in enumerate(network)
        for j, block in enumerate(branch.vit.blocks)
    }
    shapes = {
        f"{name}_{which}.weight": shape
        for name, layer in layers.items()
        for which, shape in (
            ("A", (rank, layer.in_features)),
            ("B", (layer.out_features, rank)),
        )
    }
    differs = difference(
        [name for name in shapes if name not in tensors],
        [name for name in tensors if name not in shapes],
        [
            f"{name} {tuple(tensors[name].shape)}, not {shape}"
            for name, shape in shapes.items()
            if name in tensors and tensors[name].shape != shape
        ],
    )
    refuse_other_weights(spec, location / folder.name / path.name, differs)
    with torch.no_grad():
        for name, layer in layers.items():
            up, down = (tensors[f"{name}_{which}.weight"].float() for which in "BA")
            layer.weight += scale * (up @ down)
    return {**tensors, "alpha over r": torch.tensor(scale)}


def _existing(spec: EmbedderSpec, location: Path, folder: Path, names: tuple[str, ...]) -> Path:
    """The first of `names` in `folder`, which is or was unpacked from `location`."""
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise InputError(
            f"{location} is incomplete: it has no {' or '.join(names)}. {spec.name} needs the "
            f"folder of {spec.weights}"
        )
    return found


def _dino(path: Path) -> dict[str, torch.Tensor]:
    """The backbone of DINO, from a file of torch.hub or from the checkpoint of a training."""
    try:
        tensors = read_tensors(path, sections=("teacher",))
    except InputError as error:
        if path.name == _FILES["dino_vitb16"][-1]:
            raise InputError(
                f"{error}. If the file has no teacher, fetch {_DINO_URL} and put it beside it: "
                "that is what the package dreamsim takes from torch.hub"
            ) from error
        raise
    for prefix in ("module.", "backbone."):
        tensors = without_prefix(tensors, prefix)
    return {k: v for k, v in tensors.items() if not k.startswith(_UNUSED_OF_DINO)}


def _clip(path: Path) -> dict[str, torch.Tensor]:
    return read_tensors(path, sections=("state_dict",))


def _rank_and_scale(path: Path) -> tuple[int, float]:
    """r, and alpha / r, of a plain low-rank update of the layers "qkv".

    Raises:
        InputError: the adapter does anything else.
    """
    config = read_json(path)
    others = [
        f"{key} {config[key]}"
        for key, plain in _PLAIN_ADAPTER.items()
        if (config.get(key) or plain) != plain
    ]
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if others or not isinstance(rank, int) or not isinstance(alpha, (int, float)) or rank < 1:
        raise InputError(
            f"{path} describes no adapter of DreamSim ({'; '.join([*others, f'r {rank}'])}, "
            f"lora_alpha {alpha}); expected a plain low-rank update of the layers qkv: fetch the "
            "archive of the release again"
        )
    return rank, alpha / rank
