"""Results that are used again, and those that are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medretrieval.evaluation.cells import Cells, file_name


def test_a_result_is_made_once_of_the_same_things(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(len(made))
        return {"number": made[-1]}

    def get(cells: Cells, **identity: Any) -> int:
        found: int = cells.get("set", "a/b.nii", identity=identity, make=make)["number"]
        return found

    assert [get(Cells(tmp_path), seed=0), get(Cells(tmp_path), seed=0)] == [0, 0]
    assert get(Cells(tmp_path), seed=1) == 1
    assert get(Cells(tmp_path, fresh=True), seed=1) == 2
    (file,) = tmp_path.rglob("*.json")
    file.write_text("{")  # as a killed run would not leave it, but a full disk might
    assert get(Cells(tmp_path), seed=1) == 3


def test_names_of_files_are_safe_and_different() -> None:
    names = ["retrieved@8", "../up", "a b", "a-b", "x" * 300]
    files = [file_name(name) for name in names]
    assert files[0] == "retrieved@8"
    assert len(set(files)) == len(files)
    assert all("/" not in file and "." not in file and len(file) < 90 for file in files)
