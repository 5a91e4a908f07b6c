"""The shards: what is written is what is read, also where another program wrote it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medretrieval.errors import IndexFormatError
from medretrieval.index import row_columns, table
from medretrieval.index.slice_table import SliceTable
from medretrieval.index.table import ShardWriter, TableRow, schema_of

NAMES = st.sampled_from(["a", "b", "größe", "x" * 500])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "volume_id": NAMES,
            "patient_id": NAMES,
            "modality": NAMES,
            "region": NAMES,
            "slice_index": st.integers(0, 9),
            "position_mm": st.none() | st.floats(-10, 10),
            "spacing": st.none() | st.just((1.0, 2.0, 3.0)),
            "labels": st.lists(NAMES, max_size=3).map(tuple),
            "image": st.binary(min_size=1, max_size=9),
            "mask": st.none() | st.binary(min_size=1, max_size=9),
            "attributes": st.dictionaries(st.sampled_from(["scanner", "kVp"]), NAMES),
        }
    ),
    min_size=1,
    max_size=12,
)


def row(number: int, **changes: Any) -> TableRow:
    fields: dict[str, Any] = {
        "row_id": number,
        "volume_id": f"volume {number // 2}",
        "patient_id": "p",
        "modality": "CT",
        "region": "chest",
        "slice_index": number,
        "position_mm": None,
        "spacing": None,
        "labels": (),
        "image": b"picture %d" % number,
        "mask": None,
    }
    return TableRow(**{**fields, **changes})


def write(folder: Path, rows: Sequence[TableRow], **options: Any) -> list[Path]:
    with ShardWriter(folder, **options) as writer:
        for one in rows:
            writer.write(one)
    return sorted(folder.iterdir())


@settings(deadline=None)
@given(rows=ROWS, group=st.integers(1, 5), shard=st.sampled_from([1, 1 << 20]))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], group: int, shard: int
) -> None:
    folder = tmp_path_factory.mktemp("table")
    written = [TableRow(row_id=number, **fields) for number, fields in enumerate(rows)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "GROUP_ROWS", group)
        paths = write(folder, written, attributes=["scanner", "kVp"], shard_bytes=shard)
    opened = SliceTable(paths, ["scanner", "kVp"])
    columns = opened.columns()
    assert columns.volume_ids == list(dict.fromkeys(r.volume_id for r in written))
    assert list(columns.attributes) == ["scanner", "kVp"]
    for number, one in enumerate(written):
        assert columns.volume_ids[columns.volume[number]] == one.volume_id
        assert columns.patient[number] == one.patient_id
        assert columns.modality[number] == one.modality
        assert columns.region[number] == one.region
        assert columns.slice_index[number] == one.slice_index
        position = columns.position_mm[number]
        assert (None if np.isnan(position) else position) == one.position_mm
        spacing = columns.spacing[number]
        assert (None if np.isnan(spacing).all() else tuple(spacing)) == one.spacing
        assert columns.labels[number] == one.labels
        assert columns.annotated[number] == (one.mask is not None)
        for name, values in columns.attributes.items():
            assert values[number] == one.attributes.get(name, "")
        assert opened.picture(number, "image") == one.image
        assert opened.picture(number, "mask") == one.mask
    opened.close()


def test_names_come_in_order_of_appearance_also_across_groups(tmp_path: Path) -> None:
    names = ["z", "b", "z", "a", "b", "c"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "GROUP_ROWS", 2)
        paths = write(
            tmp_path, [row(n, volume_id=name, region=name) for n, name in enumerate(names)]
        )
    columns = SliceTable(paths).columns()
    assert columns.volume_ids == columns.region.names == ["z", "b", "a", "c"]


def test_groups_of_tiny_pictures_are_large_and_of_large_ones_small(tmp_path: Path) -> None:
    for name, size, groups in (("tiny", 10, 2), ("large", 3 << 20, 2)):
        (tmp_path / name).mkdir()
        count = {"tiny": 3000, "large": 4}[name]
        paths = write(tmp_path / name, [row(n, image=bytes(size)) for n in range(count)])
        assert sum(pq.ParquetFile(path).num_row_groups for path in paths) == groups


def forge(path: Path, change: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    pq.write_table(change(pq.read_table(path)), path, **options)


def column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    def change(old: pa.Table) -> pa.Table:
        array = values if isinstance(values, pa.Array) else pa.array(values, pa.string())
        position = old.schema.get_field_index(name)
        if position < 0:
            return old.append_column(name, array)
        return old.set_column(position, name, array)

    return change


def test_dictionary_of_another_program(tmp_path: Path) -> None:
    """Its names may be in any order, and some may be on no row."""
    (path,) = write(tmp_path, [row(n) for n in range(4)])
    names = pa.DictionaryArray.from_arrays([3, 1, 3, 1], ["unused", "b", "none", "a"])
    forge(path, lambda t: column("region", names.cast(pa.string()))(t))
    columns = SliceTable([path]).columns()
    assert columns.region.names == ["a", "b"]
    forged = pa.table({"region": names})
    coded = row_columns._coded(forged, "region", path)
    assert (coded.names, coded.codes.tolist()) == (["a", "b"], [0, 1, 0, 1])
    twice = pa.DictionaryArray.from_arrays([0, 1, 2], ["a", "b", "a"])
    coded = row_columns._coded(pa.table({"region": twice}), "region", path)
    assert (coded.names, coded.codes.tolist()) == (["a", "b"], [0, 1, 0])


@pytest.mark.parametrize("encoding", [{"use_dictionary": False}, {"compression": "zstd"}])
def test_another_encoding_reads_the_same(tmp_path: Path, encoding: dict[str, Any]) -> None:
    rows = [row(n, labels=("RV",) * (n % 2), spacing=(1, 2, 3)) for n in range(5)]
    (path,) = write(tmp_path, rows)
    before = SliceTable([path]).columns()
    forge(path, lambda t: t, **encoding)
    after = SliceTable([path]).columns()
    assert after.volume_ids == before.volume_ids
    assert list(after.labels) == list(before.labels)
    np.testing.assert_array_equal(after.spacing, before.spacing)


EXTRA = ["scanner"]
TEXT = ["x"] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["scanner"]), "other columns.*scanner"),
        (lambda t: t.rename_columns([*t.column_names[:-1], "Scanner"]), "other columns"),
        (lambda t: t.select(["scanner", *t.column_names[:-1]]), "other columns"),
        (column("more", TEXT), "other columns"),
        (column("scanner", pa.array([1, 2, 3, 4])), "other columns"),
        (column("scanner", pa.array([["x"]] * 4)), "other columns"),
        (column("scanner", pa.array(TEXT, pa.large_string())), "other columns"),
        (column("scanner", ["x", None, "x", "x"]), "scanner has empty values"),
        (column("scanner", ["x" * 501, *TEXT[1:]]), "a scanner is longer than 500"),
        (column("labels", pa.array([["y" * 501]] * 4)), "a label is longer than 500"),
        (column("labels", pa.array([["y", None]] * 4)), "a label has no name"),
        (column("labels", pa.array([None, ["y"], [], []])), "no list of labels"),
        (column("labels", pa.array([["y"] * 66_536, [], [], []])), "more than 66535 labels"),
        (column("spacing", pa.array([[1.0, 2.0], None, None, None])), "three numbers"),
        (column("spacing", pa.array([[1.0, 2.0, None], None, None, None])), "three numbers"),
        (column("spacing", pa.array([[1.0, 2.0], [1.0] * 4, None, None])), "three numbers"),
        (column("volume_id", ["a", None, "b", "c"]), "volume_id has empty values"),
        (column("slice_index", pa.array([1, None, 2, 3])), "slice_index has empty values"),
    ],
)
def test_hostile_columns_are_refused(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    (path,) = write(tmp_path, [row(n) for n in range(4)], attributes=EXTRA)
    forge(path, change)
    with pytest.raises(IndexFormatError, match=message) as caught:
        SliceTable([path], EXTRA).columns()
    assert str(tmp_path) in str(caught.value)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [row(n, region="region") for n in range(4)])
    stored, forged = b"\x06\0\0\0region", b"\x06\0\0\0\xff\xfe\xff\xfeon"
    content = path.read_bytes()
    assert stored in content
    path.write_bytes(content.replace(stored, forged))
    with pytest.raises(IndexFormatError, match="cannot be read as parquet"):
        SliceTable([path]).columns()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 200 + b"PAR1"])
def test_malformed_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "slices-00000.parquet"
    path.write_bytes(content)
    with pytest.raises(IndexFormatError, match=r"00000\.parquet cannot be read as parquet"):
        SliceTable([path])


def test_the_schema_tells_datasets_of_every_column() -> None:
    schema = schema_of(["scanner"])
    assert schema.names[-1] == "scanner"
    assert b'"scanner": {"dtype": "string", "_type": "Value"}' in schema.metadata[b"huggingface"]
