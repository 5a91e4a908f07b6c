"""What a mode of searching works with: the slices of a query, those of an index, and its results.

Arrays in, ranks out: how an index stores the arrays is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medretrieval.retrieval.nearest import Neighbours, nearest, rounded_cosine

if TYPE_CHECKING:
    from medretrieval.retrieval.pooling import PooledVolumes


@dataclass(frozen=True, eq=False, kw_only=True)
class QuerySlices:
    """The searched slices of a query.

    Attributes:
        embeddings: (n, dim) float32, rows of norm 1.
        slice_index: (n,) index of each slice in its volume.
        part: first slice, and number of slices, of the part of that volume that is searched with,
            also of those that a sample leaves out: (0, number of slices) for the whole volume.
    """

    embeddings: NDArray[np.float32]
    slice_index: NDArray[np.int64]
    part: tuple[int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """All slices of an index. What is derived from them is computed once and kept.

    Attributes:
        embeddings: (rows, dim), rows of norm 1; may be memory-mapped.
        volume: (rows,) number of each slice's volume. Numbers follow the order of the volume ids:
            of equal volumes the one with the lower number comes first.
        slice_index: (rows,) index of each slice in its volume.
        pooled: vectors of whole volumes, by the name of the pooling.
    """

    embeddings: Any
    volume: NDArray[np.int64]
    slice_index: NDArray[np.int64]
    pooled: dict[str, PooledVolumes] = field(default_factory=dict)

    @cached_property
    def by_volume(self) -> NDArray[np.int64]:
        """(rows,) all rows, ordered by volume, then by slice."""
        return np.lexsort((self.slice_index, self.volume)).astype(np.int64)

    @cached_property
    def tie_rank(self) -> NDArray[np.int64]:
        """(rows,) place of each row in `by_volume`: which of equally similar slices is first."""
        rank = np.empty(len(self.volume), dtype=np.int64)
        rank[self.by_volume] = np.arange(len(rank))
        return rank

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(volumes + 1,) volume i has the rows `by_volume[offsets[i]:offsets[i + 1]]`."""
        return np.append(0, np.cumsum(np.bincount(self.volume))).astype(np.int64)

    def of(self, volume: int) -> NDArray[np.int64]:
        """The rows of a volume, in the order of its slices."""
        return self.by_volume[self.offsets[volume] : self.offsets[volume + 1]]


@dataclass(frozen=True, eq=False, kw_only=True)
class Database:
    """The slices to search in.

    Attributes:
        rows: all slices.
        allowed: (rows,) which of them may be found, at least one; None for all.
        neighbours: the search of the index over the allowed slices.
    """

    rows: Rows
    allowed: NDArray[np.bool_] | None
    neighbours: Neighbours

    def nearest(
        self, query: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The `k` most similar allowed slices, as `nearest.nearest`."""
        return nearest(
            query,
            k,
            neighbours=self.neighbours,
            embeddings=self.rows.embeddings,
            tie_rank=self.rows.tie_rank,
        )

    def best_slices(
        self, query: QuerySlices
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """The most similar slice of each query slice (TS-CBIR, eq. 1).

        Returns:
            (n,) scores, rows and volumes; the latter two -1 where an approximate index found
            nothing.
        """
        scores, rows = self.nearest(query.embeddings, 1)
        best = rows[:, 0]
        return scores[:, 0], best, np.where(best < 0, -1, self.rows.volume[best])

    def of(self, volume: int) -> NDArray[np.int64]:
        """The allowed rows of a volume, in the order of its slices."""
        own = self.rows.of(volume)
        return own if self.allowed is None else own[self.allowed[own]]

    def counts(self) -> NDArray[np.int64]:
        """(volumes,) how many allowed slices each volume has."""
        if self.allowed is None:
            return np.diff(self.rows.offsets)
        found = np.bincount(self.rows.volume[self.allowed], minlength=len(self.rows.offsets) - 1)
        return found.astype(np.int64)

    def matched(
        self, query: QuerySlices, own: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], tuple[Pair, ...]]:
        """How a query meets one volume.

        Args:
            own: (m,) rows of the volume, in the order of its slices.

        Returns:
            (n, m) rounded cosines (TS-CBIR, eq. 4), and for each query slice its pair with the most
            similar of these slices (the lowest of equals), best first.
        """
        similar = rounded_cosine(query.embeddings, self.rows.embeddings[own])
        columns = similar.argmax(axis=1)
        found = zip(
            query.slice_index.tolist(),
            own[columns].tolist(),
            similar[np.arange(len(columns)), columns].tolist(),
            strict=True,
        )
        return similar, self.best_first(Pair(*pair) for pair in found)

    def best_first(self, pairs: Iterable[Pair]) -> tuple[Pair, ...]:
        """Highest score first; ties by the query slice, then by the slice of the database."""
        rank = self.rows.tie_rank
        return tuple(sorted(pairs, key=lambda p: (-p.score, p.query_slice, int(rank[p.row]))))


class Pair(NamedTuple):
    """A query slice (its index in the query's volume), a database row, their cosine."""

    query_slice: int
    row: int
    score: float


class Located(NamedTuple):
    """Where in a volume the query was found: pairs, and LR, None where no structure is named."""

    pairs: tuple[Pair, ...]
    ratio: float | None


class Ranked(NamedTuple):
    """A result: its rank from 1, its score, and the pairs that explain it, best first."""

    rank: int
    score: float
    pairs: tuple[Pair, ...]
    located: Located | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Options:
    """What a mode may be told.

    Attributes:
        k: how many results, at least 1.
        sigma: width of the Gaussian weights, see `aggregation.gaussian_weights`.
        candidates: how many volumes are re-ranked, None for all that are hit.
        top: how many slices localize the query in a re-ranked volume.
        shows: (rows,) which slices show the structure that localization is about, None where no
            structure is named or the index does not know it.
    """

    k: int
    sigma: float
    candidates: int | None = None
    top: int
    shows: NDArray[np.bool_] | None = None

    def shown(self, rows: Sequence[int]) -> NDArray[np.bool_] | None:
        """Which of some rows show the structure."""
        return None if self.shows is None else np.asarray(self.shows[np.asarray(rows, np.int64)])


def ranks(found: Iterable[tuple[float, tuple[Pair, ...], Located | None]]) -> list[Ranked]:
    """Number what is in the order of its rank."""
    return [Ranked(place, *item) for place, item in enumerate(found, start=1)]


def rows_of_volumes(
    database: Database, volumes: Sequence[int]
) -> tuple[list[int], NDArray[np.int64], NDArray[np.int64]]:
    """The allowed rows of some volumes, one volume after the other, for `similarity.maxsim`.

    Returns:
        The volumes in the order in which an index stores them, which is the fastest to read; their
        rows; (volumes + 1,) where each volume begins.
    """
    data = database.rows
    first = data.by_volume[data.offsets[np.asarray(volumes, np.int64)]]
    stored = [volumes[place] for place in np.argsort(first, kind="stable").tolist()]
    parts = [database.of(volume) for volume in stored]
    offsets = np.cumsum([0, *map(len, parts)]).astype(np.int64)
    return stored, np.concatenate(parts), offsets
