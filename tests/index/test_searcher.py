"""Neighbours against a plain matrix product, with ties, filters and too few rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medretrieval.errors import InputError, UsageError
from medretrieval.index import searcher as searcher_module
from medretrieval.index.faiss_files import build_faiss
from medretrieval.index.kinds import KINDS, resolve_parameters
from medretrieval.index.searcher import Searcher


def unit(array: np.ndarray) -> np.ndarray:
    return (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)


def searcher(embeddings: np.ndarray, kind: str = "flat", **parameters: int) -> Searcher:
    full = resolve_parameters(kind, parameters, rows=len(embeddings), dim=embeddings.shape[1])
    index = build_faiss(embeddings, kind, full)
    return Searcher(embeddings=embeddings, kind=kind, parameters=full, index=index)


def by_hand(
    embeddings: np.ndarray, queries: np.ndarray, k: int, rows: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines in float64, sorted by falling score and then row id."""
    q = queries.astype(np.float64)
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    cosines = np.stack([[(e * p).sum() for e in embeddings.astype(np.float64)] for p in q])
    cosines = np.minimum(cosines, 1).astype(np.float32)
    allowed = np.arange(len(embeddings)) if rows is None else np.flatnonzero(rows)
    scores = np.full((len(q), k), -np.inf, np.float32)
    ids = np.full((len(q), k), -1, np.int64)
    for number in range(len(q)):
        order = sorted(allowed, key=lambda row: (-cosines[number, row], row))[:k]
        ids[number, : len(order)] = order
        scores[number, : len(order)] = cosines[number, order]
    return scores, ids


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 60),
    distinct=st.integers(1, 60),
    m=st.integers(1, 30),
    k=st.integers(1, 70),
    share=st.sampled_from([None, 0.0, 0.1, 0.5, 1.0]),
    few=st.sampled_from([0, 1000]),
    kind=st.sampled_from(sorted(KINDS)),
)
def test_neighbours_are_the_best_with_ties_by_row(
    seed: int, n: int, distinct: int, m: int, k: int, share: float | None, few: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    base = unit(rng.standard_normal((min(distinct, n), 5)))
    if KINDS[kind].exact:
        embeddings = base[rng.integers(0, len(base), n)]  # repeated rows: ties
    else:
        embeddings = base  # of more equal rows than it looks at, an approximate kind may take any
    queries = np.concatenate([base[:1], rng.standard_normal((m, 5)) * 7])
    rows = None if share is None else rng.random(len(embeddings)) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searcher_module, "_FEW_EXCLUDED", few)
        patch.setattr(searcher_module, "_BLOCK_BYTES", 7 * 4 * 5)
        scores, ids = searcher(embeddings, kind).neighbours(queries, k, rows)
    wanted_scores, wanted_ids = by_hand(embeddings, queries, k, rows)
    assert scores.dtype == np.float32
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_allclose(scores, wanted_scores, atol=1e-7)


def test_result_does_not_depend_on_the_other_queries() -> None:
    rng = np.random.default_rng(0)
    found = searcher(unit(rng.standard_normal((3000, 64))))
    queries = rng.standard_normal((50, 64))
    scores, ids = found.neighbours(queries, 9)
    for number in range(50):
        alone = found.neighbours(queries[number : number + 1], 9)
        np.testing.assert_array_equal(alone[0][0], scores[number])
        np.testing.assert_array_equal(alone[1][0], ids[number])


def test_thousands_of_equal_rows_are_ordered_by_row() -> None:
    found = searcher(np.tile(unit(np.ones((1, 96))), (3000, 1)))
    for m in (1, 25):  # FAISS takes another kernel from 20 queries on
        _, ids = found.neighbours(np.ones((m, 96)), 5)
        np.testing.assert_array_equal(ids, np.tile(np.arange(5), (m, 1)))


def test_permutation_of_rows_permutes_the_result() -> None:
    rng = np.random.default_rng(1)
    embeddings = unit(rng.standard_normal((500, 16)))
    order = rng.permutation(500)
    queries = rng.standard_normal((20, 16))
    scores, ids = searcher(embeddings).neighbours(queries, 10)
    shuffled_scores, shuffled_ids = searcher(embeddings[order]).neighbours(queries, 10)
    np.testing.assert_array_equal(order[shuffled_ids], ids)
    np.testing.assert_array_equal(shuffled_scores, scores)


@pytest.mark.parametrize(
    ("queries", "error"),
    [
        (np.ones((2, 3)), "expected \\(number, 4\\)"),
        (np.ones(4), "expected \\(number, 4\\)"),
        (np.zeros((1, 4)), "zero or not finite"),
        (np.array([[np.nan, 0, 0, 1]]), "zero or not finite"),
    ],
)
def test_queries_without_a_cosine_are_refused(queries: np.ndarray, error: str) -> None:
    with pytest.raises(InputError, match=error):
        searcher(unit(np.eye(4))).neighbours(queries, 1)


@pytest.mark.parametrize(
    ("k", "rows", "error"),
    [
        (0, None, "k is 0"),
        (1, np.array([True]), "shape"),
        (1, np.array([4]), r"outside 0\.\.3"),
        (1, np.array([-1]), r"outside 0\.\.3"),
        (1, np.array([0.5]), r"outside 0\.\.3"),
    ],
)
def test_wrong_requests_are_refused(k: int, rows: Any, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        searcher(unit(np.eye(4))).neighbours(np.eye(1, 4), k, rows)


def test_no_queries_and_no_rows_are_empty_results() -> None:
    found = searcher(unit(np.eye(4)))
    assert found.neighbours(np.empty((0, 4)), 3)[0].shape == (0, 3)
    scores, ids = found.neighbours(np.eye(2, 4), 3, np.empty(0, np.int64))
    assert (ids == -1).all()
    assert np.isneginf(scores).all()
