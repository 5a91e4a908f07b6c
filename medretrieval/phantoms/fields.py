"""Smooth random fields, signed distances and branching trees: the bricks of every phantom.

All functions are vectorised over broadcastable coordinate arrays in millimetres and return
float32. Signed distances are negative inside and approximately Euclidean near the surface, which
is all that painting soft edges needs. The same generator gives the same numbers on every machine
up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[Any]  # float32; NumPy promotes where a knot table meets it
Point = tuple[float, float, float]


def _expand(control: Field, axis: int, n: int, step: float, phase: float) -> Field:
    """Evaluate uniform cubic B-splines along one axis at n samples, `step` controls apart.

    Four taps instead of a matrix product: no BLAS, so no threads that compete with a network
    running meanwhile.
    """
    position = np.arange(n) * step + phase
    start = np.floor(position).astype(np.intp)
    f = (position - start).astype(np.float32)
    taps = (
        (1 - f) ** 3 / 6,
        (3 * f**3 - 6 * f**2 + 4) / 6,
        (-3 * f**3 + 3 * f**2 + 3 * f + 1) / 6,
        f**3 / 6,
    )
    form = [1, 1, 1]
    form[axis] = n
    total = np.take(control, start, axis) * taps[0].reshape(form)
    for k in (1, 2, 3):
        piece = np.take(control, start + k, axis)
        piece *= taps[k].reshape(form)
        total += piece
    return np.asarray(total, dtype=np.float32)


def smooth_noise(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    scale: float,
) -> Field:
    """Return a smooth Gaussian random field of unit variance.

    Args:
        shape: samples along each axis.
        spacing: their distances in mm.
        scale: distance of the control points in mm; bumps are about twice as wide.

    Returns:
        `shape` float32, mean 0 and standard deviation about 1 over many fields.
    """
    phases = [float(rng.random()) for _ in shape]
    steps = [s / scale for s in spacing]
    sizes = [
        int((n - 1) * step + phase) + 4 for n, step, phase in zip(shape, steps, phases, strict=True)
    ]
    field = rng.standard_normal(sizes, dtype=np.float32)
    # The variance of a cubic B-spline sum is on average 151/315 of its controls' along each axis.
    field /= np.float32((151 / 315) ** 1.5)
    for axis in (2, 1, 0):  # the longest rows last, when whole planes are copied
        field = _expand(field, axis, shape[axis], steps[axis], phases[axis])
    return field


def lattice_noise(
    rng: np.random.Generator, x: Field, y: Field, z: Field, scale: float, size: int = 24
) -> Field:
    """Return unit-variance smooth noise at arbitrary points; periodic after `size * scale` mm.

    The lattice is refined once by cubic splines, so that linear look-up stays smooth.
    """
    fine = ndimage.zoom(
        rng.standard_normal((size,) * 3).astype(np.float32),
        3,
        order=3,
        mode="grid-wrap",
        grid_mode=True,
    )
    fine /= fine.std()
    x, y, z = np.broadcast_arrays(x, y, z)
    points = np.stack([z, y, x]) * np.float32(3 / scale)
    return np.asarray(
        ndimage.map_coordinates(fine, points, order=1, mode="grid-wrap", prefilter=False),
        dtype=np.float32,
    )


def profile(z: Field, knots: Sequence[float], values: Sequence[float]) -> Field:
    """Piecewise linear function of z; `knots` increase."""
    return np.interp(z, knots, values).astype(np.float32)


def squircle(
    x: Field, y: Field, a: Field | float, b: Field | float, squareness: Field | float
) -> Field:
    """Signed radial distance to a rounded rectangle of half axes a, b (0 ellipse, 1 rectangle).

    The curve is that of Fong, "Analytical methods for squaring the disc" (2014).
    """
    u = (x / a) ** 2
    v = (y / b) ** 2
    s = u + v
    q2 = (s + np.sqrt(np.maximum(s * s - 4 * squareness * u * v, 0))) * np.float32(0.5)
    r = np.sqrt(x * x + y * y)
    return np.asarray(r * (1 - 1 / np.sqrt(q2 + np.float32(1e-6))), dtype=np.float32)


def ellipse(x: Field, y: Field, a: Field | float, b: Field | float) -> Field:
    """Approximate signed distance to an ellipse with half axes a and b."""
    p = x / a
    q = y / b
    k0 = np.sqrt(p * p + q * q)
    k1 = np.sqrt((p / a) ** 2 + (q / b) ** 2) + np.float32(1e-6)
    return np.asarray(k0 * (k0 - 1) / k1, dtype=np.float32)


def ellipsoid(
    x: Field, y: Field, z: Field, centre: Point, radii: Point, turn: Point = (0.0, 0.0, 0.0)
) -> Field:
    """Approximate signed distance to an ellipsoid turned by angles (degrees) about x, y and z."""
    u, v, w = x - centre[0], y - centre[1], z - centre[2]
    if any(turn):
        m = rotation(turn).astype(np.float32)
        # The columns of m are the ellipsoid's own axes.
        u, v, w = (m[0, i] * u + m[1, i] * v + m[2, i] * w for i in range(3))
    p, q, s = u / radii[0], v / radii[1], w / radii[2]
    k0 = np.sqrt(p * p + q * q + s * s)
    k1 = np.sqrt((p / radii[0]) ** 2 + (q / radii[1]) ** 2 + (s / radii[2]) ** 2)
    return np.asarray(k0 * (k0 - 1) / (k1 + np.float32(1e-6)), dtype=np.float32)


def rotation(degrees: Point) -> NDArray[np.float64]:
    """(3, 3) rotation: about x first, then y, then z."""
    a, b, c = np.radians(degrees)
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return np.asarray(rz @ ry @ rx)


def capsule(x: Field, y: Field, z: Field, p: Point, q: Point, r0: float, r1: float) -> Field:
    """Signed distance to a segment p-q thickened from radius r0 to r1."""
    d = [q[i] - p[i] for i in range(3)]
    length2 = max(d[0] ** 2 + d[1] ** 2 + d[2] ** 2, 1e-6)
    u, v, w = x - p[0], y - p[1], z - p[2]
    t = np.minimum(np.maximum((u * d[0] + v * d[1] + w * d[2]) / length2, 0), 1)
    distance = np.sqrt((u - t * d[0]) ** 2 + (v - t * d[1]) ** 2 + (w - t * d[2]) ** 2)
    return np.asarray(distance - (r0 + t * (r1 - r0)), dtype=np.float32)


def stroke(
    x: Field,
    y: Field,
    p: tuple[Field | float, Field | float],
    q: tuple[Field | float, Field | float],
) -> Field:
    """Distance in the x-y plane to the segment p-q, whose ends may move with z."""
    dx, dy = q[0] - p[0], q[1] - p[1]
    u, v = x - p[0], y - p[1]
    t = np.clip((u * dx + v * dy) / (dx * dx + dy * dy + 1e-6), 0, 1)
    return np.asarray(np.sqrt((u - t * dx) ** 2 + (v - t * dy) ** 2), dtype=np.float32)


def join(*distances: Field, blend: float = 0.0) -> Field:
    """Union of shapes, rounded over `blend` mm (polynomial smooth minimum of Quilez)."""
    total = distances[0]
    for d in distances[1:]:
        near = np.minimum(total, d)
        if blend > 0:
            h = np.maximum(np.float32(blend) - np.abs(total - d), 0)
            near = near - h * h * np.float32(0.25 / blend)
        total = near
    return np.asarray(total, dtype=np.float32)


def meet(*distances: Field, blend: float = 0.0) -> Field:
    """Intersection of shapes, rounded over `blend` mm."""
    return -join(*(-d for d in distances), blend=blend)


def spline(points: Any, n: int) -> NDArray[np.float64]:
    """(n, d) points along a Catmull-Rom curve through `points`."""
    p = np.asarray(points, dtype=float)
    p = np.vstack([2 * p[0] - p[1], p, 2 * p[-1] - p[-2]])
    s = np.linspace(0, len(p) - 3 - 1e-9, n)
    i = s.astype(int)
    t = (s - i)[:, None]
    a, b, c, d = p[i], p[i + 1], p[i + 2], p[i + 3]
    curve = 2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2
    return np.asarray(0.5 * (curve + (3 * b - a - 3 * c + d) * t**3))


def grow_tree(
    rng: np.random.Generator,
    root: Any,
    targets: NDArray[np.float64],
    tip: float,
    power: float = 2.6,
    bend: float = 0.12,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Grow a vessel tree from `root` to every target.

    Targets are joined nearest first to the nearest node of the tree that does not lead backwards,
    as in space colonisation; radii follow Murray's law: the `power`-th powers of daughters add up.

    Returns:
        segments (n, 2, d) from the parent's to the daughter's end, and radii (n, 2), in mm.
    """
    origin = np.asarray(root, dtype=float)
    order = np.argsort(((targets - origin) ** 2).sum(1))
    nodes = np.empty((2 * len(targets) + 1, len(origin)))
    nodes[0] = origin
    parent = np.full(len(nodes), -1)
    used = 1
    for target in targets[order]:
        gap = target - nodes[:used]
        reach = np.sqrt((gap**2).sum(1))
        start = np.sqrt(((nodes[:used] - origin) ** 2).sum(1))
        best = int(np.argmin(reach + 0.35 * start))
        length = reach[best]
        middle = nodes[best] + 0.5 * gap[best] + rng.normal(0, bend, len(origin)) * length
        nodes[used], nodes[used + 1] = middle, target
        parent[used], parent[used + 1] = best, used
        used += 2
    flow = np.zeros(used)
    for i in range(used - 1, 0, -1):
        flow[i] = flow[i] or tip**power
        flow[parent[i]] += flow[i]
    radius = flow[:used] ** (1 / power)
    ends = np.arange(1, used)
    segments = np.stack([nodes[parent[ends]], nodes[ends]], axis=1)
    # A daughter starts at its own width: the mother's would bulge at side branches.
    start_radius = np.minimum(radius[parent[ends]], radius[ends] * 1.15)
    return segments, np.stack([start_radius, radius[ends]], axis=1)
