"""Rows of a table of cases, and how they are written."""

from __future__ import annotations

import csv
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medretrieval.errors import InputError
from medretrieval.index.tabular import COLUMNS

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image or volume of a data set.

    Attributes:
        names: mask value -> name.
        labels: of the case as a whole.
        channel: of a 4-D volume.
        extra: further columns.
    """

    path: Path
    volume_id: str
    patient_id: str = ""
    mask: Path | None = None
    modality: str = ""
    region: str = ""
    names: Mapping[int, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    channel: int | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

    def cells(self, folder: Path) -> dict[str, str]:
        """Return column -> text, with paths relative to `folder`."""
        named = [f"{value}={_item(name)}" for value, name in sorted(self.names.items())]
        return {
            **self.extra,
            "path": _relative(self.path, folder),
            "mask": "" if self.mask is None else _relative(self.mask, folder),
            "volume_id": self.volume_id,
            "patient_id": self.patient_id,
            "modality": self.modality,
            "region": self.region,
            # An item with "=" would name a mask value.
            "labels": ";".join(
                [*named, *(_item(label).replace("=", ":") for label in self.labels)]
            ),
            "channel": "" if self.channel is None else str(self.channel),
        }


def _item(name: str) -> str:
    return " ".join(name.replace(";", ",").split())


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on another drive of Windows
        return path.resolve().as_posix()


def usable(rows: Sequence[Row], *, skip: bool, source: Path) -> list[Row]:
    """Return the rows whose files are there.

    Raises:
        InputError: a file is missing and not `skip`, or none is there.
    """
    there: list[Row] = []
    missing: list[Path] = []
    for row in rows:
        absent = [path for path in (row.path, row.mask) if path is not None and not path.is_file()]
        missing += absent
        if not absent:
            there.append(row)
    if missing and (not skip or not there):
        shown = ", ".join(map(str, missing[:_SHOWN]))
        raise InputError(
            f"{len(missing)} files that {source} lists are not there, such as {shown}; unpack the "
            "data set again" + ("" if skip else ", or leave those cases out with --skip-missing")
        )
    return there


def save(rows: Sequence[Row], out: Path, *, extra: Sequence[str]) -> None:
    """Write rows as a CSV table; it appears under its name when it is complete.

    Args:
        extra: columns beside those that every table has; empty where a row does not have them.

    Raises:
        InputError: the disk fails.
    """
    temporary = out.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with open(temporary, "x", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*COLUMNS, *extra], restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(row.cells(out.parent) for row in rows)
        os.replace(temporary, out)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_csv(path: Path, *, needed: Sequence[str], delimiter: str = ",") -> list[dict[str, str]]:
    """Read a list that a data set carries, as column -> trimmed text.

    Raises:
        InputError: not a table with the columns `needed`.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            rows = [{k: (v or "").strip() for k, v in row.items() if k} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table: {error}") from None
    absent = [name for name in needed if name not in header]
    if absent:
        raise InputError(
            f"{path} has no column {absent[0]!r}; expected {', '.join(needed)} separated by "
            f"{delimiter!r}, found {', '.join(header) or 'nothing'}"
        )
    return rows


def folders(source: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones (macOS leaves such in archives)."""
    return sorted(p for p in source.iterdir() if p.is_dir() and not p.name.startswith("."))
