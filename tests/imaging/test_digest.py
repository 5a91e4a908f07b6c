"""Digests are of the numbers, not of how they lie in memory."""

from __future__ import annotations

import hashlib

import numpy as np

from medretrieval.imaging.digest import digest


def test_layout_does_not_matter_and_every_number_does() -> None:
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    expected = hashlib.sha256(voxels.tobytes(order="F")).hexdigest()
    assert digest(voxels) == digest(np.asfortranarray(voxels)) == expected
    assert digest(voxels[:, :, 0], voxels[:, :, 1:]) == expected
    changed = voxels.copy()
    changed[2, 3, 4] += 1
    assert digest(changed) != expected
