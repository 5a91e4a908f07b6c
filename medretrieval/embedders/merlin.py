"""Merlin: one embedding for a whole abdominal CT (Blankemeier et al., arXiv 2406.06512).

The image side of the published checkpoint in the network class of its own package, merlin-vlm;
its text encoder is neither built nor loaded. Importing that package takes seconds, so this module
is only imported when the embedder is loaded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from merlin.models import i3res
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.croppad.array import CenterSpatialCrop, SpatialPad
from monai.transforms.intensity.array import ScaleIntensityRange
from monai.transforms.spatial.array import Orientation, Spacing
from numpy.typing import NDArray
from torchvision.models.resnet import (  # type: ignore[import-untyped]
    Bottleneck,
    ResNet,
)

from medretrieval.embedders.base import checked_device, unit_rows
from medretrieval.embedders.checkpoint import (
    identity_of,
    load_but_counters,
    read_tensors,
    weights_file,
)
from medretrieval.embedders.compute import Compute
from medretrieval.embedders.options import chosen, reals, wholes, wrong
from medretrieval.embedders.spec import EmbedderSpec
from medretrieval.errors import InputError, UsageError
from medretrieval.imaging.limits import max_bytes
from medretrieval.types import UNKNOWN, EmbedderIdentity, Volume

# Of the checkpoint: the only part that an embedding of an image depends on.
IMAGE_PREFIX = "encode_image.i3_resnet."
# The other parts of it; they may be there or not, are not loaded, and do not count in the hash.
OTHER_PARTS = ("encode_text.", "logit_scale")
UNUSED = {
    "image": ("classifier.", "contrastive_head."),
    "contrastive": ("classifier.",),
}
# Of the features, by head.
DIM = {"image": 2048, "contrastive": 512}

# Air in and around a patient is -1000 HU, so that some of every CT is below this; nothing is in an
# MR image or in a CT that was windowed to grey values.
AIR_HU = -500

# Far beyond the published network, and small enough for memory.
MOST_LAYERS, MOST_VOXELS = 100, 1024

_RAS_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))


class MerlinCT:
    """Embeds whole CT volumes in Hounsfield units.

    Attributes:
        spec: the specification it was made from.
        identity: what an index stores.
        device: where the network is.
        precision: "float32" or "bfloat16"; "auto" means the former.
    """

    # The numbers of a volume are hundreds of megabytes between the layers: one at a time.
    batch_size = 1

    def __init__(
        self,
        spec: EmbedderSpec,
        network: torch.nn.Module,
        *,
        identity: EmbedderIdentity,
        compute: Compute,
    ) -> None:
        if compute.runtime != "torch":
            raise UsageError(f"{spec.name} runs on torch only; leave out runtime")
        self.spec = spec
        self.device = checked_device(compute.device)
        self.precision = "bfloat16" if compute.precision == "bfloat16" else "float32"
        self.identity = dataclasses.replace(identity, precision=self.precision)
        # With channels last the convolutions take two thirds of the time.
        self.network = network.eval().requires_grad_(False)
        self.network.to(self.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._transforms = transforms(spec.options["volume"])
        # OpenMP keeps the number of threads per thread: it holds for this worker alone.
        threads = compute.threads or torch.get_num_threads()
        self._worker = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.name}, {self.spec.dim}-d, {self.device})"

    @classmethod
    def load(
        cls, spec: EmbedderSpec, location: Path, *, revision: str, compute: Compute
    ) -> MerlinCT:
        """Read the checkpoint in `location`; `revision` goes into the identity.

        Raises:
            InputError: it holds other tensors than the image side of Merlin, or things that are
                no part of Merlin; or `spec` has options that no such network has.
        """
        check_options(spec)
        path = weights_file(spec, location)
        unused = UNUSED[spec.options["head"]]
        tensors = {}
        for name, tensor in read_tensors(path).items():
            inner = name.removeprefix(IMAGE_PREFIX)
            if not (name.startswith(OTHER_PARTS) or inner.startswith(unused)):
                tensors[inner] = tensor
        network = build(spec.options)
        used = load_but_counters(network, tensors, spec, path)
        identity = identity_of(spec, used, revision)
        return cls(spec, network, identity=identity, compute=compute)

    def embed_volume(self, volume: Volume) -> NDArray[np.float32]:
        """Embed a CT volume of any grid; what lies outside of the network's field is cut off.

        Args:
            volume: in Hounsfield units. Of unknown modality it must show air.

        Returns:
            (dim,) float32 of L2 norm 1.

        Raises:
            InputError: it is no CT, a picture, a single slice, or of unknown spacing; or its
                features are not finite.
        """
        check_ct(volume, self.spec.name)
        check_extent(volume, self.spec.options["volume"]["spacing_mm"])
        features = self._worker.submit(self._features, volume).result()
        row: NDArray[np.float32] = unit_rows(features)[0]
        return row

    def prepare(self, volume: Volume) -> torch.Tensor:
        """The network's input for a volume: (1, X, Y, Z) float32 in 0..1, on a RAS grid."""
        voxels = torch.from_numpy(np.ascontiguousarray(volume.voxels, dtype=np.float32))
        affine = torch.from_numpy(np.asarray(volume.grid.affine, dtype=np.float64))
        made: MetaTensor = self._transforms(MetaTensor(voxels[None], affine=affine))
        return made.as_tensor().float()

    def forward(self, voxels: torch.Tensor) -> torch.Tensor:
        """(n, 1, X, Y, Z) float32 in 0..1 -> (n, dim) features, not yet of unit length.

        As I3ResNet.forward, whose layers it calls, without gradient checkpoints.
        """
        network: Any = self.network
        # (n, 1, X, Y, Z) -> (n, 3, Z, X, Y)
        x = voxels.permute(0, 1, 4, 2, 3).expand(-1, 3, -1, -1, -1)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        x = network.layer4(network.layer3(network.layer2(network.layer1(x))))
        x = network.avgpool(x)  # (n, 2048, 1, 1, 1)
        if self.spec.options["head"] == "contrastive":
            x = network.contrastive_head(x)  # (n, 512, 1, 1, 1)
        features: torch.Tensor = x.flatten(1)
        return features

    def _features(self, volume: Volume) -> NDArray[np.float32]:
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"),
        ):
            voxels = self.prepare(volume)[None].to(self.device)
            features: NDArray[np.float32] = self.forward(voxels).float().cpu().numpy()
        return features


def check_options(spec: EmbedderSpec) -> None:
    """Refuse options that describe no network of this kind, or no field of it.

    Raises:
        InputError: one of them does; the message names it.
    """
    dim = DIM[chosen(spec, "head", tuple(DIM))]
    if spec.dim != dim:
        raise InputError(
            f"{spec.name} is described as {spec.dim}-d; this feature is {dim}-d: correct the "
            "description"
        )
    wholes(spec, "layers", count=4, most=MOST_LAYERS)
    wholes(spec, "volume.size", count=3, most=MOST_VOXELS)
    if min(reals(spec, "volume.spacing_mm", count=3)) <= 0:
        raise wrong(spec, "volume.spacing_mm", "3 lengths above 0")
    low, high = reals(spec, "volume.hounsfield", count=2)
    if low >= high:
        raise wrong(spec, "volume.hounsfield", "a lower and an upper bound")
    chosen(spec, "volume.orientation", ("RAS", "LPS", "LAS", "RPS"))


def build(options: Mapping[str, Any]) -> torch.nn.Module:
    """Merlin's image encoder with random weights, without the heads that `options` do not need."""
    resnet = ResNet(Bottleneck, list(options["layers"]))
    network: torch.nn.Module = i3res.I3ResNet(
        resnet, class_nb=1, conv_class=True, ImageEmbedding=True
    )
    for name in UNUSED[options["head"]]:
        setattr(network, name.rstrip("."), torch.nn.Identity())
    return network


def transforms(options: Mapping[str, Any]) -> Any:
    """From (1, X, Y, Z) voxels with an affine to the network's input, as merlin-vlm does it."""
    low, high = options["hounsfield"]
    return Compose(
        [
            # The labels are its own default, given because it warns of another one to come.
            Orientation(axcodes=options["orientation"], labels=_RAS_LABELS),
            Spacing(pixdim=tuple(options["spacing_mm"]), mode="bilinear"),
            ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
            SpatialPad(spatial_size=options["size"]),
            CenterSpatialCrop(roi_size=options["size"]),
        ]
    )


def check_ct(volume: Volume, embedder: str) -> None:
    """Refuse what is no CT volume in Hounsfield units.

    Raises:
        InputError: it is not.
    """
    expected = f"{embedder} embeds whole CT volumes in Hounsfield units (NIfTI or a DICOM series)"
    if not volume.grid.spacing_known or volume.color:
        raise InputError(f"{volume.name} is a picture of unknown spacing; {expected}")
    if min(volume.grid.shape) == 1:
        raise InputError(f"{volume.name} is a single slice; {expected}")
    if volume.modality not in (UNKNOWN, "CT"):
        raise InputError(f"{volume.name} is of modality {volume.modality}; {expected}")
    lowest = float(volume.voxels.min())
    if volume.modality == UNKNOWN and lowest > AIR_HU:
        raise InputError(
            f"{volume.name} is of unknown modality and its lowest value is {lowest:g}, where a CT "
            f"shows air at -1000; {expected}. If it is one, say so where it is read: build takes "
            '--modality CT or the column modality of a table, read_volume modality="CT"'
        )


def check_extent(volume: Volume, spacing_mm: Sequence[float]) -> None:
    """Refuse a volume that would need too much memory once it is resampled.

    Raises:
        InputError: at `spacing_mm` it has more voxels than an image may have here.
    """
    grid = volume.grid
    extent = [n * step for n, step in zip(grid.shape, grid.spacing, strict=True)]
    if 4 * math.prod(extent) / math.prod(spacing_mm) > max_bytes():
        size = " x ".join(f"{mm:.0f}" for mm in extent)
        raise InputError(
            f"{volume.name} is {size} mm large, which no CT is; expected its true spacing in mm: "
            "repair the header of the file"
        )
