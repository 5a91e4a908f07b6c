"""Columns of names as codes: they say the same as lists of text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medretrieval.errors import UsageError
from medretrieval.index import columns, open_store
from medretrieval.index.columns import Coded, LabelColumn, RowMap, attribute_problem

NAMES = st.sampled_from(["", "CT", "MR", "chest", "größe", "a" * 500])
TEXTS = st.lists(NAMES)
LABELS = st.lists(st.lists(NAMES).map(tuple))


@given(values=TEXTS, wanted=TEXTS)
def test_coded_is_its_values(values: list[str], wanted: list[str]) -> None:
    column = Coded.of(values)
    assert len(column) == len(values)
    assert [column[row] for row in range(len(values))] == values
    assert column.text().tolist() == values
    assert column.names == list(dict.fromkeys(values))
    assert column.rows_where(wanted).tolist() == [value in wanted for value in values]


def test_text_is_made_once() -> None:
    column = Coded.of(["a", "b"])
    assert column.text() is column.text()
    assert column[-1] == "b"


def test_one_name_is_not_taken_for_its_letters() -> None:
    column = Coded.of(["C", "CT"])
    assert column.rows_where("CT").tolist() == [False, True]
    labels = LabelColumn.of([("C",), ("CT",)])
    assert labels.showing("CT").tolist() == [False, True]


@given(parts=st.lists(TEXTS))
def test_joined_columns_are_their_values_in_order(parts: list[list[str]]) -> None:
    joined = Coded.join([Coded.of(part) for part in parts])
    values = [value for part in parts for value in part]
    assert joined.text().tolist() == values
    assert joined.names == list(dict.fromkeys(values))


@given(rows=LABELS, wanted=TEXTS)
def test_labels_are_their_rows(rows: list[tuple[str, ...]], wanted: list[str]) -> None:
    column = LabelColumn.of(rows)
    assert list(column) == [column[row] for row in range(len(column))] == rows
    assert column[1:] == rows[1:]
    assert column[::-2] == rows[::-2]
    assert column.showing(wanted).tolist() == [bool(set(row) & set(wanted)) for row in rows]
    if rows:
        assert column[-1] == rows[-1]
    for row in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError):
            column[row]


@given(parts=st.lists(LABELS))
def test_joined_labels_are_their_rows_in_order(parts: list[list[tuple[str, ...]]]) -> None:
    joined = LabelColumn.join([LabelColumn.of(part) for part in parts])
    assert list(joined) == [row for part in parts for row in part]


def test_labels_take_numpy_integers() -> None:
    column = LabelColumn.of([("a",), ("b", "c")])
    assert column[np.int64(1)] == ("b", "c")  # type: ignore[call-overload]


@pytest.fixture
def rows() -> RowMap:
    """Two volumes whose rows lie among each other."""
    return RowMap(["first", "second"], np.array([1, 0, 1, 0, 1]), np.array([7, 3, 5, 4, 6]))


def test_rows_are_found_by_volume_and_slice(rows: RowMap) -> None:
    assert rows.rows_of("second").tolist() == [0, 2, 4]
    assert rows.row("second", 5) == 2
    assert rows.row("first", 3) == 1
    with pytest.raises(UsageError, match=r"no slice 9 of 'second'.* 3 slices.*between 5 and 7"):
        rows.row("second", 9)


@pytest.mark.parametrize("searched", [5000, 1])
def test_unknown_volume_names_what_is_near(
    rows: RowMap, monkeypatch: pytest.MonkeyPatch, searched: int
) -> None:
    monkeypatch.setattr(columns, "_SEARCHED_NAMES", searched)
    with pytest.raises(UsageError, match=r"no volume 'Secon'; it has 2, such as second"):
        rows.row("Secon", 0)
    with pytest.raises(UsageError, match=r"such as first, second"):
        rows.rows_of("xyz")


def test_rows_and_patients_are_found(flat_index: Path) -> None:
    with open_store(flat_index) as store:
        for row in range(len(store)):
            volume_id = store.volume_ids[store.volume[row]]
            assert store.row(volume_id, int(store.slice_index[row])) == row
        with pytest.raises(UsageError, match="no slice 99 of 'volume-001'"):
            store.row("volume-001", 99)
        with pytest.raises(UsageError, match="no volume 'volume-999'"):
            store.row("volume-999", 0)
        assert store.pseudonyms("Mueller^Anna-0") == (store.patient[0],)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["patient_id"], "every index or table has"),
        (["Mask"], "every index or table has"),
        (["path"], "every index or table has"),
        ([""], "1 to 100 printable"),
        (["x" * 101], "1 to 100 printable"),
        (["a\nb"], "1 to 100 printable"),
        (["image.bytes"], "without a dot"),
        (["a", "b", "a"], "'a' is named twice"),
        ([f"column {n}" for n in range(33)], "at most 32"),
    ],
)
def test_names_that_no_extra_column_can_have(names: list[str], problem: str) -> None:
    assert problem in (attribute_problem(names) or "")


def test_names_that_extra_columns_can_have() -> None:
    names = ["scanner", "Größe (mm)", *(f"column {n}" for n in range(30))]
    assert attribute_problem(names) is None
