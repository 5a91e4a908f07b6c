"""The Medical Segmentation Decathlon: imagesTr, labelsTr and dataset.json of each task.

The unlabelled images of a task (imagesTs) are left out: an index is made of annotated cases.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medretrieval.errors import InputError
from medretrieval.index.cases import MASK_SUFFIXES, split_suffix
from medretrieval.recipes.rows import Row, folders
from medretrieval.types import Progress

_FILE = "dataset.json"
_TASK = re.compile(r"task0*(\d+)_", re.IGNORECASE)
# By the number in the name of the folder; dataset.json does not say it.
_REGIONS = {
    **{1: "head", 2: "chest", 3: "abdomen", 4: "head", 5: "pelvis"},
    **{6: "chest", 7: "abdomen", 8: "abdomen", 9: "abdomen", 10: "abdomen"},
}
_MR = re.compile(r"MRI?|T1.*|T2.*|FLAIR|ADC|DWI|PD", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class _Task:
    folder: Path
    channels: tuple[str, ...]
    names: Mapping[int, str]
    pairs: tuple[tuple[Path, Path], ...]

    @property
    def title(self) -> str:
        """The name of the task: "Heart" of "Task02_Heart"."""
        return _TASK.sub("", self.folder.resolve().name)

    @property
    def region(self) -> str:
        match = _TASK.match(self.folder.resolve().name)
        return _REGIONS.get(int(match[1]), "") if match else ""


def read(source: Path, beside: Path, progress: Progress) -> list[Row]:
    """Return a row for each annotated volume, and for each channel of a 4-D volume.

    A structure keeps its name in dataset.json. If two tasks in one table call different structures
    by the same name ("cancer"), the task goes in front ("Lung cancer").

    Raises:
        InputError: no dataset.json, or not one of this layout.
    """
    tasks = [_task(folder) for folder in _tasks(source)]
    users: dict[str, set[str]] = defaultdict(set)
    for task in tasks:
        for name in task.names.values():
            users[name.casefold()].add(task.title)
    rows: list[Row] = []
    for number, task in enumerate(tasks, start=1):
        names = {
            value: f"{task.title} {name}" if len(users[name.casefold()]) > 1 else name
            for value, name in task.names.items()
        }
        for image, mask in task.pairs:
            rows += _rows(task, image, mask, names)
        progress(number, len(tasks), f"reading {task.folder.name}")
    return rows


def _tasks(source: Path) -> list[Path]:
    """The folders with a dataset.json: `source`, or those in it."""
    if (source / _FILE).is_file():
        return [source]
    found = [p for p in folders(source) if (p / _FILE).is_file()] if source.is_dir() else []
    if not found:
        raise InputError(
            f"{source} has no {_FILE}, nor has a folder in it; expected a task of the decathlon as "
            "it is unpacked (Task02_Heart with dataset.json, imagesTr and labelsTr), or the folder "
            "that holds such tasks"
        )
    return found


def _task(folder: Path) -> _Task:
    path = folder / _FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        channels = _by_number(data["modality"])
        names = _by_number(data["labels"])
        pairs = tuple(
            (folder / entry["image"], folder / entry["label"]) for entry in data["training"]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no {_FILE} of the decathlon ({type(error).__name__}: {error}); expected "
            '"modality" and "labels" as number -> name, and "training" as a list of image and label'
        ) from None
    if not pairs:
        raise InputError(f"{path} lists no training images; there is nothing to index")
    return _Task(
        folder=folder,
        channels=tuple(name for _, name in sorted(channels.items())),
        names={value: name for value, name in names.items() if value > 0},
        pairs=pairs,
    )


def _by_number(data: Any) -> dict[int, str]:
    return {int(number): str(name).strip() for number, name in data.items()}


def _rows(task: _Task, image: Path, mask: Path, names: Mapping[int, str]) -> list[Row]:
    case = split_suffix(image.name, MASK_SUFFIXES)[0]
    several = len(task.channels) > 1
    return [
        Row(
            path=image,
            mask=mask,
            volume_id=f"{case}_{protocol}" if several else case,
            patient_id=case,
            modality=_modality(protocol),
            region=task.region,
            names=names,
            channel=number if several else None,
            extra={
                "task": task.folder.resolve().name,
                "protocol": protocol if several else "",
                "split": "train",
            },
        )
        for number, protocol in enumerate(task.channels)
    ]


def _modality(protocol: str) -> str:
    """The DICOM code of what dataset.json calls a modality; empty where it is not known."""
    if protocol.upper() == "CT":
        return "CT"
    return "MR" if _MR.fullmatch(protocol) else ""
