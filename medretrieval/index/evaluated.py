"""What an evaluation found with an index, as its manifest keeps it for the card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medretrieval.index.fields import Fields

MAX_EVALUATIONS = 20
MAX_COLUMNS = 32
MAX_ROWS = 200
MAX_CELL = 300
MAX_LINE = 2000


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A table of results.

    Attributes:
        title: what was evaluated.
        command: the command that measured it.
        header: names of the columns.
        rows: as many cells each.
        note: how the numbers are to be read, may be empty.
    """

    title: str
    command: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "command": self.command,
            "header": list(self.header),
            "rows": [list(row) for row in self.rows],
            **({"note": self.note} if self.note else {}),
        }

    @classmethod
    def read(cls, fields: Fields) -> Evaluation:
        """Return the evaluation that a manifest holds.

        Raises:
            IndexFormatError: a field is missing, of another type, or too long.
        """
        found = cls(
            title=fields.get("title", str),
            command=fields.get("command", str),
            header=_cells(fields, fields.get("header", list)),
            rows=tuple(_cells(fields, row) for row in fields.get("rows", list)),
            note=fields.get("note", str) if "note" in fields.data else "",
        )
        problem = problem_of(found)
        if problem is not None:
            raise fields.wrong("rows", problem)
        return found


def problem_of(evaluation: Evaluation) -> str | None:
    """Say why a manifest cannot hold an evaluation; None if it can."""
    if not 1 <= len(evaluation.header) <= MAX_COLUMNS or len(evaluation.rows) > MAX_ROWS:
        return f"must have 1 to {MAX_COLUMNS} columns and at most {MAX_ROWS} rows"
    if any(len(row) != len(evaluation.header) for row in evaluation.rows):
        return "must have as many cells as the header has columns"
    cells = [cell for row in (evaluation.header, *evaluation.rows) for cell in row]
    if any(len(cell) > MAX_CELL for cell in cells):
        return f"must have cells of at most {MAX_CELL} characters"
    if max(map(len, (evaluation.title, evaluation.command, evaluation.note))) > MAX_LINE:
        return f"must come with texts of at most {MAX_LINE} characters"
    return None


def read_evaluations(manifest: Fields) -> tuple[Evaluation, ...]:
    """Return the evaluations of a manifest, none where it has none.

    Raises:
        IndexFormatError: they are not a list of evaluations.
    """
    entries = manifest.get("evaluations", list) if "evaluations" in manifest.data else []
    if len(entries) > MAX_EVALUATIONS or not all(isinstance(entry, dict) for entry in entries):
        raise manifest.wrong("evaluations", f"is not a list of at most {MAX_EVALUATIONS} tables")
    where = f"{manifest.where}: evaluations"
    return tuple(Evaluation.read(Fields(entry, where)) for entry in entries)


def _cells(fields: Fields, row: Any) -> tuple[str, ...]:
    if not isinstance(row, list) or not all(isinstance(cell, str) for cell in row):
        raise fields.wrong("rows", "is not a table of text")
    return tuple(row)
