"""Slices of a volume, ready to embed, show and segment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medretrieval.errors import InputError, UsageError
from medretrieval.imaging.geometry import (
    describe,
    display_axes,
    extract,
    position_mm,
    same_grid,
    slice_axis,
)
from medretrieval.imaging.intensity import apply_window, resolve_window
from medretrieval.types import LabelVolume, Slice, SlicePolicy, Volume


def reduced_shape(shape: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Return (rows, columns) with the longer side at most `max_side`, the ratio kept.

    >>> reduced_shape((2048, 1000), 1024)
    (1024, 500)
    >>> reduced_shape((300, 200), 1024)
    (300, 200)
    """
    longest = max(shape)
    if longest <= max_side:
        return shape
    rows, columns = (max(1, round(side * max_side / longest)) for side in shape)
    return rows, columns


def resize_nearest(picture: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Resize a label map to `shape` by the nearest pixel centre; larger or smaller.

    Args:
        picture: (H, W) of any dtype.
        shape: (rows, columns) wanted.

    Returns:
        `shape` array of the same dtype, holding only values of `picture`.
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp)
        for new, old in zip(shape, picture.shape[:2], strict=True)
    )
    return np.asarray(picture[rows[:, None], columns[None, :]])


def resize_area(picture: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Reduce an image to `shape` by averaging the area under each new pixel.

    Args:
        picture: (H, W) or (H, W, 3) uint8.
        shape: (rows, columns) wanted.

    Returns:
        uint8 of `shape`, with the channels of `picture`.
    """
    source = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(source.resize((shape[1], shape[0]), Image.Resampling.BOX))


def make_slices(
    volume: Volume,
    policy: SlicePolicy,
    *,
    labels: LabelVolume | None = None,
    indices: Iterable[int] | None = None,
) -> Iterator[Slice]:
    """Yield the slices of a volume by a policy, in the order of their index.

    The intensity window is decided once, on the whole volume, so a slice does not depend on which
    others are asked for. A slice larger than `policy.max_side` is reduced: the image by area
    average, the mask by the nearest pixel. Enlarge a mask back with `resize_nearest` and write it
    with `insert`.

    Args:
        volume: the image.
        labels: label map on the same grid; every slice then has a mask, of zeros where nothing is
            labelled. Without it masks are None.
        indices: voxel indices along the sliced axis, in the order wanted; all by default.

    Yields:
        Slice with an (H, W) or (H, W, 3) uint8 image, both sides at most `policy.max_side`.

    Raises:
        InputError: `labels` are on another grid.
        UsageError: unknown axis or window, an index out of range, `max_side` below 1.
    """
    if policy.max_side < 1:
        raise UsageError(f"max_side is {policy.max_side}, but must be at least 1 pixel")
    grid = volume.grid
    if labels is not None and not same_grid(labels.grid, grid):
        raise InputError(
            f"the mask is on another grid than {volume.name}: mask {describe(labels.grid)}; "
            f"image {describe(grid)}. Resample the mask to the image"
        )
    axis = slice_axis(grid, policy.axis)
    count = grid.shape[axis]
    wanted = range(count) if indices is None else [int(i) for i in indices]
    for index in wanted:
        if not 0 <= index < count:
            raise UsageError(
                f"slice {index} of {volume.name} does not exist; it has slices 0..{count - 1}"
            )
    window = resolve_window(volume.voxels, policy.window)
    row, column, _, _ = display_axes(grid.affine, axis)
    full = (grid.shape[row], grid.shape[column])
    shape = reduced_shape(full, policy.max_side)
    spacing = None
    if grid.spacing_known:
        step = grid.spacing
        spacing = (step[row] * full[0] / shape[0], step[column] * full[1] / shape[1], step[axis])

    def generate() -> Iterator[Slice]:
        for index in wanted:
            image = apply_window(extract(volume.voxels, grid, axis, index), window)
            mask = None
            if labels is not None:
                mask = np.ascontiguousarray(extract(labels.voxels, grid, axis, index))
            if shape != full:
                image = resize_area(image, shape)
                mask = None if mask is None else resize_nearest(mask, shape)
            yield Slice(
                index=index,
                image=np.ascontiguousarray(image),
                mask=mask,
                position_mm=position_mm(grid, axis, index),
                spacing=spacing,
            )

    return generate()
