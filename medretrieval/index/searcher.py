"""Nearest neighbours by cosine, through FAISS.

Candidates come from FAISS in float32 or from codes; their scores are then taken again in float64
from the embeddings, pair by pair. So a score depends on the two vectors alone: not on how many
queries go together, not on the matrix kernel, not on the kind of index, and equal rows have equal
scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import InputError, UsageError
from medretrieval.index.kinds import KINDS
from medretrieval.index.structures import L2, faiss

# float32 inner products of unit vectors differ by less than this between kernels.
_ROUNDING = 1e-5
_MARGIN = 8  # more candidates than asked for, so that rounding does not decide who is among them
_SPARE = 24  # the same for rows that are stored at 8 bits a number
_BLOCK_BYTES = 64 << 20
_PAIRS = 1 << 22  # candidate pairs held at once
_PAIRS_AT_ONCE = 128  # scored at once: their vectors stay in the processor's cache
_COPIED_ROWS = 8192
_FEW_EXCLUDED = 1000
# A filter that leaves few rows is searched exactly, whatever the kind: it finds all, and is not
# slower. Among n rows the exact search of r takes as long as one that goes through n / r as much
# of a graph at r = 100 sqrt(n), about.
_EXACT_ROWS = 20_000
_EXACT_FACTOR = 100
_EFFORTS = (1, 8)  # how hard an approximate kind tries before its queries are searched exactly


@dataclass(frozen=True, eq=False, kw_only=True)
class Searcher:
    """Nearest neighbours among the rows of `embeddings`.

    Attributes:
        embeddings: (n, dim) float32 unit rows.
        index: FAISS index of these rows, None for exact search of the embeddings.
    """

    embeddings: NDArray[np.float32]
    kind: str
    parameters: Mapping[str, int]
    index: Any = None

    def neighbours(
        self, queries: NDArray[Any], k: int, rows: NDArray[Any] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k most similar rows of each query.

        Args:
            queries: (m, dim) real numbers, no zero row; normalised here.
            k: how many.
            rows: search only these: (n,) bool, or integer row ids in any order.

        Returns:
            (m, k) float32 cosine, best first, and (m, k) int64 row ids. Equal scores are ordered by
            row id. Where there are fewer than k rows: -inf and -1. The flat kinds find exactly the
            best; the others may miss some, but never give fewer than there are.

        Raises:
            InputError: queries of another dimension, not finite, or zero.
            UsageError: k below 1, or rows that do not exist.
        """
        if k < 1:
            raise UsageError(f"k is {k}; at least 1 result must be asked for")
        unit = self._unit(queries)
        allowed = None if rows is None else self._ids(rows)
        total = len(self.embeddings) if allowed is None else len(allowed)
        scores = np.full((len(unit), k), -np.inf, np.float32)
        ids = np.full((len(unit), k), -1, np.int64)
        count = min(k, total)
        if count == 0 or len(unit) == 0:
            return scores, ids
        todo = np.arange(len(unit))
        if self.index is not None and (allowed is None or total > self._searched_exactly):
            for effort in _EFFORTS:
                found = self._approximate(unit[todo], count, allowed, effort)
                scores[todo, :count], ids[todo, :count] = found
                todo = todo[ids[todo, count - 1] < 0]
                if not len(todo):
                    return scores, ids
        scores[todo, :count], ids[todo, :count] = self._exact(unit[todo], count, allowed)
        return scores, ids

    @property
    def _searched_exactly(self) -> int:
        return max(_EXACT_ROWS, _EXACT_FACTOR * isqrt(len(self.embeddings)))

    @cached_property
    def _slack(self) -> float:
        """By how much the cosine of a row can exceed what its Euclidean distance says.

        |q - r|^2 = 1 + |r|^2 - 2 qr, and stored rows are of length 1 up to a rounding.
        """
        longest = 0.0
        step = max(1, _BLOCK_BYTES // self.embeddings[:1].nbytes)
        for first in range(0, len(self.embeddings), step):
            block = self.embeddings[first : first + step]
            longest = max(longest, float(np.einsum("nd,nd->n", block, block).max()))
        return max(0.0, (longest - 1) / 2)

    def _unit(self, queries: NDArray[Any]) -> NDArray[np.float64]:
        values = np.asarray(queries, np.float64)
        dim = self.embeddings.shape[1]
        if values.ndim != 2 or values.shape[1] != dim:
            raise InputError(
                f"query embeddings have shape {values.shape}, expected (number, {dim}); embed the "
                "query with the embedder of the index"
            )
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        if not (np.isfinite(norms) & (norms > 0)).all():
            raise InputError("a query embedding is zero or not finite; no cosine is defined")
        return np.asarray(values / norms)

    def _ids(self, rows: NDArray[Any]) -> NDArray[np.int64]:
        rows = np.asarray(rows)
        n = len(self.embeddings)
        if rows.dtype == np.bool_:
            if rows.shape != (n,):
                raise UsageError(f"the row filter has shape {rows.shape}, the index {n} rows")
            return np.flatnonzero(rows).astype(np.int64)
        if rows.size and (rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= n):
            raise UsageError(f"the row filter names rows outside 0..{n - 1}")
        return np.unique(rows).astype(np.int64)

    def _approximate(
        self, unit: NDArray[np.float64], count: int, allowed: NDArray[np.int64] | None, effort: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        n = len(self.embeddings)
        mask = None
        if allowed is not None:
            mask = np.zeros(n, np.bool_)
            mask[allowed] = True
        want = min(n, count + count // 2 + _SPARE)
        find = KINDS[self.kind].find
        if find is None:
            raise UsageError(f"index kind {self.kind!r} has no structure to search")
        scores = np.empty((len(unit), count), np.float32)
        ids = np.empty((len(unit), count), np.int64)
        step = max(1, _PAIRS // max(want, effort * self.parameters.get("candidates", 1)))
        for first in range(0, len(unit), step):
            part = slice(first, first + step)
            queries = unit[part].astype(np.float32)
            found = find(self.index, queries, want, mask, self.parameters, effort)
            found = self._shortlist(queries, found, min(found.shape[1], count + _MARGIN))
            best, order = self._rescore(unit[part], found)
            if best.shape[1] < count:
                gap = ((0, 0), (0, count - best.shape[1]))
                best = np.pad(best, gap, constant_values=-np.inf)
                order = np.pad(order, gap, constant_values=-1)
            scores[part], ids[part] = best[:, :count], order[:, :count]
        return scores, ids

    def _shortlist(
        self, queries: NDArray[np.float32], ids: NDArray[np.int64], count: int
    ) -> NDArray[np.int64]:
        """Keep the `count` best of each query's candidates, by float32 scores of the embeddings."""
        if ids.shape[1] == count:
            return ids
        kept = np.full((len(ids), count), -1, np.int64)
        for number, query in enumerate(queries):
            # In the order of rows: memory-mapped, and ties at the border fall to the lower row.
            rows = np.sort(ids[number][ids[number] >= 0])
            best = np.argsort(-(self.embeddings[rows] @ query), kind="stable")[:count]
            kept[number, : len(best)] = rows[best]
        return kept

    def _exact(
        self, unit: NDArray[np.float64], count: int, allowed: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        total = len(self.embeddings) if allowed is None else len(allowed)
        scores = np.empty((len(unit), count), np.float32)
        ids = np.empty((len(unit), count), np.int64)
        todo = np.arange(len(unit))
        want = min(total, count + _MARGIN)
        while len(todo):
            unsure = []
            step = max(1, _PAIRS // want)
            for first in range(0, len(todo), step):
                part = todo[first : first + step]
                rough, found = self._candidates(unit[part].astype(np.float32), want, allowed)
                best, order = self._rescore(unit[part], found)
                scores[part], ids[part] = best[:, :count], order[:, :count]
                # Ties at the border, up to rounding: more candidates decide them by row id.
                unsure.append(part[rough[:, -1] >= best[:, count - 1] - _ROUNDING])
            todo = np.concatenate(unsure) if want < total else todo[:0]
            want = min(total, want * 4)
        return scores, ids

    def _candidates(
        self, queries: NDArray[np.float32], want: int, allowed: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return (m, want) float32 bounds on the scores and row ids of the best, best first."""
        n = len(self.embeddings)
        if allowed is None:
            return self._knn(queries, self.embeddings, want)
        if n - len(allowed) <= _FEW_EXCLUDED:
            scores, ids = self._knn(queries, self.embeddings, want + n - len(allowed))
            keep = np.zeros(n, np.bool_)
            keep[allowed] = True
            scores[~keep[ids]] = -np.inf
            return _best(scores, ids, want)
        # FAISS's own selectors leave the matrix kernel, which is several times slower than to
        # copy the rows block by block.
        scores = np.empty((len(queries), 0), np.float32)
        ids = np.empty((len(queries), 0), np.int64)
        copied = np.empty((min(_COPIED_ROWS, len(allowed)), self.embeddings.shape[1]), np.float32)
        for first in range(0, len(allowed), _COPIED_ROWS):
            block = allowed[first : first + _COPIED_ROWS]
            # Into memory used again, and in the mode in which NumPy makes no second copy.
            rows = np.take(self.embeddings, block, axis=0, out=copied[: len(block)], mode="clip")
            near, local = self._knn(queries, rows, min(want, len(block)))
            scores = np.concatenate([scores, near], axis=1)
            ids = np.concatenate([ids, block[local]], axis=1)
            scores, ids = _best(scores, ids, min(want, scores.shape[1]))
        return scores, ids

    def _knn(
        self, queries: NDArray[np.float32], rows: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return (m, k) bounds from above on the cosines, best first, and places in `rows`."""
        metric = KINDS[self.kind].metric
        scores, ids = faiss.knn(np.ascontiguousarray(queries), rows, k, metric=metric)
        return (1 - scores / 2 + self._slack if metric == L2 else scores), ids

    def _rescore(
        self, unit: NDArray[np.float64], ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Score candidates in float64 and sort each row by falling score, then by row id."""
        scores = np.empty(ids.shape, np.float64)
        columns = min(ids.shape[1], _PAIRS_AT_ONCE)
        queries = max(1, _PAIRS_AT_ONCE // max(1, columns))
        for top in range(0, len(ids), queries):
            for left in range(0, ids.shape[1], columns):
                part = slice(top, top + queries), slice(left, left + columns)
                rows = self.embeddings[ids[part]].astype(np.float64)
                # Unlike a matrix product, the same for a pair wherever it stands.
                scores[part] = np.einsum("mkd,md->mk", rows, unit[part[0]])
        scores[ids < 0] = -np.inf
        rounded = np.minimum(scores, 1).astype(np.float32)
        order = np.lexsort((ids, -rounded), axis=-1)
        return np.take_along_axis(rounded, order, 1), np.take_along_axis(ids, order, 1)


def _best(
    scores: NDArray[np.float32], ids: NDArray[np.int64], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
