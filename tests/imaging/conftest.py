"""Builders of images and broken files for the tests of the readers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SHARED = (Path(__file__).parents[2] / "../shared/data").resolve()
ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
PATIENT = ("Doe^Jane", "PID-4711", "19700101")


def oriented_affine(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """Affine whose stored axis i runs along world axis order[i] with sign signs[i]."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * (1.0, 1.25, 2.5)[axis]
    affine[:3, 3] = (-12.5, 7.25, 30.0)
    return affine


@pytest.fixture(params=ORIENTATIONS, ids=lambda o: f"{o[0]}{o[1]}".replace(" ", ""))
def affine(request: pytest.FixtureRequest) -> np.ndarray:
    """Each of the 48 orientations in turn."""
    return oriented_affine(*request.param)


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the annotated images are not at {SHARED}")
    return SHARED


@pytest.fixture
def save_nifti(tmp_path: Path) -> Callable[..., Path]:
    def save(
        voxels: np.ndarray,
        affine: np.ndarray | None = None,
        name: str = "image.nii.gz",
        edit: Callable[[Any], None] | None = None,
        kind: type = nib.Nifti1Image,
    ) -> Path:
        image = kind(voxels, np.eye(4) if affine is None else affine)
        if edit is not None:
            edit(image)
        nib.save(image, tmp_path / name)
        return tmp_path / name

    return save


def dicom_dataset(
    pixels: np.ndarray,
    position: tuple[float, float, float] | None = (0.0, 0.0, 0.0),
    *,
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    spacing: tuple[float, float] = (0.5, 0.75),
    series: str = "1.2.3.4",
    number: int | None = 2,
    **elements: Any,
) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = PATIENT
    dataset.Modality = "CT"
    dataset.SeriesInstanceUID = series
    if number is not None:
        dataset.SeriesNumber = number
    if position is not None:
        dataset.ImagePositionPatient = list(position)
        dataset.ImageOrientationPatient = list(orientation)
        dataset.PixelSpacing = list(spacing)
        dataset.SliceThickness = 3.0
    frames = pixels.ndim - 2 - (1 if elements.get("SamplesPerPixel", 1) == 3 else 0)
    if frames:
        dataset.NumberOfFrames = pixels.shape[0]
    dataset.Rows, dataset.Columns = pixels.shape[frames : frames + 2]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


@pytest.fixture
def make_dicom() -> Callable[..., FileDataset]:
    return dicom_dataset


@pytest.fixture
def save_series(tmp_path: Path) -> Callable[..., Path]:
    """Write a series of slices; returns its folder. `at` are the distances along the normal."""

    def save(
        volume: np.ndarray,
        *,
        at: list[float],
        orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
        origin: tuple[float, float, float] = (-10.0, 20.0, 30.0),
        folder: str = "series",
        seed: int = 0,
        **elements: Any,
    ) -> Path:
        target = tmp_path / folder
        target.mkdir(exist_ok=True)
        normal = np.cross(orientation[:3], orientation[3:])
        names = np.random.default_rng(seed).permutation(len(at))
        for number, (pixels, distance) in enumerate(zip(volume, at, strict=True)):
            position = tuple((np.array(origin) + distance * normal).tolist())
            dataset = dicom_dataset(
                pixels, position, orientation=orientation, InstanceNumber=number + 1, **elements
            )
            # No suffix and shuffled names: neither the name nor its order may matter.
            prefix = elements.get("series", "")
            dataset.save_as(target / f"IM{prefix}{names[number]:04d}", enforce_file_format=True)
        return target

    return save


@pytest.fixture
def pydicom_file() -> Callable[[str], Path]:
    def find(name: str) -> Path:
        path = pydicom.data.get_testdata_file(name, download=False)
        assert path is not None, f"pydicom's wheel no longer carries {name}"
        return Path(str(path))

    return find
