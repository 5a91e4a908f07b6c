"""The embeddings of an index in one safetensors file, written as a stream and read memory-mapped.

Format: 8 bytes little-endian length of the header, a JSON header, the raw numbers
(https://huggingface.co/docs/safetensors/index#format). No code is ever run from such a file.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import IndexFormatError

TENSOR = "embeddings"
_CODES = {"float32": "F32", "float16": "F16"}
_MAX_HEADER = 1 << 20
_ALIGN = 64
_CHECK_ROWS = 8192
# Rounding a unit row to float16 moves its norm by at most 2**-11.
_NORM_TOLERANCE = {"float32": 1e-3, "float16": 2e-3}


class EmbeddingWriter:
    """Writes (rows, dim) numbers of `dtype` to a file, block after block.

    Args:
        done: how many rows the file has already, see `rows_in`; others are written after them.

    Raises:
        ValueError: on leaving, if another number of rows than announced was written.
    """

    def __init__(self, path: Path, *, rows: int, dim: int, dtype: str, done: int = 0) -> None:
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._dim = dim
        self._left = rows - done
        start = _start(rows, dim, dtype)
        self._file = open(path, "r+b" if done else "wb")
        if done:
            self._file.truncate(len(start) + done * dim * self._dtype.itemsize)
            self._file.seek(0, os.SEEK_END)
        else:
            self._file.write(start)

    def __enter__(self) -> EmbeddingWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None and self._left:
            raise ValueError(f"{self._left} rows of embeddings were announced but not written")

    def write(self, block: NDArray[Any]) -> None:
        """Append (n, dim) rows of floating point."""
        if block.ndim != 2 or block.shape[1] != self._dim or len(block) > self._left:
            raise ValueError(f"a block of shape {block.shape} does not belong here")
        self._left -= len(block)
        self._file.write(np.ascontiguousarray(block, dtype=self._dtype).data)

    def sync(self) -> None:
        """Make what was written outlive a crash of the machine."""
        self._file.flush()
        os.fsync(self._file.fileno())


def rows_in(path: Path, *, rows: int, dim: int, dtype: str) -> int:
    """How many complete rows an unfinished file has; 0 if it is none of this shape and dtype."""
    start = _start(rows, dim, dtype)
    try:
        with open(path, "rb") as file:
            if file.read(len(start)) != start:
                return 0
            size = file.seek(0, os.SEEK_END) - len(start)
    except FileNotFoundError:
        return 0
    return min(rows, size // (dim * np.dtype(dtype).itemsize))


def _start(rows: int, dim: int, dtype: str) -> bytes:
    """The bytes of a file before its numbers."""
    size = rows * dim * np.dtype(dtype).itemsize
    entry = {"dtype": _CODES[dtype], "shape": [rows, dim], "data_offsets": [0, size]}
    header = json.dumps({TENSOR: entry}, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % _ALIGN)
    return struct.pack("<Q", len(header)) + header


def read_embeddings(
    path: Path, *, rows: int, dim: int, dtype: str, check: bool = True
) -> NDArray[np.float32]:
    """Open the embeddings; nothing is allocated before the header and the size agree.

    Args:
        rows, dim, dtype: what the manifest promises.
        check: read all rows and refuse any that is not a finite unit vector.

    Returns:
        (rows, dim) float32: a read-only memory map if stored as float32, else an array in memory,
        normalised again after the rounding to float16.

    Raises:
        IndexFormatError: another header, shape, dtype or size of the file, or a row that no cosine
            can be taken of (its norm is off 1 by more than 1e-3, 2e-3 as float16).
    """
    stored = stored_embeddings(path, rows=rows, dim=dim, dtype=dtype)
    if dtype == "float32":
        if check:
            for first in range(0, rows, _CHECK_ROWS):
                _norms(stored[first : first + _CHECK_ROWS], first, path, dtype)
        return stored
    array = np.array(stored, dtype=np.float32)
    for first in range(0, rows, _CHECK_ROWS):
        block = array[first : first + _CHECK_ROWS]
        norms = _norms(block, first, path, dtype if check else None)
        np.divide(block, norms[:, None], out=block, where=norms[:, None] > 0)
    return array


def stored_embeddings(path: Path, *, rows: int, dim: int, dtype: str) -> NDArray[Any]:
    """Map the embeddings as they are stored; nothing is read before header and size agree.

    Returns:
        (rows, dim) of `dtype`, a read-only memory map.

    Raises:
        IndexFormatError: another header, shape, dtype or size of the file.
    """
    size = path.stat().st_size
    header, length = _header(path)
    try:
        entry = header[TENSOR]
        found = (entry["dtype"], entry["shape"], entry["data_offsets"])
    except (KeyError, TypeError):
        raise _wrong(path, f"its header does not describe {TENSOR!r}") from None
    if set(header) - {TENSOR, "__metadata__"}:
        raise _wrong(path, "it holds other tensors too")
    nbytes = rows * dim * np.dtype(dtype).itemsize
    if found != (_CODES[dtype], [rows, dim], [0, nbytes]):
        raise _wrong(path, f"it holds {found[0]} {found[1]}, expected {_CODES[dtype]} {rows, dim}")
    offset = 8 + length
    if size != offset + nbytes:
        raise _wrong(path, f"it has {size} bytes, expected {offset + nbytes}")
    return np.memmap(
        path,
        dtype=np.dtype(dtype).newbyteorder("<"),
        mode="r",
        offset=offset,
        shape=(rows, dim),
    )


def metadata_of(path: Path) -> dict[str, Any]:
    """Return what the header says beside the embeddings; indexes are written without.

    Raises:
        IndexFormatError: the header is damaged.
    """
    header, _ = _header(path)
    return {name: value for name, value in header.items() if name != TENSOR}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a file, and its length in bytes."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise _wrong(path, "its header is cut off or too long")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise _wrong(path, f"its header does not describe {TENSOR!r}")
    return header, length


def _norms(
    block: NDArray[np.float32], first: int, path: Path, dtype: str | None
) -> NDArray[np.float32]:
    """Return the (n,) norms of the rows from `first` on; check them if `dtype` is given."""
    norms: NDArray[np.float32] = np.linalg.norm(block, axis=1)
    if dtype is not None:
        # A NaN compares as false, so the test is for what is right, not for what is wrong.
        bad = np.flatnonzero(~(np.abs(norms - 1) <= _NORM_TOLERANCE[dtype]))
        if len(bad):
            raise _wrong(
                path, f"row {first + bad[0]} is not a unit vector (norm {norms[bad[0]]:.4g})"
            )
    return norms


def _wrong(path: Path, problem: str) -> IndexFormatError:
    return IndexFormatError(
        f"{path} is not the embeddings of this index: {problem}; fetch or build the index again"
    )
