"""MedCLIP's image side with the Swin transformer, from the file that its authors publish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from medretrieval.embedders.base import TorchEmbedder
from medretrieval.embedders.checkpoint import (
    identity_of,
    load_exactly,
    read_tensors,
    weights_file,
)
from medretrieval.embedders.compute import Compute
from medretrieval.embedders.options import chosen, section
from medretrieval.embedders.patches import FeatureMaps, of_tokens
from medretrieval.embedders.spec import EmbedderSpec
from medretrieval.embedders.transformers_folder import (
    architecture_of,
    filled,
    never_used,
    plain_config,
)
from medretrieval.errors import InputError

# Names in the file, medclip/modeling_medclip.py: MedCLIPModel with MedCLIPVisionModelViT.
_BACKBONE = "vision_model.model."
_PROJECTION = "vision_model.projection_head."
_OTHER_PARTS = ("text_model.", "logit_scale")

# Of red, green and blue in Pillow's mode "L" (ITU-R 601-2), which MedCLIP converts pictures to.
_LUMA = (0.299, 0.587, 0.114)


class MedClip(TorchEmbedder):
    """Pooled tokens of the Swin transformer, by `options["head"]`.

    "backbone" is their mean after the last layer norm, "projected" its linear projection into the
    space shared with reports. The network sees grey pictures only: colour is reduced to luma, as
    MedCLIP's own feature extractor does (before resizing there, after it here: the same but for
    rounding, since both are linear).
    """

    @classmethod
    def load(
        cls, spec: EmbedderSpec, location: Path, *, revision: str, compute: Compute
    ) -> MedClip:
        """Read MedCLIP's pytorch_model.bin, alone or in a folder.

        The architecture is `options["config"]`, by default that of Swin-T.

        Raises:
            InputError: it is damaged, or of another network than `spec` says.
        """
        path = weights_file(spec, location)
        projected = _projected(spec)
        config: Any = plain_config(transformers.SwinConfig, section(spec, "config"), location)
        unused = (*_OTHER_PARTS, *(() if projected else (_PROJECTION,)))
        tensors = {
            name: tensor
            for name, tensor in read_tensors(path).items()
            if not name.startswith(unused) and not never_used(name)
        }
        inside = {k: v for k, v in tensors.items() if not k.startswith(_PROJECTION)}
        backbone = filled(
            transformers.SwinModel,
            config,
            {name.removeprefix(_BACKBONE): tensor for name, tensor in inside.items()},
            unused=never_used,
            spec=spec,
            where=path,
            options={},
        )
        dim = spec.dim if projected else config.hidden_size
        if dim != spec.dim or config.image_size != spec.input_size:
            raise InputError(
                f"{path} is read as a network with {dim}-d features for pictures of "
                f"{config.image_size} pixels; {spec.name} has {spec.dim}-d features and feeds it "
                f"{spec.input_size} pixels"
            )
        network = torch.nn.ModuleDict({"backbone": backbone})
        if projected:
            projection = torch.nn.Linear(config.hidden_size, spec.dim, bias=False)
            head = {name: tensor for name, tensor in tensors.items() if name not in inside}
            named = torch.nn.ModuleDict({"projection_head": projection})
            load_exactly(torch.nn.ModuleDict({"vision_model": named}), head, spec, path)
            network["projection"] = projection
        identity = identity_of(spec, tensors, revision, architecture=architecture_of(config))
        return cls(spec, network, identity=identity, compute=compute)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._head(self._output(pixels).pooler_output)

    @property
    def mean_pooled(self) -> bool:
        return True

    def feature_maps(self, pixels: torch.Tensor) -> FeatureMaps:
        tokens = self._head(self._output(pixels).last_hidden_state)
        return of_tokens(tokens, self.spec.name, input_size=self.spec.input_size)

    def _output(self, pixels: torch.Tensor) -> Any:
        network: Any = self.network
        # Mean and deviation are the same for all channels, so luma may be taken after them.
        luma = pixels.new_tensor(_LUMA)[:, None, None]
        grey = (pixels * luma).sum(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        return network["backbone"](pixel_values=grey)

    def _head(self, features: torch.Tensor) -> torch.Tensor:
        network: Any = self.network
        if not _projected(self.spec):
            return features
        projected: torch.Tensor = network["projection"](features)
        return projected


def _projected(spec: EmbedderSpec) -> bool:
    return chosen(spec, "head", ("backbone", "projected")) == "projected"
