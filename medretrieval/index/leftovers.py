"""What commands that were killed leave beside an index folder, and how it goes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from medretrieval.errors import MedRetrievalError
from medretrieval.index.publish import recover
from medretrieval.index.workspace import lock_folder, writing

# `append_slices` works in a folder with a random name, of which these are the only contents.
_RANDOM = "[a-z0-9_]{8}"
_WORK = {"added", ".added.partial", ".added.old"}
_LOCKED = ("partial", "push", "pull")  # folders of unfinished work, locked while it goes on


def settle(out: Path) -> None:
    """End the replacement of an index that was killed half-way: one index is there afterwards.

    Raises:
        UsageError: another process is writing it.
        MedRetrievalError: the old index cannot be deleted.
    """
    partial = _beside(out, "partial")
    if not _beside(out, "old").exists():
        return
    with writing(out):
        existed = partial.exists()
        with lock_folder(partial, out):
            recover(out)
        if not existed:
            shutil.rmtree(partial, ignore_errors=True)


def clear_leftovers(out: Path) -> None:
    """Delete everything beside an index that belongs to it: older versions, unfinished work.

    Raises:
        UsageError: another process is writing it.
        MedRetrievalError: something cannot be deleted.
    """
    settle(out)
    with writing(out):
        _clear(out, out)
        _clear(_beside(out, "added"), out)
        shutil.rmtree(_beside(out, "added"), ignore_errors=True)
        for folder in _work_folders(out):
            _clear(folder / "added", out)
            shutil.rmtree(folder, ignore_errors=True)
    left = leftovers(out)
    if left:
        raise MedRetrievalError(
            f"{', '.join(map(str, left))} cannot be deleted, and may show what was in {out}; "
            "delete it yourself"
        )


def leftovers(out: Path) -> list[Path]:
    """The files and folders that are there and that `clear_leftovers` deletes."""
    added = _beside(out, "added")
    known = [
        *(_beside(place, kind) for place in (out, added) for kind in ("old", *_LOCKED)),
        added,
    ]
    return [path for path in [*known, *_work_folders(out)] if path.exists()]


def _clear(place: Path, out: Path) -> None:
    """Delete what a command that wrote or read `place` left beside it, unless it is running."""
    for kind in _LOCKED:
        work = _beside(place, kind)
        if work.exists():
            with lock_folder(work, out):
                pass  # nobody is at work in it; an open file could not be deleted everywhere
            shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(_beside(place, "old"), ignore_errors=True)


def _beside(out: Path, kind: str) -> Path:
    return out.with_name(f".{out.name}.{kind}")


def _work_folders(out: Path) -> list[Path]:
    name = re.compile(rf"\.{re.escape(out.name)}\.{_RANDOM}")
    return [
        path
        for path in (sorted(out.parent.iterdir()) if out.parent.is_dir() else [])
        if name.fullmatch(path.name)
        and not path.is_symlink()
        and path.is_dir()
        and {entry.name for entry in path.iterdir()} <= _WORK
    ]
