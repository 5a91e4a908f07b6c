from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medretrieval.errors import InputError
from medretrieval.metrics.segmentation import dice, dice_per_label

label_maps = arrays(np.uint8, (3, 4, 2), elements=st.integers(0, 3))


def test_dice_by_hand() -> None:
    # |A| = 3, |B| = 2, |A n B| = 1: 2 * 1 / (3 + 2), on paper.
    predicted = np.array([[1, 1, 0], [1, 0, 0]])
    truth = np.array([[0, 1, 1], [0, 0, 0]])
    assert dice(predicted, truth) == pytest.approx(0.4)


def test_empty_cases_of_dice() -> None:
    empty, full = np.zeros((2, 2), dtype=bool), np.ones((2, 2), dtype=bool)
    assert dice(empty, empty) == 1.0
    assert dice(empty, full) == 0.0
    assert dice(full, empty) == 0.0
    assert dice(np.empty((0,)), np.empty((0,))) == 1.0


@given(label_maps, label_maps)
def test_dice_equals_sets_of_voxels(predicted, truth) -> None:
    scores = dice_per_label(predicted, truth, labels=[1, 2, 3])
    for label, score in scores.items():
        a = {tuple(p) for p in np.argwhere(predicted == label).tolist()}
        b = {tuple(p) for p in np.argwhere(truth == label).tolist()}
        expected = 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0
        assert score == expected == dice(predicted == label, truth == label)


@given(label_maps, label_maps)
def test_dice_is_symmetric_and_one_for_equal_maps(predicted, truth) -> None:
    assert dice_per_label(predicted, truth) == dice_per_label(truth, predicted)
    assert set(dice_per_label(truth, truth).values()) <= {1.0}


def test_labels_default_to_those_that_occur_in_either_map() -> None:
    predicted, truth = np.array([0, 5, 5, 0]), np.array([0, 5, 0, 2])
    assert dice_per_label(predicted, truth) == {2: 0.0, 5: pytest.approx(2 / 3)}
    assert dice_per_label(predicted, truth, labels=[9, 5]) == {9: 1.0, 5: pytest.approx(2 / 3)}
    assert dice_per_label(np.zeros(3, dtype=int), np.zeros(3, dtype=int)) == {}


def test_dice_of_a_label_map_of_another_integer_type() -> None:
    assert dice_per_label(np.array([300], np.uint16), np.array([300], np.int64)) == {300: 1.0}


@pytest.mark.parametrize("measure", [dice, dice_per_label])
def test_shapes_must_agree(measure) -> None:
    with pytest.raises(InputError, match=r"shape \(2, 3\), the true one \(3, 2\)"):
        measure(np.zeros((2, 3), int), np.zeros((3, 2), int))


@pytest.mark.parametrize("bad", [np.array([0.5]), np.array([-1])])
def test_label_maps_hold_integers_from_zero(bad) -> None:
    with pytest.raises(InputError, match="integers >= 0"):
        dice_per_label(bad, np.array([1]))
