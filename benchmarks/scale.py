"""How fast a search is at the sizes of the papers, each time beside a baseline of the same run.

    python -m benchmarks.scale --work DIR                       all parts, at full size
    python -m benchmarks.scale --work DIR --parts late overhead some of them
    python -m benchmarks.scale --work DIR --rows 50000          smaller, to try it

overhead  a search of 300 slices against FAISS alone, on TS-CBIR's 290,757 slices in 1,204 volumes
late      late interaction of 240 slices with all of them, against the bare matrix product
growth    the time of a search from 10,000 to 1,322,552 slices (CBIR-FM's data), and a plot of it
full      an index folder of 1,322,552 slices: build, memory, opening, searches

A measurement and its baseline take turns in this process; ratios are medians of the ratios of
neighbours, so that they hold on a machine that others use, too. Vectors are synthetic
(`benchmarks.vectors`) and stay in --work, with what was built of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import Row, in_turns, peak_mb, ratio, report, seconds
from benchmarks.scale_full import full
from benchmarks.scale_growth import growth
from benchmarks.synthetic_index import MemoryStore, divided, picture, prepared
from benchmarks.vectors import make_queries
from medretrieval.retrieval.duplicates import thumbnail
from medretrieval.retrieval.engine import Index
from medretrieval.retrieval.filters import Filters
from medretrieval.retrieval.query import QueryEmbeddings, from_arrays
from medretrieval.similarity import BLOCK, maxima, maxsim

ALL_ROWS = 1_322_552  # all data of CBIR-FM together
TS_ROWS, TS_VOLUMES = 290_757, 1_204
MODES = ("slice", "count", "weighted", "max", "sum")
OTHERS = Filters(exclude_patient="patient-000001")


def main() -> None:
    parts = {"overhead": overhead, "late": late, "growth": growth, "full": full}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for vectors and indexes")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--rows", type=int, default=ALL_ROWS, help="slices of the largest index")
    parser.add_argument("--kinds", nargs="+", default=["flat", "hnsw", "ivf-pq"], help="of growth")
    parser.add_argument("--kind", default="auto", help="of the index of part full")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--plot", type=Path, default=Path("docs/search-time.png"))
    parser.add_argument("--json", type=Path, help="write all results to this file")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
    machine += f"numpy {np.__version__}, faiss {faiss.__version__}"
    print(machine)
    results: Row = {"machine": machine, "rows": options.rows}
    for name in options.parts:
        print(f"\n## {name}\n", flush=True)
        results[name] = parts[name](options)
    text = json.dumps(results, indent=2)
    print(f"\n```json\n{text}\n```")
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


def ts_data(options: argparse.Namespace) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The first 290,757 vectors in 1,204 volumes, or as many as there are in as long volumes."""
    rows = min(TS_ROWS, options.rows)
    vectors = prepared(options.work, options.rows)[:rows]
    vectors.max()  # read from the disk before anything is timed
    return vectors, divided(rows, max(1, round(TS_VOLUMES * rows / TS_ROWS)))


def overhead(options: argparse.Namespace) -> Sequence[Row]:
    """What a search costs beside the time inside FAISS, the embedder left out."""
    vectors, volume = ts_data(options)
    (query,) = make_queries(1, slices=300)
    table = []
    for kind in ("flat", "hnsw"):
        cached = options.work / f"{kind}-{len(vectors)}.faiss"
        store = MemoryStore(vectors, volume, kind=kind, cached=cached)
        index = Index(store)
        asked = [
            (mode, f, query) for f in (Filters(), Filters(region="chest"), OTHERS) for mode in MODES
        ]
        asked += [(mode, Filters(), shown(query)) for mode in ("slice", "count")]
        table += [_overhead(options.repeats, index, kind, *what) for what in asked]
    return report(table)


def filter_name(filters: Filters) -> str:
    if filters.exclude_patient is not None:
        return "one patient left out"
    return "-" if filters.region is None else "one region of five"


def shown(query: NDArray[np.float32]) -> QueryEmbeddings:
    """A query that knows its pictures, so that hits are compared with it as pictures."""
    small = thumbnail(picture())[None].repeat(len(query), axis=0)
    return replace(from_arrays(query), thumbnails=small)


def _overhead(
    repeats: int,
    index: Index,
    kind: str,
    mode: str,
    filters: Filters,
    query: NDArray[np.float32] | QueryEmbeddings,
) -> Row:
    # Modes that let volumes vote ask for the best slice of each query slice only.
    k = 5 if mode == "slice" else 1
    vectors = index.store.embeddings
    searcher = index.store.searcher
    bare_query = query.embeddings if isinstance(query, QueryEmbeddings) else query
    inside: list[float] = []

    def search() -> None:
        with faiss_time(searcher) as spent:
            index.search(query, mode=mode, k=5, filters=filters)
        inside.append(sum(spent))

    def bare() -> None:
        if searcher.index is None:
            faiss.knn(bare_query, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
        else:
            searcher.index.search(bare_query, k)

    own, base = in_turns(repeats, search, bare)
    within = inside[1:]
    return {
        "kind": kind,
        "mode": mode,
        "filter": filter_name(filters),
        "query": "slices" if isinstance(query, QueryEmbeddings) else "embeddings",
        "slices": len(vectors),
        "search s": median(own),
        "of it inside faiss s": median(within),
        "everything else s": median(a - b for a, b in zip(own, within, strict=True)),
        "overhead": median((a - b) / b for a, b in zip(own, within, strict=True)),
        "bare faiss s": median(base),
        "search / bare faiss": ratio(own, base),
    }


@contextmanager
def faiss_time(searcher: Any) -> Iterator[list[float]]:
    """Collects the seconds of every call of FAISS's own searches."""
    spent: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent.append(time.perf_counter() - start)

        return call

    knn = faiss.knn
    faiss.knn = timed(knn)
    if searcher.index is not None:
        searcher.index.search = timed(type(searcher.index).search.__get__(searcher.index))
    try:
        yield spent
    finally:
        faiss.knn = knn
        if searcher.index is not None:
            del searcher.index.search


def late(options: argparse.Namespace) -> Sequence[Row]:
    """Late interaction, its baseline the bare matrix product in the same blocks."""
    vectors, volume = ts_data(options)
    (query,) = make_queries(1, slices=240)
    volumes = int(volume[-1]) + 1
    starts = np.searchsorted(volume, np.arange(volumes + 1)).astype(np.int64)
    _check_late(query, vectors, starts)
    every_other = np.arange(0, volumes, 2)
    shuffled = np.random.default_rng(0).permutation(volumes)
    cases = {
        "all volumes": None,
        "all but one volume": np.delete(np.arange(volumes), 7),
        "every other volume": every_other,
        "all volumes, in any order": shuffled,
    }
    table = []
    for name, chosen in cases.items():
        rows, offsets = None, starts
        if chosen is not None:
            rows = np.concatenate([np.arange(starts[v], starts[v + 1]) for v in chosen])
            offsets = np.append(0, np.cumsum(np.diff(starts)[chosen])).astype(np.int64)
        table.append(_late(options.repeats, name, query, vectors, offsets, rows))
    # Four slices each of sixty volumes: as a query of one volume it would have few candidates.
    query = np.concatenate([part[::75] for part in make_queries(60, slices=300)])
    index = Index(MemoryStore(vectors, volume))
    hits = index.search(query, mode="rerank", k=volumes).hits
    candidates = sum(int(starts[v + 1] - starts[v]) for v in map(_number, hits))
    took, base = in_turns(
        options.repeats,
        partial(index.search, query, mode="rerank", k=5),
        partial(_search_and_product, query, vectors, candidates),
    )
    table.append(
        {
            "what": f"mode rerank, {len(hits)} candidates; beside FAISS and the product",
            "slices": candidates,
            "seconds": median(took),
            "bare product s": median(base),
            "ratio": ratio(took, base),
            "product in one go s": "-",
            "peak MB": peak_mb(partial(index.search, query, mode="rerank", k=5)),
        }
    )
    return report(table)


def _late(
    repeats: int,
    name: str,
    query: NDArray[np.float32],
    vectors: NDArray[np.float32],
    offsets: NDArray[np.int64],
    rows: NDArray[np.int64] | None,
) -> Row:
    count = int(offsets[-1])
    ours = partial(maxsim, query, vectors, offsets, rows=rows)
    own, base = in_turns(repeats, ours, partial(blocked_product, query, vectors[:count]))
    return {
        "what": name,
        "slices": count,
        "seconds": median(own),
        "bare product s": median(base),
        "ratio": ratio(own, base),
        "product in one go s": median(
            seconds(lambda: query @ vectors[:count].T) for _ in range(repeats)
        ),
        "peak MB": peak_mb(ours),
    }


def blocked_product(query: NDArray[np.float32], vectors: NDArray[np.float32]) -> None:
    """The matrix product alone, into memory that is used again."""
    out = np.empty(len(query) * BLOCK, dtype=np.float32)
    for begin in range(0, len(vectors), BLOCK):
        block = vectors[begin : begin + BLOCK]
        shape = len(query), len(block)
        np.matmul(query, block.T, out=out[: shape[0] * shape[1]].reshape(shape))


def _search_and_product(
    query: NDArray[np.float32], vectors: NDArray[np.float32], rows: int
) -> None:
    faiss.knn(query, vectors, 1, metric=faiss.METRIC_INNER_PRODUCT)
    blocked_product(query, vectors[:rows])


def _check_late(
    query: NDArray[np.float32], vectors: NDArray[np.float32], starts: NDArray[np.int64]
) -> None:
    """Compare with a plain loop over the volumes, which is also timed."""
    begin = time.perf_counter()
    looped = [
        (query @ vectors[a:b].T).max(axis=1)
        for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    ]
    took = time.perf_counter() - begin
    best = np.abs(maxima(query, vectors, starts) - np.stack(looped, axis=1)).max()
    sums = np.array([best_of.sum(dtype=np.float64) for best_of in looped])
    scores = np.abs(maxsim(query, vectors, starts) / sums - 1).max()
    print(
        f"Against a plain loop over {len(sums)} volumes ({took:.2f} s): largest difference of a "
        f"maximum {best:.1e}, relative difference of a sum {scores:.1e}\n"
    )
    if not (best < 1e-5 and scores < 1e-5):
        raise SystemExit("late interaction is not what a plain loop gives")


def _number(hit: Any) -> int:
    return int(hit.volume_id.rpartition("-")[2])


if __name__ == "__main__":
    main()
