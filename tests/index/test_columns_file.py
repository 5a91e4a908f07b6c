"""`columns.parquet`: of the shards all but the pictures, so that nobody needs these to search."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_fakes import contents, rehash
from sharing import COLUMNS, SHARD, assert_same, hits, make_index

from medretrieval.errors import IndexFormatError
from medretrieval.index import row_columns, slice_table, table
from medretrieval.index.release import make_release
from medretrieval.index.row_columns import Columns, columns_schema, read_columns, write_columns
from medretrieval.index.slice_table import SliceTable
from medretrieval.index.store import open_store
from medretrieval.index.table import ShardWriter, TableRow

ATTRIBUTES = ["scanner", "kVp"]
NAMES = st.sampled_from(["a", "b", "größe", "", "x" * 500, "山田"])
ROWS = st.lists(
    st.builds(
        TableRow,
        row_id=st.just(0),
        volume_id=NAMES,
        patient_id=NAMES,
        modality=NAMES,
        region=NAMES,
        slice_index=st.integers(0, 2**62),
        position_mm=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        spacing=st.none() | st.just((1.0, 2.0, 3.5)),
        labels=st.lists(NAMES, max_size=4).map(tuple),
        image=st.binary(min_size=1, max_size=9),
        mask=st.none() | st.binary(min_size=1, max_size=9),
        attributes=st.dictionaries(st.sampled_from(ATTRIBUTES), NAMES),
    ),
    min_size=1,
    max_size=14,
)


def write_shards(folder: Path, rows: Sequence[TableRow], *, group: int, shard: int) -> list[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "GROUP_ROWS", group)
        with ShardWriter(folder, attributes=ATTRIBUTES, shard_bytes=shard) as writer:
            for number, row in enumerate(rows):
                writer.write(TableRow(**{**vars(row), "row_id": number}))
    return sorted(folder.glob("slices-*"))


def assert_equal(a: Columns, b: Columns) -> None:
    assert a.volume_ids == b.volume_ids
    for name in ("volume", "slice_index", "position_mm", "spacing", "annotated"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    for name in ("patient", "modality", "region"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.names == y.names
        np.testing.assert_array_equal(x.codes, y.codes)
    assert list(a.attributes) == list(b.attributes)
    for name in a.attributes:
        assert a.attributes[name].names == b.attributes[name].names
        np.testing.assert_array_equal(a.attributes[name].codes, b.attributes[name].codes)
    assert list(a.labels) == list(b.labels)
    assert a.labels.names == b.labels.names
    np.testing.assert_array_equal(a.labels.codes, b.labels.codes)


@settings(deadline=None)
@given(rows=ROWS, group=st.integers(1, 5), shard=st.sampled_from([1, 1 << 20]))
def test_the_same_columns_as_from_the_shards(
    tmp_path_factory: pytest.TempPathFactory, rows: list[TableRow], group: int, shard: int
) -> None:
    folder = tmp_path_factory.mktemp("table")
    paths = write_shards(folder, rows, group=group, shard=shard)
    opened = SliceTable(paths, ATTRIBUTES)
    file = folder / COLUMNS
    write_columns(file, opened.tables(), ATTRIBUTES)
    columns, sizes = read_columns(file, rows=len(rows), shards=len(paths), attributes=ATTRIBUTES)
    assert_equal(columns, opened.columns())
    assert sizes == [pq.read_metadata(path).num_rows for path in paths]
    opened.close()


# Files that are not what they should be


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A file of six rows in three shards."""
    rows = [
        TableRow(
            row_id=0,
            volume_id=f"v{number // 2}",
            patient_id="p",
            modality="CT",
            region="chest",
            slice_index=number,
            position_mm=None,
            spacing=(1.0, 1.0, 2.0),
            labels=("liver",),
            image=b"x",
            mask=b"y" if number % 2 else None,
        )
        for number in range(6)
    ]
    opened = SliceTable(write_shards(tmp_path, rows, group=2, shard=1), ATTRIBUTES)
    write_columns(tmp_path / COLUMNS, opened.tables(), ATTRIBUTES)
    opened.close()
    return tmp_path / COLUMNS


def read(path: Path, *, rows: int = 6, shards: int = 3) -> Columns:
    return read_columns(path, rows=rows, shards=shards, attributes=ATTRIBUTES)[0]


def forge(path: Path, column: str, values: Any, **options: Any) -> None:
    """Write other values into a column of the file."""
    whole = pq.read_table(path)
    schema = columns_schema(ATTRIBUTES)
    arrays = {name: whole.column(name) for name in schema.names}
    arrays[column] = pa.array(values, schema.field(column).type)
    pq.write_table(pa.table(arrays, schema=schema), path, **options)


def test_an_untouched_file(written: Path) -> None:
    columns = read(written)
    assert columns.annotated.tolist() == [False, True] * 3
    forge(written, "shard", [0, 0, 1, 1, 2, 2])
    assert_equal(read(written), columns)


@pytest.mark.parametrize(
    "shards",
    [
        [1, 1, 0, 0, 2, 2],
        [0, 0, 2, 2, 1, 1],
        [0, 1, 0, 1, 2, 2],
        [1, 1, 2, 2, 3, 3],
        [0, 0, 0, 2, 2, 2],
        [-1, -1, 0, 0, 1, 2],
        [0, 0, 1, 1, 1, 2_000_000_000],
        [0, 0, None, 1, 2, 2],
        [None] * 6,
    ],
)
def test_shards_out_of_order(written: Path, shards: list[int | None]) -> None:
    forge(written, "shard", shards)
    with pytest.raises(IndexFormatError, match="shards are not in order"):
        read(written)


@pytest.mark.parametrize("shards", [[0, 0, 1, 1, 1, 1], [0] * 6, [0, 1, 2, 3, 3, 3]])
def test_another_number_of_shards(written: Path, shards: list[int]) -> None:
    forge(written, "shard", shards)
    with pytest.raises(IndexFormatError, match="is not of the 3 shards that the manifest lists"):
        read(written)


def test_another_number_of_rows(written: Path) -> None:
    for rows in (5, 7, 0, 10**12):
        with pytest.raises(IndexFormatError, match=f"6 rows, the manifest says {rows}"):
            read(written, rows=rows)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("volume_id", ["a", "a", None, "b", "b", "b"], "column volume_id has empty values"),
        ("scanner", [None] * 6, "column scanner has empty values"),
        ("slice_index", [0, 1, 2, None, 4, 5], "column slice_index has empty values"),
        ("annotated", [True, None, True, True, True, True], "shards that the manifest"),
        ("labels", [["a"], None, [], [], [], []], "no list of labels"),
        ("labels", [["a", None], [], [], [], [], []], "a label has no name"),
        ("labels", [["x" * 501], [], [], [], [], []], "a label is longer than 500"),
        ("region", ["x" * 501] * 6, "a region is longer than 500"),
        ("spacing", [[1.0, 2.0]] * 6, "does not have three numbers"),
        ("spacing", [[1.0, 2.0, None]] * 6, "does not have three numbers"),
    ],
)
def test_values_that_cannot_be(written: Path, column: str, values: list[Any], message: str) -> None:
    forge(written, column, values)
    with pytest.raises(IndexFormatError, match=message):
        read(written)


def test_other_columns(written: Path) -> None:
    whole = pq.read_table(written)
    for change in (
        lambda t: t.drop_columns(["region"]),
        lambda t: t.append_column("more", pa.array([1] * 6)),
        lambda t: t.rename_columns([*t.column_names[:-1], "masked"]),
        lambda t: t.set_column(
            t.column_names.index("shard"), "shard", t.column("shard").cast(pa.int64())
        ),
    ):
        pq.write_table(change(whole), written)
        with pytest.raises(IndexFormatError, match="has other columns"):
            read(written)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", b"{}" * 100])
def test_no_table(written: Path, content: bytes) -> None:
    written.write_bytes(content)
    with pytest.raises(IndexFormatError, match=r"cannot be read as parquet"):
        read(written)


def test_any_cut_and_any_byte(written: Path) -> None:
    """No damage ends in anything but the right error, or in what can be read."""
    content = written.read_bytes()
    for end in range(0, len(content), 37):
        written.write_bytes(content[:end])
        with pytest.raises(IndexFormatError):
            read(written)
    rng = np.random.default_rng(1)
    for place in rng.integers(0, len(content), 300).tolist():
        damaged = bytearray(content)
        damaged[place] ^= int(rng.integers(1, 256))
        written.write_bytes(bytes(damaged))
        try:
            read(written)
        except IndexFormatError:
            pass


# What would fill the memory


def test_too_many_labels(written: Path) -> None:
    forge(written, "labels", [["a"] * 50_000] * 6, compression="zstd")
    assert written.stat().st_size < 20_000
    with pytest.raises(IndexFormatError, match="300000 labels for 6 rows"):
        read(written)


def test_names_of_megabytes(written: Path) -> None:
    forge(written, "volume_id", ["x" * (1 << 20)] * 6, compression="zstd")
    assert written.stat().st_size < 20_000
    with pytest.raises(IndexFormatError, match=r"claims \d+ bytes and 6 labels for 6 rows"):
        read(written)


def test_a_shard_of_megabytes(tmp_path: Path, written: Path) -> None:
    shard = sorted(tmp_path.glob("slices-*"))[0]
    whole = pq.read_table(shard)
    place = whole.column_names.index("volume_id")
    long = whole.set_column(place, "volume_id", pa.array(["x" * (2 << 20)] * len(whole)))
    pq.write_table(long, shard, compression="zstd")
    with pytest.raises(IndexFormatError, match=r"claims \d+ bytes"):
        SliceTable([shard], ATTRIBUTES)


# An index folder that has one


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index of four shards as it is published."""
    plain = make_index(tmp_path / "plain", shard_rows=3)
    (tmp_path / "index").mkdir()
    return make_release(plain, tmp_path / "index", repo="lab/x").folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shards that are opened."""
    names: list[str] = []
    real: Callable[..., Any] = SliceTable._opened

    def spy(self: SliceTable, number: int) -> Any:
        names.append(Path(self.paths[number]).name)
        return real(self, number)

    monkeypatch.setattr(SliceTable, "_opened", spy)
    return names


def test_shards_are_opened_when_they_are_needed(
    index: Path, tmp_path: Path, opened: list[str]
) -> None:
    with open_store(index) as store:
        assert opened == []
        store.image(4)
        store.mask(5)
        assert opened == ["slices-00001.parquet"]
        store.image(0)
        assert opened[1:] == ["slices-00000.parquet"]
    with open_store(index) as ours, open_store(tmp_path / "plain") as plain:
        assert_same(ours, plain)


def test_without_it_the_shards_are_read(index: Path, tmp_path: Path, opened: list[str]) -> None:
    (index / COLUMNS).unlink()
    with open_store(index) as store:
        assert len(opened) == 4
        assert len(store) == 12
    assert hits(index) == hits(tmp_path / "plain")


@pytest.mark.parametrize("name", [COLUMNS, SHARD, "slices/slices-00003.parquet"])
@pytest.mark.parametrize("verify", ["changed", "full"])
def test_shards_are_hashed_when_the_index_is_opened(index: Path, name: str, verify: Any) -> None:
    path = index / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(IndexFormatError, match=f"{name} was changed"):
        open_store(index, verify=verify)


def test_a_shard_that_changes_while_the_index_is_open(index: Path) -> None:
    with open_store(index) as store:
        path = index / SHARD
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(bytes(content))
        with pytest.raises(IndexFormatError, match=f"{SHARD} was changed"):
            store.image(0)
        store.image(3)


def test_a_forger_who_moves_rows_between_shards(index: Path) -> None:
    whole = pq.read_table(index / COLUMNS)
    place = whole.column_names.index("shard")
    moved = pa.array([0] * 2 + [1] * 4 + [2] * 3 + [3] * 3, pa.int32())
    pq.write_table(whole.set_column(place, whole.schema.field("shard"), moved), index / COLUMNS)
    rehash(index)
    with open_store(index) as store:
        for row in (0, 5):
            with pytest.raises(IndexFormatError, match=r"has 3 rows, expected [24]"):
                store.image(row)
        store.image(6)


def test_more_shards_than_files_may_be_open(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    monkeypatch.setattr(slice_table, "_OPEN_SHARDS", 2)
    monkeypatch.setattr(slice_table, "_CACHED_GROUPS", 1)
    for folder in (index, tmp_path / "plain"):
        with open_store(folder) as store:
            expected = [store.image(row) for row in range(12)]
            table_ = store._table
            wrong: list[object] = []

            def look(
                seed: int, store: Any = store, expected: Any = expected, wrong: Any = wrong
            ) -> None:
                try:
                    for row in np.random.default_rng(seed).integers(0, 12, 60).tolist():
                        if not np.array_equal(store.image(row), expected[row]):
                            wrong.append(row)
                except Exception as error:
                    wrong.append(error)

            threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert wrong == []
            assert len(table_._open) <= 2
    assert len(opened) > 8


def test_the_file_is_the_same_every_time(index: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    again = make_release(index, tmp_path / "again", repo="lab/x").folder
    assert contents(again)[COLUMNS] == contents(index)[COLUMNS]
    assert row_columns.columns_schema([]).names[-2:] == ["shard", "annotated"]
