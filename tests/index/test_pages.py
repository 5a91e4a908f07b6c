"""Parquet files that are small and grow large in memory are refused before they are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index_fakes import POLICY, FakeEmbedder, make_case
from sharing import SHARD, make_index

from medretrieval.errors import IndexFormatError, UsageError
from medretrieval.index import pages, slice_table
from medretrieval.index.builder import build
from medretrieval.index.files import file_entry
from medretrieval.index.manifest import MAX_SIDE
from medretrieval.index.memory_files import open_memories
from medretrieval.index.pages import check_pages
from medretrieval.index.store import open_store
from medretrieval.types import SlicePolicy

LONG = 1 << 20
ROWS = 300


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("pages") / "index")


def pictures(values: list[bytes], path: str | None = None) -> pa.Table:
    cells = [{"bytes": value, "path": path} for value in values]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"image": pa.array(cells, kind)})


BOMBS = {
    "compressed": (
        lambda: pictures([bytes(LONG)] * ROWS),
        {"compression": "zstd", "use_dictionary": False},
    ),
    "one value for all rows": (
        lambda: pictures([bytes(LONG)] * ROWS),
        {"compression": "none", "use_dictionary": ["image.bytes"]},
    ),
    "what was there before and one byte more": (
        lambda: pictures([bytes(LONG + n) for n in range(4)]),
        {"use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_BYTE_ARRAY"}},
    ),
    "a path for all pictures": (
        lambda: pictures([b""] * ROWS, path="x" * (LONG << 1)),
        {"compression": "zstd", "use_dictionary": ["image.path"]},
    ),
    "numbers": (
        lambda: pa.table({"spacing": pa.array([np.zeros(LONG)] * 16)}),
        {"compression": "zstd"},
    ),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_bombs_are_refused(tmp_path: Path, name: str, version: str) -> None:
    make, options = BOMBS[name]
    path = tmp_path / "bomb.parquet"
    pq.write_table(
        make(), path, data_page_version=version, dictionary_pagesize_limit=1 << 30, **options
    )
    with pytest.raises(IndexFormatError, match=r"bomb\.parquet is not read.*do not use it"):
        check_pages(path)


@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"data_page_version": "2.0"}])
@pytest.mark.parametrize("dictionary", [False, True])
def test_files_of_any_program_pass(
    index: Path, tmp_path: Path, options: dict[str, Any], dictionary: bool
) -> None:
    path = tmp_path / "same.parquet"
    pq.write_table(pq.read_table(index / SHARD), path, use_dictionary=dictionary, **options)
    check_pages(path)
    check_pages(index / SHARD)


def test_no_parquet_is_left_to_the_reader(tmp_path: Path) -> None:
    for content in (b"", b"PAR1", b"PAR1 something else PAR1"):
        (tmp_path / "x").write_bytes(content)
        check_pages(tmp_path / "x")


def test_pages_are_what_counts_not_the_footer(index: Path, tmp_path: Path) -> None:
    """Every byte of the pages is turned: a page either passes as it was, or is refused."""
    path = tmp_path / "turned.parquet"
    whole = (index / SHARD).read_bytes()
    column = pq.read_metadata(index / SHARD).row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    refused = 0
    for place in range(start, start + 20):
        for value in (0, 0xFF, whole[place] ^ 0x80, whole[place] ^ 2):
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                check_pages(path)
            except IndexFormatError:
                refused += 1
    assert refused > 20


def test_header_that_does_not_end(tmp_path: Path) -> None:
    for content in (
        b"\x1c" * 40,
        b"\x15" + b"\xff" * 20,
        b"\x00",
        b"\x19\x00",
        b"\x15\x02\x05\x02",
    ):
        with pytest.raises((pages._MalformedError, IndexError)):  # check_pages refuses both
            pages._page(pages._struct(content, 0)[0], 0)  # type: ignore[arg-type]


def swap(index: Path, out: Path, change: Callable[[pa.Table], pa.Table], **options: Any) -> Path:
    """A copy of an index with another shard, to which its manifest agrees."""
    shutil.copytree(index, out)
    pq.write_table(change(pq.read_table(index / SHARD)), out / SHARD, **options)
    manifest = json.loads((out / "manifest.json").read_text())
    entry = file_entry(out / SHARD)
    manifest["files"][SHARD] = {"bytes": entry.bytes, "sha256": entry.sha256}
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def test_open_refuses_a_bomb_that_the_manifest_lists(index: Path, tmp_path: Path) -> None:
    def larger(table: pa.Table) -> pa.Table:
        made = pictures([bytes(30 << 20)] * len(table)).column("image")
        return table.set_column(table.schema.get_field_index("image"), "image", made)

    hostile = swap(index, tmp_path / "hostile", larger, compression="zstd")
    assert (hostile / SHARD).stat().st_size < 1 << 20
    with pytest.raises(IndexFormatError, match=r"slices-00000\.parquet is not read.*image\.bytes"):
        open_store(hostile)


def test_long_label_of_every_row(index: Path, tmp_path: Path) -> None:
    """A file of a megabyte, of which gigabytes would be made."""

    def labelled(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index("labels")
        codes = pa.array(np.zeros(len(table) * 500, np.int32))
        values = pa.DictionaryArray.from_arrays(codes, ["x" * 700_000])
        offsets = pa.array(np.arange(0, len(codes) + 1, 500, dtype=np.int32))
        lists = pa.ListArray.from_arrays(offsets, values).cast(pa.list_(values.type))
        return table.set_column(place, pa.field("labels", lists.type), lists)

    hostile = swap(
        index,
        tmp_path / "hostile",
        labelled,
        compression="none",
        use_dictionary=True,
        dictionary_pagesize_limit=1 << 30,
        store_schema=False,
    )
    assert (hostile / SHARD).stat().st_size < 2 << 20
    with pytest.raises(IndexFormatError, match=r"labels\.list\.element would take 4\d\d\d MB"):
        open_store(hostile)


def test_pictures_that_are_kept_have_a_bound(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_table, "_CACHED_BYTES", 1)
    with open_store(index) as store:
        pictures = [store.image(0), store.image(1)]
        assert store.mask(0) is not None
        assert len(store._table._cache) == 1
        np.testing.assert_array_equal(store.image(0), pictures[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["slices"].update(max_side=MAX_SIDE + 1), "'max_side' is 8193, expected"),
        (lambda m: m["counts"].update(slices=10**300), "'slices' is a number that is larger"),
        (lambda m: m.update(name="\ud800"), "not valid JSON"),
        (lambda m: m.update(unknown={"\udfff": 1}), "not valid JSON"),
    ],
)
def test_manifest_that_could_fill_memory_or_messages(
    index: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(index, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(IndexFormatError, match=message) as caught:
        open_store(copy)
    assert len(str(caught.value)) < 400


def test_build_makes_no_index_that_would_be_refused(tmp_path: Path) -> None:
    policy = SlicePolicy(axis=POLICY.axis, window=POLICY.window, max_side=MAX_SIDE + 1)
    with pytest.raises(UsageError, match="no index has more than 8192"):
        build([make_case(0)], tmp_path / "out", name="x", embedder=FakeEmbedder(), slices=policy)


def test_header_of_memories_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "memories.safetensors"
    header = b"{}" + b" " * (9 << 20)
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="its header claims 9437186 bytes"):
        open_memories(path, "numpy")
