"""Writing the rows of an index as parquet shards, as `datasets` and the Hub's viewer read them.

Row groups are bounded, so that a picture can be fetched without reading much of its neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medretrieval.index.columns import FIXED, MAX_CASE_LABELS

# Opening costs 0.2 ms a row group, so tiny pictures go in large groups; fetching a picture reads
# its group, so that the bytes of one are bounded too.
GROUP_ROWS = 2048
GROUP_BYTES = 8 << 20
# A file of a shared index is fetched when a picture in it is first looked at, so it is as small as
# the Hub's limit of 10,000 files in a folder allows for 80 GB.
SHARD_BYTES = 8 << 20
MAX_TEXT = 500  # characters of a name; keeps a manipulated file from filling the memory
MAX_LABELS = MAX_CASE_LABELS + 65535  # of one row: those of the case and every mask value
CODED = ("volume_id", "patient_id", "modality", "region")

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
_TYPES = {
    "row_id": pa.int64(),
    "volume_id": pa.string(),
    "patient_id": pa.string(),
    "modality": pa.string(),
    "region": pa.string(),
    "slice_index": pa.int64(),
    "position_mm": pa.float64(),
    "spacing": pa.list_(pa.float64()),
    "labels": pa.list_(pa.string()),
    "image": _PICTURE,
    "mask": _PICTURE,
}


def schema_of(attributes: Sequence[str] = ()) -> Any:
    """Return the schema of a shard: the fixed columns, then a text column for each attribute."""
    extra = {name: {"dtype": "string", "_type": "Value"} for name in attributes}
    features = {"info": {"features": {**_FEATURES, **extra}}}
    return pa.schema(
        [*((name, _TYPES[name]) for name in FIXED), *((name, pa.string()) for name in attributes)],
        metadata={"huggingface": json.dumps(features)},
    )


SCHEMA = schema_of()


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One slice as it is stored; `image` and `mask` are PNG, None where there is none."""

    row_id: int
    volume_id: str
    patient_id: str
    modality: str
    region: str
    slice_index: int
    position_mm: float | None
    spacing: tuple[float, float, float] | None
    labels: tuple[str, ...]
    image: bytes | None
    mask: bytes | None
    attributes: Mapping[str, str] = field(default_factory=dict)

    def to_arrow(self) -> dict[str, Any]:
        fixed = {name: value for name, value in vars(self).items() if name != "attributes"}
        return {
            **self.attributes,
            **fixed,
            "image": _cell(self.image),
            "mask": _cell(self.mask),
        }


def _cell(picture: bytes | None) -> dict[str, Any] | None:
    return None if picture is None else {"bytes": picture, "path": None}


class ShardWriter:
    """Writes rows to `folder/slices-00000.parquet` and on; a new shard after `shard_bytes`.

    The bytes written depend on the rows alone, not on when they were given.

    Args:
        attributes: the extra columns; a row that does not have one is empty there.
    """

    def __init__(
        self, folder: Path, *, attributes: Sequence[str] = (), shard_bytes: int = SHARD_BYTES
    ) -> None:
        self._folder = folder
        self._schema = schema_of(attributes)
        self._empty = dict.fromkeys(attributes, "")
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
        self._rows.append({**self._empty, **row.to_arrow()})
        self._pending += len(row.image or b"") + len(row.mask or b"")
        if len(self._rows) >= GROUP_ROWS or self._pending >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            path = self._folder / f"slices-{self._shards:05d}.parquet"
            self._shards += 1
            # Pictures are compressed already; of names each is written once in a row group.
            names = [*CODED, "labels.list.element", *self._empty]
            self._writer = pq.ParquetWriter(
                path, self._schema, compression="none", use_dictionary=names
            )
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._written += self._pending
        self._rows, self._pending = [], 0
        if self._written >= self._shard_bytes:
            self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._written = None, 0
