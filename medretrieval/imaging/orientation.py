"""The eight ways a picture can lie: turned by right angles, and mirrored.

Scanners store the same plane in different orientations (short-axis heart MR most of all), and an
affine does not always tell. These are the symmetries of a square; every one is a swap of rows and
columns or not, and then flips, so that turning is exact and copies nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from medretrieval.errors import unknown_name


class _Steps(NamedTuple):
    """What is done, in this order."""

    swap: bool
    flip_rows: bool
    flip_columns: bool


_STEPS: Mapping[str, _Steps] = {
    "as stored": _Steps(False, False, False),
    "rotated left": _Steps(True, True, False),
    "rotated 180": _Steps(False, True, True),
    "rotated right": _Steps(True, False, True),
    "flipped left-right": _Steps(False, False, True),
    "flipped top-bottom": _Steps(False, True, False),
    "flipped diagonally": _Steps(True, False, False),
    "flipped along the other diagonal": _Steps(True, True, True),
}
_NAMES = {steps: name for name, steps in _STEPS.items()}

AS_STORED = "as stored"
ORIENTATIONS = tuple(_STEPS)


def turn(picture: NDArray[Any], name: str) -> NDArray[Any]:
    """Return a picture in another orientation.

    Args:
        picture: (H, W) or (H, W, C) of any dtype.
        name: one of `ORIENTATIONS`. "rotated left" is by a right angle, counter-clockwise as it is
            displayed; "flipped diagonally" swaps rows and columns, about the diagonal from the top
            left; the other diagonal is that from the top right.

    Returns:
        A view: (W, H) where rows become columns, else (H, W), and C at the end.

    Raises:
        UsageError: unknown name.

    >>> import numpy as np
    >>> turn(np.array([[1, 2], [3, 4]]), "rotated left").tolist()
    [[2, 4], [1, 3]]
    """
    steps = _steps(name)
    turned = picture.swapaxes(0, 1) if steps.swap else picture
    return turned[:: -1 if steps.flip_rows else 1, :: -1 if steps.flip_columns else 1]


def turn_point(
    point: tuple[float, float], shape: tuple[int, ...], name: str
) -> tuple[float, float]:
    """Where a place of a picture lies after `turn`.

    Args:
        point: (x, y) in pixels of the picture, (0, 0) is the centre of its first pixel.
        shape: (H, W) of the picture before it is turned.
        name: as for `turn`.

    >>> turn_point((1, 0), (2, 3), "rotated left")
    (0, 1)
    """
    steps = _steps(name)
    x, y = point
    height, width = shape[:2]
    if steps.swap:
        x, y, height, width = y, x, width, height
    return (width - 1 - x if steps.flip_columns else x), (height - 1 - y if steps.flip_rows else y)


def turn_back(picture: NDArray[Any], name: str) -> NDArray[Any]:
    """Undo `turn` exactly: `turn_back(turn(picture, name), name)` is `picture`."""
    return turn(picture, inverse(name))


def inverse(name: str) -> str:
    """Return the orientation that undoes `name`.

    >>> inverse("rotated left"), inverse("flipped diagonally")
    ('rotated right', 'flipped diagonally')
    """
    steps = _steps(name)
    if steps.swap:
        # A flip of rows before the swap is one of columns after it.
        return _NAMES[_Steps(True, steps.flip_columns, steps.flip_rows)]
    return name


def _steps(name: str) -> _Steps:
    if name not in _STEPS:
        raise unknown_name("orientation", name, ORIENTATIONS, "medretrieval search --help")
    return _STEPS[name]
