"""From DICOM files to a volume: which files belong together, in which order, and where they lie.

The affine follows the DICOM standard (PS3.3, C.7.6.2.1.1): the centre of the pixel in column i and
row j of a slice is `position + i * spacing_between_columns * row_direction + j *
spacing_between_rows * column_direction` in LPS; x and y change sign for RAS. Slices are stacked
along the cross product of the two directions; the step from slice to slice is what the positions
say, so that a tilted gantry keeps its shear.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import InputError, UsageError
from medretrieval.imaging.dicom import (
    DicomImage,
    find_files,
    looks_like_dicom,
    read_header,
    read_pixels,
    same_direction,
)
from medretrieval.imaging.geometry import check_affine, picture_grid
from medretrieval.imaging.limits import check_channel, check_claim, check_voxels
from medretrieval.types import UNKNOWN, Grid, Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UNEVEN = 0.05  # share of the spacing by which a slice may be off its place
_MAX_FILES = 50_000


def _float32(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to what a NIfTI sform holds, so that a mask read back has exactly this affine."""
    return affine.astype(np.float32).astype(np.float64)


def _plane(image: DicomImage, frame: int, what: str) -> NDArray[np.float64]:
    """Return (4, 4) LPS affine of one slice, its third column the unit normal."""
    if image.orientation is None or image.position is None or image.spacing is None:
        raise InputError(f"{what} has no position, orientation or pixel spacing")
    row, column = image.orientation[frame, :3], image.orientation[frame, 3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not np.allclose(lengths, 1, atol=1e-2) or abs(float(row @ column)) > 1e-2:
        raise InputError(
            f"{what} has an image orientation whose directions are not two perpendicular unit "
            "vectors; its geometry is damaged: export it again"
        )
    affine = np.eye(4)
    affine[:3, 0] = row * image.spacing[1]
    affine[:3, 1] = column * image.spacing[0]
    affine[:3, 2] = np.cross(row, column)
    affine[:3, 3] = image.position[frame]
    return affine


def _order(
    positions: NDArray[np.float64], normal: NDArray[np.float64], what: str
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Sort slices along the normal and return (order, step to the next slice in mm, LPS).

    Args:
        positions: (F, 3) centre of the first pixel of each slice, F at least 2.
        normal: (3,) unit vector.

    Raises:
        InputError: two slices at one place, missing slices, or uneven spacing.
    """
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    gaps = np.diff(along[order])
    usual = float(np.median(gaps))
    twice = int((gaps <= max(1e-3, _UNEVEN * usual)).sum())
    if twice:
        raise InputError(
            f"{what} has {len(along)} images at only {len(along) - twice} places: duplicates, or "
            "several time points, echoes or diffusion weightings in one series. Expected one image "
            "a place: keep one of each, or convert the series to a 4-D NIfTI"
        )
    steps = np.rint(gaps / usual)
    missing = int((steps - 1).clip(0).sum())
    off = np.abs(gaps - steps * usual) > _UNEVEN * usual * np.maximum(steps, 1)
    if missing and not off.any():
        where = float(along[order][int(np.argmax(steps > 1))])
        raise InputError(
            f"{what} has {missing} missing slices: the spacing is {usual:.4g} mm, but there is a "
            f"gap of {gaps.max():.4g} mm after the slice at {where:.4g} mm. Copy the whole series"
        )
    step = (positions[order[-1]] - positions[order[0]]) / (len(along) - 1)
    ideal = positions[order[0]] + np.arange(len(along))[:, None] * step
    stray = np.linalg.norm(positions[order] - ideal, axis=1).max()
    if off.any() or stray > max(_UNEVEN * usual, 1e-2):
        raise InputError(
            f"{what} has uneven slices: spacings from {gaps.min():.4g} to {gaps.max():.4g} mm, "
            f"{stray:.4g} mm off a straight even row. Expected one spacing; resample the series, "
            "or give the part with an even spacing"
        )
    return order, step


def _grid(shape: tuple[int, int, int], lps: NDArray[np.float64], what: str) -> Grid:
    affine = _float32(_LPS_TO_RAS @ lps)
    return Grid(shape=shape, affine=check_affine(affine + 0.0, what))  # + 0.0: no negative zeros


def _name(image: DicomImage) -> str:
    """Return a name that cannot be a patient's: file names can, numbers of series cannot."""
    number = "" if image.number is None else f" series {image.number}"
    return f"{image.modality or 'DICOM'}{number}"


def _volume(
    pixels: NDArray[Any], grid: Grid, image: DicomImage, modality: str | None, what: str
) -> Volume:
    """Build a Volume of (Z, H, W) or (Z, H, W, 3) pixels."""
    voxels = np.moveaxis(pixels, (0, 1, 2), (2, 1, 0))  # (W, H, Z)
    check_voxels(voxels, what)
    return Volume(
        voxels=voxels,
        grid=grid,
        color=pixels.ndim == 4,
        modality=modality or image.modality or UNKNOWN,
        name=_name(image),
    )


def _usable(image: DicomImage | None, what: str) -> DicomImage:
    if image is None:
        raise InputError(
            f"{what} is a DICOM file without an image (a directory, report, plan, contour set or "
            "segmentation); expected an image file or the folder of a series"
        )
    return image


def read_dicom_file(
    path: Path, what: str, *, channel: int = 0, modality: str | None = None
) -> Volume:
    """Read one DICOM file: an image, or a multi-frame file.

    Frames with positions (enhanced CT and MR) become the slices of a volume. Frames without (a
    cine) are moments of one picture: `channel` says which.

    Raises:
        InputError, UnavailableError: see `medretrieval.imaging.read_volume`.
        UsageError: no such channel.
    """
    image = _usable(read_header(path, what), what)
    if image.frames > 1 and image.position is not None and len(image.position) == image.frames:
        check_channel(channel, 1, what)
        return _read_enhanced(image, image.position, what, modality)
    placed = image.position is not None and image.orientation is not None
    check_channel(channel, image.frames, what, kind="frame" if image.frames > 1 else "channel")
    pixels = read_pixels(image, what, frame=channel if image.frames > 1 else None)
    if not placed or image.spacing is None:
        return _volume(pixels, picture_grid(image.columns, image.rows), image, modality, what)
    lps = _plane(image, 0, what)
    lps[:3, 2] *= image.thickness or 1.0
    grid = _grid((image.columns, image.rows, 1), lps, what)
    return _volume(pixels, grid, image, modality, what)


def _read_enhanced(
    image: DicomImage, positions: NDArray[np.float64], what: str, modality: str | None
) -> Volume:
    if image.orientation is None or not same_direction(image.orientation):
        raise InputError(
            f"{what} has frames of different orientations; expected parallel slices: split the "
            "file into one stack each"
        )
    lps = _plane(image, 0, what)
    order, step = _order(positions, lps[:3, 2], what)
    lps[:3, 2], lps[:3, 3] = step, positions[order[0]]
    grid = _grid((image.columns, image.rows, image.frames), lps, what)
    return _volume(read_pixels(image, what)[order], grid, image, modality, what)


def dicom_headers(files: Sequence[Path], what: str) -> list[DicomImage]:
    """Return the images among `files`; other files and DICOM objects without image are left out.

    Raises:
        InputError: damaged DICOM file, or too many files.
    """
    if len(files) > _MAX_FILES:
        raise InputError(
            f"{what} holds {len(files)} files, more than {_MAX_FILES}; give the folder of one "
            "series"
        )
    images = []
    for path in files:
        with open(path, "rb") as file:
            head = file.read(132)
        if looks_like_dicom(head):
            image = read_header(path, f"{path.name} in {what}")
            if image is not None:
                images.append(image)
    return images


def _series_keys(images: Sequence[DicomImage]) -> dict[str, list[DicomImage]]:
    """Group by series; keys are series numbers, told apart by -1, -2 where several share one."""
    groups: dict[str, list[DicomImage]] = {}
    for image in images:
        groups.setdefault(image.series, []).append(image)
    by_number: dict[str, list[list[DicomImage]]] = {}
    for _, group in sorted(groups.items()):
        number = min((i.number for i in group if i.number is not None), default=None)
        by_number.setdefault("none" if number is None else str(number), []).append(group)
    keyed = {}
    for number_, same in sorted(by_number.items(), key=lambda n: (len(n[0]), n[0])):
        for position, group in enumerate(same, start=1):
            keyed[number_ if len(same) == 1 else f"{number_}-{position}"] = group
    return keyed


def _choose(
    images: Sequence[DicomImage], series: str | int | None, what: str
) -> tuple[str, list[DicomImage]]:
    keyed = _series_keys(images)
    lines = "; ".join(
        f"series {key}: {group[0].modality or 'unknown modality'}, {len(group)} "
        f"{'slice' if len(group) == 1 else 'slices'} of {group[0].columns}x{group[0].rows}"
        for key, group in keyed.items()
    )
    if series is not None:
        if str(series) not in keyed:
            raise UsageError(f"series {series} is not in {what}; it has {lines}")
        return str(series), keyed[str(series)]
    if len(keyed) > 1:
        raise InputError(
            f"{what} has {len(keyed)} series, but one volume is read at a time: {lines}. "
            "Choose one with the option series, or give its own folder"
        )
    return next(iter(keyed.items()))


def read_dicom_files(
    files: Sequence[Path],
    what: str,
    *,
    channel: int = 0,
    modality: str | None = None,
    series: str | int | None = None,
) -> Volume:
    """Read one series out of `files`, sorted along the slice normal.

    Args:
        series: which one of several, by the key that the error lists.

    Raises:
        InputError, UnavailableError: see `medretrieval.imaging.read_volume`.
        UsageError: no such series or channel.
    """
    images = dicom_headers(files, what)
    if not images:
        raise InputError(
            f"{what} has no DICOM image among its {len(files)} files; expected the files of a CT, "
            "MR or other image series"
        )
    key, chosen = _choose(images, series, what)
    if len(chosen) == 1:
        return read_dicom_file(chosen[0].path, what, channel=channel, modality=modality)
    check_channel(channel, 1, what)
    return _read_stack(chosen, f"series {key} of {what}", modality)


def _read_stack(images: Sequence[DicomImage], what: str, modality: str | None) -> Volume:
    first = images[0]
    if any(image.frames > 1 for image in images):
        raise InputError(
            f"{what} has {len(images)} files of which some are multi-frame; give one file alone"
        )
    sizes = sorted({(i.columns, i.rows, i.samples) for i in images})
    if len(sizes) > 1:
        shown = ", ".join(f"{w}x{h}" for w, h, _ in sizes)
        raise InputError(f"{what} has slices of different sizes ({shown}); give one stack alone")
    planes = [i for i in images if i.position is not None and i.orientation is not None]
    if len(planes) < len(images) or first.spacing is None:
        raise InputError(
            f"{len(images) - len(planes) or len(images)} of {len(images)} images of {what} have no "
            "position, orientation or pixel spacing, so they are not slices of one volume; give "
            "one file alone"
        )
    orientations = np.concatenate([i.orientation for i in images if i.orientation is not None])
    if not same_direction(orientations):
        raise InputError(
            f"{what} has slices of different orientations (a localizer?); expected parallel "
            "slices: give one stack alone"
        )
    if any(i.spacing is None or not np.allclose(i.spacing, first.spacing, 1e-3) for i in images):
        raise InputError(f"{what} has slices of different pixel spacings; give one stack alone")
    positions = np.concatenate([i.position for i in images if i.position is not None])
    lps = _plane(first, 0, what)
    order, step = _order(positions, lps[:3, 2], what)
    lps[:3, 2], lps[:3, 3] = step, positions[order[0]]
    check_claim(sum(i.nbytes for i in images), what)
    grid = _grid((first.columns, first.rows, len(images)), lps, what)
    planes_of = [read_pixels(images[i], f"{images[i].path.name} of {what}") for i in order]
    return _volume(np.concatenate(planes_of), grid, first, modality, what)


def read_dicom_folder(
    folder: Path,
    what: str,
    *,
    channel: int = 0,
    modality: str | None = None,
    series: str | int | None = None,
) -> Volume:
    """Read one series from a folder and the folders below it; see `read_dicom_files`."""
    return read_dicom_files(
        find_files(folder), what, channel=channel, modality=modality, series=series
    )
