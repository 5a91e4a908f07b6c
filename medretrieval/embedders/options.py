"""What `options` of a specification say, checked: they may come from a user's JSON file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from medretrieval.embedders.spec import EmbedderSpec
from medretrieval.errors import InputError


def chosen(spec: EmbedderSpec, option: str, choices: Sequence[str]) -> str:
    """The one of `choices` that an option names.

    Args:
        option: its name; inside of another one after a dot, as "volume.orientation".

    Raises:
        InputError: it is missing, or none of them.
    """
    found = _value(spec, option)
    if isinstance(found, str) and found in choices:
        return found
    raise wrong(spec, option, " or ".join(choices))


def whole(spec: EmbedderSpec, option: str, *, most: int) -> int:
    """A whole number from 1 to `most`.

    Raises:
        InputError: the option is missing, or anything else.
    """
    found = _value(spec, option)
    if isinstance(found, int) and not isinstance(found, bool) and 1 <= found <= most:
        return found
    raise wrong(spec, option, f"a whole number from 1 to {most}")


def wholes(spec: EmbedderSpec, option: str, *, count: int, most: int) -> list[int]:
    """`count` whole numbers from 1 to `most`.

    Raises:
        InputError: the option is missing, or anything else.
    """
    found = reals(spec, option, count=count)
    if all(isinstance(number, int) and 1 <= number <= most for number in found):
        return [int(number) for number in found]
    raise wrong(spec, option, f"{count} whole numbers from 1 to {most}")


def reals(spec: EmbedderSpec, option: str, *, count: int) -> list[float]:
    """`count` finite numbers.

    Raises:
        InputError: the option is missing, or anything else.
    """
    found = _value(spec, option)
    if isinstance(found, (list, tuple)) and len(found) == count and all(map(_number, found)):
        return list(found)
    raise wrong(spec, option, f"{count} numbers")


def section(spec: EmbedderSpec, option: str) -> Mapping[str, Any]:
    """The options inside of another one; none if it is missing.

    Raises:
        InputError: it is anything but an object of JSON.
    """
    found = _value(spec, option)
    if found is None:
        return {}
    if isinstance(found, Mapping):
        return found
    raise wrong(spec, option, "an object of JSON")


def wrong(spec: EmbedderSpec, option: str, expected: str) -> InputError:
    """The error (to raise) for an option that cannot be used."""
    found = _value(spec, option)
    said = "no option" if found is None else f"{found!r} as option"
    return InputError(
        f"{spec.name} has {said} {option!r}; expected {expected}: correct `options` in its "
        "description"
    )


def _value(spec: EmbedderSpec, option: str) -> Any:
    found: Any = spec.options
    for key in option.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
