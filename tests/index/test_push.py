"""Two labs share an index: one pushes, the other pulls or opens it by its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hub.client import LocalHub
from index_fakes import POLICY, FakeEmbedder, make_case

from medretrieval.index.builder import build
from medretrieval.index.opening import open_named
from medretrieval.index.pull import pull
from medretrieval.index.push import push
from medretrieval.index.store import open_store

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
