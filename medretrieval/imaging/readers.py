"""Any supported image file, DICOM folder or zip as a Volume."""

from __future__ import annotations

import os
from pathlib import Path

from medretrieval.errors import InputError, UsageError
from medretrieval.imaging.archive import extracted
from medretrieval.imaging.dicom import find_files
from medretrieval.imaging.dicom_series import read_dicom_file, read_dicom_files, read_dicom_folder
from medretrieval.imaging.nifti import read_nifti_volume
from medretrieval.imaging.pictures import read_picture_volume
from medretrieval.imaging.sniff import HEAD_BYTES, KNOWN, kind_of, sniff, suffix_of
from medretrieval.types import Volume


def stem(name: str) -> str:
    """Return a file name without its (double) suffix.

    >>> stem("patient001_frame01.nii.gz")
    'patient001_frame01'
    """
    return name[: len(name) - len(suffix_of(Path(name)))] or name


def read_volume(
    path: str | os.PathLike[str],
    *,
    channel: int = 0,
    modality: str | None = None,
    allow_one_slice: bool = False,
    series: str | int | None = None,
) -> Volume:
    """Read an image, recognised by its content.

    - PNG, JPEG, TIFF (one page): one slice of unknown spacing.
    - NIfTI .nii and .nii.gz, 2-D (with `allow_one_slice`) to 4-D.
    - A DICOM file, single- or multi-frame, whatever its name.
    - A folder with one DICOM series (or several, with `series`), also in folders below it.
    - A zip of a DICOM series or of one image.

    DICOM intensities are rescaled (CT: HU) and MONOCHROME1 inverted. Integers stay in the stored
    dtype where nothing is scaled; all else becomes float32.

    Args:
        path: file or folder.
        channel: which channel of a 4-D NIfTI, or frame of a DICOM cine.
        modality: DICOM modality code; by default that of the DICOM header, else "unknown".
        allow_one_slice: accept a NIfTI volume that is one voxel thick.
        series: which series of several in a folder or zip, by the key that the error lists.

    Returns:
        Volume whose voxels are finite and not constant.

    Raises:
        InputError: missing, unknown, damaged, truncated, empty, NaN, constant, too large, ...
        UsageError: no such channel, frame or series.
        UnavailableError: a DICOM compression that needs a package that is not installed.
    """
    path = Path(path)
    if isinstance(channel, bool) or not isinstance(channel, int):
        raise UsageError(f"channel is {channel!r}, but must be a whole number from 0")
    modality = modality.strip().upper() or None if modality else None
    try:
        return _read(path, channel, modality, allow_one_slice, series)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise InputError(
            f"{path.name} does not fit into the memory of this machine; crop or resample it"
        ) from error


def _read(
    path: Path,
    channel: int,
    modality: str | None,
    allow_one_slice: bool,
    series: str | int | None,
) -> Volume:
    if path.is_dir():
        _check_folder(path)
        return read_dicom_folder(
            path, f"folder {path.name or path}", channel=channel, modality=modality, series=series
        )
    what = path.name
    kind = sniff(path, what)
    if kind == "zip":
        with extracted(path, what) as content:
            if content.image is None:
                return read_dicom_files(
                    content.dicom, what, channel=channel, modality=modality, series=series
                )
            _no_series(series, what)
            inner = f"{content.name} in {what}"
            return _read_file(
                content.image, sniff(content.image, inner), inner, stem(content.name),
                channel=channel, modality=modality, allow_one_slice=allow_one_slice,
            )  # fmt: skip
    _no_series(series, what)
    return _read_file(
        path, kind, what, stem(path.name),
        channel=channel, modality=modality, allow_one_slice=allow_one_slice,
    )  # fmt: skip


def _no_series(series: str | int | None, what: str) -> None:
    if series is not None:
        raise UsageError(f"{what} is not a folder or zip of DICOM series; leave out `series`")


def _read_file(
    path: Path,
    kind: str,
    what: str,
    name: str,
    *,
    channel: int,
    modality: str | None,
    allow_one_slice: bool,
) -> Volume:
    if kind == "dicom":
        return read_dicom_file(path, what, channel=channel, modality=modality)
    if kind == "picture":
        return read_picture_volume(path, what, name, channel=channel, modality=modality)
    return read_nifti_volume(
        path, what, name, channel=channel, modality=modality, allow_one_slice=allow_one_slice
    )


def _check_folder(folder: Path) -> None:
    """Refuse an empty folder, and say what to do with one of other images than DICOM."""
    files = find_files(folder)
    if not files:
        raise InputError(f"folder {folder} is empty; expected the files of a DICOM series")
    kinds: dict[str | None, int] = {}
    for file in files:
        with open(file, "rb") as stream:
            kind = kind_of(stream.read(HEAD_BYTES))
        if kind == "dicom":
            return
        kinds[kind] = kinds.get(kind, 0) + 1
    images = sum(kinds.get(k, 0) for k in ("picture", "nifti", "gzip", "zip"))
    if images:
        raise InputError(
            f"folder {folder} has no DICOM series, but {images} other images or archives; one "
            "image is read at a time: give the path of one file"
        )
    raise InputError(
        f"folder {folder} has no image among its {len(files)} files; expected a DICOM series, or "
        f"give the path of one file: {KNOWN}"
    )
