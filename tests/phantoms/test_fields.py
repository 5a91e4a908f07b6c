"""Distances, noise, trees and the storing of axes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from medretrieval.phantoms import fields
from medretrieval.phantoms.canvas import Canvas
from medretrieval.phantoms.scanner import VIEWS, Frame, to_file_axes


def axes(n: int = 41, half: float = 20.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    line = np.linspace(-half, half, n, dtype=np.float32)
    return line[None, None, :], line[None, :, None], line[:, None, None]


def test_sphere_distance_is_exact() -> None:
    x, y, z = axes()
    d = fields.ellipsoid(x, y, z, (1, 2, 3), (8, 8, 8))
    exact = np.sqrt((x - 1) ** 2 + (y - 2) ** 2 + (z - 3) ** 2) - 8
    outside = np.abs(exact + 8) > 1
    assert np.allclose(d[outside], exact[outside], atol=1e-2)


def test_turned_ellipsoid_follows_its_axis() -> None:
    x, y, z = (np.float32([[[v]]]) for v in (0.0, 9.0, 0.0))
    long_x = ((0.0, 0.0, 0.0), (10.0, 3.0, 3.0))
    assert fields.ellipsoid(x, y, z, *long_x).item() > 0
    assert fields.ellipsoid(x, y, z, *long_x, (0.0, 0.0, 90.0)).item() < 0


def test_join_and_meet_are_union_and_intersection() -> None:
    a, b = np.float32([-1, 2, 3]), np.float32([1, -2, 4])
    assert np.array_equal(fields.join(a, b), [-1, -2, 3])
    assert np.array_equal(fields.meet(a, b), [1, 2, 4])
    assert (fields.join(a, b, blend=3.0) <= fields.join(a, b)).all()
    assert (fields.meet(a, b, blend=3.0) >= fields.meet(a, b)).all()


def test_noise_has_unit_variance_and_is_smooth() -> None:
    rng = np.random.default_rng(0)
    n = np.stack([fields.smooth_noise(rng, (20, 60, 60), (5, 2, 2), 20.0) for _ in range(20)])
    assert n.dtype == np.float32
    assert n.std() == pytest.approx(1, abs=0.08)
    assert n.mean() == pytest.approx(0, abs=0.08)
    assert np.abs(np.diff(n, axis=3)).max() < 0.8


def test_spline_passes_through_its_points() -> None:
    points = np.array([[0, 0, 0], [1, 2, 3], [4, 4, 4], [6, 0, 2]], dtype=float)
    curve = fields.spline(points, 301)
    for p in points:
        assert np.linalg.norm(curve - p, axis=1).min() < 0.02


def test_tree_reaches_every_target_and_thins_outwards() -> None:
    rng = np.random.default_rng(3)
    targets = rng.uniform(-50, 50, (40, 3))
    segments, radii = fields.grow_tree(rng, (60, 0, 0), targets, 0.5)
    ends = segments[:, 1]
    assert all(np.linalg.norm(ends - t, axis=1).min() < 1e-9 for t in targets)
    starts = {tuple(p) for p in segments[:, 0]}
    assert starts <= {tuple(p) for p in ends} | {(60.0, 0.0, 0.0)}
    assert (radii[:, 0] >= radii[:, 1] - 1e-12).all()
    assert radii.min() == pytest.approx(0.5)


def canvas(spacing: tuple[float, float, float] = (4.0, 1.0, 1.0)) -> Canvas:
    frame = Frame(view="axial", shape=(12, 50, 50), spacing=spacing, centre=(0, 0, 0))
    return Canvas(
        frame.coordinates(),
        frame.shape,
        spacing,
        tissue={"air": 0.0, "bone": 1.0},
        values={"ball": 4},
        rng=np.random.default_rng(0),
    )


def test_painted_volume_is_the_volume_of_the_shape() -> None:
    c = canvas()
    ball = ((1.0, 2.0, -1.0), (15.0, 15.0, 15.0))
    c.paint(
        "bone",
        lambda x, y, z: fields.ellipsoid(x, y, z, *ball),
        box=c.ellipsoid_box(*ball),
        label="ball",
    )
    exact = 4 / 3 * np.pi * 15**3
    assert c.image.sum() * 4 == pytest.approx(exact, rel=0.03)
    assert (c.labels == 4).sum() * 4 == pytest.approx(exact, rel=0.03)
    assert 0 < ((c.image > 0.05) & (c.image < 0.95)).sum()  # partial volume


def test_a_box_is_only_a_shortcut() -> None:
    boxed, whole = canvas(), canvas()
    ball = ((8.0, -6.0, 3.0), (7.0, 5.0, 9.0))
    boxed.paint(
        "bone", lambda x, y, z: fields.ellipsoid(x, y, z, *ball), box=boxed.ellipsoid_box(*ball)
    )
    whole.paint("bone", lambda x, y, z: fields.ellipsoid(x, y, z, *ball))
    assert np.abs(boxed.image - whole.image).max() < 0.35  # faint tails of oblique edges
    assert np.abs(boxed.image - whole.image).mean() < 1e-3


def test_labels_without_a_value_clear() -> None:
    c = canvas()
    everywhere = np.full(c.shape, -5, dtype=np.float32)
    c.paint("bone", everywhere, label="ball")
    assert (c.labels == 4).all()
    c.paint("bone", everywhere)
    assert (c.labels == 4).all()
    c.paint("bone", everywhere, label="something else")
    assert (c.labels == 0).all()


def test_nothing_is_painted_outside_the_grid() -> None:
    c = canvas()
    c.pipe("bone", np.array([[500.0, 0, 0], [600.0, 0, 0]]), 5.0)
    assert not c.image.any()


CODES = [
    "".join(pick)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for pick in itertools.product(*order)
]


@pytest.mark.parametrize("view", VIEWS)
def test_every_axis_order_keeps_every_voxel_in_its_place(view: str) -> None:
    frame = Frame(view=view, shape=(3, 4, 5), spacing=(7.0, 2.0, 3.0), centre=(5.0, -8.0, 30.0))
    x, y, z = np.broadcast_arrays(*frame.coordinates())
    truth = np.stack([-x, -y, z], axis=-1).reshape(-1, 3)  # RAS
    numbers = np.arange(60).reshape(frame.shape)
    assert len(CODES) == 48
    for code in CODES:
        stored, labels, grid = to_file_axes(frame, (numbers, numbers), code)
        assert np.array_equal(stored, labels)
        index = np.argwhere(np.ones(stored.shape, dtype=bool))
        world = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
        assert np.allclose(world, truth[stored[tuple(index.T)]], atol=1e-4)
        for axis, letter in enumerate(code):
            column = grid.affine[:3, axis]
            where = "RAS".find(letter) if letter in "RAS" else "LPI".find(letter)
            assert (column[where] > 0) == (letter in "RAS")
            assert np.count_nonzero(column) == 1
