from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from index_fakes import POLICY, FakeEmbedder, make_case

from medretrieval.index import build


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test leaves records of its indexes in the cache of the user."""
    monkeypatch.setenv("MEDRETRIEVAL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def flat_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small index that tests only read."""
    cases = [make_case(n, depth=4) for n in range(4)]
    cases.append(make_case(4, depth=2, annotated=False))
    out = tmp_path_factory.mktemp("flat") / "index"
    return build(cases, out, embedder=FakeEmbedder(), slices=POLICY, name="small")


@pytest.fixture
def own_index(tmp_path: Path) -> Path:
    """A small hnsw index that a test may damage."""
    cases = [make_case(n) for n in range(3)]
    return build(
        cases,
        tmp_path / "index",
        embedder=FakeEmbedder(),
        slices=POLICY,
        name="own",
        index_kind="hnsw",
    )
