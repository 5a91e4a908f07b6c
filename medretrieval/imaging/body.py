"""The part of a slice that shows the body: what is embedded where an index says so."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medretrieval.errors import unknown_name

CROPS = ("none", "body")
LEVEL = 8  # grey levels by which a border may vary and still be one, as JPEG leaves it
WORKING = 192  # pixels of the longer side at which the body is looked for
FAINT = 0.08  # of the way from the darkest to the brightest, from which on it is no background
THIN = 2  # pixels of the working size; half as wide as what is taken off: tables, letters
ALSO = 0.1  # parts of this share of the largest are the body too, as arms and legs are
SMALLEST = 0.02  # share of the picture below which what was found is no body
MARGIN = 0.02  # of the longer side, on each side


def embedded_part(picture: NDArray[np.uint8], crop: str) -> NDArray[np.uint8]:
    """Return what of a slice is embedded.

    Args:
        picture: (H, W) or (H, W, 3) uint8.
        crop: "none" or "body", as in `SlicePolicy.crop`.

    Returns:
        Never empty; `picture` itself for "none".

    Raises:
        UsageError: unknown `crop`.
    """
    check_crop(crop)
    return picture if crop == "none" else np.ascontiguousarray(picture[body_box(picture)])


def check_crop(crop: str) -> None:
    """Refuse an unknown `crop`.

    Raises:
        UsageError: it is none of `CROPS`.
    """
    if crop not in CROPS:
        raise unknown_name("crop", crop, CROPS, "medretrieval build --help")


def body_box(picture: NDArray[np.uint8]) -> tuple[slice, slice]:
    """Return the rows and columns of a slice that show the body.

    Borders of one grey level are taken off first, so that what is found does not depend on how wide
    they are. In the rest, the large connected parts of what is brighter than the background count:
    the table of a scanner, letters, and noise do not.

    Args:
        picture: (H, W) or (H, W, 3) uint8, the background darker than the body.

    Returns:
        Rows and columns, not empty, inside the picture; all but the border where no body stands out
        from a background, and all of a picture of one grey level.
    """
    grey = picture.max(axis=2) if picture.ndim == 3 else picture
    rows, columns = _without_border(grey)
    inner = grey[rows, columns]
    step = -(-max(inner.shape) // WORKING)
    mask = _body(_reduced(inner, step))
    if mask is None:
        return rows, columns
    margin = round(MARGIN * max(inner.shape))
    return (
        _span(np.flatnonzero(mask.any(axis=1)), step, margin, rows),
        _span(np.flatnonzero(mask.any(axis=0)), step, margin, columns),
    )


def _without_border(grey: NDArray[np.uint8]) -> tuple[slice, slice]:
    """Rows and columns that are left when edges of one grey level are taken off, again and again.

    A part of an even edge is even, so that the order does not matter; all of an even picture.
    """
    top, bottom, left, right = 0, grey.shape[0], 0, grey.shape[1]
    while True:
        before = (top, bottom, left, right)
        part = grey[top:bottom, left:right].astype(np.int16)
        if np.ptp(part) <= LEVEL:
            return slice(0, grey.shape[0]), slice(0, grey.shape[1])
        keep = np.flatnonzero(np.ptp(part, axis=1) > LEVEL)
        if len(keep):
            top, bottom = top + int(keep[0]), top + int(keep[-1]) + 1
        keep = np.flatnonzero(np.ptp(part, axis=0) > LEVEL)
        if len(keep):
            left, right = left + int(keep[0]), left + int(keep[-1]) + 1
        if before == (top, bottom, left, right):
            return slice(top, bottom), slice(left, right)


def _reduced(grey: NDArray[np.uint8], step: int) -> NDArray[np.float32]:
    """Means over cells of step x step pixels; those at the end may be smaller."""
    sums = grey.astype(np.float32)
    for axis in (0, 1):
        length = sums.shape[axis]
        starts = np.arange(0, length, step)
        counts = np.minimum(step, length - starts).astype(np.float32)
        shape = (-1, 1) if axis == 0 else (1, -1)
        sums = np.add.reduceat(sums, starts, axis=axis) / counts.reshape(shape)
    return sums


def _body(grey: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """The large connected bright parts, or None where there is no body to be seen."""
    # The median takes away noise and thin lines, and leaves edges where they are.
    smooth = ndimage.median_filter(grey, 3, mode="nearest")
    mask = smooth > _threshold(smooth)
    if min(mask.shape) > 8 * THIN:
        mask = ndimage.binary_opening(mask, iterations=THIN)
    numbered, count = ndimage.label(mask)
    if not count:
        return None
    sizes = np.bincount(numbered.ravel())
    sizes[0] = 0
    if sizes.max() < SMALLEST * mask.size:
        return None
    large: NDArray[np.bool_] = (sizes >= ALSO * sizes.max())[numbered]
    return large


def _threshold(grey: NDArray[np.float32]) -> float:
    """Between background and body: little above the dark, as fat-suppressed tissue is."""
    dark, bright = np.percentile(grey, (1, 99)).tolist()
    return float(dark + FAINT * (bright - dark))


def _span(cells: NDArray[np.intp], step: int, margin: int, within: slice) -> slice:
    """From cells of the working size to pixels of the picture, with a margin, inside `within`."""
    begin = within.start + int(cells[0]) * step - margin
    end = within.start + (int(cells[-1]) + 1) * step + margin
    return slice(max(begin, within.start), min(end, within.stop))
