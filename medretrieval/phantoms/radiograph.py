"""Two-dimensional pictures: the chest radiograph and X-ray angiograms.

The radiograph is the sum of a chest phantom along the beam (a digitally reconstructed
radiograph). The angiogram is a subtraction-like projection of a drawn vessel tree.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medretrieval.phantoms.fields import Field, smooth_noise, spline

Plane = NDArray[np.float32]
Segments = list[tuple[NDArray[np.float64], NDArray[np.float64]]]


def project_chest(
    rng: np.random.Generator,
    hounsfield: Field,
    labels: NDArray[np.uint8],
    depth: float,
    *,
    size: int,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Make a radiograph and the masks of its projected organs.

    Args:
        hounsfield: (slabs, rows, columns) coronal slabs in HU.
        labels: the same shape; 1 left lung, 2 right lung, 3 heart.
        depth: thickness of a slab in mm.
        size: rows and columns of the picture.

    Returns:
        uint8 picture and labels, (size, size).
    """
    density = np.clip(hounsfield / 1000 + 1, 0, 2.6)
    # Bone absorbs more than its density says at these energies.
    density = density + 0.5 * np.clip(density - 1.15, 0, None)
    path = density.sum(axis=0) * depth
    zoom = size / path.shape[0]
    path = ndimage.zoom(path, zoom, order=1, grid_mode=True, mode="nearest")
    detail = path - ndimage.gaussian_filter(path, 0.035 * size)
    film = 1 - np.exp(-path / float(rng.uniform(85, 110)))
    film = film + 0.0034 * np.clip(detail, -40, 22) + 0.006 * rng.standard_normal(film.shape)
    low, high = np.percentile(film, [float(rng.uniform(1, 4)), 99.6])
    picture = np.clip((film - low) / (high - low), 0, 1) ** float(rng.uniform(1.05, 1.6))
    if rng.random() < 0.5:  # side marker
        row, column = int(0.06 * size), int(0.9 * size)
        picture[row : row + 14, column : column + 3] = 0.95
        picture[row + 11 : row + 14, column : column + 10] = 0.95
    masks = np.zeros(path.shape, dtype=np.uint8)
    for value, least in ((2, 30.0), (1, 30.0), (3, 25.0)):
        thick = ((labels == value).sum(axis=0) * depth).astype(np.float32)
        thick = ndimage.zoom(thick, zoom, order=1, grid_mode=True, mode="nearest")
        # Slabs leave steps on oblique surfaces; the outline of a real organ is smooth.
        masks[ndimage.gaussian_filter(thick, 0.012 * size) > least] = value
    return np.rint(picture * 255).astype(np.uint8), masks


def _stamp(absorber: Plane, segments: Segments) -> None:
    """Add the chord lengths of tapered round vessels; overlapping pieces of one do not add."""
    n = absorber.shape[0]
    for points, radii in segments:
        low = np.floor(points.min(axis=0) - radii.max() - 2).astype(int)
        high = np.ceil(points.max(axis=0) + radii.max() + 3).astype(int)
        low, high = np.clip(low, 0, n), np.clip(high, 0, n)
        if (high - low).min() <= 0:
            continue
        own = np.zeros((high[1] - low[1], high[0] - low[0]), dtype=np.float32)
        for p, q, r0, r1 in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
            r = max(r0, r1) + 1.5
            a = np.clip(np.floor(np.minimum(p, q) - r).astype(int), low, high)
            b = np.clip(np.ceil(np.maximum(p, q) + r).astype(int) + 1, low, high)
            if (b - a).min() <= 0:
                continue
            x = np.arange(a[0], b[0], dtype=np.float32)[None, :] - p[0]
            y = np.arange(a[1], b[1], dtype=np.float32)[:, None] - p[1]
            d = q - p
            t = np.clip((x * d[0] + y * d[1]) / (d @ d + 1e-6), 0, 1)
            width = r0 + t * (r1 - r0)
            gap2 = (x - t * d[0]) ** 2 + (y - t * d[1]) ** 2
            chord = 2 * np.sqrt(np.clip((width + 0.4) ** 2 - gap2, 0, None))
            view = own[a[1] - low[1] : b[1] - low[1], a[0] - low[0] : b[0] - low[0]]
            np.maximum(view, chord, out=view)
        absorber[low[1] : high[1], low[0] : high[0]] += own


def _branch(
    rng: np.random.Generator,
    start: NDArray[np.float64],
    angle: float,
    length: float,
    radius: float,
    order: int,
    out: Segments,
    *,
    wind: float,
) -> None:
    """Append a winding vessel and its side branches (up to `order` generations)."""
    steps = max(int(length / 5), 4)
    turn = np.cumsum(rng.normal(0, wind, steps)) * 0.35
    turn -= np.linspace(0, turn[-1] * 0.6, steps)
    heading = angle + turn + float(rng.normal(0, 0.25)) * np.linspace(0, 1, steps)
    step = length / steps * np.stack([np.cos(heading), np.sin(heading)], 1)
    points = start + np.vstack([[0, 0], np.cumsum(step, axis=0)])
    radii = radius * np.linspace(1, 0.42, steps + 1)
    out.append((points, radii))
    if order == 0 or radius < 0.7:
        return
    side = 1 if rng.random() < 0.5 else -1
    for place in np.sort(rng.uniform(0.12, 0.95, int(rng.integers(3, 6)))):
        i = int(place * steps)
        side = -side if rng.random() < 0.75 else side
        _branch(
            rng,
            points[i],
            heading[min(i, steps - 1)] + side * float(rng.uniform(0.5, 1.1)),
            length * float(rng.uniform(0.35, 0.62)),
            radii[i] * float(rng.uniform(0.5, 0.75)),
            order - 1,
            out,
            wind=wind * 1.15,
        )


def _coronary(rng: np.random.Generator, n: int) -> tuple[Segments, Segments]:
    """A left or a right coronary artery, and the catheter that fills it."""
    u = n / 512
    out: Segments = []
    flip = bool(rng.random() < 0.45)
    start = np.array([rng.uniform(165, 215), rng.uniform(95, 150)]) * u
    if flip:  # right coronary artery: one C-shaped trunk with branches
        curve = spline(
            start
            + np.array([(0, 0), (-55, 20), (-85, 95), (-70, 190), (5, 245), (95, 262)]) * u
            + rng.normal(0, 8, (6, 2)) * u,
            60,
        )
        radii = np.linspace(6.0, 3.0, 60) * u
        out.append((curve, radii))
        for i in rng.choice(np.arange(8, 58), 9, replace=False):
            d = curve[min(i + 1, 59)] - curve[i - 1]
            angle = float(np.arctan2(d[1], d[0])) + float(rng.choice([-1, 1], p=[0.8, 0.2])) * 0.9
            _branch(
                rng,
                curve[i],
                angle,
                float(rng.uniform(70, 150)) * u,
                radii[i] * 0.55,
                1,
                out,
                wind=0.35,
            )
    else:
        fork = start + np.array([38, 10]) * u
        out.append((np.stack([start, fork]), np.array([6.6, 6.2]) * u))
        for angle, length, radius in ((0.95, 330, 5.0), (0.25, 250, 3.6), (1.75, 270, 4.4)):
            _branch(
                rng,
                fork,
                angle + float(rng.normal(0, 0.12)),
                length * u,
                radius * u,
                2,
                out,
                wind=0.3,
            )
    catheter = spline(
        np.array(
            [
                start,
                start + np.array([-22, -28]) * u,
                start + np.array([-6, -90]) * u,
                (start[0] + 40 * u, -10.0),
            ]
        ),
        24,
    )
    return out, [(catheter, np.full(24, 3.4 * u))]


def _cerebral(rng: np.random.Generator, n: int) -> tuple[Segments, Segments]:
    """An internal carotid artery in frontal view with its anterior and middle branches."""
    u = n / 512
    out: Segments = []
    side = float(rng.choice([-1.0, 1.0]))
    base = np.array([256 + side * 30, 512.0])
    shape = [
        (0, 40),
        (2, -60),
        (side * 22, -110),
        (side * 6, -150),
        (side * 26, -185),
        (side * 6, -215),
    ]
    siphon = spline([(base + s) * u for s in shape], 40)
    out.append((siphon, np.linspace(7.0, 5.4, 40) * u))
    top = siphon[-1]
    up = -np.pi / 2
    _branch(rng, top, up - side * 0.35, 225 * u, 3.6 * u, 2, out, wind=0.3)
    lateral = 0.12 if side > 0 else np.pi - 0.12
    middle = spline(
        [top, top + np.array([side * 50, -6]) * u, top + np.array([side * 92, -22]) * u], 12
    )
    out.append((middle, np.linspace(4.8, 4.2, 12) * u))
    for lift in (0.1, 0.55, 1.0, 1.4):
        angle = lateral - side * lift
        _branch(rng, middle[-1], angle, float(rng.uniform(130, 190)) * u, 3.2 * u, 2, out, wind=0.4)
    return out, []


def angiogram(
    rng: np.random.Generator, kind: str, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw an angiogram and the mask (1) of its contrast-filled vessels, (size, size) uint8 both.

    Args:
        kind: "coronary" or "cerebral".
    """
    n = size
    vessels, catheter = (_coronary if kind == "coronary" else _cerebral)(rng, n)
    contrast = np.zeros((n, n), dtype=np.float32)
    _stamp(contrast, vessels)
    tube = np.zeros((n, n), dtype=np.float32)
    _stamp(tube, catheter)
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) * np.float32(512 / n)
    scale = 512 / n
    soft = smooth_noise(rng, (1, n, n), (1.0, scale, scale), 90.0)[0]
    fine = smooth_noise(rng, (1, n, n), (1.0, scale, scale), 18.0)[0]
    shadow = 0.16 * soft + 0.02 * fine
    if kind == "coronary":
        shift = float(rng.uniform(-60, 60))
        spine = np.exp(-(((x - 330 - shift) / 52) ** 4))
        discs = 0.75 + 0.25 * np.tanh(4 * np.sin((y + 7 * soft) / 13.5))
        shadow = shadow + 0.2 * spine * discs
        for k in range(7):
            arc = y - (70 * k - 40 + 0.3 * np.abs(x - 330 - shift) + 0.0003 * (x - 200) ** 2)
            shadow = shadow + 0.05 * np.exp(-((arc / 13) ** 4)) * (1 - 0.6 * spine)
        dome = 1 / (1 + np.exp(-(y - 430 - 0.0011 * (x - 190 - shift) ** 2 + 30 * soft) / 9))
        heart = 1 / (1 + np.exp((np.hypot((x - 300) / 1.15, y - 270) - 190) / 14))
        shadow = shadow + 0.26 * dome + 0.14 * heart
        strength = 0.05
    else:
        skull = np.hypot((x - 256) / 0.86, (y - 225)) - 215
        bone = np.exp(-((skull / 11) ** 2)) + 0.5 * (skull < 0)
        base = 1 / (1 + np.exp(-(y - 335 - 0.0012 * (x - 256) ** 2 + 14 * soft) / 8))
        residue = float(rng.choice([0.15, 0.9]))  # subtraction leaves a trace of the bones
        eyes = sum(
            np.exp(-(((np.hypot(x - 256 - s * 78, (y - 350) * 1.1) - 52) / 8) ** 2))
            for s in (-1, 1)
        )
        shadow = shadow * (0.3 + 0.5 * residue) + residue * (0.14 * bone + 0.15 * base + 0.1 * eyes)
        blush = 1 / (1 + np.exp(skull / 10))
        shadow = shadow + 0.05 * blush * (1 + 0.4 * fine)
        strength = 0.075
    exponent = shadow + strength * scale * contrast + 0.035 * scale * tube
    exponent = ndimage.gaussian_filter(exponent, float(rng.uniform(0.5, 0.9)))
    film = np.exp(-exponent * float(rng.uniform(1.2, 1.6)))
    grain = rng.standard_normal((n, n)).astype(np.float32)
    film = film + float(rng.uniform(0.012, 0.025)) * ndimage.gaussian_filter(grain, 0.6) * 1.6
    low, high = np.percentile(film, [0.3, 99.7])
    picture = np.clip((film - low) / (high - low), 0, 1) * 0.9 + 0.05
    if rng.random() < 0.6:  # the round image intensifier
        picture[np.hypot(x - 256, y - 256) > float(rng.uniform(258, 275))] = 0.02
    mask = (contrast > 2.2 / scale).astype(np.uint8)
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8), mask
