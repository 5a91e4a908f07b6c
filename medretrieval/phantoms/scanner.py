"""The scanner: a grid in the world, the patient's pose and shape, noise, and the file's axes.

Everything is painted on a rendering grid of (slice, row, column) order in radiological display
convention; `to_file_axes` stores it as files of real scanners do, in one of many axis orders.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medretrieval.phantoms.fields import Field, rotation, smooth_noise
from medretrieval.types import Grid

# Letters of the directions in which slices, rows and columns of each view count up.
VIEWS = {"axial": "SPL", "sagittal": "LIP", "coronal": "PIL"}
_DIRECTION = {
    "R": (1, 0, 0),
    "L": (-1, 0, 0),
    "A": (0, 1, 0),
    "P": (0, -1, 0),
    "S": (0, 0, 1),
    "I": (0, 0, -1),
}


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A rendering grid.

    Attributes:
        view: key of `VIEWS`.
        shape: (slices, rows, columns).
        spacing: their distances in mm.
        centre: (x, y, z) in anatomical LPS mm of the middle of the grid.
    """

    view: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    centre: tuple[float, float, float]

    def coordinates(self) -> tuple[Field, Field, Field]:
        """LPS x, y, z of the voxels, each with length 1 along the axes it does not depend on."""
        found: dict[int, Field] = {}
        for axis, letter in enumerate(VIEWS[self.view]):
            direction = np.array(_DIRECTION[letter]) * (-1, -1, 1)  # RAS to LPS
            world = int(np.flatnonzero(direction)[0])
            n = self.shape[axis]
            line = (np.arange(n) - (n - 1) / 2) * self.spacing[axis] * direction[world]
            form = [1, 1, 1]
            form[axis] = n
            found[world] = (line + self.centre[world]).astype(np.float32).reshape(form)
        return found[0], found[1], found[2]


def pose(
    rng: np.random.Generator,
    frame: Frame,
    *,
    size: tuple[float, float, float] = (1.0, 1.0, 1.0),
    turn: float = 0.0,
    tilt: tuple[float, float] = (0.0, 0.0),
    about: tuple[float, float, float] = (0.0, 0.0, 0.0),
    warp: float = 3.0,
    warp_scale: float = 70.0,
) -> tuple[Field, Field, Field]:
    """Anatomical coordinates of the voxels of a patient who is not the average one.

    Args:
        size: how much larger than average the patient is along x, y, z.
        turn: rotation about the body axis in degrees.
        tilt: (nod, lean) in degrees; z then varies within a slice.
        about: the point that stays where it is.
        warp: standard deviation in mm of the smooth natural deformation.
        warp_scale: distance in mm of its control points.
    """
    x, y, z = frame.coordinates()
    u, v, w = ((c - a) / s for c, a, s in zip((x, y, z), about, size, strict=True))
    angle = np.float32(np.radians(turn))
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = cos * u + sin * v, cos * v - sin * u
    nod, lean = np.tan(np.radians(tilt)).astype(np.float32)
    new_w = w + nod * v + lean * u if any(tilt) else w
    u, v = u - lean * w, v - nod * w
    if warp > 0:
        scale = max(warp_scale, 4.0)
        u = u + np.float32(warp) * smooth_noise(rng, frame.shape, frame.spacing, scale)
        v = v + np.float32(warp) * smooth_noise(rng, frame.shape, frame.spacing, scale)
    return u + np.float32(about[0]), v + np.float32(about[1]), new_w + np.float32(about[2])


def blur(image: Field, sigma: float) -> Field:
    """Blur within slices by `sigma` pixels: the scanner's point spread."""
    if sigma <= 0:
        return image
    return np.asarray(
        ndimage.gaussian_filter(image, (0, sigma, sigma), truncate=2.5), dtype=np.float32
    )


def correlated_noise(rng: np.random.Generator, shape: tuple[int, int, int]) -> Field:
    """Unit-variance noise, correlated between neighbours in a slice as reconstruction leaves it."""
    k, j, i = shape
    white = rng.standard_normal((k, j + 2, i + 2), dtype=np.float32)
    rows = white[:, :-2] + 2 * white[:, 1:-1] + white[:, 2:]
    both = rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]
    mixed = both * np.float32(0.7 / 6) + white[:, 1:-1, 1:-1] * np.float32(0.6)
    return np.asarray(mixed / np.float32(mixed.std()), dtype=np.float32)


def scan_ct(
    rng: np.random.Generator, image: Field, *, noise: float, sharpness: float
) -> NDArray[np.int16]:
    """CT of `image` (HU): point spread, noise that grows where much is in the way, 12 bits.

    Args:
        noise: standard deviation in HU at the edge of the body.
        sharpness: sigma of the point spread in pixels.
    """
    image = blur(image, sharpness)
    # Rays across the widest part carry the noise: dense rows are the noisy ones, in streaks.
    dense = np.clip((image + 300) / 1300, 0, 1.6).mean(axis=2, keepdims=True)
    level = noise * (0.8 + 1.6 * dense)
    grain = correlated_noise(rng, image.shape)
    streak = ndimage.uniform_filter1d(
        rng.standard_normal(image.shape, dtype=np.float32), 25, axis=2
    )
    image = image + level * (grain + 6.0 * np.clip(dense - 0.35, 0, 1) * streak)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


def scan_mr(
    rng: np.random.Generator,
    image: Field,
    spacing: tuple[float, float, float],
    *,
    noise: float,
    bias: float,
    gain: float,
    ghost: float = 0.0,
    sharpness: float = 0.45,
) -> NDArray[np.uint16]:
    """MR magnitude image of `image` (about 0..1): coil bias, motion ghosts, Rician noise.

    Args:
        noise: standard deviation of real and imaginary noise.
        bias: standard deviation of the logarithm of the coil sensitivity.
        gain: stored value of intensity 1.
        ghost: strength of the copy shifted along the rows' direction.
    """
    shape: tuple[int, int, int] = image.shape
    image = blur(image, sharpness)
    field = smooth_noise(rng, shape, spacing, 110.0)
    image = image * np.exp(np.float32(bias) * field)
    if ghost > 0:
        image = image + np.float32(ghost) * np.roll(image, shape[1] // 3, axis=1)
    real = image + np.float32(noise) * correlated_noise(rng, shape)
    imaginary = np.float32(noise) * rng.standard_normal(shape, dtype=np.float32)
    magnitude = np.sqrt(real * real + imaginary * imaginary) * np.float32(gain)
    return np.asarray(np.clip(np.rint(magnitude), 0, 4095), dtype=np.uint16)


def to_file_axes(
    frame: Frame,
    arrays: tuple[NDArray[np.generic], NDArray[np.generic]],
    code: str,
    *,
    oblique: tuple[float, float, float] = (0.0, 0.0, 0.0),
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> tuple[NDArray[np.generic], NDArray[np.generic], Grid]:
    """Store an image and its labels with axes that count up along the letters of `code`.

    Args:
        code: e.g. "LPS": stored axes go to the left, to the back, to the head.
        oblique: degrees by which the scanner's box is turned in the world.
        shift: RAS mm added to the world position.

    Returns:
        image and labels (X, Y, Z), and their grid.
    """
    letters = VIEWS[frame.view]
    turned = rotation(oblique)
    affine = np.eye(4)
    order, flips = [], []
    for axis, letter in enumerate(code):
        opposite = {"R": "L", "A": "P", "S": "I"}.get(letter) or {"L": "R", "P": "A", "I": "S"}[
            letter
        ]
        source = letters.index(letter) if letter in letters else letters.index(opposite)
        order.append(source)
        flips.append(slice(None, None, 1 if letter in letters else -1))
        affine[:3, axis] = turned @ np.array(_DIRECTION[letter]) * frame.spacing[source]
    shape = (frame.shape[order[0]], frame.shape[order[1]], frame.shape[order[2]])
    centre = turned @ (np.array(frame.centre) * (-1, -1, 1)) + shift
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    stored = [np.ascontiguousarray(a.transpose(order)[tuple(flips)]) for a in arrays]
    grid = Grid(shape=shape, affine=np.round(affine, 6))
    return stored[0], stored[1], grid
