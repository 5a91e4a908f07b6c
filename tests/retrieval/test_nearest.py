from __future__ import annotations

import numpy as np
import pytest

from medretrieval.retrieval import nearest as module
from medretrieval.retrieval.nearest import nearest
from medretrieval.similarity import normalise


def test_a_long_tie_is_followed_to_its_end(make_store) -> None:
    """40 equal slices, the first in rank stored last: it is found although only 9 are fetched."""
    store = make_store({"a": [[1.0, 0.0]] * 40 + [[0.0, 1.0]] * 20})
    tie_rank = np.arange(60)[::-1].copy()
    scores, rows = nearest(
        normalise([[1.0, 0.0]]),
        1,
        neighbours=store.neighbours,
        embeddings=store.embeddings,
        tie_rank=tie_rank,
    )
    assert rows.tolist() == [[39]]
    assert scores.tolist() == [[1.0]]
    assert store.asked == [9, 36, 60]


def test_following_a_tie_is_bounded(make_store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEPTH", 20)
    store = make_store({"a": [[1.0, 0.0]] * 50})
    _, rows = nearest(
        normalise([[1.0, 0.0]]),
        1,
        neighbours=store.neighbours,
        embeddings=store.embeddings,
        tie_rank=np.arange(50)[::-1].copy(),
    )
    assert rows.tolist() == [[19]]
    assert store.asked == [9, 20]


def test_only_queries_with_open_ties_are_asked_again(make_store) -> None:
    store = make_store({"a": [[1.0, 0.0]] * 12 + [[0.0, 1.0]]})
    asked = []
    search = store.neighbours

    def counted(queries, k, rows=None):
        asked.append(len(queries))
        return search(queries, k, rows)

    _, rows = nearest(
        normalise([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]),
        1,
        neighbours=counted,
        embeddings=store.embeddings,
        tie_rank=np.arange(13),
    )
    assert rows[:, 0].tolist() == [0, 12, 12]
    assert asked == [3, 1]


def test_scores_do_not_carry_the_errors_of_the_index(make_store) -> None:
    """Two equal slices that an index scores differently are still a tie."""
    store = make_store({"a": [[0.6, 0.8], [1.0, 0.0], [0.6, 0.8]]})

    def noisy(queries, k, rows=None):
        return (
            np.array([[1.0, 0.9999999, 0.6]], dtype=np.float32)[:, :k],
            np.array([[2, 0, 1]], dtype=np.int64)[:, :k],
        )

    scores, rows = nearest(
        normalise([[0.6, 0.8]]),
        3,
        neighbours=noisy,
        embeddings=store.embeddings,
        tie_rank=np.arange(3),
    )
    assert rows.tolist() == [[0, 2, 1]]
    assert scores.tolist() == [[1.0, 1.0, 0.6]]


def test_a_score_is_the_same_with_however_many_others_it_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    rows, query = normalise(rng.normal(size=(40, 33))), normalise(rng.normal(size=(7, 33)))
    found = np.argsort(rng.random((7, 40)), axis=1)
    found[2, 30:] = -1
    together = module._score_again(query, found, rows)
    monkeypatch.setattr(module, "PAIRS", 3)
    assert (module._score_again(query, found, rows) == together).all()
    assert (module._score_again(query[4:5], found[4:5, 7:8], rows) == together[4:5, 7:8]).all()
    assert np.isneginf(together[2, 30:]).all()
    assert np.isfinite(together).sum() == 7 * 40 - 10
