"""Where slices lie: everything is derived from the affine, nothing is guessed.

Radiological display convention, in terms of the patient:

| plane    | rows run towards | columns run towards |
|----------|------------------|---------------------|
| axial    | posterior        | left                |
| coronal  | inferior         | left                |
| sagittal | inferior         | posterior           |

Left, posterior and inferior are the three negative directions of the RAS+ world, so a stored axis
is flipped for display if and only if it runs towards a positive one. For an oblique grid each
stored axis takes the role of the world axis nearest to it (`nibabel.orientations`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from medretrieval.errors import InputError, UsageError, unknown_name
from medretrieval.types import Grid

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}  # plane -> world axis (R, A, S) across it
AXES = ("acquisition", *PLANES)
ANISOTROPY = 1.5  # coarsest to finest spacing from which the coarsest axis is the acquisition's
SAME_SPACING = 0.01  # relative difference below which two axes are equally coarse
SAME_AFFINE_MM = 1e-3
# Pictures: x to the patient's left and y to the back, so that axial display is the picture itself.
PICTURE_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def check_affine(affine: Any, what: str) -> NDArray[np.float64]:
    """Return `affine` as (4, 4) float64 if it is a usable voxel to world map.

    Raises:
        InputError: wrong shape, NaN or infinite, zero steps, or singular.
    """
    try:
        matrix = np.array(affine, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    problem = ""
    if matrix.shape != (4, 4):
        problem = f"it is not a 4x4 matrix of numbers (shape {matrix.shape})"
    elif not np.isfinite(matrix).all():
        problem = "it contains NaN or infinite numbers"
    elif not np.array_equal(matrix[3], [0, 0, 0, 1]):
        problem = f"its last row is {matrix[3].tolist()}, not [0, 0, 0, 1]"
    else:
        steps = np.sqrt((matrix[:3, :3] ** 2).sum(axis=0))
        if (steps < 1e-6).any() or (steps > 1e6).any():
            problem = f"its voxel spacing is {steps.tolist()} mm"
        elif abs(np.linalg.det(matrix[:3, :3] / steps)) < 1e-3:
            problem = "it is singular: two axes of the image run in the same direction"
    if problem:
        raise InputError(
            f"the geometry (affine) of {what} cannot be used: {problem}. Expected three "
            "independent axes with spacings in mm; repair the header or export the image again"
        )
    return matrix


def orientation(affine: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return (3, 2): for each stored axis its nearest world axis (0 R, 1 A, 2 S) and sign +-1."""
    return _orientation(affine.astype(np.float64).tobytes())


@lru_cache(maxsize=256)
def _orientation(affine: bytes) -> NDArray[np.int64]:
    # It takes a singular value decomposition, and every slice of a volume asks for the same one.
    nearest: Any = io_orientation  # untyped
    orient: NDArray[np.int64] = nearest(np.frombuffer(affine).reshape(4, 4)).astype(np.int64)
    orient.flags.writeable = False
    return orient


def singleton_axis(shape: tuple[int, int, int]) -> int | None:
    """Return the axis of a grid that is one voxel thick along exactly one axis, else None."""
    thin = [axis for axis, length in enumerate(shape) if length == 1]
    return thin[0] if len(thin) == 1 else None


def slice_axis(grid: Grid, axis: str) -> int:
    """Return the stored axis (0, 1 or 2) that slices are taken across.

    A grid one voxel thick has only one sensible slice, which is taken whatever `axis` says.

    Args:
        axis: "axial", "coronal" or "sagittal"; or "acquisition": the axis of the coarsest spacing
            if that is at least 1.5 times the finest, else the axial one. Two equally coarse axes
            (within 1 %) span a reduced slice rather than run across it: then also the axial one.

    Raises:
        UsageError: `axis` is none of these.
    """
    if axis not in AXES:
        raise unknown_name("slicing axis", axis, AXES, "medretrieval build --help")
    thin = singleton_axis(grid.shape)
    if thin is not None:
        return thin
    world: list[int] = orientation(grid.affine)[:, 0].tolist()
    axial = world.index(PLANES["axial"])
    if axis != "acquisition":
        return world.index(PLANES[axis])
    spacing = np.array(grid.spacing)
    # A relative tolerance, as spacings that went through float32 differ in the last digits.
    if spacing.max() < ANISOTROPY * spacing.min() * (1 - 1e-5):
        return axial
    coarsest = np.flatnonzero(spacing >= spacing.max() * (1 - SAME_SPACING))
    return int(coarsest[0]) if len(coarsest) == 1 else axial


def finest_plane(grid: Grid, otherwise: str) -> str:
    """Return the plane whose slices have the smallest pixels: "axial", "coronal" or "sagittal".

    It is the plane across the coarsest axis. Where axes are equally coarse (within 1 %), that of
    `otherwise` wins if it is one of them, else the first of axial, coronal, sagittal.

    Args:
        otherwise: an axis as for `slice_axis`, returned as it is where the spacing is unknown or
            the image is one voxel thick, so that there is nothing to choose.

    Raises:
        UsageError: `otherwise` is no axis.
    """
    usual = slice_axis(grid, otherwise)
    if not grid.spacing_known or singleton_axis(grid.shape) is not None:
        return otherwise
    spacing = np.array(grid.spacing)
    coarsest = np.flatnonzero(spacing >= spacing.max() * (1 - SAME_SPACING)).tolist()
    world: list[int] = orientation(grid.affine)[:, 0].tolist()
    if usual in coarsest:
        best = world[usual]
    else:
        best = max(world[axis] for axis in coarsest)
    return next(plane for plane, across in PLANES.items() if across == best)


def display_axes(affine: NDArray[np.float64], axis: int) -> tuple[int, int, bool, bool]:
    """Return how the slice across stored `axis` is displayed.

    Returns:
        (stored axis of the rows, stored axis of the columns, flip rows, flip columns).
    """
    orient = orientation(affine)
    world, sign = orient[:, 0].tolist(), orient[:, 1].tolist()
    across = world[axis]
    # World axes of rows and columns: axial A, R; coronal S, R; sagittal S, A.
    down, right = [w for w in (2, 1, 0) if w != across]
    row, column = world.index(down), world.index(right)
    return row, column, sign[row] > 0, sign[column] > 0


def extract(array: NDArray[Any], grid: Grid, axis: int, index: int) -> NDArray[Any]:
    """Return one slice in radiological display convention, as a view of `array`.

    Args:
        array: (X, Y, Z) or (X, Y, Z, C), any dtype, on `grid`.
        axis: stored axis that the slice is taken across.
        index: voxel index along that axis.

    Returns:
        (rows, columns) or (rows, columns, C) view; writing into it writes into `array`.

    Raises:
        UsageError: `array` is not on `grid`, or there is no such axis or slice.
    """
    if array.ndim not in (3, 4) or array.shape[:3] != grid.shape:
        raise UsageError(f"an array of shape {array.shape} is not on a grid of {grid.shape}")
    if axis not in (0, 1, 2):
        raise UsageError(f"axis {axis} does not exist; the stored axes are 0, 1 and 2")
    if not 0 <= index < grid.shape[axis]:
        raise UsageError(
            f"slice {index} does not exist; the image has slices 0..{grid.shape[axis] - 1}"
        )
    row, column, flip_rows, flip_columns = display_axes(grid.affine, axis)
    picture: NDArray[Any] = np.moveaxis(array, (axis, row, column), (0, 1, 2))[index]
    return picture[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def insert(array: NDArray[Any], grid: Grid, axis: int, index: int, picture: NDArray[Any]) -> None:
    """Write a displayed slice back into `array` in place: the exact inverse of `extract`.

    Args:
        array: (X, Y, Z) or (X, Y, Z, C) on `grid`; changed in place.
        picture: (rows, columns) or (rows, columns, C) as `extract` gives it.

    Raises:
        UsageError: shapes do not fit, or a value of `picture` cannot be held by `array`.
    """
    target = extract(array, grid, axis, index)
    if picture.shape != target.shape:
        raise UsageError(
            f"a picture of shape {picture.shape} does not fit slice {index}, which is "
            f"{target.shape}"
        )
    values = picture.astype(array.dtype)
    if not np.can_cast(picture.dtype, array.dtype) and not np.array_equal(values, picture):
        raise UsageError(
            f"values {picture.min()}..{picture.max()} ({picture.dtype}) cannot be stored as "
            f"{array.dtype}; use a wider array"
        )
    target[...] = values


def position_mm(grid: Grid, axis: int, index: int) -> float | None:
    """Return where a slice lies along the sliced direction, in mm of the RAS+ world.

    This is the R, A or S coordinate (whichever the stored `axis` is nearest to) of the centre of
    the slice, or None where the spacing is unknown.
    """
    if not grid.spacing_known:
        return None
    centre = (np.array(grid.shape, dtype=np.float64) - 1) / 2
    centre[axis] = index
    world = int(orientation(grid.affine)[axis, 0])
    return float(grid.affine[world, :3] @ centre + grid.affine[world, 3])


def same_grid(a: Grid, b: Grid) -> bool:
    """Whether two grids have the same shape and affines equal within 1e-3 mm."""
    return a.shape == b.shape and bool(np.abs(a.affine - b.affine).max() <= SAME_AFFINE_MM)


def describe(grid: Grid) -> str:
    """Return shape and affine of a grid for messages."""
    rows = "; ".join(" ".join(f"{x:.6g}" for x in row) for row in grid.affine[:3].tolist())
    return f"{'x'.join(map(str, grid.shape))} voxels, affine [{rows}]"


def picture_grid(width: int, height: int) -> Grid:
    """Return the grid of a picture: one slice of unknown spacing, displayed as it is stored."""
    return Grid(shape=(width, height, 1), affine=PICTURE_AFFINE.copy(), spacing_known=False)
