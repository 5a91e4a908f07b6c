"""One vector for a whole volume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medretrieval.retrieval import pooling
from medretrieval.retrieval.database import Database
from medretrieval.retrieval.engine import Index
from medretrieval.retrieval.filters import Filters
from medretrieval.retrieval.pooling import POOLINGS, PooledVolumes, mean, median
from medretrieval.retrieval.stored import rows_of_store
from medretrieval.similarity import normalise

MODES = ("mean-pool", "median-pool")


def unit(vector: Any) -> Any:
    return np.asarray(vector) / np.linalg.norm(vector)


def random_volumes(sizes: dict[str, int], dim: int = 8) -> dict[str, Any]:
    random = np.random.default_rng(5)
    return {name: random.normal(size=(size, dim)).tolist() for name, size in sizes.items()}


def test_mean_and_median_of_three_slices() -> None:
    slices = np.array([[0.0, 0.6, 0.8], [0.0, 0.8, 0.6], [1.0, 0.0, 0.0]])
    assert mean(slices) == pytest.approx(unit([1.0, 1.4, 1.4]))
    assert median(slices) == pytest.approx(unit([0.0, 0.6, 0.6]))


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two() -> None:
    slices = np.array([[0.6, 0.8], [0.8, 0.6], [1.0, 0.0], [0.0, 1.0]])
    assert median(slices) == pytest.approx(unit([0.7, 0.7]))


@pytest.mark.parametrize("pool", POOLINGS.values())
def test_slices_that_cancel_each_other_have_no_direction(pool: Any) -> None:
    assert pool(np.array([[1.0, 0.0], [-1.0, 0.0]])).tolist() == [0.0, 0.0]
    angles = np.deg2rad([0, 120, 240, 60, 180, 300])
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert pool(around).tolist() == [0.0, 0.0]


def test_a_median_can_be_zero_where_no_slice_is() -> None:
    assert median(np.eye(3)).tolist() == [0.0, 0.0, 0.0]
    assert mean(np.eye(3)) == pytest.approx(unit([1.0, 1.0, 1.0]))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 7))
def test_long_volumes_are_pooled_in_blocks(size: int, block: int) -> None:
    slices = normalise(np.random.default_rng(size).normal(size=(size, 5)))
    before = pooling._BLOCK
    try:
        pooling._BLOCK = block
        assert mean(slices) == pytest.approx(unit(slices.mean(axis=0, dtype=np.float64)))
        assert median(slices).tolist() == unit(np.median(slices.astype(float), axis=0)).tolist()
    finally:
        pooling._BLOCK = before


@pytest.mark.parametrize("mode", MODES)
def test_a_zero_vector_scores_nothing_and_ties_by_volume_id(make_store, mode: str) -> None:
    volumes = {"b": [[1.0, 0.0], [-1.0, 0.0]], "a": [[0.0, 1.0], [0.0, -1.0]], "c": [[1.0, 1.0]]}
    index = Index(make_store(volumes))
    found = index.search([[1.0, 0.0]], mode=mode).hits  # type: ignore[arg-type]
    assert [(h.volume_id, h.score) for h in found] == [("c", 0.707107), ("a", 0.0), ("b", 0.0)]
    lost = index.search([[1.0, 0.0], [-1.0, 0.0]], mode=mode).hits  # type: ignore[arg-type]
    assert [(h.volume_id, h.score) for h in lost] == [("a", 0.0), ("b", 0.0), ("c", 0.0)]


@pytest.mark.parametrize("mode", MODES)
def test_volumes_that_no_slice_hits_are_ranked_too(make_store, mode: str) -> None:
    volumes = {"near": [[1.0, 0.1]], "far": [[0.1, 1.0]], "opposite": [[-1.0, 0.0]]}
    hits = Index(make_store(volumes)).search([[1.0, 0.0]], mode=mode, k=9).hits  # type: ignore[arg-type]
    assert [h.volume_id for h in hits] == ["near", "far", "opposite"]
    assert hits[2].score == -1.0
    assert [m.score for m in hits[2].matches] == [-1.0]


@pytest.mark.parametrize("mode", MODES)
def test_a_filter_that_cuts_a_volume_changes_its_vector(make_store, mode: str) -> None:
    volumes = {"a": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]], "b": [[1.0, 1.0, 0.0]]}
    labels = {("a", 1): ("liver",), ("a", 2): ("liver",), ("b", 0): ("liver",)}
    index = Index(make_store(volumes, labels=labels))
    query: Any = [[0.0, 1.0, 0.0]]
    whole = index.search(query, mode=mode).hits
    cut = index.search(query, mode=mode, filters=Filters(labels=["liver"])).hits
    assert {h.volume_id: h.score for h in cut} == {"a": 1.0, "b": 0.707107}
    assert index.search(query, mode=mode).hits == whole
    fresh = Index(make_store(volumes, labels=labels)).search(query, mode=mode).hits
    assert whole == fresh


@pytest.mark.parametrize("block", [1, 2, 3, 2048])
@pytest.mark.parametrize("mode", MODES)
def test_blocks_do_not_change_a_ranking(make_store, monkeypatch, mode: str, block: int) -> None:
    volumes = random_volumes({"a": 3, "b": 1, "c": 9, "d": 2, "e": 1})
    labels = {("c", 4): ("x",), ("c", 5): ("x",), ("d", 0): ("x",), ("e", 0): ("x",)}
    query: Any = random_volumes({"q": 4})["q"]
    every = Filters()
    for filters in (every, Filters(labels=["x"])):
        monkeypatch.undo()
        plain = Index(make_store(volumes, labels=labels)).search(query, mode=mode, filters=filters)
        monkeypatch.setattr(pooling, "_BLOCK", block)
        index = Index(make_store(volumes, labels=labels))
        found = index.search(query, mode=mode, filters=filters)
        assert [h.volume_id for h in found.hits] == [h.volume_id for h in plain.hits]
        assert [h.score for h in found.hits] == pytest.approx([h.score for h in plain.hits])
        assert found == index.search(query, mode=mode, filters=filters)


@pytest.mark.parametrize("name", POOLINGS)
def test_vectors_are_computed_once_and_of_what_is_allowed(make_store, monkeypatch, name) -> None:
    store = make_store(random_volumes({"a": 3, "b": 1, "c": 4}))
    rows = rows_of_store(store)
    calls = []

    def counted(slices: Any) -> Any:
        calls.append(len(slices))
        return POOLINGS[name](slices)

    monkeypatch.setattr(pooling, "POOLINGS", {name: counted})
    pooled = PooledVolumes(rows, name)

    def vectors(allowed: Any) -> dict[int, Any]:
        database = Database(rows=rows, allowed=allowed, neighbours=store.neighbours)
        return {
            int(volume): vector
            for volumes, block in pooled.blocks(database)
            for volume, vector in zip(volumes, block, strict=True)
        }

    first_only = store.slice_index == 0
    not_b = store.volume != 1
    found = vectors(None)
    assert calls == [3, 4]
    assert found[1].tolist() == store.embeddings[3].tolist()
    assert {v: x.tolist() for v, x in vectors(None).items()} == {
        v: x.tolist() for v, x in found.items()
    }
    assert sorted(vectors(not_b)) == [0, 2]
    assert calls == [3, 4]
    assert [vectors(first_only)[v].tolist() for v in range(3)] == store.embeddings[
        first_only
    ].tolist()
    assert calls == [3, 4]
    vectors(store.slice_index < 2)
    assert calls == [3, 4, 2, 2]
