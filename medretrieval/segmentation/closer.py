"""A closer look: each structure once more, in a part of the picture around itself.

A small network sees little of a small structure in a large picture, and the supports' structures
are elsewhere in their pictures than the query's. So what a first pass finds is segmented again,
label by label: the query cropped around what was found, every support around its own structure, all
to the same relative size. The structures then lie over each other and fill the network's input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medretrieval.segmentation.crop import STEPS, Box, crop
from medretrieval.segmentation.labels import SliceSegmentation, merge, name_mask
from medretrieval.segmentation.prompts import Prompts, moved, widened
from medretrieval.types import Support

MARGIN = 1.0  # the part shown is larger than the largest of the supports' structures by this
SHARE = 0.75  # how much the second pass counts where it looked; the first counts the rest
SMALLEST = 0.2  # smallest part of a picture's side that is shown
LARGEST = 0.95  # a part larger than this in both directions shows nothing new
_FOUND = 0.3  # probability from which a pixel counts for the place of what was found
_CERTAIN = 20.0
_OUTSIDE = -1.0


class Pass(Protocol):
    """One pass of a segmenter over whole pictures: `Segmenter.segment_batch` without a crop."""

    def __call__(
        self,
        images: Sequence[NDArray[np.uint8]],
        supports: Sequence[Sequence[Support]],
        *,
        labels: Sequence[str] | None,
        prompts: Sequence[Mapping[str, Prompts] | None] | None,
    ) -> list[SliceSegmentation]: ...


@dataclass(frozen=True, eq=False)
class _Look:
    """One label of one picture that is looked at again."""

    picture: int
    row: int
    box: Box
    supports: tuple[Support, ...]
    prompts: Mapping[str, Prompts] | None


def look_closer(
    again: Pass,
    images: Sequence[NDArray[np.uint8]],
    supports: Sequence[Sequence[Support]],
    first: Sequence[SliceSegmentation],
    *,
    prompts: Sequence[Mapping[str, Prompts] | None] | None = None,
) -> list[SliceSegmentation]:
    """Segment what a first pass found again, each label from a crop of its own.

    Args:
        again: the second pass; called once a label with the cropped pictures and supports.
        images: (H, W) or (H, W, 3) uint8 each.
        supports: a support set for every picture, as in the first pass.
        first: what the first pass made of the pictures.
        prompts: for every picture its prompts, or None; the second pass gets those of its label.

    Returns:
        Per picture the label map and logits of both passes together: where the second looked, a
        weighted mean of their logits; elsewhere the label is absent. A label that the first pass
        did not find, or whose surroundings are the whole picture, stays as it was.
    """
    logits = [np.array(result.logits) for result in first]
    asked = [None] * len(images) if prompts is None else prompts
    names = sorted({name for result in first for name in result.names.values()})
    for name in names:
        looks = [
            look
            for picture, result in enumerate(first)
            if (
                look := _look(
                    picture, name, images[picture], supports[picture], result, asked[picture]
                )
            )
        ]
        if looks:
            parts = [crop(images[look.picture], look.box) for look in looks]
            found = again(
                parts,
                [look.supports for look in looks],
                labels=[name],
                prompts=[look.prompts for look in looks],
            )
            for look, part in zip(looks, found, strict=True):
                row = logits[look.picture][look.row]
                rows, columns = look.box.pixels((row.shape[0], row.shape[1]))
                inside = (1 - SHARE) * row[rows, columns].clip(-_CERTAIN, _CERTAIN)
                inside += SHARE * part.logits[0].clip(-_CERTAIN, _CERTAIN)
                np.minimum(row, _OUTSIDE, out=row)
                row[rows, columns] = inside
    return [
        SliceSegmentation(
            mask=merge(changed, list(result.names)), logits=changed, names=result.names
        )
        for changed, result in zip(logits, first, strict=True)
    ]


def _look(
    picture: int,
    name: str,
    image: NDArray[np.uint8],
    supports: Sequence[Support],
    result: SliceSegmentation,
    prompts: Mapping[str, Prompts] | None,
) -> _Look | None:
    labels = list(result.names.values())
    if name not in labels:
        return None
    row = labels.index(name)
    masks = [name_mask(support, name) for support in supports]
    shown = [mask for mask in masks if mask.any()]
    if not shown or not (result.logits[row] > 0).any():
        return None
    height, width = image.shape[:2]
    # Square in the pixels of the query, unless the picture ends there.
    side = max(max(high * height, wide * width) for high, wide in map(_extent, shown))
    size = (_steps(side * (1 + MARGIN) / height), _steps(side * (1 + MARGIN) / width))
    if min(size) > LARGEST:
        return None
    likely = 1 / (1 + np.exp(-result.logits[row].clip(-_CERTAIN, _CERTAIN)))
    box = _box(_center(np.where(likely > _FOUND, likely, 0)), size)
    own = {name: prompts[name]} if prompts and name in prompts else {}
    # What a person points at is shown, of the supports then as much.
    box = widened(box, own.values(), (height, width))
    size = (box.bottom - box.top, box.right - box.left)
    centers = [_center(mask) if mask.any() else None for mask in masks]
    # A support without the label shows the place where the others have it.
    usual = np.mean([center for center in centers if center is not None], axis=0)
    cropped = []
    for support, center in zip(supports, centers, strict=True):
        part = _box((usual[0], usual[1]) if center is None else center, size)
        cropped.append(
            replace(support, image=crop(support.image, part), mask=crop(support.mask, part))
        )
    within = moved(own, *box.pixels((height, width)))
    return _Look(picture, row, box, tuple(cropped), within)


def _steps(size: float) -> float:
    # Few different sizes, so that a support's crop, and with it its stored memory, serves again.
    return min(1.0, ceil(max(size, SMALLEST) * STEPS - 1e-9) / STEPS)


def _extent(mask: NDArray[Any]) -> tuple[float, float]:
    """Height and width of what is not zero, as parts of the picture's."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        float(rows[-1] + 1 - rows[0]) / mask.shape[0],
        float(columns[-1] + 1 - columns[0]) / mask.shape[1],
    )


def _center(weights: NDArray[Any]) -> tuple[float, float]:
    """Centre of gravity in relative coordinates."""
    total = weights.sum()
    rows, columns = weights.sum(axis=1), weights.sum(axis=0)
    return (
        float((rows * (np.arange(rows.size) + 0.5)).sum() / total / rows.size),
        float((columns * (np.arange(columns.size) + 0.5)).sum() / total / columns.size),
    )


def _box(center: tuple[float, float], size: tuple[float, float]) -> Box:
    """The box of `size` around `center`, moved into the picture."""
    top = min(max(center[0] - size[0] / 2, 0.0), 1.0 - size[0])
    left = min(max(center[1] - size[1] / 2, 0.0), 1.0 - size[1])
    return Box(top, left, min(1.0, top + size[0]), min(1.0, left + size[1]))
