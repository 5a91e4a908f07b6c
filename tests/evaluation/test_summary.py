"""Reports as tables for the card of an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medretrieval.errors import UsageError
from medretrieval.evaluation.pages import overview
from medretrieval.evaluation.summary import read_report, summary_of_report
from medretrieval.index.evaluated import MAX_CELL, MAX_COLUMNS, MAX_LINE, MAX_ROWS, problem_of

REPORT = Path(__file__).parents[2] / "docs" / "few-shot.json"


@pytest.fixture
def report() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(REPORT.read_text())
    return loaded


def test_few_shot(report: dict[str, Any]) -> None:
    found = summary_of_report(report)
    assert problem_of(found) is None
    assert found.title == "Few-shot segmentation by sam2-micro, supports by efficientnet-lite0"
    assert found.command.startswith("medretrieval evaluate few-shot volumes.csv --sets benchmarks/")
    assert found.header[:3] == (
        "set (query volumes)", "label", "sam2-micro, 8 retrieved supports",
    )  # fmt: skip
    assert found.rows[0][:3] == (
        "ACDC, cine MR of the heart (14)", "mean", ".545 [.466, .622]",
    )  # fmt: skip
    page = overview(report).replace("*", "")
    for row in (found.header, *found.rows):
        assert f"| {' | '.join(row)} |" in page
    assert "95 % bootstrap interval" in found.note
    assert "supports retrieved by efficientnet-lite0" in found.note


def test_paths_of_the_machine_do_not_go_along(report: dict[str, Any]) -> None:
    report["command"] = "medretrieval evaluate few-shot /home/anna/x.csv --out /home/anna/out"
    assert summary_of_report(report).command == "medretrieval evaluate few-shot x.csv --out out"
    report["command"] = None
    assert summary_of_report(report).command == ""


def test_large_reports_are_cut(report: dict[str, Any]) -> None:
    (first, *_) = report["sets"]
    entry = first["methods"][0]
    first["methods"] = [
        {**entry, "method": f"retrieved@{n}", "title": "t" * 1000} for n in range(1, 50)
    ]
    names = [f"structure {n}" for n in range(300)]
    first["labels"] = names
    for method in first["methods"]:
        method["dice"] = {name: entry["dice"]["RV"] for name in ("mean", *names)}
    report["machine"]["processor"] = "p" * 5000
    found = summary_of_report(report)
    assert problem_of(found) is None
    assert len(found.header) == MAX_COLUMNS
    assert len(found.rows) < MAX_ROWS
    assert {row[1] for row in found.rows} == {"mean", "CPU seconds a slice"}
    assert len(found.note) == MAX_LINE
    assert len(found.header[2]) == MAX_CELL


@pytest.mark.parametrize("data", [[], "x", {}, {"protocol": 3}])
def test_what_is_no_report(data: Any) -> None:
    with pytest.raises(UsageError, match="known are few-shot"):
        summary_of_report(data)


def test_unknown_protocol() -> None:
    with pytest.raises(UsageError, match=r"unknown protocol 'few-shots'.*few-shot"):
        summary_of_report({"protocol": "few-shots"})


@pytest.mark.parametrize("key", ["sets", "machine", "versions", "segmenter", "command"])
def test_a_report_that_is_not_whole(report: dict[str, Any], key: str) -> None:
    for broken in ({k: v for k, v in report.items() if k != key}, {**report, key: 7}):
        if key == "segmenter" and broken.get(key) == 7:
            continue
        with pytest.raises(UsageError, match="is not whole"):
            summary_of_report(broken)


def test_files(tmp_path: Path, report: dict[str, Any]) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(UsageError, match=r"report\.json"):
        read_report(path)
    path.write_text("{")
    with pytest.raises(UsageError, match="cannot be read as a report"):
        read_report(path)
    path.write_text('{"protocol": "x"}')
    with pytest.raises(UsageError, match=r"report\.json: unknown protocol"):
        read_report(path)
    path.write_text(json.dumps(report))
    assert read_report(tmp_path) == read_report(path) == summary_of_report(report)
