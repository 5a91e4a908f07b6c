"""Label maps: reading them onto the grid of their image."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import InputError
from medretrieval.imaging.geometry import (
    describe,
    display_axes,
    insert,
    picture_grid,
    same_grid,
    singleton_axis,
)
from medretrieval.imaging.nifti import read_nifti
from medretrieval.imaging.pictures import read_label_picture
from medretrieval.imaging.sniff import sniff
from medretrieval.types import Grid, LabelVolume

_UNSIGNED = (np.uint8, np.uint16, np.uint32, np.uint64)


def unsigned(values: NDArray[Any], what: str) -> NDArray[Any]:
    """Return label values in the smallest unsigned dtype that holds them.

    Args:
        values: whole numbers of any real dtype (whole floats are accepted), or bool.
        what: how messages call them.

    Raises:
        InputError: NaN, infinite, fractional, negative, or above 2^32 - 1.
    """
    if values.size == 0:
        raise InputError(f"{what} is empty; expected a label map with voxels")
    if values.dtype.kind not in "biuf":
        raise InputError(f"{what} holds {values.dtype}, not label numbers")
    if values.dtype.kind == "f":
        if not bool(np.isfinite(values).all()):
            raise InputError(f"{what} has NaN or infinite values; labels must be whole numbers")
        fractional = values != np.rint(values)
        if bool(fractional.any()):
            raise InputError(
                f"{what} has values that are not whole numbers (such as "
                f"{float(values[fractional][0]):.6g}); expected a label map, where every value is "
                "a label: use the mask and not the image, and resample masks by nearest neighbour"
            )
    low, high = values.min(), values.max()
    if low < 0:
        raise InputError(
            f"{what} has negative values (lowest {low}); labels must be 0 (background) or more: "
            "use the mask and not the image"
        )
    for dtype in _UNSIGNED:
        if high <= np.iinfo(dtype).max:
            if dtype is np.uint64:
                break
            return np.asarray(values.astype(dtype))
    raise InputError(f"{what} has the label value {high}; expected at most 4294967295")


def label_names(values: NDArray[Any], names: Mapping[int, str] | None) -> dict[int, str]:
    """Return value -> name: those given (except 0), and label_<n> for every other value there."""
    named = {int(v): str(n) for v, n in (names or {}).items() if int(v) != 0}
    present = (int(v) for v in np.unique(values) if v != 0)
    named.update({v: f"label_{v}" for v in present if v not in named})
    return dict(sorted(named.items()))


def read_labels(
    path: str | os.PathLike[str],
    *,
    reference: Grid | None,
    names: Mapping[int, str] | None = None,
) -> LabelVolume:
    """Read a label map from NIfTI (3-D) or a PNG or TIFF label picture.

    A picture fits a reference that is one slice thick and, displayed, as large as the picture.

    Args:
        path: the mask.
        reference: grid of the image that it belongs to; the result carries exactly this grid.
            None takes the mask's own.
        names: label value -> name; values without a name become "label_<n>".

    Returns:
        (X, Y, Z) labels in the smallest unsigned dtype; all zeros are allowed.

    Raises:
        InputError: missing, unreadable, not whole numbers, negative, coloured, JPEG, or not on
            the grid of `reference` (shape, and affine within 1e-3 mm; both are shown).
    """
    path = Path(path)
    what = f"mask {path.name}"
    if path.is_dir():
        raise InputError(f"{what} is a folder; expected a NIfTI, PNG or TIFF file")
    kind = sniff(path, what)
    if kind == "picture":
        picture = unsigned(read_label_picture(path, what), what)
        voxels, grid = _on_slice(picture, reference, what)
    elif kind == "nifti":
        # A channel for each structure is no label map: the first alone would pass for one.
        image = read_nifti(path, what, channel=None)
        stored: NDArray[Any] = image.voxels
        if (image.slope, image.intercept) != (1.0, 0.0):
            stored = stored.astype(np.float64) * image.slope + image.intercept
        voxels, grid = unsigned(stored, what), image.grid
    else:
        raise InputError(
            f"{what} is a {kind} file; expected a label map as NIfTI (.nii, .nii.gz), PNG or TIFF: "
            "convert it"
        )
    if reference is not None and not same_grid(grid, reference):
        raise InputError(
            f"{what} is on another grid than its image: mask {describe(grid)}; image "
            f"{describe(reference)}. Resample the mask to the image (nearest neighbour), or check "
            "that the two belong together"
        )
    return LabelVolume(
        voxels=voxels, grid=grid if reference is None else reference,
        names=label_names(voxels, names),
    )  # fmt: skip


def _on_slice(
    picture: NDArray[Any], reference: Grid | None, what: str
) -> tuple[NDArray[Any], Grid]:
    """Lay (H, W) displayed labels onto the only slice of `reference`, or onto a picture's grid."""
    grid = picture_grid(picture.shape[1], picture.shape[0]) if reference is None else reference
    axis = _only_slice(grid, what)
    row, column, _, _ = display_axes(grid.affine, axis)
    if picture.shape != (grid.shape[row], grid.shape[column]):
        raise InputError(
            f"{what} has {picture.shape[1]}x{picture.shape[0]} pixels (columns x rows), but its "
            f"image has {grid.shape[column]}x{grid.shape[row]}; they must be equal: check that "
            "the two belong together, or resample the mask by nearest neighbour"
        )
    voxels = np.zeros(grid.shape, picture.dtype)
    insert(voxels, grid, axis, 0, picture)
    return voxels, grid


def _only_slice(grid: Grid, what: str) -> int:
    axis = singleton_axis(grid.shape)
    if axis is None and grid.shape[2] == 1:
        axis = 2  # a row or column of pixels
    if axis is None:
        raise InputError(
            f"{what} is a picture, but the image has {describe(grid)}; a picture can only be the "
            "mask of a single slice: use NIfTI (.nii.gz)"
        )
    return axis
