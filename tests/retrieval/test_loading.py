"""The embedder of an index is loaded again as the index says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medretrieval import embedders
from medretrieval.errors import UnavailableError
from medretrieval.retrieval.loading import load_again
from medretrieval.types import EmbedderIdentity


def identity(**changes: Any) -> EmbedderIdentity:
    usual = {
        "name": "toy", "weights": "org/toy", "revision": "c0ffee", "weights_sha256": "ab" * 32,
        "preprocessing": {}, "pooling": "mean", "dim": 4,
    }  # fmt: skip
    return EmbedderIdentity(**{**usual, **changes})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the loader was asked for last."""
    last: dict[str, Any] = {}

    def load(name: str, **options: Any) -> str:
        last.clear()
        last.update(name=name, **options)
        return "loaded"

    monkeypatch.setattr(embedders, "load_embedder", load)
    return last


@pytest.mark.parametrize(
    ("stored", "wanted", "used"),
    [
        ("bfloat16", None, "bfloat16"),
        ("float32", None, "float32"),
        ("bfloat16", "float32", "float32"),
        ("float32", "auto", "auto"),
        ("float32 + bfloat16", None, "float32"),
    ],
)
def test_the_precision_is_that_of_the_index_unless_said(
    asked: dict[str, Any], stored: str, wanted: Any, used: str
) -> None:
    assert load_again(identity(precision=stored), precision=wanted) == "loaded"
    assert asked["precision"] == used
    assert (asked["name"], asked["revision"]) == ("toy", "c0ffee")


def test_weights_that_were_a_local_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, **options: Any) -> None:
        raise UnavailableError("not on the Hub either")

    monkeypatch.setattr(embedders, "load_embedder", load)
    local = identity(weights="local file", revision="local file")
    with pytest.raises(UnavailableError, match=r"made by toy with weights from a local file.*abab"):
        load_again(local)
    for other, weights in ((identity(), None), (local, Path("given.pth"))):
        with pytest.raises(UnavailableError, match=r"^not on the Hub either"):
            load_again(other, weights=weights)
