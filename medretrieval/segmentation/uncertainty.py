"""How far a mask depends on single supports: it is made again without each of them in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import UsageError
from medretrieval.metrics.segmentation import dice
from medretrieval.segmentation.labels import SliceSegmentation
from medretrieval.segmentation.options import OptionChanges
from medretrieval.types import Progress, Support, no_progress

if TYPE_CHECKING:
    from medretrieval.segmentation.members import BatchSegmenter


def _stack(maps: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    return np.stack(maps).astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False, kw_only=True)
class Agreement:
    """How well the masks of all supports but one agree with the mask of all.

    Attributes:
        result: what all supports together give.
        names: value -> name of the L labels, as in `result`.
        maps: (L, H, W) float32, 0..1: the share of the masks made without one support that say of
            a pixel what the mask of all says.
        scores: per label the mean Dice (0..1) of those masks with the mask of all; nan where none
            of them shows the label at all, so that there is nothing to agree about.
    """

    result: SliceSegmentation
    names: Mapping[int, str]
    maps: NDArray[np.float32]
    scores: Mapping[str, float]

    def each(self, turned: Callable[[NDArray[Any]], NDArray[Any]]) -> Agreement:
        """The same with every map (H, W) changed alike, such as turned."""
        logits = [turned(logit) for logit in self.result.logits]
        result = replace(self.result, mask=turned(self.result.mask), logits=_stack(logits))
        maps = _stack([turned(one) for one in self.maps])
        return replace(self, result=result, maps=maps)

    def to_json(self) -> dict[str, float | None]:
        """The score of each label; None where there is nothing to agree about."""
        return {
            name: None if isnan(score) else round(score, 4) for name, score in self.scores.items()
        }

    def overall(self) -> NDArray[np.float32]:
        """(H, W) the lowest agreement of any label, pixel by pixel; 1 without labels."""
        lowest: NDArray[np.float32] = self.maps.min(axis=0, initial=1.0)
        return lowest


def leave_one_out(
    segmenter: BatchSegmenter,
    image: NDArray[np.uint8],
    supports: Sequence[Support],
    *,
    labels: Sequence[str] | None = None,
    progress: Progress = no_progress,
    **changes: Unpack[OptionChanges],
) -> Agreement:
    """Segment a picture from all K supports, and from all but each of them.

    The jackknife over supports: what one case alone decides is uncertain. Every pass is what
    `segment` would do with those supports, crop and closer look included. Where pictures are shown
    whole (crop "none" or "body", no closer look) it costs one encoding of each picture and K + 1
    passes of memory attention and decoder; crops that change with the supports are encoded anew.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        supports: K >= 2 annotated slices.
        labels, **changes: as for `Segmenter.segment`.
        progress: told after every pass.

    Raises:
        UsageError: fewer than two supports, and what `Segmenter.segment` raises.
        InputError: as for `Segmenter.segment`.
    """
    if len(supports) < 2:
        raise UsageError(
            f"agreement needs at least 2 supports, {len(supports)} given; add annotated slices"
        )
    whole = segmenter.segment_batch([image], [supports], labels=labels, **changes)[0]
    names = dict(whole.names)
    without = []
    for k in range(len(supports)):
        rest = [*supports[:k], *supports[k + 1 :]]
        without.append(_masks(segmenter, image, rest, whole, changes))
        progress(k + 1, len(supports), "leaving one support out")
    values = np.array(list(names), whole.mask.dtype).reshape(-1, 1, 1)
    full = whole.mask[None] == values
    stack = np.stack(without)  # (K, L, H, W)
    scores = {}
    for row, name in enumerate(names.values()):
        shown = full[row].any() or stack[:, row].any()
        each = [dice(mask, full[row]) for mask in stack[:, row]]
        scores[name] = float(np.mean(each)) if shown else float("nan")
    maps = (stack == full).mean(axis=0, dtype=np.float32)
    return Agreement(result=whole, names=names, maps=maps, scores=scores)


def _masks(
    segmenter: BatchSegmenter,
    image: NDArray[np.uint8],
    supports: Sequence[Support],
    whole: SliceSegmentation,
    changes: OptionChanges,
) -> NDArray[np.bool_]:
    """(L, H, W) what `supports` alone give, one mask for each label of `whole`."""
    known = {name for s in supports for value, name in s.names.items() if value != 0}
    wanted = [name for name in whole.names.values() if name in known]
    found = np.zeros((len(whole.names), *whole.mask.shape), np.bool_)
    if wanted:
        one = segmenter.segment_batch([image], [supports], labels=wanted, **changes)[0]
        value_of = {name: value for value, name in one.names.items()}
        for row, name in enumerate(whole.names.values()):
            if name in value_of:
                found[row] = one.mask == value_of[name]
    return found
