"""What cheaper ways to segment lose: Dice of each beside the exact way, on annotated data.

Every query volume is segmented once exactly and once each other way, from the same retrieved
supports. `dice` is the mean over labels and volumes of the 3-D Dice with the truth, `loss` the mean
of its difference to the exact way, `worst` the greatest loss of a volume and label, `agreement` the
mean Dice between the masks of both ways.

    python -m benchmarks.approximations --data ../shared/data --out runs/approximations
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.annotated import VOLUMES, annotated_sets, index_of
from benchmarks.measuring import Row, report
from medretrieval.evaluation.sets import EvaluationSet
from medretrieval.imaging import read_labels, read_volume
from medretrieval.metrics.segmentation import dice
from medretrieval.pipeline import segment
from medretrieval.segmentation import MemoryCache, load_segmenter
from medretrieval.segmentation.options import OptionChanges, Precision


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a segmenter is loaded and used."""

    options: OptionChanges = field(default_factory=OptionChanges)
    precision: Precision = "float32"
    half: bool = False


EXACT = "exact"
WAYS = {
    EXACT: Way(),
    "float16 memories": Way(half=True),
    "bfloat16": Way(precision="bfloat16"),
    "pooled": Way(options={"memory": "pooled"}),
    "foreground": Way(options={"memory": "foreground"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/approximations"))
    parser.add_argument(
        "--sets", nargs="+", choices=VOLUMES, default=["acdc", "chaos", "hippocampus"]
    )
    parser.add_argument("--segmenter", default="sam2-micro")
    parser.add_argument("--image-size", type=int, help="of the network's input")
    parser.add_argument("--support-k", type=int, default=8)
    parser.add_argument("--queries", type=int, help="volumes a set, default all")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for chosen in annotated_sets(options.data, options.sets):
        rows += measure(chosen, options)
        (options.out / "approximations.json").write_text(json.dumps(rows, indent=2))
    report(rows)


def measure(chosen: EvaluationSet, options: argparse.Namespace) -> list[Row]:
    """One row a way, for one set."""
    index = index_of(chosen, options.out)
    queries = chosen.queries()[: options.queries]
    masks: dict[str, list[Any]] = {}
    scores: dict[str, list[float]] = {}
    for way, how in WAYS.items():
        segmenter = load_segmenter(
            options.segmenter,
            image_size=options.image_size,
            precision=how.precision,
            cache=MemoryCache(half=how.half),
        )
        segmenter.options = segmenter.options.changed(how.options)
        masks[way], scores[way] = [], []
        for query in queries:
            volume = read_volume(query.image, modality=query.modality)
            truth = read_labels(query.mask, reference=volume.grid)
            found = segment(index, volume, segmenter=segmenter, support_k=options.support_k).labels
            value_of = {name: value for value, name in found.names.items()}
            for value, label in chosen.labels.items():
                masks[way].append(found.voxels == value_of.get(label, -1))
                scores[way].append(dice(masks[way][-1], truth.voxels == value))
        print(chosen.name, way, np.mean(scores[way]), file=sys.stderr)
    exact = np.array(scores[EXACT])
    return [
        {
            "set": chosen.name,
            "way": way,
            "dice": round(float(np.mean(scores[way])), 4),
            "loss": round(float(np.mean(exact - scores[way])), 4),
            "worst": round(float(np.max(exact - scores[way])), 4),
            "agreement": round(float(np.mean(list(map(dice, masks[way], masks[EXACT])))), 4),
        }
        for way in WAYS
    ]


if __name__ == "__main__":
    main()
