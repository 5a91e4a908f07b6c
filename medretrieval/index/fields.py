"""Typed access to the fields of a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from medretrieval.errors import IndexFormatError

T = TypeVar("T")
_MAX_INT = 1 << 53


class Fields:
    """Typed access to one JSON object; errors name the file and the field."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self.data = data
        self.where = where

    def wrong(self, key: str, problem: str) -> IndexFormatError:
        """Return the error that says what is wrong with a field."""
        return IndexFormatError(
            f"{self.where}: {key!r} {problem}; the manifest is damaged or was edited, "
            "fetch or build the index again"
        )

    def get(self, key: str, kind: type[T]) -> T:
        """Return a field of this type."""
        if key not in self.data:
            raise self.wrong(key, "is missing")
        value = self.data[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.wrong(key, f"is a {type(value).__name__}, expected {kind.__name__}")
        if isinstance(value, int) and abs(value) > _MAX_INT:
            raise self.wrong(key, "is a number that is larger than any an index has")
        return value

    def positive(self, key: str) -> int:
        """Return a whole number of at least 1."""
        value = self.get(key, int)
        if value < 1:
            raise self.wrong(key, f"is {value}, expected at least 1")
        return value

    def share(self, key: str) -> float:
        """Return a number from 0 to 1."""
        value = self.data.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise self.wrong(key, f"is {value!r}, expected a number from 0 to 1")
        return float(value)

    def sub(self, key: str) -> Fields:
        """Return an object inside this one."""
        return Fields(self.get(key, dict), f"{self.where}: {key}")

    def counts(self) -> dict[str, int]:
        """Return the whole object, of which every field is a number that is not negative."""
        for key in self.data:
            if self.get(key, int) < 0:
                raise self.wrong(key, "is negative")
        return dict(self.data)
