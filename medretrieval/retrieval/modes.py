"""The ways of searching, as a table: each ranks slices or volumes of a database for a query.

Arrays in, ranks out: how an index stores the arrays is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medretrieval.retrieval.aggregation import gaussian_weights, hit_table
from medretrieval.retrieval.nearest import MARGIN, Neighbours, nearest, rounded_cosine
from medretrieval.retrieval.rerank import rank_score
from medretrieval.similarity import maxsim


@dataclass(frozen=True, eq=False, kw_only=True)
class QuerySlices:
    """The searched slices of a query.

    Attributes:
        embeddings: (n, dim) float32, rows of norm 1.
        slice_index: (n,) index of each slice in its volume.
        slice_count: number of slices of that volume, searched or not.
    """

    embeddings: NDArray[np.float32]
    slice_index: NDArray[np.int64]
    slice_count: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """All slices of an index.

    Attributes:
        embeddings: (rows, dim), rows of norm 1; may be memory-mapped.
        volume: (rows,) number of each slice's volume. Numbers follow the order of the volume ids:
            of equal volumes the one with the lower number comes first.
        slice_index: (rows,) index of each slice in its volume.
    """

    embeddings: NDArray[Any]
    volume: NDArray[np.int64]
    slice_index: NDArray[np.int64]

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


@dataclass(frozen=True, eq=False, kw_only=True)
class Database:
    """The slices to search in.

    Attributes:
        rows: all slices.
        allowed: (rows,) which of them may be found.
        neighbours: the search of the index over the allowed slices.
    """

    rows: Rows
    allowed: NDArray[np.bool_]
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


class Pair(NamedTuple):
    """A query slice (its index in the query's volume), a database row, their cosine."""

    query_slice: int
    row: int
    score: float


class Ranked(NamedTuple):
    """A result: its rank from 1, its score, and the pairs that explain it, best first."""

    rank: int
    score: float
    pairs: tuple[Pair, ...]


def by_slice(query: QuerySlices, database: Database, k: int, sigma: float) -> list[Ranked]:
    """The k most similar slices of every query slice, ranked for each query slice alone."""
    scores, rows = database.nearest(query.embeddings, k)
    return [
        Ranked(place + 1, score, (Pair(index, row, score),))
        for index, row_scores, found in zip(
            query.slice_index.tolist(), scores.tolist(), rows.tolist(), strict=True
        )
        for place, (score, row) in enumerate(zip(row_scores, found, strict=True))
        if row >= 0
    ]


def by_count(query: QuerySlices, database: Database, k: int, sigma: float) -> list[Ranked]:
    """The k volumes with the most hits (MSD-CBIR, II-D a; TS-CBIR, 2.4.1)."""
    return _by_votes(query, database, k, np.ones(len(query.embeddings)))


def by_weighted_count(query: QuerySlices, database: Database, k: int, sigma: float) -> list[Ranked]:
    """The k volumes with the largest Gaussian-weighted hits (MSD-CBIR, II-D b)."""
    weight = gaussian_weights(query.slice_index, query.slice_count, sigma=sigma)
    return _by_votes(query, database, k, weight)


def by_late_interaction(
    query: QuerySlices, database: Database, k: int, sigma: float
) -> list[Ranked]:
    """The k volumes with the largest RS among those with at least one hit (TS-CBIR, 2.5).

    All candidates are scored in float32; those that can be among the first k again in float64 from
    the rounded similarities that are shown, so that equal volumes have equal scores.
    """
    _, _, hit = _best_slices(query, database)
    if not (hit >= 0).any():
        return []
    data = database.rows
    rows = data.by_volume
    rows = rows[np.isin(data.volume[rows], hit) & database.allowed[rows]]
    volume = data.volume[rows]
    starts = np.flatnonzero(np.diff(volume, prepend=-1))
    offsets = np.append(starts, len(rows)).astype(np.int64)
    coarse = maxsim(query.embeddings, data.embeddings, offsets, rows=rows)
    kept = min(k, len(coarse))
    threshold = np.sort(coarse)[-kept] - 2 * MARGIN * len(query.embeddings)
    exact = []
    for candidate in np.flatnonzero(coarse >= threshold).tolist():
        own = rows[offsets[candidate] : offsets[candidate + 1]]
        similar = rounded_cosine(query.embeddings, data.embeddings[own])
        # argmax takes the first of equals, which is the lowest slice.
        columns = similar.argmax(axis=1)
        matched = zip(
            query.slice_index.tolist(),
            own[columns].tolist(),
            similar.max(axis=1).tolist(),
            strict=True,
        )
        pairs = _best_first(database, (Pair(*pair) for pair in matched))
        exact.append((-rank_score(similar), int(volume[starts[candidate]]), pairs))
    exact.sort(key=lambda item: item[:2])
    return [Ranked(place + 1, -score, pairs) for place, (score, _, pairs) in enumerate(exact[:k])]


def _by_votes(
    query: QuerySlices, database: Database, k: int, weight: NDArray[np.float64]
) -> list[Ranked]:
    scores, rows, volume = _best_slices(query, database)
    votes = hit_table(volume, scores, weight)[:k]
    matched = zip(query.slice_index.tolist(), rows.tolist(), scores.tolist(), strict=True)
    pairs = [Pair(*pair) for pair in matched]
    return [
        Ranked(
            place + 1,
            vote.hits,
            _best_first(database, (pairs[i] for i in np.flatnonzero(volume == vote.volume))),
        )
        for place, vote in enumerate(votes)
    ]


def _best_slices(
    query: QuerySlices, database: Database
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """The most similar slice of each query slice (TS-CBIR, eq. 1).

    Returns:
        (n,) scores, rows and volumes; the latter two -1 where an approximate index found nothing.
    """
    scores, rows = database.nearest(query.embeddings, 1)
    best = rows[:, 0]
    return scores[:, 0], best, np.where(best < 0, -1, database.rows.volume[best])


def _best_first(database: Database, pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    """Highest score first; ties by the query slice, then by the slice of the database."""
    tie_rank = database.rows.tie_rank
    return tuple(sorted(pairs, key=lambda p: (-p.score, p.query_slice, int(tie_rank[p.row]))))


@dataclass(frozen=True, kw_only=True)
class Mode:
    """A way of searching.

    Attributes:
        name: as on the command line.
        finds: "slices" or "volumes".
        score: what the score of a hit is.
        rank: (query, database, k, sigma) -> ranked results, fewer than k where there are no more;
            the database has at least one allowed slice. Only "weighted" uses sigma.
    """

    name: str
    finds: str
    score: str
    rank: Callable[[QuerySlices, Database, int, float], list[Ranked]]


MODES: Mapping[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode(
            name="slice",
            finds="slices",
            score="cosine similarity",
            rank=by_slice,
        ),
        Mode(
            name="count",
            finds="volumes",
            score="number of query slices whose most similar slice is in the volume",
            rank=by_count,
        ),
        Mode(
            name="weighted",
            finds="volumes",
            score="that number, query slices weighted by their distance from the middle",
            rank=by_weighted_count,
        ),
        Mode(
            name="rerank",
            finds="volumes",
            score="sum over the query slices of the largest cosine similarity to the volume",
            rank=by_late_interaction,
        ),
    )
}

DEFAULT_MODE = "slice"
