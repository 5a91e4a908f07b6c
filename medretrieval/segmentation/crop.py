"""Regions of pictures in relative coordinates: the same part of pictures of different sizes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import UsageError

# Boxes are widened to this grid, so that support sets that differ a little (neighbouring slices of
# a volume) share one box, and with it the memories stored for it.
STEPS = 16
# A box made around a few pixels would show them hugely magnified, without their surroundings.
MIN_SIDE = 4


@dataclass(frozen=True)
class Box:
    """A part of a picture, in fractions of its height and width: 0 <= top < bottom <= 1, etc."""

    top: float
    left: float
    bottom: float
    right: float

    def __post_init__(self) -> None:
        edges = (self.top, self.left, self.bottom, self.right)
        ordered = 0 <= self.top < self.bottom <= 1 and 0 <= self.left < self.right <= 1
        if not all(map(isfinite, edges)) or not ordered:
            raise UsageError(
                f"crop box {edges}: expected top, left, bottom, right as fractions of the "
                "picture with 0 <= top < bottom <= 1 and 0 <= left < right <= 1"
            )

    @property
    def whole(self) -> bool:
        return self == WHOLE

    def pixels(self, shape: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the box in a picture of `shape` (H, W): at least one each."""
        return _span(self.top, self.bottom, shape[0]), _span(self.left, self.right, shape[1])

    def part(self, inner: Box) -> Box:
        """The box that is `inner` in this one.

        Its part of a picture p is `crop(crop(p, self), inner)` to within the rounding to pixels.
        """
        high, wide = self.bottom - self.top, self.right - self.left
        return Box(
            self.top + inner.top * high,
            self.left + inner.left * wide,
            min(self.top + inner.bottom * high, 1.0),
            min(self.left + inner.right * wide, 1.0),
        )

    def relative(self, other: Box) -> Box:
        """What of `other` lies in this box, in fractions of it: the inverse of `part`.

        Raises:
            UsageError: nothing does.
        """
        high, wide = self.bottom - self.top, self.right - self.left
        return Box(
            max((other.top - self.top) / high, 0.0),
            max((other.left - self.left) / wide, 0.0),
            min((other.bottom - self.top) / high, 1.0),
            min((other.right - self.left) / wide, 1.0),
        )


def _span(low: float, high: float, size: int) -> slice:
    # The tolerance keeps 3/16 of 16 pixels at 3 where floating point makes it 3.0000000000000004.
    start = min(floor(low * size + 1e-9), size - 1)
    return slice(start, max(ceil(high * size - 1e-9), start + 1))


WHOLE = Box(0.0, 0.0, 1.0, 1.0)


def crop(picture: NDArray[Any], box: Box) -> NDArray[Any]:
    """Return a view of the part of `picture` (H, W, ...) in `box`."""
    rows, columns = box.pixels((picture.shape[0], picture.shape[1]))
    return picture[rows, columns]


def uncrop(part: NDArray[Any], box: Box, shape: tuple[int, int], outside: float) -> NDArray[Any]:
    """Put `part` (..., h, w) back where `crop` took it from.

    Returns:
        (..., H, W) with `shape` (H, W), of the type of `part`, and `outside` around it.

    Raises:
        UsageError: `part` is not of the size that the box has in such a picture.
    """
    rows, columns = box.pixels(shape)
    expected = (rows.stop - rows.start, columns.stop - columns.start)
    if part.shape[-2:] != expected:
        raise UsageError(
            f"a part of {part.shape[-2:]} pixels does not fill the box of {expected} pixels"
        )
    full = np.full((*part.shape[:-2], *shape), outside, dtype=part.dtype)
    full[..., rows, columns] = part
    return full


def box_around(masks: Iterable[NDArray[Any]], *, margin: float) -> Box:
    """Return the box around everything that is not zero in any of `masks`, with a margin.

    Args:
        masks: (H, W) arrays of any sizes; places are compared in relative coordinates.
        margin: what is added on every side, as a fraction of the box's own side, >= 0.

    Returns:
        The union of the masks' bounding boxes, widened by the margin, to at least a quarter of
        the picture's side and outwards to sixteenths of it, inside the picture. The whole picture
        where all masks are empty.

    Raises:
        UsageError: the margin is negative or not finite.
    """
    if not (isfinite(margin) and margin >= 0):
        raise UsageError(f"crop margin {margin}: expected a finite number, 0 or more")
    spans = [span for mask in masks if (span := _bounds(mask)) is not None]
    if not spans:
        return WHOLE
    union = np.array(spans)
    top, bottom = _widen(union[:, 0].min(), union[:, 1].max(), margin)
    left, right = _widen(union[:, 2].min(), union[:, 3].max(), margin)
    return Box(top, left, bottom, right)


def _bounds(mask: NDArray[Any]) -> tuple[float, float, float, float] | None:
    """Relative top, bottom, left, right of what is not zero, None where all is."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    height, width = mask.shape
    return (
        rows[0] / height,
        (rows[-1] + 1) / height,
        columns[0] / width,
        (columns[-1] + 1) / width,
    )


def _widen(low: float, high: float, margin: float) -> tuple[float, float]:
    extra = margin * (high - low)
    first = max(floor((low - extra) * STEPS + 1e-9), 0)
    last = min(ceil((high + extra) * STEPS - 1e-9), STEPS)
    while last - first < MIN_SIDE:
        first, last = max(first - 1, 0), min(last + 1, STEPS)
    return first / STEPS, last / STEPS
