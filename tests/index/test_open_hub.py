"""An index of the Hub is opened by its name: only what is needed comes, and it comes once.

The API that it meets is modelled on huggingface_hub 2.4.0, see `tests/hub/server.py`.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import numpy as np
import pytest
from hub.client import LocalHub
from index_fakes import FakeEmbedder, make_case
from sharing import (
    COLUMNS,
    EMBEDDINGS,
    MANIFEST,
    REPO,
    assert_same,
    fetched,
    hits,
    make_index,
    pushed,
    recorder,
    small_shards,
)

from medretrieval.errors import Cancelled, UnavailableError, UsageError
from medretrieval.index import append, open_stores
from medretrieval.index.opening import open_named
from medretrieval.index.push import push
from medretrieval.index.store import open_store
from medretrieval.retrieval.engine import open_index

FIRST = [MANIFEST, COLUMNS, EMBEDDINGS]
SHARDS = [f"slices/slices-{number:05d}.parquet" for number in range(4)]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return make_index(tmp_path / "hearts", shard_rows=3)


def offline(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_opening_fetches_only_what_a_search_needs(hub: LocalHub, index: Path) -> None:
    pushed(hub, index)
    assert hits(REPO, pictures=False) == hits(index, pictures=False)
    assert sorted(fetched(hub)) == sorted(FIRST)


def test_a_search_by_pictures_looks_at_those_of_its_hits(hub: LocalHub, index: Path) -> None:
    pushed(hub, index)
    assert hits(REPO) == hits(index)
    assert len(fetched(hub)) == len(set(fetched(hub)))
    assert set(FIRST) < set(fetched(hub)) <= {*FIRST, *SHARDS}


def test_a_search_fetches_few_pictures(
    hub: LocalHub, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies are among the most similar; nobody waits for the pictures of all hits."""
    monkeypatch.setattr("medretrieval.retrieval.duplicates.FETCHED", 1)
    pushed(hub, index)
    volume, _ = make_case(2).load()  # is in the index
    for source in (REPO, index):
        opened = open_index(source, embedder=FakeEmbedder())
        found = opened.search(volume, mode="slice", k=4).hits
        same = [hit.near_duplicate for hit in found]
        assert same == [hit.volume_id == "volume-002" and hit.rank == 1 for hit in found]
        assert sum(same) == 3
        opened.store.close()
    assert sorted(fetched(hub)) == sorted([*FIRST, SHARDS[2]])


def test_a_hub_that_is_gone_costs_a_search_one_attempt(hub: LocalHub, index: Path) -> None:
    pushed(hub, index)
    with open_stores(REPO):
        pass
    volume, _ = make_case(77).load()
    opened = open_index(REPO, embedder=FakeEmbedder())
    hub.fail("slices", 503)
    hub.reset_log()
    assert opened.search(volume, mode="slice", k=4).hits
    assert len(hub.requests(None, "slices")) == 1
    opened.store.close()


def test_a_picture_fetches_its_shard_once(hub: LocalHub, index: Path) -> None:
    pushed(hub, index)
    with open_named(REPO) as remote, open_store(index) as local:
        hub.reset_log()
        for row in (4, 3, 5):
            np.testing.assert_array_equal(remote.image(row), local.image(row))
            np.testing.assert_array_equal(remote.mask(row), local.mask(row))
        assert fetched(hub) == [SHARDS[1]]
        remote.image(11)
        assert fetched(hub) == [SHARDS[1], SHARDS[3]]


def test_what_lies_here_is_not_fetched_again(hub: LocalHub, index: Path) -> None:
    commit = pushed(hub, index)
    with open_named(REPO) as remote:
        remote.image(0)
    hub.reset_log()
    with open_named(REPO) as remote:
        remote.image(0)
    assert fetched(hub) == []
    assert [request.method for request in hub.requests()] == ["HEAD"]  # is it still that commit?
    hub.reset_log()
    with open_named(f"{REPO}@{commit}") as remote:
        remote.image(0)
    assert hub.requests() == []


@pytest.mark.parametrize("revision", ["", "@v1", "@main", "@commit"])
@pytest.mark.parametrize("how", ["offline", "stopped", "failing"])
def test_without_network(
    hub: LocalHub,
    index: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    revision: str,
    how: str,
) -> None:
    commit = pushed(hub, index)
    source = REPO + revision.replace("commit", commit)
    expected = hits(source, pictures=False)
    hub.reset_log()
    if how == "offline":
        offline(monkeypatch)
    elif how == "stopped":
        hub.stop()
    else:
        hub.limit_retries()
        hub.fail(".*", 503)
    assert hits(source, pictures=False) == expected
    if how == "offline" or revision == "@commit":
        assert hub.requests() == []
    else:
        assert "the state that was fetched last is used" in caplog.text
    with open_named(source) as remote, pytest.raises(UnavailableError) as caught:
        remote.image(0)  # was never looked at
    assert SHARDS[0] in str(caught.value)
    if how == "offline":
        assert f"medretrieval pull {REPO}@{commit}" in str(caught.value)


def test_in_another_process_without_network(hub: LocalHub, index: Path) -> None:
    pushed(hub, index)
    code = (
        f"from medretrieval.index.opening import open_named\n"
        f"with open_named({REPO!r}) as store: print(len(store), store.image(0).shape)"
    )
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        hub.reset_log()
        done = hub.run("-c", code, **environment)
        assert (done.returncode, done.stdout) == (0, "12 (11, 9)\n"), done.stderr
    assert hub.requests() == []


def test_a_new_version_fetches_what_changed(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    pushed(hub, index)
    with open_named(REPO) as remote:
        for row in range(len(remote)):
            remote.image(row)
    new = tmp_path / "new"
    with small_shards(3):
        append(index, new, [make_case(9)], embedder=FakeEmbedder())
    pushed(hub, new)
    with open_named(REPO) as remote, open_store(new) as local:
        assert_same(remote, local)
    assert sorted(fetched(hub)) == sorted([*FIRST, "slices/slices-00004.parquet"])
    hub.reset_log()
    with open_named(f"{REPO}@v1") as remote, open_store(index) as local:
        assert_same(remote, local)
    assert fetched(hub) == []


def test_a_moved_branch_and_a_fixed_tag(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    pushed(hub, index)
    with open_named(REPO) as remote:
        assert len(remote) == 12
        append(index, tmp_path / "new", [make_case(9)], embedder=FakeEmbedder())
        push(tmp_path / "new", REPO)
        remote.image(0)  # an open index stays the one that was opened
        assert len(remote) == 12
    with open_named(REPO) as later, open_named(f"{REPO}@v1") as fixed:
        assert (len(later), len(fixed)) == (15, 12)


def test_an_older_index_without_columns_apart(hub: LocalHub, index: Path) -> None:
    # As if it had been uploaded as it is, with another program.
    files = {p.relative_to(index).as_posix(): p.read_bytes() for p in index.rglob("*.*")}
    assert COLUMNS not in files
    hub.add_repo(REPO, files)
    assert hits(REPO) == hits(index)
    assert set(SHARDS) <= set(fetched(hub))


def test_a_group_of_the_hub_and_this_machine(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    pushed(hub, index)
    other = make_index(tmp_path / "other", cases=[make_case(n) for n in (4, 5)])
    together = hits(f"{REPO}@v1, {other}", pictures=False)
    assert together == hits([index, other], pictures=False)
    assert sorted(fetched(hub)) == sorted(FIRST)
    with open_stores(f"{REPO},{other}") as group:
        assert len(group) == 18
        group.image(17)
        group.image(0)
    assert fetched(hub)[-1] == SHARDS[0]


def test_embedders_of_an_index(hub: LocalHub, index: Path) -> None:
    pushed(hub, index)
    with open_named(f"{REPO}#fake") as remote:
        assert len(remote) == 12
    with pytest.raises(UsageError, match="unknown embedder of this index 'x'"):
        open_named(f"{REPO}#x")


def test_nothing_is_said_of_memories_that_cannot_come(
    hub: LocalHub, index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pushed(hub, index)
    with open_named(REPO) as remote, caplog.at_level(logging.WARNING):
        remote.reload_memories()
    assert caplog.text == ""


def test_pictures_from_several_threads(
    hub: LocalHub, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medretrieval.index.slice_table._OPEN_SHARDS", 2)
    monkeypatch.setattr("medretrieval.index.slice_table._CACHED_GROUPS", 1)
    pushed(hub, index)
    wrong: list[object] = []
    with open_named(REPO) as remote, open_store(index) as local:
        expected = [local.image(row) for row in range(len(local))]

        def look(seed: int) -> None:
            try:
                for row in np.random.default_rng(seed).permutation(len(expected)).tolist():
                    if not np.array_equal(remote.image(row), expected[row]):
                        wrong.append(row)
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=look, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert sorted(fetched(hub)) == sorted([*FIRST, *SHARDS])
        remote.close()
        with pytest.raises(ValueError, match="closed"):
            remote.image(0)


def test_progress(hub: LocalHub, index: Path) -> None:
    pushed(hub, index)
    calls, note = recorder()
    open_index(REPO, progress=note).store.close()
    total = sum((hub.repo(REPO).entry(name)).size for name in FIRST[1:])
    assert calls[-1] == (total, total, f"fetching {REPO}")
    assert all(done <= total for done, _, _ in calls)


def test_the_wish_to_stop(hub: LocalHub, index: Path) -> None:
    pushed(hub, index)

    def stop(done: int, total: int, message: str) -> None:
        raise Cancelled("not wanted any more")

    with pytest.raises(Cancelled):
        open_named(REPO, progress=stop)
    assert hits(REPO) == hits(index)


def test_info(hub: LocalHub, index: Path) -> None:
    pushed(hub, index)
    with open_named(REPO, verify="full") as remote, open_store(index) as local:
        shown, known = remote.info(), local.info()
    assert shown["counts"] == known["counts"]
    assert shown["stored_faiss_index"] is False
    assert "file list" not in shown["checked"]  # pictures were not looked at
    assert "file list" in known["checked"]
    assert sorted(fetched(hub)) == sorted(FIRST)
