"""The open shards of an index: all columns but the pictures at once, these one by one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medretrieval.errors import IndexFormatError
from medretrieval.index.columns import FIXED
from medretrieval.index.row_columns import Columns, check_footer, columns_of, damaged
from medretrieval.index.table import CODED, schema_of

_CACHED_GROUPS = 16
_CACHED_BYTES = 256 << 20
_OPEN_SHARDS = 128  # a process may have about a thousand open files


@dataclass(frozen=True, eq=False)
class _Shard:
    """An open shard; `starts` are the first rows of its groups, counted within it, and its end."""

    file: Any
    starts: NDArray[np.int64]


class SliceTable:
    """The shards of an index, in the order of their names. Safe to use from several threads.

    Args:
        paths: of the shards.
        attributes: the extra columns that they must have, after the fixed ones.
        pictures: whether every row has an image; otherwise none has one.
        sizes: how many rows each has, if that is known: then a shard is opened when a picture in it
            is first asked for, else all are opened now.
        fetch: called with the number of a shard before it is opened, from any thread; it brings
            the file to its path, or checks it.

    Attributes:
        rows: of all shards.

    Raises (on construction and reading):
        IndexFormatError: a file is not parquet, is cut off, or has other columns or rows.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        attributes: Sequence[str] = (),
        *,
        pictures: bool = True,
        sizes: Sequence[int] | None = None,
        fetch: Callable[[int], None] = lambda shard: None,
    ) -> None:
        self.paths = paths
        self.attributes = attributes
        self._pictures = pictures
        self._fetch = fetch
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._cache: OrderedDict[tuple[int, int, str], Any] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        if sizes is None:
            sizes = []
            for number in range(len(paths)):
                shard = self._opened(number)
                sizes.append(int(shard.starts[-1]))
                self._keep(number, shard)
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self.rows = int(self._ends[-1]) if len(self._ends) else 0

    def close(self) -> None:
        """Close the files; nothing can be read afterwards."""
        with self._lock:
            self._closed = True
            for shard in self._open.values():
                shard.file.close()
            self._open.clear()
            self._cache.clear()

    def picture(self, row: int, column: str) -> bytes | None:
        """Return the PNG of `column` ("image" or "mask") in `row`, None where there is none."""
        number, place = self._place(row)
        with self._lock:
            if self._closed:
                raise ValueError("the index was closed")
            here = number in self._open
        if not here:
            self._fetch(number)  # it may take long, and others need not wait for it
        with self._lock:
            shard = self._shard(number)
            group = int(np.searchsorted(shard.starts, place, side="right")) - 1
            found = self._cache.get((number, group, column))
            if found is None:
                try:
                    table = shard.file.read_row_group(group, columns=[column], use_threads=False)
                    found = table.column(column).combine_chunks()
                except (OSError, ValueError, pa.ArrowException) as error:
                    raise damaged(self.paths[number], error) from None
                self._cache[number, group, column] = found
                self._shrink_cache()
            else:
                self._cache.move_to_end((number, group, column))
        cell = found[place - int(shard.starts[group])].as_py()
        return None if cell is None else cell["bytes"]

    def _shrink_cache(self) -> None:
        """Forget what was not looked at for long; what was read last stays."""
        size = sum(kept.nbytes for kept in self._cache.values())
        while len(self._cache) > 1 and (len(self._cache) > _CACHED_GROUPS or size > _CACHED_BYTES):
            size -= self._cache.popitem(last=False)[1].nbytes

    def path(self, row: int) -> Path:
        """Return the shard that a row is in."""
        return self.paths[self._place(row)[0]]

    def where(self, row: int) -> str:
        """Return the file and row for messages."""
        return f"{self.path(row)}, row_id {row}"

    def columns(self) -> Columns:
        """Read everything but the pictures from the shards and check it.

        Raises:
            IndexFormatError: rows out of order, missing values, names that are too long.
        """
        tables = self.tables()
        return columns_of(tables, self.paths, self.attributes, pictures=self._pictures)

    def tables(self) -> list[Any]:
        """Return the columns but the pictures' bytes as they are stored, a table for each shard.

        Raises:
            IndexFormatError: a shard cannot be read.
        """
        names = [*(name for name in FIXED if name not in ("image", "mask")), *self.attributes]
        # The path inside the picture is always empty: it tells null masks without bytes.
        wanted = [*names, "image.path", "mask.path"]
        tables = []
        for number, path in enumerate(self.paths):
            with self._lock:
                file = self._shard(number).file
                try:
                    table = file.read(columns=wanted, use_threads=False)
                    table.validate(full=True)
                except (OSError, ValueError, pa.ArrowException) as error:
                    raise damaged(path, error) from None
            tables.append(table)
        return tables

    def _place(self, row: int) -> tuple[int, int]:
        """The shard of a row, and its place in it."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        return number, row - (int(self._ends[number - 1]) if number else 0)

    def _shard(self, number: int) -> _Shard:
        """The shard, opened if it is not; only with the lock."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        shard = self._opened(number)
        expected = self._ends[number] - (self._ends[number - 1] if number else 0)
        if shard.starts[-1] != expected:
            shard.file.close()
            raise IndexFormatError(
                f"{self.paths[number]} has {shard.starts[-1]} rows, expected {expected}; fetch or "
                "build the index again"
            )
        self._keep(number, shard)
        return shard

    def _keep(self, number: int, shard: _Shard) -> None:
        self._open[number] = shard
        if len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)[1].file.close()

    def _opened(self, number: int) -> _Shard:
        path = self.paths[number]
        try:
            footer = pq.read_metadata(path, memory_map=True)
            schema = schema_of(self.attributes)
            if not footer.schema.to_arrow_schema().equals(schema, check_metadata=False):
                raise IndexFormatError(
                    f"{path} has other columns than the slices of this index; expected "
                    f"{', '.join(schema.names)}"
                )
            check_footer(footer, path)
            file = pq.ParquetFile(
                path, metadata=footer, memory_map=True, read_dictionary=[*CODED, *self.attributes]
            )
        except (OSError, ValueError, pa.ArrowException) as error:
            raise damaged(path, error) from None
        sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        return _Shard(file, np.cumsum([0, *sizes], dtype=np.int64))
