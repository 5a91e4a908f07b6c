"""Overlap of label maps. Empty cases are part of each definition."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import InputError


def dice(predicted: NDArray[Any], truth: NDArray[Any]) -> float:
    """Dice coefficient 2|A n B| / (|A| + |B|) of two masks (RAFS, table I).

    Args:
        predicted: any shape; everything but 0 counts as inside.
        truth: the same shape.

    Returns:
        0..1. Both masks empty: 1.0, because the absence was found. Exactly one empty: 0.0.

    Raises:
        InputError: the shapes differ.

    >>> dice(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0]))
    0.6666666666666666
    """
    _same_shape(predicted, truth)
    a, b = predicted != 0, truth != 0
    return _dice(int(a.sum()), int(b.sum()), int((a & b).sum()))


def dice_per_label(
    predicted: NDArray[Any], truth: NDArray[Any], *, labels: Iterable[int] | None = None
) -> dict[int, float]:
    """Dice coefficient of each label of two label maps.

    Args:
        predicted: any shape, integers >= 0, 0 is background.
        truth: the same shape.
        labels: values to score, default every value but 0 that occurs in either map.

    Returns:
        label value -> 0..1, in the order of `labels` (ascending by default). A label in neither map
        scores 1.0, in only one of them 0.0. Without labels the result is empty.

    Raises:
        InputError: the shapes differ, or a map does not hold integers >= 0.
    """
    _same_shape(predicted, truth)
    sizes_a, sizes_b = _sizes(predicted, "predicted"), _sizes(truth, "true")
    common = _sizes(truth[predicted == truth], "true")
    if labels is None:
        labels = sorted((sizes_a.keys() | sizes_b.keys()) - {0})
    return {
        int(label): _dice(sizes_a.get(label, 0), sizes_b.get(label, 0), common.get(label, 0))
        for label in labels
    }


def _dice(a: int, b: int, both: int) -> float:
    return 1.0 if a + b == 0 else 2 * both / (a + b)


def _sizes(mask: NDArray[Any], which: str) -> dict[int, int]:
    """Number of voxels of each value that occurs."""
    if mask.dtype.kind not in "biu" or (mask.dtype.kind == "i" and mask.size and mask.min() < 0):
        raise InputError(
            f"the {which} label map has dtype {mask.dtype}; expected integers >= 0, one per label"
        )
    values, counts = np.unique(mask, return_counts=True)
    return {int(v): int(n) for v, n in zip(values, counts, strict=True)}


def _same_shape(predicted: NDArray[Any], truth: NDArray[Any]) -> None:
    if predicted.shape != truth.shape:
        raise InputError(
            f"the predicted mask has shape {predicted.shape}, the true one {truth.shape}; "
            "expected the same grid: resample one of them with nearest neighbour"
        )
