"""What options of the command line say: texts turned into values."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from medretrieval.errors import UsageError


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def span(text: str) -> tuple[int, int]:
    """The first and the last of a run, written as 20:45."""
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:LAST, such as 20:45")
    return int(first), int(last)


def part(text: str) -> tuple[int, int]:
    """One of several parts, written as 2/8."""
    number, slash, parts = text.partition("/")
    if not (slash and number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not PART/PARTS, such as 2/8")
    return int(number), int(parts)


def names(text: str) -> list[str]:
    """Names, written as A,B."""
    return [name.strip() for name in text.split(",") if name.strip()]


def label_names(text: str, option: str = "--label-names") -> dict[int, str] | None:
    """The names of mask values, written as 1=RV,2=Myo."""
    named: dict[int, str] = {}
    for item in names(text):
        value, equals, name = item.partition("=")
        if not (equals and value.strip().isdecimal() and name.strip()):
            raise UsageError(
                f"{option}: {item!r} is not VALUE=NAME; write for example 1=RV,2=Myo,3=LV"
            )
        named[int(value)] = name.strip()
    return named or None


def index_parameters(items: Sequence[str]) -> dict[str, int] | None:
    """The settings of a kind of search, each written as NAME=VALUE."""
    values: dict[str, int] = {}
    for item in items:
        name, _, value = item.partition("=")
        if not (name and value.isdecimal()):
            raise UsageError(
                f"--index-option: {item!r} is not NAME=VALUE with a whole number; write e.g. "
                "efSearch=512"
            )
        values[name] = int(value)
    return values or None


def where(items: Sequence[str]) -> dict[str, str] | None:
    """The values that columns of a table must have, each written as COLUMN=VALUE."""
    pairs = [item.partition("=") for item in items]
    for (column, equals, _), item in zip(pairs, items, strict=True):
        if not (column and equals):
            raise UsageError(f"--where: {item!r} is not COLUMN=VALUE; write e.g. split=database")
    columns = [column for column, _, _ in pairs]
    repeated = next((column for column in columns if columns.count(column) > 1), None)
    if repeated:
        raise UsageError(f"--where names the column {repeated!r} twice; expected one value of it")
    return {column: value for column, _, value in pairs} or None


def counts(text: str) -> list[int]:
    """Whole numbers, written as 2,4,8; 0 for none."""
    return [] if text.strip() == "0" else [positive(item) for item in names(text)]
