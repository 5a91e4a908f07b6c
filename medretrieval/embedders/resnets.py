"""ResNet-50 and -101, whose weights several code bases publish under names of their own.

All of them are torchvision's network (the stride of a bottleneck is on its 3x3 convolution), so
only names are translated. Names and formats are those of

- RadImageNet (BMEII-AI/RadImageNet, acl/acl_pytorch_train.ipynb; Lab-Rasool/RadImageNet on the Hub
  holds the same): `backbone` is the torch Sequential of torchvision's children, without the
  classifier;
- FractalDB (hirokatsukataoka16/FractalDB-Pretrained-ResNet-PyTorch, pretraining/resnet.py):
  torchvision's own;
- CVNet (sungonce/CVNet, model/resnet.py and model/CVNet_Rerank_model.py): those of pycls, under
  "encoder_q." (ShihaoShao-GH/SuperGlobal, extract_rop1m.py: or "globalmodel."); its pictures are
  read with OpenCV, so in the order blue, green, red;
- SuperCVNet (edwardguil/SuperCVNet, models/cvnet.py), on which the specialists of CBIR-FM are
  based: torchvision's, with the stem in a Sequential, and no bias after the pooling.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torchvision.models import resnet  # type: ignore[import-untyped]

from medretrieval.embedders.base import TorchEmbedder
from medretrieval.embedders.checkpoint import (
    identity_of,
    load_but_counters,
    read_tensors,
    weights_file,
)
from medretrieval.embedders.compute import Compute
from medretrieval.embedders.options import wholes
from medretrieval.embedders.patches import FeatureMaps, of_channels_first
from medretrieval.embedders.spec import EmbedderSpec
from medretrieval.errors import UsageError

DIM = 2048
# Far beyond any published network, and small enough for memory.
MOST_BLOCKS = 100

# Where training scripts put the state dict.
_SECTIONS = ("state_dict", "model_state", "model_state_dict", "model")
# torchvision's children by their place in a Sequential; 2, 3 and 8 hold no tensors.
_PLACES = {
    "0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"
}  # fmt: skip
# From the names of pycls to those of torchvision, in this order.
_PYCLS = (
    (r"^stem\.conv\.", "conv1."),
    (r"^stem\.bn\.", "bn1."),
    (r"^head\.pool\.", "avgpool."),
    (r"^head\.fc\.", "fc."),
    (r"^(s\d+\.b\d+)\.proj\.", r"\1.downsample.0."),
    (r"^(s\d+\.b\d+)\.bn\.", r"\1.downsample.1."),
    (r"\.f\.([abc])_bn\.", lambda found: f".bn{_place(found[1])}."),
    (r"\.f\.([abc])\.", lambda found: f".conv{_place(found[1])}."),
    (r"^s(\d+)\.b(\d+)\.", lambda found: f"layer{found[1]}.{int(found[2]) - 1}."),
)
_SUPERCVNET = (
    (r"^stem\.0\.", "conv1."),
    (r"^stem\.1\.", "bn1."),
    (r"^gem_pooling\.", "avgpool."),
    (r"^whitening\.", "fc."),
)


class GeneralisedMean(torch.nn.Module):
    """(n, c, h, w) -> (n, c, 1, 1), the mean of powers p of what is at least 1e-6, to 1/p."""

    def __init__(self) -> None:
        super().__init__()
        self.p = torch.nn.Parameter(torch.full((1,), 3.0))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        powers = maps.clamp(min=1e-6).pow(self.p)
        return powers.mean(dim=(2, 3), keepdim=True).pow(1 / self.p)


class ResNet(TorchEmbedder):
    """Global average of the last feature map, 2048-d.

    `options` of the specification: "blocks", the number of bottlenecks in each of the 4 stages.

    Attributes:
        unused: beginnings of the names of tensors that the feature does not depend on; they may be
            there or not, are not loaded, and do not count in `weights_sha256`.
    """

    pass_size = 4
    unused: ClassVar[tuple[str, ...]] = ("fc.",)

    @classmethod
    def load(cls, spec: EmbedderSpec, location: Path, *, revision: str, compute: Compute) -> ResNet:
        """Read the weights file `location`; `revision` goes into the identity.

        Raises:
            InputError: the file holds other tensors than those of the network.
            UsageError: the specification is of another dimension.
        """
        path = weights_file(spec, location)
        blocks = wholes(spec, "blocks", count=4, most=MOST_BLOCKS)
        stored = read_tensors(path, sections=_SECTIONS)
        tensors = cls._translated({k.removeprefix("module."): v for k, v in stored.items()})
        network = resnet.ResNet(resnet.Bottleneck, blocks)
        cls._set_head(network, tensors, spec)
        used = load_but_counters(network, tensors, spec, path)
        network = network.to(memory_format=torch.channels_last)
        identity = identity_of(spec, used, revision)
        return cls(spec, network, identity=identity, compute=compute)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network(pixels.contiguous(memory_format=torch.channels_last))
        return features

    @property
    def mean_pooled(self) -> bool:
        return True

    def feature_maps(self, pixels: torch.Tensor) -> FeatureMaps:
        network: Any = self.network
        maps = pixels.contiguous(memory_format=torch.channels_last)
        # As torchvision's forward, up to the pooling.
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            maps = getattr(network, name)(maps)
        return of_channels_first(maps, self.spec.input_size)

    @classmethod
    def _translated(cls, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of the feature under the names that torchvision gives them."""
        translated = {}
        for name, tensor in tensors.items():
            place, dot, rest = name.removeprefix("backbone.").partition(".")
            own = f"{_PLACES.get(place, place)}{dot}{rest}"
            if not own.startswith(cls.unused):
                translated[own] = tensor
        return translated

    @classmethod
    def _set_head(
        cls, network: Any, tensors: Mapping[str, torch.Tensor], spec: EmbedderSpec
    ) -> None:
        if spec.dim != DIM:
            raise UsageError(
                f"{spec.name} is described as {spec.dim}-d; this feature is {DIM}-d: correct the "
                "description"
            )
        network.fc = torch.nn.Identity()


class CVNetGlobal(ResNet):
    """The global descriptor: generalised mean of the last feature map, then a linear layer."""

    # Of the network that re-ranks, and the copy of the network that training updates slowly.
    unused: ClassVar[tuple[str, ...]] = ("conv2ds.", "cv_learner.", "momentum_network.", "resnet.")

    @property
    def mean_pooled(self) -> bool:
        return False

    @classmethod
    def _translated(cls, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        prefixes = ("encoder_q.", "globalmodel.", "global_network.")
        prefix = next((p for p in prefixes if any(n.startswith(p) for n in tensors)), "")
        kept = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if not name.startswith(cls.unused)
        }
        kept = {name: tensor for name, tensor in kept.items() if not name.startswith(cls.unused)}
        of_pycls = "stem.conv.weight" in kept
        rules = _PYCLS if of_pycls else _SUPERCVNET
        translated = {_renamed(name, rules): tensor for name, tensor in kept.items()}
        if of_pycls and translated["conv1.weight"].ndim == 4:
            translated["conv1.weight"] = translated["conv1.weight"].flip(1)  # to red, green, blue
        return translated

    @classmethod
    def _set_head(
        cls, network: Any, tensors: Mapping[str, torch.Tensor], spec: EmbedderSpec
    ) -> None:
        network.avgpool = GeneralisedMean()
        network.fc = torch.nn.Linear(DIM, spec.dim, bias="fc.bias" in tensors)


def _place(letter: str) -> int:
    return " abc".index(letter)


def _renamed(name: str, rules: Any) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
