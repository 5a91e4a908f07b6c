"""Bootstrap intervals against scipy and against all possible draws."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medretrieval.errors import InputError
from medretrieval.metrics.intervals import bootstrap_interval

VALUES = [0.31, 0.52, 0.47, 0.66, 0.58, 0.72, 0.40, 0.61]


def test_agrees_with_scipy() -> None:
    # scipy 1.17.1: bootstrap((VALUES,), np.mean, n_resamples=200000, method="percentile",
    # rng=np.random.default_rng(1)).confidence_interval
    low, high = bootstrap_interval(VALUES, samples=200_000)
    assert (low, high) == pytest.approx((0.44375, 0.61875), abs=0.002)


def test_draws_patients_with_all_their_values() -> None:
    values, patients = [0.1, 0.3, 0.8, 0.5], ["a", "a", "b", "c"]
    sums, counts = {"a": 0.4, "b": 0.8, "c": 0.5}, {"a": 2, "b": 1, "c": 1}
    draws = list(product("abc", repeat=3))
    means = [sum(sums[p] for p in d) / sum(counts[p] for p in d) for d in draws]
    ends = np.quantile(np.repeat(means, 2000), [0.25, 0.75])
    found = bootstrap_interval(values, patients, confidence=0.5, samples=100_000)
    assert found == pytest.approx(tuple(ends), abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.integers(0, 5))
def test_lies_within_the_values_and_repeats(values: list[float], seed: int) -> None:
    low, high = bootstrap_interval(values, samples=200, seed=seed)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert (low, high) == bootstrap_interval(values, samples=200, seed=seed)


def test_one_patient_has_no_interval() -> None:
    assert np.isnan(bootstrap_interval([0.2, 0.9], ["a", "a"])).all()


@pytest.mark.parametrize("values", [[], [0.1, float("nan")], [[0.1]]])
def test_refuses_what_has_no_mean(values: list[float]) -> None:
    with pytest.raises(InputError, match="finite"):
        bootstrap_interval(values)


def test_refuses_groups_of_another_number() -> None:
    with pytest.raises(InputError, match="groups"):
        bootstrap_interval([0.1, 0.2], ["a"])
