"""What can harm the process that reads it is read of an allow-listed source at a full commit only.

The Hub of these tests is modelled on huggingface_hub 2.4.0, see `tests/hub/server.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub.client import LocalHub
from sharing import EMBEDDINGS, REPO, fetched, hits, make_index, pushed

from medretrieval.errors import IndexFormatError, UsageError
from medretrieval.folders import trust_file
from medretrieval.index import faiss_files, open_stores
from medretrieval.index.opening import open_named
from medretrieval.index.pull import pull
from medretrieval.index.store import open_store
from medretrieval.index.trust import allowed, is_trusted

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FAISS = "index.faiss"


@pytest.fixture
def allow_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "trusted.txt"
    monkeypatch.setenv("MEDRETRIEVAL_TRUSTED", str(path))
    return path


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return make_index(tmp_path / "hearts", index_kind="hnsw")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The FAISS files that are read."""
    paths: list[Path] = []
    real = faiss_files.read_faiss

    def spy(path: Path, **options: Any) -> Any:
        paths.append(path)
        return real(path, **options)

    monkeypatch.setattr(faiss_files, "read_faiss", spy)
    return paths


# The allow-list


@pytest.mark.parametrize(
    ("text", "trusted"),
    [
        ("", False),
        ("lab", True),
        ("lab/hearts", True),
        ("  lab/hearts   # ours\n", True),
        ("# lab\n", False),
        ("other\nlab\n", True),
        ("lab/livers\n", False),
        ("Lab\n", False),
        ("la\n", False),
        ("lab/hearts-2\n", False),
        ("\n\n", False),
    ],
)
def test_what_is_listed(allow_list: Path, text: str, trusted: bool) -> None:
    allow_list.write_text(text)
    assert is_trusted("lab/hearts", COMMIT) is trusted
    assert not is_trusted("lab/hearts", None)


@pytest.mark.parametrize(
    "revision", [None, "main", "v1", COMMIT[:12], COMMIT.upper(), "", "g" * 40]
)
def test_only_a_full_commit_is_pinned(allow_list: Path, revision: str | None) -> None:
    allow_list.write_text("lab\n")
    assert not is_trusted("lab/hearts", revision)


def test_no_list(allow_list: Path) -> None:
    assert not is_trusted("lab/hearts", COMMIT)


@pytest.mark.parametrize(
    "text", ["lab/*", "*", "lab/hearts@v1", "a/b/c", "../x", "lab hearts", "/"]
)
def test_a_malformed_list(allow_list: Path, text: str) -> None:
    allow_list.write_text(f"lab\n{text}\n")
    with pytest.raises(UsageError, match=f"{allow_list}, line 2: .* is no organisation"):
        is_trusted("lab/hearts", COMMIT)


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_list_that_cannot_be_read(allow_list: Path, content: bytes | None) -> None:
    if content is None:
        allow_list.mkdir()
    else:
        allow_list.write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read"):
        allowed()


@pytest.mark.parametrize("mode", [0o660, 0o606, 0o666, 0o777])
def test_a_list_that_others_can_write(
    allow_list: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    allow_list.write_text("lab\n")
    allow_list.chmod(mode)
    assert not is_trusted("lab/hearts", COMMIT)
    assert "chmod go-w" in caplog.text
    allow_list.chmod(0o644)
    assert is_trusted("lab/hearts", COMMIT)


def test_a_list_of_another_user(allow_list: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow_list.write_text("lab\n")
    status = os.stat(allow_list)
    # Files of root count as one's own, so that the owner is somebody else again.
    values = list(status)
    values[4] = 12345
    monkeypatch.setattr(os, "fstat", lambda _: os.stat_result(values))
    assert not is_trusted("lab/hearts", COMMIT)


def test_where_the_list_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MEDRETRIEVAL_TRUSTED", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert trust_file() == tmp_path / "medretrieval" / "trusted.txt"


# The search structure


@pytest.mark.parametrize("listed", ["lab", "lab/hearts", "other", None])
@pytest.mark.parametrize("revision", ["", "@main", "@v1", "@commit"])
def test_when_a_search_structure_is_read(
    hub: LocalHub,
    index: Path,
    tmp_path: Path,
    allow_list: Path,
    read: list[Path],
    listed: str | None,
    revision: str,
) -> None:
    commit = pushed(hub, index)
    if listed:
        allow_list.write_text(f"{listed}\n")
    source = REPO + revision.replace("commit", commit)
    may = listed in ("lab", "lab/hearts") and revision == "@commit"
    with open_named(source) as store:
        store.searcher()
    assert (bool(read), FAISS in fetched(hub)) == (may, may)
    read.clear()
    out = pull(source, tmp_path / "out")
    assert (out / FAISS).exists() is may
    with open_store(out) as store:
        store.searcher()
    assert bool(read) is may
    assert hits(source) == hits(index)


def test_one_that_lies_in_the_cache_is_not_read(
    hub: LocalHub, index: Path, allow_list: Path, read: list[Path]
) -> None:
    commit = pushed(hub, index)
    allow_list.write_text("lab\n")
    with open_named(f"{REPO}@{commit}") as store:
        store.searcher()
    assert len(read) == 1
    for source in (REPO, f"{REPO}@v1", [f"{REPO}@main"]):
        with open_stores(source) as store:
            store.searcher() if hasattr(store, "searcher") else store.stores[0].searcher()
    allow_list.unlink()
    with open_named(f"{REPO}@{commit}") as store:
        store.searcher()
    assert len(read) == 1


def test_who_asks_for_no_trust_gets_none(
    hub: LocalHub, index: Path, allow_list: Path, read: list[Path]
) -> None:
    commit = pushed(hub, index)
    allow_list.write_text("lab\n")
    with open_named(f"{REPO}@{commit}", trusted=False) as store:
        store.searcher()
    with open_store(index, trusted=False) as store:
        store.searcher()
    assert read == []


def test_a_trusted_one_is_hashed_nevertheless(
    hub: LocalHub, index: Path, tmp_path: Path, allow_list: Path, read: list[Path]
) -> None:
    commit = pushed(hub, index)
    allow_list.write_text("lab\n")
    hub.flip_byte(REPO, FAISS, 200)
    with open_named(f"{REPO}@{commit}") as store:
        with pytest.raises(IndexFormatError, match=r"index.faiss of lab/hearts.*refused"):
            store.searcher()
    with pytest.raises(IndexFormatError, match=r"index.faiss of lab/hearts.*refused"):
        pull(f"{REPO}@{commit}", tmp_path / "out")
    assert read == []
    hub.flip_byte(REPO, FAISS, 200)
    assert hits(f"{REPO}@{commit}") == hits(index)
    assert read


def test_a_foreign_structure_of_an_exact_index_is_never_read(
    hub: LocalHub, tmp_path: Path, allow_list: Path, read: list[Path]
) -> None:
    commit = pushed(hub, make_index(tmp_path / "flat"))
    assert FAISS in hub.repo(REPO).paths()  # for users of datasets
    allow_list.write_text("lab\n")
    with open_named(f"{REPO}@{commit}") as store:
        store.searcher()
    assert read == []
    assert FAISS not in fetched(hub)


def test_the_structure_that_is_made_here_finds_the_same(
    hub: LocalHub, index: Path, allow_list: Path
) -> None:
    commit = pushed(hub, index)
    allow_list.write_text("lab\n")
    queries = np.eye(12, dtype=np.float32)
    with open_named(REPO) as made, open_named(f"{REPO}@{commit}") as fetched_one:
        for a, b in zip(
            made.neighbours(queries, 5), fetched_one.neighbours(queries, 5), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_an_index_without_structure_is_fetched_without(
    hub: LocalHub, index: Path, read: list[Path]
) -> None:
    pushed(hub, index, tables=False)
    assert hits(REPO, pictures=False) == hits(index, pictures=False)
    assert fetched(hub).count(EMBEDDINGS) == 1
    assert [path for path in read if "hub" in path.parts] == []
