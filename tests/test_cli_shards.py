"""The command line of builds in parts: `build --part`, `merge`, several indexes at once, Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medretrieval.cli import main
from medretrieval.index.manifest import read_manifest


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDRETRIEVAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures in `images`, the index `whole` of them, and its parts `part1` and `part2`."""
    root = tmp_path_factory.mktemp("world")
    (root / "images").mkdir()
    rng = np.random.default_rng(3)
    for number in range(5):
        pixels = rng.integers(0, 256, (40, 48), dtype=np.uint8) // (number + 1)
        Image.fromarray(pixels).save(root / "images" / f"picture{number}.png")
    assert build(root, "whole") == 0
    for number in (1, 2):
        assert build(root, f"part{number}", "--part", f"{number}/2") == 0
    return root


def build(root: Path, out: str, *options: str, name: str = "pictures") -> int:
    named = ["--name", name] if name else []
    return main(["build", str(root / "images"), str(root / out), "--quiet", *named, *options])


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """Run with --json; return what it printed."""
    capsys.readouterr()
    code = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_parts_merged_are_the_whole(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merged = world / "merged"
    printed = run(capsys, "merge", merged, world / "part1", world / "part2", "--quiet")
    assert printed == {"index": str(merged)}
    ours, theirs = files(merged), files(world / "whole")
    # Only what they say of their origin differs.
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == {"README.md", "manifest.json"}
    one, other = (read_manifest(path) for path in (merged, world / "whole"))
    assert replace(one, command=None, files={}) == replace(other, command=None, files={})
    assert one.command is not None
    assert one.command.splitlines() == [
        *(f"medretrieval build images part{n} --name pictures --part {n}/2" for n in (1, 2)),
        "medretrieval merge merged part1 part2",
    ]
    assert "| part | 1 of 2, to be merged |" in (world / "part1" / "README.md").read_text()
    kind = run(capsys, "merge", world / "hnsw", merged, "--index", "hnsw", "--quiet")
    assert run(capsys, "info", kind["index"])["index"]["kind"] == "hnsw"


def test_several_indexes_at_once(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = f"{world / 'part1'},{world / 'part2'}"
    info = run(capsys, "info", both)
    assert info["path"] == both.split(",")
    assert info["counts"] == run(capsys, "info", world / "whole")["counts"]
    query = world / "images" / "picture3.png"
    found = run(capsys, "search", both, query, "-k", 4, "--quiet")
    assert found == run(capsys, "search", world / "whole", query, "-k", 4, "--quiet")
    assert found["hits"][0]["volume_id"] == "picture3"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--part", "1/6"], "5 cases cannot be divided into 6 parts"),
        (["--workers", "3"], "go with the engine ray"),
        (["--ray-address", "localhost:1"], "go with the engine ray"),
    ],
)
def test_options_that_do_not_go_together(
    world: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert build(world, "out", *options) == 2
    assert message in capsys.readouterr().err


def test_a_part_needs_the_name_of_the_whole(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(world, "out", "--part", "1/2", name="") == 2
    assert "key of the patients' pseudonyms (--name)" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2"])
def test_parts_that_cannot_be(world: Path, capsys: pytest.CaptureFixture[str], part: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        build(world, "out", f"--part={part}")
    assert stopped.value.code == 2
    assert "such as 2/8" in capsys.readouterr().err


@pytest.mark.slow
def test_built_on_ray(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        path = os.environ.get("PYTHONPATH", "")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), path]))
        assert build(world, "ray", "--engine", "ray", "--workers", "1") == 0
    assert capfd.readouterr().out.strip() == str(world / "ray")
    assert files(world / "ray").keys() == files(world / "whole").keys()
    ours, theirs = ((world / name / "manifest.json").read_text() for name in ("ray", "whole"))
    fields = [json.loads(text) for text in (ours, theirs)]
    for data in fields:
        del data["files"]  # embeddings may differ by rounding between batches
        del data["command"]
    assert fields[0] == fields[1]
