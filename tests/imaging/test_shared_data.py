"""The readers on real images beside the project; skipped, saying so, where they are absent."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medretrieval.imaging import (
    make_slices,
    read_labels,
    read_volume,
    resolve_window,
    slice_axis,
    write_labels,
)
from medretrieval.types import LabelVolume, SlicePolicy

pytestmark = pytest.mark.data


def test_every_listed_volume_and_its_mask(shared: Path, tmp_path: Path) -> None:
    with open(shared / "volumes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 80
    for row in rows:
        volume = read_volume(shared / row["path"], modality=row["modality"])
        labels = read_labels(shared / row["mask"], reference=volume.grid)
        original = nib.load(shared / row["path"])
        assert np.array_equal(volume.grid.affine, original.affine), row["path"]
        assert np.array_equal(volume.voxels, np.asarray(original.dataobj)), row["path"]
        assert labels.voxels.dtype == np.uint8
        assert labels.voxels.any()
        assert labels.names


@pytest.mark.parametrize(
    "name",
    ["acdc/images/patient001_frame01", "openkbp/images/pt_100", "chaos_t2/images/case_00",
     "hippocampus/images/hippocampus_001", "formats/example_mr_sm"],
)  # fmt: skip
def test_masks_written_have_grid_and_affine_bit_for_bit(
    shared: Path, tmp_path: Path, name: str
) -> None:
    path = shared / f"{name}.nii.gz"
    volume = read_volume(path)
    mask = (volume.voxels > np.median(volume.voxels)).astype(np.uint8)
    target = tmp_path / "mask.nii.gz"
    write_labels(LabelVolume(voxels=mask, grid=volume.grid, names={1: "bright"}), target)
    written, original = nib.load(target), nib.load(path)
    assert written.shape == original.shape
    assert written.affine.tobytes() == original.affine.tobytes()
    for field in ("qform_code", "sform_code", "xyzt_units"):
        assert int(written.header[field]) == int(original.header[field])
    assert np.array_equal(np.asarray(written.dataobj), mask)


def test_slicing_axes_and_windows(shared: Path) -> None:
    for name, axis, window in [
        ("acdc/images/patient001_frame01", 2, "percentile"),
        ("openkbp/images/pt_100", 2, "ct-wide"),  # P, L, I and coarse in-plane pixels
        ("chaos_t2/images/case_00", 2, "percentile"),
        ("formats/example_ct", 2, "ct-wide"),
    ]:
        volume = read_volume(shared / f"{name}.nii.gz")
        assert slice_axis(volume.grid, "acquisition") == axis
        assert resolve_window(volume.voxels, "auto").policy == window


@pytest.mark.parametrize(
    ("name", "liver", "spleen"),
    [("chaos_t2/images/case_00", 1, 4), ("chaos_t2/images/case_03", 1, 4)],
)
def test_liver_is_on_the_left_of_the_picture(
    shared: Path, name: str, liver: int, spleen: int
) -> None:
    volume = read_volume(shared / f"{name}.nii.gz")
    labels = read_labels(
        shared / f"{name.replace('images', 'labels')}.nii.gz", reference=volume.grid
    )
    for plane in ("axial", "coronal"):
        columns: dict[int, list[int]] = {liver: [], spleen: []}
        for item in make_slices(volume, SlicePolicy(axis=plane), labels=labels):
            assert item.mask is not None
            for label, found in columns.items():
                found += np.nonzero(item.mask == label)[1].tolist()
        assert np.mean(columns[liver]) < np.mean(columns[spleen])


def test_cord_is_behind_the_larynx_and_brainstem_above(shared: Path) -> None:
    volume = read_volume(shared / "openkbp/images/pt_100.nii.gz")
    labels = read_labels(shared / "openkbp/labels/pt_100.nii.gz", reference=volume.grid)
    cord, larynx, brainstem = 2, 6, 1

    def centre(plane: str, label: int) -> np.ndarray:
        found = [
            np.argwhere(item.mask == label)
            for item in make_slices(volume, SlicePolicy(axis=plane), labels=labels)
        ]
        return np.concatenate(found).mean(axis=0)

    assert centre("axial", cord)[0] > centre("axial", larynx)[0]  # rows run to the back
    assert centre("sagittal", cord)[1] > centre("sagittal", larynx)[1]  # columns as well
    for plane in ("coronal", "sagittal"):
        assert centre(plane, brainstem)[0] < centre(plane, cord)[0]  # rows run downwards


def test_pictures(shared: Path) -> None:
    retina = read_volume(shared / "drive/images/21_training.tif")
    assert retina.color
    assert retina.grid.shape == (565, 584, 1)
    vessels = read_labels(shared / "drive/masks/21_training.png", reference=retina.grid)
    assert vessels.names == {255: "label_255"}
    with open(shared / "images.csv", newline="") as file:
        for row in list(csv.DictReader(file))[::20]:
            assert read_volume(shared / row["path"]).grid.shape[2] == 1
