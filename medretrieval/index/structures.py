"""The search structures of FAISS: how each is built, and how candidates are found in it.

A find function gets queries (m, dim) float32 unit rows, how many candidates are wanted, the allowed
rows as (n,) bool or None, the parameters of the index, and an effort: by how much more than these
say it shall look. It returns (m, wanted or more) int64 row ids of allowed rows, -1 where it found
none; the order does not matter, since the caller scores them again.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Its type hints describe the C++ layer below the functions that are called here.
faiss: Any = importlib.import_module("faiss")

IP: int = faiss.METRIC_INNER_PRODUCT
L2: int = faiss.METRIC_L2

Find = Callable[
    [Any, NDArray[np.float32], int, NDArray[np.bool_] | None, Mapping[str, int], int],
    NDArray[np.int64],
]

_SEED = 1234
_TRAINING_ROWS = 200_000
_ROWS_OF_A_CENTRE = 128  # as many as FAISS needs for good centres; more only take longer
_CODED_AT_ONCE = 65_536
_ONE_THREAD_ROWS = 200_000
# The rows that a filter leaves out may all lie next to the query (its own volume or patient).
_NEAR_EXCLUDED = 400


@contextmanager
def one_thread() -> Iterator[None]:
    """Let FAISS compute in one thread, in which what it builds does not depend on timing."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _sample(embeddings: NDArray[np.float32], most: int, least: int = 1) -> NDArray[np.float32]:
    """At most `most` random rows, always the same; repeated if there are fewer than `least`."""
    n = len(embeddings)
    if n > most:
        chosen = np.random.default_rng(_SEED).choice(n, most, replace=False)
        return np.ascontiguousarray(embeddings[np.sort(chosen)])
    rows = np.arange(n) if n >= least else np.resize(np.arange(n), least)
    return np.ascontiguousarray(embeddings[rows])


def _blocks(embeddings: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for first in range(0, len(embeddings), _CODED_AT_ONCE):
        yield np.ascontiguousarray(embeddings[first : first + _CODED_AT_ONCE])


def _selector(rows: NDArray[np.bool_] | None) -> Any:
    return None if rows is None else faiss.IDSelectorBitmap(np.packbits(rows, bitorder="little"))


def build_hnsw(embeddings: NDArray[np.float32], parameters: Mapping[str, int]) -> Any:
    """A graph (Malkov and Yashunin, 2018) of rows stored at 8 bits a number.

    All rows are added in one call: FAISS then places them in a random order. Volume after volume,
    the neighbours of a row would all be slices of its own volume, and the graph would fall apart.

    The graph depends on the order in which rows are placed, which is fixed in one thread only. So
    up to 200,000 rows one thread builds it, the same graph each time (about a minute); above, all
    threads do, and two builds differ in a few links. Scores are the same either way.
    """
    index = faiss.IndexHNSWSQ(
        embeddings.shape[1], faiss.ScalarQuantizer.QT_8bit, parameters["M"], IP
    )
    index.hnsw.efConstruction = parameters["efConstruction"]
    index.hnsw.efSearch = parameters["efSearch"]
    with one_thread() if len(embeddings) <= _ONE_THREAD_ROWS else nullcontext():
        index.train(_sample(embeddings, _TRAINING_ROWS // 4))
        index.add(np.asarray(embeddings))
    return index


def find_hnsw(
    index: Any,
    queries: NDArray[np.float32],
    want: int,
    rows: NDArray[np.bool_] | None,
    parameters: Mapping[str, int],
    effort: int,
) -> NDArray[np.int64]:
    """Walk the graph; it is walked through rows that are not allowed, too."""
    look = parameters["efSearch"] * effort
    if rows is not None:
        allowed = max(1, int(np.count_nonzero(rows)))
        look = look * len(rows) // allowed + min(_NEAR_EXCLUDED, len(rows) - allowed)
    settings = faiss.SearchParametersHNSW(efSearch=max(look, want), sel=_selector(rows))
    return np.asarray(index.search(queries, want, params=settings)[1])


def build_lsh(embeddings: NDArray[np.float32], parameters: Mapping[str, int]) -> Any:
    """The signs of random projections (Charikar, 2002), about the median of each projection.

    All embeddings of a network share a direction; about zero, many bits would be the same for all.
    """
    # Products are rounded differently in several threads, and signs near zero turn over.
    with one_thread():
        index = faiss.IndexLSH(embeddings.shape[1], parameters["nbits"], True, True)
        index.train(_sample(embeddings, _TRAINING_ROWS // 10))
        for block in _blocks(embeddings):
            index.add(block)
    return index


def find_lsh(
    index: Any,
    queries: NDArray[np.float32],
    want: int,
    rows: NDArray[np.bool_] | None,
    parameters: Mapping[str, int],
    effort: int,
) -> NDArray[np.int64]:
    """Compare the codes of all allowed rows; IndexLSH itself knows no selectors."""
    size = index.code_size
    codes = faiss.rev_swig_ptr(index.codes.data(), index.ntotal * size).reshape(-1, size)
    ids = None if rows is None else np.flatnonzero(rows)
    if ids is not None:
        codes = codes[ids]
    count = min(len(codes), max(want, parameters["candidates"] * effort))
    _, found = faiss.knn_hamming(index.sa_encode(queries), codes, count)
    return np.asarray(found if ids is None else ids[found])


def build_ivf_pq(embeddings: NDArray[np.float32], parameters: Mapping[str, int]) -> Any:
    """Lists of rows around centres, in each the coded difference to it (Jegou et al., 2011)."""
    dim = embeddings.shape[1]
    lists, codes = parameters["nlist"], 1 << parameters["bits"]
    coarse = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFPQ(coarse, dim, lists, parameters["m"], parameters["bits"], IP)
    index.nprobe = parameters["nprobe"]
    index.cp.niter = 10
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    most = min(max(_TRAINING_ROWS, 40 * lists), _ROWS_OF_A_CENTRE * max(lists, codes))
    index.train(_sample(embeddings, most, least=max(lists, codes)))
    for block in _blocks(embeddings):
        index.add(block)
    return index


def find_ivf_pq(
    index: Any,
    queries: NDArray[np.float32],
    want: int,
    rows: NDArray[np.bool_] | None,
    parameters: Mapping[str, int],
    effort: int,
) -> NDArray[np.int64]:
    """Look through the lists nearest to the query; through more where few rows are allowed."""
    lists = parameters["nprobe"] * effort
    if rows is not None:
        lists = lists * len(rows) // max(1, int(np.count_nonzero(rows)))
    count = max(want, parameters["candidates"] * effort)
    settings = faiss.SearchParametersIVF(
        nprobe=min(max(1, lists), parameters["nlist"]), sel=_selector(rows)
    )
    return np.asarray(index.search(queries, min(count, index.ntotal), params=settings)[1])
