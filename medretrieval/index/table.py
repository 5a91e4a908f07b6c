"""The rows of an index in parquet shards, as `datasets` and the Hub's viewer read them.

Row groups are small, so that one picture can be fetched without reading its neighbours' megabytes.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medretrieval.errors import IndexFormatError

GROUP_ROWS = 100
GROUP_BYTES = 4 << 20
SHARD_BYTES = 256 << 20
MAX_TEXT = 500  # characters of a name; keeps a manipulated file from filling the memory
_CACHED_GROUPS = 16

_VALUE_TYPES = {
    "row_id": "int64",
    "volume_id": "string",
    "patient_id": "string",
    "modality": "string",
    "region": "string",
    "slice_index": "int64",
    "position_mm": "float64",
}
# What `datasets.Features` writes into the schema; literal, so that writing needs no such package.
_FEATURES: dict[str, Any] = {
    **{name: {"dtype": dtype, "_type": "Value"} for name, dtype in _VALUE_TYPES.items()},
    "spacing": {"feature": {"dtype": "float64", "_type": "Value"}, "_type": "List"},
    "labels": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
    "image": {"_type": "Image"},
    "mask": {"_type": "Image"},
}
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),
        ("volume_id", pa.string()),
        ("patient_id", pa.string()),
        ("modality", pa.string()),
        ("region", pa.string()),
        ("slice_index", pa.int64()),
        ("position_mm", pa.float64()),
        ("spacing", pa.list_(pa.float64())),
        ("labels", pa.list_(pa.string())),
        ("image", _PICTURE),
        ("mask", _PICTURE),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One slice as it is stored; `image` and `mask` are PNG."""

    row_id: int
    volume_id: str
    patient_id: str
    modality: str
    region: str
    slice_index: int
    position_mm: float | None
    spacing: tuple[float, float, float] | None
    labels: tuple[str, ...]
    image: bytes
    mask: bytes | None

    def to_arrow(self) -> dict[str, Any]:
        return {
            **vars(self),
            "image": {"bytes": self.image, "path": None},
            "mask": None if self.mask is None else {"bytes": self.mask, "path": None},
        }


class ShardWriter:
    """Writes rows to `folder/slices-00000.parquet` and on; a new shard after `shard_bytes`.

    The bytes written depend on the rows alone, not on when they were given.
    """

    def __init__(self, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._rows: list[dict[str, Any]] = []
        self._pending = 0
        self._written = 0
        self._shards = 0
        self._writer: Any = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._close()

    def write(self, row: TableRow) -> None:
        """Add one row."""
        self._rows.append(row.to_arrow())
        self._pending += len(row.image) + len(row.mask or b"")
        if len(self._rows) >= GROUP_ROWS or self._pending >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            path = self._folder / f"slices-{self._shards:05d}.parquet"
            self._shards += 1
            # Pictures are compressed already; the few other columns are small.
            self._writer = pq.ParquetWriter(
                path, SCHEMA, compression="none", use_dictionary=["volume_id", "patient_id"]
            )
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
        self._written += self._pending
        self._rows, self._pending = [], 0
        if self._written >= self._shard_bytes:
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._written = None, 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Columns:
    """Everything of the rows but the pictures, in memory.

    Attributes:
        volume_ids: names, in order of first appearance.
        volume: (n,) int32, code into `volume_ids`.
        patient_id, modality, region: (n,) of str.
        slice_index: (n,) int64.
        position_mm: (n,) float64, NaN where unknown.
        spacing: (n, 3) float64, (row, column, through-plane) in mm, NaN where unknown.
        labels: n tuples of names.
        annotated: (n,) bool, the row has a mask.
    """

    volume_ids: list[str]
    volume: NDArray[np.int32]
    patient_id: NDArray[np.str_]
    modality: NDArray[np.str_]
    region: NDArray[np.str_]
    slice_index: NDArray[np.int64]
    position_mm: NDArray[np.float64]
    spacing: NDArray[np.float64]
    labels: list[tuple[str, ...]]
    annotated: NDArray[np.bool_]


@dataclass(eq=False)
class SliceTable:
    """The open shards of an index, in the order of their names. Safe to use from several threads.

    Raises (on construction and reading):
        IndexFormatError: a file is not parquet, is cut off, or has other columns.
    """

    paths: Sequence[Path]
    _files: list[Any] = field(default_factory=list, init=False)
    _groups: list[tuple[int, int]] = field(default_factory=list, init=False)  # (shard, group)
    _starts: list[int] = field(default_factory=list, init=False)  # first row of each group
    _cache: OrderedDict[tuple[int, str], Any] = field(default_factory=OrderedDict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    rows: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for shard, path in enumerate(self.paths):
            try:
                file = pq.ParquetFile(path)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise _damaged(path, error) from None
            self._files.append(file)
            if not file.schema_arrow.equals(SCHEMA, check_metadata=False):
                raise IndexFormatError(
                    f"{path} has other columns than the slices of an index; expected "
                    f"{', '.join(SCHEMA.names)}"
                )
            for group in range(file.num_row_groups):
                self._groups.append((shard, group))
                self._starts.append(self.rows)
                self.rows += file.metadata.row_group(group).num_rows

    def close(self) -> None:
        """Close the files; nothing can be read afterwards."""
        with self._lock:
            for file in self._files:
                file.close()

    def picture(self, row: int, column: str) -> bytes | None:
        """Return the PNG of `column` ("image" or "mask") in `row`, None where there is none."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        shard, group = self._groups[number]
        with self._lock:
            found = self._cache.get((number, column))
            if found is None:
                try:
                    table = self._files[shard].read_row_group(
                        group, columns=[column], use_threads=False
                    )
                    found = table.column(column).combine_chunks()
                except (OSError, ValueError, pa.ArrowException) as error:
                    raise _damaged(self.paths[shard], error) from None
                self._cache[number, column] = found
                if len(self._cache) > _CACHED_GROUPS:
                    self._cache.popitem(last=False)
            else:
                self._cache.move_to_end((number, column))
        cell = found[row - self._starts[number]].as_py()
        return None if cell is None else cell["bytes"]

    def where(self, row: int) -> str:
        """Return the file and row for messages."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"{self.paths[self._groups[number][0]]}, row_id {row}"

    def columns(self) -> Columns:
        """Read everything but the pictures and check it.

        Raises:
            IndexFormatError: rows out of order, missing values, names that are too long.
        """
        names = [name for name in SCHEMA.names if name not in ("image", "mask")]
        tables: list[Any] = []
        for path, file in zip(self.paths, self._files, strict=True):
            try:
                # The path inside the picture is always empty: it tells null masks without bytes.
                table = file.read(columns=[*names, "image.path", "mask.path"], use_threads=False)
                table.validate(full=True)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise _damaged(path, error) from None
            _check_values(table, path, sum(map(len, tables)))
            tables.append(table)
        whole = pa.concat_tables(tables)
        volumes = whole.column("volume_id").combine_chunks().dictionary_encode()
        spacing = np.array(
            [s or (np.nan,) * 3 for s in whole.column("spacing").to_pylist()], np.float64
        ).reshape(-1, 3)
        return Columns(
            volume_ids=volumes.dictionary.to_pylist(),
            volume=volumes.indices.to_numpy(zero_copy_only=False).astype(np.int32),
            patient_id=_text(whole, "patient_id"),
            modality=_text(whole, "modality"),
            region=_text(whole, "region"),
            slice_index=whole.column("slice_index").to_numpy(),
            position_mm=whole.column("position_mm").to_numpy().astype(np.float64),
            spacing=spacing,
            labels=[tuple(labels) for labels in whole.column("labels").to_pylist()],
            annotated=whole.column("mask").is_valid().to_numpy().astype(np.bool_),
        )


def _text(table: Any, name: str) -> NDArray[np.str_]:
    return np.array(table.column(name).to_pylist(), dtype=np.str_)


def _check_values(table: Any, path: Path, first: int) -> None:
    for name in ("row_id", "volume_id", "patient_id", "modality", "region", "slice_index"):
        if table.column(name).null_count:
            raise IndexFormatError(f"{path}: column {name} has empty values")
    if table.column("image").null_count or table.column("labels").null_count:
        raise IndexFormatError(f"{path}: a row has no image or no list of labels")
    ids = table.column("row_id").to_numpy()
    if not np.array_equal(ids, np.arange(first, first + len(ids))):
        raise IndexFormatError(
            f"{path}: row_id is not {first}, {first + 1}, ... in order, so rows and embeddings "
            "do not belong together; fetch or build the index again"
        )
    for name in ("volume_id", "patient_id", "modality", "region"):
        for text in table.column(name).unique().to_pylist():
            if len(text) > MAX_TEXT:
                raise IndexFormatError(f"{path}: a {name} is longer than {MAX_TEXT} characters")
    for spacing in table.column("spacing").to_pylist():
        if spacing is not None and (len(spacing) != 3 or None in spacing):
            raise IndexFormatError(f"{path}: a spacing does not have three numbers")
    for labels in table.column("labels").to_pylist():
        if None in labels:
            raise IndexFormatError(f"{path}: a label has no name")


def _damaged(path: Path, error: Exception) -> IndexFormatError:
    return IndexFormatError(
        f"{path} cannot be read as parquet ({str(error).splitlines()[0]}); it is cut off or "
        "damaged, fetch or build the index again"
    )
