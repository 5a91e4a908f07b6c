"""Which way a query lies: the orientation in which its slices fit the most similar ones.

Embeddings depend on the orientation of a picture, and scanners store the same plane differently.
The orientation is looked for with the index itself: a few slices are embedded in all eight. How
similar they are then to what is stored tells quarter turns apart, but hardly a picture from its
mirror image, to which networks are trained to be blind. So the pixels of the slices that were found
count as well: how they correlate with those of the query.

Measured with efficientnet-lite0 on 31 query volumes as they are (`benchmarks/orientation.py`): by
embeddings alone 8 of 14 hearts, 3 of 10 hippocampi and 4 of 5 heads were turned or mirrored without
need; by this rule 2 hearts, both of one patient, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import UsageError, unknown_name
from medretrieval.imaging.orientation import AS_STORED, ORIENTATIONS
from medretrieval.retrieval.duplicates import thumbnail
from medretrieval.retrieval.query import QueryEmbeddings, embed_query
from medretrieval.types import (
    Embedder,
    EmbedderIdentity,
    Progress,
    SlicePolicy,
    Support,
    Volume,
    VolumeEmbedder,
    no_progress,
)

if TYPE_CHECKING:
    from medretrieval.retrieval.engine import Index
    from medretrieval.retrieval.filters import Filters

ANY = "any"
CHOICES = (AS_STORED, ANY, *(name for name in ORIENTATIONS if name != AS_STORED))
SAMPLED = 16  # slices that decide; they are embedded eight times

# How a mean cosine of slices and a mean correlation of pictures are put together: the first is
# within a few hundredths for all orientations, the second anywhere between 0 and 1.
WEIGHT = 0.25
COMPARED = 3  # most similar slices that each slice is held against, pixel by pixel
CANDIDATES = 0.05  # mean cosine below the best, up to which pixels can still decide
MARGIN = 0.01  # by which another orientation must be better than "as stored"


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """What may be found.

    Attributes:
        nearest: (m, dim) float32 rows of norm 1 and k -> (m, <= k) cosines, best first, and rows;
            -inf and -1 where there are fewer.
        picture: row -> (H, W) or (H, W, 3) uint8.
    """

    nearest: Callable[[NDArray[np.float32], int], tuple[NDArray[Any], NDArray[Any]]]
    picture: Callable[[int], NDArray[np.uint8]]


def check_orientation(orientation: str, embedder: EmbedderIdentity) -> None:
    """Refuse an orientation that there is not, or that has no meaning.

    Args:
        orientation: as a user gives it.
        embedder: of the index.

    Raises:
        UsageError: none of `CHOICES`, or slices are to be turned where volumes are embedded.
    """
    if orientation not in CHOICES:
        raise unknown_name("orientation", orientation, CHOICES, "medretrieval search --help")
    if orientation != AS_STORED and embedder.unit == "volume":
        raise UsageError(
            f"the orientation is {orientation!r}, but the embedder {embedder.name} of this index "
            "takes whole volumes, and slices are turned; leave the orientation out, or build an "
            "index of the same images with an embedder of slices"
        )


def check_embedded(orientation: str, query: QueryEmbeddings) -> None:
    """Refuse to turn slices that are embedded already.

    Raises:
        UsageError: they were not embedded in this orientation.
    """
    if orientation not in (AS_STORED, query.orientation):
        raise UsageError(
            f"the orientation is {orientation!r}, but {query.name} comes as embeddings of its "
            f"slices {query.orientation}, which cannot be turned; give the image itself, or embed "
            "it in that orientation (query_embeddings)"
        )


def embed_oriented(
    volume: Volume,
    policy: SlicePolicy,
    embedder: Embedder | VolumeEmbedder,
    *,
    orientation: str = AS_STORED,
    lookup: Lookup,
    indices: Iterable[int] | None = None,
    keep_images: bool = False,
    progress: Progress = no_progress,
) -> QueryEmbeddings:
    """Embed the slices of a volume in an orientation that is given or found.

    Args:
        volume, policy, embedder, indices, keep_images: as for `embed_query`.
        orientation: one of `CHOICES`; "any" takes that of `find_orientation`.
        lookup: what may be found; asked for "any" only.

    Returns:
        The embedded slices; `orientation` says how they were turned.

    Raises:
        UsageError: as `check_orientation`, and as `embed_query`.
    """
    check_orientation(orientation, embedder.identity)
    wanted = None if indices is None else [int(i) for i in indices]
    if orientation == ANY:
        orientation = find_orientation(
            volume,
            policy,
            cast(Embedder, embedder),
            lookup=lookup,
            indices=wanted,
            progress=progress,
        )
    return embed_query(
        volume,
        policy,
        embedder,
        indices=wanted,
        orientation=orientation,
        keep_images=keep_images,
        progress=progress,
    )


def find_orientation(
    volume: Volume,
    policy: SlicePolicy,
    embedder: Embedder,
    *,
    lookup: Lookup,
    indices: Sequence[int] | None = None,
    progress: Progress = no_progress,
) -> str:
    """The orientation in which slices of a volume fit those that may be found.

    At most `SAMPLED` slices, equally spaced, are embedded in all eight orientations. An orientation
    is as good as the mean over the slices of the best cosine, plus `WEIGHT` times the mean
    correlation of their pictures, made small, with those of the `COMPARED` most similar slices.

    Args:
        volume, policy, embedder: as for `embed_query`.
        lookup: what may be found.
        indices: the slices that will be searched with, default all.

    Returns:
        The best of `ORIENTATIONS`; "as stored" unless another is better by more than `MARGIN`.
    """
    from medretrieval.imaging import embedded_part, slice_axis

    if indices is None:
        indices = range(volume.grid.shape[slice_axis(volume.grid, policy.axis)])
    chosen = [indices[place] for place in spread(len(indices), SAMPLED)]

    @cache
    def stored(row: int) -> NDArray[np.float64]:
        return _outline(embedded_part(lookup.picture(row), policy.crop))

    queries: dict[str, tuple[QueryEmbeddings, NDArray[Any]]] = {}
    cosine: dict[str, float] = {}
    for name in ORIENTATIONS:
        query = embed_query(
            volume,
            policy,
            embedder,
            indices=chosen,
            orientation=name,
            keep_images=True,
            progress=progress,
        )
        scores, rows = lookup.nearest(query.embeddings, COMPARED)
        queries[name] = query, rows
        cosine[name] = float(np.mean(scores[:, 0]))
    fit: dict[str, float] = {}
    for name, (query, rows) in queries.items():
        if cosine[name] >= max(cosine.values()) - CANDIDATES:
            alike = [
                float((_outline(embedded_part(image, policy.crop)) * stored(row)).sum())
                for image, found in zip(query.images or (), rows.tolist(), strict=True)
                for row in found
                if row >= 0
            ]
            fit[name] = cosine[name] + WEIGHT * float(np.mean(alike or [0.0]))
    best = max(fit, key=lambda name: fit[name])
    kept = fit.get(AS_STORED, -np.inf) >= fit[best] - MARGIN
    return AS_STORED if kept else best


def _outline(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """A small picture of mean 0 and norm 1, or of zeros where it is even."""
    grey = thumbnail(picture).astype(np.float64)
    grey -= grey.mean()
    norm = float(np.linalg.norm(grey))
    return grey / norm if norm else grey


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` places, equally spaced and as far from both ends.

    >>> spread(3, 16), spread(10, 4)
    ([0, 1, 2], [1, 3, 6, 8])
    """
    if count <= most:
        return list(range(count))
    return [(2 * i + 1) * count // (2 * most) for i in range(most)]


def oriented(
    index: Index,
    query: Volume,
    orientation: str,
    lookup: Lookup,
    indices: Sequence[int] | None,
    progress: Progress,
    *,
    policy: SlicePolicy | None = None,
) -> str:
    """An orientation for a query of an index: that given, or the one found where it is "any".

    Args:
        lookup, indices: as for `find_orientation`.
        policy: how slices of the query are made, if not as those of the index.

    Raises:
        UsageError: as `check_orientation`.
    """
    check_orientation(orientation, index.manifest.embedder)
    if orientation != ANY:
        return orientation
    return find_orientation(
        query,
        policy or index.manifest.slices,
        cast(Embedder, index.embedder),
        lookup=lookup,
        indices=indices,
        progress=progress,
    )


def annotated(index: Index, *, labels: Sequence[str] | None, filters: Filters) -> Lookup:
    """The annotated slices of an index that supports are retrieved from."""

    def nearest(queries: NDArray[np.float32], k: int) -> tuple[NDArray[Any], NDArray[Any]]:
        scores = np.full((len(queries), k), -1.0)
        rows = np.full((len(queries), k), -1)
        found = index.supports_each(queries, k, labels=labels, filters=filters)
        for place, (own, own_scores) in enumerate(found):
            rows[place, : len(own)] = own
            scores[place, : len(own)] = own_scores
        return scores, rows

    return Lookup(nearest=nearest, picture=index.store.image)


def given(index: Index, supports: Sequence[Support]) -> Lookup:
    """Supports that were chosen by hand."""
    from medretrieval.imaging import embedded_part

    embedder = cast(Embedder, index.embedder)

    @cache
    def vectors() -> NDArray[np.float32]:
        crop = index.manifest.slices.crop
        return embedder.embed_batch([embedded_part(support.image, crop) for support in supports])

    def nearest(queries: NDArray[np.float32], k: int) -> tuple[NDArray[Any], NDArray[Any]]:
        similar = queries @ vectors().T
        rows = np.argsort(-similar, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(similar, rows, axis=1), rows

    return Lookup(nearest=nearest, picture=lambda row: supports[row].image)
