"""What was added to an index when, as its manifest tells it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import date
from typing import Any

from medretrieval.index.fields import Fields

MAX_CHANGES = 1000
MAX_NOTE = 500


@dataclass(frozen=True, kw_only=True)
class Change:
    """How a version of an index differs from the one before.

    Attributes:
        version: the version that this made, 2 or more.
        date: the day, as 2026-11-27.
        volumes, slices: how many were added.
        replaced: how many volumes of the version before were left out for them.
        note: what the author says of it, may be empty.
    """

    version: int
    date: str
    volumes: int
    slices: int
    replaced: int = 0
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, fields: Fields) -> Change:
        """Return the change that a manifest describes.

        Raises:
            IndexFormatError: a field is missing or of another type.
        """
        change = cls(
            version=fields.positive("version"),
            date=fields.get("date", str),
            volumes=fields.positive("volumes"),
            slices=fields.positive("slices"),
            replaced=fields.get("replaced", int),
            note=fields.get("note", str),
        )
        try:
            date.fromisoformat(change.date)
        except ValueError:
            raise fields.wrong("date", f"is {change.date!r}, expected a day") from None
        if change.replaced < 0 or len(change.note) > MAX_NOTE:
            raise fields.wrong("replaced", "is negative, or the note is too long")
        return change


def read_changes(manifest: Fields) -> tuple[Change, ...]:
    """Return the changes of a manifest, none where it is older than they are.

    Raises:
        IndexFormatError: they are not a list of changes.
    """
    entries = manifest.get("changes", list) if "changes" in manifest.data else []
    if len(entries) > MAX_CHANGES or not all(isinstance(entry, dict) for entry in entries):
        raise manifest.wrong("changes", f"is not a list of at most {MAX_CHANGES} changes")
    return tuple(Change.read(Fields(entry, f"{manifest.where}: changes")) for entry in entries)
