"""Sets of a table, from a file and without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medretrieval.errors import InputError, UsageError
from medretrieval.evaluation.sets import one_set, read_sets

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, data: Any) -> Path:
    path = folder / "sets.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_a_file_defines_sets(table: Path, tmp_path: Path) -> None:
    entry = {"where": {"organ": "disc"}, "labels": {"1": "core"}, "every": 2, "title": "Discs"}
    first, second = read_sets(table, write(tmp_path, {"discs": entry, "more": entry}))
    assert (first.name, first.title, first.labels, first.every) == (
        "discs",
        "Discs",
        {1: "core"},
        2,
    )
    assert second.name == "more"
    assert [case.volume_id for case in first.queries()] == ["case4", "case5", "case6"]
    assert len({case.patient_id for case in first.queries()}) == 2
    (only,) = read_sets(table, write(tmp_path, {"discs": entry, "more": entry}), ["more"])
    assert only.name == "more"


def test_a_set_may_have_a_table_of_its_own(table: Path, tmp_path: Path) -> None:
    entry = {"table": "others.csv", "labels": {"1": "core"}}
    (chosen,) = read_sets(table, write(tmp_path, {"discs": entry}))
    assert chosen.table == table.parent / "others.csv"
    with pytest.raises(UsageError, match=r"others\.csv does not exist"):
        chosen.queries()


def test_a_whole_table_is_a_set(table: Path) -> None:
    chosen = one_set(table, {1: "core"}, {"organ": "disc"})
    assert len(chosen.rows("database")) == 4
    assert one_set(table).labels == {}


def test_a_query_may_be_a_channel(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "path,mask,volume_id,channel,split\na.nii,m.nii,a,1,query\na.nii,m.nii,b,,query\n"
    )
    assert [case.channel for case in one_set(tmp_path / "t.csv").queries()] == [1, 0]


def test_rows_that_are_not_there(table: Path) -> None:
    with pytest.raises(InputError, match="no row"):
        one_set(table, {1: "core"}, {"organ": "liver"}).queries()
    with pytest.raises(UsageError, match="no column 'scanner'"):
        one_set(table, {1: "core"}, {"scanner": "a"}).queries()


def test_a_query_needs_its_mask(tmp_path: Path) -> None:
    table = tmp_path / "cases.csv"
    table.write_text("path,mask,split\na.png,,query\n")
    with pytest.raises(UsageError, match=r"a\.png is a query .* without a mask"):
        one_set(table, {1: "core"}).queries()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "not a JSON file"),
        ([], "expected an object"),
        ({"discs": 1}, "expected an object"),
        ({"discs": {"labels": ["core"]}}, "mask value"),
        ({"discs": {"labels": {"0": "core"}}}, "mask value"),
        ({"discs": {"labels": {"1": "core"}, "every": 0}}, "every is 0"),
        ({"discs": {"labels": {"1": "core"}, "wher": {}}}, "unknown key 'wher'"),
        ({"discs": {"labels": {"1": "core"}, "where": ["organ"]}}, "where"),
        ({"discs": {"labels": {"1": "core"}, "published": "x"}}, "known: ACDC"),
    ],
)
def test_wrong_files_are_refused(table: Path, tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_sets(table, write(tmp_path, data))


def test_unknown_sets_and_missing_files_are_refused(table: Path, tmp_path: Path) -> None:
    path = write(tmp_path, {"discs": {"labels": {"1": "core"}}})
    with pytest.raises(UsageError, match="did you mean discs"):
        read_sets(table, path, ["disc"])
    with pytest.raises(UsageError, match="cannot be read"):
        read_sets(table, tmp_path / "none.json")
    with pytest.raises(UsageError, match="does not exist"):
        read_sets(tmp_path / "none.csv", path)


def test_the_sets_of_the_benchmark_are_readable(table: Path) -> None:
    sets = read_sets(table, ROOT / "benchmarks" / "few_shot_sets.json")
    assert {chosen.name for chosen in sets} >= {"acdc", "drive"}
