"""The built-in demonstration cohort: which phantoms there are, and how a case is made.

Every case is synthetic: drawn from formulas by a seeded generator, from no patient. Regions are
regions of the body ("head", "chest", "abdomen", "pelvis", "knee"); a heart is found in the chest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from medretrieval.errors import unknown_name
from medretrieval.phantoms import cases
from medretrieval.phantoms.cases import Drawing
from medretrieval.types import LabelVolume, Volume


@dataclass(frozen=True, kw_only=True)
class PhantomKind:
    """One kind of phantom.

    Attributes:
        name: key in `KINDS`.
        title: words for people; says that it is synthetic.
        modality: DICOM modality code.
        region: region of the body.
        labels: label value -> structure name.
        axis: the view in which it was acquired: "axial" (short-axis slices of the heart are stored
            as such), "sagittal", or "picture" (2-D).
    """

    name: str
    title: str
    modality: str
    region: str
    labels: Mapping[int, str]
    axis: str


@dataclass(frozen=True, eq=False, kw_only=True)
class PhantomCase:
    """A synthetic case: the image, its label map on the same grid, and what it shows."""

    volume: Volume
    labels: LabelVolume
    kind: str
    modality: str
    region: str
    title: str


def _kind(name: str, title: str, modality: str, region: str, labels: str, axis: str) -> PhantomKind:
    names = dict(enumerate(labels.split(", "), start=1))
    return PhantomKind(
        name=name,
        title=f"Synthetic {title}",
        modality=modality,
        region=region,
        labels=MappingProxyType(names),
        axis=axis,
    )


_ALL = (
    _kind("ct-head", "CT of the head", "CT", "head", "brain, ventricles, skull", "axial"),
    _kind(
        "ct-chest", "CT of the chest", "CT", "chest", "left lung, right lung, heart, aorta", "axial"
    ),
    _kind(
        "ct-abdomen",
        "CT of the abdomen",
        "CT",
        "abdomen",
        "liver, spleen, left kidney, right kidney, aorta, vertebra, stomach, gallbladder, pancreas",
        "axial",
    ),
    _kind(
        "ct-pelvis",
        "CT of the pelvis",
        "CT",
        "pelvis",
        "bladder, left femoral head, right femoral head, sacrum, rectum, hip bone",
        "axial",
    ),
    _kind(
        "mr-brain",
        "MR of the brain, T1-weighted",
        "MR",
        "head",
        "white matter, grey matter, ventricles, cerebellum",
        "axial",
    ),
    _kind("mr-heart", "cine MR of the heart, short axis", "MR", "chest", "RV, Myo, LV", "axial"),
    _kind(
        "mr-abdomen",
        "MR of the abdomen, T2-weighted",
        "MR",
        "abdomen",
        "liver, spleen, left kidney, right kidney",
        "axial",
    ),
    _kind(
        "mr-prostate",
        "MR of the prostate, T2-weighted",
        "MR",
        "pelvis",
        "prostate, bladder, rectum",
        "axial",
    ),
    _kind(
        "mr-knee",
        "MR of the knee",
        "MR",
        "knee",
        "femur, tibia, patella, fibula, meniscus",
        "sagittal",
    ),
    _kind("xr-chest", "chest radiograph", "DX", "chest", "left lung, right lung, heart", "picture"),
    _kind("xa-coronary", "coronary angiogram", "XA", "chest", "vessel", "picture"),
    _kind("xa-cerebral", "cerebral angiogram", "XA", "head", "vessel", "picture"),
)
KINDS: Mapping[str, PhantomKind] = MappingProxyType({k.name: k for k in _ALL})

_DRAW: Mapping[str, Callable[[np.random.Generator, Mapping[str, int], bool], Drawing]] = {
    "ct-head": cases.ct_head,
    "ct-chest": cases.ct_chest,
    "ct-abdomen": cases.ct_abdomen,
    "ct-pelvis": cases.ct_pelvis,
    "mr-brain": cases.mr_brain,
    "mr-heart": cases.mr_heart,
    "mr-abdomen": cases.mr_abdomen,
    "mr-prostate": cases.mr_prostate,
    "mr-knee": cases.mr_knee,
    "xr-chest": cases.xr_chest,
    "xa-coronary": cases.xa_coronary,
    "xa-cerebral": cases.xa_cerebral,
}


def make_case(kind: str, seed: int, *, quick: bool = False) -> PhantomCase:
    """Make a synthetic case.

    Args:
        kind: key of `KINDS`.
        seed: any integer >= 0; the same kind and seed give the same case, on every machine up to
            rounding.
        quick: half the resolution in plane, half the slices: for tests and previews.

    Returns:
        The case. CT is int16 in HU, MR uint16 in arbitrary units, pictures are uint8 with the
        grid of 2-D pictures (`spacing_known` False). Every label of the kind occurs in it.

    Raises:
        UsageError: no such kind.
    """
    if kind not in KINDS:
        raise unknown_name("phantom kind", kind, KINDS, "medretrieval demo --help")
    spec = KINDS[kind]
    # The kind goes into the seed, so that case 3 of two kinds is not one patient's noise twice.
    rng = np.random.default_rng([int(seed), *spec.name.encode()])
    drawing = _DRAW[kind](rng, {name: value for value, name in spec.labels.items()}, quick)
    name = f"synthetic-{kind}-{seed:03d}"
    volume = Volume(voxels=drawing.image, grid=drawing.grid, modality=spec.modality, name=name)
    labels = LabelVolume(voxels=drawing.labels, grid=drawing.grid, names=dict(spec.labels))
    return PhantomCase(
        volume=volume,
        labels=labels,
        kind=kind,
        modality=spec.modality,
        region=spec.region,
        title=f"{spec.title}, case {seed}",
    )
