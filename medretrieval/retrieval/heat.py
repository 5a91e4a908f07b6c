"""Which parts of two pictures make their embeddings similar: heat maps of a pair.

Two kinds, by how the embedder pools the features f_1..f_n of the parts of a picture:

"contribution", where an embedding is their mean F = sum_i f_i / n. The cosine of two embeddings
then is the mean of one number for each part (Stylianou, Souvenir and Pless, "Visualizing Deep
Similarity Networks", WACV 2019, eq. 2):

    cos(F_a, F_b) = 1/n sum_i  f_i . F_b / (|F_a| |F_b|)

so that the map says exactly what each part of a adds to the similarity with the whole of b, and
negative numbers what it takes away. It does not say with which part of b: the map of b does, for
the whole of a.

"match", for every other pooling (class token, attention, generalised mean): the largest cosine of
the part with any part of the other picture, as a late interaction compares words (Khattab and
Zaharia, "ColBERT", SIGIR 2020) and Amir et al. compare patches of vision transformers ("Deep ViT
Features as Dense Visual Descriptors", arXiv 2112.05814). It says where the other picture has
something alike, which need not be what the embedding is made of: a class token weighs the parts in
a way that these numbers do not show.

Neither map is a segmentation, and neither says why a person would call two pictures alike. A part
of a convolutional network's map depends on far more of the picture than its own rectangle, and a
token of a vision transformer on all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medretrieval.embedders.patches import no_patches
from medretrieval.errors import InputError, UsageError
from medretrieval.types import Embedder, PatchFeatures, VolumeEmbedder

Kind = Literal["contribution", "match"]
KINDS: tuple[Kind, ...] = ("contribution", "match")


class Box(NamedTuple):
    """A rectangle in pixels of a picture; pixel (0, 0) reaches from 0 to 1."""

    top: float
    left: float
    bottom: float
    right: float


# A picture -> the part of it that is embedded, and where that lies in the picture.
Part = Callable[[NDArray[np.uint8]], tuple[NDArray[np.uint8], tuple[int, int]]]


@dataclass(frozen=True, eq=False, kw_only=True)
class HeatMap:
    """What each part of one picture has in common with another picture.

    Attributes:
        pixels: (H, W) float32 on the pixels of the picture, bilinear between the centres of the
            parts; NaN where the embedder does not look, such as outside a central crop.
        grid: (rows, columns) float32, one number for each part.
        box: what the grid divides evenly; it goes beyond the picture where that was padded.
    """

    pixels: NDArray[np.float32]
    grid: NDArray[np.float32]
    box: Box


@dataclass(frozen=True, eq=False, kw_only=True)
class HeatMaps:
    """The maps of a pair.

    Attributes:
        kind: "contribution", whose mean over either grid is `cosine`, or "match".
        cosine: of the embeddings of both pictures.
        a, b: of the first and of the second picture.
    """

    kind: Kind
    cosine: float
    a: HeatMap
    b: HeatMap


def heat_maps(
    embedder: Embedder | VolumeEmbedder,
    a: NDArray[np.uint8],
    b: NDArray[np.uint8],
    *,
    kind: Literal["auto", "contribution", "match"] = "auto",
    part: Part | None = None,
) -> HeatMaps:
    """Where two pictures are alike in the eyes of an embedder.

    Args:
        embedder: one with `patches`, see `medretrieval.types.PatchEmbedder`.
        a, b: (H, W) or (H, W, 3) uint8, of any sizes.
        kind: see the module; "auto" is "contribution" where an embedding is a mean.
        part: what of a picture is embedded, default all of it. The maps are of the whole pictures.

    Raises:
        UnavailableError: the embedder has no features of parts; the message says which have.
        UsageError: "contribution" of an embedder that does not take the mean.
        InputError: no picture that can be embedded.
    """
    if kind not in ("auto", *KINDS):
        raise UsageError(f"the kind of map is {kind!r}; expected auto, {' or '.join(KINDS)}")
    cut = part or _everything
    (part_a, at_a), (part_b, at_b) = cut(a), cut(b)
    found = patches_of(embedder, [part_a, part_b])
    if kind == "contribution" and not found.mean_pooled:
        raise UsageError(
            f"{embedder.identity.name} does not take the mean of its patches "
            f"({embedder.identity.pooling}), so that none of them has a contribution to the "
            "similarity; ask for the kind match"
        )
    features = found.features.astype(np.float64)
    if found.mean_pooled and kind != "match":
        kind, (grid_a, grid_b, cosine) = "contribution", contributions(*features)
    else:
        kind, (grid_a, grid_b) = "match", best_matches(*features)
        cosine = _cosine(embedder, [part_a, part_b])
    return HeatMaps(
        kind=kind,
        cosine=cosine,
        a=_map(grid_a, found.boxes[0], at_a, a.shape),
        b=_map(grid_b, found.boxes[1], at_b, b.shape),
    )


def contributions(
    a: NDArray[Any], b: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """What each part adds to the cosine of the means (Stylianou et al. 2019, eq. 2).

    Args:
        a, b: (rows, columns, c) features of the parts of two pictures; grids may differ.

    Returns:
        Two (rows, columns) float64 with the same mean, which is the third: the cosine.

    Raises:
        InputError: the mean of one is zero, so that it has no direction.
    """
    mean_a, mean_b = a.mean(axis=(0, 1), dtype=np.float64), b.mean(axis=(0, 1), dtype=np.float64)
    norms = float(np.linalg.norm(mean_a) * np.linalg.norm(mean_b))
    if norms == 0:
        raise InputError("the features of a picture are zero on average; it has no similarities")
    return a @ mean_b / norms, b @ mean_a / norms, float(mean_a @ mean_b / norms)


def best_matches(
    a: NDArray[Any], b: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The cosine of each part with the part of the other picture that is most like it.

    Args:
        a, b: (rows, columns, c) features of the parts of two pictures; grids may differ.

    Returns:
        Two (rows, columns) float64 in -1..1; features that are zero are like nothing: 0.
    """
    unit_a, unit_b = _unit(a.reshape(-1, a.shape[-1])), _unit(b.reshape(-1, b.shape[-1]))
    similar = np.clip(unit_a @ unit_b.T, -1.0, 1.0)  # (parts of a, parts of b)
    return similar.max(axis=1).reshape(a.shape[:2]), similar.max(axis=0).reshape(b.shape[:2])


def spread(grid: NDArray[Any], box: Sequence[float], shape: tuple[int, int]) -> NDArray[np.float32]:
    """One number for each part -> one for each pixel.

    Args:
        grid: (rows, columns).
        box: (top, left, bottom, right) that the grid divides evenly, in pixels.
        shape: (H, W) of the picture.

    Returns:
        (H, W) float32, bilinear between the centres of the parts and constant beyond the outermost
        ones; NaN for pixels whose centres are outside of the box.
    """
    top, left, bottom, right = box
    rows = _between(grid.shape[0], top, bottom, shape[0])
    columns = _between(grid.shape[1], left, right, shape[1])
    inside = (rows.sum(axis=1) > 0)[:, None] & (columns.sum(axis=1) > 0)
    pixels = rows @ np.asarray(grid, dtype=np.float64) @ columns.T
    return np.where(inside, pixels, np.nan).astype(np.float32)


def patches_of(
    embedder: Embedder | VolumeEmbedder, pictures: Sequence[NDArray[np.uint8]]
) -> PatchFeatures:
    """`embedder.patches(pictures)`.

    Raises:
        UnavailableError: it has none; the message says which embedders have.
    """
    patches = getattr(embedder, "patches", None)
    if patches is None:
        raise no_patches(embedder.identity.name)
    found: PatchFeatures = patches(pictures)
    return found


def _map(
    grid: NDArray[np.float64], box: NDArray[np.float64], at: tuple[int, int], shape: Sequence[int]
) -> HeatMap:
    top, left, bottom, right = (box + np.tile(at, 2)).tolist()
    whole = Box(top, left, bottom, right)
    return HeatMap(
        pixels=spread(grid, whole, (shape[0], shape[1])), grid=grid.astype(np.float32), box=whole
    )


def _between(cells: int, begin: float, end: float, pixels: int) -> NDArray[np.float64]:
    """(pixels, cells) weights of the cells for each pixel; rows of zeros outside of the box."""
    centres = np.arange(pixels) + 0.5
    place = np.clip((centres - begin) / (end - begin) * cells - 0.5, 0, cells - 1)
    weights = np.maximum(0.0, 1 - np.abs(place[:, None] - np.arange(cells)))
    # Boxes come from divisions: a centre on their edge counts as inside.
    inside = (centres > begin - 1e-6) & (centres < end + 1e-6)
    found: NDArray[np.float64] = weights * inside[:, None]
    return found


def _cosine(embedder: Any, pictures: Sequence[NDArray[np.uint8]]) -> float:
    a, b = embedder.embed_batch(pictures).astype(np.float64)
    return float(np.clip(a @ b, -1.0, 1.0))


def _unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(rows, norms, out=np.zeros(rows.shape), where=norms > 0)
    return unit


def _everything(picture: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    return picture, (0, 0)
