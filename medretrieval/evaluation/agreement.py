"""Does the agreement of masks made without each support tell how good a mask is?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from medretrieval.metrics.correlation import pearson, spearman
from medretrieval.metrics.segmentation import dice
from medretrieval.segmentation.options import OptionChanges
from medretrieval.segmentation.uncertainty import leave_one_out
from medretrieval.types import Slice, Support

if TYPE_CHECKING:
    from medretrieval.segmentation.members import BatchSegmenter


def agreement_pairs(
    segmenter: BatchSegmenter,
    pieces: Sequence[Slice],
    supports: Sequence[Sequence[Support]],
    labels: Mapping[int, str],
    **changes: Unpack[OptionChanges],
) -> list[dict[str, Any]]:
    """Agreement and Dice of every label that was found on a slice, with all or without a support.

    Args:
        pieces: slices with their true masks.
        supports: of each slice; slices with fewer than two, or without any label, are left out.
        labels: value in the true masks -> name.
        **changes: as for `Segmenter.segment`.

    Returns:
        {"slice", "label", "agreement", "dice"}, one for each slice and label.
    """
    pairs = []
    for piece, own in zip(pieces, supports, strict=True):
        if piece.mask is None or len(own) < 2 or not any(s.names for s in own):
            continue
        agreed = leave_one_out(segmenter, piece.image, own, **changes)
        value_of = {name: value for value, name in agreed.names.items()}
        for value, label in labels.items():
            score = agreed.scores.get(label, float("nan"))
            if isnan(score):
                continue
            found = agreed.result.mask == value_of[label]
            overlap = dice(found, piece.mask == value)
            pairs.append(
                {
                    "slice": piece.index,
                    "label": label,
                    "agreement": round(score, 4),
                    "dice": round(overlap, 4),
                }
            )
    return pairs


def correlations(pairs: Sequence[Mapping[str, Any]]) -> dict[str, float | int | None]:
    """Pearson's and Spearman's correlation of agreement and Dice; None where there is none."""
    agreement = np.array([pair["agreement"] for pair in pairs])
    overlap = np.array([pair["dice"] for pair in pairs])
    found = {"pearson": pearson(agreement, overlap), "spearman": spearman(agreement, overlap)}
    rounded = {name: None if isnan(v) else round(v, 3) for name, v in found.items()}
    return {"n": len(pairs), **rounded}
