"""Dice of a segmenter and of two baselines on annotated data, through the product's own path.

For each set: an index is built of its database patients, every query volume is segmented from
retrieved supports, and the 3-D Dice of each label (every slice counted, also those without the
structure) is averaged over the query volumes. A second part searches one index of all sets and
counts for how many query volumes the first hit is of the same set.

    python -m benchmarks.dice --data ../shared/data --out runs/dice
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path

import numpy as np

from medretrieval.console import ProgressBar, table
from medretrieval.imaging import read_labels, read_volume
from medretrieval.metrics.segmentation import dice_per_label
from medretrieval.pipeline import build_index, segment
from medretrieval.retrieval.engine import open_index
from medretrieval.segmentation import load_segmenter
from medretrieval.segmentation.baselines import MaskCopy

# set -> (value of the table's `organ` column, names of the mask values)
SETS = {
    "acdc": ("heart", {1: "RV", 2: "Myo", 3: "LV"}),
    "hippocampus": ("hippocampus", {1: "anterior", 2: "posterior"}),
    "chaos": ("abdomen", {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}),
    "openkbp": (
        "head-neck",
        {
            1: "brainstem",
            2: "cord",
            3: "right parotid",
            4: "left parotid",
            5: "oesophagus",
            6: "larynx",
            7: "mandible",
        },
    ),
}
METHODS = ("sam2-micro", *MaskCopy.NAMES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/dice"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["acdc", "hippocampus", "chaos"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--support-k", type=int, default=8)
    options = parser.parse_args()
    data, out = options.data.resolve(), options.out
    queries = [r for r in csv.DictReader((data / "volumes.csv").open()) if r["split"] == "query"]
    rows = []
    for name in options.sets:
        organ, labels = SETS[name]
        own = [row for row in queries if row["organ"] == organ]
        rows += measure(name, own, labels, data, out, options.methods, options.support_k)
        print(table(rows[-len(labels) * len(options.methods) - len(options.methods) :], COLUMNS))
    hits = retrieval(options.sets, queries, data, out)
    (out / "dice.json").write_text(json.dumps({"dice": rows, "retrieval": hits}, indent=2))
    print(table(rows, COLUMNS))
    print(table(hits, ["set", "mode", "queries", "same modality", "same region", "same set"]))


COLUMNS = ["set", "label", "method", "volumes", "dice", "seconds a slice"]


def measure(
    name: str,
    queries: list[dict[str, str]],
    labels: dict[int, str],
    data: Path,
    out: Path,
    methods: list[str],
    support_k: int,
) -> list[dict[str, object]]:
    """One row a method and label, and one with the mean over the labels."""
    index = open_index(built(name, data, out))
    rows = []
    for method in methods:
        model = MaskCopy(method) if method in MaskCopy.NAMES else load_segmenter(method)
        scores: list[list[float]] = []
        slices, start = 0, time.perf_counter()
        for done, query in enumerate(queries):
            volume = read_volume(data / query["path"], modality=query["modality"])
            truth = read_labels(data / query["mask"], reference=volume.grid)
            result = segment(index, volume, segmenter=model, support_k=support_k)
            value_of = {v: k for k, v in result.labels.names.items()}
            found = [
                dice_per_label(result.labels.voxels == value_of.get(n, -1), truth.voxels == v)
                for v, n in labels.items()
            ]
            scores.append([score.get(1, 1.0) for score in found])
            slices += result.slices
            print(f"{name} {method} {done + 1}/{len(queries)} {scores[-1]}", file=sys.stderr)
        mean = np.mean(scores, axis=0)
        seconds = (time.perf_counter() - start) / max(slices, 1)
        for label, value in (*zip(labels.values(), mean, strict=True), ("mean", mean.mean())):
            rows.append(
                {
                    "set": name,
                    "label": label,
                    "method": method,
                    "volumes": len(queries),
                    "dice": round(float(value), 3),
                    "seconds a slice": round(seconds, 3),
                }
            )
    return rows


def built(name: str, data: Path, out: Path) -> Path:
    organ, labels = SETS[name]
    index = out / f"index-{name}"
    if not index.exists():
        build_index(
            data / "volumes.csv",
            index,
            where={"organ": organ, "split": "database"},
            label_names=labels,
            progress=ProgressBar(quiet=False),
        )
    return index


def retrieval(
    sets: list[str], queries: list[dict[str, str]], data: Path, out: Path
) -> list[dict[str, object]]:
    """How many query volumes find their own kind first in an index of every set together."""
    combined = out / "index-all"
    if not combined.exists():
        build_index(
            data / "volumes.csv",
            combined,
            where={"split": "database"},
            progress=ProgressBar(quiet=False),
        )
    index = open_index(combined)
    kind = {row["volume_id"]: row for row in csv.DictReader((data / "volumes.csv").open())}
    rows = []
    for name in sets:
        own = [row for row in queries if row["organ"] == SETS[name][0]]
        embedded = [index.query_embeddings(read_volume(data / row["path"])) for row in own]
        for mode in ("count", "weighted", "rerank"):
            found = [
                kind[index.search(query, mode=mode, k=1).hits[0].volume_id] for query in embedded
            ]
            pairs = list(zip(own, found, strict=True))
            rows.append(
                {
                    "set": name,
                    "mode": mode,
                    "queries": len(own),
                    "same modality": sum(a["modality"] == b["modality"] for a, b in pairs),
                    "same region": sum(a["region"] == b["region"] for a, b in pairs),
                    "same set": sum(a["organ"] == b["organ"] for a, b in pairs),
                }
            )
    return rows


if __name__ == "__main__":
    main()
