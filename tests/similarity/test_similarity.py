from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from medretrieval.errors import InputError
from medretrieval.similarity import cosine, maxima, maxsim, maxsim_padded, normalise

finite = st.floats(-10, 10, width=32)


@st.composite
def ragged(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32], list[int]]:
    """A query, all slices of some volumes (which may be empty), and the sizes of the volumes."""
    dim = draw(st.integers(1, 5))
    sizes = draw(st.lists(st.integers(0, 7), min_size=1, max_size=8))
    n = draw(st.integers(1, 6))
    query = draw(arrays(np.float32, (n, dim), elements=finite))
    rows = draw(arrays(np.float32, (sum(sizes), dim), elements=finite))
    return query, rows, sizes


def looped(query: NDArray[np.float32], rows: NDArray[np.float32], sizes: list[int]) -> list[float]:
    """TS-CBIR, eq. 5, one number after the other."""
    scores, start = [], 0
    for size in sizes:
        total = 0.0
        for q in query:
            best = -math.inf
            for row in rows[start : start + size]:
                best = max(best, sum(float(a) * float(b) for a, b in zip(q, row, strict=True)))
            total += best
        scores.append(total)
        start += size
    return scores


def as_offsets(sizes: list[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *sizes]).astype(np.int64)


@given(ragged(), st.integers(1, 20))
def test_maxsim_equals_a_plain_loop_for_any_block(case, block: int) -> None:
    query, rows, sizes = case
    found = maxsim(query, rows, as_offsets(sizes), block=block)
    assert found == pytest.approx(looped(query, rows, sizes), rel=1e-5, abs=1e-3)


@given(ragged())
def test_padded_equals_ragged_whatever_the_padding_holds(case) -> None:
    query, rows, sizes = case
    longest = max(sizes)
    padded = np.full((len(sizes), longest, query.shape[1]), 99.0, dtype=np.float32)
    mask = np.zeros((len(sizes), longest), dtype=bool)
    offsets = as_offsets(sizes)
    for i, size in enumerate(sizes):
        padded[i, :size] = rows[offsets[i] : offsets[i + 1]]
        mask[i, :size] = True
    expected = maxsim(query, rows, offsets)
    assert maxsim_padded(query, padded, mask) == pytest.approx(expected, rel=1e-5, abs=1e-3)


def test_padding_does_not_lift_a_volume_with_negative_similarities() -> None:
    query = np.array([[1.0, 0.0]], dtype=np.float32)
    padded = np.array([[[-1.0, 0.0], [0.0, 0.0]]], dtype=np.float32)
    assert maxsim_padded(query, padded, np.array([[True, False]])).tolist() == [-1.0]


def test_a_volume_without_slices_scores_minus_infinity() -> None:
    query = np.ones((2, 3), dtype=np.float32)
    rows = np.ones((4, 3), dtype=np.float32)
    offsets = np.array([0, 0, 4, 4], dtype=np.int64)
    assert maxsim(query, rows, offsets).tolist() == [-math.inf, 6.0, -math.inf]
    assert maxima(query, rows, offsets).shape == (2, 3)


def test_a_query_without_slices_scores_the_empty_sum() -> None:
    rows = np.ones((4, 3), dtype=np.float32)
    scores = maxsim(np.empty((0, 3), dtype=np.float32), rows, np.array([0, 1, 4]))
    assert scores.tolist() == [0.0, 0.0]


@given(ragged(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_rows_may_lie_anywhere(case, block: int, random) -> None:
    query, rows, sizes = case
    order = list(range(len(rows)))
    random.shuffle(order)
    scattered = np.empty_like(rows)
    scattered[order] = rows  # slice i of the volumes lies in row order[i]
    where = np.array(order, dtype=np.int64)
    found = maxsim(query, scattered, as_offsets(sizes), rows=where, block=block)
    assert found == pytest.approx(maxsim(query, rows, as_offsets(sizes)), rel=1e-5, abs=1e-3)


@given(ragged(), st.integers(1, 8), st.data())
def test_rows_with_gaps_are_as_good_as_rows_without(case, block: int, data) -> None:
    """Rows that are left out lie between those that are searched, and would win if they counted."""
    query, rows, sizes = case
    before = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    where = np.arange(len(rows)) + np.cumsum(before, dtype=np.int64)
    spread = np.full((where.max(initial=0) + 2, rows.shape[1]), 1e3, dtype=np.float32)
    spread *= np.sign(query.sum(axis=0)) + (query.sum(axis=0) == 0)
    spread[where] = rows
    found = maxsim(query, spread, as_offsets(sizes), rows=where, block=block)
    assert found == pytest.approx(looped(query, rows, sizes), rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("left_out", [[], [3], [0, 99], list(range(0, 100, 2)), [17, 18, 60]])
def test_a_block_of_long_volumes_with_rows_left_out(left_out: list[int]) -> None:
    """Few rows left out are multiplied along, many are not: both give the plain loop's numbers."""
    rng = np.random.default_rng(3)
    rows, query = normalise(rng.normal(size=(100, 6))), normalise(rng.normal(size=(7, 6)))
    kept = np.setdiff1d(np.arange(100), left_out)
    sizes = np.bincount(kept // 25).tolist()
    found = maxima(query, rows, as_offsets(sizes), rows=kept, block=40)
    for volume, best in enumerate(found.T):
        own = rows[kept[kept // 25 == volume]]
        assert best == pytest.approx((query @ own.T).max(axis=1), abs=1e-6)


class Group:
    """Rows of several files: what an index of several folders has instead of an array."""

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self._rows = rows
        self.shape = rows.shape

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: object) -> NDArray[np.float32]:
        return self._rows[rows].copy()


@pytest.mark.parametrize("wrap", [Group, lambda rows: rows.astype(np.float64)])
@pytest.mark.parametrize("rows", [None, list(range(50))[::-1], [*range(10), *range(11, 51)]])
def test_documents_need_not_be_one_float32_array(wrap, rows) -> None:
    documents = normalise(np.random.default_rng(1).normal(size=(51, 8)))
    offsets = np.array([0, 20, 50], dtype=np.int64)
    where = None if rows is None else np.array(rows)
    expected = maxima(documents[:4], documents, offsets, rows=where)
    found = maxima(documents[:4], wrap(documents), offsets, rows=where, block=16)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("row", [-1, 4])
def test_rows_that_do_not_exist_are_refused(row: int) -> None:
    with pytest.raises(IndexError, match=r"0\.\.3"):
        maxima(
            np.ones((1, 3), np.float32), np.ones((4, 3)), np.array([0, 2]), rows=np.array([row, 0])
        )


def test_memory_is_bounded_by_blocks() -> None:
    """Of 20,000 x 64 slices in float64, 10 MB, never more than some blocks are copied."""
    rows = np.random.default_rng(0).normal(size=(20_000, 64))
    order = np.arange(20_000)[::-1].copy()
    offsets = np.arange(0, 20_001, 100)
    tracemalloc.start()
    try:
        maxima(rows[:50].astype(np.float32), rows, offsets, rows=order, block=256)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_500_000


def test_maxsim_reads_a_memory_map(tmp_path) -> None:
    rows = normalise(np.random.default_rng(0).normal(size=(50, 8)))
    file = tmp_path / "rows.npy"
    np.save(file, rows)
    offsets = np.array([0, 20, 50], dtype=np.int64)
    mapped = np.load(file, mmap_mode="r")
    assert maxsim(rows[:3], mapped, offsets).tolist() == maxsim(rows[:3], rows, offsets).tolist()


@given(
    arrays(np.float64, (4, 3), elements=st.floats(-1e150, 1e150)).filter(
        lambda a: (np.abs(a).max(axis=1) > 1e-150).all()
    )
)
def test_normalise_gives_unit_rows_of_the_same_direction(vectors) -> None:
    unit = normalise(vectors)
    assert unit.dtype == np.float32
    assert np.linalg.norm(unit, axis=1) == pytest.approx(1.0, abs=1e-6)
    assert (np.sign(unit) * np.sign(vectors) >= 0).all()
    assert normalise(unit) == pytest.approx(unit, abs=1e-6)


def test_normalise_keeps_extreme_lengths() -> None:
    assert normalise([[1e300, 0.0], [0.0, -1e-300]]).tolist() == [[1.0, 0.0], [0.0, -1.0]]


@pytest.mark.parametrize("row", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_normalise_refuses_rows_without_a_direction(row: list[float]) -> None:
    with pytest.raises(InputError, match=r"1 of 2 embeddings .*the first is row 1"):
        normalise([[1.0, 0.0], row])


def test_normalise_refuses_a_single_vector() -> None:
    with pytest.raises(InputError, match=r"shape \(3,\); expected \(n, dim\)"):
        normalise([1.0, 2.0, 3.0])


def test_normalise_of_no_rows_is_empty() -> None:
    assert normalise(np.empty((0, 4))).shape == (0, 4)


def test_cosine_of_known_angles() -> None:
    # 0, 60, 90 and 180 degrees.
    other = [[1.0, 0.0], [0.5, math.sqrt(3) / 2], [0.0, 1.0], [-1.0, 0.0]]
    assert cosine([[1.0, 0.0]], other)[0] == pytest.approx([1.0, 0.5, 0.0, -1.0])


def test_cosine_does_not_leave_its_range() -> None:
    third = np.full((1, 3), math.sqrt(1 / 3) + 1e-9)
    assert cosine(third, third).item() == 1.0
