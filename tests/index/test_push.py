"""Two labs share an index: one pushes, the other pulls or opens it by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub.client import LocalHub
from index_fakes import DIM, POLICY, FakeEmbedder, make_case
from numpy.typing import NDArray

from medretrieval.index import append, remove_patient
from medretrieval.index.builder import build
from medretrieval.index.opening import open_named
from medretrieval.index.pull import pull
from medretrieval.index.push import push
from medretrieval.index.store import open_store
from medretrieval.types import EmbedderIdentity

REPO = "lab/hearts"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return build(
        [make_case(number) for number in range(4)],
        tmp_path / "lab-a" / "hearts",
        embedder=FakeEmbedder(),
        slices=POLICY,
        name="hearts",
        license="cc-by-4.0",
        source="our own",
    )


def test_push_and_pull(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    done = push(index, REPO)
    assert done.created
    out = pull(f"{REPO}@v1", tmp_path / "lab-b")
    with open_store(out) as theirs, open_store(index) as ours, open_named(REPO) as remote:
        for store in (theirs, remote):
            np.testing.assert_array_equal(store.embeddings, ours.embeddings)
            for row in range(len(ours)):
                np.testing.assert_array_equal(store.image(row), ours.image(row))
    again = push(index, REPO)
    assert (again.commit, again.sent) == (done.commit, 0)


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
