"""Turning is exact, and the eight orientations are the symmetries of a square."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medretrieval.errors import UsageError
from medretrieval.imaging import AS_STORED, ORIENTATIONS, inverse, turn, turn_back

shapes = st.one_of(
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7),
    st.tuples(st.integers(1, 7), st.integers(1, 7), st.just(3)),
)
pictures = st.sampled_from([np.uint8, np.uint16, np.float32]).flatmap(
    lambda dtype: hnp.arrays(
        dtype, shapes, elements={"allow_nan": False} if dtype is np.float32 else None
    )
)
names = st.sampled_from(ORIENTATIONS)


def test_there_are_eight_and_as_stored_is_first() -> None:
    assert len(set(ORIENTATIONS)) == 8
    assert ORIENTATIONS[0] == AS_STORED == "as stored"


@given(pictures, names)
def test_turning_back_undoes_turning(picture: np.ndarray, name: str) -> None:
    for again in (turn_back(turn(picture, name), name), turn(turn_back(picture, name), name)):
        assert again.dtype == picture.dtype
        np.testing.assert_array_equal(again, picture)
    assert inverse(inverse(name)) == name


# By hand: how the picture 1 2 / 3 4 lies then.
BY_HAND = {
    "as stored": [[1, 2], [3, 4]],
    "rotated left": [[2, 4], [1, 3]],
    "rotated 180": [[4, 3], [2, 1]],
    "rotated right": [[3, 1], [4, 2]],
    "flipped left-right": [[2, 1], [4, 3]],
    "flipped top-bottom": [[3, 4], [1, 2]],
    "flipped diagonally": [[1, 3], [2, 4]],
    "flipped along the other diagonal": [[4, 2], [3, 1]],
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_names_mean_what_they_say(name: str) -> None:
    assert turn(np.array([[1, 2], [3, 4]]), name).tolist() == BY_HAND[name]


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)))
def test_rotations_and_flips_are_those_of_numpy(picture: np.ndarray) -> None:
    np.testing.assert_array_equal(turn(picture, "rotated left"), np.rot90(picture))
    np.testing.assert_array_equal(turn(picture, "rotated 180"), np.rot90(picture, 2))
    np.testing.assert_array_equal(turn(picture, "rotated right"), np.rot90(picture, 3))
    np.testing.assert_array_equal(turn(picture, "flipped left-right"), picture[:, ::-1])
    np.testing.assert_array_equal(turn(picture, "flipped diagonally"), picture.T)


def test_they_are_a_group() -> None:
    picture = np.arange(6).reshape(2, 3)
    name_of = {
        turn(picture, name).tobytes() + bytes(turn(picture, name).shape): name
        for name in ORIENTATIONS
    }
    assert len(name_of) == 8
    table = {}
    for first, then in itertools.product(ORIENTATIONS, repeat=2):
        both = turn(turn(picture, first), then)
        table[first, then] = name_of[both.tobytes() + bytes(both.shape)]
    for name in ORIENTATIONS:
        assert table[name, AS_STORED] == table[AS_STORED, name] == name
        assert table[name, inverse(name)] == AS_STORED
        # Each occurs once in every row and column.
        assert {table[name, other] for other in ORIENTATIONS} == set(ORIENTATIONS)
        assert {table[other, name] for other in ORIENTATIONS} == set(ORIENTATIONS)
    assert (
        table["rotated left", "flipped left-right"] != table["flipped left-right", "rotated left"]
    )


def test_turning_copies_nothing() -> None:
    picture = np.zeros((3, 4, 3), np.uint8)
    for name in ORIENTATIONS:
        assert np.shares_memory(turn(picture, name), picture)


def test_unknown_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean rotated left"):
        turn(np.zeros((2, 2)), "rotate left")
