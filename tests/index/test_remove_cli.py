"""The commands `remove` and `diff`, and the changes that `info` tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from index_fakes import POLICY, FakeEmbedder, contents, make_case

from medretrieval.cli import main
from medretrieval.index import build, open_store, pseudonym


@pytest.fixture
def index(tmp_path: Path) -> Path:
    cases = [make_case(n) for n in range(4)]
    return build(cases, tmp_path / "i", embedder=FakeEmbedder(), slices=POLICY, name="test")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    capsys.readouterr()
    code = main([*map(str, arguments), "--quiet"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out, err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    try:
        code = main([*map(str, arguments), "--quiet"])
    except SystemExit as stopped:
        code = int(str(stopped.code))
    assert code == 2
    return capsys.readouterr().err


def test_remove_and_diff(index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new"
    out, err = run(
        capsys, "remove", index, new, "--patient", "Mueller^Anna-1", "--note", "as asked", "--json"
    )
    assert json.loads(out) == {"index": str(new), "version": 2, "removed_volumes": 2}
    assert f"{index}, copies elsewhere" in err
    found: Any = json.loads(run(capsys, "diff", index, new, "--json")[0])
    assert found["equal"] is False
    assert found["volumes"]["removed"] == ["volume-002", "volume-003"]
    text = run(capsys, "diff", index, new)[0]
    assert "volumes: 0 added, 2 removed, 0 changed, 2 the same" in text
    assert json.loads(run(capsys, "diff", new, new, "--json")[0])["equal"] is True
    assert run(capsys, "diff", new, new)[0] == "equal: 2 volumes, every file the same\n"
    assert ": 2 volumes removed; as asked\n" in run(capsys, "info", new)[0]
    assert json.loads(run(capsys, "info", new, "--json")[0])["changes"][0]["removed"] == 2


def test_in_place(index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = pseudonym("Mueller^Anna-0", "test")
    out, err = run(capsys, "remove", index, "--in-place", "--pseudonym", name)
    assert out == f"{index}\n"
    assert "volumes removed: 2; copies elsewhere" in err
    run(capsys, "remove", index, "--in-place", "--volume", "volume-002")
    with open_store(index) as store:
        assert store.volume_ids == ["volume-003"]
        assert store.manifest.version == 3
    assert [path.name for path in tmp_path.iterdir()] == ["i"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--patient", "x"], "an OUT folder, or --in-place"),
        (["{out}", "--in-place", "--patient", "x"], "an OUT folder, or --in-place"),
        (["{out}"], "required"),
        (["{out}", "--patient", "x", "--volume", "volume-001"], "not allowed with"),
        (["{out}", "--patient", "x"], "none of its 2 patients"),
        (["{out}", "--volume", "volume-001", "--volume", "v9"], "no volume 'v9'"),
        (["{index}", "--volume", "volume-001"], "exists already"),
    ],
)
def test_what_is_refused(
    index: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    before = contents(tmp_path)
    given = [a.format(out=tmp_path / "out", index=index) for a in arguments]
    assert message in refused(capsys, "remove", index, *given)
    assert contents(tmp_path) == before
