"""How the time of a search grows with the number of slices, as a table and a plot."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.measuring import Row, report, seconds
from benchmarks.synthetic_index import MemoryStore, prepared
from benchmarks.vectors import make_queries, make_vectors
from medretrieval.retrieval.engine import Index

SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
MODES = ("count", "rerank")
STYLES = {"count": "-", "rerank": "--"}
COLOURS = {"flat": "#1f5fa8", "hnsw": "#c2571a", "ivf-pq": "#2f8f4e"}


def growth(options: argparse.Namespace) -> Sequence[Row]:
    """Searches of 300 slices in indexes of more and more slices, prefixes of the largest."""
    everything = prepared(options.work, options.rows)
    _, volume = make_vectors(options.work / f"vectors-{options.rows}.npy", options.rows)
    (query,) = make_queries(1, slices=300)
    table: list[Row] = []
    for size in [size for size in SIZES if size < options.rows] + [options.rows]:
        vectors = everything[:size]
        np.asarray(vectors).max()  # read from the disk before anything is timed
        for kind in options.kinds:
            store: list[MemoryStore] = []
            cached = options.work / f"{kind}-{size}.faiss"
            made = seconds(
                lambda v=vectors, c=cached, k=kind, s=store, n=size: s.append(
                    MemoryStore(v, volume[:n], kind=k, cached=c)
                )
            )
            index = Index(store[0])
            for mode in MODES:
                search = partial(index.search, query, mode=mode, k=5)
                search()
                times = [seconds(search) for _ in range(options.repeats)]
                table.append(
                    {
                        "kind": kind,
                        "mode": mode,
                        "slices": size,
                        "volumes": int(volume[size - 1]) + 1,
                        "seconds": median(times),
                        "ms a query slice": 1000 * median(times) / len(query),
                        "index made or read in s": made,
                    }
                )
                print(f"{kind}, {mode}, {size} slices: {median(times):.3f} s", file=sys.stderr)
    plot(table, options.plot)
    return report(table)


def plot(table: Sequence[Row], path: Path) -> None:
    """Draw seconds over slices, both logarithmic, a line for each kind and mode."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for kind, mode in dict.fromkeys((row["kind"], row["mode"]) for row in table):
        rows = [row for row in table if (row["kind"], row["mode"]) == (kind, mode)]
        axes.plot(
            [row["slices"] for row in rows],
            [row["seconds"] for row in rows],
            STYLES[mode],
            color=COLOURS.get(kind, "#666666"),
            marker="o",
            markersize=4,
            label=f"{kind}, {mode}",
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="slices in the index (768 numbers each)",
        ylabel="seconds for a query of 300 slices",
    )
    axes.grid(which="major", color="#dddddd")
    figure.legend(title="index, mode", frameon=False, loc="outside right center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"Plot: {path}\n")
