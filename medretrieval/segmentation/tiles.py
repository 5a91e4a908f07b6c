"""Thin structures, tile by tile: where the decoder's output grid is too coarse for them.

SAM 2 decides a mask on a grid of a quarter of its input's side. A vessel that is three pixels wide
in a picture of six hundred is a fraction of one cell of `sam2-micro`'s 48. So a label that is thin
on the supports is segmented in n x n overlapping tiles, each from the tiles of the supports at the
same relative place, and the tiles' logits are blended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medretrieval.segmentation.closer import Pass
from medretrieval.segmentation.crop import Box, box_around, crop
from medretrieval.segmentation.labels import SliceSegmentation, merge, name_mask
from medretrieval.segmentation.options import Tiles
from medretrieval.segmentation.prompts import Prompts, moved
from medretrieval.types import Support

WIDTH = 1.5  # cells of the decoder's grid that a structure is given across, at least
MOST = 5  # tiles along a side that "auto" takes; the time grows with the square
OVERLAP = 0.25  # part of a tile's side that it shares with the next
MARGIN = 0.25  # around the supports' structures, as a fraction of their extent
SMALLEST = 32  # a tile of fewer pixels along a side shows no more detail
_CERTAIN = 20.0


def look_in_tiles(
    again: Pass,
    images: Sequence[NDArray[np.uint8]],
    supports: Sequence[Sequence[Support]],
    first: Sequence[SliceSegmentation],
    tiles: Tiles,
    *,
    cells: int,
    prompts: Sequence[Mapping[str, Prompts] | None] | None = None,
) -> list[SliceSegmentation]:
    """Segment thin labels again in tiles of the part of the picture where the supports show them.

    Args:
        again: a pass over whole pictures; called once a label with all its tiles.
        images: (H, W) or (H, W, 3) uint8 each.
        supports: a support set for every picture.
        first: what was made of the pictures without tiles.
        tiles: tiles along a side, or "auto": as many as `tiles_for` says, label by label.
        cells: side of the decoder's output grid.
        prompts: for every picture its prompts, or None; a tile gets those that lie in it.

    Returns:
        Per picture the label map and logits; those of a label in tiles are the blended tiles', and
        outside of them as before. Other labels are as in `first`.
    """
    logits = [np.array(result.logits) for result in first]
    asked = [None] * len(images) if prompts is None else prompts
    names = sorted({name for result in first for name in result.names.values()})
    for name in names:
        todo = [
            (picture, boxes)
            for picture, result in enumerate(first)
            if (boxes := _boxes(name, images[picture], supports[picture], result, tiles, cells))
        ]
        if todo:
            places = [(picture, box) for picture, boxes in todo for box in boxes]
            parts = again(
                [crop(images[picture], box) for picture, box in places],
                [_parts(supports[picture], box) for picture, box in places],
                labels=[name],
                prompts=[
                    _own(asked[picture], name, images[picture], box) for picture, box in places
                ],
            )
            found = (part.logits[0].clip(-_CERTAIN, _CERTAIN) for part in parts)
            for picture, boxes in todo:
                row = logits[picture][list(first[picture].names.values()).index(name)]
                blend(row, [next(found) for _ in boxes], boxes)
    return [
        SliceSegmentation(
            mask=merge(changed, list(result.names)), logits=changed, names=result.names
        )
        for changed, result in zip(logits, first, strict=True)
    ]


def thickness(mask: NDArray[Any], box: Box, cells: int) -> float:
    """How wide the structure of a mask is, in cells of a grid laid over `box`.

    Four times the mean distance of its pixels to the outside: the width of a long strip, two
    thirds of the diameter of a disc.

    Args:
        mask: (H, W); what is not zero is the structure.
        cells: along each side of the grid.

    Returns:
        0 where the mask shows nothing in the box.
    """
    part = crop(mask, box) != 0
    if not part.any():
        return 0.0
    # Nothing beyond an edge narrows a structure that is cut off there.
    around = np.pad(part, 1, mode="edge")
    size = (cells / part.shape[0], cells / part.shape[1])
    distance = ndimage.distance_transform_edt(around, sampling=size)[1:-1, 1:-1]
    # The distance to the next pixel's centre; the border is half a pixel nearer.
    return float(max(4 * (distance[part].mean() - min(size) / 2), min(size)))


def tiles_for(widths: Sequence[float]) -> int:
    """How many tiles along a side give a structure `WIDTH` cells, `MOST` at most.

    Args:
        widths: `thickness` on the supports; those that do not show it (0) do not count.
    """
    shown = [width for width in widths if width > 0]
    if not shown:
        return 1
    width = max(float(np.median(shown)), WIDTH / MOST)
    return ceil(WIDTH / width - 1e-9)


def grid(count: int, inside: Box) -> tuple[Box, ...]:
    """`count` x `count` boxes of one size that cover `inside`; neighbours share `OVERLAP`."""
    side = 1 / (count - (count - 1) * OVERLAP)
    starts = [i * side * (1 - OVERLAP) for i in range(count)]
    return tuple(
        inside.part(Box(top, left, min(top + side, 1.0), min(left + side, 1.0)))
        for top, left in product(starts, starts)
    )


def blend(
    picture: NDArray[np.float32], parts: Sequence[NDArray[Any]], boxes: Sequence[Box]
) -> None:
    """Write the weighted mean of the parts over each other into `picture`, where there are any.

    Args:
        picture: (H, W) float32, changed in place.
        parts: (h, w) each, of the size that its box has in the picture.
        boxes: where the parts lie.
    """
    total = np.zeros(picture.shape, np.float64)
    weight = np.zeros(picture.shape, np.float64)
    for part, box in zip(parts, boxes, strict=True):
        rows, columns = box.pixels((picture.shape[0], picture.shape[1]))
        own = np.outer(_hat(part.shape[0]), _hat(part.shape[1]))
        total[rows, columns] += own * part
        weight[rows, columns] += own
    covered = weight > 0
    picture[covered] = total[covered] / weight[covered]


def _hat(length: int) -> NDArray[np.float64]:
    # A tile knows most about its middle: its weight falls off over what it shares with the next.
    to_edge = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return np.minimum(to_edge / (OVERLAP * length), 1.0)


def _boxes(
    name: str,
    image: NDArray[np.uint8],
    supports: Sequence[Support],
    result: SliceSegmentation,
    tiles: Tiles,
    cells: int,
) -> tuple[Box, ...]:
    """The tiles of one label of one picture; none where it is seen well enough without."""
    if name not in result.names.values():
        return ()
    masks = [mask for support in supports if (mask := name_mask(support, name)).any()]
    if not masks:
        return ()
    inside = box_around(masks, margin=MARGIN)
    rows, columns = inside.pixels((image.shape[0], image.shape[1]))
    shortest = min(rows.stop - rows.start, columns.stop - columns.start)
    wanted = tiles_for([thickness(m, inside, cells) for m in masks]) if tiles == "auto" else tiles
    count = min(wanted, shortest // SMALLEST)
    return grid(count, inside) if count > 1 else ()


def _parts(supports: Sequence[Support], box: Box) -> list[Support]:
    return [
        replace(support, image=crop(support.image, box), mask=crop(support.mask, box))
        for support in supports
    ]


def _own(
    prompts: Mapping[str, Prompts] | None, name: str, image: NDArray[np.uint8], box: Box
) -> dict[str, Prompts] | None:
    if not prompts or name not in prompts:
        return None
    return moved({name: prompts[name]}, *box.pixels((image.shape[0], image.shape[1])))
