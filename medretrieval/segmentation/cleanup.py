"""What a label map is better without: pieces of a structure apart from the rest of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medretrieval.types import LabelVolume

_TOUCHING = np.ones((3, 3, 3), np.bool_)


def largest_components(labels: LabelVolume) -> LabelVolume:
    """Keep of every label its largest connected component; the rest becomes background.

    Voxels are connected that share a face, an edge or a corner, as thick slices shift a thin
    structure by more than its width. Sizes are counted in voxels. Of components of one size that
    stays whose first voxel comes first, the last index running fastest. A structure that comes
    in pairs under one label, such as both lungs, loses one.

    Args:
        labels: label map of any unsigned type.

    Returns:
        A label map of the same grid, type and names; the input is not changed.
    """
    kept = np.zeros_like(labels.voxels)
    # A value's box is found in one pass over the volume, and its components inside the box.
    for value, box in enumerate(ndimage.find_objects(labels.voxels), start=1):
        if box is not None:
            kept[box][_largest(labels.voxels[box] == value)] = value
    return replace(labels, voxels=kept)


def _largest(mask: NDArray[np.bool_]) -> NDArray[Any]:
    """(X, Y, Z) with at least one voxel -> its largest component."""
    numbered, _ = ndimage.label(mask, _TOUCHING)
    sizes = np.bincount(numbered.ravel())
    sizes[0] = 0
    # Components are numbered by their first voxel, and argmax takes the first of equals.
    largest: NDArray[Any] = numbered == sizes.argmax()
    return largest
