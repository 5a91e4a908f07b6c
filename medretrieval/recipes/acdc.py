"""ACDC: a folder a patient, with the end-diastolic and end-systolic frames and their masks."""

from __future__ import annotations

import re
from pathlib import Path

from medretrieval.errors import InputError
from medretrieval.recipes.rows import Row, folders
from medretrieval.types import Progress

_LABELS = {1: "RV", 2: "myocardium", 3: "LV"}
_PATIENT = re.compile(r"patient\d+")
_FRAME = re.compile(r"(patient\d+)_frame(\d+)(\.nii(?:\.gz)?)")
_PARTS = ("training", "testing")
_DEPTH = 3  # "ACDC/database/training/patient001"


def read(source: Path, beside: Path, progress: Progress) -> list[Row]:
    """Return a row for each annotated frame; `phase` is ED or ES and `group` the diagnosis.

    Raises:
        InputError: no patients, a patient without frames or masks, or an Info.cfg that does not
            go with the frames.
    """
    patients = _patients(source, _DEPTH)
    if not patients:
        raise InputError(
            f"{source} has no folders patient001, patient002, ..., there or in training and "
            "testing; expected ACDC as it is unpacked"
        )
    rows: list[Row] = []
    for number, folder in enumerate(patients, start=1):
        rows += _frames(folder)
        progress(number, len(patients), f"reading {folder.name}")
    return rows


def _patients(folder: Path, depth: int) -> list[Path]:
    inside = folders(folder) if folder.is_dir() else []
    found = [p for p in inside if _PATIENT.fullmatch(p.name)]
    if found or not depth:
        return found
    return [patient for p in inside for patient in _patients(p, depth - 1)]


def _frames(folder: Path) -> list[Row]:
    info = _info(folder / "Info.cfg")
    rows = []
    for path in sorted(folder.iterdir()):
        match = _FRAME.fullmatch(path.name)
        if match is None:
            continue
        stem, number, suffix = match[1], int(match[2]), match[3]
        phase = next((name for name in ("ED", "ES") if info.get(name) == str(number)), "")
        rows.append(
            Row(
                path=path,
                mask=_mask(path, f"{stem}_frame{match[2]}_gt", suffix),
                volume_id=f"{stem}_frame{match[2]}",
                patient_id=stem,
                modality="MR",
                region="chest",
                names=_LABELS,
                extra={
                    "phase": phase,
                    "group": info.get("Group", ""),
                    "split": folder.parent.name if folder.parent.name in _PARTS else "",
                },
            )
        )
    if not rows:
        raise InputError(
            f"{folder} has no frames; expected files such as {folder.name}_frame01.nii.gz with "
            f"{folder.name}_frame01_gt.nii.gz"
        )
    if info and not any(row.extra["phase"] for row in rows):
        raise InputError(
            f"{folder / 'Info.cfg'} names the frames ED {info.get('ED')} and ES {info.get('ES')}, "
            f"but the folder has {', '.join(row.path.name for row in rows)}; unpack it again"
        )
    return rows


def _mask(path: Path, stem: str, suffix: str) -> Path:
    """The mask beside a frame; packed or not, whatever the frame is."""
    other = ".nii" if suffix == ".nii.gz" else ".nii.gz"
    packed, plain = path.with_name(stem + suffix), path.with_name(stem + other)
    return plain if plain.is_file() and not packed.is_file() else packed


def _info(path: Path) -> dict[str, str]:
    """What Info.cfg says, key -> text; nothing if there is none."""
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}
