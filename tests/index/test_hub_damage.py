"""Files of the Hub that are not what the manifest lists: refused by name, and fetched anew.

The API that they come by is modelled on huggingface_hub 2.4.0, see `tests/hub/server.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hub.client import LocalHub
from sharing import (
    COLUMNS,
    EMBEDDINGS,
    MANIFEST,
    REPO,
    OtherEmbedder,
    assert_same,
    fetched,
    make_index,
    pushed,
)

from medretrieval import hub as hub_client
from medretrieval.errors import IndexFormatError, UnavailableError
from medretrieval.index import add_embedder
from medretrieval.index.opening import open_named
from medretrieval.index.pull import pull
from medretrieval.index.store import open_store

SHARDS = [f"slices/slices-{number:05d}.parquet" for number in range(4)]
ALL = [MANIFEST, EMBEDDINGS, COLUMNS, SHARDS[1]]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return make_index(tmp_path / "hearts", shard_rows=3)


def look_at_all() -> None:
    with open_named(REPO) as store:
        for row in range(len(store)):
            store.image(row)


def cached(hub: LocalHub, name: str) -> list[Path]:
    """The links to a file in the cache that lead somewhere."""
    found = (hub.home / "hub").glob(f"datasets--lab--hearts/snapshots/*/{name}")
    return [path for path in found if path.exists()]


def unfinished(hub: LocalHub) -> list[Path]:
    return list((hub.home / "hub").rglob("*.incomplete"))


def refused(call: object, name: str) -> str:
    with pytest.raises(IndexFormatError) as caught:
        call()  # type: ignore[operator]
    text = str(caught.value)
    assert f"{name} of {REPO}" in text
    assert "refused" in text
    return text


@pytest.mark.parametrize("where", [0, 100, -1])
@pytest.mark.parametrize("name", ALL)
def test_a_flipped_byte(hub: LocalHub, index: Path, name: str, where: int) -> None:
    pushed(hub, index)
    place = where % len(hub.repo(REPO).content(name))
    hub.flip_byte(REPO, name, place)
    for _ in range(2):
        assert "Fetch it again" in refused(look_at_all, name)
        assert cached(hub, name) == []
    hub.reset_log()
    hub.flip_byte(REPO, name, place)
    look_at_all()
    assert fetched(hub).count(name) == 1
    look_at_all()
    assert fetched(hub).count(name) == 1


@pytest.mark.parametrize("name", ALL)
def test_a_flipped_byte_of_a_pull(hub: LocalHub, index: Path, tmp_path: Path, name: str) -> None:
    pushed(hub, index)
    hub.flip_byte(REPO, name, 50)
    out = tmp_path / "lab-b" / "out"
    refused(lambda: pull(REPO, out), name)
    assert cached(hub, name) == []
    assert not out.exists()
    assert not any(out.parent.glob(".*")) if out.parent.exists() else True
    hub.flip_byte(REPO, name, 50)
    hub.reset_log()
    pull(REPO, out)
    with open_store(out) as theirs, open_store(index) as ours:
        assert_same(theirs, ours)


def test_swapped_shards(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    pushed(hub, index)
    first, second = (hub.repo(REPO).content(name) for name in SHARDS[:2])
    commit = hub.commit(REPO, {SHARDS[0]: second, SHARDS[1]: first}).id
    with open_named(REPO) as store:
        for row, shard in ((0, SHARDS[0]), (3, SHARDS[1])):
            refused(lambda row=row: store.image(row), shard)
            refused(lambda row=row: store.mask(row), shard)
        store.image(6)  # others are as they were
    with pytest.raises(IndexFormatError, match="was refused"):
        pull(f"{REPO}@{commit}", tmp_path / "out")
    hub.commit(REPO, {SHARDS[0]: first, SHARDS[1]: second})
    with open_named(REPO) as remote, open_store(index) as local:
        assert_same(remote, local)


def test_swapped_answers(hub: LocalHub, index: Path) -> None:
    """As above, but what the Hub announces is right."""
    pushed(hub, index)
    hub.limit_retries()
    hub.swap(REPO, SHARDS[0], SHARDS[1])
    with open_named(REPO) as remote, open_store(index) as local:
        for row, shard in ((0, SHARDS[0]), (3, SHARDS[1])):
            # Of another size, a file does not even get into the cache.
            with pytest.raises((IndexFormatError, UnavailableError), match=f"{shard} of {REPO}"):
                remote.image(row)
        hub.swap(REPO, SHARDS[0], SHARDS[1])
        assert_same(remote, local)


@pytest.mark.parametrize("announced", [True, False])
def test_swapped_embeddings(hub: LocalHub, index: Path, tmp_path: Path, announced: bool) -> None:
    other = "embeddings/other.safetensors"
    add_embedder(index, embedder=OtherEmbedder())
    pushed(hub, index)
    repo = hub.repo(REPO)
    right = {name: repo.content(name) for name in (EMBEDDINGS, other)}
    assert len(set(map(len, right.values()))) == 1
    if announced:
        hub.commit(REPO, {EMBEDDINGS: right[other], other: right[EMBEDDINGS]})
    else:
        hub.swap(REPO, EMBEDDINGS, other)
    refused(lambda: open_named(REPO), EMBEDDINGS)
    refused(lambda: open_named(f"{REPO}#other"), other)
    with pytest.raises(IndexFormatError, match="was refused"):
        pull(REPO, tmp_path / "out")
    if announced:
        hub.commit(REPO, right)
    else:
        hub.swap(REPO, EMBEDDINGS, other)
    for name in ("fake", "other"):
        with open_named(REPO, embedder=name) as remote, open_store(index, embedder=name) as local:
            assert_same(remote, local)


def test_an_open_index_gets_over_a_refused_picture(hub: LocalHub, index: Path) -> None:
    pushed(hub, index)
    hub.flip_byte(REPO, SHARDS[0], 1000)
    with open_named(REPO) as remote, open_store(index) as local:
        refused(lambda: remote.image(0), SHARDS[0])
        hub.flip_byte(REPO, SHARDS[0], 1000)
        assert_same(remote, local)


@pytest.mark.parametrize("name", [EMBEDDINGS, COLUMNS, SHARDS[1]])
@pytest.mark.parametrize("announced", [True, False])
def test_a_file_that_is_longer(hub: LocalHub, index: Path, name: str, announced: bool) -> None:
    """It is refused while it comes: most of it never does."""
    pushed(hub, index)
    right = hub.repo(REPO).content(name)
    long = right + bytes(48 << 20)
    if announced:
        hub.commit(REPO, {name: long})
    else:
        hub.repo(REPO).replace_content(name, long)
    text = refused(look_at_all, name)
    assert f"more than the {len(right)} bytes" in text
    assert hub.bytes_sent("^cdn/") < 24 << 20
    assert cached(hub, name) == []
    assert unfinished(hub) == []
    if announced:
        hub.commit(REPO, {name: right})
    else:
        hub.repo(REPO).replace_content(name, right)
    look_at_all()


@pytest.mark.parametrize("name", [EMBEDDINGS, COLUMNS, SHARDS[1]])
@pytest.mark.parametrize("announced", [True, False])
def test_a_file_that_is_cut(hub: LocalHub, index: Path, name: str, announced: bool) -> None:
    pushed(hub, index)
    hub.limit_retries()
    right = hub.repo(REPO).content(name)
    if announced:
        hub.commit(REPO, {name: right[:-10]})
        refused(look_at_all, name)
    else:
        hub.repo(REPO).replace_content(name, right[:-10])
        with pytest.raises(UnavailableError, match="Consistency check failed"):
            look_at_all()
    assert cached(hub, name) == []
    assert unfinished(hub) == []


@pytest.mark.parametrize("name", [EMBEDDINGS, COLUMNS, SHARDS[1]])
def test_a_file_that_is_missing(hub: LocalHub, index: Path, tmp_path: Path, name: str) -> None:
    pushed(hub, index)
    hub.commit(REPO, {}, delete=[name])
    for call in (look_at_all, lambda: pull(REPO, tmp_path / "out")):
        with pytest.raises(IndexFormatError, match="lacks") as caught:
            call()
        assert name in str(caught.value)
        assert "another revision" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["byte", "cut", "dangling"])
@pytest.mark.parametrize("name", ALL)
def test_damage_on_this_disk(hub: LocalHub, index: Path, name: str, damage: str) -> None:
    pushed(hub, index)
    look_at_all()
    (link,) = cached(hub, name)
    blob = link.resolve()
    content = blob.read_bytes()
    if damage == "dangling":
        blob.unlink()
    elif damage == "cut":
        blob.write_bytes(content[:-1])
    else:
        blob.write_bytes(content[:-30] + bytes([content[-30] ^ 1]) + content[-29:])
    if damage != "dangling":
        refused(look_at_all, name)
    hub.reset_log()
    look_at_all()
    assert fetched(hub) == [name]


def test_a_link_of_the_cache_that_leads_elsewhere(
    hub: LocalHub, index: Path, tmp_path: Path
) -> None:
    pushed(hub, index)
    look_at_all()
    for name in (SHARDS[1], EMBEDDINGS, MANIFEST):
        (link,) = cached(hub, name)
        blob = os.readlink(link)
        secret = tmp_path / "secret"
        secret.write_bytes(link.read_bytes())
        link.unlink()
        link.symlink_to(secret)
        with pytest.raises(IndexFormatError):
            look_at_all()
        assert secret.exists()
        link.unlink(missing_ok=True)
        link.symlink_to(blob)
    look_at_all()


# Transfers that break off


def test_a_broken_connection_is_resumed(
    hub: LocalHub, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "_PIECE_BYTES", 100)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    pushed(hub, index)
    hub.limit_retries()
    size = len(hub.repo(REPO).content(COLUMNS))
    hub.cut(r"^cdn/.*columns", after_bytes=1000)
    look_at_all()
    first, second = hub.requests("GET", r"^cdn/.*columns")
    assert (first.sent, second.sent) == (1000, size - 1000)
    assert second.headers["range"] == "bytes=1000-"


def test_a_pull_that_was_interrupted_goes_on(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    pushed(hub, index)
    hub.limit_retries()
    fault = hub.fail(rf"^cdn/.*{SHARDS[2]}", 500)
    with pytest.raises(UnavailableError, match="status 500"):
        pull(REPO, tmp_path / "out")
    fault.release()
    before = {name for name in (EMBEDDINGS, COLUMNS, *SHARDS) if cached(hub, name)}
    assert before
    assert SHARDS[2] not in before
    hub.reset_log()
    pull(REPO, tmp_path / "out")
    assert not before & set(fetched(hub))
    assert len(fetched(hub)) == len(set(fetched(hub)))


def test_no_further_file_is_begun_after_a_refusal(hub: LocalHub, tmp_path: Path) -> None:
    index = make_index(tmp_path / "many", shard_rows=1)
    pushed(hub, index)
    hub.commit(REPO, {}, delete=[EMBEDDINGS])
    with pytest.raises(IndexFormatError, match="lacks"):
        pull(REPO, tmp_path / "out")
    assert len(fetched(hub)) < 10


def test_a_full_disk(
    hub: LocalHub, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(hub, index)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medretrieval.index.pull.link_or_copy", full)
    with pytest.raises(Exception, match="no space left") as caught:
        pull(REPO, tmp_path / "out")
    assert type(caught.value).__name__ == "MedRetrievalError"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hearts"]
