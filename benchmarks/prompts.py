"""What clicks and boxes add to retrieved supports, and what they reach alone.

Slices of the query volumes of one set are segmented from retrieved supports, from prompts, and from
both. A click is put in the middle of the largest piece of what is wrong with the mask before it;
the first click without supports in the middle of the structure. A box is the structure's own,
widened by a pixel. The number is the mean Dice over slices and labels that show the label.

    python -m benchmarks.prompts --data ../shared/data --organ heart --labels 1=RV,2=Myo,3=LV
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medretrieval.console import table
from medretrieval.imaging import make_slices, read_labels, read_volume
from medretrieval.metrics.segmentation import dice
from medretrieval.pipeline import build_index
from medretrieval.retrieval.engine import open_index
from medretrieval.segmentation import Segmenter, load_segmenter
from medretrieval.segmentation.prompts import Edit, Kind, Prompts, prompts_of
from medretrieval.types import Support

CLICKS = 3
SMALLEST = 20  # pixels of a label on a slice that counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--organ", default="heart", help="value of the table's column organ")
    parser.add_argument("--labels", default="1=RV,2=Myo,3=LV")
    parser.add_argument("--segmenter", default="sam2-micro")
    parser.add_argument("--checkpoint", type=Path, help="other weights than the segmenter's own")
    parser.add_argument("--every", type=int, default=3, help="of the slices of a volume")
    parser.add_argument("--volumes", type=int, default=7, help="query volumes, at most")
    parser.add_argument("--support-k", type=int, default=8)
    options = parser.parse_args()
    data: Path = options.data.resolve()
    names = {int(v): n for v, n in (pair.split("=") for pair in options.labels.split(","))}
    model = load_segmenter(options.segmenter, checkpoint=options.checkpoint)
    rows = list(csv.DictReader((data / "volumes.csv").open()))
    own = [r for r in rows if r["split"] == "query" and r["organ"] == options.organ]
    scores: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        index = open_index(
            build_index(
                data / "volumes.csv",
                Path(folder) / "index",
                where={"organ": options.organ, "split": "database"},
                label_names=names,
            )
        )
        for row in own[: options.volumes]:
            volume = read_volume(data / row["path"], modality=row["modality"])
            truth = read_labels(data / row["mask"], reference=volume.grid)
            pieces = list(make_slices(volume, index.manifest.slices, labels=truth))
            pieces = pieces[options.every // 2 :: options.every]
            found = index.query_embeddings(volume, indices=[piece.index for piece in pieces])
            retrieved = index.supports_each(found.embeddings, options.support_k)
            for piece, (numbers, _) in zip(pieces, retrieved, strict=True):
                supports = [index.store.support(number) for number in numbers.tolist()]
                for value, name in names.items():
                    wanted = np.asarray(piece.mask) == value
                    if wanted.sum() >= SMALLEST:
                        for way, reached in corrected(model, piece.image, supports, name, wanted):
                            scores[way].append(reached)
    rows_out = [
        {"prompts": way, "masks": len(values), "dice": round(float(np.mean(values)), 3)}
        for way, values in scores.items()
    ]
    print(table(rows_out, ["prompts", "masks", "dice"]))


def corrected(
    model: Segmenter,
    image: NDArray[np.uint8],
    supports: Sequence[Support],
    name: str,
    wanted: NDArray[np.bool_],
) -> list[tuple[str, float]]:
    """Dice of one label of one slice for every way of prompting."""

    def mask(given: Sequence[Support], prompts: Mapping[str, Prompts]) -> NDArray[np.bool_]:
        # A prompt for a label no support has is the only one that then exists.
        result = model.segment(image, given, labels=[name], prompts=prompts)
        return np.asarray(result.mask > 0)

    reached = []
    box = {name: Prompts(box=_box(wanted))}
    for start, given in (("supports", supports), ("no supports", ())):
        edits: list[Edit] = []
        found = mask(given, {}) if given else np.zeros_like(wanted)
        if given:
            reached.append((start, dice(found, wanted)))
        for click in range(CLICKS):
            edits.append(_click(name, found, wanted))
            found = mask(given, prompts_of(edits))
            reached.append((f"{start}, {click + 1} clicks", dice(found, wanted)))
        reached.append((f"{start}, box", dice(mask(given, box), wanted)))
    return reached


def _click(name: str, found: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> Edit:
    """A point deep inside the largest piece of what is missing or too much."""
    wrong = found != wanted if (found != wanted).any() else wanted
    pieces, count = ndimage.label(wrong)
    largest = 1 + int(np.argmax(ndimage.sum(wrong, pieces, range(1, count + 1))))
    depth: Any = ndimage.distance_transform_edt(np.pad(pieces == largest, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(np.argmax(depth)), depth.shape)
    kind: Kind = "positive" if wanted[y, x] else "negative"
    return Edit(label=name, kind=kind, at=(float(x), float(y)))


def _box(wanted: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    y, x = np.nonzero(wanted)
    high, wide = wanted.shape
    return (
        float(max(x.min() - 1, 0)),
        float(max(y.min() - 1, 0)),
        float(min(x.max() + 1, wide - 1)),
        float(min(y.max() + 1, high - 1)),
    )


if __name__ == "__main__":
    main()
