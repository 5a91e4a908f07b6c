"""Earlier versions are forgotten on the Hub, as after the removal of a patient.

The API that it meets is modelled on huggingface_hub 2.4.0, see `tests/hub/server.py`: commits that
no reference names are gone, large objects only once they are deleted.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hub.client import LocalHub
from sharing import (
    ATTRIBUTES,
    CARD,
    MANIFEST,
    REPO,
    hits,
    make_index,
    next_version,
    nothing_left,
    small_shards,
)

from medretrieval.errors import UnavailableError, UsageError
from medretrieval.index import remove_patient
from medretrieval.index.opening import open_named
from medretrieval.index.pull import pull
from medretrieval.index.push import push


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return make_index(tmp_path / "lab-a" / "hearts", shard_rows=3)


@pytest.fixture
def removed(index: Path, tmp_path: Path) -> Path:
    """The next version, without a volume."""
    with small_shards(3):
        return remove_patient(index, tmp_path / "lab-a2" / "hearts", volumes=["volume-001"])


def stored(hub: LocalHub) -> set[str]:
    return {key for key in hub.repo(REPO).contents if len(key) == 64}


def in_use(hub: LocalHub) -> set[str]:
    tree = hub.repo(REPO).branches["main"].tree
    return {entry.sha256 for entry in tree.values() if entry.sha256}


def test_nothing_of_a_removed_patient_stays(hub: LocalHub, index: Path, removed: Path) -> None:
    first = push(index, REPO).commit
    secret = hub.repo(REPO).content("slices/slices-00001.parquet", first)
    push(index, REPO)
    before = stored(hub)
    done = push(removed, REPO, squash_history=True)
    repo = hub.repo(REPO)
    assert [commit.id for commit in repo.branches["main"].history()] == [done.commit]
    assert {name: tag.commit.id for name, tag in repo.tags.items()} == {"v2": done.commit}
    assert list(repo.commits) == [done.commit]
    assert stored(hub) == in_use(hub)
    assert before - stored(hub)
    assert secret not in repo.contents.values()
    assert hits(f"{REPO}@v2") == hits(REPO) == hits(removed)
    for revision in ("v1", first):
        with pytest.raises(UnavailableError, match="does not have that revision"):
            open_named(f"{REPO}@{revision}")
    nothing_left(removed)


def test_who_has_the_old_one_keeps_what_was_fetched(
    hub: LocalHub, index: Path, removed: Path
) -> None:
    """What was fetched cannot be called back; what was not cannot be fetched any more."""
    commit = push(index, REPO).commit
    open_named(f"{REPO}@{commit}").close()
    push(removed, REPO, squash_history=True)
    with open_named(f"{REPO}@{commit}") as store:
        with pytest.raises(UnavailableError, match="slices-00001"):
            store.image(3)
    with open_named(REPO) as store:
        assert "volume-001" not in store.volume_ids


def test_the_same_again(hub: LocalHub, index: Path, removed: Path) -> None:
    push(index, REPO)
    push(removed, REPO)
    done = push(removed, REPO, squash_history=True)
    assert done.sent == 0
    assert len(hub.repo(REPO).commits) == 1
    again = push(removed, REPO, squash_history=True)
    assert hits(f"{REPO}@{again.commit}") == hits(f"{REPO}@v2") == hits(removed)
    assert push(removed, REPO).commit == again.commit
    new = next_version(removed, removed.parent.parent / "new")
    push(new, REPO)
    assert list(hub.repo(REPO).tags) == ["v2", "v3"]


def test_a_new_data_set(hub: LocalHub, index: Path) -> None:
    done = push(index, REPO, squash_history=True)
    assert list(hub.repo(REPO).commits) == [done.commit]
    assert hits(f"{REPO}@v1") == hits(index)


def test_pictures_are_taken_back(hub: LocalHub, index: Path) -> None:
    """A version is published once, unless the first one is to be forgotten."""
    push(index, REPO)
    with pytest.raises(UsageError, match="published once"):
        push(index, REPO, images=False)
    done = push(index, REPO, images=False, squash_history=True)
    assert not [data for data in hub.repo(REPO).contents.values() if b"\x89PNG" in data]
    assert hub.repo(REPO).tags["v1"].commit.id == done.commit
    with open_named(f"{REPO}@v1") as store:
        assert not store.manifest.pictures


def test_a_later_version_is_not_forgotten(hub: LocalHub, index: Path, removed: Path) -> None:
    commit = push(removed, REPO).commit
    with pytest.raises(UsageError, match="is at version 2"):
        push(index, REPO, squash_history=True)
    assert hub.repo(REPO).branches["main"].id == commit


def test_other_branches_keep_it(hub: LocalHub, index: Path, removed: Path) -> None:
    commit = push(index, REPO).commit
    repo = hub.repo(REPO)
    repo.branches["dev"] = repo.branches["main"]
    hub.reset_log()
    with pytest.raises(UsageError, match=r"more branches than main.*dev; delete them first"):
        push(removed, REPO, squash_history=True)
    assert repo.branches["main"].id == commit
    assert list(repo.tags) == ["v1"]
    assert not hub.requests("PUT")
    push(removed, REPO)  # without, it may have any
    del repo.branches["dev"]
    push(removed, REPO, squash_history=True)
    assert stored(hub) == in_use(hub)


def test_files_of_its_owners_stay(hub: LocalHub, index: Path, removed: Path) -> None:
    push(index, REPO)
    hub.commit(REPO, {"figures/heart.png": b"a figure for the card"})
    assert "figures/heart.png" in hub.repo(REPO).paths()
    push(removed, REPO, squash_history=True)
    assert hub.repo(REPO).content("figures/heart.png") == b"a figure for the card"
    assert {ATTRIBUTES, CARD, MANIFEST, "figures/heart.png"} < set(hub.repo(REPO).paths())


@pytest.mark.parametrize(
    "where", ["/commit/", "/tag/", "/super-squash/", "/lfs-files", "/lfs-files/batch", "/refs"]
)
@pytest.mark.parametrize("carried_out", [True, False])
def test_a_hub_that_fails_half_way(
    hub: LocalHub, index: Path, removed: Path, where: str, carried_out: bool
) -> None:
    hub.limit_retries()
    push(index, REPO)
    hub.fail(where, 504, times=1, carried_out=carried_out)
    with pytest.raises(UnavailableError, match="status 504"):
        push(removed, REPO, squash_history=True)
    done = push(removed, REPO, squash_history=True)
    repo = hub.repo(REPO)
    assert list(repo.commits) == [done.commit]
    assert list(repo.tags) == ["v2"]
    assert stored(hub) == in_use(hub)
    assert hits(f"{REPO}@v2") == hits(removed)


def test_it_is_pulled_like_any_other(hub: LocalHub, index: Path, removed: Path) -> None:
    push(index, REPO)
    out = pull(REPO, index.parent.parent / "lab-b")
    push(removed, REPO, squash_history=True)
    assert hits(pull(REPO, out, force=True)) == hits(removed)
