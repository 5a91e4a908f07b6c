"""The slices of a volume on their way through a segmenter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Unpack

import numpy as np
from numpy.typing import NDArray

from medretrieval.segmentation.labels import SliceSegmentation
from medretrieval.segmentation.options import OptionChanges
from medretrieval.segmentation.prompts import Prompts
from medretrieval.types import Progress, Slice, Support, no_progress


class BatchSegmenter(Protocol):
    """What segments slices: a `Segmenter`, a baseline, or a stand-in for them.

    `prompts` are passed only where there are some.
    """

    @property
    def name(self) -> str: ...

    def segment_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        supports: Sequence[Sequence[Support]],
        *,
        labels: Sequence[str] | None = None,
        prompts: Sequence[Mapping[str, Prompts] | None] | None = None,
        progress: Progress = no_progress,
        **changes: Unpack[OptionChanges],
    ) -> list[SliceSegmentation]: ...


@dataclass(frozen=True, eq=False)
class Member:
    """One slice of a volume, and what it is segmented by.

    Attributes:
        piece: the slice as the segmenter sees it.
        supports: those of this slice.
        prompts: points and boxes by label, in pixels of `piece.image`.
    """

    piece: Slice
    supports: Sequence[Support]
    prompts: Mapping[str, Prompts]

    @property
    def labels(self) -> set[str]:
        """Names of the labels that supports or prompts have."""
        shown = {name for s in self.supports for value, name in s.names.items() if value != 0}
        return shown | self.prompts.keys()


def segment_members(
    segmenter: BatchSegmenter,
    members: Sequence[Member],
    labels: Sequence[str] | None,
    progress: Progress,
    changes: OptionChanges,
) -> list[SliceSegmentation]:
    """Segment slices at once.

    Args:
        labels: as for `Segmenter.segment_batch`; prompts for others are left out.
    """
    images = [member.piece.image for member in members]
    supports = [member.supports for member in members]
    prompts = [
        {name: p for name, p in member.prompts.items() if labels is None or name in labels}
        for member in members
    ]
    if any(prompts):
        return segmenter.segment_batch(
            images, supports, labels=labels, prompts=prompts, progress=progress, **changes
        )
    return segmenter.segment_batch(images, supports, labels=labels, progress=progress, **changes)
