"""What a report found, as one table that an index keeps for its card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medretrieval.errors import UsageError, unknown_name
from medretrieval.evaluation.pages import CPU_SECONDS, EXPLAINED, made_with, overview_rows
from medretrieval.evaluation.report import MEAN
from medretrieval.index.commands import shareable
from medretrieval.index.evaluated import MAX_CELL, MAX_COLUMNS, MAX_LINE, MAX_ROWS, Evaluation

REPORT = "report.json"


def read_report(path: str | Path) -> Evaluation:
    """Return the summary of a report that `medretrieval evaluate` wrote.

    Args:
        path: the report, or the folder (`--out`) that it is in.

    Raises:
        UsageError: there is no such file, or it is no report.
    """
    path = Path(path)
    path = path / REPORT if path.is_dir() else path
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} cannot be read as a report ({error}); give the {REPORT} that "
            "`medretrieval evaluate` wrote into its --out folder"
        ) from None
    try:
        return summary_of_report(report)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def summary_of_report(report: Mapping[str, Any]) -> Evaluation:
    """Return the main table of a report, small enough for a manifest.

    Args:
        report: what a protocol of `medretrieval evaluate` returns and writes.

    Raises:
        UsageError: it is of an unknown protocol, or is not whole.
    """
    protocol = report.get("protocol") if isinstance(report, Mapping) else None
    if not isinstance(protocol, str):
        raise UsageError(
            "this is not a report of `medretrieval evaluate`: it names no protocol; known are "
            f"{', '.join(_SUMMARIES)}"
        )
    if protocol not in _SUMMARIES:
        raise unknown_name("protocol", protocol, _SUMMARIES, "medretrieval evaluate --help")
    try:
        return _SUMMARIES[protocol](report)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"this report of the protocol {protocol} is not whole ({type(error).__name__}: "
            f"{error}); run `medretrieval evaluate {protocol}` again, or give another report"
        ) from None


def _few_shot(report: Mapping[str, Any]) -> Evaluation:
    header, rows = overview_rows(report, marked=False)
    note = f"{EXPLAINED} {made_with(report)}"
    if len(rows) > MAX_ROWS:
        rows = [row for row in rows if row[1] in (MEAN, CPU_SECONDS)][:MAX_ROWS]
        note += " The means over the labels only; the report has all labels."
    return Evaluation(
        title=_cut(
            f"Few-shot segmentation by {report['segmenter']}, supports by {report['embedder']}",
            MAX_LINE,
        ),
        command=_cut(shareable(report["command"] or ""), MAX_LINE),
        header=_cells(header),
        rows=tuple(map(_cells, rows)),
        note=_cut(note, MAX_LINE),
    )


def _cells(row: list[str]) -> tuple[str, ...]:
    return tuple(_cut(str(cell), MAX_CELL) for cell in row[:MAX_COLUMNS])


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 4]} ..."


_SUMMARIES: Mapping[str, Callable[[Mapping[str, Any]], Evaluation]] = {"few-shot": _few_shot}
