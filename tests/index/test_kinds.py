"""Every kind of index: its settings, how it is built, and what it finds, filters included."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from medretrieval.errors import IndexFormatError, UsageError
from medretrieval.index import choice, searcher
from medretrieval.index.choice import choose
from medretrieval.index.faiss_files import build_faiss, read_faiss, write_faiss
from medretrieval.index.kinds import AUTO, KINDS, check_parameters, resolve_parameters
from medretrieval.index.searcher import Searcher

APPROXIMATE = [name for name, kind in KINDS.items() if not kind.exact]
DIM = 32


def unit(array: np.ndarray) -> np.ndarray:
    return (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)


def rows_of_volumes(n: int, seed: int = 0) -> np.ndarray:
    """Runs of 50 similar rows each, about a common direction: as slices of volumes are."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((-(-n // 50), DIM)).repeat(50, axis=0)[:n]
    return unit(1 + centres + 0.4 * rng.standard_normal((n, DIM)))


def make(embeddings: np.ndarray, kind: str, **given: int) -> Searcher:
    rows, dim = embeddings.shape
    parameters = resolve_parameters(kind, given, rows=rows, dim=dim)
    index = build_faiss(embeddings, kind, parameters)
    return Searcher(embeddings=embeddings, kind=kind, parameters=parameters, index=index)


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    return rows_of_volumes(6000)


@pytest.fixture(scope="module")
def made(embeddings: np.ndarray) -> dict[str, Searcher]:
    return {kind: make(embeddings, kind) for kind in KINDS}


@pytest.fixture
def approximately(monkeypatch: pytest.MonkeyPatch) -> None:
    """No filter leaves so few rows that they are searched exactly."""
    monkeypatch.setattr(searcher, "_EXACT_ROWS", 0)
    monkeypatch.setattr(searcher, "_EXACT_FACTOR", 0)


@pytest.mark.parametrize("share", [None, 0.5, 0.05, 0.001])
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.usefixtures("approximately")
def test_recall_with_filters(
    made: dict[str, Searcher], embeddings: np.ndarray, kind: str, share: float | None
) -> None:
    rng = np.random.default_rng(5)
    queries = rows_of_volumes(100, seed=9)
    rows = None if share is None else rng.random(len(embeddings)) < share
    truth, _ = made["flat"].neighbours(queries, 10, rows)
    scores, ids = made[kind].neighbours(queries, 10, rows)
    np.testing.assert_array_equal(ids >= 0, np.isfinite(truth))
    if rows is not None:
        assert rows[ids[ids >= 0]].all()
    assert (np.diff(scores[:, : (ids[0] >= 0).sum()], axis=1) <= 0).all()
    recall = (scores >= truth[:, -1:]).mean()
    assert recall == 1 if KINDS[kind].exact else recall > 0.95


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.usefixtures("approximately")
def test_filters_that_leave_hardly_a_row(
    made: dict[str, Searcher], embeddings: np.ndarray, kind: str
) -> None:
    queries = rows_of_volumes(7, seed=9)
    n = len(embeddings)
    for allowed in ([5999], [0, 3000], []):
        for rows in (np.isin(np.arange(n), allowed), np.array(allowed, np.int64)):
            _, ids = made[kind].neighbours(queries, 3, rows)
            for found in ids:
                assert sorted(found[found >= 0]) == allowed


@pytest.mark.parametrize("kind", APPROXIMATE)
@pytest.mark.usefixtures("approximately")
def test_a_query_of_the_index_without_its_own_volume(
    made: dict[str, Searcher], embeddings: np.ndarray, kind: str
) -> None:
    """All that lies next to the query is left out by the filter."""
    rows = np.ones(len(embeddings), np.bool_)
    rows[1000:1050] = False
    truth, _ = made["flat"].neighbours(embeddings[1000:1050], 5, rows)
    scores, ids = made[kind].neighbours(embeddings[1000:1050], 5, rows)
    assert rows[ids].all()
    assert (scores >= truth[:, -1:]).mean() > 0.95


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_scores_are_those_of_an_exact_search(made: dict[str, Searcher], kind: str) -> None:
    queries = rows_of_volumes(20, seed=9)
    exact = dict(
        zip(*(a.ravel() for a in reversed(made["flat"].neighbours(queries[:1], 6000))), strict=True)
    )
    scores, ids = made[kind].neighbours(queries, 5)
    for score, row in zip(scores[0], ids[0], strict=True):
        assert score == exact[row]
    alone = made[kind].neighbours(queries[7:8], 5)
    np.testing.assert_array_equal(alone[0][0], scores[7])


@pytest.mark.parametrize("rows", [1, 2, 15, 40, 300])
@pytest.mark.parametrize("kind", list(KINDS))
def test_tiny_indexes_give_all_they_have(kind: str, rows: int) -> None:
    embeddings = rows_of_volumes(rows)
    queries = rows_of_volumes(3, seed=4)
    scores, ids = make(embeddings, kind).neighbours(queries, rows + 2)
    assert (ids[:, rows:] == -1).all()
    for found in ids:
        assert sorted(found[:rows]) == list(range(rows))
    wanted = np.sort(queries.astype(float) @ embeddings.T.astype(float), axis=1)[:, ::-1]
    np.testing.assert_allclose(scores[:, :rows], wanted, atol=1e-6)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_equal_rows_can_be_indexed(kind: str) -> None:
    embeddings = np.tile(unit(np.ones((1, DIM))), (700, 1))
    scores, ids = make(embeddings, kind).neighbours(np.ones((2, DIM)), 700)
    np.testing.assert_array_equal(ids, np.tile(np.arange(700), (2, 1)))
    np.testing.assert_allclose(scores, 1, atol=1e-6)


def test_more_lists_than_rows_can_be_asked_for() -> None:
    embeddings = rows_of_volumes(10)
    found = make(embeddings, "ivf-pq", nlist=64, nprobe=2, bits=8, candidates=1)
    assert found.index.nlist == 64
    for ids in found.neighbours(rows_of_volumes(3, seed=4), 10)[1]:
        assert sorted(ids) == list(range(10))


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_the_same_index_with_any_number_of_threads(kind: str, tmp_path: Path) -> None:
    embeddings = rows_of_volumes(1500)
    parameters = resolve_parameters(kind, None, rows=1500, dim=DIM)
    before = faiss.omp_get_max_threads()
    try:
        built = []
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            index = build_faiss(embeddings, kind, parameters)
            assert faiss.omp_get_max_threads() == threads
            # Not by `serialize_index`: it returns a std::vector, and where SimpleITK is imported
            # too, vectors of both have SimpleITK's Python class.
            faiss.write_index(index, str(tmp_path / "index"))
            built.append((tmp_path / "index").read_bytes())
    finally:
        faiss.omp_set_num_threads(before)
    assert built[0] == built[1]


def test_flat_l2_ranks_rows_that_are_not_quite_of_length_one_by_cosine() -> None:
    rng = np.random.default_rng(1)
    embeddings = rows_of_volumes(500) * rng.uniform(0.9995, 1.0005, (500, 1)).astype(np.float32)
    queries = rows_of_volumes(40, seed=4)
    for rows in (None, rng.random(500) < 0.5):
        expected = make(embeddings, "flat").neighbours(queries, 7, rows)
        found = make(embeddings, "flat-l2").neighbours(queries, 7, rows)
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_array_equal(found[0], expected[0])


def test_defaults_depend_on_the_size() -> None:
    large = resolve_parameters("ivf-pq", None, rows=1_322_552, dim=768)
    assert large == {"nlist": 4600, "nprobe": 71, "m": 96, "bits": 8, "candidates": 400}
    small = resolve_parameters("ivf-pq", {"candidates": 9}, rows=100, dim=12)
    assert small == {"nlist": 2, "nprobe": 2, "m": 2, "bits": 4, "candidates": 9}
    assert resolve_parameters("hnsw", {"M": 8}, rows=5, dim=5)["M"] == 8
    assert resolve_parameters("lsh", None, rows=2_000_000, dim=5)["candidates"] == 1000
    # Divisors of what embedders give, and of a prime.
    for dim, m in ((512, 64), (768, 96), (1280, 160), (2048, 256), (97, 97), (5, 1)):
        assert resolve_parameters("ivf-pq", None, rows=1, dim=dim)["m"] == m


@pytest.mark.parametrize(
    ("kind", "given", "error"),
    [
        ("hnws", {}, "did you mean hnsw"),
        ("hnsw", {"m": 3}, "has no parameter 'm'; it has M,"),
        ("flat", {"M": 3}, "it has none"),
        ("ivf-pq", {"m": 7}, "must divide the 32 numbers"),
        ("lsh", {"nbits": 1}, "whole number 8..4096"),
        ("lsh", {"nbits": True}, "whole number"),
        (AUTO, {"M": 3}, "name the kind to set M"),
    ],
)
def test_what_no_index_can_be_built_with_is_refused(
    kind: str, given: dict[str, Any], error: str
) -> None:
    with pytest.raises(UsageError, match=error):
        check_parameters(kind, given, dim=DIM)


def test_auto_is_no_kind_of_a_finished_index() -> None:
    check_parameters(AUTO, None, dim=DIM)
    with pytest.raises(UsageError, match="unknown index kind"):
        resolve_parameters(AUTO, None, rows=10, dim=DIM)


def test_choice_goes_from_exact_to_small_with_the_number_of_rows() -> None:
    kinds = [choose(rows, 768)[0] for rows in (1, 290_757, 1_322_552, 20_000_000)]
    assert kinds == ["flat", "flat", "hnsw", "ivf-pq"]
    for rows in (1, 290_757, 1_322_552, 20_000_000):
        reason = choose(rows, 768)[1]
        assert reason.startswith(f"{rows} rows of 768 numbers: exact search")
        assert reason.isprintable()
    assert doctest.testmod(choice).failed == 0


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_files_are_read_as_what_they_are(
    made: dict[str, Searcher], embeddings: np.ndarray, kind: str, tmp_path: Any
) -> None:
    path = tmp_path / "index.faiss"
    write_faiss(made[kind].index, path)
    read = read_faiss(path, rows=len(embeddings), dim=DIM, kind=kind)
    again = Searcher(embeddings=embeddings, kind=kind, parameters=made[kind].parameters, index=read)
    queries = rows_of_volumes(20, seed=9)
    np.testing.assert_array_equal(
        again.neighbours(queries, 5)[1], made[kind].neighbours(queries, 5)[1]
    )
    for other in APPROXIMATE:
        if other != kind:
            with pytest.raises(IndexFormatError, match="build the index again"):
                read_faiss(path, rows=len(embeddings), dim=DIM, kind=other)
    with pytest.raises(IndexFormatError, match="of 6000 x 32"):
        read_faiss(path, rows=5999, dim=DIM, kind=kind)


def test_hnsw_of_older_indexes_is_read_and_searched(embeddings: np.ndarray, tmp_path: Any) -> None:
    old = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
    old.add(embeddings)
    faiss.write_index(old, str(tmp_path / "index.faiss"))
    read = read_faiss(tmp_path / "index.faiss", rows=len(embeddings), dim=DIM, kind="hnsw")
    assert type(read).__name__ == "IndexHNSWFlat"
    given = {"M": 32, "efConstruction": 200, "efSearch": 128}
    parameters = resolve_parameters("hnsw", given, rows=len(embeddings), dim=DIM)
    assert parameters == given
    found = Searcher(embeddings=embeddings, kind="hnsw", parameters=parameters, index=read)
    queries = rows_of_volumes(50, seed=9)
    truth = make(embeddings, "flat").neighbours(queries, 10)[0]
    assert (found.neighbours(queries, 10)[0] >= truth[:, -1:]).mean() > 0.95
