"""Cases from a CSV table."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from medretrieval.errors import InputError, UsageError
from medretrieval.index.cases import (
    DICOM_SUFFIXES,
    IMAGE_SUFFIXES,
    Case,
    check_label_name,
    file_case,
    split_suffix,
)
from medretrieval.index.columns import attribute_problem

COLUMNS = ("path", "mask", "volume_id", "patient_id", "modality", "region", "labels", "channel")
_SHOWN = 10
_VALUES_SHOWN = 8


def cases_from_table(
    table: str | Path,
    *,
    root: str | Path | None = None,
    where: Mapping[str, str] | None = None,
    keep: Sequence[str] = (),
    label_names: Mapping[int, str] | None = None,
    channel: int = 0,
    allow_one_slice: bool = False,
) -> list[Case]:
    """Read the cases that a CSV table lists, in its order.

    Columns: `path` (needed), `mask`, `volume_id`, `patient_id`, `modality`, `region`, `labels`,
    `channel`; others are ignored unless kept, empty cells mean the default. `labels` holds items
    separated by ";": `1=RV` names a mask value, `benign` is a label of the whole case. Without
    `volume_id` it is the path without suffix; without `patient_id` every volume is a patient of its
    own. `channel` is a number from 0, of a 4-D volume.

    Args:
        root: folder that relative paths start from; default is the folder of the table.
        where: column -> value; other rows are left out. Any column may be used, such as `split`.
        keep: other columns whose text becomes `Case.attributes`, which the index stores in clear
            and slices can be filtered by. None is kept unasked: a table may hold identifiers.
        label_names: mask value -> name, where the table does not name it.
        channel: of 4-D volumes, where the table does not say it.

    Raises:
        UsageError: no such table, `where` or `keep` name a column that it does not have, or
            `keep` one that is used already.
        InputError: not a table with these columns, no rows, missing files, repeated volume_id; the
            message names row and column.
    """
    table = Path(table)
    base = table.parent if root is None else Path(root)
    for value, name in (label_names or {}).items():
        check_label_name(value, name, "label_names")
    rows = _read(table)
    _check_kept(keep, list(rows[0][1]), table)
    rows = _select(rows, where or {}, table)
    errors: list[str] = []
    cases: list[Case] = []
    seen: dict[str, int] = {}
    for number, row in rows:
        try:
            case = _case(row, base, keep, label_names or {}, channel, allow_one_slice)
            first = seen.setdefault(case.volume_id, number)
            if first != number:
                raise InputError(
                    f"column volume_id: {case.volume_id!r} is in row {first} already; give every "
                    "image or volume its own"
                )
        except (InputError, UsageError) as error:
            errors.append(f"row {number}, {error}")
        except OSError as error:  # such as a name too long for any file
            errors.append(f"row {number}, column path or mask: {error.strerror or error}")
        else:
            cases.append(case)
    if errors:
        more = [f"and {len(errors) - _SHOWN} more"] if len(errors) > _SHOWN else []
        lines = "\n  ".join(errors[:_SHOWN] + more)
        raise InputError(f"{table} has {len(errors)} wrong rows:\n  {lines}")
    return cases


def table_rows(table: Path, where: Mapping[str, str]) -> list[dict[str, str]]:
    """The rows of a CSV table whose columns have these values, as column -> trimmed text.

    Raises:
        UsageError: no such table, or no such column.
        InputError: not a table with a column `path`, or no such row.
    """
    return [row for _, row in _select(_read(table), where, table)]


def _read(table: Path) -> list[tuple[int, dict[str, str]]]:
    """Return (line number, column -> trimmed text) of every row that is not blank."""
    if not table.is_file():
        raise UsageError(f"table {table} does not exist; expected a .csv file")
    rows = []
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = [name.strip() for name in reader.fieldnames or []]
            _check_header(header, table)
            reader.fieldnames = header
            for cells in reader:
                if None in cells or None in cells.values():
                    count = (
                        len(header)
                        + len(cells.get(None) or [])
                        - sum(value is None for value in cells.values())
                    )
                    raise InputError(
                        f"{table}, row {reader.line_num}: {count} cells, the header has "
                        f"{len(header)}; put cells that contain a comma in double quotes"
                    )
                row = {name: text.strip() for name, text in cells.items()}
                if any(row.values()):
                    rows.append((reader.line_num, row))
    except UnicodeDecodeError as error:
        raise InputError(f"{table} is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{table} is not a CSV table: {error}") from None
    except OSError as error:
        raise InputError(f"{table} cannot be read: {error.strerror or error}") from None
    if not rows:
        raise InputError(f"{table} has no rows below its header")
    return rows


def _check_header(header: list[str], table: Path) -> None:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise InputError(f"{table} has the column {repeated[0]!r} twice")
    if "path" in header:
        return
    hint = ""
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        hint = "; separate the columns by commas"
    raise InputError(
        f"{table} has no column 'path'; expected the columns {', '.join(COLUMNS)} (only path is "
        f"needed), found {', '.join(header) or 'nothing'}{hint}"
    )


def _select(
    rows: list[tuple[int, dict[str, str]]], where: Mapping[str, str], table: Path
) -> list[tuple[int, dict[str, str]]]:
    for column in where:
        _check_column(column, list(rows[0][1]), table, "to select by")
    chosen = [row for row in rows if all(row[1][c] == value for c, value in where.items())]
    if not chosen:
        values = {c: sorted({row[1][c] for row in rows})[:_VALUES_SHOWN] for c in where}
        raise InputError(f"no row of {table} has {dict(where)}; these values occur: {values}")
    return chosen


def _check_kept(keep: Sequence[str], columns: list[str], table: Path) -> None:
    if isinstance(keep, str):
        raise UsageError(f"keep is the text {keep!r}; expected a list of columns")
    problem = attribute_problem(keep)
    if problem is not None:
        raise UsageError(f"these columns of {table} cannot be kept: {problem}")
    for column in keep:
        _check_column(column, columns, table, "to keep")


def _check_column(column: str, columns: list[str], table: Path, purpose: str) -> None:
    if column not in columns:
        close = difflib.get_close_matches(column, columns, n=1)
        raise UsageError(
            f"{table} has no column {column!r} {purpose}"
            f"{f'; did you mean {close[0]!r}?' if close else ''}; it has {', '.join(columns)}"
        )


def _case(
    row: Mapping[str, str],
    base: Path,
    keep: Sequence[str],
    label_names: Mapping[int, str],
    channel: int,
    allow_one_slice: bool,
) -> Case:
    if not row["path"]:
        raise InputError("column path: is empty; expected an image, volume or DICOM folder")
    path = base / row["path"]
    if not path.exists():
        raise InputError(f"column path: {path} does not exist")
    mask = base / row["mask"] if row.get("mask") else None
    if mask is not None and not mask.is_file():
        raise InputError(f"column mask: {mask} is not a file")
    labels, names = _parse_labels(row.get("labels", ""))
    return file_case(
        path,
        mask,
        volume_id=row.get("volume_id") or _default_id(row["path"]),
        patient_id=row.get("patient_id"),
        modality=row.get("modality"),
        region=row.get("region"),
        labels=labels,
        label_names={**label_names, **names},
        attributes={name: row[name] for name in keep},
        channel=row_channel(row, channel),
        allow_one_slice=allow_one_slice,
    )


def row_channel(row: Mapping[str, str], default: int = 0) -> int:
    """Return the channel of a 4-D volume that a row of a table names.

    Raises:
        InputError: it is no number from 0.
    """
    text = row.get("channel", "")
    if text and not (text.isascii() and text.isdigit()):
        raise InputError(
            f"column channel: {text!r} is not a number from 0, the place of a channel in a 4-D "
            "volume; leave the cell empty for a 3-D volume"
        )
    return int(text) if text else default


def _default_id(text: str) -> str:
    # An absolute path, or one upwards, would carry folder names of this machine into the index.
    path = Path(text)
    inside = not path.is_absolute() and ".." not in path.parts
    shown = path.as_posix() if inside else path.name
    return split_suffix(shown, (*IMAGE_SUFFIXES, *DICOM_SUFFIXES, ".zip"))[0]


def _parse_labels(text: str) -> tuple[tuple[str, ...], dict[int, str]]:
    """Return the labels of the case and the names of its mask values.

    >>> _parse_labels("1=RV; benign;2=LV")
    (('benign',), {1: 'RV', 2: 'LV'})
    """
    labels: list[str] = []
    names: dict[int, str] = {}
    for item in (part.strip() for part in text.split(";")):
        value, equals, name = (part.strip() for part in item.partition("="))
        if not item:
            continue
        if not equals:
            labels.append(item)
            continue
        if not (value.isascii() and value.isdigit() and int(value) > 0 and name):
            raise InputError(
                f"column labels: {item!r} is neither VALUE=NAME with a value from 1 (such as 1=RV) "
                "nor a label of the case (such as benign)"
            )
        if names.get(int(value), name) != name:
            raise InputError(f"column labels: value {value} has two names")
        names[int(value)] = name
    return tuple(dict.fromkeys(labels)), names
