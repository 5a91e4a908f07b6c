"""Whether the files of an index are those that its manifest lists.

Hashing a large index takes minutes, so that what was found right is remembered on this machine: a
small JSON file for each index folder in `folders.cache_dir()`. A record is worth something only
while the file is still the same: device, inode, size, time of change (ctime, which no program can
set) and time of modification. Losing the records is harmless: the files are hashed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medretrieval.errors import IndexFormatError
from medretrieval.folders import cache_dir
from medretrieval.index.files import (
    CARD,
    COLUMNS_FILE,
    EMBEDDINGS,
    MANIFEST,
    SLICES,
    FileEntry,
    is_derived,
    is_linked,
)
from medretrieval.index.manifest import Manifest
from medretrieval.index.pages import check_pages

logger = logging.getLogger(__name__)

Verify = Literal["changed", "full", "sizes"]

_FORMAT = 2  # a later version that checks more counts on; older records are then worth nothing
# File systems keep times in steps of up to 2 s: within them a file can change and keep its times.
_SETTLED_NS = 2_000_000_000
_MAX_BYTES = 8 << 20
_MAX_FILES = 20_000  # of an index; of one with more none is remembered
_MAX_RECORDS = 256  # index folders

State = tuple[int, int, int, int, int]  # device, inode, size, mtime_ns, ctime_ns


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """A file that was hashed; `norms` if its embeddings were also found to be unit vectors."""

    state: State
    sha256: str
    norms: bool = False


class Verified:
    """What is known of the files of one index folder.

    Args:
        folder: the index.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, _Seen] = {}
        self._new: dict[str, _Seen] = {}
        self._path: Path | None
        try:
            self._where = os.path.realpath(folder)
            self._path = _record(self._where)
        except (OSError, RuntimeError):  # such as a user without a home
            self._path = None
        else:
            self._seen = _read(self._path, self._where)

    def holds(self, name: str, sha256: str, *, norms: bool = False) -> bool:
        """Whether the file as it is now was found to have this hash, and unit vectors if `norms`.

        Args:
            name: path inside the index folder.
        """
        seen = self._new.get(name) or self._seen.get(name)
        if seen is None or seen.sha256 != sha256 or (norms and not seen.norms):
            return False
        # What links of the Hub's cache lead to; elsewhere links are refused, see `check_files`.
        return seen.state == _state(os.stat(self._folder / name))

    def check(self, name: str, entry: FileEntry) -> None:
        """Hash a file, and remember it if it is right.

        Raises:
            IndexFormatError: its hash is not that of `entry`, or it is of rows and would take much
                more memory than they need.
        """
        path = self._folder / name
        started = time.time_ns()
        with open(path, "rb") as file:
            before = os.fstat(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = os.fstat(file.fileno())
        if digest != entry.sha256:
            raise IndexFormatError(
                f"{path} was changed: its sha256 is not the one in {MANIFEST}; {_remedy(name)}"
            )
        if name == COLUMNS_FILE or name.startswith(SLICES):
            check_pages(path)
        if _state(before) == _state(after) and _settled(before, started):
            self._new[name] = _Seen(state=_state(before), sha256=digest)

    def note_norms(self, name: str) -> None:
        """Remember that the embeddings in this file, just read, are unit vectors."""
        seen = self._new.get(name) or self._seen.get(name)
        if seen is not None and not seen.norms and self.holds(name, seen.sha256):
            self._new[name] = _Seen(state=seen.state, sha256=seen.sha256, norms=True)

    def save(self) -> None:
        """Write what is new; if that fails it is hashed again the next time."""
        if not self._new or self._path is None:
            return
        # Another process may have added something since.
        self._seen = {**_read(self._path, self._where), **self._new}
        self._new = {}
        if len(self._seen) > _MAX_FILES:
            return
        files = {
            name: {"state": seen.state, "sha256": seen.sha256, "norms": seen.norms}
            for name, seen in self._seen.items()
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write(self._path, {"format": _FORMAT, "folder": self._where, "files": files})
            _prune(self._path.parent)
        except OSError as error:
            logger.debug("%s was not written: %s", self._path, error)


def forget(folder: Path) -> None:
    """Delete the record of an index folder: its files are hashed again when it is opened.

    Raises:
        OSError: it cannot be deleted.
    """
    with contextlib.suppress(RuntimeError):  # a user without a home has no records
        _record(os.path.realpath(folder)).unlink(missing_ok=True)


def _record(folder: str) -> Path:
    name = hashlib.sha256(folder.encode("utf-8", "surrogateescape")).hexdigest()
    return cache_dir() / "verified" / f"{name[:32]}.json"


def _remedy(name: str) -> str:
    """What to do about a file of an index that is not as it should be."""
    if name == CARD:
        return "make it again with `medretrieval card INDEX --write`, or delete it"
    if is_derived(name):
        return "delete it, it is derived and made again"
    return "fetch or build the index again"


def check_files(
    folder: Path,
    manifest: Manifest,
    verified: Verified,
    verify: Verify,
    *,
    blobs: Path | None = None,
) -> None:
    """Check that exactly the listed files are in the folder, with their sizes and hashes.

    What is derived may be missing, and so may the embeddings of other embedders.

    Args:
        verify: as for `store.open_store`.
        verified: remembers what was found right.
        blobs: see `files.is_linked`; given for the cache of the Hub, where any file may be missing,
            and is looked at when it is used.

    Raises:
        IndexFormatError: one is missing, a link, of another size or content, or not listed.
    """
    for name, entry in manifest.files.items():
        path = folder / name
        if is_linked(path, blobs, folder):
            raise IndexFormatError(
                f"{path} is a link; the files of an index must lie in its folder themselves"
            )
        if not path.is_file():
            missing = blobs is not None or _may_be_missing(name, manifest)
            if missing and not path.exists():
                continue
            raise IndexFormatError(f"{path} is missing; {_how_to_get(name, folder, manifest)}")
        if blobs is not None:
            continue
        size = path.stat().st_size
        if size != entry.bytes:
            raise IndexFormatError(
                f"{path} has {size} bytes, {MANIFEST} says {entry.bytes}; it is cut off or "
                f"changed; {_remedy(name)}"
            )
        if verify == "full" or (verify == "changed" and not verified.holds(name, entry.sha256)):
            verified.check(name, entry)
    if blobs is None:  # nothing but what was asked for by name comes into the cache
        _check_unlisted(folder, manifest.files)


def _may_be_missing(name: str, manifest: Manifest) -> bool:
    other = name.startswith(EMBEDDINGS) and name != manifest.embeddings_file
    return other or is_derived(name)


def _how_to_get(name: str, folder: Path, manifest: Manifest) -> str:
    """What to do about a file that is missing."""
    if name != manifest.embeddings_file or not manifest.others:
        return "fetch or build the index again"
    embedder = manifest.embedder.name
    there = [n for n, e in manifest.others.items() if (folder / e.embeddings_file).exists()]
    other = f", or open the index by another embedder ({', '.join(there)})" if there else ""
    return (
        f"it holds the embeddings by {embedder}. Fetch that file, or make it again (medretrieval "
        f"add-embedder {folder} --embedder {embedder}){other}"
    )


def _check_unlisted(folder: Path, files: Mapping[str, FileEntry]) -> None:
    for found in sorted(folder.rglob("*")):
        name = found.relative_to(folder).as_posix()
        # Hidden files (.gitattributes, download caches) are never read; nor is a stray index.faiss.
        if name.startswith(".") or "/." in name or name == MANIFEST or name.endswith(".faiss"):
            continue
        if found.is_symlink() or (not found.is_dir() and name not in files):
            raise IndexFormatError(
                f"{found} is not listed in {MANIFEST}; remove it, or fetch the index again"
            )


def _state(status: os.stat_result) -> State:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _settled(status: os.stat_result, now_ns: int) -> bool:
    # On Windows ctime is the time of creation, so that a changed file could pass for the old one.
    return sys.platform != "win32" and status.st_ctime_ns < now_ns - _SETTLED_NS


def _read(path: Path, folder: str) -> dict[str, _Seen]:
    """Return the record at `path`; nothing unless it is this user's own, whole and of `folder`."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
                return {}
            if sys.platform != "win32" and (
                status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            ):
                return {}  # somebody else could have written it
            data = json.loads(file.read(_MAX_BYTES))
        if data["format"] != _FORMAT or data["folder"] != folder:
            return {}
        return {name: _seen(entry) for name, entry in data["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _seen(entry: Any) -> _Seen:
    device, inode, size, mtime, ctime = (int(value) for value in entry["state"])
    return _Seen(
        state=(device, inode, size, mtime, ctime),
        sha256=str(entry["sha256"]),
        norms=entry["norms"] is True,
    )


def _write(path: Path, data: Mapping[str, Any]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(data, file)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _prune(folder: Path) -> None:
    """Keep the records that were written last."""
    records = [path for path in folder.iterdir() if path.suffix == ".json"]
    if len(records) <= _MAX_RECORDS:
        return
    for path in sorted(records, key=_age)[: len(records) - _MAX_RECORDS]:
        with contextlib.suppress(OSError):
            path.unlink()


def _age(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # another process was faster
        return 0
