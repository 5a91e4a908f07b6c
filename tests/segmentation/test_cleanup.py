from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from medretrieval.segmentation.cleanup import largest_components
from medretrieval.types import Grid, LabelVolume

NAMES = {1: "a", 2: "b", 3: "c"}
MAPS = arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3), elements=st.sampled_from([0, 0, 1, 3]))


def labelled(voxels: NDArray[Any]) -> LabelVolume:
    return LabelVolume(voxels=voxels, grid=Grid(shape=voxels.shape, affine=np.eye(4)), names=NAMES)


def pieces(mask: NDArray[np.bool_]) -> list[set[tuple[int, ...]]]:
    """Connected components by a walk over neighbours, by their first voxel."""
    left = dict.fromkeys(map(tuple, np.argwhere(mask).tolist()))
    found = []
    while left:
        first = next(iter(left))
        del left[first]
        piece, todo = {first}, deque([first])
        while todo:
            voxel = todo.popleft()
            for step in itertools.product((-1, 0, 1), repeat=3):
                beside = tuple(a + b for a, b in zip(voxel, step, strict=True))
                if beside in left:
                    del left[beside]
                    piece.add(beside)
                    todo.append(beside)
        found.append(piece)
    return found


@given(MAPS)
def test_the_largest_piece_of_each_label_stays(voxels: NDArray[np.uint8]) -> None:
    before = voxels.copy()
    labels = labelled(voxels)
    result = largest_components(labels)
    np.testing.assert_array_equal(voxels, before)
    expected = np.zeros_like(voxels)
    for value in (1, 3):
        # `max` takes the first of equals, as is promised.
        for voxel in max(pieces(voxels == value), key=len, default=set()):
            expected[voxel] = value
    np.testing.assert_array_equal(result.voxels, expected)
    assert result.voxels.dtype == voxels.dtype
    assert result.grid is labels.grid
    assert result.names is labels.names


@given(MAPS)
def test_once_is_enough(voxels: NDArray[np.uint8]) -> None:
    once = largest_components(labelled(voxels))
    np.testing.assert_array_equal(largest_components(once).voxels, once.voxels)
    assert set(np.unique(once.voxels)) - {0} == set(np.unique(voxels)) - {0}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_all_unsigned_types(dtype: Any) -> None:
    voxels = np.zeros((4, 4, 4), dtype)
    voxels[0, 0, 0] = voxels[2:, 2:, 2:] = np.iinfo(dtype).max if dtype is not np.uint32 else 70000
    result = largest_components(labelled(voxels)).voxels
    assert result[0, 0, 0] == 0
    np.testing.assert_array_equal(result[2:, 2:, 2:], voxels[2:, 2:, 2:])


def test_nothing_found_stays_nothing() -> None:
    assert not largest_components(labelled(np.zeros((3, 3, 3), np.uint8))).voxels.any()
