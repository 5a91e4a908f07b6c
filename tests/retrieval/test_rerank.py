from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medretrieval.retrieval.rerank import (
    LOCALIZED_SLICES,
    localization_ratio,
    localize,
    rank_score,
    slice_maxima,
)

similarities = st.tuples(st.integers(1, 6), st.integers(1, 30)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-4, 4).map(lambda i: i / 4))
)


@given(similarities)
def test_rank_score_is_equation_5(similar) -> None:
    n, m = similar.shape
    expected = 0.0
    for i in range(n):
        expected += max(similar[i, j] for j in range(m))
    assert rank_score(similar) == expected


@given(similarities, st.integers(1, 40))
def test_localize_is_equation_6(similar, top: int) -> None:
    n, m = similar.shape
    maxima = [max(similar[i, j] for i in range(n)) for j in range(m)]
    assert slice_maxima(similar).tolist() == maxima
    expected = sorted(range(m), key=lambda j: (-maxima[j], j))[: min(top, m)]
    assert localize(similar, top=top).tolist() == expected


def test_localize_takes_15_slices_as_in_the_paper() -> None:
    similar = np.linspace(0, 1, 40)[None]
    assert LOCALIZED_SLICES == 15
    assert localize(similar).tolist() == list(range(39, 24, -1))
    assert localize(similar[:, :4]).tolist() == [3, 2, 1, 0]


def test_localization_ratio_is_equation_7() -> None:
    # The worked example of TS-CBIR, 2.4.3 (eq. 2): 12 of 48 slices show the region.
    assert localization_ratio([True] * 12 + [False] * 36) == 0.25
    assert localization_ratio(np.array([True, True, True])) == 1.0
    assert localization_ratio([]) == pytest.approx(0.0)
