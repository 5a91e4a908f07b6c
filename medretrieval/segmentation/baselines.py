"""What a segmenter has to beat: masks copied from the supports without looking at the query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import UsageError
from medretrieval.imaging.slices import resize_nearest
from medretrieval.segmentation.labels import (
    SliceSegmentation,
    check_support,
    chosen,
    merge,
    name_mask,
    vocabulary,
)
from medretrieval.segmentation.options import OptionChanges
from medretrieval.segmentation.prompts import Prompts
from medretrieval.types import Progress, Support, no_progress


class MaskCopy:
    """Segments by the masks of the supports alone.

    "nearest-mask" copies the mask of the first (most similar) support; "mean-mask" averages the
    masks of all of them and keeps what at least half of them share. Masks are stretched to the
    size of the query.
    """

    NAMES = ("nearest-mask", "mean-mask")

    def __init__(self, name: str) -> None:
        if name not in self.NAMES:
            raise UsageError(f"unknown baseline {name!r}; known: {', '.join(self.NAMES)}")
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def segment_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        supports: Sequence[Sequence[Support]],
        *,
        labels: Sequence[str] | None = None,
        prompts: Sequence[Mapping[str, Prompts] | None] | None = None,
        progress: Progress = no_progress,
        **changes: Unpack[OptionChanges],
    ) -> list[SliceSegmentation]:
        """As `Segmenter.segment_batch`; the options of a network have no effect.

        The "logits" are the share of supports that show the label at a pixel, less a half.

        Raises:
            UsageError: no supports, or prompts, which a copy of masks cannot follow.
        """
        if any(prompts or ()):
            raise UsageError(f"{self.name} copies masks and cannot follow points or boxes")
        results = []
        for image, support_set in zip(images, supports, strict=True):
            results.append(self._segment(image, support_set, labels))
            progress(len(results), len(images), "segmenting")
        return results

    def _segment(
        self, image: NDArray[Any], supports: Sequence[Support], labels: Sequence[str] | None
    ) -> SliceSegmentation:
        if not supports:
            raise UsageError("the support set is empty; give at least one annotated slice")
        for support in supports:
            check_support(support)
        names = chosen(vocabulary(s.names for s in supports), labels)
        used = supports[:1] if self._name == "nearest-mask" else supports
        shape = (image.shape[0], image.shape[1])
        logits = np.empty((len(names), *shape), np.float32)
        for row, name in enumerate(names.values()):
            masks = [resize_nearest(name_mask(s, name), shape) for s in used]
            # A tie counts as inside: half of the supports are enough.
            logits[row] = np.mean(masks, axis=0) - 0.5 + 1e-6
        return SliceSegmentation(mask=merge(logits, list(names)), logits=logits, names=names)
