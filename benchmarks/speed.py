"""How fast building, searching and segmenting are, each beside a baseline of the same run.

    python -m benchmarks.speed                 all three parts
    python -m benchmarks.speed --parts build   one of them

Every ratio compares two things timed in alternation in this process, so that it holds on a busy
machine too; the absolute numbers are those of this machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from medretrieval.console import table
from medretrieval.demo import demo_cases
from medretrieval.embedders import load_embedder
from medretrieval.imaging import write_volume
from medretrieval.index import Case, build, open_store
from medretrieval.pipeline import build_index
from medretrieval.retrieval.engine import Index
from medretrieval.retrieval.modes import MODES
from medretrieval.segmentation import MemoryCache, load_segmenter
from medretrieval.types import Grid, SlicePolicy, Support, Volume

KINDS = ("ct-chest", "ct-abdomen", "mr-brain", "mr-heart")


def main() -> None:
    parts = {"build": building, "search": searching, "segment": segmenting}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ", end="")
    print(f"torch {torch.__version__} with {torch.get_num_threads()} threads")
    for name in options.parts:
        print(f"\n## {name}\n")
        parts[name](options.repeats)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def building(repeats: int) -> None:
    """`build` from NIfTI files to a finished index, against the network alone on as many slices."""
    embedder = load_embedder("efficientnet-lite0")
    times: dict[str, list[float]] = {
        "build": [],
        "bare forward pass, one core a batch (as build does)": [],
        "bare forward pass, all cores a batch (torch's way)": [],
    }
    workers, whole = list(times)[1:]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "images"
        source.mkdir()
        for case in demo_cases(KINDS, range(8)):
            write_volume(case.load()[0], source / f"{case.volume_id}.nii.gz")
        slices = 0
        for repeat in range(repeats):
            out = Path(folder) / f"index{repeat}"
            times["build"].append(seconds(partial(build_index, source, out, embedder=embedder)))
            slices = len(open_store(out))
            times[workers].append(seconds(partial(forward, embedder, slices, split=True)))
            times[whole].append(seconds(partial(forward, embedder, slices, split=False)))
    rates = [
        {"what": name, "slices": slices, "slices a second": round(slices / median(values), 1)}
        for name, values in times.items()
    ]
    print(table(rates, list(rates[0])))
    for name in (workers, whole):
        ratios = [bare / own for own, bare in zip(times["build"], times[name], strict=True)]
        print(f"build reaches {median(ratios):.2f} of the {name}")


def forward(embedder: Any, slices: int, *, split: bool) -> None:
    """The network on ready-made pictures at the embedder's number of pictures a pass."""
    size = embedder.pass_size
    pixels = torch.rand(size, 3, 224, 224)
    chunks = [pixels[: min(size, slices - i)] for i in range(0, slices, size)]

    def run(chunk: torch.Tensor) -> None:
        with torch.inference_mode():
            embedder.forward(chunk)

    if not split:
        for chunk in chunks:
            run(chunk)
        return
    with ThreadPoolExecutor(
        embedder.threads, initializer=partial(torch.set_num_threads, 1)
    ) as pool:
        list(pool.map(run, chunks))


class Clustered:
    """An embedder that makes no sense of pictures: random unit vectors around one a volume."""

    def __init__(self, dim: int) -> None:
        self.identity = load_embedder("efficientnet-lite0").identity
        self.dim = dim
        self.batch_size = 512
        self.rng = np.random.default_rng(0)

    def embed_batch(self, images: object) -> np.ndarray:
        pictures = list(images)  # type: ignore[call-overload]
        centre = np.stack([np.resize(p.ravel()[:64].astype(float), self.dim) for p in pictures])
        rows = centre - centre.mean() + 40 * self.rng.standard_normal(centre.shape)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def searching(repeats: int) -> None:
    """A 300-slice query, embedded beforehand, in 200 volumes of 100 slices."""
    embedder = Clustered(1280)
    rng = np.random.default_rng(1)
    grid = Grid(shape=(8, 8, 100), affine=np.diag([1.0, 1.0, 1.0, 1.0]))

    def case(number: int) -> Case:
        voxels = rng.integers(0, 255, (8, 8, 1), np.uint8).repeat(100, axis=2)
        voxels[0, 0, 0] = 255 - voxels[0, 0, 0]
        volume = Volume(voxels=voxels, grid=grid, name=f"v{number}")
        return Case(volume_id=f"v{number:03d}", patient_id=str(number), load=lambda: (volume, None))

    cases = [case(number) for number in range(200)]
    query = rng.standard_normal((300, 1280)).astype(np.float32)
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    arguments = (query, list(range(300)), [None] * 300)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("flat", "hnsw"):
            out = Path(folder) / kind
            build(
                *(cases, out),
                embedder=embedder,
                slices=SlicePolicy(),
                index_kind=kind,
                name="speed",
            )
            index = Index(open_store(out), embedder=embedder)
            bank = np.ascontiguousarray(index.store.embeddings)
            index.search(arguments, mode="slice", k=1)
            for mode in (name for name, mode in MODES.items() if not mode.needs):
                took = []
                product = []
                for _ in range(repeats):
                    took.append(seconds(lambda m=mode, i=index: i.search(arguments, mode=m, k=5)))
                    product.append(seconds(lambda b=bank: query @ b.T))
                rows.append(
                    {
                        "index": kind,
                        "mode": mode,
                        "rows": len(bank),
                        "seconds": round(median(took), 3),
                        "bare matrix product": round(median(product), 3),
                    }
                )
    print(table(rows, list(rows[0])))


def segmenting(repeats: int) -> None:
    """A mask of one slice with sam2-micro, memories of its supports computed or cached."""
    supports = []
    for case in demo_cases(["mr-heart"], range(4)):
        volume, labels = case.load()
        middle = volume.grid.shape[2] // 2
        for index in range(middle - 2, middle + 3):
            supports.append(annotated(volume, labels, index))
    query, supports = supports[0].image, supports[1:]
    rows = []
    for count in (1, 4, 8, 16):
        fresh, cached = [], []
        for _ in range(repeats):
            model = load_segmenter("sam2-micro")
            model.cache = MemoryCache()
            chosen = supports[:count]
            fresh.append(seconds(lambda m=model, s=chosen: m.segment(query, s)))
            cached.append(seconds(lambda m=model, s=chosen: m.segment(query, s)))
        rows.append(
            {
                "supports": count,
                "labels": len({n for s in supports[:count] for n in s.names.values()}),
                "seconds, nothing cached": round(median(fresh), 3),
                "seconds, memories cached": round(median(cached), 3),
            }
        )
    print(table(rows, list(rows[0])))


def annotated(volume: Volume, labels: object, index: int) -> Support:
    from medretrieval.imaging import make_slices

    (piece,) = make_slices(volume, SlicePolicy(), labels=labels, indices=[index])  # type: ignore[arg-type]
    names = {v: n for v, n in labels.names.items() if (piece.mask == v).any()}  # type: ignore[attr-defined]
    return Support(image=piece.image, mask=piece.mask, names=names, key=f"{volume.name}:{index}")


if __name__ == "__main__":
    main()
