"""Kinds of index beside one another: building, memory, size, what they find, and how fast.

    python -m benchmarks.kinds --rows 1322552 --work DIR

Each kind is built with its default settings and searched in a process of its own. Queries are
slices of volumes that no index has; times are medians for 300 slices and their ten nearest rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.vectors import make_queries, make_vectors
from medretrieval.index.faiss_files import build_faiss, write_faiss
from medretrieval.index.kinds import KINDS, resolve_parameters
from medretrieval.index.recall import measure_recall
from medretrieval.index.searcher import Searcher

TOP = 10
QUERY_VOLUMES = 20
TIMED = 3
SHARES = (0.5, 0.1, 0.01)  # of the rows, that filters leave
TIE = 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--work", type=Path, required=True, help="folder for vectors and indexes")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.rows, options.dim, options.work)))
        return
    vectors, volume = make_vectors(_path(options.work, options.rows), options.rows, dim=options.dim)
    del vectors
    print(
        f"{options.rows} rows x {options.dim} of {volume[-1] + 1} volumes, {os.cpu_count()} cores"
    )
    results = [_child(kind, options) for kind in dict.fromkeys(["flat", *options.kinds])]
    rows = [_flat(result) for result in results]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(row.get(name, "-")) for name in columns) + " |")
    for result in results:
        settings = ", ".join(f"{name} {value}" for name, value in result["parameters"].items())
        print(f"- {result['kind']}: {settings or 'no settings'}")
    target = options.work / f"kinds-{options.rows}.json"
    target.write_text(json.dumps(results, indent=2))
    print(f"\n{target}")


def _path(work: Path, rows: int) -> Path:
    return work / f"vectors-{rows}.npy"


def _child(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    print(f"{kind} ...", file=sys.stderr, flush=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.kinds", "--child", kind),
            *("--rows", str(options.rows), "--dim", str(options.dim), "--work", str(options.work)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _flat(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key not in ("parameters", "report")}


def measure(kind: str, rows: int, dim: int, work: Path) -> dict[str, Any]:
    """Build and search one kind; the exact results come from the run of "flat" before."""
    vectors, volume = make_vectors(_path(work, rows), rows, dim=dim)
    queries = make_queries(QUERY_VOLUMES, dim=dim)
    parameters = resolve_parameters(kind, None, rows=rows, dim=dim)
    result: dict[str, Any] = {"kind": kind}
    index, path = None, work / f"{kind}-{rows}.faiss"
    if KINDS[kind].build is not None:
        with Memory() as memory:
            started = time.perf_counter()
            index = build_faiss(vectors, kind, parameters)
            result["build s"] = round(time.perf_counter() - started, 1)
        write_faiss(index, path)
        result["own memory GB"] = round(memory.peak / 1e9, 2)
        # Counts pages of the mapped vectors too, which the system takes back when it needs them.
        result["max rss GB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
        result["size MB"] = round(path.stat().st_size / 1e6)
    searcher = Searcher(embeddings=vectors, kind=kind, parameters=parameters, index=index)
    taken = np.concatenate([query[::15] for query in queries])
    truth = _truth(searcher, taken, work / f"truth-{rows}.npz", exact=kind == "flat")
    result |= _found("", searcher, taken, queries, truth[0], None)
    rng = np.random.default_rng(0)
    for number, share in enumerate(SHARES, start=1):
        allowed = rng.random(rows) < share
        result |= _found(f" of {share:.0%}", searcher, taken, queries, truth[number], allowed)
    if index is not None:
        started = time.perf_counter()
        result["report"] = measure_recall(searcher, volume).to_json()
        result["report s"] = round(time.perf_counter() - started, 1)
    return {**result, "parameters": parameters}


def _truth(
    searcher: Searcher, queries: NDArray[np.float32], path: Path, *, exact: bool
) -> list[NDArray[np.float32]]:
    if exact:
        rng = np.random.default_rng(0)
        n = len(searcher.embeddings)
        filters = [None, *(rng.random(n) < share for share in SHARES)]
        np.savez(path, *(searcher.neighbours(queries, TOP, rows)[0] for rows in filters))
    with np.load(path) as stored:
        return [stored[name] for name in stored.files]


def _found(
    what: str,
    searcher: Searcher,
    taken: NDArray[np.float32],
    queries: list[NDArray[np.float32]],
    truth: NDArray[np.float32],
    rows: NDArray[np.bool_] | None,
) -> dict[str, Any]:
    scores, _ = searcher.neighbours(taken, TOP, rows)
    timed = queries if searcher.index is not None else queries[:1]
    seconds = [_seconds(partial(searcher.neighbours, query, TOP, rows)) for query in timed[:TIMED]]
    return {
        f"recall@1{what}": round(float((scores[:, 0] >= truth[:, 0] - TIE).mean()), 4),
        f"recall@10{what}": round(float((scores >= truth[:, -1:] - TIE).mean()), 4),
        f"300 slices{what} s": round(median(seconds), 3),
    }


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


class Memory:
    """Watches the memory that is this process's own: not the pages of mapped files.

    Attributes:
        peak: bytes.
    """

    def __enter__(self) -> Memory:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.peak = max(self.peak, 1024 * int(line.split()[1]))


if __name__ == "__main__":
    main()
