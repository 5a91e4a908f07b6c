"""Points on a true mask, as a person would click them: the prompts of RAFS, table I."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.segmentation.prompts import Point, Prompts


def draw_points(
    mask: NDArray[np.bool_], *, positive: int, negative: int, random: np.random.Generator
) -> Prompts | None:
    """Draw points inside and outside of a mask.

    The paper does not say how its points were drawn. Here: positive points are pixels of the mask,
    drawn uniformly without replacement; negative ones are drawn likewise from the pixels outside
    of it that lie in the box around it, widened by half its side in every direction, because a
    person clicks next to what was confused with it. Of the whole picture where that box holds
    none. The first points do not depend on how many more are drawn after them.

    Args:
        mask: (H, W), where the structure truly is.
        positive, negative: how many; fewer where there are not as many pixels.
        random: where the draws come from.

    Returns:
        None where the mask is empty.
    """
    inside = np.argwhere(mask)
    if not len(inside):
        return None
    random_inside, random_outside = random.spawn(2)
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    reach = (high - low + 1) // 2
    top, left = np.maximum(low - reach, 0)
    bottom, right = high + reach
    outside = np.argwhere(~mask[top:bottom, left:right]) + np.array([top, left])
    if not len(outside):
        outside = np.argwhere(~mask)
    return Prompts(
        positive=_drawn(inside, positive, random_inside),
        negative=_drawn(outside, negative, random_outside),
    )


def generator(*parts: Any) -> np.random.Generator:
    """Random numbers that depend on what they are for only, on any machine and in any order.

    Args:
        *parts: a seed, the name of a volume, the number of a slice and so on.
    """
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _drawn(pixels: NDArray[np.intp], count: int, random: np.random.Generator) -> tuple[Point, ...]:
    order = random.permutation(len(pixels))[:count]
    return tuple((float(column), float(row)) for row, column in pixels[order])
