"""Every mode against a direct transcription of the papers, with ties and ragged volumes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medretrieval.retrieval.engine import Index
from medretrieval.retrieval.modes import MODES as ALL_MODES
from medretrieval.similarity import normalise

Rows = list[list[float]]
MODES = [name for name, mode in ALL_MODES.items() if not mode.needs]

# Few directions, so that equal slices are everywhere; or many, so that none are.
tied = st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=3, max_size=3).filter(any)
untied = st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3).filter(
    lambda row: max(map(abs, row)) > 1e-3
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Rows, dict[str, Rows]]:
    row = draw(st.sampled_from([tied, untied]))
    names = draw(st.permutations("abcdefg"))[: draw(st.integers(1, 7))]
    volumes = {name: draw(st.lists(row, min_size=1, max_size=6)) for name in names}
    return draw(st.lists(row, min_size=1, max_size=7)), volumes


def cosine(a: Any, b: Any) -> float:
    """<v_s, phi(q) / |phi(q)|> of TS-CBIR, eq. 1 and 4, to six decimals."""
    return round(sum(float(x) * float(y) for x, y in zip(a, b, strict=True)), 6) + 0.0


def exact_sum(numbers: list[float]) -> float:
    return float(sum(map(Fraction, numbers)))


def unit(rows: Rows) -> list[list[float]]:
    return normalise(rows).tolist()


def hit_table(query: Rows, volumes: dict[str, Rows]) -> list[tuple[str, int, float]]:
    """s* of TS-CBIR, eq. 1, per query slice: (volume, slice, score); ties by id, then by slice."""
    table = []
    for q in unit(query):
        best: tuple[str, int, float] | None = None
        for name in sorted(volumes):
            for j, s in enumerate(unit(volumes[name])):
                score = cosine(q, s)
                if best is None or score > best[2]:
                    best = (name, j, score)
        assert best is not None
        table.append(best)
    return table


def transcribed_votes(
    query: Rows, volumes: dict[str, Rows], weights: list[float]
) -> list[tuple[str, float, list[tuple[int, int, float]]]]:
    """MSD-CBIR, II-D a and b: accumulate the hits; ties by summed score, then by volume id."""
    table = hit_table(query, volumes)
    ranked = []
    for name in sorted({volume for volume, _, _ in table}):
        mine = [i for i, (volume, _, _) in enumerate(table) if volume == name]
        hits = exact_sum([weights[i] for i in mine])
        total = exact_sum([weights[i] * table[i][2] for i in mine])
        matches = sorted(((i, table[i][1], table[i][2]) for i in mine), key=lambda m: (-m[2], m[0]))
        ranked.append((-hits, -total, name, matches))
    ranked.sort(key=lambda r: r[:3])
    return [(name, -hits, matches) for hits, _, name, matches in ranked]


def transcribed_count(query: Rows, volumes: dict[str, Rows]) -> list[Any]:
    return transcribed_votes(query, volumes, [1.0] * len(query))


def transcribed_weighted(query: Rows, volumes: dict[str, Rows], sigma: float = 0.25) -> list[Any]:
    n = len(query)
    middle = (n - 1) / 2
    weights = [math.exp(-0.5 * ((i - middle) / (sigma * n)) ** 2) for i in range(n)]
    return transcribed_votes(query, volumes, weights)


def transcribed_rerank(query: Rows, volumes: dict[str, Rows]) -> list[Any]:
    """TS-CBIR, 2.5.1 to 2.5.3: candidates, similarity matrix (eq. 4), RS (eq. 5)."""
    candidates = sorted({volume for volume, _, _ in hit_table(query, volumes)})
    ranked = []
    for name in candidates:
        similar = [[cosine(q, s) for s in unit(volumes[name])] for q in unit(query)]
        score = exact_sum([max(row) for row in similar])
        matches = [(i, row.index(max(row)), max(row)) for i, row in enumerate(similar)]
        ranked.append((-score, name, sorted(matches, key=lambda m: (-m[2], m[0]))))
    ranked.sort(key=lambda r: r[:2])
    return [(name, -score, matches) for score, name, matches in ranked]


def transcribed_similarities(
    query: Rows, volumes: dict[str, Rows], combine: Callable[[list[float]], float]
) -> list[Any]:
    """3D-MIR: the similarities of a volume's hits combined; ties by volume id."""
    ranked = [
        (-combine([score for _, _, score in matches]), name, matches)
        for name, _, matches in transcribed_count(query, volumes)
    ]
    ranked.sort(key=lambda r: r[:2])
    return [(name, -score, matches) for score, name, matches in ranked]


def transcribed_max(query: Rows, volumes: dict[str, Rows]) -> list[Any]:
    return transcribed_similarities(query, volumes, max)


def transcribed_sum(query: Rows, volumes: dict[str, Rows]) -> list[Any]:
    return transcribed_similarities(query, volumes, exact_sum)


def transcribed_pooled(
    query: Rows, volumes: dict[str, Rows], pool: Callable[[list[float]], float]
) -> list[Any]:
    """3D-MIR: the cosine of pooled vectors, of all volumes; 0 where one of them is zero."""

    def pooled(rows: Rows) -> list[float]:
        vector = [pool(list(column)) for column in zip(*unit(rows), strict=True)]
        length = math.sqrt(exact_sum([x * x for x in vector]))
        return [x / length if length > 1e-6 else 0.0 for x in vector]

    ranked = []
    for name in sorted(volumes):
        similar = [[cosine(q, s) for s in unit(volumes[name])] for q in unit(query)]
        matches = [(i, row.index(max(row)), max(row)) for i, row in enumerate(similar)]
        stored = np.float32(pooled(volumes[name]))  # kept at the precision of embeddings
        score = cosine(pooled(query), stored)
        ranked.append((-score, name, sorted(matches, key=lambda m: (-m[2], m[0]))))
    ranked.sort(key=lambda r: r[:2])
    return [(name, -score, matches) for score, name, matches in ranked]


def transcribed_mean(query: Rows, volumes: dict[str, Rows]) -> list[Any]:
    return transcribed_pooled(query, volumes, statistics.fmean)


def transcribed_median(query: Rows, volumes: dict[str, Rows]) -> list[Any]:
    return transcribed_pooled(query, volumes, statistics.median)


TRANSCRIBED = {
    "count": transcribed_count,
    "weighted": transcribed_weighted,
    "max": transcribed_max,
    "sum": transcribed_sum,
    "mean-pool": transcribed_mean,
    "median-pool": transcribed_median,
    "rerank": transcribed_rerank,
}


def search(store: Any, query: Rows, mode: str, k: int, **options: Any) -> Any:
    n = len(query)
    return Index(store).search((query, range(n), [None] * n), mode=mode, k=k, **options)


@pytest.mark.parametrize("mode", TRANSCRIBED)
@settings(max_examples=40, deadline=None)
@given(case=cases(), k=st.integers(1, 9))
def test_volume_modes_equal_the_papers(make_store, mode: str, case, k: int) -> None:
    query, volumes = case
    result = search(make_store(volumes), query, mode, k)
    found = [
        (h.volume_id, h.score, [(m.query_slice, m.slice_index, m.score) for m in h.matches])
        for h in result.hits
    ]
    expected = TRANSCRIBED[mode](query, volumes)[:k]
    assert [f[0] for f in found] == [e[0] for e in expected]
    assert [f[1] for f in found] == pytest.approx([e[1] for e in expected], abs=1e-12)
    assert [f[2] for f in found] == [e[2] for e in expected]
    assert [h.rank for h in result.hits] == list(range(1, len(expected) + 1))
    for hit in result.hits:  # the slice shown is the best matched one
        assert hit.slice_index == hit.matches[0].slice_index


@settings(max_examples=60, deadline=None)
@given(case=cases(), k=st.integers(1, 9))
def test_slice_mode_ranks_all_slices_for_each_query_slice(make_store, case, k: int) -> None:
    query, volumes = case
    expected = []
    for i, q in enumerate(unit(query)):
        scored = [
            (-cosine(q, s), name, j)
            for name, rows in volumes.items()
            for j, s in enumerate(unit(rows))
        ]
        expected += [
            (i, rank, name, j, -score)
            for rank, (score, name, j) in enumerate(sorted(scored)[:k], start=1)
        ]
    hits = search(make_store(volumes), query, "slice", k).hits
    assert expected == [
        (h.matches[0].query_slice, h.rank, h.volume_id, h.slice_index, h.score) for h in hits
    ]
    assert all(len(h.matches) == 1 and h.matches[0].slice_index == h.slice_index for h in hits)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=30, deadline=None)
@given(case=cases(), data=st.data())
def test_the_order_of_rows_and_volumes_in_an_index_does_not_matter(
    make_store, mode: str, case, data: st.DataObject
) -> None:
    query, volumes = case
    rows = sum(map(len, volumes.values()))
    shuffled = make_store(
        volumes,
        order=data.draw(st.permutations(range(rows))),
        volume_order=data.draw(st.permutations(range(len(volumes)))),
    )
    expected = search(make_store(volumes), query, mode, 4).to_json()
    assert search(shuffled, query, mode, 4).to_json() == expected


@pytest.mark.parametrize("mode", MODES)
def test_high_dimensional_random_embeddings_equal_the_papers(make_store, mode: str) -> None:
    random = np.random.default_rng(7)
    volumes = {
        f"volume {i}": random.normal(size=(size, 32)).tolist()
        for i, size in enumerate([1, 9, 30, 2, 17])
    }
    query = random.normal(size=(12, 32)).tolist()
    hits = search(make_store(volumes), query, mode, 3).hits
    if mode == "slice":
        best = hit_table(query, volumes)
        assert best == [(h.volume_id, h.slice_index, h.score) for h in hits if h.rank == 1]
    else:
        expected = TRANSCRIBED[mode](query, volumes)[:3]
        assert [(h.volume_id, pytest.approx(h.score)) for h in hits] == [e[:2] for e in expected]


def test_weighted_uses_the_place_in_the_whole_query(make_store) -> None:
    """Slices 1 and 2 of nine: the same table as if the others had been searched and missed."""
    volumes = {"a": [[1.0, 0.0]], "b": [[0.0, 1.0]]}
    query = ([[1.0, 0.0], [0.0, 1.0], [0.5, 1.0]], [0, 1, 8], [None] * 3)
    hits = Index(make_store(volumes)).search(query, mode="weighted", sigma=0.5).hits
    border = math.exp(-0.5 * (4 / 4.5) ** 2)
    inner = math.exp(-0.5 * (3 / 4.5) ** 2)
    assert [h.volume_id for h in hits] == ["b", "a"]
    assert [h.score for h in hits] == pytest.approx([inner + border, border])


def test_weighted_prefers_the_middle_where_count_prefers_the_ends(make_store) -> None:
    volumes = {"ends": [[1.0, 0.0]], "middle": [[0.0, 1.0]]}
    query = [[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 4 + [[1.0, 0.0]] * 3
    assert search(make_store(volumes), query, "count", 1).hits[0].volume_id == "ends"
    assert search(make_store(volumes), query, "weighted", 1).hits[0].volume_id == "middle"


def test_rerank_can_prefer_a_volume_with_fewer_hits(make_store) -> None:
    """TS-CBIR, 2.5.4: re-ranking may select a volume with a lower total hit count."""
    near = [math.cos(0.1), math.sin(0.1), 0.0]
    volumes = {"often": [[1.0, 0.0, 0.0]], "broad": [near, [0.0, 0.0, 1.0]]}
    query = [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert search(make_store(volumes), query, "count", 1).hits[0].volume_id == "often"
    assert search(make_store(volumes), query, "rerank", 1).hits[0].volume_id == "broad"


@pytest.mark.parametrize("mode", MODES)
def test_k_beyond_the_database_gives_what_there_is(make_store, mode: str) -> None:
    volumes = {"a": [[1.0, 0.0], [0.9, 0.1]], "b": [[0.0, 1.0]]}
    hits = search(make_store(volumes), [[1.0, 0.0], [0.0, 1.0]], mode, 1000).hits
    assert len(hits) == (6 if mode == "slice" else 2)
    assert {h.volume_id for h in hits} == {"a", "b"}


@pytest.mark.parametrize("mode", MODES)
def test_one_slice_finds_one_slice_volumes(make_store, mode: str) -> None:
    store = make_store({"a": [[1.0, 0.0]], "b": [[0.0, 1.0]]})
    (hit,) = search(store, [[0.1, 1.0]], mode, 1).hits
    assert hit.volume_id == "b"
    assert hit.score == (1.0 if mode in ("count", "weighted") else hit.matches[0].score)


def test_an_approximate_index_may_find_nothing_for_a_slice(make_store) -> None:
    store = make_store({"a": [[1.0, 0.0]], "b": [[0.0, 1.0]]})
    search_all = store.neighbours

    def deaf(queries, k, rows=None):
        scores, found = search_all(queries, k, rows)
        missed = queries[:, 0] > 0.9
        found[missed], scores[missed] = -1, -np.inf
        return scores, found

    store.neighbours = deaf
    query = [[1.0, 0.0], [0.0, 1.0]]
    for mode in ("count", "weighted", "rerank"):
        assert [h.volume_id for h in search(store, query, mode, 5).hits] == ["b"]
        assert search(store, [[1.0, 0.0]], mode, 5).hits == ()
    assert [h.matches[0].query_slice for h in search(store, query, "slice", 1).hits] == [1]
