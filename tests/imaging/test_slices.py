from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medretrieval.errors import InputError, UsageError
from medretrieval.imaging import (
    extract,
    insert,
    make_slices,
    picture_grid,
    reduced_shape,
    resize_nearest,
    slice_axis,
)
from medretrieval.types import Grid, LabelVolume, SlicePolicy, Volume


def volume_of(voxels: np.ndarray, affine: np.ndarray | None = None) -> Volume:
    shape = (voxels.shape[0], voxels.shape[1], voxels.shape[2])
    return Volume(voxels=voxels, grid=Grid(shape=shape, affine=np.eye(4) if affine is None
                                           else affine))  # fmt: skip


def labels_of(voxels: np.ndarray, grid: Grid) -> LabelVolume:
    return LabelVolume(voxels=voxels, grid=grid, names={1: "a"})


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal", "acquisition"])
def test_masks_come_back_identical_in_every_orientation(affine: np.ndarray, plane: str) -> None:
    rng = np.random.default_rng(1)
    volume = volume_of(rng.normal(size=(3, 4, 5)).astype(np.float32), affine)
    mask = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    policy = SlicePolicy(axis=plane)
    axis = slice_axis(volume.grid, plane)
    back = np.zeros_like(mask)
    slices = list(make_slices(volume, policy, labels=labels_of(mask, volume.grid)))
    for item in slices:
        assert item.mask is not None
        assert item.mask.shape == item.image.shape
        insert(back, volume.grid, axis, item.index, item.mask)
    assert [item.index for item in slices] == list(range(volume.grid.shape[axis]))
    assert np.array_equal(back, mask)


def test_window_belongs_to_the_volume_not_to_the_slice() -> None:
    voxels = np.stack([np.full((4, 4), v, np.int16) for v in (0, 50, 100)], axis=2)
    one = next(make_slices(volume_of(voxels), SlicePolicy(window="percentile"), indices=[1]))
    assert np.unique(one.image).tolist() == [128]


def test_indices_are_kept_in_the_order_wanted() -> None:
    volume = volume_of(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    chosen = make_slices(volume, SlicePolicy(axis="axial"), indices=np.array([4, 0]))
    assert [item.index for item in chosen] == [4, 0]


def test_position_and_spacing() -> None:
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (0, 0, -7)
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    item = list(make_slices(volume_of(voxels, affine), SlicePolicy(axis="axial")))[2]
    assert item.position_mm == pytest.approx(1.0)
    assert item.spacing == pytest.approx((3.0, 2.0, 4.0))
    picture = Volume(voxels=voxels[..., :1], grid=picture_grid(3, 4))
    flat = next(make_slices(picture, SlicePolicy()))
    assert flat.position_mm is None
    assert flat.spacing is None


def test_reduction_averages_the_image_and_keeps_labels() -> None:
    voxels = np.zeros((8, 4, 2), np.uint8)
    voxels[::2] = 200  # columns alternate 200, 0
    volume = volume_of(voxels)
    mask = np.zeros((8, 4, 2), np.uint16)
    mask[:4] = 700
    item = next(
        make_slices(
            volume,
            SlicePolicy(axis="axial", window="identity", max_side=4),
            labels=labels_of(mask, volume.grid),
        )
    )
    assert item.image.shape == (2, 4)
    assert np.unique(item.image).tolist() == [100]
    assert item.mask is not None
    assert item.mask.tolist() == [[0, 0, 700, 700]] * 2  # the right half is displayed on the left
    assert item.spacing == pytest.approx((2.0, 2.0, 1.0))


def test_unlabelled_slices_have_a_mask_of_zeros_only_with_labels() -> None:
    volume = volume_of(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    empty = labels_of(np.zeros((3, 4, 5), np.uint8), volume.grid)
    masks = [item.mask for item in make_slices(volume, SlicePolicy(), labels=empty)]
    assert all(mask is not None and not mask.any() for mask in masks)
    assert all(item.mask is None for item in make_slices(volume, SlicePolicy()))


def test_colour_pictures_stay_coloured() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    volume = Volume(voxels=pixels.swapaxes(0, 1)[:, :, None], grid=picture_grid(5, 6), color=True)
    item = next(make_slices(volume, SlicePolicy()))
    assert np.array_equal(item.image, pixels)
    assert next(make_slices(volume, SlicePolicy(max_side=3))).image.shape == (3, 2, 3)


def test_masks_on_another_grid_are_refused_with_both_shown() -> None:
    volume = volume_of(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    moved = labels_of(np.zeros((3, 4, 5), np.uint8), Grid(shape=(3, 4, 5), affine=np.eye(4)))
    moved.grid.affine[0, 3] = 5
    with pytest.raises(InputError, match=r"mask 3x4x5 .*1 0 0 5.*image 3x4x5 .*1 0 0 0"):
        make_slices(volume, SlicePolicy(), labels=moved)


@pytest.mark.parametrize(
    ("policy", "indices"),
    [
        (SlicePolicy(axis="axial"), [5]),
        (SlicePolicy(axis="axial"), [-1]),
        (SlicePolicy(max_side=0), None),
        (SlicePolicy(window="lung"), None),
    ],
)
def test_wrong_requests_fail_at_the_call(policy: SlicePolicy, indices: list[int] | None) -> None:
    volume = volume_of(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    with pytest.raises(UsageError):
        make_slices(volume, policy, indices=indices)


@given(st.tuples(st.integers(1, 400), st.integers(1, 400)), st.integers(1, 300))
def test_reduced_shape_properties(shape: tuple[int, int], side: int) -> None:
    rows, columns = reduced_shape(shape, side)
    assert 1 <= rows <= shape[0]
    assert 1 <= columns <= shape[1]
    assert max(rows, columns) == min(side, max(shape))
    if min(shape) * side >= max(shape) and max(shape) > side:
        # Each side rounds by at most half a pixel.
        assert abs(rows * max(shape) - shape[0] * side) <= max(shape) / 2
        assert abs(columns * max(shape) - shape[1] * side) <= max(shape) / 2


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4))
def test_enlarging_by_a_whole_factor_and_reducing_again_is_the_identity(
    rows: int, columns: int, factor: int
) -> None:
    mask = np.arange(rows * columns, dtype=np.uint16).reshape(rows, columns)
    larger = resize_nearest(mask, (rows * factor, columns * factor))
    assert np.array_equal(larger, np.kron(mask, np.ones((factor, factor), np.uint16)))
    assert np.array_equal(resize_nearest(larger, (rows, columns)), mask)


def test_slices_are_contiguous_copies() -> None:
    volume = volume_of(np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    policy = SlicePolicy(axis="axial", window="identity")
    item = next(make_slices(volume, policy))
    assert item.image.flags.c_contiguous
    item.image[...] = 0
    assert extract(volume.voxels, volume.grid, 2, 0).any()
