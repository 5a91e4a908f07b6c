"""RadImageNet: lists of images with a class each, and the folder radiology_ai with the images."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from medretrieval.errors import InputError
from medretrieval.index.cases import IMAGE_SUFFIXES, split_suffix
from medretrieval.recipes.rows import Row, folders, read_csv
from medretrieval.types import Progress

_LIST = re.compile(r".*_(train|val|test)\.csv", re.IGNORECASE)
_TOP = "radiology_ai"
_MODALITIES = ("CT", "MR", "US")
_REGIONS = {"abd": "abdomen", "af": "ankle-foot"}  # others are words already


def read(source: Path, beside: Path, progress: Progress) -> list[Row]:
    """Return a row for each image of the lists; it is not known which are of one patient.

    Raises:
        InputError: no lists, or no folder radiology_ai where they could point to.
    """
    lists = _lists(source)
    root = _root(source)
    rows: list[Row] = []
    for number, (path, split) in enumerate(lists, start=1):
        rows += [
            _row(root, entry["filename"], entry["label"], split, path)
            for entry in read_csv(path, needed=("filename", "label"))
        ]
        progress(number, len(lists), f"reading {path.name}")
    return rows


def _lists(source: Path) -> list[tuple[Path, str]]:
    places = [source, *folders(source)] if source.is_dir() else []
    found = []
    for place in places:
        for path in sorted(place.glob("*.csv")):
            match = _LIST.fullmatch(path.name)
            if match:
                found.append((path, match[1].lower()))
    if not found:
        raise InputError(
            f"{source} has no lists of images; expected RadiologyAI_train.csv, "
            "RadiologyAI_val.csv and RadiologyAI_test.csv, there or in a folder in it"
        )
    return found


def _root(source: Path) -> Path:
    """The folder that the names in the lists start from."""
    for place in (source, *folders(source)):
        if (place / _TOP).is_dir():
            return place
    if source.resolve().name == _TOP:
        return source.resolve().parent
    raise InputError(
        f"{source} has no folder {_TOP} with the images; expected it there or in a folder in it"
    )


def _row(root: Path, name: str, label: str, split: str, where: Path) -> Row:
    # radiology_ai/CT/abd/normal/1.png, but radiology_ai/US/gb/1.png
    parts = PurePosixPath(name).parts
    if len(parts) < 4 or parts[0] != _TOP or ".." in parts or not label:
        raise InputError(
            f"{where}: {name!r} with the label {label!r} is no image of RadImageNet; expected such "
            f"as {_TOP}/CT/abd/normal/1.png with a label"
        )
    anatomy = parts[2] if len(parts) > 4 else ""
    return Row(
        path=root / name,
        volume_id=split_suffix(name, IMAGE_SUFFIXES)[0],
        modality=parts[1] if parts[1] in _MODALITIES else "",
        region=_REGIONS.get(anatomy, anatomy),
        labels=(label,),
        extra={"split": split},
    )
