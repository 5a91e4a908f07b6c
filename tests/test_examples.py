"""The scripts in examples/, run as a user runs them, against a Hub on this machine."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent / "index"))

from hub.client import ROOT, LocalHub
from index_fakes import POLICY, FakeEmbedder, make_case

from medretrieval import push
from medretrieval.index import add_embedder, build, open_store

pytestmark = pytest.mark.slow

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
USE = "examples/use_published_index.py"
SHARE = "examples.share_an_index"
REPO = "lab/shapes"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test leaves records of its indexes in the cache of the user."""
    monkeypatch.setenv("MEDRETRIEVAL_CACHE", str(tmp_path / "cache"))


def run(hub: LocalHub, *arguments: str | Path) -> list[str]:
    """The lines that a script prints."""
    done = hub.run(*map(str, arguments))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def make_index(folder: Path, **options: Any) -> Path:
    cases = [make_case(number, depth=20, annotated=number > 0) for number in range(6)]
    return build(
        cases,
        folder / "index",
        embedder=FakeEmbedder(),
        slices=POLICY,
        name="shapes",
        license="cc-by-4.0",
        source="our own",
        **options,
    )


def write_volumes(folder: Path) -> None:
    """Two balls and two boxes, with their masks."""
    rng = np.random.default_rng(0)
    for number in range(4):
        mask = np.zeros((40, 32, 4), np.uint8)
        x, y = np.ogrid[:40, :32]
        inside = (x - 20) ** 2 + (y - 16) ** 2 < (60 + 20 * number)
        mask[inside if number < 2 else np.s_[8:30, 4 : 12 + number]] = 1
        voxels = (100 + 20 * rng.standard_normal(mask.shape) + 150 * mask).astype(np.int16)
        for kind, data in (("images", voxels), ("masks", mask)):
            path = folder / kind / f"{'ball' if number < 2 else 'box'}{number}.nii.gz"
            path.parent.mkdir(exist_ok=True, parents=True)
            nib.save(nib.Nifti1Image(data, np.diag([1.5, 1.5, 5, 1])), path)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short_and_say_what_to_expect(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 120
    documentation = ast.get_docstring(ast.parse(text)) or ""
    assert "Expect: " in documentation
    assert "argparse" in text


def test_the_users_example_does_without_medretrieval() -> None:
    found = [n for n in ast.walk(ast.parse((ROOT / USE).read_text())) if is_import(n)]
    modules = {getattr(n, "module", None) or n.names[0].name for n in found}
    assert {"datasets", "huggingface_hub", "safetensors.numpy", "faiss"} < modules
    assert not any(module.startswith("medretrieval") for module in modules)


def is_import(node: ast.AST) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))


def test_share_and_use(hub: LocalHub, tmp_path: Path) -> None:
    write_volumes(tmp_path)
    share = [
        *("-m", SHARE, tmp_path / "images", REPO, "--masks", tmp_path / "masks"),
        *("--label-names", "1=shape", "--work", tmp_path / "work", "--publish-images"),
        *("--query", tmp_path / "images" / "box3.nii.gz"),
    ]
    lines = run(hub, *share)
    assert lines[0].startswith(f"pushed {REPO} v1, commit ")
    assert lines[2].startswith("1. box3 slice ")
    assert hub.repo(REPO).private
    assert open_store(tmp_path / "work" / "pulled").manifest.counts.volumes == 4
    # Again: nothing is sent, nothing embedded.
    assert run(hub, *share)[0].endswith(": 0 bytes")

    lines = run(hub, USE, REPO, "--revision", "v1", "--row", "5", "-k", "4")
    assert "'volumes': 4" in lines[0]
    assert "['shape'], values in the mask [0, 1] of {'1': 'shape'}" in lines[2]
    assert lines[3] == "1. ball1 slice 1: cosine 1.0000"
    assert lines[-1] == "4 of 4 neighbours are the same by FAISS (flat) and by the product"


def test_use_a_vector_and_no_faiss_file(hub: LocalHub, tmp_path: Path) -> None:
    push(make_index(tmp_path), REPO)
    with open_store(tmp_path / "index") as store:
        np.save(tmp_path / "query.npy", 3 * store.embeddings[33])
        best = np.argsort(-(store.embeddings @ store.embeddings[33]))[:5]
        names = [f"{store.volume_ids[store.volume[r]]} slice {store.slice_index[r]}:" for r in best]
    lines = run(hub, USE, REPO, "--query", tmp_path / "query.npy", "--no-faiss")
    assert [line.split(" ", 1)[1].rsplit(" cos", 1)[0] for line in lines[3:8]] == names
    assert lines[-1].startswith("5 of 5 ")
    assert not hub.requests("GET", r"index\.faiss")


def test_use_an_approximate_index_without_pictures(hub: LocalHub, tmp_path: Path) -> None:
    push(make_index(tmp_path, index_kind="hnsw", float16=True), REPO, images=False)
    lines = run(hub, USE, REPO, "--row", "50")
    assert lines[1].endswith("image None")
    assert "values in the mask None" in lines[2]
    assert lines[3].startswith("1. volume-002 slice 10: cosine 1.0000")
    assert int(lines[-1].split()[0]) >= 4
    assert "FAISS (hnsw)" in lines[-1]


def test_use_another_embedder(hub: LocalHub, tmp_path: Path) -> None:
    index = make_index(tmp_path)
    add_embedder(index, embedder=FakeEmbedder(name="other", seed=8, dim=5))
    with open_store(index, embedder="other") as store:
        numbers = np.array(store.embeddings)
    push(index, REPO)
    lines = run(hub, USE, REPO, "--embedder", "other", "--row", "33")
    assert lines[0].endswith("embedders fake, other")
    best = np.sort(numbers @ numbers[33])[::-1][:5]
    assert [line.split()[-1] for line in lines[3:8]] == [f"{cosine:.4f}" for cosine in best]
    assert lines[-1].startswith("5 of 5 ")
    done = hub.run(USE, REPO, "--embedder", "third")
    assert "has no embedder third; it has fake, other" in done.stderr


@pytest.mark.parametrize("file", ["index.faiss", "embeddings/embeddings.safetensors"])
def test_a_changed_file_is_not_used(hub: LocalHub, tmp_path: Path, file: str) -> None:
    push(make_index(tmp_path), REPO)
    hub.flip_byte(REPO, file, 3000)
    done = hub.run(USE, REPO)
    assert done.returncode == 1
    assert f"{file} is not the file that manifest.json lists" in done.stderr
    assert "cosine" not in done.stdout
