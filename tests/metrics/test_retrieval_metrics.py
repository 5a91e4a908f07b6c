from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medretrieval.errors import UsageError
from medretrieval.metrics.retrieval import hit_at_k, hit_rate, precision_at_k, recall_at_k

# Manning, Raghavan, Schuetze, Introduction to Information Retrieval (2008), exercise 8.8, system 1;
# four relevant documents in the collection. The values below are counted by hand.
RANKING = [c == "R" for c in "RNRNNNNNRR"]


@pytest.mark.parametrize(
    ("k", "precision", "recall"), [(1, 1, 0.25), (3, 2 / 3, 0.5), (10, 0.4, 1)]
)
def test_known_ranking(k: int, precision: float, recall: float) -> None:
    assert precision_at_k(RANKING, k) == pytest.approx(precision)
    assert recall_at_k(RANKING, k, total=4) == pytest.approx(recall)


def test_fewer_than_k_results_count_as_irrelevant() -> None:
    assert precision_at_k([True], 5) == 0.2
    assert recall_at_k([True], 5, total=1) == 1.0


def test_empty_cases() -> None:
    assert precision_at_k([], 3) == 0.0
    assert recall_at_k([], 3, total=2) == 0.0
    assert recall_at_k([False], 3, total=0) == 0.0
    assert hit_at_k([], 3) == 0.0
    assert hit_rate([], 3) == 0.0


def test_a_query_without_results_stays_in_the_mean() -> None:
    assert hit_rate([[True], [], [False, True], [False]], k=1) == 0.25
    assert hit_rate([[True], [], [False, True], [False]], k=2) == 0.5


@given(st.lists(st.booleans(), max_size=8), st.integers(1, 10))
def test_hit_is_whether_precision_is_positive(relevant: list[bool], k: int) -> None:
    assert hit_at_k(relevant, k) == float(precision_at_k(relevant, k) > 0)


@pytest.mark.parametrize("k", [0, -1])
def test_k_is_at_least_one(k: int) -> None:
    for measure in (precision_at_k, hit_at_k):
        with pytest.raises(UsageError, match="at least 1"):
            measure([True], k)
    with pytest.raises(UsageError, match="at least 1"):
        recall_at_k([True], k, total=1)
    with pytest.raises(UsageError, match="at least 1"):
        hit_rate([], k)


def test_total_covers_what_was_found() -> None:
    with pytest.raises(UsageError, match="2 relevant items were retrieved"):
        recall_at_k([True, True], 2, total=1)
