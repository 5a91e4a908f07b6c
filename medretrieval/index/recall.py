"""How much of an exact search an approximate index finds, measured when it is built."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medretrieval.index.search_entry import RecallReport
from medretrieval.index.searcher import Searcher
from medretrieval.types import Progress, no_progress

_SEED = 20_260_101
_QUERIES = 200
_VOLUMES = 10
_SLICES = 32  # of a query volume, at equal distances
_TOP = 10
_FIRST = 5
_TIE = 1e-6  # float32 embeddings do not tell closer similarities apart
_HOW = (
    "queries: unit means of two neighbouring slices of a volume (of a volume of one slice: of it "
    "and a random other row); volumes ranked by how often they have the row most similar to a "
    "slice, for the slices of volumes of the index, the volume itself left out"
)


def measure_recall(
    searcher: Searcher, volume: NDArray[np.int32], *, progress: Progress = no_progress
) -> RecallReport:
    """Compare an approximate index with the exact search of its embeddings.

    The queries are drawn with a fixed seed, so the same index gets the same report. It costs the
    exact search of at most 520 slices: about 15 s for a million rows of 768 numbers on two cores.

    Args:
        searcher: of an approximate kind.
        volume: (n,) code of each row's volume; the rows of a volume follow one another.
        progress: called with finished searches, their number, and what is going on.
    """
    exact = Searcher(embeddings=searcher.embeddings, kind="flat", parameters={})
    rng = np.random.default_rng(_SEED)
    queries = unseen_queries(searcher.embeddings, volume, _QUERIES, rng)
    volumes = np.unique(volume)
    several = len(volumes) > 1
    chosen = rng.permutation(volumes)[:_VOLUMES] if several else volumes[:0]
    steps = 1 + len(chosen)
    progress(0, steps, "comparing the index with exact search")
    k = min(_TOP, len(volume))
    found, truth = (s.neighbours(queries, k)[0] for s in (searcher, exact))
    firsts, overlaps = [], []
    for step, number in enumerate(chosen, start=1):
        progress(step, steps, "comparing the index with exact search")
        own = volume == number
        rows = np.flatnonzero(own)
        taken = rows[np.unique(np.linspace(0, len(rows) - 1, _SLICES).round().astype(np.int64))]
        slices = np.asarray(searcher.embeddings[taken])
        ranked, expected = (_votes(s, slices, ~own, volume) for s in (searcher, exact))
        first, overlap = agreement(ranked, expected, _FIRST)
        firsts.append(first)
        overlaps.append(overlap)
    progress(steps, steps, "comparing the index with exact search")
    return RecallReport(
        recall_at_1=round(recall(found[:, :1], truth[:, :1]), 4),
        recall_at_10=round(recall(found, truth), 4),
        first_volume=round(float(np.mean(firsts)), 4) if several else None,
        first_5_volumes=round(float(np.mean(overlaps)), 4) if several else None,
        queries=len(queries),
        volumes=len(chosen),
        how=_HOW,
    )


def unseen_queries(
    embeddings: NDArray[np.float32],
    volume: NDArray[np.int32],
    count: int,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Return `count` unit vectors near the rows of an index that are none of them.

    Each is the mean of a random row and the next of its volume (of the last row: the one before);
    in a volume of one slice, of the row and another random one.

    Returns:
        (count, dim) float32; fewer where two opposite rows have no mean.
    """
    n = len(volume)
    rows = rng.integers(0, n, count)
    after, before = np.minimum(rows + 1, n - 1), np.maximum(rows - 1, 0)
    other = np.where((volume[after] == volume[rows]) & (after > rows), after, before)
    alone = (volume[other] != volume[rows]) | (other == rows)
    other[alone] = rng.integers(0, n, int(alone.sum()))
    means = np.asarray(embeddings[rows], np.float64) + embeddings[other]
    norms = np.linalg.norm(means, axis=1)
    usable = norms > 1e-6
    return np.asarray(means[usable] / norms[usable, None], np.float32)


def recall(found: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    """Return the share of exact results that were found, any of several equal ones counting.

    Args:
        found, truth: (m, k) scores of each query, best first.

    >>> recall(np.float32([[0.9, 0.7]]), np.float32([[0.9, 0.8]]))
    0.5
    """
    if not found.size:
        return 1.0
    return float((found >= truth[:, -1:] - _TIE).mean())


def agreement(
    found: NDArray[np.int64], truth: NDArray[np.int64], first: int
) -> tuple[float, float]:
    """Compare two rankings of volumes by votes.

    Args:
        found, truth: (volumes,) votes.
        first: how many of the first are compared.

    Returns:
        1.0 if the first volume of `found` is (one of) the first of `truth`, else 0.0; and the share
        of the first volumes of `truth` with votes that are among the first of `found`, where any of
        several with equal votes counts.

    >>> agreement(np.array([5, 0, 3]), np.array([4, 4, 0]), 2)
    (1.0, 0.5)
    """
    best = np.argsort(-found, kind="stable")[:first]
    best = best[found[best] > 0]
    places = min(first, int((truth > 0).sum()))
    if not places or not len(best):
        return float(places == len(best)), float(places == len(best))
    border = np.sort(truth)[::-1][places - 1]
    kept = int((truth[best[:places]] >= border).sum())
    return float(truth[best[0]] == truth.max()), kept / places


def _votes(
    searcher: Searcher,
    slices: NDArray[np.float32],
    rows: NDArray[np.bool_],
    volume: NDArray[np.int32],
) -> NDArray[np.int64]:
    """Return how many of the slices have their most similar row in each volume."""
    _, ids = searcher.neighbours(slices, 1, rows)
    found = ids[ids >= 0]
    return np.bincount(volume[found], minlength=int(volume.max()) + 1).astype(np.int64)
