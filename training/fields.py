"""Random smooth fields, warps and blurs on small square grids, all by matrix products."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

Rng = np.random.Generator


@lru_cache(maxsize=256)
def _spline_basis(cells: int, size: int) -> Tensor:
    """(size, cells + 3) values of the uniform cubic B-splines at the pixel centres."""
    position = (np.arange(size) + 0.5) / size * cells
    first = np.minimum(position.astype(int), cells - 1)
    t = position - first
    weights = np.stack(
        [
            (1 - t) ** 3 / 6,
            (3 * t**3 - 6 * t**2 + 4) / 6,
            (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
            t**3 / 6,
        ],
        axis=1,
    )
    basis = np.zeros((size, cells + 3), np.float32)
    for k in range(4):
        basis[np.arange(size), first + k] = weights[:, k]
    return torch.from_numpy(basis)


def normal(rng: Rng, *shape: int) -> Tensor:
    """Standard normal float32 numbers of the given shape."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def smooth(rng: Rng, count: int, cells: int, size: int) -> Tensor:
    """Smooth noise of mean 0 and standard deviation about 1.

    Args:
        count: how many fields.
        cells: spline cells along a side; a field varies over about size / cells pixels.
        size: side of a field in pixels.

    Returns:
        (count, size, size) float32.
    """
    basis = _spline_basis(max(1, cells), size)
    knots = normal(rng, count, basis.shape[1], basis.shape[1]) * 2.0
    return basis @ knots @ basis.T


@lru_cache(maxsize=8)
def coordinates(size: int) -> tuple[Tensor, Tensor]:
    """x to the right and y downwards, (size, size) each, pixel centres of a square from -1 to 1."""
    line = (torch.arange(size, dtype=torch.float32) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x, y


def _gauss_matrix(sigma: float, size: int) -> Tensor:
    line = torch.arange(size, dtype=torch.float32)
    matrix = torch.exp(-0.5 * ((line[:, None] - line[None]) / sigma) ** 2)
    return matrix / matrix.sum(1, keepdim=True)


def blur(images: Tensor, sigma_y: float, sigma_x: float) -> Tensor:
    """Gaussian blur of (n, S, S) images; standard deviations in pixels, below 0.3 none at all."""
    size = images.shape[-1]
    if sigma_y >= 0.3:
        images = _gauss_matrix(sigma_y, size) @ images
    if sigma_x >= 0.3:
        images = images @ _gauss_matrix(sigma_x, size).T
    return images


def warp_grids(rng: Rng, count: int, size: int, *, strength: float, pose: float) -> Tensor:
    """Sampling grids of `count` subjects: a random affine map each and a smooth displacement.

    Args:
        strength: of the displacement; 1 is a usual difference of shape between people.
        pose: of the affine maps; 1 is a usual difference of place, size and angle after the same
            scan protocol, 3 that of pictures that were framed by hand.

    Returns:
        (count, size, size, 2) float32 for `torch.nn.functional.grid_sample`.
    """
    x, y = coordinates(size)
    angle = normal(rng, count, 1, 1) * math.radians(8) * pose
    both = normal(rng, count, 1, 1) * 0.05 * pose
    scale_x = torch.exp(normal(rng, count, 1, 1) * 0.05 * pose + both)
    scale_y = torch.exp(normal(rng, count, 1, 1) * 0.05 * pose + both)
    shift = normal(rng, 2, count, 1, 1) * 0.06 * pose
    gx = (x * angle.cos() - y * angle.sin()) * scale_x + shift[0]
    gy = (x * angle.sin() + y * angle.cos()) * scale_y + shift[1]
    grid = torch.stack((gx, gy), -1)
    coarse, middle, fine = rng.uniform(0, [0.08, 0.045, 0.02])
    for amplitude, cells in (
        (coarse * strength, 3),
        (middle * strength, int(rng.integers(5, 10))),
        (fine * min(strength, 1.0), int(rng.integers(11, 24))),
    ):
        field = smooth(rng, 2 * count, cells, size) * amplitude
        grid = grid + field.view(count, 2, size, size).permute(0, 2, 3, 1)
    return grid
