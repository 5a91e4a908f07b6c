"""The ways of searching, as a table: each ranks slices or volumes of a database for a query.

The volume modes "count" to "sampled" are those of MSD-CBIR, section II-D; "region", "localized" and
"rerank" of TS-CBIR, sections 2.4 and 2.5; "max", "sum", "mean-pool" and "median-pool" of 3D-MIR
(A. Ben Abacha et al., 3D-MIR: a benchmark and empirical study on 3D medical image retrieval in
radiology, arXiv:2311.13752, 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import UsageError
from medretrieval.retrieval.aggregation import Votes, gaussian_weights, hit_table
from medretrieval.retrieval.database import (
    Database,
    Located,
    Options,
    Pair,
    QuerySlices,
    Ranked,
    ranks,
    rows_of_volumes,
)
from medretrieval.retrieval.nearest import MARGIN
from medretrieval.retrieval.pooling import by_pooled_vectors
from medretrieval.retrieval.rerank import localization_ratio, localize, rank_score
from medretrieval.retrieval.selection import Selection, Slices
from medretrieval.similarity import maxsim


def by_slice(query: QuerySlices, database: Database, options: Options) -> list[Ranked]:
    """The k most similar slices of every query slice, ranked for each query slice alone."""
    scores, rows = database.nearest(query.embeddings, options.k)
    return [
        Ranked(place + 1, score, (Pair(index, row, score),))
        for index, row_scores, found in zip(
            query.slice_index.tolist(), scores.tolist(), rows.tolist(), strict=True
        )
        for place, (score, row) in enumerate(zip(row_scores, found, strict=True))
        if row >= 0
    ]


def by_count(query: QuerySlices, database: Database, options: Options) -> list[Ranked]:
    """The k volumes with the most hits (MSD-CBIR, II-D a; TS-CBIR, 2.4.1)."""
    return _by_hits(query, database, options)


def by_weighted_count(query: QuerySlices, database: Database, options: Options) -> list[Ranked]:
    """The k volumes with the largest Gaussian-weighted hits (MSD-CBIR, II-D b)."""
    first, count = query.part
    weight = gaussian_weights(query.slice_index - first, count, sigma=options.sigma)
    return _by_hits(query, database, options, weight=weight)


def by_maximum(query: QuerySlices, database: Database, options: Options) -> list[Ranked]:
    """The k volumes with the most similar hit (3D-MIR, maximum); ties by the volume id."""
    return _by_hits(query, database, options, by=lambda votes: votes.best)


def by_sum(query: QuerySlices, database: Database, options: Options) -> list[Ranked]:
    """The k volumes with the largest sum of the similarities of their hits (3D-MIR, sum).

    Ties by the volume id. Similarities below 0 count as they are: a hit can lower the sum.
    """
    return _by_hits(query, database, options, by=lambda votes: votes.total)


def by_localized_count(query: QuerySlices, database: Database, options: Options) -> list[Ranked]:
    """`by_count`, and which slices of each volume were hit (TS-CBIR, 2.4.3).

    A slice that was hit by several query slices is there as often, as in the paper's example.
    """
    return [
        found._replace(located=_located(found.pairs, options))
        for found in by_count(query, database, options)
    ]


def by_late_interaction(query: QuerySlices, database: Database, options: Options) -> list[Ranked]:
    """The k volumes with the largest RS among the candidates (TS-CBIR, 2.5).

    Candidates are the volumes with at least one hit, or the first of them in the order of
    `by_count`. All are scored in float32; those that can be among the first k again in float64 from
    the rounded similarities that are shown, so that equal volumes have equal scores. Equal volumes
    are in the order of their ids.
    """
    scores, _, hit = database.best_slices(query)
    votes = hit_table(hit, scores, np.ones(len(hit)))[: options.candidates]
    if not votes:
        return []
    volumes, rows, offsets = rows_of_volumes(database, [vote.volume for vote in votes])
    coarse = maxsim(query.embeddings, database.rows.embeddings, offsets, rows=rows)
    kept = min(options.k, len(coarse))
    threshold = np.sort(coarse)[-kept] - 2 * MARGIN * len(query.embeddings)
    exact = []
    for candidate in np.flatnonzero(coarse >= threshold).tolist():
        own = rows[offsets[candidate] : offsets[candidate + 1]]
        similar, pairs = database.matched(query, own)
        located = _localized(query, similar, own, options)
        exact.append((rank_score(similar), volumes[candidate], pairs, located))
    exact.sort(key=lambda item: (-item[0], item[1]))
    return ranks((score, pairs, located) for score, _, pairs, located in exact[: options.k])


def _localized(
    query: QuerySlices, similar: NDArray[np.float64], own: NDArray[np.int64], options: Options
) -> Located:
    """The slices of a volume where the query is found, each with its query slice (eq. 6 and 7)."""
    best = similar.argmax(axis=0)
    pairs = tuple(
        Pair(int(query.slice_index[best[column]]), int(own[column]), float(similar[row, column]))
        for column in localize(similar, top=options.top).tolist()
        for row in (best[column],)
    )
    return _located(pairs, options)


def _located(pairs: tuple[Pair, ...], options: Options) -> Located:
    shows = options.shown([pair.row for pair in pairs])
    return Located(pairs, None if shows is None else localization_ratio(shows))


def _by_hits(
    query: QuerySlices,
    database: Database,
    options: Options,
    *,
    weight: NDArray[np.float64] | None = None,
    by: Callable[[Votes], float] | None = None,
) -> list[Ranked]:
    """The first k volumes of the hit table."""
    scores, rows, volume = database.best_slices(query)
    votes = hit_table(volume, scores, np.ones(len(rows)) if weight is None else weight, by=by)
    matched = zip(query.slice_index.tolist(), rows.tolist(), scores.tolist(), strict=True)
    pairs = [Pair(*pair) for pair in matched]
    return ranks(
        (
            vote.hits if by is None else by(vote),
            database.best_first(pairs[i] for i in np.flatnonzero(volume == vote.volume)),
            None,
        )
        for vote in votes[: options.k]
    )


Need = Literal["", "sample", "part"]


@dataclass(frozen=True, kw_only=True)
class Mode:
    """A way of searching.

    Attributes:
        name: as on the command line.
        finds: "slices" or "volumes".
        score: what the score of a hit is.
        rank: (query, database, options) -> ranked results, fewer than k where there are no more.
        needs: "sample" where only a sample of the query's slices is searched with, "part" where the
            query must be a chosen part of a volume.
        localizes: whether it says where in a volume the query is.
    """

    name: str
    finds: str
    score: str
    rank: Callable[[QuerySlices, Database, Options], list[Ranked]]
    needs: Need = ""
    localizes: bool = False


_HITS = "number of query slices whose most similar slice is in the volume"
_ALL: Sequence[Mode] = (
    Mode(name="slice", finds="slices", score="cosine similarity", rank=by_slice),
    Mode(name="count", finds="volumes", score=_HITS, rank=by_count),
    Mode(
        name="weighted",
        finds="volumes",
        score="that number, query slices weighted by their distance from the middle",
        rank=by_weighted_count,
    ),
    Mode(
        name="sampled",
        finds="volumes",
        score="that number, of a sample of the query's slices",
        rank=by_count,
        needs="sample",
    ),
    Mode(
        name="max",
        finds="volumes",
        score="largest cosine similarity of a query slice whose most similar slice is in it",
        rank=by_maximum,
    ),
    Mode(
        name="sum",
        finds="volumes",
        score="sum of the cosine similarities of these query slices",
        rank=by_sum,
    ),
    Mode(
        name="mean-pool",
        finds="volumes",
        score="cosine similarity of the means of all slices",
        rank=partial(by_pooled_vectors, "mean"),
    ),
    Mode(
        name="median-pool",
        finds="volumes",
        score="cosine similarity of the component-wise medians of all slices",
        rank=partial(by_pooled_vectors, "median"),
    ),
    Mode(
        name="region",
        finds="volumes",
        score="number of slices of the chosen part whose most similar slice is in the volume",
        rank=by_count,
        needs="part",
    ),
    Mode(
        name="localized",
        finds="volumes",
        score="as region; and where in the volume they are",
        rank=by_localized_count,
        needs="part",
        localizes=True,
    ),
    Mode(
        name="rerank",
        finds="volumes",
        score="sum over the query slices of the largest cosine similarity to the volume",
        rank=by_late_interaction,
        localizes=True,
    ),
)
MODES: Mapping[str, Mode] = {mode.name: mode for mode in _ALL}

DEFAULT_MODE = "slice"


def is_part(select: Selection, slices: Slices) -> bool:
    """Whether a selection names a part of the query: a range, or a structure that is mapped."""
    mapped = select.labels is not None or slices.labels is not None
    return select.slices is not None or (select.structure is not None and mapped)


def check_part(mode: Mode, select: Selection, slices: Slices) -> None:
    """Refuse a whole query where a part is needed, and a structure that nothing is done with.

    Args:
        slices: those of the query.

    Raises:
        UsageError: the message says what to choose.
    """
    mapped = select.labels is not None or slices.labels is not None
    if mode.needs == "part" and not is_part(select, slices):
        raise UsageError(
            f"mode {mode.name} searches with a part of the query; choose a range of slices "
            "(--slices 20:45), or a structure and a label map of the query (--structure NAME "
            "--query-labels FILE)"
        )
    if select.structure is not None and not mapped and not mode.localizes:
        raise UsageError(
            f"where {select.structure} is in {slices.name} is not known; give a label map of the "
            "query (--query-labels FILE), or choose its slices (--slices 20:45) and leave the "
            "structure out"
        )
