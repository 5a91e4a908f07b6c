"""What propagation, clean-up and another axis do to the Dice of whole volumes.

The same queries, indexes and supports as in `medretrieval evaluate few-shot`, in several ways:

    python -m benchmarks.volumes --data ../shared/data --out runs/volumes
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.annotated import VOLUMES, annotated_sets, index_of
from medretrieval.console import table
from medretrieval.evaluation.sets import EvaluationSet
from medretrieval.imaging import read_labels, read_volume
from medretrieval.pipeline import segment
from medretrieval.segmentation import VolumeOptions, load_segmenter

WAYS = {
    "slice by slice": VolumeOptions(propagation="none"),
    "slice by slice, largest": VolumeOptions(propagation="none", keep="largest"),
    "1 neighbour": VolumeOptions(neighbours=1),
    "2 neighbours": VolumeOptions(neighbours=2),
    "4 neighbours": VolumeOptions(neighbours=4),
    "2 neighbours, largest": VolumeOptions(neighbours=2, keep="largest"),
    "2 neighbours, best axis": VolumeOptions(neighbours=2, axis="best"),
}
COLUMNS = ["set", "way", "volumes", "dice", "seconds a slice", "labels"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/volumes"))
    parser.add_argument("--sets", nargs="+", choices=VOLUMES, default=list(VOLUMES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--segmenter", default="sam2-micro")
    parser.add_argument("--support-k", type=int, default=8)
    parser.add_argument("--volumes", type=int, help="only the first so many queries of a set")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for chosen in annotated_sets(options.data, options.sets):
        rows += measure(chosen, options)
        (options.out / "volumes.json").write_text(json.dumps(rows, indent=2))
    print(table(rows, COLUMNS))


def measure(chosen: EvaluationSet, options: argparse.Namespace) -> list[dict[str, object]]:
    """One row a way: Dice of each label over the queries of a set, and the mean over labels."""
    labels = chosen.labels
    index = index_of(chosen, options.out)
    model = load_segmenter(options.segmenter)
    rows: list[dict[str, object]] = []
    for way in options.ways:
        scores, slices, seconds = [], 0, 0.0
        for query in chosen.queries()[: options.volumes]:
            volume = read_volume(query.image, modality=query.modality)
            truth = read_labels(query.mask, reference=volume.grid)
            start = time.perf_counter()
            result = segment(
                index, volume, segmenter=model, support_k=options.support_k, how=WAYS[way]
            )
            seconds += time.perf_counter() - start
            slices += result.slices
            dice = result.dice(type(truth)(voxels=truth.voxels, grid=truth.grid, names=labels))
            scores.append([dice.get(label, 1.0) for label in labels.values()])
        mean = np.mean(scores, axis=0)
        per_label = zip(labels.values(), mean.tolist(), strict=True)
        rows.append(
            {
                "set": chosen.name,
                "way": way,
                "volumes": len(scores),
                "dice": round(float(mean.mean()), 3),
                "seconds a slice": round(seconds / max(slices, 1), 3),
                "labels": ", ".join(f"{label} {value:.3f}" for label, value in per_label),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    main()
