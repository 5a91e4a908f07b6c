"""What it costs that a query lies differently from the cases of an index, and what helps.

One index of the database cases of all sets, volumes and pictures, is built twice: of whole slices,
and of the part that shows the body. Query volumes are turned in-plane into the eight orientations,
as another scanner would have stored them, and searched as they lie and with orientation "any".
Hearts are also searched as another scanner might have taken them (`other_scanner`: a smaller field
of view, another contrast, shading, noise), as all in the index come from one hospital.

Counted is for which share of the queries the first volume is of the right organ and region; in mode
slice, for which share of the slices of the middle half the most similar slice is.

    python -m benchmarks.orientation --data ../shared/data --out runs/orientation
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medretrieval.console import ProgressBar
from medretrieval.embedders import load_embedder
from medretrieval.embedders.registry import DEFAULT_EMBEDDER
from medretrieval.imaging import ORIENTATIONS, extract, read_volume, slice_axis, turn
from medretrieval.pipeline import build_index
from medretrieval.retrieval.engine import Index, open_index
from medretrieval.retrieval.orienting import spread
from medretrieval.retrieval.selection import Selection
from medretrieval.types import Embedder, Grid, SlicePolicy, Volume

MODES = ("slice", "count", "rerank")
SEARCHED = ("as stored", "any")
CROPS = ("none", "body")


class Remembered:
    """An embedder that keeps what it embedded in a file, by the hash of the picture."""

    def __init__(self, embedder: Embedder, file: Path) -> None:
        self.identity = embedder.identity
        self.batch_size = getattr(embedder, "batch_size", 32)
        self._embedder = embedder
        self._file = file
        self._known: dict[str, NDArray[np.float32]] = {}
        if file.exists():
            with np.load(file) as stored:
                self._known = dict(zip(stored["keys"].tolist(), stored["rows"], strict=True))

    def embed_batch(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        keys = [hashlib.sha1(repr(i.shape).encode() + i.tobytes()).hexdigest() for i in images]
        new = {key: image for key, image in zip(keys, images, strict=True)}
        new = {key: image for key, image in new.items() if key not in self._known}
        if new:
            self._known.update(
                zip(new, self._embedder.embed_batch(list(new.values())), strict=True)
            )
        return np.stack([self._known[key] for key in keys])

    def save(self) -> None:
        keys = np.array(list(self._known), dtype=np.str_)
        np.savez(self._file, keys=keys, rows=np.stack(list(self._known.values())))


def turned_volume(volume: Volume, policy: SlicePolicy, name: str) -> Volume:
    """The same slices, each turned, in a volume that is displayed as they lie.

    The spacing goes with its axes; the affine is an upright one, so that nothing but the pixels
    says how the patient lay.
    """
    axis = slice_axis(volume.grid, policy.axis)
    count = volume.grid.shape[axis]
    pictures = [turn(extract(volume.voxels, volume.grid, axis, i), name) for i in range(count)]
    voxels = np.stack(pictures).transpose(2, 1, 0)  # (n, rows, columns) -> (columns, rows, n)
    along = volume.grid.spacing
    inside = [along[i] for i in range(3) if i != axis]
    spacing = (*inside, along[axis])
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    shape = (voxels.shape[0], voxels.shape[1], voxels.shape[2])
    grid = Grid(shape=shape, affine=affine, spacing_known=volume.grid.spacing_known)
    return Volume(voxels=voxels, grid=grid, modality=volume.modality, name=volume.name)


def other_scanner(volume: Volume) -> Volume:
    """The central 70 % of the slices, brighter at one side, of lower contrast, with noise."""
    x, y, _ = volume.grid.shape
    inside = np.s_[round(0.15 * x) : round(0.85 * x), round(0.15 * y) : round(0.85 * y)]
    voxels = volume.voxels[inside].astype(np.float64)
    top = np.percentile(voxels, 99.5)
    scaled = np.clip(voxels / top, 0, 1) ** 0.7
    shading = np.linspace(0.6, 1.4, scaled.shape[0])[:, None, None]
    noise = np.random.default_rng(0).normal(scale=0.04, size=scaled.shape)
    made = np.abs(scaled * shading + noise) * 1000
    shape = (made.shape[0], made.shape[1], made.shape[2])
    return replace(volume, voxels=made, grid=replace(volume.grid, shape=shape, header=None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/orientation"))
    parser.add_argument("--turned", nargs="*", default=["heart"], help="organs in all eight")
    parser.add_argument("--organs", nargs="*", help="only these, default all")
    parser.add_argument("--queries", type=int, help="of each organ at most, spread over all")
    options = parser.parse_args()
    data, out = options.data.resolve(), options.out
    out.mkdir(parents=True, exist_ok=True)
    cases = table_of_cases(data)
    kind = {row["volume_id"]: (row["organ"], row["region"]) for row in cases}
    embedder = Remembered(load_embedder(DEFAULT_EMBEDDER), out / "embeddings.npz")
    indexes = {
        crop: open_index(built(crop, cases, data, out, embedder), embedder=embedder)
        for crop in CROPS
    }
    embedder.save()
    found: list[Answer] = []
    queries = [row for row in cases if row["split"] == "query" and row["modality"]]
    for organ in options.organs or dict.fromkeys(row["organ"] for row in queries):
        own = [row for row in queries if row["organ"] == organ]
        for row in [own[place] for place in spread(len(own), options.queries or len(own))]:
            volume = read_volume(data / row["path"], modality=row["modality"])
            turned = organ in options.turned
            asked_as = {organ: volume}
            if turned:
                asked_as[f"{organ}, other scanner"] = other_scanner(volume)
            for name, query in asked_as.items():
                for lie in ORIENTATIONS if turned else ORIENTATIONS[:1]:
                    lying = turned_volume(query, SlicePolicy(), lie)
                    for crop, index in indexes.items():
                        found += asked(index, lying, kind, (organ, row["region"]), name, lie, crop)
            embedder.save()
            print(f"{organ} {row['volume_id']} done", file=sys.stderr, flush=True)
    text = report(found)
    (out / "orientation.json").write_text(json.dumps([a._asdict() for a in found], indent=1))
    (out / "orientation.md").write_text(text)
    print(text)


def table_of_cases(data: Path) -> list[dict[str, str]]:
    """Volumes and pictures; pictures, which only stand in the way here, have no modality."""
    volumes = list(csv.DictReader((data / "volumes.csv").open()))
    pictures = [
        {
            "path": row["path"],
            "volume_id": row["path"],
            "patient_id": row["path"],
            "organ": row["label"],
            "region": row["label"],
            "modality": "",
            "split": row["split"],
        }
        for row in csv.DictReader((data / "images.csv").open())
    ]
    return volumes + pictures


def built(
    crop: str, cases: Sequence[dict[str, str]], data: Path, out: Path, embedder: Remembered
) -> Path:
    index = out / f"index-{crop}"
    if not index.exists():
        table = out / "cases.csv"
        with table.open("w", newline="") as file:
            columns = ["path", "volume_id", "patient_id", "modality", "region", "organ", "split"]
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(cases)
        build_index(
            data,
            index,
            table=table,
            embedder=embedder,
            where={"split": "database"},
            slices=SlicePolicy(crop=crop),
            skip_bad=True,  # an empty picture
            progress=ProgressBar(quiet=False),
        )
    return index


class Answer(NamedTuple):
    """What one query found; `right` is 0..1."""

    query: str
    lie: str
    crop: str
    searched: str
    mode: str
    right: float
    orientation: str


def asked(
    index: Index,
    volume: Volume,
    kind: Mapping[str, tuple[str, str]],
    wanted: tuple[str, str],
    query: str,
    lie: str,
    crop: str,
) -> list[Answer]:
    """A query in every mode, as it lies and with any orientation."""
    count = volume.grid.shape[slice_axis(volume.grid, "acquisition")]
    middle = Selection(slices=(count // 4, max(count // 4, 3 * count // 4 - 1)))
    answers = []
    for searched in SEARCHED:
        embedded = index.query_embeddings(volume, orientation=searched)
        for mode in MODES:
            select = middle if mode == "slice" else Selection()
            hits = index.search(embedded, mode=mode, k=1, select=select).hits
            right = float(np.mean([kind[hit.volume_id] == wanted for hit in hits]))
            answers.append(Answer(query, lie, crop, searched, mode, right, embedded.orientation))
    return answers


def report(found: Sequence[Answer]) -> str:
    """A table of the shares of right first volumes, and how often which orientation was chosen."""
    ways = [(crop, searched) for crop in CROPS for searched in SEARCHED]
    names = [f"{'body' if crop == 'body' else 'whole'}, {searched}" for crop, searched in ways]
    lines = [
        "| query | lies | mode | queries | " + " | ".join(names) + " |",
        "|" + "---|" * (4 + len(names)),
    ]
    for query, lie, mode in dict.fromkeys((a.query, a.lie, a.mode) for a in found):
        own = [a for a in found if (a.query, a.lie, a.mode) == (query, lie, mode)]
        groups = [[a.right for a in own if (a.crop, a.searched) == way] for way in ways]
        cells = [f"{np.mean(group):.2f}" for group in groups]
        lines.append(f"| {query} | {lie} | {mode} | {len(groups[0])} | " + " | ".join(cells) + " |")
    lines += ["", "Orientations that `any` chose for queries as they are:", ""]
    upright = [a for a in found if (a.lie, a.searched, a.mode) == ("as stored", "any", MODES[0])]
    for query, crop in dict.fromkeys((a.query, a.crop) for a in upright):
        chosen = [a.orientation for a in upright if (a.query, a.crop) == (query, crop)]
        counted = ", ".join(f"{n} {chosen.count(n)}" for n in ORIENTATIONS if n in chosen)
        lines.append(f"- {query}, crop {crop}: {counted}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
