from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medretrieval.errors import InputError, UsageError
from medretrieval.imaging import (
    extract,
    insert,
    picture_grid,
    read_labels,
    read_volume,
    slice_axis,
    write_labels,
)
from medretrieval.types import Grid, LabelVolume

Save = Callable[..., Path]
SHAPE = (3, 4, 5)


def labels_of(voxels: np.ndarray, grid: Grid | None = None) -> LabelVolume:
    shape = (voxels.shape[0], voxels.shape[1], voxels.shape[2])
    return LabelVolume(voxels=voxels, grid=grid or Grid(shape=shape, affine=np.eye(4)), names={})


def counting(dtype: Any = np.uint8) -> np.ndarray:
    return np.arange(60).astype(dtype).reshape(SHAPE)


# --- the round trip through files ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_out_mask_back_in_every_orientation(
    save_nifti: Save, tmp_path: Path, affine: np.ndarray, name: str, plane: str
) -> None:
    path = save_nifti(counting(np.int16), affine)
    volume = read_volume(path)
    axis = slice_axis(volume.grid, plane)
    mask = np.zeros(SHAPE, np.uint16)
    for index in range(volume.grid.shape[axis]):
        picture = extract(volume.voxels, volume.grid, axis, index)
        insert(mask, volume.grid, axis, index, picture)
    write_labels(labels_of(mask, volume.grid), tmp_path / name)
    written, original = nib.load(tmp_path / name), nib.load(path)
    assert np.array_equal(np.asarray(written.dataobj), counting())
    assert written.get_data_dtype() == np.uint8
    assert np.array_equal(written.affine, original.affine)
    back = read_labels(tmp_path / name, reference=volume.grid)
    assert np.array_equal(back.voxels, counting())
    assert back.grid is volume.grid


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (1, 1), (3, 4), (0, 0)])
def test_geometry_of_the_header_survives_bit_for_bit(
    save_nifti: Save, tmp_path: Path, kind: type, codes: tuple[int, int]
) -> None:
    rotation = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, -1]]) * [0.7, 0.7, 3.3]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation, (-81.3, 33.333, 12.1)

    def edit(image: Any) -> None:
        image.set_qform(affine, codes[0])
        image.set_sform(affine @ np.diag([1.1, 1, 1, 1]), codes[1])
        image.header.set_xyzt_units("mm", "sec")
        image.header["descrip"] = b"Jane Doe"

    path = save_nifti(counting(np.int16), affine, edit=edit, kind=kind)
    write_labels(labels_of(counting(), read_volume(path).grid), tmp_path / "mask.nii.gz")
    written, original = nib.load(tmp_path / "mask.nii.gz"), nib.load(path)
    assert isinstance(written, kind)
    for field in ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
                  "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units", "dim",
                  "pixdim"):  # fmt: skip
        was, now = np.asarray(original.header[field]), np.asarray(written.header[field])
        count = 4 if field in ("dim", "pixdim") else None
        assert was.ravel()[:count].tobytes() == now.ravel()[:count].tobytes(), field
    assert np.array_equal(written.affine, original.affine)
    assert bytes(written.header["descrip"]).strip(b"\0") == b""


def test_mask_of_one_channel_of_a_four_dimensional_image_is_three_dimensional(
    save_nifti: Save, tmp_path: Path
) -> None:
    grid = read_volume(save_nifti(np.arange(120, dtype=np.int16).reshape(*SHAPE, 2))).grid
    write_labels(labels_of(counting(), grid), tmp_path / "mask.nii")
    assert nib.load(tmp_path / "mask.nii").shape == SHAPE


@pytest.mark.parametrize("name", ["mask.png", "mask.tif", "mask.nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_of_pictures(tmp_path: Path, name: str, dtype: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    grid = read_volume(tmp_path / "image.png").grid
    values = np.arange(35).astype(dtype).reshape(5, 7) * (1 if dtype is np.uint8 else 1000)
    write_labels(labels_of(values.T[..., None], grid), tmp_path / name)
    back = read_labels(tmp_path / name, reference=grid)
    assert np.array_equal(extract(back.voxels, grid, 2, 0), values)
    assert np.array_equal(back.grid.affine, grid.affine)
    if not name.endswith("gz"):
        assert np.array_equal(np.asarray(Image.open(tmp_path / name)), values)


def test_mask_picture_of_an_oblique_single_slice(tmp_path: Path) -> None:
    # Stored S, P: displayed upright and to the back, whatever the order of storing.
    affine = np.array([[0, 0, 2, 5], [0, -1, 0, 6], [1, 0, 0, 7], [0, 0, 0, 1.0]])
    grid = Grid(shape=(4, 6, 1), affine=affine)
    voxels = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    write_labels(labels_of(voxels, grid), tmp_path / "mask.png")
    stored = np.asarray(Image.open(tmp_path / "mask.png"))
    assert np.array_equal(stored, voxels[::-1, :, 0])
    assert np.array_equal(read_labels(tmp_path / "mask.png", reference=grid).voxels, voxels)


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [(0, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.uint32)],
)
def test_smallest_dtype(tmp_path: Path, largest: int, dtype: type) -> None:
    voxels = np.zeros(SHAPE, np.int64)
    voxels[1, 2, 3] = largest
    write_labels(labels_of(voxels), tmp_path / "mask.nii.gz")
    assert nib.load(tmp_path / "mask.nii.gz").get_data_dtype() == dtype
    back = read_labels(tmp_path / "mask.nii.gz", reference=None)
    assert back.voxels.dtype == dtype
    assert np.array_equal(back.voxels, voxels)


def test_writing_is_reproducible(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_labels(labels_of(counting()), tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


# --- refusing to write --------------------------------------------------------------------------


def test_existing_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii.gz"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"exists already.*--force"):
        write_labels(labels_of(counting()), path)
    assert path.read_bytes() == b"precious"
    write_labels(labels_of(counting()), path, overwrite=True)
    assert np.array_equal(read_labels(path, reference=None).voxels, counting())
    assert os.listdir(tmp_path) == ["mask.nii.gz"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_left_on_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    path = tmp_path / "mask.nii.gz"
    if overwrite:
        path.write_bytes(b"precious")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        write_labels(labels_of(counting()), path, overwrite=overwrite)
    assert os.listdir(tmp_path) == (["mask.nii.gz"] if overwrite else [])
    if overwrite:
        assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["mask.jpg", "mask.dcm", "mask", "none/mask.nii", "mask.png",
                                  "a\0b.nii", "n" * 300 + ".nii"])  # fmt: skip
def test_wrong_targets(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        write_labels(labels_of(counting()), tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_folders_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mask.nii").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        write_labels(labels_of(counting()), tmp_path / "mask.nii", overwrite=True)


def test_pictures_hold_sixteen_bit(tmp_path: Path) -> None:
    voxels = np.full((3, 4, 1), 70_000, np.uint32)
    with pytest.raises(UsageError, match="70000"):
        write_labels(labels_of(voxels, picture_grid(3, 4)), tmp_path / "mask.png")


@pytest.mark.parametrize(
    "voxels",
    [counting(np.int16) - 1, counting(np.float32) / 2, np.full(SHAPE, np.nan),
     np.full(SHAPE, 2**40), np.zeros(SHAPE, complex), np.zeros((3, 4, 6), np.uint8)],
)  # fmt: skip
def test_what_is_not_labels_is_not_written(tmp_path: Path, voxels: np.ndarray) -> None:
    grid = Grid(shape=SHAPE, affine=np.eye(4))
    with pytest.raises(InputError):
        write_labels(labels_of(voxels, grid), tmp_path / "mask.nii.gz")
    assert os.listdir(tmp_path) == []


def test_affine_that_nifti_cannot_hold(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 3] = 1e6 + 0.03
    with pytest.raises(InputError, match="cannot be stored"):
        write_labels(labels_of(counting(), Grid(shape=SHAPE, affine=affine)), tmp_path / "m.nii")


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_whole_numbers_of_any_dtype(save_nifti: Save, dtype: type) -> None:
    labels = read_labels(save_nifti(counting(dtype)), reference=None)
    assert labels.voxels.dtype == np.uint8
    assert np.array_equal(labels.voxels, counting())


def test_empty_masks_are_fine(save_nifti: Save) -> None:
    labels = read_labels(save_nifti(np.zeros(SHAPE, np.uint8)), reference=None)
    assert not labels.voxels.any()
    assert labels.names == {}


def test_names(save_nifti: Save) -> None:
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[0, 0, :3] = (1, 2, 7)
    labels = read_labels(save_nifti(voxels), reference=None, names={0: "none", 2: "LV", 5: "RV"})
    assert labels.names == {1: "label_1", 2: "LV", 5: "RV", 7: "label_7"}


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (counting(np.float32) / 2, "not whole numbers"),
        (counting(np.int16) - 5, "negative"),
        (np.full(SHAPE, np.nan, np.float32), "NaN"),
        (np.full(SHAPE, np.inf, np.float32), "infinite"),
        (counting(np.float64) * 1e12, "at most 4294967295"),
        (np.zeros(SHAPE, np.complex64), "real numbers"),
    ],
)
def test_what_is_not_labels_is_refused(save_nifti: Save, voxels: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_labels(save_nifti(voxels), reference=None)


def test_scaled_labels(save_nifti: Save) -> None:
    path = save_nifti(counting(np.int16), name="a.nii")
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([2.0, 1.0], "<f4").tobytes()
    path.write_bytes(data)
    assert np.array_equal(read_labels(path, reference=None).voxels, counting() * 2 + 1)
    data[112:116] = np.array([0.5], "<f4").tobytes()
    path.write_bytes(data)
    with pytest.raises(InputError, match="not whole numbers"):
        read_labels(path, reference=None)


def test_another_grid_is_refused_with_both_shown(save_nifti: Save) -> None:
    path = save_nifti(counting())
    shifted = np.eye(4)
    shifted[2, 3] = 0.01
    with pytest.raises(InputError, match=r"mask 3x4x5 .*0 0 1 0\].*image 3x4x5 .*0 0 1 0\.01\]"):
        read_labels(path, reference=Grid(shape=SHAPE, affine=shifted))
    with pytest.raises(InputError, match="image 3x4x6"):
        read_labels(path, reference=Grid(shape=(3, 4, 6), affine=np.eye(4)))


def test_rounding_of_the_affine_is_tolerated(save_nifti: Save) -> None:
    near = Grid(shape=SHAPE, affine=np.eye(4) + np.eye(4, k=3) * 5e-4)
    assert read_labels(save_nifti(counting()), reference=near).grid is near


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16", "TIFF"])
def test_label_pictures(tmp_path: Path, mode: str) -> None:
    values = np.array([[0, 1, 0], [1, 1, 0]], np.uint8) * (255 if mode in ("L", "RGB") else 1)
    path = tmp_path / ("mask.tif" if mode == "TIFF" else "mask.png")
    if mode == "P":
        picture = Image.fromarray(values, mode="P")
        picture.putpalette([0, 0, 0, 255, 30, 0])
    elif mode == "RGB":
        picture = Image.fromarray(np.repeat(values[..., None], 3, axis=2))
    elif mode == "I;16":
        values = values.astype(np.uint16) * 300
        picture = Image.fromarray(values)
    else:
        picture = Image.fromarray(values > 0) if mode == "1" else Image.fromarray(values)
    picture.save(path)
    labels = read_labels(path, reference=picture_grid(3, 2))
    assert np.array_equal(extract(labels.voxels, labels.grid, 2, 0), values)
    assert labels.names == {int(values.max()): f"label_{values.max()}"}


def test_coloured_and_transparent_masks_are_refused(tmp_path: Path) -> None:
    colors = np.zeros((2, 3, 3), np.uint8)
    colors[0, 0] = (255, 0, 0)
    Image.fromarray(colors).save(tmp_path / "a.png")
    rgba = np.zeros((2, 3, 4), np.uint8)
    Image.fromarray(rgba).save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with pytest.raises(InputError, match="colour or transparent"):
            read_labels(tmp_path / name, reference=None)


def test_jpeg_masks_are_refused_whatever_their_name(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "mask.png", format="JPEG")
    with pytest.raises(InputError, match="JPEG: lossy"):
        read_labels(tmp_path / "mask.png", reference=None)


def test_picture_of_another_size_or_for_a_volume(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=r"3x2 pixels .* 4x2"):
        read_labels(tmp_path / "mask.png", reference=picture_grid(4, 2))
    with pytest.raises(InputError, match="single slice"):
        read_labels(tmp_path / "mask.png", reference=Grid(shape=SHAPE, affine=np.eye(4)))


def test_other_inputs(tmp_path: Path, pydicom_file: Callable[[str], Path]) -> None:
    for path, message in [
        (tmp_path / "none.nii", "does not exist"),
        (tmp_path, "is a folder"),
        (pydicom_file("CT_small.dcm"), "is a dicom file"),
    ]:
        with pytest.raises(InputError, match=message):
            read_labels(path, reference=None)


def test_mask_with_a_channel_for_each_structure_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6, 3), np.uint8), np.eye(4)), path)
    with pytest.raises(InputError, match="3 channels"):
        read_labels(path, reference=None)
