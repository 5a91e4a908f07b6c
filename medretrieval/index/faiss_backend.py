"""Nearest neighbours by cosine, through FAISS.

Candidates come from FAISS in float32; their scores are then taken again in float64, pair by pair.
So a score depends on the two vectors alone: not on how many queries go together, not on the
matrix kernel, and equal rows have equal scores.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import IndexFormatError, InputError, UsageError, unknown_name

# Its type hints describe the C++ layer below the functions that are called here.
faiss: Any = importlib.import_module("faiss")

# float32 inner products of unit vectors differ by less than this between kernels.
_ROUNDING = 1e-5
_MARGIN = 8  # more candidates than asked for, so that rounding does not decide who is among them
_BLOCK_BYTES = 64 << 20
_PAIRS = 1 << 22  # candidate pairs held at once
_FEW_EXCLUDED = 1000
_EXACT_ROWS = 20_000  # a filter that leaves so few rows is searched exactly, whatever the kind
_ADD_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A setting of an index kind: its default, smallest and largest value."""

    default: int
    low: int
    high: int


@dataclass(frozen=True, kw_only=True)
class IndexKind:
    """A way of searching.

    Attributes:
        parameters: settings by name.
        build: makes the FAISS index from (n, dim) float32 unit rows; None if the embeddings
            themselves are searched and nothing has to be stored.
        search: parameters and id selector -> faiss.SearchParameters for at least k results.
        faiss_type: class that a stored index of this kind has.
    """

    name: str
    summary: str
    parameters: Mapping[str, Parameter]
    build: Callable[[NDArray[np.float32], Mapping[str, int]], Any] | None = None
    search: Callable[[Mapping[str, int], Any, int], Any] | None = None
    faiss_type: str = ""


def _build_hnsw(embeddings: NDArray[np.float32], parameters: Mapping[str, int]) -> Any:
    index = faiss.IndexHNSWFlat(embeddings.shape[1], parameters["M"], faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = parameters["efConstruction"]
    index.hnsw.efSearch = parameters["efSearch"]
    # The graph depends on the order of insertion, which is fixed in one thread only.
    with _one_thread():
        for first in range(0, len(embeddings), _ADD_ROWS):
            index.add(np.ascontiguousarray(embeddings[first : first + _ADD_ROWS]))
    return index


def _search_hnsw(parameters: Mapping[str, int], selector: Any, k: int) -> Any:
    return faiss.SearchParametersHNSW(efSearch=max(parameters["efSearch"], k), sel=selector)


KINDS: Mapping[str, IndexKind] = {
    "flat": IndexKind(
        name="flat",
        summary="exact: every query is compared with every row",
        parameters={},
    ),
    "hnsw": IndexKind(
        name="hnsw",
        summary="approximate: a graph of near neighbours, for large indexes",
        parameters={
            "M": Parameter(default=32, low=2, high=256),
            "efConstruction": Parameter(default=200, low=1, high=10_000),
            "efSearch": Parameter(default=128, low=1, high=10_000),
        },
        build=_build_hnsw,
        search=_search_hnsw,
        faiss_type="IndexHNSWFlat",
    ),
}


def resolve_parameters(kind: str, given: Mapping[str, int] | None) -> dict[str, int]:
    """Return all parameters of `kind`, the given ones over the defaults.

    Raises:
        UsageError: unknown kind or parameter, or a value out of range.
    """
    if kind not in KINDS:
        raise unknown_name("index kind", kind, KINDS, "medretrieval build --help")
    known = KINDS[kind].parameters
    values = {name: parameter.default for name, parameter in known.items()}
    for name, value in (given or {}).items():
        if name not in known:
            raise UsageError(
                f"index kind {kind!r} has no parameter {name!r}; "
                f"it has {', '.join(known) or 'none'}"
            )
        low, high = known[name].low, known[name].high
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UsageError(f"{kind} {name} is {value!r}; expected a whole number {low}..{high}")
        values[name] = value
    return values


@contextmanager
def _one_thread() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def build_faiss(embeddings: NDArray[np.float32], kind: str, parameters: Mapping[str, int]) -> Any:
    """Build the FAISS index, the same one each time; None if the kind needs none."""
    make = KINDS[kind].build
    return None if make is None else make(embeddings, parameters)


def write_faiss(index: Any, path: Path) -> None:
    """Write a FAISS index to a file."""
    faiss.write_index(index, str(path))


def read_faiss(path: Path, *, rows: int, dim: int, kind: str) -> Any:
    """Read a FAISS index. Only for files whose hash was checked and whose source is trusted.

    Raises:
        IndexFormatError: not a FAISS index, or not of these rows, dimension and kind.
    """
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise IndexFormatError(
            f"{path} cannot be read by FAISS ({str(error).splitlines()[0][:200]}); delete it and "
            "its entry in the manifest, it is made again from the embeddings"
        ) from None
    found = (type(index).__name__, index.ntotal, index.d, index.metric_type)
    expected = (KINDS[kind].faiss_type, rows, dim, faiss.METRIC_INNER_PRODUCT)
    if found != expected:
        raise IndexFormatError(
            f"{path} holds {found[0]} of {found[1]} x {found[2]} (metric {found[3]}), expected "
            f"{expected[0]} of {rows} x {dim} (inner product); build the index again"
        )
    return index


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
            row id. Where there are fewer than k rows: -inf and -1. The kind "flat" finds exactly
            the best; "hnsw" may miss some, but never gives fewer than there are.

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
        exact = np.ones(len(unit), np.bool_)
        if self.index is not None and (allowed is None or total > _EXACT_ROWS):
            scores[:, :count], ids[:, :count] = self._approximate(unit, count, allowed)
            exact = ids[:, count - 1] < 0
        if exact.any():
            scores[exact, :count], ids[exact, :count] = self._exact(unit[exact], count, allowed)
        return scores, ids

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
        self, unit: NDArray[np.float64], count: int, allowed: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        selector = None
        if allowed is not None:
            mask = np.zeros(len(self.embeddings), np.bool_)
            mask[allowed] = True
            selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        search = KINDS[self.kind].search
        want = min(len(self.embeddings), count + _MARGIN)
        parameters = None if search is None else search(self.parameters, selector, want)
        _, found = self.index.search(unit.astype(np.float32), want, params=parameters)
        scores, ids = self._rescore(unit, found)
        return scores[:, :count], ids[:, :count]

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
        """Return (m, want) float32 scores and row ids of the best, best first."""
        n = len(self.embeddings)
        if allowed is None:
            return _knn(queries, self.embeddings, want)
        if n - len(allowed) <= _FEW_EXCLUDED:
            scores, ids = _knn(queries, self.embeddings, want + n - len(allowed))
            keep = np.zeros(n, np.bool_)
            keep[allowed] = True
            scores[~keep[ids]] = -np.inf
            return _best(scores, ids, want)
        # FAISS's own selectors leave the matrix kernel, which is several times slower than to
        # copy the rows block by block.
        rows = max(1, _BLOCK_BYTES // self.embeddings[:1].nbytes)
        scores = np.empty((len(queries), 0), np.float32)
        ids = np.empty((len(queries), 0), np.int64)
        for first in range(0, len(allowed), rows):
            block = allowed[first : first + rows]
            near, local = _knn(queries, self.embeddings[block], min(want, len(block)))
            scores = np.concatenate([scores, near], axis=1)
            ids = np.concatenate([ids, block[local]], axis=1)
            scores, ids = _best(scores, ids, min(want, scores.shape[1]))
        return scores, ids

    def _rescore(
        self, unit: NDArray[np.float64], ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Score candidates in float64 and sort each row by falling score, then by row id."""
        flat = ids.ravel()
        scores = np.full(flat.shape, -np.inf, np.float64)
        valid = np.flatnonzero(flat >= 0)
        query = np.arange(len(unit)).repeat(ids.shape[1])
        step = max(1, _BLOCK_BYTES // (16 * unit.shape[1]))
        for first in range(0, len(valid), step):
            pairs = valid[first : first + step]
            rows = self.embeddings[flat[pairs]].astype(np.float64)
            scores[pairs] = (rows * unit[query[pairs]]).sum(axis=1)
        rounded = np.minimum(scores.reshape(ids.shape), 1).astype(np.float32)
        order = np.lexsort((ids, -rounded), axis=-1)
        return np.take_along_axis(rounded, order, 1), np.take_along_axis(ids, order, 1)


def _knn(
    queries: NDArray[np.float32], rows: NDArray[np.float32], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    scores, ids = faiss.knn(
        np.ascontiguousarray(queries), rows, k, metric=faiss.METRIC_INNER_PRODUCT
    )
    return scores, ids


def _best(
    scores: NDArray[np.float32], ids: NDArray[np.int64], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
