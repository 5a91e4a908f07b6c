"""`medretrieval card`, and the command that an index keeps."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medretrieval.cli import main
from medretrieval.index import open_store
from medretrieval.index.manifest import read_manifest

REPORT = Path(__file__).parents[1] / "docs" / "few-shot.json"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDRETRIEVAL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(3)
    for number in range(2):
        pixels = rng.integers(0, 256, (24, 24), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    arguments = ["build", str(tmp_path / "images"), str(tmp_path / "index"), "--name", "two"]
    assert main([*arguments, "--quiet"]) == 0
    return tmp_path / "index"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """Run with --json; return what it printed."""
    capsys.readouterr()
    code = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def test_an_index_keeps_the_command_without_the_machine(
    index: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = "medretrieval build images index --name two"
    assert read_manifest(index).command == command
    assert f"```bash\n{command}\n```" in run(capsys, "card", index)["card"]
    for name in ("README.md", "manifest.json"):
        text = (index / name).read_text()
        assert str(index.parent) not in text
        assert f"/{getpass.getuser()}/" not in text


def test_a_card_is_printed(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (index / "README.md").read_text()
    capsys.readouterr()
    assert main(["card", str(index)]) == 0
    assert capsys.readouterr().out == before
    printed = run(capsys, "card", index, "--repo", "org/name", "--report", REPORT)
    assert printed["path"] is None
    assert 'open_index("org/name@v1")' in printed["card"]
    assert "### Few-shot segmentation by sam2-micro" in printed["card"]
    assert (index / "README.md").read_text() == before
    assert read_manifest(index).evaluations == ()


def test_a_card_is_written(index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(REPORT.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**report, "segmenter": "other"}))
    arguments = ["--report", REPORT, "--report", other, "--repo", "org/name@abc"]
    printed = run(capsys, "card", index, *arguments, "--write")
    assert printed["path"] == str(index / "README.md")
    assert (index / "README.md").read_text() == printed["card"]
    assert 'open_index("org/name@abc")' in printed["card"]
    run(capsys, "card", index, "--report", REPORT, "--write")
    with open_store(index, verify="full") as store:
        titles = [found.title for found in store.manifest.evaluations]
    assert titles == [
        f"Few-shot segmentation by {name}, supports by efficientnet-lite0"
        for name in ("sam2-micro", "other")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repo", "name"], "write ORG/NAME"),
        (["--report", "none.json"], "none.json cannot be read as a report"),
    ],
)
def test_wrong_use(
    index: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (index / "README.md").read_text()
    for more in ([], ["--write"]):
        assert main(["card", str(index), *arguments, *more]) == 2
        assert message in capsys.readouterr().err
    assert (index / "README.md").read_text() == before
    with open_store(index):
        pass
