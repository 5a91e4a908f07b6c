"""Distances of borders against MedPy, against all pairs of voxels, and for empty masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medretrieval.errors import InputError
from medretrieval.metrics.surface import hd95


def test_agrees_with_medpy() -> None:
    a, b = np.zeros((12, 14, 6), np.uint8), np.zeros((12, 14, 6), np.uint8)
    a[2:8, 3:9, 1:4] = 1
    b[4:11, 3:12, 2:6] = 1
    # MedPy 0.5.2: medpy.metric.binary.hd95(a, b, voxelspacing=(1.5, 1.5, 8.0))
    assert hd95(a, b, (1.5, 1.5, 8.0)) == pytest.approx(16.62077013859466)


MASKS = arrays.arrays(np.bool_, (5, 4), elements=st.booleans())


@given(MASKS, MASKS)
def test_agrees_with_all_pairs(a: np.ndarray, b: np.ndarray) -> None:
    found = hd95(a, b, (2.0, 1.0))
    assert found == hd95(b, a, (2.0, 1.0))
    if not (a.any() and b.any()):
        return
    borders = []
    for mask in (a, b):
        framed = np.pad(mask, 1)
        inner = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
        borders.append(np.argwhere(mask & ~inner) * [2.0, 1.0])
    apart = np.linalg.norm(borders[0][:, None] - borders[1][None], axis=2)
    nearest = np.concatenate([apart.min(axis=1), apart.min(axis=0)])
    assert found == pytest.approx(np.percentile(nearest, 95))


def test_empty_masks() -> None:
    empty, full = np.zeros((3, 4)), np.ones((3, 4))
    assert hd95(empty, empty, (1, 1)) == 0
    assert hd95(empty, full, (1, 1)) == hd95(full, empty, (1, 1)) == 5
    assert hd95(full, full, (1, 1)) == 0


def test_refuses_other_grids() -> None:
    with pytest.raises(InputError, match="same grid"):
        hd95(np.ones((3, 4)), np.ones((4, 3)), (1, 1))
    with pytest.raises(InputError, match="spacing"):
        hd95(np.ones((3, 4)), np.ones((3, 4)), (1, 1, 1))
