"""Real annotated images, where they are beside the project: retrieve, segment, compare.

The full measurement is `medretrieval evaluate few-shot`; here is a part of it that CI can afford.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from medretrieval.imaging import read_labels, read_volume
from medretrieval.pipeline import build_index, segment
from medretrieval.retrieval.engine import Index, open_index
from medretrieval.segmentation.baselines import MaskCopy

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
LABELS = {1: "RV", 2: "Myo", 3: "LV"}

pytestmark = [
    pytest.mark.data,
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no annotated images at {DATA}"),
]


def rows(**where: str) -> list[dict[str, str]]:
    with (DATA / "volumes.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    return [row for row in table if all(row[key] == value for key, value in where.items())]


@pytest.fixture(scope="module")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return open_index(
        build_index(
            DATA / "volumes.csv",
            tmp_path_factory.mktemp("real") / "hearts",
            where={"organ": "heart", "split": "database"},
            label_names=LABELS,
        )
    )


def test_masks_of_hearts_are_better_than_copies(hearts: Index) -> None:
    scores: dict[str, list[float]] = {}
    for row in rows(organ="heart", split="query")[::4]:
        volume = read_volume(DATA / row["path"])
        truth = read_labels(DATA / row["mask"], reference=volume.grid, names=LABELS)
        for segmenter in ("sam2-micro", MaskCopy("nearest-mask"), MaskCopy("mean-mask")):
            made = segment(hearts, volume, segmenter=segmenter)
            assert made.labels.voxels.shape == truth.voxels.shape
            values = made.dice(truth).values()
            scores.setdefault(made.segmenter, []).append(float(np.mean(list(values))))
    mean = {name: np.mean(values) for name, values in scores.items()}
    assert mean["sam2-micro"] > 0.5
    assert mean["sam2-micro"] > mean["nearest-mask"] + 0.1
    assert mean["sam2-micro"] > mean["mean-mask"] + 0.1


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    """One case each of four organs in the index; another patient's of each finds its own kind."""
    table = tmp_path / "cases.csv"
    organs = ("heart", "hippocampus", "abdomen", "head-neck")
    database = [rows(organ=organ, split="database")[i] for organ in organs for i in (0, -1)]
    kind = {row["volume_id"]: row["organ"] for row in database}
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(database[0]))
        writer.writeheader()
        writer.writerows(database)
    index = open_index(build_index(DATA, tmp_path / "index", table=table))
    for organ in organs:
        query = rows(organ=organ, split="query")[0]
        for mode in ("count", "weighted", "rerank"):
            hit = index.search(DATA / query["path"], mode=mode, k=1).hits[0]
            assert (kind[hit.volume_id], hit.modality) == (organ, query["modality"]), mode
