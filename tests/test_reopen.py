"""An index finds the embedder that made it again, and no other, whatever it was called."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medretrieval.cli import main
from medretrieval.embedders import REGISTRY, load_embedder
from medretrieval.embedders.loader import bundled_file
from medretrieval.errors import EmbedderMismatchError, InputError
from medretrieval.index import open_store
from medretrieval.pipeline import build_index
from medretrieval.retrieval.engine import open_index

LITE = "efficientnet-lite0"
AFFINE = np.diag([-3.0, -3.0, 6.0, 1.0])


def write_ct(path: Path, seed: int, size: tuple[int, int, int] = (40, 36, 12)) -> Path:
    """A body with bright blocks in air, in Hounsfield units."""
    rng = np.random.default_rng(seed)
    voxels = np.full(size, -1000, np.int16)
    voxels[6:-6, 6:-6] = rng.integers(-60, 80, (size[0] - 12, size[1] - 12, size[2]))
    x, y = rng.integers(8, 20, 2)
    voxels[x : x + 6, y : y + 8, 3:9] = 900
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three volumes, with masks of the middle one's block beside it."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(3):
        path = write_ct(folder / "images" / f"case-{number}.nii.gz", number)
        mask = (np.asarray(nib.load(path).dataobj) == 900).astype(np.uint8)
        (folder / "masks").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(mask, AFFINE), folder / "masks" / path.name)
    return folder


@pytest.fixture
def described(tmp_path: Path) -> Callable[..., Path]:
    """Writes a JSON specification beside a copy of the bundled weights."""
    folder = tmp_path / "specs"
    folder.mkdir()
    shutil.copy(bundled_file(REGISTRY[LITE]), folder / "ours.pth")

    def write(name: str, **changes: Any) -> Path:
        path = folder / name
        path.write_text(json.dumps({"like": LITE, "weights": "ours.pth", **changes}))
        return path

    return write


def search(index: Path, images: Path, **options: Any) -> tuple[str, float]:
    """The best case for the middle slice of case 1, which is in the index, and its score."""
    found = open_index(index, **options).search(
        images / "images" / "case-1.nii.gz", slice_index=6, k=1
    )
    return found.hits[0].volume_id, found.hits[0].score


def test_an_index_of_a_described_embedder(
    images: Path, described: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDRETRIEVAL_WEIGHTS", str(tmp_path / "nothing"))
    path = described("ours.json", interpolation="bilinear")
    index = build_index(images / "images", tmp_path / "index", embedder=f"file:{path}")
    stored = open_store(index).manifest.embedder
    made = load_embedder(f"file:{path}").identity
    assert stored == made
    assert stored.name == "file:ours.json"
    assert stored.weights_sha256 == load_embedder(LITE).identity.weights_sha256
    assert stored.preprocessing["interpolation"].startswith("bilinear")
    with pytest.raises(InputError, match=r"ours\.json does not exist"):
        search(index, images)
    assert search(index, images, weights=path) == ("case-1", pytest.approx(1, abs=1e-5))
    monkeypatch.setenv("MEDRETRIEVAL_WEIGHTS", str(path.parent))
    assert search(index, images) == ("case-1", pytest.approx(1, abs=1e-5))
    described("ours.json", interpolation="bicubic")
    with pytest.raises(EmbedderMismatchError) as caught:
        search(index, images)
    marked = [line for line in str(caught.value).splitlines() if "(differs)" in line]
    assert len(marked) == 1
    assert marked[0].split()[:2] == ["preprocessing", "interpolation"]


def test_an_index_of_an_ensemble(
    images: Path, described: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = described("one.json", interpolation="bilinear")
    described("two.json", input_size=128, resize_to=128)
    monkeypatch.setenv("MEDRETRIEVAL_WEIGHTS", str(one.parent))
    name = "file:one.json+file:two.json"
    index = build_index(images / "images", tmp_path / "index", embedder=name)
    stored = open_store(index).manifest.embedder
    assert stored == load_embedder(name).identity
    assert (stored.name, stored.dim) == (name, 2 * 1280)
    sizes = [part["preprocessing"]["input_size"] for part in stored.preprocessing["parts"]]
    assert sizes == [224, 128]
    assert search(index, images) == ("case-1", pytest.approx(1, abs=1e-5))
    with pytest.raises(EmbedderMismatchError, match="the embedder given"):
        open_index(index, embedder=load_embedder("file:two.json+file:one.json"))
    described("two.json", input_size=160, resize_to=160)
    with pytest.raises(EmbedderMismatchError) as caught:
        search(index, images)
    marked = [line for line in str(caught.value).splitlines() if "(differs)" in line]
    assert [line.split()[:4] for line in marked] == [
        ["part", "2", "preprocessing", "input_size"],
        ["part", "2", "preprocessing", "resize_to"],
    ]


@pytest.fixture
def merlin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small Merlin with random weights and a small field, described by a JSON file."""
    import torch

    from medretrieval.embedders.merlin import IMAGE_PREFIX, build

    torch.manual_seed(0)
    options = {"layers": [1, 1, 1, 1], "head": "image"}
    field = {**REGISTRY["merlin"].options["volume"], "size": [80, 80, 32]}
    tensors = {f"{IMAGE_PREFIX}{k}": v for k, v in build(options).state_dict().items()}
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.save(tensors, folder / "small.pt")
    description = {
        "like": "merlin", "weights": "small.pt", "options": {**options, "volume": field}
    }  # fmt: skip
    (folder / "small.json").write_text(json.dumps(description))
    monkeypatch.setenv("MEDRETRIEVAL_WEIGHTS", str(folder))
    return "file:small.json"


def test_an_index_of_whole_volumes_from_the_command_line(
    images: Path, merlin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*args: object) -> Any:
        assert main([*map(str, args), "--json", "--quiet"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    def refused(*args: object) -> str:
        assert main([*map(str, args), "--quiet"]) in (1, 2)
        return capsys.readouterr().err

    out, query = tmp_path / "index", images / "images" / "case-2.nii.gz"
    run(
        *("build", images / "images", out, "--masks", images / "masks"),
        *("--embedder", merlin, "--label-names", "1=block"),
    )
    info = run("info", out)
    assert info["embedder"]["preprocessing"]["unit"] == "volume"
    assert info["counts"]["slices"] == info["counts"]["volumes"] == 3
    found = run("search", out, query)
    assert found["hits"][0]["volume_id"] == "case-2"
    assert len(found["hits"]) == 3
    assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert found["hits"][0]["labels"] == ["block"]
    # The slice shown has the block, in the slices 3 to 8, and is the middle one, 6.
    assert found["hits"][0]["matches"][0]["slice_index"] == 6
    assert len(run("search", out, query, "--mode", "rerank")["hits"]) == 1
    assert "--slice" in refused("search", out, query, "--slice", 3)
    refusal = refused("segment", out, query, "--out", tmp_path / "mask.nii.gz")
    assert "annotated slices cannot be retrieved from this index" in refusal
    assert not (tmp_path / "mask.nii.gz").exists()
    mr = tmp_path / "mr.nii.gz"
    nib.save(nib.Nifti1Image(np.arange(90, 990, dtype=np.int16).reshape(10, 10, 9), AFFINE), mr)
    assert "unknown modality and its lowest value is 90" in refused("search", out, mr)
    shutil.copytree(images / "images", tmp_path / "mixed")
    shutil.copy(mr, tmp_path / "mixed" / "mr.nii.gz")
    mixed = ["build", tmp_path / "mixed", tmp_path / "other", "--embedder", merlin]
    assert "1 of 4 cases cannot be used:\n  mr: mr is of unknown modality" in refused(*mixed)
    run(*mixed, "--skip-bad", "--float16")
    assert run("info", tmp_path / "other")["counts"]["skipped"] == 1
