"""Memories of annotated slices, computed once: in this process and, if asked, on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

logger = logging.getLogger(__name__)

DEFAULT_BYTES = 512 * 1024**2
DEFAULT_FOLDER_BYTES = 2 * 1024**3
_FORMAT = "medretrieval-memory-2"


@dataclass(frozen=True, eq=False)
class Memory:
    """What SAM 2 remembers of one label on one annotated slice.

    Stored as float16 (`half`) it takes half the room; the network computes in its own precision
    either way. tests/segmentation/test_half.py states what the rounding changes.

    Attributes:
        features: (C, h, w) float32 or float16, the memory encoder's output, on the CPU.
        pointer: (D,) of the same type, the object pointer (zeros in a network without pointers).
        foreground: (h, w) bool, where on the grid of `features` the label is, if only in part.
    """

    features: Tensor
    pointer: Tensor
    foreground: Tensor

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def half(self) -> Memory:
        """The same rounded to float16."""
        return replace(self, features=self.features.half(), pointer=self.pointer.half())

    def tensors(self) -> dict[str, Tensor]:
        """By name, contiguous, as they are written to a file."""
        return {name: getattr(self, name).contiguous() for name in _TENSORS}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Memory:
        """The inverse of `tensors`.

        Raises:
            ValueError: they are not those of a memory.
        """
        if tensors.keys() != set(_TENSORS):
            raise ValueError(f"{sorted(tensors)} instead of {sorted(_TENSORS)}")
        memory = cls(**tensors)
        shapes = (memory.features.ndim, memory.pointer.ndim)
        types = {memory.features.dtype, memory.pointer.dtype}
        if (
            shapes != (3, 1)
            or memory.foreground.shape != memory.features.shape[1:]
            or memory.foreground.dtype != torch.bool
            or types not in ({torch.float32}, {torch.float16})
        ):
            raise ValueError("shapes or types are not those of a memory")
        return memory

    def digest(self) -> str:
        """sha256 of the numbers; tells a damaged file from a good one."""
        hasher = hashlib.sha256()
        for tensor in self.tensors().values():
            hasher.update(tensor.numpy().tobytes())
        return hasher.hexdigest()


_TENSORS = ("features", "pointer", "foreground")


class MemorySource(Protocol):
    """Where memories can be read, such as those that are stored in an index."""

    def get(self, key: str) -> Memory | None:
        """Return the memory stored as `key`, or None."""
        ...


class MemoryCache:
    """Memories by key, least recently used ones dropped first. Safe to share between threads.

    Args:
        max_bytes: what is kept in this process, at most.
        folder: also write every memory to `<folder>/<key>.safetensors`, and look there. A file
            that is damaged is logged, ignored and written again. None: nothing on disk.
        max_folder_bytes: the oldest files beyond this are deleted when a cache is made.
        half: keep and write memories as float16, twice as many in the same room.

    Attributes:
        sources: where else memories are looked for, by a name that tells the sources apart; what
            is found there is kept in this process, and not written to `folder`.
    """

    def __init__(
        self,
        *,
        max_bytes: int = DEFAULT_BYTES,
        folder: Path | str | None = None,
        max_folder_bytes: int = DEFAULT_FOLDER_BYTES,
        half: bool = False,
    ) -> None:
        self.max_bytes = max_bytes
        self.half = half
        self.folder = None if folder is None else Path(folder)
        self.sources: dict[str, MemorySource] = {}
        self._kept: OrderedDict[str, Memory] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        if self.folder is not None:
            _shrink(self.folder, max_folder_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes kept in this process now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Memory | None:
        """Return the memory stored as `key` (64 hexadecimal digits), or None."""
        with self._lock:
            memory = self._kept.get(key)
            if memory is not None:
                self._kept.move_to_end(key)
                return memory
        found = (source.get(key) for source in tuple(self.sources.values()))
        memory = next((memory for memory in found if memory is not None), None)
        if memory is None:
            memory = self._read(key)
        if memory is None:
            return None
        memory = memory.half() if self.half else memory
        self._keep(key, memory)
        return memory

    def put(self, key: str, memory: Memory, *, on_disk: bool = True) -> Memory:
        """Store `memory`; a disk that cannot be written is logged, not an error.

        Args:
            on_disk: also in the folder, if there is one.

        Returns:
            The memory as `get` returns it later: use this one, and results do not depend on what
            was stored before.
        """
        memory = memory.half() if self.half else memory
        self._keep(key, memory)
        if on_disk and self.folder is not None:
            try:
                self._write(self.folder, key, memory)
            except (OSError, SafetensorError) as error:
                logger.warning("a memory cannot be stored in %s: %s", self.folder, error)
        return memory

    def clear(self) -> None:
        """Forget what is kept in this process; files stay."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _keep(self, key: str, memory: Memory) -> None:
        if memory.nbytes > self.max_bytes:
            return
        with self._lock:
            old = self._kept.pop(key, None)
            self._bytes += memory.nbytes - (old.nbytes if old is not None else 0)
            self._kept[key] = memory
            while self._bytes > self.max_bytes:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes

    def _read(self, key: str) -> Memory | None:
        if self.folder is None:
            return None
        path = self.folder / f"{key}.safetensors"
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                memory = Memory.from_tensors({name: file.get_tensor(name) for name in file.keys()})
        except (SafetensorError, OSError, ValueError) as error:
            logger.warning("stored memory %s is damaged and is computed again: %s", path, error)
            return None
        if metadata.get("format") != _FORMAT or metadata.get("sha256") != memory.digest():
            logger.warning("stored memory %s is damaged and is computed again", path)
            return None
        return memory

    @staticmethod
    def _write(folder: Path, key: str, memory: Memory) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".memory-", suffix=".tmp")
        os.close(handle)
        try:
            save_file(memory.tensors(), name, {"format": _FORMAT, "sha256": memory.digest()})
            os.replace(name, folder / f"{key}.safetensors")
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _shrink(folder: Path, max_bytes: int) -> None:
    """Delete the oldest memories in `folder` until the rest take at most `max_bytes`."""
    try:
        stats = [(path, path.stat()) for path in folder.glob("*.safetensors")]
        total = sum(stat.st_size for _, stat in stats)
        for path, stat in sorted(stats, key=lambda item: item[1].st_mtime_ns):
            if total <= max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= stat.st_size
    except OSError as error:
        logger.warning("old memories in %s cannot be deleted: %s", folder, error)
