"""One support set for a whole volume."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medretrieval.support_sets import covering

COSINES = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 6)),
    elements=st.integers(-10, 10).map(lambda tenths: tenths / 10),
)


def covered(similar: np.ndarray, columns: list[int]) -> float:
    return float(similar[:, columns].max(axis=1).sum())


@given(similar=COSINES, k=st.integers(1, 7))
def test_a_cover_is_nearly_the_best_one(similar: np.ndarray, k: int) -> None:
    chosen = covering(similar, k)
    assert len(set(chosen)) == len(chosen) == min(k, similar.shape[1])
    best = max(
        covered(similar, list(columns))
        for columns in itertools.combinations(range(similar.shape[1]), len(chosen))
    )
    # The bound of the greedy choice is on sums that start at 0, these start at -1.
    offset = len(similar)
    assert covered(similar, chosen) + offset >= (1 - 1 / np.e) * (best + offset) - 1e-9


def test_every_slice_gets_its_own_before_any_gets_a_second() -> None:
    similar = np.array([[0.9, 0.89, 0.88, 0.1], [0.1, 0.1, 0.1, 0.5]])
    assert covering(similar, 2) == [0, 3]
    assert covering(similar, 3) == [0, 3, 1]
    assert covering(similar, 9) == [0, 3, 1, 2]


def test_one_candidate_in_the_middle_beats_two_at_the_ends() -> None:
    similar = np.array([[1.0, 0.8, 0.0], [0.5, 0.9, 0.5], [0.0, 0.8, 1.0]])
    assert covering(similar, 1) == [1]


@pytest.mark.parametrize("k", [1, 3])
def test_the_order_of_the_slices_does_not_count(k: int) -> None:
    similar = np.random.default_rng(0).uniform(-1, 1, (5, 8))
    assert covering(similar, k) == covering(similar[::-1], k)
