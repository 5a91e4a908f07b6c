from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test leaves records of its indexes in the cache of the user."""
    monkeypatch.setenv("MEDRETRIEVAL_CACHE", str(tmp_path_factory.mktemp("cache")))
