"""Two labs share an index: one pushes, the other pulls it into a folder of its own.

The API that they meet is modelled on huggingface_hub 2.4.0, see `tests/hub/server.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hub.client import LocalHub
from sharing import (
    REPO,
    assert_same,
    hits,
    make_index,
    pushed,
)

from medretrieval.index.opening import open_named
from medretrieval.index.pull import pull
from medretrieval.index.store import open_store


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
