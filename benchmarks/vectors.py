"""Synthetic embeddings of volumes, for measurements at any size.

Neighbouring slices of a volume are alike, volumes of a kind run along the same smooth curve through
the space, each with an offset of its own that drifts from its first slice to its last. All vectors
share a direction, as those of real networks do. The similarity of a slice to the nearest slices of
other volumes is then about 0.95, as with EfficientNet on CT; uniform random vectors, all of which
are about equally far from one another, would make every approximate search look hopeless.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

KINDS = 60
KNOTS = 48
SHORTEST, LONGEST = 60, 430  # slices of a volume
_VERSION = 2
_UNSEEN = 1 << 40  # seeds of queries never meet those of rows


def make_vectors(
    path: Path, rows: int, *, dim: int = 768, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Write unit vectors volume by volume to a .npy file, or open it if it is there and complete.

    Returns:
        (rows, dim) float32, memory-mapped read-only, and (rows,) int32 volume of each row. The
        first rows of a larger file are those of a smaller one, but that its last volume is cut off.
    """
    path = Path(path)
    marker = path.with_suffix(".json")
    settings = {"version": _VERSION, "rows": rows, "dim": dim, "seed": seed}
    volume = _volume_of_rows(rows, seed)
    if not (path.exists() and marker.exists() and json.loads(marker.read_text()) == settings):
        marker.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        file = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, dim))
        row = 0
        for number, slices in enumerate(_depths(rows, seed)):
            file[row : row + slices] = _one_volume(number, slices, dim, seed)[: rows - row]
            row += slices
        file.flush()
        del file
        marker.write_text(json.dumps(settings))
    return np.load(path, mmap_mode="r"), volume


def make_queries(
    volumes: int, *, slices: int = 300, dim: int = 768, seed: int = 0
) -> list[NDArray[np.float32]]:
    """Return `volumes` query volumes, (slices, dim) float32 unit rows each.

    They are drawn as the volumes of `make_vectors` are and are none of them, whatever the seeds.
    """
    return [_one_volume(_UNSEEN + number, slices, dim, seed) for number in range(volumes)]


def _depths(rows: int, seed: int) -> Iterator[int]:
    rng = np.random.default_rng([seed, 1])
    left = rows
    while left > 0:
        slices = int(rng.integers(SHORTEST, LONGEST))
        yield slices
        left -= slices


def _volume_of_rows(rows: int, seed: int) -> NDArray[np.int32]:
    depths = list(_depths(rows, seed))
    return np.arange(len(depths), dtype=np.int32).repeat(depths)[:rows]


def _one_volume(number: int, slices: int, dim: int, seed: int) -> NDArray[np.float32]:
    spectrum, basis, curves, common = _world(dim)
    rng = np.random.default_rng([seed, 2, number])
    curve = curves[rng.integers(KINDS)]
    first, last = np.sort(rng.uniform(0, KNOTS - 1, 2))
    position = np.linspace(first, last, slices)
    knot = np.minimum(position.astype(int), KNOTS - 2)
    share = (position - knot)[:, None].astype(np.float32)
    rows = curve[knot] * (1 - share) + curve[knot + 1] * share + common
    offset = (rng.standard_normal((2, dim)) * spectrum * 0.45).astype(np.float32)
    along = np.linspace(0, 1, slices, dtype=np.float32)[:, None]
    rows += offset[0] * (1 - along) + offset[1] * along
    rows += rng.standard_normal((slices, dim), dtype=np.float32) * (0.12 * spectrum)
    rows = rows @ basis
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@cache
def _world(
    dim: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """What all volumes share, whatever the seed: variances, axes, curves, and the common part."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, dim + 1) ** -0.5
    spectrum /= np.linalg.norm(spectrum)
    basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    curves = rng.standard_normal((KINDS, KNOTS, dim)) * spectrum
    distance = np.subtract.outer(np.arange(KNOTS), np.arange(KNOTS))
    smooth = np.exp(-0.5 * (distance / 4) ** 2)
    smooth /= np.linalg.norm(smooth, axis=1, keepdims=True)
    curves = np.einsum("ab,kbd->kad", smooth, curves)
    common = rng.standard_normal(dim) * spectrum * 0.8
    parts = (spectrum, basis, curves, common)
    return tuple(part.astype(np.float32) for part in parts)  # type: ignore[return-value]
