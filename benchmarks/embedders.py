"""Slices a second of every embedder, and of the ways to run it, beside plain PyTorch.

    python -m benchmarks.embedders                                  every embedder, all ways
    python -m benchmarks.embedders --names dino-vitb16 efficientnet-lite0
    python -m benchmarks.embedders --names efficientnet-lite0 \\
        --images ../shared/data/*/images/*.nii.gz

Plain PyTorch is the network in float32 on batches of 8 (fewer for large pictures) with all cores
on each, as torch does it by itself, without preprocessing. Every way is timed in alternation with
it in this process, and whole: from pictures to unit vectors.

The cosines are the least of some slices between float32 and the other ways. The weights are random
except for the bundled embedder, and the small differences of a trained network do not show in a
random one. For the bundled one the share of slices that keep their most similar other slice is
given too.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.random_weights import write
from medretrieval.console import table
from medretrieval.demo import demo_cases
from medretrieval.embedders import REGISTRY, load_embedder
from medretrieval.imaging import make_slices, read_volume
from medretrieval.types import SlicePolicy

WAYS = {
    "torch": {"runtime": "torch", "precision": "float32"},
    "torch bf16": {"runtime": "torch", "precision": "bfloat16"},
    "openvino": {"runtime": "openvino", "precision": "float32"},
    "openvino bf16": {"runtime": "openvino", "precision": "bfloat16"},
}
KINDS = ("ct-chest", "ct-abdomen", "mr-brain", "mr-heart")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    slices = [name for name, spec in REGISTRY.items() if spec.unit == "slice"]
    parser.add_argument("--names", nargs="+", choices=slices, default=slices)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each way in a round")
    parser.add_argument(
        "--images", nargs="+", type=Path, help="compare on slices of these, not of phantoms"
    )
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"bfloat16 instructions: {bool(torch.cpu.get_capabilities().get('avx512_bf16'))}\n")
    rows: list[dict[str, Any]] = []
    pictures = list(slices_of(options.images))
    for name in options.names:
        row = measured(name, pictures, options)
        rows.append(row)
        print({k: v for k, v in row.items() if v is not None}, flush=True)
        gc.collect()
    print()
    print(table(rows, list(rows[0])))


def slices_of(images: list[Path] | None) -> Iterator[NDArray[np.uint8]]:
    """Up to 12 slices of every image, spread evenly; of synthetic phantoms if there are none."""
    volumes = (
        (case.load()[0] for case in demo_cases(KINDS, range(2)))
        if images is None
        else map(read_volume, images)
    )
    for volume in volumes:
        made = [piece.image for piece in make_slices(volume, SlicePolicy())]
        yield from made[:: math.ceil(len(made) / 12)]


def measured(name: str, pictures: list[NDArray[np.uint8]], options: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        bundled = REGISTRY[name].source == "package"
        weights = None if bundled else write(name, Path(folder))
        embedders = {w: load_embedder(name, weights=weights, **WAYS[w]) for w in options.ways}
        plain = load_embedder(name, weights=weights)
    size = REGISTRY[name].input_size
    batch = torch.rand(8 if size < 300 else 4 if size < 600 else 1, 3, size, size)

    def run_plain() -> int:
        with torch.inference_mode():
            plain.forward(batch)  # type: ignore[attr-defined]
        return len(batch)

    actions: dict[str, Callable[[], int]] = {"plain": run_plain}
    for way, embedder in embedders.items():
        actions[way] = repeated(embedder, pictures[: embedder.batch_size])
    # The first run of each counts its own time, so that slow networks are not run too often.
    counts = {way: max(1, round(options.seconds / seconds(run)[1])) for way, run in actions.items()}
    rates: dict[str, list[float]] = {way: [] for way in actions}
    for _ in range(options.rounds):
        for way, run in actions.items():
            done, spent = map(sum, zip(*(seconds(run) for _ in range(counts[way])), strict=True))
            rates[way].append(done / spent)
    row: dict[str, Any] = {"name": name, "plain": round(median(rates["plain"]), 2)}
    few = pictures if bundled else pictures[:: len(pictures) // (12 if size < 600 else 2)]
    reference = embedders["torch"].embed_batch(few) if "torch" in embedders else None
    for way, embedder in embedders.items():
        ratio = median(own / bare for own, bare in zip(rates[way], rates["plain"], strict=True))
        row[way] = f"{median(rates[way]):.3g} (x{ratio:.2f})"
        if reference is not None and way != "torch":
            other = embedder.embed_batch(few)
            row[f"cosine {way}"] = f"{(other * reference).sum(1).min():.5f}"
            if bundled:
                same = nearest(other) == nearest(reference)
                row[f"nearest {way}"] = f"{same.mean():.3f} of {len(few)}"
    return row


def nearest(rows: NDArray[np.float32]) -> NDArray[np.int64]:
    """For every row which other one is most similar."""
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    return similarity.argmax(axis=1)


def repeated(embedder: Any, pictures: list[NDArray[np.uint8]]) -> Callable[[], int]:
    # A slow network gets as many pictures as keep all cores busy, a fast one a whole batch.
    start = time.perf_counter()
    embedder.embed_batch(pictures[: embedder.threads * embedder.pass_size])
    slow = time.perf_counter() - start > 1.0
    some = pictures[: embedder.threads * embedder.pass_size] if slow else pictures

    def run() -> int:
        embedder.embed_batch(some)
        return len(some)

    return run


def seconds(action: Callable[[], int]) -> tuple[int, float]:
    start = time.perf_counter()
    done = action()
    return done, time.perf_counter() - start


if __name__ == "__main__":
    main()
