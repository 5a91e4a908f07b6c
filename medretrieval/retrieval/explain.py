"""Why a query found a volume: the similarity of all their slices, and heat maps of one pair.

The page and the command line call these functions; `heat` defines the maps, `figures` draws.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import UsageError
from medretrieval.imaging.orientation import AS_STORED
from medretrieval.retrieval import feedback as relevance
from medretrieval.retrieval import figures
from medretrieval.retrieval.engine import NO_FEEDBACK, Index
from medretrieval.retrieval.feedback import Feedback
from medretrieval.retrieval.filters import NO_FILTERS, Filters
from medretrieval.retrieval.heat import HeatMaps, heat_maps
from medretrieval.retrieval.nearest import rounded_cosine
from medretrieval.retrieval.orienting import check_embedded
from medretrieval.retrieval.query import Query, QueryEmbeddings, check_comparable
from medretrieval.retrieval.stored import number_of_volume
from medretrieval.retrieval.whole import refuse_localizing
from medretrieval.types import Match, Progress, SlicePolicy, Volume, no_progress


@dataclass(frozen=True, eq=False, kw_only=True)
class SimilarityMatrix:
    """The similarity of every slice of a query with every slice of a volume.

    Attributes:
        query, volume_id: names.
        values: (n, m) float64 cosines, rounded to 6 decimals.
        query_slices: (n,) int64, index of each query slice in its volume, in ascending order.
        slices: (m,) int64, index of each slice in the volume, in ascending order.
        query_mm, slices_mm: (n,) and (m,) float64 positions, NaN where unknown.
        rows: (m,) int64, rows of the index.
    """

    query: str
    volume_id: str
    values: NDArray[np.float64]
    query_slices: NDArray[np.int64]
    slices: NDArray[np.int64]
    query_mm: NDArray[np.float64]
    slices_mm: NDArray[np.float64]
    rows: NDArray[np.int64]

    @property
    def best(self) -> NDArray[np.int64]:
        """(n,) column of the slice most similar to each query slice; of equals the first."""
        best: NDArray[np.int64] = self.values.argmax(axis=1).astype(np.int64)
        return best

    def match(self, place: int) -> Match:
        """The query slice in row `place` and the slice most similar to it."""
        column = int(self.best[place])
        return Match(
            query_slice=int(self.query_slices[place]),
            slice_index=int(self.slices[column]),
            score=float(self.values[place, column]),
        )

    @property
    def matches(self) -> tuple[Match, ...]:
        """`match` of every query slice, in the order of the query."""
        return tuple(map(self.match, range(len(self.values))))

    def csv(self) -> str:
        """The matrix as a table: the first column and the first line are slice numbers."""
        text = io.StringIO()
        write = csv.writer(text, lineterminator="\n").writerow
        write(["query slice", *self.slices.tolist()])
        for number, row in zip(self.query_slices.tolist(), self.values.tolist(), strict=True):
            write([number, *(f"{value:.6f}" for value in row)])
        return text.getvalue()

    def to_json(self) -> dict[str, Any]:
        return {
            "query": self.query,
            "volume_id": self.volume_id,
            "query_slices": len(self.query_slices),
            "slices": len(self.slices),
            "matches": [match.to_json() for match in self.matches],
        }


def embedded_query(
    index: Index,
    query: Query,
    *,
    indices: Sequence[int] | None = None,
    orientation: str = AS_STORED,
    filters: Filters = NO_FILTERS,
    progress: Progress = no_progress,
) -> QueryEmbeddings:
    """A query as for `Index.search`, embedded; of an image the pictures of its slices are kept.

    Args:
        query, orientation, filters: as for `Index.search`.
        indices: which slices, default all.

    Raises:
        InputError, UsageError, EmbedderMismatchError: as `Index.search`.
    """
    found = index.read(query)
    if isinstance(found, Volume):
        return index.query_embeddings(
            found,
            indices=indices,
            orientation=orientation,
            filters=filters,
            keep_images=True,
            progress=progress,
        )
    check_comparable(index.store.manifest.embedder, found)
    check_embedded(orientation, found)
    return found if indices is None else found.only(indices)


def picture_of(index: Index, embedded: QueryEmbeddings, slice_index: int) -> NDArray[np.uint8]:
    """The picture of one slice of an embedded query, (H, W) or (H, W, 3), turned as it was.

    Raises:
        UsageError: that slice was not embedded, or its picture was not kept.
    """
    (picture,) = embedded.only(slice_index).images or (None,)
    if picture is not None:
        return picture
    if embedded.patient is not None:  # a case of the index
        return index.store.image(index.store.row(embedded.name, slice_index))
    raise UsageError(
        f"{embedded.name} comes as embeddings without pictures, so that there is no heat map; "
        "give the image itself, or keep its pictures (query_embeddings(keep_images=True))"
    )


def similarity_matrix(
    index: Index,
    query: Query,
    volume_id: str,
    *,
    filters: Filters = NO_FILTERS,
    feedback: Feedback = NO_FEEDBACK,
    progress: Progress = no_progress,
) -> SimilarityMatrix:
    """The similarity of every slice of a query with every slice of a volume of the index.

    Args:
        query: as for `Index.search`.
        filters: only with the slices of the volume that pass them.
        feedback: of the query as it was moved by these examples, as in `Index.search`; slices that
            were not liked are left out.

    Raises:
        UsageError: unknown volume, an index of whole volumes, which has no slices to compare, or
            filters and examples leave no slice of the volume.
        InputError, EmbedderMismatchError: as `Index.search`.
    """
    refuse_localizing(index.store.manifest.embedder)
    rows = rows_of(index, volume_id)
    allowed = index.allowed(filters)
    slices, allowed = relevance.apply(
        feedback, index.store, embedded_query(index, query, progress=progress), allowed
    )
    rows = rows[allowed[rows]]
    if not len(rows):
        raise UsageError(
            f"no slice of {volume_id} may be found: the filters, or the examples that were not "
            "liked, leave none; change them, or choose another volume"
        )
    order = np.argsort(slices.slice_index, kind="stable")
    return SimilarityMatrix(
        query=slices.name,
        volume_id=volume_id,
        values=rounded_cosine(slices.embeddings[order], index.store.embeddings[rows]),
        query_slices=slices.slice_index[order],
        slices=np.asarray(index.store.slice_index[rows], dtype=np.int64),
        query_mm=np.array(slices.position_mm, dtype=np.float64)[order],
        slices_mm=np.asarray(index.store.position_mm[rows], dtype=np.float64),
        rows=rows,
    )


def rows_of(index: Index, volume_id: str) -> NDArray[np.int64]:
    """(m,) int64 rows of a volume, in the order of its slices.

    Raises:
        UsageError: unknown volume.
    """
    number_of_volume(index.store, volume_id)  # refuses an unknown one
    rows = np.flatnonzero(index.store.volume == list(index.store.volume_ids).index(volume_id))
    return rows[np.argsort(index.store.slice_index[rows], kind="stable")].astype(np.int64)


def matrix_picture(
    index: Index,
    embedded: QueryEmbeddings,
    volume_id: str,
    *,
    filters: Filters = NO_FILTERS,
    feedback: Feedback = NO_FEEDBACK,
) -> NDArray[np.uint8]:
    """The similarity matrix of an embedded query and a volume, drawn.

    Args:
        filters, feedback: as for `similarity_matrix`.

    Returns:
        (H, W, 3) uint8 with axes, a colour bar, and the best match of each query slice marked.

    Raises:
        UsageError: as `similarity_matrix`.
    """
    matrix = similarity_matrix(index, embedded, volume_id, filters=filters, feedback=feedback)
    return draw_matrix(matrix)


def draw_matrix(matrix: SimilarityMatrix) -> NDArray[np.uint8]:
    """A similarity matrix as a picture, (H, W, 3) uint8."""
    return figures.matrix_figure(
        matrix.values,
        matrix.query_slices.tolist(),
        matrix.slices.tolist(),
        best=matrix.best,
        down="query slice",
        across=f"slice of {matrix.volume_id}",
    )


def explain_pair(
    index: Index,
    picture: NDArray[np.uint8],
    row: int,
    *,
    kind: Literal["auto", "contribution", "match"] = "auto",
) -> HeatMaps:
    """Where a slice of a query and a slice of the index are alike.

    Args:
        picture: the whole slice, (H, W) or (H, W, 3) uint8, as the index's policy makes it.
        row: of the index.
        kind: see `heat.heat_maps`.

    Raises:
        UnavailableError: the embedder of the index has no features of parts, or cannot be loaded.
        UsageError: no such row.
    """
    policy = index.store.manifest.slices
    return heat_maps(
        index.embedder,
        picture,
        index.store.image(row),
        kind=kind,
        part=lambda whole: embedded_part_of(whole, policy),
    )


def limits(*heats: NDArray[np.float32]) -> tuple[float, float]:
    """The least and the largest number of maps that are to be drawn in the same colours."""
    return figures.limits(heats)


def overlay(
    picture: NDArray[np.uint8],
    heat: NDArray[np.float32],
    limits: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """A heat map over its picture.

    Args:
        picture: (H, W) or (H, W, 3) uint8.
        heat: (H, W) float32; where it is NaN the picture stays as it is, darkened.
        limits: the numbers that get the first and the last colour, default those of the map.

    Returns:
        (H, W, 3) uint8.
    """
    return figures.overlay(picture, heat, limits)


def pair_picture(
    pictures: Sequence[NDArray[np.uint8]], maps: HeatMaps, titles: Sequence[str]
) -> NDArray[np.uint8]:
    """Both pictures of a pair, plain and under their maps, with one colour bar.

    Args:
        pictures: two, (H, W) or (H, W, 3) uint8.
        titles: of both.

    Returns:
        (H, W, 3) uint8.
    """
    caption = {
        "contribution": f"contribution of each part to the cosine {maps.cosine:.3f} (their mean)",
        "match": f"cosine of each part with the most similar part; whole: {maps.cosine:.3f}",
    }[maps.kind]
    return figures.pair_figure(pictures, (maps.a.pixels, maps.b.pixels), titles, caption)


def embedded_part_of(
    picture: NDArray[np.uint8], policy: SlicePolicy
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The part of a stored slice that is embedded, and its (top, left) in the slice."""
    if policy.crop == "none":
        return picture, (0, 0)
    # Imported when used: reading images loads packages that a search by embeddings does not need.
    from medretrieval.imaging.body import body_box

    rows, columns = body_box(picture)
    return picture[rows, columns], (rows.start, columns.start)
