"""Two labs share an index: one pushes, the other pulls it into a folder of its own.

The API that they meet is modelled on huggingface_hub 2.4.0, see `tests/hub/server.py`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hub.client import ROOT, LocalHub
from index_fakes import FakeEmbedder, contents, make_case
from sharing import (
    CARD,
    COLUMNS,
    EMBEDDINGS,
    MANIFEST,
    REPO,
    OtherEmbedder,
    assert_same,
    fetched,
    hits,
    make_index,
    pushed,
    recorder,
)

from medretrieval.errors import Cancelled, IndexFormatError, UsageError
from medretrieval.index import add_embedder, append, drop_embedder
from medretrieval.index.leftovers import leftovers
from medretrieval.index.opening import open_named
from medretrieval.index.pull import pull
from medretrieval.index.push import push
from medretrieval.index.store import open_store
from medretrieval.index.workspace import lock_folder


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return make_index(tmp_path / "lab-a" / "hearts")


@pytest.mark.parametrize("named", ["tag", "commit", "branch", "main", "address"])
def test_the_other_lab_finds_the_same(
    hub: LocalHub, index: Path, tmp_path: Path, named: str
) -> None:
    commit = pushed(hub, index)
    hub.repo(REPO).branches["review"] = hub.repo(REPO).commit("main")
    source = {
        "tag": f"{REPO}@v1",
        "commit": f"{REPO}@{commit}",
        "branch": f"{REPO}@review",
        "main": REPO,
        "address": f"https://huggingface.co/datasets/{REPO}",
    }[named]
    out = pull(source, tmp_path / "lab-b")
    assert hits(out) == hits(index) == hits(source)
    with open_store(out) as theirs, open_store(index) as ours, open_named(source) as remote:
        assert_same(theirs, ours)
        assert_same(remote, ours)


def test_what_is_pulled_is_what_was_published(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    commit = pushed(hub, index)
    found = contents(pull(REPO, tmp_path / "out"))
    there = {name: hub.repo(REPO).content(name) for name in hub.repo(REPO).paths(commit)}
    assert all(there[name] == content for name, content in found.items())
    # Tables for datasets, and what is not trusted, stay there.
    left = set(there) - set(found)
    assert left == {".gitattributes", "embeddings/embeddings.parquet", "index.faiss"}


def test_the_folder_is_one_of_its_own(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    """It outlives the cache, and what is done to it leaves the cache as it is."""
    pushed(hub, index)
    out = pull(REPO, tmp_path / "out")
    assert not [path for path in out.rglob("*") if path.is_symlink()]
    before = {path: path.read_bytes() for path in (hub.home / "hub").rglob("blobs/*")}
    add_embedder(out, embedder=OtherEmbedder())
    append(
        out,
        tmp_path / "new",
        [make_case(9)],
        embedder=FakeEmbedder(),
        without_embedders=["other"],
    )
    drop_embedder(out, "fake")
    assert {path: path.read_bytes() for path in (hub.home / "hub").rglob("blobs/*")} == before


def test_a_pull_out_of_the_cache(
    hub: LocalHub, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(hub, index)
    pull(REPO, tmp_path / "a")
    hub.reset_log()
    pull(REPO, tmp_path / "b")
    assert fetched(hub) == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pull(REPO, tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


def test_embeddings_first_pictures_last(
    hub: LocalHub, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medretrieval.index.remote._AT_ONCE", 1)
    pushed(hub, index)
    pull(REPO, tmp_path / "out")
    shard = "slices/slices-00000.parquet"
    assert fetched(hub) == [MANIFEST, EMBEDDINGS, COLUMNS, shard, CARD]


def test_a_later_version_fetches_what_differs(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    pushed(hub, index)
    pull(REPO, tmp_path / "out")
    add_embedder(index, embedder=OtherEmbedder())
    pushed(hub, index)
    pull(REPO, tmp_path / "out", force=True)
    assert sorted(fetched(hub)) == sorted([CARD, MANIFEST, "embeddings/other.safetensors"])
    with open_store(tmp_path / "out") as store:
        assert store.manifest.version == 2


def test_only_one_embedder(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    add_embedder(index, embedder=OtherEmbedder())
    pushed(hub, index)
    for number, (source, names) in enumerate([(REPO, ["other"]), (f"{REPO}#other", None)]):
        out = pull(source, tmp_path / f"out{number}", embedders=names)
        assert not (out / EMBEDDINGS).exists()
        with open_store(out, embedder="other") as store, open_store(index) as ours:
            assert_same_but_embeddings(store, ours)
        with pytest.raises(IndexFormatError, match=r"the embeddings by fake.*by another"):
            open_store(out)
    assert EMBEDDINGS not in fetched(hub)
    both = pull(REPO, tmp_path / "both", embedders=["fake", "other"])
    with open_store(both) as store, open_store(index) as ours:
        assert_same(store, ours)
    with pytest.raises(UsageError, match="unknown embedder of this index 'x'"):
        pull(REPO, tmp_path / "x", embedders=["fake", "x"])
    assert not (tmp_path / "x").exists()


def assert_same_but_embeddings(a: object, b: object) -> None:
    assert [a.labels[row] for row in range(len(a))] == [b.labels[row] for row in range(len(b))]
    for row in range(len(a)):
        assert (a.image(row) == b.image(row)).all()


def test_an_embedder_without_the_others_embeddings_is_not_published(
    hub: LocalHub, index: Path, tmp_path: Path
) -> None:
    add_embedder(index, embedder=OtherEmbedder())
    pushed(hub, index)
    for name in ("fake", "other"):
        part = pull(f"{REPO}#{name}", tmp_path / "part", force=True)
        with pytest.raises(UsageError, match="missing, so that the index is not published whole"):
            push(part, REPO)
    drop_embedder(part, "fake")
    done = push(part, REPO)
    assert done.tag == "v3"
    with open_named(REPO) as store:
        assert list(store.manifest.sets) == ["other"]


# The card belongs to its owners


@pytest.mark.parametrize("how", ["longer", "shorter", "gone"])
def test_a_card_that_was_edited_on_the_hub(
    hub: LocalHub, index: Path, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    pushed(hub, index)
    text = hub.repo(REPO).content(CARD)
    if how == "gone":
        hub.commit(REPO, {}, delete=[CARD])
    else:
        hub.commit(REPO, {CARD: text + b"\nMore.\n" if how == "longer" else text[:-20]})
    out = pull(REPO, tmp_path / "out")
    assert not (out / CARD).exists()
    assert "the card of lab/hearts was edited" in caplog.text
    assert hits(out) == hits(REPO) == hits(index)
    assert push(out, REPO).sent > 0
    assert hub.repo(REPO).content(CARD) == text


# What is there already


def test_an_output_that_exists(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    pushed(hub, index)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for force, message in ((False, "exists already.*--force"), (True, "is not an index")):
        with pytest.raises(UsageError, match=message):
            pull(REPO, out, force=force)
    assert hub.requests() == []
    assert contents(out) == {"mine.txt": b"mine"}
    (out / "mine.txt").unlink()
    pull(REPO, out, force=True)
    with pytest.raises(UsageError, match="exists already"):
        pull(REPO, out)


def test_a_failed_pull_leaves_what_was_there(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    pushed(hub, index)
    out = pull(REPO, tmp_path / "out")
    before = contents(out)
    append(index, tmp_path / "new", [make_case(9)], embedder=FakeEmbedder())
    push(tmp_path / "new", REPO)
    hub.flip_byte(REPO, COLUMNS, 90)
    with pytest.raises(IndexFormatError, match="refused"):
        pull(REPO, out, force=True)
    assert contents(out) == before
    assert leftovers(out) == []
    hub.flip_byte(REPO, COLUMNS, 90)
    pull(REPO, out, force=True)
    with open_store(out) as store:
        assert len(store) == 15


@pytest.mark.parametrize("source", ["folder", "./lab/x", "a/b/c", "", "C:/data/x", "lab/x@"])
def test_what_is_not_on_the_hub(hub: LocalHub, tmp_path: Path, source: str) -> None:
    with pytest.raises(UsageError, match="give ORG/NAME"):
        pull(source, tmp_path / "out")
    assert hub.requests() == []


def test_the_wish_to_stop(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    pushed(hub, index)

    def stop(done: int, total: int, message: str) -> None:
        raise Cancelled("not wanted any more")

    with pytest.raises(Cancelled):
        pull(REPO, tmp_path / "out", progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lab-a"]


def test_progress(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    pushed(hub, index)
    calls, note = recorder()
    pull(REPO, tmp_path / "out", progress=note)
    assert {message for _, _, message in calls} == {f"fetching {REPO}"}
    assert all(0 <= done <= total for done, total, _ in calls)
    assert calls[-1][0] == calls[-1][1]


def test_a_pull_that_was_killed(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    pushed(hub, index)
    out = tmp_path / "out"
    code = (
        "import os, signal\n"
        "from medretrieval.index import pull\n"
        "def kill(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "pull.move_into_place = kill\n"
        f"pull.pull({REPO!r}, {str(out)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], env=dict(hub.environ), cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert leftovers(out) == [tmp_path / ".out.pull"]
    hub.reset_log()
    pull(REPO, out)
    assert fetched(hub) == []
    assert leftovers(out) == []
    assert hits(out) == hits(index)


def test_two_pulls_of_one_output(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    pushed(hub, index)
    out = tmp_path / "out"
    with lock_folder(tmp_path / ".out.pull", out), pytest.raises(UsageError, match="another proc"):
        pull(REPO, out)
    assert not out.exists()
    pull(REPO, out)
