"""Opening: every check, with the file named; and what an open index gives."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index_fakes import DIM, POLICY, FakeEmbedder, contents, edit_manifest, make_case, rehash
from safetensors.numpy import load_file, save_file

from medretrieval.errors import IndexFormatError, UsageError
from medretrieval.index import build, faiss_files, open_store
from medretrieval.index.manifest import EMBEDDINGS_FILE
from medretrieval.index.png import encode_png
from medretrieval.index.table import SCHEMA

SHARD = "slices/slices-00000.parquet"
FILES = ("README.md", "index.faiss", EMBEDDINGS_FILE, SHARD)


def test_the_files_are_as_documented(own_index: Path, flat_index: Path) -> None:
    assert sorted(contents(own_index)) == sorted([*FILES, "manifest.json"])
    # A flat index searches the embeddings themselves; a second copy of them would serve nobody.
    assert sorted(contents(flat_index)) == sorted(set(contents(own_index)) - {"index.faiss"})


def test_embeddings_are_ordinary_safetensors(flat_index: Path) -> None:
    tensors = load_file(flat_index / EMBEDDINGS_FILE)
    np.testing.assert_array_equal(tensors["embeddings"], open_store(flat_index).embeddings)


@pytest.mark.parametrize("name", FILES)
def test_changed_file_is_refused_by_name(own_index: Path, name: str) -> None:
    path = own_index / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IndexFormatError, match=name) as caught:
        open_store(own_index)
    assert "sha256" in str(caught.value)


@pytest.mark.parametrize("verify", ["full", "sizes"])
@pytest.mark.parametrize("name", FILES)
def test_cut_file_is_refused_by_name(own_index: Path, name: str, verify: Any) -> None:
    path = own_index / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IndexFormatError, match=name):
        open_store(own_index, verify=verify)


@pytest.mark.parametrize("name", [EMBEDDINGS_FILE, SHARD])
def test_missing_file_is_refused_by_name(own_index: Path, name: str) -> None:
    (own_index / name).unlink()
    with pytest.raises(IndexFormatError, match=f"{name} is missing"):
        open_store(own_index)


@pytest.mark.parametrize("name", ["notes.txt", "slices/more.parquet", "embeddings/x.safetensors"])
def test_unlisted_file_is_refused_by_name(own_index: Path, name: str) -> None:
    (own_index / name).write_bytes(b"x")
    with pytest.raises(IndexFormatError, match=f"{name} is not listed"):
        open_store(own_index)


def test_hidden_files_of_downloads_do_no_harm(own_index: Path) -> None:
    (own_index / ".gitattributes").write_text("x")
    (own_index / ".cache").mkdir()
    (own_index / ".cache" / "x").write_text("x")
    open_store(own_index)


@pytest.mark.parametrize("name", FILES)
def test_link_in_place_of_a_file_is_refused(own_index: Path, tmp_path: Path, name: str) -> None:
    moved = tmp_path / "elsewhere"
    (own_index / name).rename(moved)
    (own_index / name).symlink_to(moved)
    with pytest.raises(IndexFormatError, match=f"{name} is a link"):
        open_store(own_index)


def test_link_in_place_of_a_folder_is_refused(own_index: Path, tmp_path: Path) -> None:
    (own_index / "slices").rename(tmp_path / "moved")
    (own_index / "slices").symlink_to(tmp_path / "moved")
    with pytest.raises(IndexFormatError, match="is a link"):
        open_store(own_index)


@pytest.mark.parametrize(
    "name",
    ["../secret", "slices/../../x.parquet", "/etc/passwd", "slices/a/b.parquet", "x.pkl", "C:\\x",
     "slices\\a.parquet", "manifest.json", "slices/.hidden.parquet", ""],
)  # fmt: skip
def test_manifest_cannot_point_elsewhere(own_index: Path, name: str) -> None:
    def change(data: dict[str, Any]) -> None:
        data["files"][name] = {"bytes": 0, "sha256": "0" * 64}

    edit_manifest(own_index, change)
    with pytest.raises(IndexFormatError, match="is not a file of an index"):
        open_store(own_index)


def test_newer_schema_says_to_upgrade(own_index: Path) -> None:
    edit_manifest(own_index, lambda data: data.update(schema_version=3))
    with pytest.raises(IndexFormatError, match=r"schema_version 3.*upgrade"):
        open_store(own_index)


def test_kind_of_a_newer_version_is_refused(own_index: Path) -> None:
    edit_manifest(own_index, lambda data: data["index"].update(kind="newest"))
    with pytest.raises(IndexFormatError, match="unknown index kind 'newest'"):
        open_store(own_index)


def test_what_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(IndexFormatError, match="does not exist"):
        open_store(tmp_path / "none")
    with pytest.raises(IndexFormatError, match=r"no manifest\.json"):
        open_store(tmp_path)
    file = tmp_path / "manifest.json"
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "not the manifest"),
        ("{}", "not the man"),
    ):
        file.write_text(text)
        with pytest.raises(IndexFormatError, match=message):
            open_store(tmp_path)
    with pytest.raises(IndexFormatError, match="is a file"):
        open_store(file)
    with pytest.raises(UsageError, match="verify"):
        open_store(tmp_path, verify="no")  # type: ignore[arg-type]


def forged_embeddings(folder: Path, change: Callable[[np.ndarray], Any]) -> None:
    path = folder / EMBEDDINGS_FILE
    data = load_file(path)["embeddings"]
    result = change(data)
    save_file({"embeddings": data if result is None else result}, path)
    rehash(folder)


def _set(row: int, value: float) -> Callable[[np.ndarray], None]:
    def change(data: np.ndarray) -> None:
        data[row] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set(3, np.nan), r"row 3 is not a unit vector \(norm nan"),
        (_set(2, np.inf), "row 2 is not a unit vector"),
        (_set(1, 0), "row 1 is not a unit vector"),
        (_set(8, 5), "row 8 is not a unit vector"),
        (lambda data: data[:-1], r"\[8, 12\]"),
        (lambda data: np.ascontiguousarray(data[:, :-1]), r"\[9, 11\]"),
        (lambda data: data.astype(np.float16), "F16"),
        (lambda data: data.astype(np.float64), "F64"),
    ],
)
def test_wrong_embeddings_are_refused_whatever_the_hash(
    own_index: Path, change: Callable[[np.ndarray], Any], message: str
) -> None:
    forged_embeddings(own_index, change)
    with pytest.raises(IndexFormatError, match=message) as caught:
        open_store(own_index)
    assert EMBEDDINGS_FILE in str(caught.value)


def test_float16_embeddings_are_checked_as_stored(tmp_path: Path) -> None:
    out = build(
        [make_case(0)], tmp_path / "i", embedder=FakeEmbedder(), slices=POLICY, name="n",
        float16=True,
    )  # fmt: skip
    forged_embeddings(out, _set(1, 3))
    with pytest.raises(IndexFormatError, match="row 1 is not a unit vector"):
        open_store(out)


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ENTRY = {"dtype": "F32", "shape": [9, DIM], "data_offsets": [0, 9 * DIM * 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        safetensors({}, length=1 << 60),
        safetensors(b"not json"),
        safetensors(b"[" * 5000),
        safetensors({"other": ENTRY}, b"\0" * 432),
        safetensors({"embeddings": ENTRY, "more": ENTRY}, b"\0" * 432),
        safetensors({"embeddings": ENTRY}, b"\0" * 431),
        safetensors({"embeddings": {**ENTRY, "data_offsets": [4, 436]}}, b"\0" * 436),
        safetensors({"embeddings": {**ENTRY, "shape": [1 << 40, DIM]}}, b"\0" * 432),
        safetensors({"embeddings": 3}, b"\0" * 432),
        safetensors([1, 2], b"\0" * 432),
    ],
)
def test_malformed_safetensors_are_refused(own_index: Path, content: bytes) -> None:
    (own_index / EMBEDDINGS_FILE).write_bytes(content)
    rehash(own_index)
    with pytest.raises(IndexFormatError, match=EMBEDDINGS_FILE):
        open_store(own_index)


def forged_table(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.read_table(folder / SHARD)
    pq.write_table(change(table), folder / SHARD)
    rehash(folder)


def _column(name: str, values: list[Any]) -> Callable[[pa.Table], pa.Table]:
    field = SCHEMA.field(name)
    position = SCHEMA.get_field_index(name)
    return lambda table: table.set_column(position, field, pa.array(values, field.type))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.take([1, 0, *range(2, 9)]), "row_id"),
        (lambda t: t.slice(0, 8), "holds 8 rows"),
        (lambda t: t.drop_columns(["mask"]), "other columns"),
        (_column("row_id", [None, *range(1, 9)]), "row_id has empty values"),
        (_column("volume_id", ["a"] * 9), "holds 1 volumes"),
        (_column("patient_id", ["a"] * 9), "holds 1 patients"),
        (_column("region", ["x" * 501] * 9), "longer than"),
        (_column("image", [None] * 9), "no image"),
        (_column("mask", [None] * 9), "0 annotated slices"),
        (_column("spacing", [[1.0]] * 9), "three numbers"),
        (_column("labels", [[None]] * 9), "no name"),
    ],
)
def test_wrong_rows_are_refused_whatever_the_hash(
    own_index: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    forged_table(own_index, change)
    with pytest.raises(IndexFormatError, match=message) as caught:
        open_store(own_index)
    assert "slices" in str(caught.value)


def _picture(column: str, content: bytes) -> Callable[[pa.Table], pa.Table]:
    return _column(column, [{"bytes": content, "path": None}] * 9)


@pytest.mark.parametrize(
    ("column", "content", "message"),
    [
        ("image", b"no picture", "not a valid picture"),
        ("image", encode_png(np.zeros((65, 2), np.uint8)), "limit 64"),
        ("image", encode_png(np.zeros((2, 2), np.uint16)), "8 bits"),
        ("mask", encode_png(np.full((11, 9), 200, np.uint8)), r"without a name: \[200\]"),
        ("mask", encode_png(np.zeros((11, 9, 3), np.uint8)), "not a label map"),
        ("mask", encode_png(np.ones((2, 2), np.uint8)), "differ in size"),
    ],
)
def test_wrong_pictures_are_refused_when_read(
    own_index: Path, column: str, content: bytes, message: str
) -> None:
    forged_table(own_index, _picture(column, content))
    with open_store(own_index) as store, pytest.raises(IndexFormatError, match=message) as caught:
        store.support(5)
    assert f"{SHARD}, row_id 5" in str(caught.value)


def test_sizes_alone_do_not_read_the_contents(own_index: Path) -> None:
    path = own_index / EMBEDDINGS_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert len(open_store(own_index, verify="sizes")) == 9


def _forbidden(*_: object, **__: object) -> None:
    raise AssertionError("index.faiss was read")


@pytest.mark.parametrize("reason", ["untrusted", "absent", "unlisted"])
def test_faiss_file_is_rebuilt_where_it_must_not_be_read(
    own_index: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    wanted = open_store(own_index).neighbours(np.eye(3, DIM), 4)
    if reason == "absent":
        (own_index / "index.faiss").unlink()
    if reason == "unlisted":
        edit_manifest(own_index, lambda data: data["files"].pop("index.faiss"))
        (own_index / "index.faiss").write_bytes(b"evil")
    monkeypatch.setattr(faiss_files, "read_faiss", _forbidden)
    store = open_store(own_index, trusted=reason != "untrusted")
    for found, expected in zip(store.neighbours(np.eye(3, DIM), 4), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_faiss_file_is_hashed_even_if_only_sizes_were_compared(own_index: Path) -> None:
    path = own_index / "index.faiss"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    store = open_store(own_index, verify="sizes")
    with pytest.raises(IndexFormatError, match=r"index\.faiss was changed"):
        store.neighbours(np.eye(1, DIM), 1)


def test_faiss_file_of_other_rows_is_refused(own_index: Path, tmp_path: Path) -> None:
    other = build(
        [make_case(0)], tmp_path / "o", embedder=FakeEmbedder(), slices=POLICY, name="n",
        index_kind="hnsw",
    )  # fmt: skip
    for content, message in (
        ((other / "index.faiss").read_bytes(), r"holds IndexHNSW\w+ of 3 x 12"),
        (b"not faiss at all", "cannot be read by FAISS"),
    ):
        (own_index / "index.faiss").write_bytes(content)
        rehash(own_index)
        store = open_store(own_index)
        with pytest.raises(IndexFormatError, match=message):
            store.neighbours(np.eye(1, DIM), 1)


def test_rows_and_supports(flat_index: Path) -> None:
    with open_store(flat_index) as store:
        assert len(store) == 18
        support = store.support(7, score=0.5)
        assert support.key == "volume-001:3"
        assert support.score == 0.5
        assert support.image.shape == support.mask.shape == (11, 9)
        assert set(support.names.values()) == set(store.labels[7]) <= {"RV", "LV"}
        for call in (store.image, store.mask, store.has_mask, store.support):
            for row in (-1, 18):
                with pytest.raises(UsageError, match=r"0\.\.17"):
                    call(row)
        assert "18 slices of 5 volumes" in repr(store)


def test_info_is_json_and_adds_up(own_index: Path) -> None:
    info = json.loads(json.dumps(open_store(own_index).info()))
    files = contents(own_index)
    assert info["files"] == len(files) - 1 == 4
    assert info["bytes"] == sum(map(len, files.values())) - len(files["manifest.json"])
    assert info["stored_faiss_index"] is True
    assert info["index"]["parameters"]["M"] == 32


def test_embeddings_are_mapped_and_read_only(flat_index: Path) -> None:
    store = open_store(flat_index)
    assert isinstance(store.embeddings, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.embeddings[0] = 0


def test_several_threads_read_the_same_store(flat_index: Path) -> None:
    with open_store(flat_index) as store:
        wanted = [store.image(row) for row in range(18)]
        nearest = store.neighbours(store.embeddings, 3)[1]
    with open_store(flat_index) as store:
        wrong: list[object] = []

        def read(first: int) -> None:
            for step in range(36):
                row = (first + step) % 18
                if not np.array_equal(store.image(row), wanted[row]):
                    wrong.append(row)
            if not np.array_equal(store.neighbours(store.embeddings, 3)[1], nearest):
                wrong.append("neighbours")

        threads = [threading.Thread(target=read, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_an_index_can_be_moved(own_index: Path, tmp_path: Path) -> None:
    moved = own_index.rename(tmp_path / "moved")
    assert len(open_store(moved)) == 9
    assert str(tmp_path).encode() not in b"".join(contents(moved).values())


def test_a_name_of_the_hub_where_a_folder_is_needed() -> None:
    with pytest.raises(
        IndexFormatError, match="pulled first: `medretrieval pull lab/none@v1 FOLDER`"
    ):
        open_store("lab/none@v1")
    with pytest.raises(IndexFormatError, match=r"writes it$"):
        open_store("/lab/none")
