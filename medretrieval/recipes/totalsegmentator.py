"""The TotalSegmentator data set: a folder a case, a file a structure; merged to a label map a case.

What a structure is called there is its name in the table. Its value in the merged maps is its place
among all names of the data set in alphabetical order, whatever version the data set is of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import InputError
from medretrieval.imaging import describe, same_grid, write_labels
from medretrieval.imaging.nifti import read_nifti
from medretrieval.index.cases import split_suffix
from medretrieval.recipes.rows import Row, folders, read_csv
from medretrieval.types import Grid, LabelVolume, Progress

_IMAGES = {"ct.nii.gz": "CT", "mri.nii.gz": "MR"}
_SUFFIX = ".nii.gz"
_STRUCTURES = "structures.json"  # beside the merged maps: what their values mean
# Words of meta.csv's study_type, in the order of the body.
_REGIONS = {"head": "head", "neck": "neck", "thorax": "chest", "abdomen": "abdomen"}
_REGIONS |= {"pelvis": "pelvis"}


@dataclass(frozen=True, kw_only=True)
class _Case:
    folder: Path
    image: Path
    modality: str
    masks: tuple[Path, ...]


def read(source: Path, beside: Path, progress: Progress) -> list[Row]:
    """Return a row for each case, after merging its masks into `beside`.

    Where two structures overlap the one that is smaller in this case is kept.

    Raises:
        InputError: no cases, a case without masks, or masks of different grids.
    """
    cases = _cases(source)
    meta = _meta(source / "meta.csv")
    names = sorted({_name(mask) for case in cases for mask in case.masks})
    values = {name: value for value, name in enumerate(names, start=1)}
    current = _prepare(beside, values)
    rows = []
    for number, case in enumerate(cases, start=1):
        merged = beside / f"{case.folder.name}{_SUFFIX}"
        if not (current and _newer(merged, case.masks)):
            _merge(case, values, merged)
        about = meta.get(case.folder.name, {})
        rows.append(
            Row(
                path=case.image,
                mask=merged,
                volume_id=case.folder.name,
                patient_id=case.folder.name,
                modality=case.modality,
                region=_region(about.get("study_type", "")),
                names={value: name for name, value in values.items()},
                extra={
                    "study_type": about.get("study_type", ""),
                    "split": about.get("split", ""),
                },
            )
        )
        progress(number, len(cases), f"merging masks of {case.folder.name}")
    return rows


def _cases(source: Path) -> list[_Case]:
    found = []
    for folder in folders(source) if source.is_dir() else []:
        image = next((folder / name for name in _IMAGES if (folder / name).is_file()), None)
        if image is None:
            continue
        inside = folder / "segmentations"
        masks = tuple(
            path
            for path in (sorted(inside.iterdir()) if inside.is_dir() else [])
            if path.name.endswith(_SUFFIX) and not path.name.startswith(".")
        )
        if not masks:
            raise InputError(
                f"{folder} has an image but no masks; expected {inside} with a file for each "
                "structure, such as liver.nii.gz"
            )
        found.append(_Case(folder=folder, image=image, modality=_IMAGES[image.name], masks=masks))
    if not found:
        raise InputError(
            f"{source} has no cases; expected folders s0000, s0001, ... with ct.nii.gz or "
            "mri.nii.gz and a folder segmentations, as the data set is unpacked"
        )
    return found


def _meta(path: Path) -> dict[str, dict[str, str]]:
    """What meta.csv says of each case; nothing if there is none."""
    if not path.is_file():
        return {}
    rows = read_csv(path, needed=("image_id",), delimiter=";")
    return {row["image_id"]: row for row in rows}


def _region(study_type: str) -> str:
    """The parts of the body that a study shows, as its type names them.

    >>> _region("ct thorax-abdomen-pelvis"), _region("ct polytrauma")
    ('chest-abdomen-pelvis', '')
    """
    words = set(re.findall(r"[a-z]+", study_type.lower()))
    return "-".join(region for word, region in _REGIONS.items() if word in words)


def _name(mask: Path) -> str:
    return split_suffix(mask.name, (_SUFFIX,))[0]


def _prepare(beside: Path, values: Mapping[str, int]) -> bool:
    """Make the folder of merged maps; return whether those in it already have these values."""
    path = beside / _STRUCTURES
    text = json.dumps(values, indent=1) + "\n"
    try:
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return True
        beside.mkdir(exist_ok=True)
        if not path.is_file() and any(beside.iterdir()):
            raise InputError(
                f"{beside} is there and holds something else than merged masks; move it away, or "
                "choose another name for the table"
            )
        path.write_text("{}", encoding="utf-8")  # a run that is killed here begins again
        for old in beside.glob(f"*{_SUFFIX}"):
            old.unlink()
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{beside} cannot be written: {error.strerror or error}") from error
    return False


def _newer(merged: Path, masks: Sequence[Path]) -> bool:
    if not merged.is_file():
        return False
    return merged.stat().st_mtime_ns >= max(mask.stat().st_mtime_ns for mask in masks)


def _merge(case: _Case, values: Mapping[str, int], out: Path) -> None:
    """Write one label map of all masks of a case."""
    grid: Grid | None = None
    places: dict[str, NDArray[np.int64]] = {}
    for path in case.masks:
        what = f"mask {path.name} of {case.folder.name}"
        mask = read_nifti(path, what, channel=None)
        grid = grid or mask.grid
        if not same_grid(mask.grid, grid):
            raise InputError(
                f"{what} is on another grid than {case.masks[0].name}: {describe(mask.grid)} and "
                f"{describe(grid)}; unpack the case again"
            )
        # Some are stored with a scaling that makes a one 1.00000006.
        inside = mask.voxels * mask.slope + mask.intercept > 0.5
        places[_name(path)] = np.flatnonzero(inside)
    assert grid is not None  # a case has masks
    voxels = np.zeros(grid.shape, np.uint16)
    for name in sorted(places, key=lambda name: (-len(places[name]), name)):
        voxels.reshape(-1)[places[name]] = values[name]
    labels = LabelVolume(voxels=voxels, grid=grid, names={v: n for n, v in values.items()})
    write_labels(labels, out, overwrite=True)
