"""The whole way at full size: an index folder of prepared vectors and tiny pictures.

    python -m benchmarks.scale_full build --out DIR --vectors FILE.npy --rows N --kind KIND
    python -m benchmarks.scale_full open --out DIR
    python -m benchmarks.scale_full search --out DIR

Every step is a process of its own, so that its peak memory and its time are its own;
`benchmarks.scale --parts full` runs them one after the other.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import Row, report, seconds
from benchmarks.synthetic_index import identity, prepared
from benchmarks.vectors import make_queries, make_vectors
from medretrieval.index import Case, build, open_store
from medretrieval.retrieval.engine import open_index
from medretrieval.types import Grid, SlicePolicy, Volume

SIDE = 4  # pixels of a picture, of which the first four hold the number of its row
OPENINGS = 5


def full(options: argparse.Namespace) -> Row:
    """Build, open and search in child processes."""
    prepared(options.work, options.rows)
    out = options.work / f"index-{options.kind}-{options.rows}"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(out.with_name(f".{out.name}.partial"), ignore_errors=True)
    folder = ["--out", str(out)]
    vectors = options.work / f"vectors-{options.rows}.npy"
    built = _child(
        *("build", *folder, "--vectors", str(vectors)),
        *("--rows", str(options.rows), "--kind", options.kind),
    )
    report([built])
    # The first opening hashes everything and remembers that it did.
    first = _child("open", *folder)
    again = [_child("open", *folder) for _ in range(OPENINGS)]
    opened = {
        "first opening s": first["opening s"],
        "opening again s": median(run["opening s"] for run in again),
        "with start and imports s": median(run["whole process s"] for run in again),
        "peak GB": again[0]["peak GB"],
    }
    report([opened])
    searched = _child("search", *folder)
    report(searched["searches"])
    return {"build": built, "opening": opened, **searched}


def _child(*arguments: str) -> Row:
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale_full", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return {**found, "whole process s": time.perf_counter() - begin}


class Prepared:
    """An embedder that reads from each picture which of the prepared vectors is its own."""

    batch_size = 512

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.identity = identity(vectors.shape[1])
        self._vectors = vectors

    def embed_batch(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        numbers = np.stack([picture[0] for picture in images]).view("<u4").ravel()
        return self._vectors[numbers]


def cases(volume: NDArray[np.int32]) -> list[Case]:
    """The volumes of these rows, `SIDE` x `SIDE` pixels a slice, made when they are loaded."""
    volumes = int(volume[-1]) + 1
    starts = np.searchsorted(volume, np.arange(volumes + 1))
    # Displayed as stored.
    affine = np.diag([-1.0, -1.0, 2.5, 1.0])

    def load(number: int) -> tuple[Volume, None]:
        rows = np.arange(starts[number], starts[number + 1], dtype="<u4")
        pictures = np.zeros((len(rows), SIDE, SIDE), np.uint8)
        pictures[:, 0] = rows.view(np.uint8).reshape(-1, SIDE)
        grid = Grid(shape=(SIDE, SIDE, len(rows)), affine=affine)
        return Volume(voxels=pictures.transpose(2, 1, 0), grid=grid, modality="CT"), None

    return [
        Case(
            volume_id=f"volume-{number:06d}",
            patient_id=f"patient-{number:06d}",
            region=("chest", "abdomen", "head")[number % 3],
            load=partial(load, number),
        )
        for number in range(volumes)
    ]


def _build(options: argparse.Namespace) -> Row:
    vectors, volume = make_vectors(options.vectors, options.rows)
    private = _Watch()
    begin = time.perf_counter()
    with private:
        build(
            cases(volume),
            options.out,
            embedder=Prepared(vectors),
            slices=SlicePolicy(axis="axial", window="identity"),
            index_kind=options.kind,
            name="scale",
        )
    took = time.perf_counter() - begin
    files = [path.stat().st_size for path in options.out.rglob("*") if path.is_file()]
    manifest = json.loads((options.out / "manifest.json").read_text(encoding="utf-8"))
    return {
        "slices": options.rows,
        "volumes": int(volume[-1]) + 1,
        "kind": manifest["index"]["kind"],
        "seconds": took,
        "slices a second": options.rows / took,
        # The first counts what is mapped of files, which the system drops when memory is short.
        "peak GB": _peak_gb(),
        "peak GB without mapped files": private.most / 1e9,
        "folder GB": sum(files) / 1e9,
        "files": len(files),
    }


class _Watch:
    """The largest memory of this process that is not mapped from files, looked up ten times a
    second."""

    def __init__(self) -> None:
        self.most = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.most = max(self.most, 1024 * int(line.split()[1]))


def _open(options: argparse.Namespace) -> Row:
    begin = time.perf_counter()
    with open_store(options.out) as store:
        took = time.perf_counter() - begin
        # The rows are there: a picture and a vector of the last one can be had.
        store.image(len(store) - 1)
        np.asarray(store.embeddings[-1])
    return {"opening s": took, "peak GB": _peak_gb()}


def _search(options: argparse.Namespace) -> Row:
    index = open_index(options.out)
    (query,) = make_queries(1)
    table = []
    for mode in ("count", "rerank", "slice"):
        first = seconds(lambda m=mode: index.search(query, mode=m, k=5))
        again = [seconds(lambda m=mode: index.search(query, mode=m, k=5)) for _ in range(5)]
        found = index.search(query, mode=mode, k=5).hits
        table.append(
            {
                "mode": mode,
                "query slices": len(query),
                "first search s": first,
                "search s": median(again),
                "first hit": found[0].volume_id,
            }
        )
    return {"searches": table, "search peak GB": _peak_gb()}


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("build", "open", "search"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--kind", default="flat")
    options = parser.parse_args()
    steps: dict[str, Any] = {"build": _build, "open": _open, "search": _search}
    print(json.dumps(steps[options.step](options)))


if __name__ == "__main__":
    _main()
