"""How the versions of an index differ from one another, as its manifest tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from medretrieval.errors import UsageError
from medretrieval.index.fields import Fields

MAX_CHANGES = 1000
MAX_NOTE = 500
MAX_EMBEDDER = 200
_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class Change:
    """How a version of an index differs from the one before.

    Attributes:
        version: the version that this made, 2 or more.
        date: the day, as 2026-11-27.
        volumes, slices: how many were added.
        replaced: how many volumes of the version before were left out for them.
        removed: how many volumes of the version before were taken out for good.
        embedder: name of the one whose embeddings were added, None if none were.
        dropped: name of the one whose embeddings were taken out, None if none were.
        note: what the author says of it, may be empty.
    """

    version: int
    date: str
    volumes: int = 0
    slices: int = 0
    replaced: int = 0
    removed: int = 0
    embedder: str | None = None
    dropped: str | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-able data; those that are newer than the list only if used."""
        return {
            "version": self.version,
            "date": self.date,
            "volumes": self.volumes,
            "slices": self.slices,
            "replaced": self.replaced,
            **({"removed": self.removed} if self.removed else {}),
            **({} if self.embedder is None else {"embedder": self.embedder}),
            **({} if self.dropped is None else {"dropped": self.dropped}),
            "note": self.note,
        }

    def words(self) -> str:
        """Return the change on one line.

        >>> print(Change(version=2, date="2026-11-27", volumes=1, slices=40, note="heart").words())
        version 2 of 2026-11-27: 1 volume (40 slices) added; heart
        """
        return f"version {self.version} of {self.date}: {'; '.join(self._parts())}"

    def _parts(self) -> list[str]:
        parts = []
        if self.volumes or self.slices:
            text = f"{_counted(self.volumes, 'volume')} ({_counted(self.slices, 'slice')}) added"
            if self.replaced:
                older = "an older one" if self.replaced == 1 else "older ones"
                text += f", {self.replaced} of them in place of {older}"
            parts.append(text)
        elif self.replaced:
            parts.append(f"{_counted(self.replaced, 'volume')} replaced")
        if self.removed:
            parts.append(f"{_counted(self.removed, 'volume')} removed")
        if self.embedder is not None:
            parts.append(f"embeddings of {self.embedder} added")
        if self.dropped is not None:
            parts.append(f"embeddings of {self.dropped} taken out")
        return [*parts, *([self.note] if self.note else [])]

    @classmethod
    def read(cls, fields: Fields) -> Change:
        """Return the change that a manifest describes.

        Raises:
            IndexFormatError: a field is missing, of another type or out of range, or nothing was
                changed.
        """
        change = cls(
            version=fields.positive("version"),
            date=fields.get("date", str),
            volumes=fields.get("volumes", int),
            slices=fields.get("slices", int),
            replaced=fields.get("replaced", int),
            removed=fields.get("removed", int) if "removed" in fields.data else 0,
            embedder=fields.get("embedder", str) if "embedder" in fields.data else None,
            dropped=fields.get("dropped", str) if "dropped" in fields.data else None,
            note=fields.get("note", str),
        )
        try:
            date.fromisoformat(change.date)
        except ValueError:
            raise fields.wrong("date", f"is {change.date!r}, expected a day") from None
        counts = (change.volumes, change.slices, change.replaced, change.removed)
        if min(counts) < 0:
            raise fields.wrong("volumes", "or another count is negative")
        if len(change.note) > MAX_NOTE:
            raise fields.wrong("note", f"is longer than {MAX_NOTE} characters")
        for what, name in (("embedder", change.embedder), ("dropped", change.dropped)):
            if name is not None and not 1 <= len(name) <= MAX_EMBEDDER:
                raise fields.wrong(what, f"is not a name of 1 to {MAX_EMBEDDER} characters")
        if not any(counts) and change.embedder is None and change.dropped is None:
            raise fields.wrong("volumes", "is 0, and nothing else was changed either")
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


def and_change(changes: Sequence[Change], change: Change) -> tuple[Change, ...]:
    """Return the changes with a further one; of too many the oldest go."""
    return (*changes, change)[-MAX_CHANGES:]


def changelog(changes: Sequence[Change]) -> list[str]:
    """Return the changes in words, the last first; of many the last ones and how many there are."""
    lines = [change.words() for change in reversed(changes[-_LISTED:])]
    more = len(changes) - len(lines)
    return [*lines, f"{more} older ones, listed in manifest.json"] if more else lines


def check_note(note: str) -> None:
    """Refuse a note that no change can carry.

    Raises:
        UsageError: it is too long, or not on one line.
    """
    if len(note) > MAX_NOTE or not (note.isprintable() or not note):
        raise UsageError(f"the note has to be at most {MAX_NOTE} printable characters on one line")


def day_of(day: str | None) -> str:
    """Return the day of a change; None is today (UTC).

    Raises:
        UsageError: it is no day.
    """
    if day is None:
        return datetime.now(UTC).date().isoformat()
    try:
        return date.fromisoformat(day).isoformat()
    except ValueError:
        raise UsageError(f"the day {day!r} is none; expected one such as 2026-11-27") from None


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
