"""The most similar slices, with ties that do not depend on how an index is stored.

An index answers in float32 and in its own order. Identical slices (empty ones, copies) then come in
the order of their rows, and which of them is best, so which volume gets the vote, would change when
an index is rebuilt in another order. Here the found slices are scored again in float64, rounded,
and ordered by a rank that belongs to the slice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# (m, dim) float32 queries and k -> (m, k) float32 scores, best first, and (m, k) int64 rows;
# -inf and -1 where there are fewer than k.
Neighbours = Callable[[NDArray[np.float32], int], tuple[NDArray[np.float32], NDArray[np.int64]]]

SCORE_DECIMALS = 6  # the resolution of float32 embeddings; closer similarities are ties
MARGIN = 1e-5  # float32 errors of a long inner product, and half a unit of the rounding
SPARE = 8  # how many more than k are fetched, to see whether a tie goes on
PAIRS = 128  # scored at once: their vectors stay in the processor's cache
DEPTH = 1024  # a tie of more slices than this is resolved among those that the index names first


def rounded_cosine(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine similarity of rows of norm 1, (n, dim) and (m, dim), as it is compared and shown.

    Returns:
        (n, m) float64 in -1..1, rounded to `SCORE_DECIMALS`.
    """
    return rounded(np.asarray(a, dtype=np.float64) @ np.asarray(b, dtype=np.float64).T)


def nearest(
    query: NDArray[np.float32],
    k: int,
    *,
    neighbours: Neighbours,
    embeddings: NDArray[Any],
    tie_rank: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The `k` most similar database slices of each query slice (TS-CBIR, eq. 1).

    Args:
        query: (n, dim) float32, rows of norm 1.
        k: how many, at least 1.
        neighbours: the index's own search.
        embeddings: (rows, dim), rows of norm 1; may be memory-mapped.
        tie_rank: (rows,) int64, all different: of equally similar slices the lower comes first.

    Returns:
        (n, k) float64 cosines rounded to `SCORE_DECIMALS`, best first, and (n, k) int64 rows; -inf
        and -1 where there are fewer than k.
    """
    k = min(k, len(embeddings))
    scores = np.full((len(query), k), -np.inf)
    rows = np.full((len(query), k), -1, dtype=np.int64)
    limit = min(max(DEPTH, k + SPARE), len(embeddings))
    depth = min(k + SPARE, limit)
    pending = np.arange(len(query))
    while len(pending) and k:
        raw, found = neighbours(query[pending], depth)
        exact = _score_again(query[pending], found, embeddings)
        ranks = np.where(found < 0, np.iinfo(np.int64).max, tie_rank[found])
        order = np.lexsort((ranks, -exact), axis=-1)[:, :k]
        scores[pending] = np.take_along_axis(exact, order, axis=1)
        rows[pending] = np.take_along_axis(found, order, axis=1)
        # Done where whatever was not fetched is clearly less similar than the k-th slice.
        done = (found[:, -1] < 0) | (raw[:, -1] < scores[pending, -1] - MARGIN)
        pending = pending[~done] if depth < limit else pending[:0]
        depth = min(4 * depth, limit)
    return scores, rows


def _score_again(
    query: NDArray[np.float32], found: NDArray[np.int64], embeddings: NDArray[Any]
) -> NDArray[np.float64]:
    """(m, k) rounded cosines of each query with its own rows, -inf where the row is -1."""
    products = np.empty(found.shape)
    columns = min(found.shape[1], PAIRS)
    queries = max(1, PAIRS // columns)
    for top in range(0, len(found), queries):
        for left in range(0, found.shape[1], columns):
            part = slice(top, top + queries), slice(left, left + columns)
            gathered = np.asarray(embeddings[found[part]], dtype=np.float64)  # (m, k, dim)
            # Unlike a matrix product, the same for a pair wherever it stands.
            products[part] = np.einsum("mkd,md->mk", gathered, query[part[0]].astype(np.float64))
    return np.where(found < 0, -np.inf, rounded(products))


def rounded(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines of any shape as they are compared and shown, see `rounded_cosine`."""
    # Adding 0 turns the -0.0 that rounding makes into 0.0.
    cosines = np.clip(products, -1.0, 1.0).round(SCORE_DECIMALS)
    return np.add(cosines, 0.0, dtype=np.float64)
