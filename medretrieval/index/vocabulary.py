"""One vocabulary of mask values for a whole index, whatever values its cases use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import InputError

MAX_VALUE = 65535
_TABLE = 1 << 20


class Vocabulary:
    """Gives every structure's name one mask value.

    A name keeps the value that its first case uses, if that is free, else it gets the lowest free
    one. Names known beforehand are placed first, in the order of the cases; so the values do not
    depend on which cases were read before a build was interrupted.
    """

    def __init__(self, known: Iterable[Mapping[int, str]] = ()) -> None:
        self._values: dict[str, int] = {}
        self._used: set[int] = set()
        self._lowest = 1
        for names in known:
            for value, name in sorted(names.items()):
                self.value(name, value)

    def value(self, name: str, preferred: int) -> int:
        """Return the value of `name`, given now if it is new.

        Raises:
            InputError: more names than a 16-bit mask has values.
        """
        if name not in self._values:
            value = preferred
            if value in self._used or not 1 <= value <= MAX_VALUE:
                while self._lowest in self._used:
                    self._lowest += 1
                value = self._lowest
            if value > MAX_VALUE:
                raise InputError(
                    f"more than {MAX_VALUE} different labels: are the masks label maps?"
                )
            self.restore({name: value})
        return self._values[name]

    def restore(self, values: Mapping[str, int]) -> None:
        """Take over values that were given earlier."""
        self._values.update(values)
        self._used.update(values.values())

    def names(self) -> dict[int, str]:
        """Return value -> name, by value."""
        # A copy: another thread may be adding names.
        pairs = self._values.copy().items()
        return {value: name for name, value in sorted(pairs, key=lambda pair: pair[1])}


@dataclass(frozen=True, eq=False)
class Translation:
    """Translates masks from one vocabulary into another.

    Attributes:
        values: mask value -> its value in the other vocabulary.
    """

    values: Mapping[int, int]

    @classmethod
    def into(cls, vocabulary: Vocabulary, names: Mapping[int, str]) -> Translation:
        """Return the translation of masks whose values are named by `names`."""
        return cls({value: vocabulary.value(name, value) for value, name in names.items()})

    @cached_property
    def _table(self) -> NDArray[np.uint16] | None:
        if all(old == new for old, new in self.values.items()):
            return None
        table = np.zeros(MAX_VALUE + 1, np.uint16)
        table[list(self.values)] = list(self.values.values())
        return table

    def __bool__(self) -> bool:
        """Whether any value changes."""
        return self._table is not None

    def __call__(self, mask: NDArray[Any]) -> NDArray[Any]:
        """Translate one label map.

        Args:
            mask: (H, W) uint8 or uint16; values without a name become 0.

        Returns:
            (H, W) uint8, or uint16 where a value above 255 occurs.
        """
        if self._table is None:
            return mask
        result: NDArray[Any] = self._table[mask]
        return result.astype(np.uint8) if result.max(initial=0) <= 255 else result


class Remapper:
    """Translates the masks of one case into the vocabulary.

    Args:
        names: mask value -> name, the first mapping that names a value counts; others become
            "label_<value>".
    """

    def __init__(self, vocabulary: Vocabulary, *names: Mapping[int, str]) -> None:
        self._vocabulary = vocabulary
        self._names = names
        self._given: dict[int, int] = {}

    def __call__(self, mask: NDArray[Any]) -> tuple[NDArray[Any], tuple[int, ...]]:
        """Translate one label map.

        Args:
            mask: (H, W) non-negative integers.

        Returns:
            (H, W) uint8, or uint16 where a value above 255 occurs, and the values in it but 0,
            ascending.

        Raises:
            InputError: negative values or not whole numbers.
        """
        if mask.dtype.kind not in "bui" or mask.ndim != 2 or (mask.size and mask.min() < 0):
            raise InputError(
                f"a mask of shape {mask.shape} and type {mask.dtype} is not a label map; expected "
                "whole numbers from 0"
            )
        if mask.size and int(mask.max()) < _TABLE:
            values = np.flatnonzero(np.bincount(mask.ravel()))
            table = np.zeros(int(values[-1]) + 1, np.uint16)
            table[values] = self._translate(values)
            result = table[mask]
        else:
            values, inverse = np.unique(mask, return_inverse=True)
            result = self._translate(values)[inverse].reshape(mask.shape)
        present = tuple(sorted({self._given[int(v)] for v in values if v}))
        if max(present, default=0) <= 255:
            result = result.astype(np.uint8)
        return result, present

    def _translate(self, values: NDArray[Any]) -> NDArray[np.uint16]:
        for value in map(int, values):
            if value and value not in self._given:
                named = (names[value] for names in self._names if value in names)
                name = next(named, f"label_{value}")
                self._given[value] = self._vocabulary.value(name, value)
        return np.array([self._given[int(v)] if v else 0 for v in values], np.uint16)
