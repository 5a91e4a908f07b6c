"""How far the borders of two masks are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medretrieval.errors import InputError


def hd95(predicted: NDArray[Any], truth: NDArray[Any], spacing: Sequence[float]) -> float:
    """95th percentile of the distances between the borders of two masks (Hausdorff, both ways).

    The distances of every border voxel of either mask to the nearest border voxel of the other are
    taken together, and their 95th percentile is returned, as MedPy's `hd95` does. A border voxel is
    one of the mask with a face neighbour outside of it, or outside of the array.

    Args:
        predicted: any number of dimensions; everything but 0 counts as inside.
        truth: the same shape.
        spacing: length of a voxel along each dimension, in the unit of the result.

    Returns:
        0 or more. Both masks empty: 0.0. Exactly one empty: the diagonal of the array, farther than
        any two voxels are apart.

    Raises:
        InputError: the shapes differ, or not as many spacings as dimensions.
    """
    if predicted.shape != truth.shape or len(spacing) != truth.ndim:
        raise InputError(
            f"masks of shapes {predicted.shape} and {truth.shape} with {len(spacing)} spacings; "
            "expected the same grid and one spacing for each of its dimensions"
        )
    a, b = predicted != 0, truth != 0
    if not (a.any() or b.any()):
        return 0.0
    if not (a.any() and b.any()):
        return float(np.linalg.norm(np.multiply(a.shape, spacing)))
    part = _around(a | b)
    # The frame of the array is outside; a cut further in does not touch either mask.
    border_a, border_b = _border(a[part]), _border(b[part])
    to_b = ndimage.distance_transform_edt(~border_b, sampling=spacing)[border_a]
    to_a = ndimage.distance_transform_edt(~border_a, sampling=spacing)[border_b]
    return float(np.percentile(np.concatenate([to_a, to_b]), 95))


def _around(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest part of the array that holds the mask."""
    (part,) = ndimage.find_objects(mask.astype(np.uint8))
    return tuple(part)


def _border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(mask & ~ndimage.binary_erosion(mask))
