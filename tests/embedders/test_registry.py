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
from medretrieval.embedders.rows import common
from medretrieval.embedders.spec import EmbedderSpec
from medretrieval.errors import UnavailableError, UsageError

ROOT = Path(__file__).parents[2]

# The papers' own numbers: CBIR-FM, table 2 (#Features, input size); MSD-CBIR, section II.C, and
# TS-CBIR, section 2.3 (224 pixels); RAFS, section IV (384 numbers of DINOv2 ViT-S/14 with
# registers). DINO, DreamSim, Swin and ResNet: widths of the published networks.
PAPERS = {
    "dinov2-small-reg": (384, 224, {"RAFS"}),
    "dinov2-base": (768, 224, {"CBIR-FM", "MSD-CBIR", "TS-CBIR"}),
    "dino-vitb16": (768, 224, {"MSD-CBIR", "TS-CBIR"}),
    "dino-vitb8": (768, 224, {"MSD-CBIR", "TS-CBIR"}),
    "dreamsim": (1792, 224, {"MSD-CBIR", "TS-CBIR"}),
    "swin-radimagenet": (1024, 224, {"MSD-CBIR", "TS-CBIR"}),
    "resnet50-radimagenet": (2048, 224, {"MSD-CBIR", "TS-CBIR"}),
    "resnet50-fractaldb": (2048, 224, {"TS-CBIR"}),
    "resnet50": (1000, 224, {"CBIR-FM"}),
    "vit-b16-in21k": (768, 224, {"CBIR-FM"}),
    "ark": (1024, 224, {"CBIR-FM"}),
    "sam-vit-b": (768, 1024, {"CBIR-FM"}),
    "medsam-vit-b": (768, 1024, {"CBIR-FM"}),
    "clip-vit-l14": (1024, 224, {"CBIR-FM"}),
    "medclip": (768, 224, {"CBIR-FM"}),
    "biomedclip": (768, 224, {"CBIR-FM"}),
    "bmc-clip": (768, 224, {"CBIR-FM"}),
    "mae-vit-b": (768, 224, {"CBIR-FM"}),
    "rad-dino": (768, 518, {"CBIR-FM"}),
    "cvnet-r50": (2048, 224, {"CBIR-FM"}),
    "cvnet-r101": (2048, 224, {"CBIR-FM"}),
}
BEYOND = ("efficientnet-lite0", "medsiglip-448", "dinov3-vits16", "merlin")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache, and an empty folder for local weights."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("MEDRETRIEVAL_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", PAPERS)
def test_every_embedder_of_the_papers(name: str) -> None:
    spec = REGISTRY[name]
    assert (spec.dim, spec.input_size, set(spec.papers)) == PAPERS[name]


def test_names() -> None:
    assert set(BEYOND) <= set(REGISTRY)
    assert all(spec.name == name for name, spec in REGISTRY.items())


@pytest.mark.parametrize("spec", REGISTRY.values(), ids=lambda spec: spec.name)
def test_specification(spec: EmbedderSpec) -> None:
    module, _, attribute = spec.adapter.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute).load)
    if spec.source == "hub":
        assert spec.revision == "main" or re.fullmatch("[0-9a-f]{40}", spec.revision)
    assert spec.filenames
    assert spec.size_mb > 0
    assert spec.license
    assert spec.pooling
    json.dumps([spec.preprocessing, dict(spec.options)])


def test_rows_of_the_same_weights_are_different_features() -> None:
    seen = {
        (s.weights, s.filenames, s.pooling, s.dim, json.dumps(s.preprocessing))
        for s in REGISTRY.values()
    }
    assert len(seen) == len(REGISTRY)


def test_optional_packages_are_those_of_the_requirements() -> None:
    lines = (ROOT / "requirements-embedders.txt").read_text().splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    groups = (common.TIMM, common.OPEN_CLIP, common.DREAMSIM, common.MERLIN, common.OPENVINO)
    assert listed == {requirement for group in groups for requirement in group}
    always = (ROOT / "requirements.txt").read_text()
    for spec in REGISTRY.values():
        for requirement in spec.requires:
            assert requirement in listed or re.search(rf"^{requirement}==", always, re.M), spec.name


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'dinov2-bas'; did you mean dinov2-base.*lists all"):
        load_embedder("dinov2-bas")


def test_table() -> None:
    rows = list_embedders()
    assert [row["name"] for row in rows] == list(REGISTRY)
    json.dumps(rows)


def test_table_needs_no_library_and_no_network(
    run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    script = """
import socket, sys
def refuse(*_): raise SystemExit("network")
socket.socket.connect = refuse
from medretrieval.embedders import REGISTRY, list_embedders
print({(REGISTRY[row["name"]].source, row["status"]) for row in list_embedders()} - allowed)
heavy = {"torch", "transformers", "faiss", "timm", "open_clip", "dreamsim", "merlin", "openvino"}
print(sorted(heavy & set(sys.modules)))
"""
    local = {"MEDRETRIEVAL_WEIGHTS": str(tmp_path)}
    always = {("package", "bundled"), ("file", "needs a local file")}
    for hub, offline in (("downloadable", {}), ("needs a local file", {"HF_HUB_OFFLINE": "1"})):
        allowed = always | {("hub", hub), ("hub", f"{hub} (gated)")}
        done = run_python(f"allowed = {allowed}\n{script}", **local, **offline)
        assert done.stdout.splitlines() == ["set()", "[]"], done


def test_status_of_a_cached_snapshot(cache: Path) -> None:
    spec = REGISTRY["rad-dino"]
    folder = cache / "models--microsoft--rad-dino" / "snapshots" / spec.revision
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert status(spec) == "downloadable"  # the weights are not there yet
    (folder / "model.safetensors").write_bytes(b"")
    assert status(spec) == "cached"
    assert status(REGISTRY["dinov2-base"]) == "downloadable"


def test_status_of_weights_of_the_users_own(cache: Path, tmp_path: Path) -> None:
    spec = REGISTRY["cvnet-r50"]
    assert status(spec) == "needs a local file"
    with pytest.raises(UnavailableError, match=r"Get them from their authors.*cvnet-r50\.p"):
        load_embedder(spec)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "cvnet-r50.pth").write_bytes(b"")
    assert status(spec) == "local file"
    (tmp_path / "weights" / "dinov2-base").mkdir()
    assert status(REGISTRY["dinov2-base"]) == "local file"
    # One file serves all features of the same weights.
    (tmp_path / "weights" / "medsam-vit-b.pth").write_bytes(b"")
    assert status(REGISTRY["medsam-vit-b-neck"]) == "local file"
    assert status(REGISTRY["sam-vit-b"]) == "downloadable"


def test_missing_packages(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("transformers", "open_clip_torch"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert status(REGISTRY["dinov2-base"]) == "missing extra: pip install transformers"
    assert status(REGISTRY["biomedclip"]) == "missing extra: pip install open_clip_torch==3.3.0"
    assert status(REGISTRY["efficientnet-lite0"]) == "bundled"
    with pytest.raises(UnavailableError, match="pip install transformers"):
        load_embedder("dinov2-base")


def test_a_package_without_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match="force-reinstall efficientnet-lite0"):
        loader.bundled_file(REGISTRY["efficientnet-lite0"])
