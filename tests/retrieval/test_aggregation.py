from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medretrieval.errors import UsageError
from medretrieval.retrieval.aggregation import DEFAULT_SIGMA, gaussian_weights, hit_table


@given(st.integers(1, 400), st.floats(0.01, 5))
def test_weights_are_symmetric_and_fall_from_the_middle(count: int, sigma: float) -> None:
    weights = gaussian_weights(np.arange(count), count, sigma=sigma)
    assert (weights == weights[::-1]).all()
    assert (np.diff(weights[: (count + 1) // 2]) >= 0).all()
    assert weights.max() <= 1
    if count % 2:
        assert weights[count // 2] == 1


def test_default_width() -> None:
    """As documented: the ends near exp(-2), the middle half at least exp(-1/2)."""
    weights = gaussian_weights(np.arange(1000), 1000)
    assert DEFAULT_SIGMA == 0.25
    assert weights[0] == pytest.approx(math.exp(-2), rel=0.01)
    assert weights[250:750].min() == pytest.approx(math.exp(-0.5), rel=0.01)


def test_the_only_slice_has_full_weight() -> None:
    assert gaussian_weights([0], 1).tolist() == [1.0]


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_sigma_is_positive(sigma: float) -> None:
    with pytest.raises(UsageError, match="expected a positive fraction"):
        gaussian_weights([0], 1, sigma=sigma)


def test_hit_table_breaks_ties_by_total_then_by_number() -> None:
    volume = np.array([3, 1, 1, 3, 2, 0, -1])
    score = np.array([0.5, 0.9, 0.2, 0.7, 0.4, 0.4, -np.inf])
    table = hit_table(volume, score, np.ones(7))
    assert [row.volume for row in table] == [3, 1, 0, 2]
    assert [row.hits for row in table] == [2, 2, 1, 1]
    assert [row.total for row in table] == pytest.approx([1.2, 1.1, 0.4, 0.4])


def test_hit_table_by_another_score_breaks_ties_by_number() -> None:
    volume = np.array([3, 1, 1, 3, 2, 0])
    score = np.array([0.5, 0.9, 0.2, 0.7, 0.9, -0.4])
    best = hit_table(volume, score, np.ones(6), by=lambda row: row.best)
    assert [(row.volume, row.best) for row in best] == [(1, 0.9), (2, 0.9), (3, 0.7), (0, -0.4)]
    total = hit_table(volume, score, np.ones(6), by=lambda row: row.total)
    assert [row.volume for row in total] == [3, 1, 2, 0]


def test_hit_table_without_hits_is_empty() -> None:
    none = np.array([-1, -1])
    assert hit_table(none, np.full(2, -np.inf), np.ones(2)) == []


def test_sums_do_not_depend_on_the_order_of_the_votes() -> None:
    """0.1 + 0.2 + 0.3 differs from 0.3 + 0.2 + 0.1 in floating point; here it is a tie."""
    volume = np.array([5, 5, 5, 4, 4, 4])
    weight = np.array([0.1, 0.2, 0.3, 0.3, 0.2, 0.1])
    table = hit_table(volume, np.ones(6), weight)
    assert [row.volume for row in table] == [4, 5]
    assert table[0].hits == table[1].hits
