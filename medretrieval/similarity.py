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
GAPS = 0.15  # so many rows that are not wanted, as a share of those that are, are multiplied along


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
            rows in their order. Fastest where they ascend with few gaps: then nothing is copied.
        block: slices per matrix product.

    Returns:
        (n, v) float32; -inf for a volume without slices.

    Raises:
        IndexError: `rows` that do not exist.
    """
    total = int(offsets[-1])
    best = np.full((len(query), len(offsets) - 1), -np.inf, dtype=np.float32)
    filled = np.flatnonzero(np.diff(offsets) > 0)
    # reduceat gives an empty run the value at its start, so that empty volumes must not reach it.
    starts = offsets[filled]
    blocks = _Blocks(query, documents, rows, min(block, total))
    for begin in range(0, total, block):
        end = min(begin + block, total)
        similar, columns = blocks.product(begin, end)
        first = int(np.searchsorted(starts, begin, side="right")) - 1
        last = int(np.searchsorted(starts, end, side="left"))
        cuts = np.maximum(starts[first:last], begin) - begin
        if columns is not None:
            cuts = columns[cuts]
        here = filled[first:last]
        # Along the rows of the product, which lie in a line: many times faster than across them.
        best[:, here] = np.maximum(best[:, here], np.maximum.reduceat(similar, cuts, axis=1))
    return best


class _Blocks:
    """Products of a query with one block of slices after the other, in memory used again."""

    def __init__(
        self,
        query: NDArray[np.float32],
        documents: NDArray[Any],
        rows: NDArray[np.int64] | None,
        size: int,
    ) -> None:
        if rows is not None and len(rows) and (rows.min() < 0 or rows.max() >= len(documents)):
            raise IndexError(f"rows outside 0..{len(documents) - 1}")
        self._query = np.ascontiguousarray(query, dtype=np.float32)
        self._documents = documents
        self._rows = rows
        self._size = size
        self._similar = np.empty(len(query) * int(size * (1 + GAPS) + 1), dtype=np.float32)
        self._gathered: NDArray[Any] | None = None

    def product(self, begin: int, end: int) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Similarities of the query with the slices `begin:end`.

        Returns:
            (n, columns) float32, overwritten by the next call; and in which column each slice is
            (the others hold -inf), None where they are the slices in their order.
        """
        if self._rows is None:
            return self._multiply(self._documents[begin:end]), None
        wanted = self._rows[begin:end]
        first, span = int(wanted[0]), int(wanted[-1] - wanted[0]) + 1
        if len(wanted) <= span <= len(wanted) * (1 + GAPS) and (np.diff(wanted) > 0).all():
            # To multiply the rows in the gaps, too, takes less than to copy all others together.
            similar = self._multiply(self._documents[first : first + span])
            if span == len(wanted):
                return similar, None
            columns = wanted - first
            between = np.ones(span, dtype=np.bool_)
            between[columns] = False
            similar[:, between] = -np.inf
            return similar, columns
        return self._multiply(self._gather(wanted)), None

    def _multiply(self, block: NDArray[Any]) -> NDArray[np.float32]:
        shape = len(self._query), len(block)
        similar = self._similar[: shape[0] * shape[1]].reshape(shape)
        return np.matmul(self._query, np.asarray(block, dtype=np.float32).T, out=similar)

    def _gather(self, wanted: NDArray[np.int64]) -> NDArray[Any]:
        documents = self._documents
        if not isinstance(documents, np.ndarray):  # several indexes opened together
            return np.asarray(documents[wanted])
        if self._gathered is None:
            self._gathered = np.empty((self._size, documents.shape[1]), dtype=documents.dtype)
        gathered = self._gathered[: len(wanted)]
        # The mode is for speed: the default makes another copy. No row is outside, see above.
        return np.take(documents, wanted, axis=0, out=gathered, mode="clip")


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
