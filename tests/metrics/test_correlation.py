"""Correlations against scipy, and where there are none."""

from __future__ import annotations

import numpy as np
import pytest

from medretrieval.errors import InputError
from medretrieval.metrics.correlation import pearson, spearman

X, Y = [0.9, 0.5, 0.5, 0.8, 0.1], [0.7, 0.6, 0.2, 0.65, 0.3]


def test_agree_with_scipy() -> None:
    # scipy 1.17.1: scipy.stats.spearmanr(X, Y).statistic, scipy.stats.pearsonr(X, Y).statistic
    assert spearman(X, Y) == pytest.approx(0.8207826816681234)
    assert pearson(X, Y) == pytest.approx(0.739170484155992)


def test_ranks_do_not_change_with_scale() -> None:
    assert spearman(np.exp(X), Y) == pytest.approx(spearman(X, Y))
    assert spearman(X, np.negative(X)) == pytest.approx(-1)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1.0], [2.0]), ([1, 1, 1], [1, 2, 3])])
def test_nothing_can_be_said(x: list[float], y: list[float]) -> None:
    assert np.isnan(pearson(x, y))
    assert np.isnan(spearman(x, y))


def test_refuses_lists_that_are_no_pairs() -> None:
    with pytest.raises(InputError, match="shapes"):
        pearson([1, 2], [1])
    with pytest.raises(InputError, match="NaN"):
        spearman([1, float("nan")], [1, 2])
