"""Several embedders of one index on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medretrieval import embedders
from medretrieval.cli import main
from medretrieval.errors import UnavailableError
from medretrieval.index import open_store
from medretrieval.types import EmbedderIdentity


class Grid:
    """Mean intensities of the fields of a coarse grid, and a constant."""

    def __init__(self, side: int) -> None:
        self._side = side
        self.identity = EmbedderIdentity(
            name=f"grid-{side}",
            weights="none",
            revision="1",
            weights_sha256=f"{side:064x}",
            preprocessing={},
            pooling="none",
            dim=side * side + 1,
        )

    def embed_batch(self, images: Any) -> Any:
        rows = []
        for image in images:
            fields = [
                field.mean()
                for band in np.array_split(image.astype(np.float32), self._side)
                for field in np.array_split(band, self._side, axis=1)
            ]
            vector = np.array([*fields, 1.0], np.float32)
            rows.append(vector / np.linalg.norm(vector))
        return np.stack(rows)


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The embedders that can be loaded, by name."""
    monkeypatch.setenv("MEDRETRIEVAL_CACHE", str(tmp_path / "cache"))
    found = {f"grid-{side}": Grid(side) for side in (2, 3)}

    def load(name: str, **_: Any) -> Any:
        if name not in found:
            raise UnavailableError(f"{name} is not here")
        return found[name]

    monkeypatch.setattr(embedders, "load_embedder", load)
    return found


def write(folder: Path, names: str) -> Path:
    for name in names:
        rng = np.random.default_rng(ord(name))
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        voxels = rng.integers(0, 1000, (16, 12, 4)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.diag([1.5, 1.5, 4.0, 1.0])), path)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()
    code = main([*map(str, arguments), "--json", "--quiet"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def failed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments), "--quiet"]) != 0
    return capsys.readouterr().err


def test_embedders_come_and_go(
    known: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "index"
    run(capsys, "build", write(tmp_path / "images", "ab"), index, "--embedder", "grid-2")
    found = run(
        *(capsys, "add-embedder", index, "--embedder", "grid-3", "--float16"),
        *("--index", "hnsw", "--index-option", "M=8", "--note", "to compare"),
    )
    assert found == {"index": str(index), "embedders": ["grid-2", "grid-3"]}
    info = run(capsys, "info", index)
    further = info["embedders"]["grid-3"]
    assert (further["dtype"], further["index"]["parameters"]["M"]) == ("float16", 8)
    assert info["embedders_here"] == ["grid-2", "grid-3"]
    assert info["changes"][0]["embedder"] == "grid-3"
    assert info["changes"][0]["note"] == "to compare"
    assert main(["info", str(index), "--quiet"]) == 0
    assert "embedders_here: grid-2, grid-3" in capsys.readouterr().out
    assert "already" in failed(capsys, "add-embedder", index, "--embedder", "grid-3")

    more = write(tmp_path / "more", "c")
    run(capsys, "append", index, tmp_path / "new", more)
    for name in known:
        with open_store(tmp_path / "new", embedder=name) as store:
            assert len(store) == 12
    del known["grid-3"]
    refused = failed(capsys, "append", index, tmp_path / "x", more)
    assert "--without-embedder grid-3" in refused
    run(capsys, "append", index, tmp_path / "x", more, "--without-embedder", "grid-3")
    assert run(capsys, "info", tmp_path / "x")["embedders_here"] == ["grid-2"]

    left = run(capsys, "drop-embedder", index, "--embedder", "grid-2")
    assert left["embedders"] == ["grid-3"]
    assert run(capsys, "info", index)["embedder"]["name"] == "grid-3"
