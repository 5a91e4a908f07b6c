"""Labels by name: one vocabulary for supports of many sources, and label maps out of logits."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import InputError, UsageError
from medretrieval.types import Support

# Logit where a label cannot be; SAM 2 uses the same number for an object that is not there.
ABSENT = -1024.0


@dataclass(frozen=True, eq=False, kw_only=True)
class SliceSegmentation:
    """The label map of one picture.

    Attributes:
        mask: (H, W) unsigned integers at the picture's own size, 0 is background.
        logits: (L, H, W) float32, one map a label in ascending order of its value; positive where
            the label's probability is above `SegmentationOptions.threshold`. -1024 where the label
            was ruled out beforehand.
        names: value -> name of the L labels that were asked for, found or not.
    """

    mask: NDArray[Any]
    logits: NDArray[np.float32]
    names: Mapping[int, str]


def vocabulary(mappings: Iterable[Mapping[int, str]]) -> dict[int, str]:
    """Give every name of several value -> name mappings one value of its own.

    A name keeps a value that it has somewhere, the lowest that is free; names are served in order
    of their lowest value, then alphabetically. A name whose values are all taken gets the lowest
    free number. The result does not depend on the order of the mappings. Value 0 is background
    and is ignored.

    >>> vocabulary([{1: "RV", 2: "LV"}, {1: "LV", 3: "Myo"}])
    {1: 'LV', 2: 'RV', 3: 'Myo'}
    """
    values: dict[str, set[int]] = {}
    for names in mappings:
        for value, name in names.items():
            if value != 0:
                values.setdefault(name, set()).add(int(value))
    taken: dict[int, str] = {}
    homeless: list[str] = []
    for name in sorted(values, key=lambda n: (min(values[n]), n)):
        free = sorted(values[name] - taken.keys())
        if free:
            taken[free[0]] = name
        else:
            homeless.append(name)
    for name in homeless:
        free_value = next(v for v in range(1, len(taken) + 2) if v not in taken)
        taken[free_value] = name
    return dict(sorted(taken.items()))


def chosen(names: Mapping[int, str], labels: Sequence[str] | None) -> dict[int, str]:
    """Keep the labels asked for, all if None.

    Raises:
        UsageError: a label is unknown (the message has the known ones), or none is asked for.
    """
    if labels is None:
        return dict(names)
    known = sorted(names.values())
    for label in labels:
        if label not in known:
            close = difflib.get_close_matches(label, known, n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(close)}? " if close else ""
            raise UsageError(
                f"no support has a label {label!r}; {hint}the supports have: {', '.join(known)}"
            )
    if not labels:
        raise UsageError(f"no label is asked for; the supports have: {', '.join(known)}")
    return {value: name for value, name in names.items() if name in set(labels)}


def check_picture(image: NDArray[Any], what: str) -> None:
    """Raise InputError unless `image` is (H, W) or (H, W, 3) uint8 and not empty."""
    shaped = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if not shaped or image.dtype != np.uint8 or image.size == 0:
        raise InputError(
            f"{what} has shape {image.shape} and type {image.dtype}; expected a picture of shape "
            "(rows, columns) or (rows, columns, 3) and type uint8"
        )


def check_support(support: Support) -> None:
    """Raise InputError unless picture, mask and names of a support fit together."""
    check_picture(support.image, f"the picture of support {support.key}")
    mask = support.mask
    if mask.shape != support.image.shape[:2]:
        raise InputError(
            f"support {support.key}: the mask has shape {mask.shape}, its picture "
            f"{support.image.shape[:2]}; expected the same rows and columns"
        )
    if not (np.issubdtype(mask.dtype, np.integer) or mask.dtype == np.bool_):
        raise InputError(
            f"support {support.key}: the mask has type {mask.dtype}; expected whole numbers"
        )
    nameless = sorted(_values(mask) - set(support.names) - {0})
    if nameless:
        raise InputError(
            f"support {support.key}: the mask has values without a name: {nameless}; name them "
            "or set them to 0"
        )


def _values(mask: NDArray[Any]) -> set[int]:
    # Counting is ten times as fast as the sorting of np.unique.
    if mask.dtype in (np.uint8, np.uint16):
        return set(np.flatnonzero(np.bincount(mask.ravel())).tolist())
    return set(np.unique(mask).tolist())


def name_mask(support: Support, name: str) -> NDArray[np.bool_]:
    """(H, W) where `support` shows the label called `name`, under whatever values."""
    values = [value for value, other in support.names.items() if other == name and value != 0]
    result = np.zeros(support.mask.shape, np.bool_)
    for value in values:
        result |= support.mask == value
    return result


def merge(logits: NDArray[np.float32], values: Sequence[int]) -> NDArray[Any]:
    """Make one label map: the label of the highest logit, background where none is positive.

    Args:
        logits: (L, H, W) float32.
        values: the L labels' values, ascending and positive. Of equal logits the first wins.

    Returns:
        (H, W) of the smallest unsigned type that holds the values.
    """
    dtype = np.min_scalar_type(max(values, default=0))
    if not len(values):
        return np.zeros(logits.shape[1:], dtype)
    winners: NDArray[Any] = np.asarray(values, dtype)[logits.argmax(axis=0)]
    winners[~(logits.max(axis=0) > 0)] = 0
    return winners
