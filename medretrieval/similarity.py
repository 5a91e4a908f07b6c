"""Similarity of slices and of volumes: pure functions of arrays.

A volume is a set of slice embeddings, and volumes differ in their number of slices. A collection of
volumes is therefore ragged: all slices in one matrix, and `offsets` that say where each volume
begins, or padded to one length with a mask. Padding is excluded with -inf, never with 0: a zero
would raise the maximum of a volume whose similarities are all negative.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medretrieval.errors import InputError

BLOCK = 8192  # database slices held at once: 25 MB of 768-d float32, 10 MB of products for 300


def normalise(vectors: ArrayLike) -> NDArray[np.float32]:
    """Scale every row to L2 norm 1.

    Args:
        vectors: (n, dim) real numbers.

    Returns:
        (n, dim) float32; the norms are taken in float64, so that no large row overflows.

    Raises:
        InputError: not two-dimensional, or a row is zero or not finite. Such a row has no
            direction, and its cosine with anything is undefined.

    >>> normalise([[3.0, 4.0]]).round(3).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    array = np.asarray(vectors, dtype=np.float64)
    if array.ndim != 2:
        raise InputError(
            f"embeddings of shape {array.shape}; expected (n, dim), one row per slice: "
            "wrap a single embedding in a list"
        )
    finite = np.isfinite(array).all(axis=1)
    largest = np.abs(array).max(axis=1, initial=0.0)
    bad = np.flatnonzero(~finite | (largest == 0))
    if bad.size:
        raise InputError(
            f"{bad.size} of {len(array)} embeddings are zero or not finite (the first is row "
            f"{bad[0]}); their similarity is undefined: leave them out or embed them again"
        )
    # Divided by the largest component first, for rows whose squares leave the range of float64.
    array = array / largest[:, None]
    unit: NDArray[np.float32] = (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(
        np.float32
    )
    return unit


def cosine(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Cosine of every row of `a` with every row of `b` (TS-CBIR, eq. 4).

    Args:
        a: (n, dim) rows of norm 1 (see `normalise`).
        b: (m, dim) rows of norm 1.

    Returns:
        (n, m) float64 in -1..1, computed in float64.
    """
    product = np.asarray(a, dtype=np.float64) @ np.asarray(b, dtype=np.float64).T
    return np.clip(product, -1.0, 1.0)


def maxima(
    query: NDArray[np.float32],
    documents: NDArray[Any],
    offsets: NDArray[np.int64],
    *,
    rows: NDArray[np.int64] | None = None,
    block: int = BLOCK,
) -> NDArray[np.float32]:
    """Largest similarity of each query slice to the slices of each volume, ragged.

    One matrix product per block of database slices and `np.maximum.reduceat` over the runs of each
    volume inside the block, so that memory stays bounded however long the volumes are.

    Args:
        query: (n, dim) float32, rows of norm 1.
        documents: (m, dim) rows of norm 1; may be memory-mapped.
        offsets: (v + 1,) int64, non-decreasing from 0: volume i has the slices
            `offsets[i]:offsets[i + 1]`.
        rows: (offsets[-1],) int64 ids of the rows of `documents` that the slices are, default the
            rows in their order.
        block: slices per matrix product.

    Returns:
        (n, v) float32; -inf for a volume without slices.
    """
    total = int(offsets[-1])
    best = np.full((len(offsets) - 1, len(query)), -np.inf, dtype=np.float32)
    filled = np.flatnonzero(np.diff(offsets) > 0)
    # reduceat gives an empty run the value at its start, so that empty volumes must not reach it.
    starts = offsets[filled]
    for begin in range(0, total, block):
        end = min(begin + block, total)
        similar = _rows(documents, rows, begin, end) @ query.T  # (slices of the block, n)
        first = int(np.searchsorted(starts, begin, side="right")) - 1
        last = int(np.searchsorted(starts, end, side="left"))
        cuts = np.maximum(starts[first:last], begin) - begin
        here = filled[first:last]
        best[here] = np.maximum(best[here], np.maximum.reduceat(similar, cuts, axis=0))
    return best.T


def _rows(
    documents: NDArray[Any], rows: NDArray[np.int64] | None, begin: int, end: int
) -> NDArray[np.float32]:
    if rows is None:
        return np.asarray(documents[begin:end], dtype=np.float32)
    wanted = rows[begin:end]
    # A run of neighbours is a view of the memory map; anything else is a copy row by row.
    if np.array_equal(wanted, np.arange(wanted[0], wanted[0] + len(wanted))):
        return np.asarray(documents[wanted[0] : wanted[-1] + 1], dtype=np.float32)
    return np.asarray(documents[wanted], dtype=np.float32)


def maxsim(
    query: NDArray[np.float32],
    documents: NDArray[Any],
    offsets: NDArray[np.int64],
    *,
    rows: NDArray[np.int64] | None = None,
    block: int = BLOCK,
) -> NDArray[np.float64]:
    """Sum over the query slices of the largest similarity to each volume (TS-CBIR, eq. 5), ragged.

    Args:
        query, documents, offsets, rows, block: as for `maxima`.

    Returns:
        (v,) float64: in -n..n for n query slices, -inf for a volume without slices. A query without
        slices gives 0 for every volume, the empty sum.
    """
    best = maxima(query, documents, offsets, rows=rows, block=block)
    scores: NDArray[np.float64] = best.sum(axis=0, dtype=np.float64)
    return scores


def maxsim_padded(
    query: NDArray[np.float32], documents: NDArray[np.float32], mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """`maxsim` of volumes padded to one length.

    Args:
        query: (n, dim) float32, rows of norm 1.
        documents: (v, s, dim) float32, rows of norm 1 where `mask`, anything finite elsewhere.
        mask: (v, s) bool, True where there is a slice.

    Returns:
        (v,) float64, as `maxsim`.
    """
    similar = query @ documents.transpose(0, 2, 1)  # (v, n, s)
    similar = np.where(mask[:, None, :], similar, -np.inf)
    best = similar.max(axis=2, initial=-np.inf)  # (v, n)
    scores: NDArray[np.float64] = best.sum(axis=1, dtype=np.float64)
    return scores
