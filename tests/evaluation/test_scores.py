"""Scores of a volume, label by label."""

from __future__ import annotations

import numpy as np
import pytest

from medretrieval.evaluation.scores import score_volume
from medretrieval.types import Grid, LabelVolume

GRID = Grid(shape=(4, 4, 4), affine=np.diag([1.0, 1.0, 5.0, 1.0]))


def labels(names: dict[int, str], **planes: int) -> LabelVolume:
    """A label map with half of slice z of a value: z1=2 is value 2 on slice 1."""
    voxels = np.zeros(GRID.shape, np.uint8)
    for plane, value in planes.items():
        voxels[:2, :, int(plane[1:])] = value
    return LabelVolume(voxels=voxels, grid=GRID, names=names)


def test_labels_are_matched_by_name_and_all_slices_count() -> None:
    truth = labels({}, z1=3, z2=3)
    found = labels({7: "core"}, z1=7, z3=7)
    score = score_volume(found, truth, {3: "core"}, axis=2, indices=range(4))["core"]
    assert score.dice == pytest.approx(0.5)
    assert score.slice_dice == pytest.approx(0.5)  # slice 1: 1, slice 2: 0; slice 3 is not shown
    assert score.hd95 == pytest.approx(5)


def test_only_the_slices_that_were_segmented_count() -> None:
    truth, found = labels({}, z0=1, z1=1, z2=1), labels({1: "core"}, z0=1, z2=1)
    score = score_volume(found, truth, {1: "core"}, axis=2, indices=[0, 2])["core"]
    assert (score.dice, score.slice_dice, score.hd95) == (1, 1, 0)


def test_absent_structures() -> None:
    nothing = labels({})
    absent = score_volume(nothing, nothing, {1: "core"}, axis=2, indices=range(4))["core"]
    assert (absent.dice, absent.slice_dice, absent.hd95) == (1, None, 0)
    missed = score_volume(nothing, labels({}, z1=1), {1: "core"}, axis=2, indices=range(4))["core"]
    assert (missed.dice, missed.slice_dice) == (0, 0)
    assert missed.hd95 == pytest.approx(np.linalg.norm([4, 4, 20]))
