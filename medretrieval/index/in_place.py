"""Changing an index folder in place, so that it is valid at any moment, whatever kills the process.

Large files are added and taken out this way, where a new version beside the old one would be a copy
of all the rest. What the manifest lists may be missing for a moment if it can be done without (see
`verified.check_files`); what it does not list must not be there. So a file is named first and
appears then, and vanishes before its name does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medretrieval.index.card import with_card
from medretrieval.index.changes import Change, and_change, day_of
from medretrieval.index.files import CARD, MANIFEST, file_entry
from medretrieval.index.manifest import Manifest
from medretrieval.index.workspace import lock_folder, sync, writing

_WORK = ".memories"  # hidden, so that it is no part of the index


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[Path]:
    """A hidden folder in an index for unfinished files, while no other process changes the index.

    Raises:
        UsageError: another process changes it now.
    """
    work = folder / _WORK
    with writing(work):
        lock = lock_folder(work, folder)
    with lock:
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


def replace_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of an index anew, at once."""
    _replace(folder, MANIFEST, manifest.dumps())


def publish(
    folder: Path,
    manifest: Manifest,
    *,
    arriving: Mapping[str, Path] | None = None,
    leaving: Iterable[str] = (),
    repo: str | None = None,
) -> Manifest:
    """Make `manifest` that of the index, with a new card, and move files in and out.

    Args:
        manifest: its entries of the files that arrive and leave are made here.
        arriving: name in the index -> complete file on the same disk; they appear in this order.
            All may be missing for a moment: embeddings that are not opened, or derived files.
        leaving: names of such files.
        repo: for the card, see `card.dataset_card`.

    Returns:
        The manifest as it is written.
    """
    arriving = dict(arriving or {})
    leaving = set(leaving)
    files = {name: entry for name, entry in manifest.files.items() if name not in leaving}
    files |= {name: file_entry(staged) for name, staged in arriving.items()}
    manifest, text = with_card(dataclasses.replace(manifest, files=files), repo=repo)
    card = folder / f".{CARD}.tmp"  # hidden files are no part of an index
    card.write_bytes(text)
    sync(card)
    # A card, or a stray search structure, that is not the one listed next must not be there.
    for name in (CARD, *leaving, *arriving):
        (folder / name).unlink(missing_ok=True)
    sync(folder)
    replace_manifest(folder, manifest)
    for name, staged in {CARD: card, **arriving}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        os.replace(staged, folder / name)
        sync((folder / name).parent)
    return manifest


def next_version(manifest: Manifest, *, day: str | None, **what: Any) -> Manifest:
    """The manifest of the next version, with one more change.

    Args:
        day: as for `changes.day_of`.
        **what: see `Change`.
    """
    change = Change(version=manifest.version + 1, date=day_of(day), **what)
    changes = and_change(manifest.changes, change)
    return dataclasses.replace(manifest, version=change.version, changes=changes)


def _replace(folder: Path, name: str, text: str) -> None:
    temporary = folder / f".{name}.tmp"  # hidden files are no part of an index
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        os.replace(temporary, folder / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(folder)
