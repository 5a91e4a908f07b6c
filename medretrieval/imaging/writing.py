"""Writing label maps and images on exactly the grid they belong to."""

from __future__ import annotations

import gzip
import os
import uuid
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medretrieval.errors import InputError, UsageError
from medretrieval.imaging.geometry import SAME_AFFINE_MM, describe, extract, singleton_axis
from medretrieval.imaging.labels import unsigned
from medretrieval.imaging.nifti import geometry_header
from medretrieval.imaging.sniff import suffix_of
from medretrieval.types import Grid, LabelVolume, Volume

_PICTURES = (".png", ".tif", ".tiff")
_VOLUMES = (".nii", ".nii.gz")


def write_labels(
    labels: LabelVolume, path: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Write a label map in the smallest unsigned dtype, on exactly its grid.

    .nii and .nii.gz: with `grid.header` its qform, sform, codes and units are written as they are.
    Without one (pictures, DICOM, computed volumes) the affine becomes the sform (code 1, scanner;
    2, aligned, where the spacing is unknown), which NIfTI-1 stores as float32; the affines that
    the DICOM and picture readers derive are of that precision already, so that they come back as
    the same numbers. .png, .tif, .tiff: the displayed slice of a grid of one slice, 8 or 16 bit.

    The file appears under its name only when it is complete; a failure leaves nothing behind.

    Args:
        labels: unsigned integers on `labels.grid`.
        path: where to; the suffix decides the format.
        overwrite: replace an existing file.

    Raises:
        UsageError: unknown suffix, existing file, missing folder, picture of a volume.
        InputError: voxels that are not labels or not on their grid, or a failing disk.
    """
    if labels.voxels.shape != labels.grid.shape:
        raise InputError(
            f"a mask of shape {labels.voxels.shape} is not on its grid: {describe(labels.grid)}"
        )
    voxels = unsigned(labels.voxels, "the mask to write")
    if suffix_of(Path(path)) in _PICTURES and voxels.dtype.itemsize > 2:
        raise UsageError(
            f"label values up to {voxels.max()} do not fit a 16-bit picture; use .nii.gz"
        )
    _write(voxels, labels.grid, Path(path), overwrite)


def write_volume(volume: Volume, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write an image on exactly its grid; formats, grid and atomicity as for `write_labels`.

    Args:
        volume: NIfTI takes any grey volume in its own dtype; pictures take one slice of uint8 or
            uint16, or colour.

    Raises:
        UsageError: as for `write_labels`, or a colour volume as NIfTI.
        InputError: the disk fails, or the grid cannot be stored.
    """
    path = Path(path)
    picture = suffix_of(path) in _PICTURES
    if volume.color and not picture:
        raise UsageError("a colour picture cannot be written as NIfTI; use .png or .tif")
    if picture and volume.voxels.dtype not in (np.uint8, np.uint16):
        raise UsageError(
            f"intensities of type {volume.voxels.dtype} do not fit a picture; use .nii.gz"
        )
    _write(volume.voxels, volume.grid, path, overwrite)


def _write(voxels: NDArray[Any], grid: Grid, path: Path, overwrite: bool) -> None:
    check_target(path, grid, overwrite=overwrite)
    suffix = suffix_of(path)
    if suffix in _VOLUMES:
        data = _nifti_bytes(voxels, grid)
        # No time stamp in the gzip header: the same image gives the same file.
        content = gzip.compress(data, mtime=0) if suffix == ".nii.gz" else data
    else:
        content = _picture_bytes(voxels, grid, suffix)
    _write_atomically(path, content)


def check_target(path: Path, grid: Grid, *, overwrite: bool = False) -> None:
    """Refuse a name under which nothing on `grid` can be written; writes nothing itself.

    Raises:
        UsageError: unknown suffix, existing file, missing folder, picture of a volume.
    """
    suffix = suffix_of(path)
    if suffix not in (*_VOLUMES, *_PICTURES):
        raise UsageError(
            f"cannot write an image as {path.name!r}; expected a name ending in .nii.gz, .nii, "
            ".png or .tif"
        )
    if suffix in _PICTURES:
        _picture_axis(grid, suffix)
    try:
        is_folder, exists, has_parent = path.is_dir(), path.exists(), path.parent.is_dir()
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
    if "\0" in str(path):
        raise UsageError(f"{str(path)!r} is not a name that a file can have")
    if is_folder:
        raise UsageError(f"{path} is a folder; give the name of a file in it")
    if exists and not overwrite:
        raise UsageError(
            f"{path} exists already; choose another name, or allow overwriting "
            "(overwrite=True; command line: --force)"
        )
    if not has_parent:
        raise UsageError(f"the folder {path.parent} does not exist; create it first")


def _nifti_bytes(voxels: NDArray[Any], grid: Grid) -> bytes:
    if grid.header is not None:
        header = geometry_header(grid.header, grid.shape)
        affine = header.get_best_affine()
    else:
        new: Any = nib.Nifti1Header
        header = new()
        header.set_data_shape(grid.shape)
        header.set_zooms(grid.spacing)
        header.set_xyzt_units("mm")
        header.set_sform(grid.affine, code=1 if grid.spacing_known else 2)
        affine = header.get_best_affine()
    if np.abs(affine - grid.affine).max() > SAME_AFFINE_MM:
        raise InputError(
            f"the affine cannot be stored in NIfTI within {SAME_AFFINE_MM} mm: "
            f"{describe(grid)}. Coordinates this large are not plausible: check the geometry"
        )
    header.set_data_dtype(voxels.dtype)
    kind: Any = nib.Nifti2Image if int(header["sizeof_hdr"]) == 540 else nib.Nifti1Image
    data: bytes = kind(voxels, affine, header).to_bytes()
    return data


def _picture_axis(grid: Grid, suffix: str) -> int:
    """The axis along which `grid` is one slice thick."""
    axis = singleton_axis(grid.shape)
    if axis is None and grid.shape[2] == 1:
        axis = 2
    if axis is None:
        raise UsageError(
            f"{'x'.join(map(str, grid.shape))} voxels are a volume, which cannot be written "
            f"as a {suffix} picture; use .nii.gz"
        )
    return axis


def _picture_bytes(voxels: NDArray[Any], grid: Grid, suffix: str) -> bytes:
    axis = _picture_axis(grid, suffix)
    buffer = BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(extract(voxels, grid, axis, 0)))
    picture.save(buffer, format="PNG" if suffix == ".png" else "TIFF")
    return buffer.getvalue()


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); check space and permissions"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
