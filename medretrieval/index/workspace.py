"""The folder of an unfinished build: what is done stays done, whatever kills the process.

`.<out>.partial/` beside the output holds a lock, the settings, and one parquet file for each batch
that completed one or more cases. A file is written under another name, synchronised to the disk and
renamed, so it is there completely or not at all. No patient identifier is written here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medretrieval.errors import MedRetrievalError, UsageError
from medretrieval.index.stream import StoredSlice

logger = logging.getLogger(__name__)

_LOCK = "lock"
_SETTINGS = "settings.json"
_PARTS = "parts"
_STAGE = "stage"
_META = b"medretrieval"


@dataclass(frozen=True, eq=False, kw_only=True)
class DoneCase:
    """A case with its embeddings.

    Attributes:
        key: `Case.key`.
        embeddings: (number of slices, dim) float32.
    """

    key: str
    modality: str
    slices: Sequence[StoredSlice]
    embeddings: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class _Place:
    path: Path
    start: int
    rows: int
    modality: str


class Workspace:
    """The partial folder of one output, locked for this process.

    Attributes:
        names: name -> mask value, as given to the structures in the finished cases.
        stage: folder in which the index is put together; empty at the start.

    Raises:
        UsageError: another process is building the same output.
        MedRetrievalError: the folder cannot be written.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.folder = out.with_name(f".{out.name}.partial")
        self.stage = self.folder / _STAGE
        self.names: dict[str, int] = {}
        self._places: dict[str, _Place] = {}
        self._open_part: tuple[Path, Any] | None = None
        with writing(self.folder):
            self._lock = lock_folder(self.folder, out)
        try:
            with writing(self.folder):
                self._resume(settings)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._places:
            self.remove()  # nothing to go on with
        self._lock.close()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def rows(self, key: str) -> int:
        """Return the number of slices of a finished case."""
        return self._places[key].rows

    def remove(self) -> None:
        """Delete the folder; the build is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _resume(self, settings: Mapping[str, Any]) -> None:
        text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        path = self.folder / _SETTINGS
        same = False
        if path.exists():
            try:
                same = json.loads(path.read_text(encoding="utf-8"))["sha256"] == digest
            except (ValueError, KeyError, TypeError):
                same = False
        if not same:
            if path.exists():
                logger.warning("%s is of a build with other settings: starting anew", self.folder)
            for name in (_SETTINGS, _PARTS):
                _delete(self.folder / name)
        _delete(self.stage)
        self.stage.mkdir()
        parts = self.folder / _PARTS
        parts.mkdir(exist_ok=True)
        if not same:
            content = json.dumps({"sha256": digest, "settings": settings}, indent=2)
            _replace(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))
        for part in sorted(parts.iterdir()):
            if part.suffix == ".parquet":
                self._read_places(part)
            else:
                part.unlink()
        if self._places:
            logger.info("resuming: %d cases are done already", len(self._places))

    def _read_places(self, part: Path) -> None:
        try:
            meta = json.loads(pq.read_schema(part).metadata[_META])
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            logger.warning("%s is damaged; its cases are embedded again", part)
            part.unlink()
            return
        start = 0
        for case in meta["cases"]:
            self._places[case["key"]] = _Place(
                path=part, start=start, rows=case["rows"], modality=case["modality"]
            )
            start += case["rows"]
        self.names.update(meta["names"])

    def write(self, cases: Sequence[DoneCase], names: Mapping[int, str]) -> None:
        """Store finished cases; on return they outlive a crash of the machine.

        Args:
            names: mask value -> name, at least for the values in these cases.
        """
        slices = [s for case in cases for s in case.slices]
        used = sorted({value for s in slices for value in s.values})
        meta = {
            "cases": [{"key": c.key, "rows": len(c.slices), "modality": c.modality} for c in cases],
            "names": {names[value]: value for value in used},
        }
        embeddings = np.concatenate([case.embeddings for case in cases])
        table = pa.table(
            {
                "slice_index": pa.array([s.slice_index for s in slices], pa.int64()),
                "position_mm": pa.array([s.position_mm for s in slices], pa.float64()),
                "spacing": pa.array([s.spacing for s in slices], pa.list_(pa.float64())),
                "values": pa.array([s.values for s in slices], pa.list_(pa.int64())),
                "image": pa.array([s.image for s in slices], pa.binary()),
                "mask": pa.array([s.mask for s in slices], pa.binary()),
                "embedding": pa.FixedSizeListArray.from_arrays(
                    pa.array(embeddings.ravel()), embeddings.shape[1]
                ),
            }
        ).replace_schema_metadata({_META: json.dumps(meta)})
        path = self.folder / _PARTS / f"{cases[0].key}.parquet"

        def save(temporary: Path) -> None:
            pq.write_table(table, temporary, compression="none", use_dictionary=False)

        with writing(path):
            _replace(path, save)
        self._read_places(path)

    def read(self, key: str) -> DoneCase:
        """Return a finished case. Cases stored together are read together: ask in their order."""
        place = self._places[key]
        if self._open_part is None or self._open_part[0] != place.path:
            self._open_part = (place.path, pq.read_table(place.path, use_threads=False))
        table = self._open_part[1].slice(place.start, place.rows)
        vectors = table.column("embedding").combine_chunks()
        rows = table.drop_columns(["embedding"]).to_pylist()
        return DoneCase(
            key=key,
            modality=place.modality,
            slices=[
                StoredSlice(
                    slice_index=row["slice_index"],
                    position_mm=row["position_mm"],
                    spacing=None if row["spacing"] is None else tuple(row["spacing"]),
                    values=tuple(row["values"]),
                    image=row["image"],
                    mask=row["mask"],
                )
                for row in rows
            ],
            embeddings=vectors.flatten().to_numpy().reshape(place.rows, -1),
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into errors that say what to do.

    Raises:
        MedRetrievalError: no space, no permission, or another failure to write at `path`.
    """
    try:
        yield
    except OSError as error:
        place = path.parent
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MedRetrievalError(
                f"no space left while writing {path}; free some space at {place} and run the same "
                "build again, it goes on where it stopped"
            ) from error
        raise MedRetrievalError(
            f"cannot write {path} ({error.strerror or error}); choose an output that can be written"
        ) from error


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, outlive a crash of the machine."""
    if path.is_dir() and sys.platform == "win32":
        return  # folders cannot be opened there; renames are journalled
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(path: Path, save: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        save(temporary)
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def lock_folder(folder: Path, out: Path) -> IO[bytes]:
    """Create the folder and lock it; the system releases the lock when the process ends.

    Args:
        out: what is worked on, for the message.

    Raises:
        UsageError: another process has locked it.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _LOCK
        try:
            file = open(path, "ab")
        except FileNotFoundError:
            continue  # the other build finished and removed the folder just now
        try:
            _lock_file(file)
        except OSError as error:
            file.close()
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                raise
            raise UsageError(
                f"another process is building {out} now; wait for it, or choose another output"
            ) from None
        # A build that finished meanwhile has deleted the folder under the open file.
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass
        file.close()


def _lock_file(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
