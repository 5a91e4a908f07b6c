"""A lab publishes an index, and later versions of it, as a data set of the Hub.

The API that it meets is modelled on huggingface_hub 2.4.0, see `tests/hub/server.py`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hub.client import LocalHub
from hub.repository import Tag
from index_fakes import DIM, POLICY, FakeEmbedder, contents, make_case
from numpy.typing import NDArray
from sharing import (
    ATTRIBUTES,
    CARD,
    COLUMNS,
    EMBEDDINGS,
    MANIFEST,
    REPO,
    OtherEmbedder,
    hits,
    make_index,
    next_version,
    nothing_left,
    pushed,
    small_shards,
    stranger,
    uploads,
)

from medretrieval.errors import IndexFormatError, UnavailableError, UsageError
from medretrieval.index import add_embedder, append, build, open_store, remove_patient
from medretrieval.index.opening import open_named
from medretrieval.index.pull import pull
from medretrieval.index.push import push
from medretrieval.index.workspace import lock_folder
from medretrieval.types import EmbedderIdentity


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return make_index(tmp_path / "lab-a" / "hearts", shard_rows=3)


# A new data set


def test_what_is_published(hub: LocalHub, index: Path) -> None:
    before = contents(index)
    done = push(index, REPO)
    repo = hub.repo(REPO)
    assert (repo.private, repo.gated) == (True, False)
    assert list(repo.tags) == ["v1"]
    assert repo.tags["v1"].commit.id == repo.branches["main"].id == done.commit
    assert len(list(repo.branches["main"].history())) == 2  # the Hub's own one, and this
    manifest = json.loads(repo.content(MANIFEST))
    assert set(repo.paths()) == {*manifest["files"], MANIFEST, ATTRIBUTES}
    for name, entry in manifest["files"].items():
        assert len(repo.content(name)) == entry["bytes"]
    assert done.to_json() == {
        "repo": REPO,
        "commit": done.commit,
        "tag": "v1",
        "url": f"{hub.url}/datasets/{REPO}",
        "created": True,
        "sent": sum(len(repo.content(name)) for name in (*manifest["files"], MANIFEST)),
        "withheld": None,
        "private": True,
        "gate": None,
        "before_removal": (),
    }
    assert contents(index) == before
    nothing_left(index)


def test_the_same_again_sends_nothing(hub: LocalHub, index: Path) -> None:
    commit = pushed(hub, index)
    done = push(index, REPO)
    assert (done.commit, done.sent, done.created) == (commit, 0, False)
    assert not hub.requests("PUT")
    assert not hub.requests("POST", "/commit/")


@pytest.mark.parametrize(("private", "expected"), [(None, True), (True, True), (False, False)])
def test_who_sees_a_new_one(
    hub: LocalHub, index: Path, private: bool | None, expected: bool
) -> None:
    push(index, REPO, private=private)
    assert hub.repo(REPO).private is expected


def test_who_sees_it_later(hub: LocalHub, index: Path) -> None:
    push(index, REPO)
    for private, expected in ((None, True), (False, False), (None, False), (True, True)):
        push(index, REPO, private=private)
        assert hub.repo(REPO).private is expected


@pytest.mark.parametrize("gate", ["auto", "manual"])
@pytest.mark.parametrize("first", [True, False])
def test_a_gate(hub: LocalHub, index: Path, gate: str, first: bool) -> None:
    if not first:
        push(index, REPO, private=False)
    hub.reset_log()
    push(index, REPO, private=False, gate=gate)
    assert hub.repo(REPO).gated == gate
    front = yaml.safe_load(hub.repo(REPO).content(CARD).decode().split("---\n")[1])
    assert "I will use it for research only, and not for diagnosis" in front["extra_gated_fields"]
    order = [r.path for r in hub.requests() if "/settings" in r.path or "/commit/" in r.path]
    assert "/settings" in order[0]  # nobody passes in between
    hub.reset_log()
    push(index, REPO)
    assert hub.repo(REPO).gated == gate
    stranger(hub)
    with pytest.raises(UnavailableError, match="gated"):
        open_named(REPO)


def test_an_unknown_gate(hub: LocalHub, index: Path) -> None:
    with pytest.raises(UsageError, match="expected auto or manual"):
        push(index, REPO, gate="open")
    assert hub.requests() == []


# A new version


def test_only_what_changed_is_sent(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    pushed(hub, index)
    old = hub.repo(REPO)
    before = {name: old.content(name) for name in old.paths()}
    done = push(next_version(index, tmp_path / "new"), REPO, message="One more heart")
    after = {name: old.content(name) for name in old.paths()}
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {
        *(CARD, MANIFEST, COLUMNS, EMBEDDINGS, "embeddings/embeddings.parquet", "index.faiss"),
        "slices/slices-00004.parquet",
    }
    assert done.sent == sum(len(after[name]) for name in changed)
    assert len(uploads(hub)) == len(changed) - 2  # card and manifest come with the commit
    assert (done.tag, done.created) == ("v2", False)
    assert list(old.tags) == ["v1", "v2"]
    titles = [commit.title for commit in old.branches["main"].history()]
    assert titles == ["One more heart", "Version v1", "initial commit"]


def test_files_that_went_go_there_too(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    add_embedder(index, embedder=OtherEmbedder())
    pushed(hub, index)
    hub.commit(REPO, {"figures/heart.svg": b"<svg/>", "LICENSE": b"CC BY"})
    with small_shards(3):
        new = remove_patient(index, tmp_path / "new", volumes=["volume-003", "volume-002"])
    push(new, REPO, tables=False)
    there = set(hub.repo(REPO).paths())
    manifest = json.loads(hub.repo(REPO).content(MANIFEST))
    # What its owners put there themselves stays.
    assert there == {
        *manifest["files"], MANIFEST, ATTRIBUTES, "figures/heart.svg", "LICENSE"
    }  # fmt: skip
    assert "slices/slices-00003.parquet" not in there
    assert "index-other.faiss" not in there
    assert hits(REPO) == hits(new)


def test_a_pulled_index_goes_on(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    commit = pushed(hub, index)
    out = pull(REPO, tmp_path / "lab-b")
    assert (push(out, REPO).sent, push(out, REPO).commit) == (0, commit)
    new = next_version(out, tmp_path / "new")
    assert push(new, REPO).tag == "v2"
    assert hits(REPO) == hits(new)
    assert hits(f"{REPO}@v1") == hits(index)


def test_a_version_is_published_once(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    commit = pushed(hub, index)
    other = make_index(tmp_path / "other", cases=[make_case(7)])
    for _ in range(2):
        with pytest.raises(UsageError, match=r"has a version 1 already.*published once"):
            push(other, REPO)
        hub.repo(REPO).tags.clear()  # as if the push had been broken off before the tag
    assert hub.repo(REPO).branches["main"].id == commit
    assert not uploads(hub)


def test_a_later_version_is_there(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    commit = pushed(hub, next_version(index, tmp_path / "new"))
    with pytest.raises(UsageError, match=r"is at version 2.*medretrieval pull lab/hearts FOLDER"):
        push(index, REPO)
    assert hub.repo(REPO).branches["main"].id == commit


def test_a_damaged_version_is_published_again(hub: LocalHub, index: Path) -> None:
    pushed(hub, index)
    repo = hub.repo(REPO)
    broken = hub.commit(REPO, {MANIFEST: b"{"})
    repo.tags["v1"] = Tag(broken, None)
    done = push(index, REPO)
    assert repo.tags["v1"].commit.id == done.commit != broken.id
    assert hits(f"{REPO}@v1") == hits(index)


def test_what_a_later_medretrieval_published(hub: LocalHub, index: Path) -> None:
    pushed(hub, index)
    data = json.loads(hub.repo(REPO).content(MANIFEST))
    hub.commit(REPO, {MANIFEST: json.dumps({**data, "schema_version": 99}).encode()})
    with pytest.raises(IndexFormatError, match="upgrade medretrieval"):
        push(index, REPO)
    assert json.loads(hub.repo(REPO).content(MANIFEST))["schema_version"] == 99


@pytest.mark.parametrize("files", [{"data/train.csv": b"a,b\n"}, {"slices/a.parquet": b"PAR1"}])
def test_another_data_set_is_not_overwritten(
    hub: LocalHub, index: Path, files: dict[str, bytes]
) -> None:
    hub.add_repo(REPO, {**files, CARD: b"# Another\n"})
    commit = hub.repo(REPO).branches["main"].id
    with pytest.raises(UsageError, match="is another data set: it has files"):
        push(index, REPO, private=False, gate="auto")
    assert hub.repo(REPO).branches["main"].id == commit
    assert (hub.repo(REPO).gated, uploads(hub)) == (False, [])


def test_an_empty_data_set_is_filled(hub: LocalHub, index: Path) -> None:
    hub.add_repo(REPO, {CARD: b"---\nlicense: mit\n---\n"})
    done = push(index, REPO)
    assert done.created is False
    assert hits(REPO) == hits(index)


# Somebody else at the same time


def test_somebody_else_was_faster(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    pushed(hub, index)
    new = next_version(index, tmp_path / "new")
    hub.before("/commit/main", lambda: hub.commit(REPO, {"notes.md": b"mine"}), method="POST")
    with pytest.raises(UnavailableError, match=r"changed by somebody else.*same push again"):
        push(new, REPO)
    assert "v2" not in hub.repo(REPO).tags
    hub.reset_log()
    push(new, REPO)
    assert uploads(hub) == []
    assert hub.repo(REPO).content("notes.md") == b"mine"
    assert hits(f"{REPO}@v2") == hits(new)


def test_two_pushes_of_one_index(hub: LocalHub, index: Path) -> None:
    work = index.with_name(f".{index.name}.push")
    with lock_folder(work, index), pytest.raises(UsageError, match="another process publishes"):
        push(index, REPO)
    assert hub.requests() == []
    push(index, REPO)
    nothing_left(index)


def test_two_first_pushes_from_two_machines(hub: LocalHub, index: Path) -> None:
    hub.before("/api/repos/create", lambda: hub.add_repo(REPO), method="POST")
    assert push(index, REPO).created is False
    hub.repo(REPO).tags.clear()
    commit = hub.repo(REPO).branches["main"].id
    hub.before("/tag/", lambda: hub.repo(REPO).tags.update(v1=tag_of(hub, commit)), method="POST")
    assert push(index, REPO).commit == commit


def tag_of(hub: LocalHub, commit: str) -> Tag:
    return Tag(hub.repo(REPO).commit(commit), None)


def test_two_pushes_from_two_machines(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    copies = [make_index(tmp_path / str(n) / "hearts", shard_rows=3) for n in range(3)]
    push(copies[0], REPO, tables=False)  # else the Hub is asked to make it three times
    results: list[Any] = []

    def publish(copy: Path) -> None:
        try:
            results.append(push(copy, REPO).tag)
        except UnavailableError as error:
            results.append(str(error))

    threads = [threading.Thread(target=publish, args=(copy,)) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "v1" in results
    assert all(r == "v1" or "somebody else" in r for r in results)
    assert list(hub.repo(REPO).tags) == ["v1"]
    assert hits(REPO) == hits(index)


class WideEmbedder(FakeEmbedder):
    """Its embeddings of a few slices are larger than what the Hub keeps in Git (10 MB)."""

    times = 40_000

    @property
    def identity(self) -> EmbedderIdentity:
        return replace(super().identity, dim=DIM * self.times)

    def embed_batch(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return np.tile(super().embed_batch(images), self.times) / np.float32(self.times**0.5)


def test_large_files_are_published(hub: LocalHub, tmp_path: Path) -> None:
    embedder = WideEmbedder()
    cases = [make_case(number) for number in range(2)]
    index = build(cases, tmp_path / "wide", embedder=embedder, slices=POLICY, name="wide",
                  license="cc-by-4.0", source="our own")  # fmt: skip
    assert (index / "embeddings" / "embeddings.safetensors").stat().st_size > 10 << 20
    push(index, REPO)
    assert {"embeddings/embeddings.safetensors", "index.faiss"} < set(hub.repo(REPO).paths())
    with open_named(REPO) as remote, open_store(index) as ours:
        np.testing.assert_array_equal(remote.embeddings, ours.embeddings)
    assert push(index, REPO).sent == 0


def test_it_says_which_versions_have_what_was_removed(
    hub: LocalHub, index: Path, tmp_path: Path
) -> None:
    push(index, REPO)
    less = remove_patient(index, tmp_path / "2", volumes=["volume-001"])
    assert push(less, REPO).before_removal == ("v1",)
    more = append(less, tmp_path / "3", [make_case(9)], embedder=FakeEmbedder())
    assert push(more, REPO).before_removal == ("v1",)
    assert push(more, REPO, squash_history=True).before_removal == ()
    assert push(more, REPO).before_removal == ()


def test_a_gate_keeps_its_questions(hub: LocalHub, index: Path) -> None:
    push(index, REPO, gate="manual", private=False)
    again = push(index, REPO)
    assert (again.sent, again.gate) == (0, "manual")
    assert hub.repo(REPO).gated == "manual"
    assert b"extra_gated_fields" in hub.repo(REPO).content("README.md")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "private: only lab sees it"),
        ({"gate": "manual"}, "private: only lab sees it, so nobody can ask at its gate yet"),
        ({"private": False}, "public: everyone can fetch it"),
        ({"private": False, "gate": "auto"}, "is let in at once"),
        ({"private": False, "gate": "manual"}, "is let in by lab, on its page"),
    ],
)
def test_it_says_who_can_have_it(hub: LocalHub, index: Path, options: Any, says: str) -> None:
    assert says in push(index, REPO, **options).audience()


def test_another_index_is_not_replaced(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    push(index, REPO)
    cases = [make_case(number) for number in range(2)]
    other = build(cases, tmp_path / "other", embedder=FakeEmbedder(), slices=POLICY, name="other",
                  license="cc-by-4.0", source="our own")  # fmt: skip
    later = append(other, tmp_path / "later", [make_case(5)], embedder=FakeEmbedder())
    for unrelated in (other, later):
        with pytest.raises(UsageError, match="is another index, 'hearts'"):
            push(unrelated, REPO)
    assert list(hub.repo(REPO).tags) == ["v1"]
