"""What of a query and of its supports the network is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medretrieval.imaging.body import body_box
from medretrieval.segmentation.crop import WHOLE, Box, box_around, crop
from medretrieval.segmentation.options import SegmentationOptions
from medretrieval.segmentation.prompts import Prompts, widened
from medretrieval.types import Support


def boxes(
    image: NDArray[np.uint8],
    supports: Sequence[Support],
    masks: Sequence[Mapping[str, NDArray[np.bool_]]],
    options: SegmentationOptions,
    prompts: Mapping[str, Prompts],
) -> tuple[Box, list[Box]]:
    """What of the query and of each support is shown, by `SegmentationOptions.crop`.

    What prompts say belongs to a label is shown too; of the supports then the same part.
    """
    shape = (image.shape[0], image.shape[1])
    if isinstance(options.crop, Box):
        box = widened(options.crop, prompts.values(), shape)
        return box, [box] * len(supports)
    bodily = options.crop in ("body", "body+supports")
    around = [
        body_part(picture) if bodily else WHOLE for picture in (image, *(s.image for s in supports))
    ]
    part = WHOLE
    if options.crop in ("supports", "body+supports"):
        every = (
            crop(mask, box)
            for row, box in zip(masks, around[1:], strict=True)
            for mask in row.values()
        )
        part = box_around(every, margin=options.crop_margin)
    query = widened(around[0].part(part), prompts.values(), shape)
    if query != around[0].part(part):
        part = around[0].relative(query)
    return query, [box.part(part) for box in around[1:]]


def body_part(picture: NDArray[np.uint8]) -> Box:
    """The part of a picture (H, W[, 3]) that shows the body, see `body_box`."""
    rows, columns = body_box(picture)
    height, width = picture.shape[:2]
    return Box(rows.start / height, columns.start / width, rows.stop / height, columns.stop / width)
