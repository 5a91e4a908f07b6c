"""What was hashed once is not hashed again, unless anything about the file is different."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_fakes import DIM, contents, edit_manifest, rehash
from safetensors.numpy import load_file, save_file

from medretrieval.errors import IndexFormatError
from medretrieval.index import open_store, tensors, verified
from medretrieval.index.manifest import EMBEDDINGS_FILE

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="nothing is remembered where files have no time of change"
)

FAISS = "index.faiss"


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the records, empty; the clock is ahead, so that files are old enough."""
    monkeypatch.setenv("MEDRETRIEVAL_CACHE", str(tmp_path / "cache"))
    ahead(monkeypatch, seconds=10)
    return tmp_path / "cache" / "verified"


def ahead(monkeypatch: pytest.MonkeyPatch, *, seconds: float) -> None:
    real = time.time_ns
    monkeypatch.setattr(verified.time, "time_ns", lambda: real() + int(seconds * 1e9))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed, in order; a test may empty it."""
    names: list[str] = []
    real = verified.hashlib.file_digest

    def watched(file: Any, algorithm: str) -> Any:
        names.append(Path(file.name).name)
        return real(file, algorithm)

    monkeypatch.setattr(verified.hashlib, "file_digest", watched)
    return names


def names_of(folder: Path) -> set[str]:
    return {Path(name).name for name in contents(folder)} - {"manifest.json"}


def test_second_opening_hashes_nothing(own_index: Path, records: Path, hashed: list[str]) -> None:
    open_store(own_index)
    assert set(hashed) == names_of(own_index)
    assert len(list(records.iterdir())) == 1
    hashed.clear()
    store = open_store(own_index)
    store.neighbours(np.eye(1, DIM), 1)  # reads index.faiss
    assert hashed == []


def test_norms_are_looked_at_once(
    own_index: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    real = tensors._norms

    def watched(block: Any, first: int, *rest: Any) -> Any:
        looked.append(first)
        return real(block, first, *rest)

    monkeypatch.setattr(tensors, "_norms", watched)
    open_store(own_index, verify="sizes")
    assert looked == []
    open_store(own_index)
    assert looked == [0]
    open_store(own_index)
    assert looked == [0]
    open_store(own_index, verify="full")
    assert looked == [0, 0]


def test_full_hashes_every_time(own_index: Path, records: Path, hashed: list[str]) -> None:
    open_store(own_index)
    hashed.clear()
    store = open_store(own_index, verify="full")
    assert set(hashed) == names_of(own_index)
    hashed.clear()
    store.neighbours(np.eye(1, DIM), 1)
    assert hashed == [FAISS]


def test_what_full_found_right_counts(own_index: Path, records: Path, hashed: list[str]) -> None:
    open_store(own_index, verify="full")
    hashed.clear()
    open_store(own_index)
    assert hashed == []


def flip(path: Path) -> None:
    """Change one byte; size and time of modification stay."""
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(status.st_size // 2)
        byte = file.read(1)[0]
        file.seek(status.st_size // 2)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path: Path) -> None:
    """Put another file of the same size and time of modification in its place."""
    status = path.stat()
    other = path.with_name("." + path.name)
    other.write_bytes(bytes(status.st_size))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, path)


@pytest.mark.parametrize("change", [flip, replace])
@pytest.mark.parametrize(
    "name", ["README.md", FAISS, EMBEDDINGS_FILE, "slices/slices-00000.parquet"]
)
def test_changed_file_is_found_whatever_its_times_say(
    own_index: Path, records: Path, name: str, change: Callable[[Path], None]
) -> None:
    open_store(own_index)
    change(own_index / name)
    with pytest.raises(IndexFormatError, match=f"{name} was changed"):
        open_store(own_index)


def test_faiss_file_that_changed_since_opening_is_not_read(own_index: Path, records: Path) -> None:
    open_store(own_index)
    store = open_store(own_index)
    flip(own_index / FAISS)
    with pytest.raises(IndexFormatError, match=r"index\.faiss was changed"):
        store.neighbours(np.eye(1, DIM), 1)


def test_faiss_file_behind_a_link_is_hashed(own_index: Path, records: Path, tmp_path: Path) -> None:
    store = open_store(own_index)
    evil = tmp_path / "evil"
    evil.write_bytes(b"evil")
    (own_index / FAISS).unlink()
    (own_index / FAISS).symlink_to(evil)
    with pytest.raises(IndexFormatError, match=r"index\.faiss was changed"):
        store.neighbours(np.eye(1, DIM), 1)


def test_file_that_may_still_change_within_its_time_is_not_remembered(
    own_index: Path, records: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead(monkeypatch, seconds=-100)  # as if the files had been written after now
    open_store(own_index)
    assert not records.exists()
    hashed.clear()
    open_store(own_index)
    assert set(hashed) == names_of(own_index)


@pytest.mark.parametrize(
    ("after_ns", "settled"), [(0, False), (2 * 10**9, False), (2 * 10**9 + 1, True)]
)
def test_a_file_is_settled_more_than_two_seconds_after_its_last_change(
    own_index: Path, after_ns: int, settled: bool
) -> None:
    status = os.stat(own_index / "README.md")
    assert verified._settled(status, status.st_ctime_ns + after_ns) is settled


def test_only_what_changed_is_hashed_again(
    own_index: Path, records: Path, hashed: list[str]
) -> None:
    open_store(own_index)
    (own_index / "README.md").write_text("another card")
    rehash(own_index)
    hashed.clear()
    open_store(own_index)
    assert hashed == ["README.md"]


def test_norms_of_new_embeddings_are_looked_at(own_index: Path, records: Path) -> None:
    open_store(own_index)
    data = load_file(own_index / EMBEDDINGS_FILE)["embeddings"]
    data[3] = 7
    save_file({"embeddings": data}, own_index / EMBEDDINGS_FILE)
    rehash(own_index)
    with pytest.raises(IndexFormatError, match="row 3 is not a unit vector"):
        open_store(own_index)
    with pytest.raises(IndexFormatError, match="row 3 is not a unit vector"):
        open_store(own_index)  # that it was hashed says nothing of its norms


def test_hash_in_the_manifest_decides(own_index: Path, records: Path) -> None:
    open_store(own_index)
    edit_manifest(own_index, lambda data: data["files"]["README.md"].update(sha256="0" * 64))
    with pytest.raises(IndexFormatError, match=r"README\.md was changed"):
        open_store(own_index)


def _json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = json.loads(path.read_text())
        path.write_text(json.dumps(change(data) or data))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\xfe{"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: os.truncate(path, 1 << 40),
        lambda path: path.chmod(0o666),
        _json(lambda data: [1]),
        _json(lambda data: data.update(format=0)),
        _json(lambda data: data.update(folder="/elsewhere")),
        _json(lambda data: data.update(files=3)),
        _json(lambda data: data["files"].update(x={"state": [1], "sha256": "", "norms": True})),
        _json(lambda data: data["files"].update({"README.md": None})),
    ],
)
def test_damaged_record_is_only_a_slower_opening(
    own_index: Path, records: Path, hashed: list[str], damage: Callable[[Path], None]
) -> None:
    open_store(own_index)
    (record,) = records.iterdir()
    damage(record)
    hashed.clear()
    open_store(own_index)
    assert set(hashed) == names_of(own_index)


@pytest.mark.parametrize("kind", ["file", "unwritable"])
def test_without_a_place_for_records_an_index_opens(
    own_index: Path, records: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "file":
        records.parent.write_text("no folder")
    else:
        monkeypatch.setattr(verified, "_write", refuse)
    assert len(open_store(own_index)) == 9


def refuse(*_: object) -> None:
    raise PermissionError("read-only file system")


def test_records_are_few_and_private(
    own_index: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "_MAX_RECORDS", 3)
    records.mkdir(parents=True)
    for number in range(5):
        path = records / f"{number}.json"
        path.write_text("{}")
        os.utime(path, ns=(number, number))
    open_store(own_index)
    left = {path.name for path in records.iterdir()}
    assert {"3.json", "4.json"} < left
    assert len(left) == 3
    (own,) = left - {"3.json", "4.json"}
    assert (records / own).stat().st_mode & 0o077 == 0


def test_an_index_of_very_many_files_is_not_remembered(
    own_index: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "_MAX_FILES", 3)
    open_store(own_index)
    assert not records.exists()


def test_info_says_what_was_checked(own_index: Path, records: Path) -> None:
    assert "sha256" in open_store(own_index).info()["checked"]
    checked = open_store(own_index, verify="sizes").info()["checked"]
    assert "sizes" in checked
    assert not {"sha256", "norms"} & set(checked)
