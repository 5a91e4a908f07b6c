"""The table, and what it says about this machine, without torch and without network."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from medretrieval.embedders import REGISTRY, list_embedders, load_embedder, loader, status
from medretrieval.embedders.spec import EmbedderSpec
from medretrieval.errors import UnavailableError, UsageError

SEVEN = [
    "efficientnet-lite0",
    "dinov2-small-reg",
    "dinov2-base",
    "dino-vitb16",
    "rad-dino",
    "vit-b16-in21k",
    "mae-vit-b",
]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path


def test_names() -> None:
    assert list(REGISTRY) == SEVEN
    assert all(spec.name == name for name, spec in REGISTRY.items())


@pytest.mark.parametrize("spec", REGISTRY.values(), ids=lambda spec: spec.name)
def test_specification(spec: EmbedderSpec) -> None:
    module, _, attribute = spec.adapter.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute).load)
    if spec.source == "hub":
        assert spec.revision == "main" or re.fullmatch("[0-9a-f]{40}", spec.revision)
    json.dumps(spec.preprocessing)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'dinov2-bas'; did you mean dinov2-base.*lists all"):
        load_embedder("dinov2-bas")


def test_table() -> None:
    rows = list_embedders()
    assert [row["name"] for row in rows] == SEVEN
    json.dumps(rows)
    assert {row["dim"] for row in rows} == {1280, 384, 768}


def test_table_needs_no_torch_and_no_network(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    script = """
import socket, sys
def refuse(*_): raise SystemExit("network")
socket.socket.connect = refuse
from medretrieval.embedders import list_embedders
print([row["status"] for row in list_embedders()])
print(sorted({"torch", "transformers", "faiss"} & set(sys.modules)))
"""
    online = run_python(script)
    assert online.stdout.splitlines() == [str(["bundled"] + ["downloadable"] * 6), "[]"], online
    offline = run_python(script, HF_HUB_OFFLINE="1")
    assert offline.stdout.splitlines()[0] == str(["bundled"] + ["needs a local file"] * 6)


def test_status_of_a_cached_snapshot(cache: Path) -> None:
    spec = REGISTRY["rad-dino"]
    folder = cache / "models--microsoft--rad-dino" / "snapshots" / spec.revision
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert status(spec) == "downloadable"  # the weights are not there yet
    (folder / "model.safetensors").write_bytes(b"")
    assert status(spec) == "cached"
    assert status(REGISTRY["dinov2-base"]) == "downloadable"


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "transformers":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert status(REGISTRY["dinov2-base"]) == "missing extra: pip install transformers"
    assert status(REGISTRY["efficientnet-lite0"]) == "bundled"
    with pytest.raises(UnavailableError, match="pip install transformers"):
        load_embedder("dinov2-base")


def test_a_package_without_its_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match="force-reinstall efficientnet-lite0"):
        loader.bundled_file(REGISTRY["efficientnet-lite0"])
