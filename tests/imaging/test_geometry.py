from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from medretrieval.errors import InputError, UsageError
from medretrieval.imaging import (
    extract,
    finest_plane,
    insert,
    position_mm,
    same_grid,
    slice_axis,
)
from medretrieval.imaging.geometry import check_affine, display_axes, picture_grid
from medretrieval.types import Grid

WORLD = {"L": (0, -1), "R": (0, 1), "P": (1, -1), "A": (1, 1), "I": (2, -1), "S": (2, 1)}
DISPLAY = {"axial": "PL", "coronal": "IL", "sagittal": "IP"}  # rows run to, columns run to


def grid_of(affine: np.ndarray, shape: tuple[int, int, int] = (3, 4, 5)) -> Grid:
    return Grid(shape=shape, affine=affine)


def world_coordinates(grid: Grid) -> np.ndarray:
    """(X, Y, Z, 3) world coordinate of every voxel, by the definition of an affine."""
    ijk = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return ijk @ grid.affine[:3, :3].T + grid.affine[:3, 3]


@pytest.mark.parametrize("plane", DISPLAY)
def test_display_convention_in_every_orientation(affine: np.ndarray, plane: str) -> None:
    grid = grid_of(affine)
    axis = slice_axis(grid, plane)
    picture = extract(world_coordinates(grid), grid, axis, 1)
    for steps, letter in zip(
        (np.diff(picture, axis=0), np.diff(picture, axis=1)), DISPLAY[plane], strict=True
    ):
        world, sign = WORLD[letter]
        assert (sign * steps[..., world] > 0).all()
        assert np.count_nonzero(np.abs(steps).sum(axis=(0, 1))) == 1


@pytest.mark.parametrize("plane", DISPLAY)
def test_slices_out_and_back_in_every_orientation(affine: np.ndarray, plane: str) -> None:
    grid = grid_of(affine)
    volume = np.arange(60, dtype=np.int16).reshape(grid.shape)
    axis = slice_axis(grid, plane)
    back = np.full_like(volume, -1)
    for index in range(grid.shape[axis]):
        insert(back, grid, axis, index, extract(volume, grid, axis, index).copy())
    assert np.array_equal(back, volume)


def test_golden_axial_picture() -> None:
    # With RAS+ axes voxel (0, 0) lies most to the left and to the back: bottom right on display.
    grid = Grid(shape=(2, 3, 1), affine=np.eye(4))
    voxels = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)[..., None]
    assert extract(voxels, grid, 2, 0).tolist() == [[6, 3], [5, 2], [4, 1]]


def test_pictures_are_displayed_as_stored() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    grid = picture_grid(4, 3)
    assert np.array_equal(extract(pixels.T[..., None], grid, 2, 0), pixels)


def test_colour_keeps_its_channels() -> None:
    grid = picture_grid(4, 3)
    voxels = np.arange(36, dtype=np.uint8).reshape(4, 3, 1, 3)
    picture = extract(voxels, grid, 2, 0)
    assert picture.shape == (3, 4, 3)
    assert np.array_equal(picture, voxels[:, :, 0].swapaxes(0, 1))


@given(
    angles=st.tuples(*[st.floats(-25, 25)] * 3),
    order=st.permutations(range(3)),
    plane=st.sampled_from(sorted(DISPLAY)),
)
def test_oblique_grids_take_the_nearest_axes(
    angles: tuple[float, ...], order: list[int], plane: str
) -> None:
    # Up to 25 degrees about each axis the nearest axis may still be debated in composition, so the
    # rotation angle as a whole is bounded.
    rotation = Rotation.from_euler("xyz", angles, degrees=True)
    if rotation.magnitude() > np.deg2rad(40):
        rotation = Rotation.identity()
    straight = np.eye(3)[:, order]
    affine = np.eye(4)
    affine[:3, :3] = rotation.as_matrix() @ straight
    expected = slice_axis(grid_of(np.block([[straight, np.zeros((3, 1))], [0, 0, 0, 1]])), plane)
    grid = grid_of(affine)
    axis = slice_axis(grid, plane)
    assert axis == expected
    picture = extract(world_coordinates(grid), grid, axis, 0)
    world, sign = WORLD[DISPLAY[plane][0]]
    assert (sign * np.diff(picture, axis=0)[..., world] > 0).all()


@given(
    data=st.data(),
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from((1, -1))] * 3),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
    axis=st.integers(0, 2),
)
def test_insert_inverts_extract(
    data: st.DataObject,
    order: list[int],
    signs: tuple[int, ...],
    shape: tuple[int, int, int],
    axis: int,
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * signs
    grid = Grid(shape=shape, affine=affine)
    volume = data.draw(hnp.arrays(np.uint16, shape))
    index = data.draw(st.integers(0, shape[axis] - 1))
    row, column, _, _ = display_axes(affine, axis)
    picture = data.draw(hnp.arrays(np.uint16, (shape[row], shape[column])))
    before = volume.copy()
    insert(volume, grid, axis, index, picture)
    assert np.array_equal(extract(volume, grid, axis, index), picture)
    others = [i for i in range(shape[axis]) if i != index]
    assert np.array_equal(volume.take(others, axis), before.take(others, axis))


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ((1.5, 1.5, 10), 2),
        ((10, 1.5, 1.5), 0),
        ((1, 1.6, 1), 1),
        ((1, 1.4, 1), 2),  # less than 1.5 times: axial
        ((1, 1.5, 1), 1),  # exactly 1.5 times counts
        ((1, 2, 3), 2),
        ((5, 5, 2.5), 2),  # the two coarse axes span a reduced axial slice
        ((1, 1, 1), 2),
    ],
)
def test_acquisition_axis(spacing: tuple[float, ...], expected: int) -> None:
    assert slice_axis(grid_of(np.diag([*spacing, 1.0])), "acquisition") == expected


def test_acquisition_axis_follows_the_affine() -> None:
    # Axes P, L, I and isotropic: axial is the last; axes S, R, A: axial is the first.
    assert slice_axis(grid_of(np.eye(4)[:, [1, 0, 2, 3]] * [-1, -1, -1, 1]), "acquisition") == 2
    assert slice_axis(grid_of(np.eye(4)[:, [2, 0, 1, 3]]), "acquisition") == 0


@pytest.mark.parametrize("axis", ["acquisition", "axial", "coronal", "sagittal"])
def test_one_slice_is_always_cut_along_its_thin_axis(axis: str) -> None:
    assert slice_axis(picture_grid(30, 20), axis) == 2
    assert slice_axis(grid_of(np.diag([3.0, 1, 1, 1]), (1, 20, 30)), axis) == 0


def test_unknown_axis_has_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean axial"):
        slice_axis(grid_of(np.eye(4)), "axail")


def test_position_is_the_world_coordinate_of_the_centre(affine: np.ndarray) -> None:
    grid = grid_of(affine)
    world = world_coordinates(grid)
    for axis in range(3):
        along = int(np.argmax(np.abs(affine[:3, axis])))
        for index in range(grid.shape[axis]):
            centre = world.take(index, axis).reshape(-1, 3).mean(axis=0)
            assert position_mm(grid, axis, index) == pytest.approx(centre[along])


def test_position_of_a_picture_is_unknown() -> None:
    assert position_mm(picture_grid(4, 3), 2, 0) is None


@pytest.mark.parametrize(
    ("affine", "problem"),
    [
        (np.full((4, 4), np.nan), "NaN"),
        (np.diag([np.inf, 1, 1, 1]), "NaN or infinite"),
        (np.zeros((4, 4)), "last row"),
        (np.diag([0.0, 1, 1, 1]), "spacing"),
        (np.diag([1e9, 1, 1, 1]), "spacing"),
        (np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1.0]]), "singular"),
        (np.eye(3), "4x4"),
        ("affine", "4x4"),
    ],
)
def test_bad_affines_are_refused(affine: object, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        check_affine(affine, "scan.nii")


@pytest.mark.parametrize(
    ("axis", "index", "shape"), [(3, 0, (3, 4, 5)), (2, 5, (3, 4, 5)), (2, -1, (3, 4, 5)),
                                 (2, 0, (3, 4, 6)), (2, 0, (3, 4))],
)  # fmt: skip
def test_extract_refuses_what_is_not_there(axis: int, index: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError):
        extract(np.zeros(shape), grid_of(np.eye(4)), axis, index)


def test_insert_refuses_other_shapes_and_values_that_do_not_fit() -> None:
    grid, volume = grid_of(np.eye(4)), np.zeros((3, 4, 5), np.uint8)
    with pytest.raises(UsageError, match="does not fit"):
        insert(volume, grid, 2, 0, np.zeros((3, 4), np.uint8))
    with pytest.raises(UsageError, match="cannot be stored"):
        insert(volume, grid, 2, 0, np.full((4, 3), 300))
    insert(volume, grid, 2, 0, np.full((4, 3), 200))
    assert volume[..., 0].min() == 200


def test_same_grid_tolerates_a_micrometre() -> None:
    grid = grid_of(np.eye(4))
    near, far = np.eye(4), np.eye(4)
    near[0, 3], far[0, 3] = 9e-4, 2e-3
    assert same_grid(grid, grid_of(near))
    assert not same_grid(grid, grid_of(far))
    assert not same_grid(grid, grid_of(np.eye(4), (3, 4, 6)))


@pytest.mark.parametrize(
    ("spacing", "otherwise", "expected"),
    [
        ((1.0, 1.0, 3.0), "sagittal", "axial"),
        ((3.0, 1.0, 1.0), "acquisition", "sagittal"),
        ((1.0, 1.2, 1.0), "acquisition", "coronal"),  # too little for an acquisition's axis
        ((1.0, 1.0, 1.005), "coronal", "coronal"),
        ((2.0, 2.0, 1.0), "sagittal", "sagittal"),
        ((2.0, 2.0, 1.0), "axial", "coronal"),
        ((1.0, 1.0, 1.0), "acquisition", "axial"),
    ],
)
def test_the_plane_of_the_finest_pixels(
    spacing: tuple[float, ...], otherwise: str, expected: str
) -> None:
    grid = grid_of(np.diag([*spacing, 1.0]))
    plane = finest_plane(grid, otherwise)
    assert plane == expected
    assert finest_plane(grid, plane) == plane


@given(st.permutations(range(3)), st.lists(st.sampled_from([-1, 1]), min_size=3, max_size=3))
def test_the_finest_plane_follows_the_affine(axes: list[int], signs: list[int]) -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, :3] = 0
    affine[axes, range(3)] = np.array(signs) * (1.0, 2.0, 3.0)
    grid = grid_of(affine)
    assert slice_axis(grid, finest_plane(grid, "acquisition")) == 2


def test_pictures_and_single_slices_leave_no_choice() -> None:
    assert finest_plane(picture_grid(3, 4), "coronal") == "coronal"
    assert finest_plane(grid_of(np.diag([1.0, 1.0, 5.0, 1.0]), (1, 4, 5)), "coronal") == "coronal"
    with pytest.raises(UsageError, match="slicing axis"):
        finest_plane(grid_of(np.eye(4)), "diagonal")
