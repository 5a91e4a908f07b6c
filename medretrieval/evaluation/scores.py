"""Scores of one segmented volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medretrieval.metrics.segmentation import dice
from medretrieval.metrics.surface import hd95
from medretrieval.types import LabelVolume


@dataclass(frozen=True, kw_only=True)
class LabelScores:
    """How one structure of one volume was found.

    Attributes:
        dice: 3-D, over all slices that were segmented, also those without the structure.
        slice_dice: mean of the 2-D Dice of the slices that truly show it; None where none does.
        hd95: in mm, in pixels where the spacing is unknown; see `metrics.surface.hd95`.
    """

    dice: float
    slice_dice: float | None
    hd95: float


def score_volume(
    found: LabelVolume,
    truth: LabelVolume,
    labels: Mapping[int, str],
    *,
    axis: int,
    indices: Sequence[int],
) -> dict[str, LabelScores]:
    """Compare a label map with the truth, label by label.

    Args:
        found: its names say what its values mean.
        truth: on the same grid, with the values of `labels`.
        labels: value in `truth` -> name of the structures to score.
        axis: stored axis that slices are taken across.
        indices: the slices that were segmented, equally far apart; others do not count.
    """
    value_of = {name: value for value, name in found.names.items()}
    predicted = np.moveaxis(found.voxels, axis, 0)[list(indices)]
    true = np.moveaxis(truth.voxels, axis, 0)[list(indices)]
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    spacing = list(found.grid.spacing)
    spacing = [spacing.pop(axis) * step, *spacing]
    if not found.grid.spacing_known:
        spacing = [1.0, 1.0, 1.0]
    scores = {}
    for value, name in labels.items():
        a = predicted == value_of[name] if name in value_of else np.zeros(true.shape, np.bool_)
        b = true == value
        shown = np.flatnonzero(b.any(axis=(1, 2)))
        scores[name] = LabelScores(
            dice=dice(a, b),
            slice_dice=float(np.mean([dice(a[i], b[i]) for i in shown])) if len(shown) else None,
            hd95=hd95(a, b, spacing),
        )
    return scores
