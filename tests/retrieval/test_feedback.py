"""Relevance feedback moves results the way they were judged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medretrieval.errors import UsageError
from medretrieval.retrieval.engine import Index
from medretrieval.retrieval.feedback import Feedback, apply, example_rows, move
from medretrieval.retrieval.query import from_arrays
from medretrieval.similarity import normalise

seeds = st.integers(0, 2**32 - 1)
weights = st.floats(0.05, 0.9)


def unit(seed: int, n: int, dim: int = 6) -> np.ndarray:
    return normalise(np.random.default_rng(seed).normal(size=(n, dim)))


def test_golden_by_hand() -> None:
    # q = x; liked y, unliked z: x + 0.75 y - 0.25 z, of length sqrt(1 + 0.5625 + 0.0625).
    x, y, z = np.eye(3, dtype=np.float32)
    moved = move(x[None], [y[None]], [z[None]])
    np.testing.assert_allclose(moved, np.array([[1, 0.75, -0.25]]) / np.sqrt(1.625), atol=1e-7)


def test_a_volume_counts_with_the_slice_most_similar_to_each_query_slice() -> None:
    x, y, z = np.eye(3, dtype=np.float32)
    volume = normalise([[1, 0.2, 0], [0, 1, 0.2]])
    moved = move(np.stack([x, y]), [volume], [], weight_like=1)
    np.testing.assert_allclose(moved, normalise([x + volume[0], y + volume[1]]), atol=1e-6)
    assert z @ moved[0] == 0


@given(seeds, st.integers(1, 4), weights)
def test_one_liked_example_comes_nearer_and_one_unliked_goes_away(
    seed: int, n: int, weight: float
) -> None:
    query, example = unit(seed, n), unit(seed + 1, 1)
    before = query @ example[0]
    nearer = move(query, [example], [], weight_like=weight) @ example[0]
    farther = move(query, [], [example], weight_unlike=weight) @ example[0]
    assert (nearer >= before - 1e-6).all()
    assert (farther <= before + 1e-6).all()
    # Strictly, but where it already is as near or as far as can be.
    inside = np.abs(before) < 0.999
    assert (nearer > before)[inside].all()
    assert (farther < before)[inside].all()


@given(seeds, weights, weights)
def test_what_was_liked_never_falls_behind_what_was_not(
    seed: int, like: float, unlike: float
) -> None:
    query, liked, unliked = unit(seed, 3), unit(seed + 1, 1), unit(seed + 2, 1)
    moved = move(query, [liked], [unliked], weight_like=like, weight_unlike=unlike)
    ahead = query @ (liked[0] - unliked[0]) >= 0
    assert (moved[ahead] @ (liked[0] - unliked[0]) >= -1e-6).all()


@given(seeds, st.integers(0, 3), st.integers(0, 3))
def test_rows_stay_of_length_one_and_order_of_examples_does_not_matter(
    seed: int, likes: int, unlikes: int
) -> None:
    query = unit(seed, 4)
    liked = [unit(seed + 10 + i, 1 + i) for i in range(likes)]
    unliked = [unit(seed + 20 + i, 2) for i in range(unlikes)]
    moved = move(query, liked, unliked)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(move(query, liked[::-1], unliked[::-1]), moved, atol=1e-6)
    if not likes + unlikes:
        np.testing.assert_allclose(moved, query, atol=1e-7)


def test_a_slice_moved_to_nowhere_stays() -> None:
    x = np.eye(3, dtype=np.float32)[:1]
    np.testing.assert_array_equal(move(x, [], [x], weight_unlike=1), x)


VOLUMES = {
    "a-1": [[1, 0.1, 0], [0.9, 0.3, 0]],
    "b-1": [[1, 0, 0.2], [0.8, 0, 0.4]],
    "c:1": [[0, 1, 0]],
    "d-1": [[0, 0, 1]],
}
QUERY = np.array([[1, 0.05, 0.05]])


def test_an_unliked_volume_is_left_out_and_a_liked_one_may_stay(make_store) -> None:
    index = Index(make_store(VOLUMES))
    found = index.search(QUERY, mode="slice", k=9)
    assert {hit.volume_id for hit in found.hits} == set(VOLUMES)
    feedback = Feedback(like=("b-1",), unlike=("a-1",))
    judged = index.search(QUERY, mode="slice", k=9, feedback=feedback)
    assert {hit.volume_id for hit in judged.hits} == {"b-1", "c:1", "d-1"}
    assert judged.hits[0].volume_id == "b-1"


def test_an_unliked_slice_is_left_out_alone(make_store) -> None:
    index = Index(make_store(VOLUMES))
    hits = index.search(QUERY, k=9, feedback=Feedback(unlike=("a-1:0",))).hits
    shown = {(hit.volume_id, hit.slice_index) for hit in hits}
    assert ("a-1", 0) not in shown
    assert ("a-1", 1) in shown


def test_unlike_moves_similar_ones_down(make_store) -> None:
    index = Index(make_store(VOLUMES))
    scores = {hit.volume_id: hit.score for hit in index.search(QUERY, k=9).hits}
    judged = index.search(QUERY, k=9, feedback=Feedback(unlike=("d-1",), weight_unlike=0.5)).hits
    after = {hit.volume_id: hit.score for hit in judged}
    assert after["b-1"] - scores["b-1"] < after["a-1"] - scores["a-1"]


def test_nothing_judged_changes_nothing(make_store) -> None:
    store = make_store(VOLUMES)
    query = from_arrays(QUERY)
    allowed = np.ones(len(store.volume), dtype=np.bool_)
    same, rows = apply(Feedback(), store, query, allowed)
    assert same is query
    assert rows is allowed
    assert not Feedback()


def test_the_mask_of_the_caller_is_not_changed(make_store) -> None:
    store = make_store(VOLUMES)
    allowed = np.ones(len(store.volume), dtype=np.bool_)
    _, rows = apply(Feedback(unlike=("a-1",)), store, from_arrays(QUERY), allowed)
    assert allowed.all()
    assert rows.tolist() == [False, False, True, True, True, True]


def test_a_name_that_ends_like_a_slice_is_a_volume(make_store) -> None:
    store = make_store(VOLUMES)
    assert example_rows(store, "c:1").tolist() == [4]
    assert example_rows(store, "c:1:0").tolist() == [4]
    assert example_rows(store, "b-1:1").tolist() == [3]


@pytest.mark.parametrize("key", ["a-l", "a-l:0"])
def test_an_unknown_volume_is_refused_with_close_names(make_store, key: str) -> None:
    with pytest.raises(UsageError, match="did you mean a-1"):
        Index(make_store(VOLUMES)).search(QUERY, feedback=Feedback(like=(key,)))


def test_an_unknown_slice_is_refused(make_store) -> None:
    with pytest.raises(UsageError, match="no slice 7"):
        Index(make_store(VOLUMES)).search(QUERY, feedback=Feedback(like=("a-1:7",)))


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_impossible_weights_are_refused(make_store, weight: float) -> None:
    feedback = Feedback(like=("a-1",), weight_like=weight)
    with pytest.raises(UsageError, match="weight_like"):
        Index(make_store(VOLUMES)).search(QUERY, feedback=feedback)


def test_liked_and_unliked_at_once_is_refused(make_store) -> None:
    with pytest.raises(UsageError, match="both liked and unliked"):
        Index(make_store(VOLUMES)).search(QUERY, feedback=Feedback(like=("a-1",), unlike=("a-1",)))
