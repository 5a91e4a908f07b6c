"""Corrections of a mask by points and boxes: where they are, and what they change."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.imaging import extract, insert
from medretrieval.segmentation.prompts import Edit
from medretrieval.types import LabelVolume

# A click of an unsteady hand is no box: shares of the picture's width and height.
DRAGGED = 0.01

Share = tuple[float, float]  # of a picture's width from its left edge, of its height from its top


@dataclass(frozen=True, eq=False, kw_only=True)
class Corrected:
    """What was changed of one slice.

    Attributes:
        before: (H, W) label map without the corrections.
        edits: the corrections in their order.
    """

    before: NDArray[Any]
    edits: tuple[Edit, ...]


@dataclass(frozen=True, kw_only=True)
class Corner:
    """The first corner of a box, until the second is clicked."""

    slice_index: int
    label: str
    at: tuple[float, float]


def pixel(share: Sequence[float], shape: Sequence[int]) -> tuple[float, float]:
    """The place (x, y) in pixels that a share of a picture's width and height stands for.

    The centre of the first pixel is (0, 0), so the picture reaches from -0.5 to W - 0.5. How large
    the picture is shown, and whether its pixels are shown as squares, makes no difference.

    Args:
        share: what is beyond the picture's edge counts as on it.
        shape: (H, W) of the picture.

    >>> pixel((0.5, 0.25), (4, 10))
    (4.5, 0.5)
    """
    x, y = (min(max(float(part), 0.0), 1.0) for part in share)
    return round(x * shape[1] - 0.5, 2), round(y * shape[0] - 0.5, 2)


def share(at: Sequence[float], shape: Sequence[int]) -> Share:
    """The share of width and height at which a place in pixels is: the inverse of `pixel`."""
    return (at[0] + 0.5) / shape[1], (at[1] + 0.5) / shape[0]


def box(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the box between two corners."""
    (left, right), (top, bottom) = (sorted(pair) for pair in zip(one, other, strict=True))
    return left, top, right, bottom


def dragged(start: Sequence[float], end: Sequence[float]) -> bool:
    """Whether the pointer was moved between two places, given as shares of the picture."""
    return all(abs(a - b) > DRAGGED for a, b in zip(start, end, strict=True))


def changed(before: NDArray[Any], made: NDArray[Any], values: Collection[int]) -> NDArray[Any]:
    """A label map with single labels as another one has them; other labels stay as they are.

    Where such a label was and is no more, there is what the other label map shows instead.

    Args:
        before, made: (H, W) label maps of the same values.
        values: those of the corrected labels.

    Returns:
        (H, W) label map.

    >>> changed(np.array([[1, 1, 2, 2]]), np.array([[2, 1, 1, 0]]), [1])
    array([[2, 1, 1, 2]])
    """
    of_these = list(values)
    return np.where(np.isin(before, of_these) | np.isin(made, of_these), made, before)


def with_names(names: Mapping[int, str], more: Iterable[str]) -> dict[int, str]:
    """Names of label values, and those of `more` that are new at the lowest free values.

    >>> with_names({1: "RV", 3: "LV"}, ["LV", "Myo"])
    {1: 'RV', 2: 'Myo', 3: 'LV'}
    """
    known = dict(names)
    for name in more:
        if name not in known.values():
            known[next(v for v in range(1, len(known) + 2) if v not in known)] = name
    return dict(sorted(known.items()))


def named_as(
    mask: NDArray[Any], names: Mapping[int, str], wanted: Mapping[int, str]
) -> NDArray[Any]:
    """A label map with other values for the same names.

    Args:
        mask: (H, W) label map with the values of `names`.
        wanted: value -> name; holds every name of `names`.

    Returns:
        (H, W) of the smallest unsigned type that holds all values of `wanted`.
    """
    value_of = {name: value for value, name in wanted.items()}
    table = np.zeros(max(names, default=0) + 1, np.min_scalar_type(max(wanted, default=0)))
    for value, name in names.items():
        table[value] = value_of[name]
    return np.asarray(table[mask])


def with_slice(
    labels: LabelVolume, axis: int, index: int, mask: NDArray[Any], names: Mapping[int, str]
) -> LabelVolume:
    """A label volume with another slice.

    Args:
        mask: (H, W) label map of the slice as it is displayed.
        names: value -> name, of `mask` and of all labels of `labels`.
    """
    dtype = np.promote_types(labels.voxels.dtype, np.min_scalar_type(max(names, default=0)))
    voxels = np.array(labels.voxels, dtype)
    insert(voxels, labels.grid, axis, index, mask)
    return LabelVolume(voxels=voxels, grid=labels.grid, names=dict(names))


def slice_of(labels: LabelVolume, axis: int, index: int) -> NDArray[Any]:
    """(H, W) label map of one slice as it is displayed; a copy."""
    return np.array(extract(labels.voxels, labels.grid, axis, index))
