"""The kind of search on the command line: chosen by size unless named, with its settings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medretrieval.cli import main
from medretrieval.errors import UsageError
from medretrieval.option_values import index_parameters


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 256, (40, 40), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_settings_are_whole_numbers_by_name() -> None:
    assert index_parameters([]) is None
    assert index_parameters(["M=16", "efSearch=512"]) == {"M": 16, "efSearch": 512}
    for wrong in ("M", "M=", "=3", "M=a", "M=-1", "M=1.5"):
        with pytest.raises(UsageError, match="NAME=VALUE"):
            index_parameters([wrong])


def test_auto_is_the_default_and_says_why(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(pictures), str(tmp_path / "index"), "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "index")
    assert "index kind flat: 3 rows of 1280 numbers: exact search" in said.err
    assert main(["info", str(tmp_path / "index"), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["index"]["kind"] == "flat"
    assert info["index"]["asked"] == {"kind": "auto", "parameters": {}}
    assert info["exact"] is True


def test_a_named_kind_takes_settings(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["build", str(pictures), str(tmp_path / "index"), "--quiet", "--index"]
    settings = ["--index-option", "nlist=2", "--index-option", "candidates=50"]
    assert main([*build, "ivf-pq", *settings]) == 0
    assert "finds 100.0% of the ten most similar slices" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "index"), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    parameters = {"nlist": 2, "nprobe": 2, "m": 160, "bits": 4, "candidates": 50}
    assert info["index"]["parameters"] == parameters
    assert info["recall"]["recall@10"] == 1
    assert info["exact"] is False
    for kind, error in (("auto", "name the kind"), ("hnsw", "has no parameter 'nlist'")):
        assert main([*build, kind, "--force", *settings]) == 2
        assert error in capsys.readouterr().err
