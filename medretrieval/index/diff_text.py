"""The difference of two indexes in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from medretrieval.index.row_changes import VolumeChange

if TYPE_CHECKING:
    from medretrieval.index.comparing import IndexDiff, ValueChange

T = TypeVar("T")

_LISTED = 20
_WIDTH = 80  # characters of a value


def diff_text(found: IndexDiff) -> str:
    """Return the lines that `medretrieval diff` prints."""
    return "\n".join(_lines(found))


def _lines(found: IndexDiff) -> Iterator[str]:
    if found.equal:
        yield f"equal: {found.same} volumes, every file the same"
        return
    if found.same_content:
        yield "the same rows and settings, in other files"
    told = [s for s in found.settings if not s.field.endswith("index.reason")]  # it says numbers
    yield from _part("settings", told, lambda s: _change(s.field, s.old, s.new))
    yield from _part("changes since then", found.changes_added, str)
    yield from _part("changes that the second does not have", found.changes_removed, str)
    yield from _counted("counts", found.counts)
    yield (
        f"volumes: {len(found.added)} added, {len(found.removed)} removed, "
        f"{len(found.changed)} changed, {found.same} the same"
    )
    yield from _part("  added", found.added, str, "  ")
    yield from _part("  removed", found.removed, str, "  ")
    yield from _part("  changed", found.changed, _volume, "  ")
    if found.reordered:
        yield "  those of both come in another order"
    yield from _embeddings(found)
    yield from _patients(found)
    yield from _part("mask values", found.values, _value)
    yield from _counted("labels (slices)", found.labels)
    yield from _counted("modalities (slices)", found.modalities)
    yield from _counted("regions (slices)", found.regions)
    files = found.files
    yield (
        f"files: {files.same} the same, {len(files.changed)} changed, {len(files.added)} added, "
        f"{len(files.removed)} removed; {_size(files.bytes)} to transfer"
    )
    yield from _part("  changed", files.changed, str, "  ")
    yield from _part("  added", files.added, str, "  ")
    yield from _part("  removed", files.removed, str, "  ")


def _part(
    title: str, entries: Sequence[T], line: Callable[[T], str], indent: str = ""
) -> Iterator[str]:
    """A title and the first entries; nothing where there are none."""
    if not entries:
        return
    yield f"{title}:"
    for entry in entries[:_LISTED]:
        yield f"{indent}  {_plain(line(entry))}"
    if len(entries) > _LISTED:
        yield f"{indent}  and {len(entries) - _LISTED} more"


def _counted(title: str, numbers: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    def line(item: tuple[str, tuple[int, int]]) -> str:
        name, (old, new) = item
        return f"{name}: {old} -> {new} ({new - old:+d})"

    yield from _part(title, list(numbers.items()), line)


def _change(field: str, old: Any, new: Any) -> str:
    if field == "version":  # the first one has none
        old, new = old or 1, new or 1
    elif field.startswith("embedders"):  # everything of each of them
        old, new = (", ".join(v) if isinstance(v, Mapping) else v for v in (old, new))
    return f"{field}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def _volume(change: VolumeChange) -> str:
    old, new = change.slices
    parts = [f"slices, {old} -> {new}" if part == "slices" else part for part in change.parts]
    if change.distance and "embeddings" in parts:
        parts[parts.index("embeddings")] = f"embeddings by up to {change.distance:.2g}"
    return f"{change.volume_id}: {', '.join(parts)}"


def _value(change: ValueChange) -> str:
    old, new = change.old, change.new
    if old is None or new is None:
        value, name = old or new or (0, "")
        return f"{value} {name}: {'added' if old is None else 'removed'}"
    if old[0] == new[0]:
        return f"{old[0]} {old[1]}: now called {new[1]}"
    return f"{old[0]} {old[1]}: now {new[0]}"


def _embeddings(found: IndexDiff) -> Iterator[str]:
    for compared in found.embeddings:
        how = f"differ by up to {compared.distance:.2g} (cosine distance)"
        shown = how if compared.distance else "the same wherever both have the slice"
        yield f"embeddings of {_plain(compared.embedder)}: {shown}"
    yield from (
        f"embeddings of {_plain(name)}: not compared, one index has none of this space"
        for name in found.apart
    )


def _patients(found: IndexDiff) -> Iterator[str]:
    if found.patients_added is None or found.patients_removed is None:
        yield "patients: not compared; under two names of an index one patient has two pseudonyms"
        return
    if found.patients_added or found.patients_removed:
        yield (
            f"patients: {len(found.patients_added)} added, {len(found.patients_removed)} removed"
        )
        yield from _part("  added", found.patients_added, str, "  ")
        yield from _part("  removed", found.patients_removed, str, "  ")


def _size(count: int) -> str:
    """A size in words.

    >>> _size(12), _size(1_234_567)
    ('12 bytes', '1.2 MB')
    """
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def _plain(text: str) -> str:
    """Text of an index that may be anybody's, without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)
