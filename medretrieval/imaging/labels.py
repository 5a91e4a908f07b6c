"""Label maps: reading them onto the grid of their image, and writing them on exactly that grid."""

from __future__ import annotations

import gzip
import os
import uuid
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError, UsageError
from ..types import Grid, LabelVolume
from .geometry import (
    SAME_AFFINE_MM,
    describe,
    display_axes,
    extract,
    insert,
    picture_grid,
    same_grid,
    singleton_axis,
)
from .nifti import geometry_header, read_nifti
from .pictures import read_label_picture
from .sniff import sniff, suffix_of

_UNSIGNED = (np.uint8, np.uint16, np.uint32, np.uint64)
_PICTURES = (".png", ".tif", ".tiff")
_VOLUMES = (".nii", ".nii.gz")


def unsigned(values: NDArray[Any], what: str) -> NDArray[Any]:
    """Return label values in the smallest unsigned dtype that holds them.

    Args:
        values: whole numbers of any real dtype (whole floats are accepted), or bool.
        what: how messages call them.

    Raises:
        InputError: NaN, infinite, fractional, negative, or above 2^32 - 1.
    """
    if values.size == 0:
        raise InputError(f"{what} is empty; expected a label map with voxels")
    if values.dtype.kind not in "biuf":
        raise InputError(f"{what} holds {values.dtype}, not label numbers")
    if values.dtype.kind == "f":
        if not bool(np.isfinite(values).all()):
            raise InputError(f"{what} has NaN or infinite values; labels must be whole numbers")
        fractional = values != np.rint(values)
        if bool(fractional.any()):
            raise InputError(
                f"{what} has values that are not whole numbers (such as "
                f"{float(values[fractional][0]):.6g}); expected a label map, where every value is "
                "a label: use the mask and not the image, and resample masks by nearest neighbour"
            )
    low, high = values.min(), values.max()
    if low < 0:
        raise InputError(
            f"{what} has negative values (lowest {low}); labels must be 0 (background) or more: "
            "use the mask and not the image"
        )
    for dtype in _UNSIGNED:
        if high <= np.iinfo(dtype).max:
            if dtype is np.uint64:
                break
            return np.asarray(values.astype(dtype))
    raise InputError(f"{what} has the label value {high}; expected at most 4294967295")


def label_names(values: NDArray[Any], names: Mapping[int, str] | None) -> dict[int, str]:
    """Return value -> name: those given (except 0), and label_<n> for every other value there."""
    named = {int(v): str(n) for v, n in (names or {}).items() if int(v) != 0}
    present = (int(v) for v in np.unique(values) if v != 0)
    named.update({v: f"label_{v}" for v in present if v not in named})
    return dict(sorted(named.items()))


def read_labels(
    path: str | os.PathLike[str],
    *,
    reference: Grid | None,
    names: Mapping[int, str] | None = None,
) -> LabelVolume:
    """Read a label map from NIfTI (3-D) or a PNG or TIFF label picture.

    A picture fits a reference that is one slice thick and, displayed, as large as the picture.

    Args:
        path: the mask.
        reference: grid of the image that it belongs to; the result carries exactly this grid.
            None takes the mask's own.
        names: label value -> name; values without a name become "label_<n>".

    Returns:
        (X, Y, Z) labels in the smallest unsigned dtype; all zeros are allowed.

    Raises:
        InputError: missing, unreadable, not whole numbers, negative, coloured, JPEG, or not on
            the grid of `reference` (shape, and affine within 1e-3 mm; both are shown).
    """
    path = Path(path)
    what = f"mask {path.name}"
    if path.is_dir():
        raise InputError(f"{what} is a folder; expected a NIfTI, PNG or TIFF file")
    kind = sniff(path, what)
    if kind == "picture":
        picture = unsigned(read_label_picture(path, what), what)
        voxels, grid = _on_slice(picture, reference, what)
    elif kind == "nifti":
        image = read_nifti(path, what)
        stored: NDArray[Any] = image.voxels
        if (image.slope, image.intercept) != (1.0, 0.0):
            stored = stored.astype(np.float64) * image.slope + image.intercept
        voxels, grid = unsigned(stored, what), image.grid
    else:
        raise InputError(
            f"{what} is a {kind} file; expected a label map as NIfTI (.nii, .nii.gz), PNG or TIFF: "
            "convert it"
        )
    if reference is not None and not same_grid(grid, reference):
        raise InputError(
            f"{what} is on another grid than its image: mask {describe(grid)}; image "
            f"{describe(reference)}. Resample the mask to the image (nearest neighbour), or check "
            "that the two belong together"
        )
    return LabelVolume(
        voxels=voxels, grid=grid if reference is None else reference,
        names=label_names(voxels, names),
    )  # fmt: skip


def _on_slice(
    picture: NDArray[Any], reference: Grid | None, what: str
) -> tuple[NDArray[Any], Grid]:
    """Lay (H, W) displayed labels onto the only slice of `reference`, or onto a picture's grid."""
    grid = picture_grid(picture.shape[1], picture.shape[0]) if reference is None else reference
    axis = _only_slice(grid, what)
    row, column, _, _ = display_axes(grid.affine, axis)
    if picture.shape != (grid.shape[row], grid.shape[column]):
        raise InputError(
            f"{what} has {picture.shape[1]}x{picture.shape[0]} pixels (columns x rows), but its "
            f"image has {grid.shape[column]}x{grid.shape[row]}; they must be equal: check that "
            "the two belong together, or resample the mask by nearest neighbour"
        )
    voxels = np.zeros(grid.shape, picture.dtype)
    insert(voxels, grid, axis, 0, picture)
    return voxels, grid


def _only_slice(grid: Grid, what: str) -> int:
    axis = singleton_axis(grid.shape)
    if axis is None and grid.shape[2] == 1:
        axis = 2  # a row or column of pixels
    if axis is None:
        raise InputError(
            f"{what} is a picture, but the image has {describe(grid)}; a picture can only be the "
            "mask of a single slice: use NIfTI (.nii.gz)"
        )
    return axis


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
    path = Path(path)
    suffix = suffix_of(path)
    if suffix not in (*_VOLUMES, *_PICTURES):
        raise UsageError(
            f"cannot write a mask as {path.name!r}; expected a name ending in .nii.gz, .nii, "
            ".png or .tif"
        )
    _check_target(path, overwrite)
    if labels.voxels.shape != labels.grid.shape:
        raise InputError(
            f"a mask of shape {labels.voxels.shape} is not on its grid: {describe(labels.grid)}"
        )
    voxels = unsigned(labels.voxels, "the mask to write")
    if suffix in _VOLUMES:
        data = _nifti_bytes(voxels, labels.grid)
        # No time stamp in the gzip header: the same mask gives the same file.
        content = gzip.compress(data, mtime=0) if suffix == ".nii.gz" else data
    else:
        content = _picture_bytes(voxels, labels.grid, suffix)
    _write_atomically(path, content)


def _check_target(path: Path, overwrite: bool) -> None:
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
            f"the affine of the mask cannot be stored in NIfTI within {SAME_AFFINE_MM} mm: "
            f"{describe(grid)}. Coordinates this large are not plausible: check the geometry"
        )
    header.set_data_dtype(voxels.dtype)
    kind: Any = nib.Nifti2Image if int(header["sizeof_hdr"]) == 540 else nib.Nifti1Image
    data: bytes = kind(voxels, affine, header).to_bytes()
    return data


def _picture_bytes(voxels: NDArray[Any], grid: Grid, suffix: str) -> bytes:
    axis = singleton_axis(grid.shape)
    if axis is None and grid.shape[2] == 1:
        axis = 2
    if axis is None:
        raise UsageError(
            f"a mask of {'x'.join(map(str, grid.shape))} voxels is a volume and cannot be written "
            f"as a {suffix} picture; use .nii.gz"
        )
    if voxels.dtype.itemsize > 2:
        raise UsageError(
            f"label values up to {voxels.max()} do not fit a 16-bit {suffix} picture; use .nii.gz"
        )
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
