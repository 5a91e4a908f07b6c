"""The image encoder of Segment Anything: the mean of its patch tokens.

Two layouts of files are read: that of transformers (config.json + weights) and that of Meta's
package segment_anything, in which MedSAM is published too. The hash is of the names of
transformers, so that the same weights have the same identity in both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

from medretrieval.embedders.base import TorchEmbedder
from medretrieval.embedders.checkpoint import (
    identity_of,
    load_exactly,
    read_tensors,
    weights_file,
)
from medretrieval.embedders.compute import Compute
from medretrieval.embedders.options import chosen, section
from medretrieval.embedders.patches import FeatureMaps, of_channels_first
from medretrieval.embedders.preprocessor_config import preprocessing_of_folder, read_json
from medretrieval.embedders.spec import CONFIG_FILE, EmbedderSpec
from medretrieval.embedders.transformers_folder import architecture_of, plain_config, section_of
from medretrieval.errors import InputError

_TRANSFORMERS, _META = "vision_encoder.", "image_encoder."

# segment_anything, modeling/image_encoder.py -> transformers, modeling_sam.py
_RENAMED = (
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"layers.\1.layer_norm\2."),
    (r"^blocks\.", "layers."),
    (r"^neck\.0\.", "neck.conv1."),
    (r"^neck\.1\.", "neck.layer_norm1."),
    (r"^neck\.2\.", "neck.conv2."),
    (r"^neck\.3\.", "neck.layer_norm2."),
)

# What is not the image encoder, in both layouts.
_OTHER_PARTS = ("prompt_encoder.", "mask_decoder.", "shared_image_embedding.", "pixel_")


class Sam(TorchEmbedder):
    """Mean over all positions, by `options["head"]`: "tokens" before the neck, or "neck" after it.

    The positions of the padding count, as in the published code of CBIR-FM.
    """

    @classmethod
    def load(cls, spec: EmbedderSpec, location: Path, *, revision: str, compute: Compute) -> Sam:
        """Read a folder of transformers, or a weights file in either layout.

        A file alone is of the architecture in `options["vision_config"]`, by default ViT-B's.

        Raises:
            InputError: it is damaged, or of another network than `spec` says.
        """
        weights = location if location.is_file() else weights_file(spec, location)
        architecture = dict(section(spec, "vision_config"))
        if location.is_dir():
            spec = preprocessing_of_folder(spec, location)
            if (location / CONFIG_FILE).is_file():
                architecture = _architecture(location / CONFIG_FILE)
        config: Any = plain_config(SamVisionConfig, architecture, location)
        _check(config, spec, location)
        tensors = {
            name: tensor
            for name, tensor in encoder_tensors(read_tensors(weights)).items()
            if _has_neck(spec) or not name.startswith("neck.")
        }
        network: Any = SamVisionEncoder(config)
        if not _has_neck(spec):
            network.neck = torch.nn.Identity()
        load_exactly(network, tensors, spec, weights)
        identity = identity_of(spec, tensors, revision, architecture=architecture_of(config))
        return cls(spec, network, identity=identity, compute=compute)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network(pixels).last_hidden_state
        if _has_neck(self.spec):
            return features.mean(dim=(2, 3))  # (n, dim, rows, columns) -> (n, dim)
        return features.mean(dim=(1, 2))  # (n, rows, columns, dim) -> (n, dim)

    @property
    def mean_pooled(self) -> bool:
        return True

    def feature_maps(self, pixels: torch.Tensor) -> FeatureMaps:
        features: torch.Tensor = self.network(pixels).last_hidden_state
        if _has_neck(self.spec):
            return of_channels_first(features, self.spec.input_size)
        return FeatureMaps(features, self.spec.input_size)


def encoder_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the image encoder under transformers' names, from either layout.

    What belongs to the other parts of the model is left out; anything else keeps its name, so that
    it is refused where it is not expected.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(_META):
            short = name.removeprefix(_META)
            for pattern, replacement in _RENAMED:
                short = re.sub(pattern, replacement, short)
            found[short] = tensor
        elif not name.startswith(_OTHER_PARTS):
            found[name.removeprefix(_TRANSFORMERS)] = tensor
    return found


def _has_neck(spec: EmbedderSpec) -> bool:
    return chosen(spec, "head", ("tokens", "neck")) == "neck"


def _architecture(path: Path) -> dict[str, Any]:
    stored = read_json(path)
    if stored.get("model_type") != "sam":
        raise InputError(
            f"{path} describes a network of type {stored.get('model_type')!r}; expected type 'sam'"
        )
    return section_of(stored, "vision_config", path)


def _check(config: Any, spec: EmbedderSpec, where: Path) -> None:
    dim = config.output_channels if _has_neck(spec) else config.hidden_size
    if (dim, config.image_size) != (spec.dim, spec.input_size):
        raise InputError(
            f"{where} is of a network with {dim}-d features for pictures of {config.image_size} "
            f"pixels; {spec.name} has {spec.dim}-d features and feeds it {spec.input_size} pixels"
        )
