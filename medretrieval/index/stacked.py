"""The embeddings of several indexes as if they were one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class StackedRows:
    """The rows of several arrays, one array after the other; nothing is copied before it is read.

    `[row]`, `[first:last]` and `[rows]` with integers in any order, or a (n,) bool mask, give
    arrays in memory; a range within one array is a view of it.

    Args:
        parts: at least one array of shape (any, dim), all of one dtype.
    """

    def __init__(self, parts: Sequence[NDArray[np.float32]]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *map(len, parts)])
        self.dtype = parts[0].dtype
        self.shape = (int(self._starts[-1]), parts[0].shape[1])
        self.ndim = 2

    @property
    def nbytes(self) -> int:
        """Size of all rows in bytes."""
        return sum(part.nbytes for part in self._parts)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> NDArray[np.float32]:
        if isinstance(rows, slice):
            first, last, step = rows.indices(len(self))
            if step == 1:
                return self._range(first, max(first, last))
            rows = np.arange(first, last, step)
        index = np.asarray(rows)
        if index.dtype == np.bool_:
            if index.shape != (len(self),):
                raise IndexError(f"a mask of shape {index.shape} for {len(self)} rows")
            index = np.flatnonzero(index)
        if index.size == 0:
            index = index.astype(np.int64)
        if index.dtype.kind not in "iu":
            raise IndexError(f"rows are chosen by whole numbers, not by {index.dtype}")
        index = np.where(index < 0, index + len(self), index)
        if index.size and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"a row outside 0..{len(self) - 1}")
        return self._take(index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("the rows of several arrays cannot be one array without a copy")
        return np.concatenate(self._parts).astype(dtype or self.dtype, copy=False)

    def _range(self, first: int, last: int) -> NDArray[np.float32]:
        pieces = [
            part[max(first - start, 0) : last - start]
            for part, start in zip(self._parts, self._starts.tolist(), strict=False)
            if first < start + len(part) and last > start
        ]
        if not pieces:
            return self._parts[0][:0]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _take(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        result = np.empty((*index.shape, self.shape[1]), self.dtype)
        owner = np.searchsorted(self._starts, index, side="right") - 1
        for number in np.unique(owner).tolist():
            here = owner == number
            result[here] = self._parts[number][index[here] - self._starts[number]]
        return result
