"""Columns of an open index: names as codes, so that filtering a million rows takes milliseconds.

A column of names holds every name once and a number for each row. Nothing here keeps a Python
object for each row.
"""

from __future__ import annotations

import difflib
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import UsageError

# The columns of every index; any other is an extra one, an attribute.
FIXED = (
    *("row_id", "volume_id", "patient_id", "modality", "region", "slice_index", "position_mm"),
    *("spacing", "labels", "image", "mask"),
)
# An attribute of one of these names would mislead.
_TAKEN = {*FIXED, "path"}
MAX_ATTRIBUTES = 32
MAX_ATTRIBUTE_NAME = 100
MAX_CASE_LABELS = 1000  # of a case as a whole
_SEARCHED_NAMES = 5000


@dataclass(frozen=True, eq=False)
class Coded:
    """A column of text with few different values.

    Attributes:
        codes: (n,) int32, the place in `names` of each row's value.
        names: the values that occur, each once.
    """

    codes: NDArray[np.int32]
    names: list[str]

    @classmethod
    def of(cls, values: Iterable[str]) -> Coded:
        """Return the column of these values, names in order of first appearance."""
        places: dict[str, int] = {}
        codes = [places.setdefault(value, len(places)) for value in values]
        return cls(np.array(codes, dtype=np.int32), list(places))

    @classmethod
    def join(cls, columns: Sequence[Coded]) -> Coded:
        """Return the rows of all columns, one after the other."""
        names, codes = _unite([column.names for column in columns])
        parts = [new[column.codes] for new, column in zip(codes, columns, strict=True)]
        return cls(np.concatenate(parts) if parts else np.empty(0, np.int32), names)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> str:
        return self.names[int(self.codes[row])]

    def text(self) -> NDArray[np.str_]:
        """Return the values as (n,) text; as wide as the longest, made once and kept."""
        return self._text

    @cached_property
    def _text(self) -> NDArray[np.str_]:
        return np.array(self.names, dtype=np.str_)[self.codes]

    def rows_where(self, values: Iterable[str]) -> NDArray[np.bool_]:
        """(n,) which rows have one of these values; a value that no row has adds none."""
        return _flags(self.names, values)[self.codes]


@dataclass(frozen=True, eq=False)
class LabelColumn(Sequence[tuple[str, ...]]):
    """The labels of each row: any number of names.

    Attributes:
        offsets: (n + 1,) int64; the labels of row i are `codes[offsets[i]:offsets[i + 1]]`.
        codes: int32, places in `names`.
        names: the labels that occur, each once.
    """

    offsets: NDArray[np.int64]
    codes: NDArray[np.int32]
    names: list[str]

    @classmethod
    def of(cls, rows: Iterable[Sequence[str]]) -> LabelColumn:
        """Return the column of these labels, names in order of first appearance."""
        lists = list(rows)
        flat = Coded.of(name for labels in lists for name in labels)
        offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        return cls(offsets, flat.codes, flat.names)

    @classmethod
    def join(cls, columns: Sequence[LabelColumn]) -> LabelColumn:
        """Return the rows of all columns, one after the other."""
        flat = Coded.join([Coded(column.codes, column.names) for column in columns])
        counts = [np.zeros(1, np.int64), *(np.diff(column.offsets) for column in columns)]
        return cls(np.cumsum(np.concatenate(counts)), flat.codes, flat.names)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, row: int) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, row: slice) -> list[tuple[str, ...]]: ...
    def __getitem__(self, row: int | slice) -> tuple[str, ...] | list[tuple[str, ...]]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        number = operator.index(row)
        number += len(self) if number < 0 else 0
        if not 0 <= number < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        first, last = self.offsets[number], self.offsets[number + 1]
        return tuple(self.names[code] for code in self.codes[first:last].tolist())

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return (self[number] for number in range(len(self)))

    def showing(self, names: Iterable[str]) -> NDArray[np.bool_]:
        """(n,) which rows have at least one of these labels; an unknown label adds none."""
        mask = np.zeros(len(self), dtype=np.bool_)
        mask[self._rows[_flags(self.names, names)[self.codes]]] = True
        return mask

    @cached_property
    def _rows(self) -> NDArray[np.int32]:
        """The row of each code."""
        return np.arange(len(self), dtype=np.int32).repeat(np.diff(self.offsets))


class RowMap:
    """Finds rows by volume and slice.

    Args:
        volume_ids: names of the volumes.
        volume: (n,) integers, the place in `volume_ids` of each row's volume.
        slice_index: (n,) integers.
    """

    def __init__(
        self, volume_ids: Sequence[str], volume: NDArray[np.integer], slice_index: NDArray[np.int64]
    ) -> None:
        self._codes = {name: code for code, name in enumerate(volume_ids)}
        self._slice_index = slice_index
        self._order = np.argsort(volume, kind="stable")
        self._starts = np.searchsorted(volume[self._order], np.arange(len(volume_ids) + 1))

    def rows_of(self, volume_id: str) -> NDArray[np.int64]:
        """Return the rows of a volume, in their order in the index.

        Raises:
            UsageError: no such volume.
        """
        code = self._codes.get(volume_id)
        if code is None:
            raise self._unknown(volume_id)
        return np.asarray(self._order[self._starts[code] : self._starts[code + 1]])

    def row(self, volume_id: str, slice_index: int) -> int:
        """Return the row of a slice.

        Raises:
            UsageError: no such volume, or no such slice of it.
        """
        rows = self.rows_of(volume_id)
        slices = self._slice_index[rows]
        found = rows[slices == slice_index]
        if not len(found):
            raise UsageError(
                f"the index has no slice {slice_index} of {volume_id!r}; it has {len(rows)} "
                f"slices of it, between {slices.min()} and {slices.max()}"
            )
        return int(found[0])

    def _unknown(self, volume_id: str) -> UsageError:
        if len(self._codes) <= _SEARCHED_NAMES:
            close = difflib.get_close_matches(volume_id, self._codes, n=3, cutoff=0.5)
        else:  # comparing with a million names takes minutes
            near = (name for name in self._codes if volume_id.casefold() in name.casefold())
            close = list(itertools.islice(near, 3))
        examples = close or list(itertools.islice(self._codes, 3))
        return UsageError(
            f"the index has no volume {volume_id!r}; it has {len(self._codes)}, such as "
            f"{', '.join(examples)}"
        )


def attribute_problem(names: Sequence[str]) -> str | None:
    """Say why an index cannot have extra columns of these names; None if it can.

    >>> attribute_problem(["scanner", "kVp"]), attribute_problem(["mask"])
    (None, "'mask' is a column that every index or table has")
    """
    if len(names) > MAX_ATTRIBUTES:
        return f"there are {len(names)} of them, at most {MAX_ATTRIBUTES} can be kept"
    for name in names:
        if name.casefold() in _TAKEN:
            return f"{name!r} is a column that every index or table has"
        if not 1 <= len(name) <= MAX_ATTRIBUTE_NAME or not name.isprintable() or "." in name:
            return (
                f"{name!r} cannot be the name of a column; expected 1 to {MAX_ATTRIBUTE_NAME} "
                "printable characters without a dot"
            )
    repeated = [name for name in names if names.count(name) > 1]
    return f"{repeated[0]!r} is named twice" if repeated else None


def _flags(names: Sequence[str], wanted: Iterable[str]) -> NDArray[np.bool_]:
    """(len(names),) which of the names are wanted."""
    chosen = {wanted} if isinstance(wanted, str) else set(wanted)
    return np.fromiter((name in chosen for name in names), dtype=np.bool_, count=len(names))


def _unite(parts: Sequence[list[str]]) -> tuple[list[str], list[NDArray[np.int32]]]:
    """Return all names, each once, and for each part the place of its names among them."""
    places: dict[str, int] = {}
    codes = [
        np.array([places.setdefault(name, len(places)) for name in names], dtype=np.int32)
        for names in parts
    ]
    return list(places), codes
