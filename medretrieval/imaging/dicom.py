"""DICOM: one file, or one series of files; geometry from the headers alone.

Only the elements listed here are ever read, none of which identifies a patient, so that no
message, log or warning can carry a name or a number of one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

from medretrieval.errors import InputError, MedRetrievalError
from medretrieval.imaging.decode import check_decodable, decode
from medretrieval.imaging.limits import DEFLATE_RATIO, check_claim, max_bytes, size_text

_HEADER_TAGS = [
    "SOPClassUID", "Modality", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber", "Rows",
    "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PhotometricInterpretation", "PlanarConfiguration",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
_PIXEL_TAGS = [
    *_HEADER_TAGS, "ModalityLUTSequence", "PixelData", "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
]  # fmt: skip
_NOT_IMAGES = {
    "SEG": "a segmentation", "RTDOSE": "a dose distribution", "RTSTRUCT": "a set of contours",
    "RTPLAN": "a treatment plan", "SR": "a report", "PR": "a presentation state",
    "KO": "a list of key objects", "ECG": "an electrocardiogram",
}  # fmt: skip
_DICOMDIR = "1.2.840.10008.1.3.10"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_IMPLICIT_LITTLE = "1.2.840.10008.1.2"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_EXPLICIT_BIG = "1.2.840.10008.1.2.2"
_SAME_DIRECTION = 1e-3  # orientations of one stack may differ by rounding in the text of headers


@dataclass(frozen=True, eq=False, kw_only=True)
class DicomImage:
    """What the header of one DICOM file says about its image; without identifiers.

    Attributes:
        path: the file.
        series: SeriesInstanceUID, for grouping only.
        number: SeriesNumber, or None.
        modality: DICOM modality code or "".
        rows, columns, frames, samples: of the pixel data.
        nbytes: size of the decoded pixels.
        orientation: (F, 6) direction cosines of rows and columns, LPS; None if not given.
        position: (F, 3) centre of the first pixel in mm, LPS; None if not given. F is `frames` for
            an enhanced multi-frame image and 1 otherwise.
        spacing: (between rows, between columns) in mm; None if not given.
        thickness: distance to the next slice as far as one file tells it, in mm; None if not.
        scaling: ((slope, intercept), ...) one for each frame, or one for all.
    """

    path: Path
    series: str
    number: int | None
    modality: str
    rows: int
    columns: int
    frames: int
    samples: int
    nbytes: int
    orientation: NDArray[np.float64] | None
    position: NDArray[np.float64] | None
    spacing: tuple[float, float] | None
    thickness: float | None
    scaling: tuple[tuple[float, float], ...]


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file that starts with `head` (132 bytes or more) is DICOM, whatever its name.

    Files with the preamble have a signature. Those without are accepted if they start with a
    complete element of group 0002 or 0008, as all of them do.
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 16:
        return False
    group, element = struct.unpack("<HH", head[:4])
    if group not in (0x0002, 0x0008) or element > 0x0100:
        return False
    explicit = head[4:6] in (b"UL", b"UI", b"CS", b"DA", b"TM", b"OB", b"LO", b"SH")
    length: int = struct.unpack("<I", head[4:8])[0]
    return explicit or length <= 128


def _load(path: Path, what: str, *, pixels: bool) -> pydicom.FileDataset:
    if path.stat().st_size * DEFLATE_RATIO > max_bytes() and _is_deflated(path):
        raise InputError(
            f"{what} is a deflated DICOM file too large to be decompressed safely; save it with "
            "an uncompressed or image-compressed transfer syntax"
        )
    try:
        dataset = pydicom.dcmread(
            path,
            force=True,
            stop_before_pixels=not pixels,
            specific_tags=[*(_PIXEL_TAGS if pixels else _HEADER_TAGS)],
        )
    except Exception as error:
        # Damaged files make pydicom raise almost anything: EOFError, struct.error, KeyError...
        raise InputError(
            f"{what} is a damaged DICOM file ({type(error).__name__}); export it again"
        ) from error
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        syntax = _IMPLICIT_LITTLE if implicit else _EXPLICIT_LITTLE if little else _EXPLICIT_BIG
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    return dataset


def _is_deflated(path: Path) -> bool:
    with open(path, "rb") as file:
        return _DEFLATED.encode() in file.read(2048)


def _functional_group(dataset: Any, frame: int, sequence: str) -> Any:
    """Return the item of an enhanced image's per-frame or shared functional group, or None."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in ([per_frame[frame]] if frame < len(per_frame) else [], shared):
        for group in groups:
            if group.get(sequence):
                return group.get(sequence)[0]
    return None


def _numbers(source: Any, name: str, count: int) -> NDArray[np.float64] | None:
    value = None if source is None else source.get(name)
    if value is None or value == "":
        return None
    numbers = np.atleast_1d(np.array(value, dtype=np.float64))
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise ValueError(f"{name} is not {count} numbers")
    return numbers


def read_header(path: Path, what: str) -> DicomImage | None:
    """Read what the header of a DICOM file says about its image.

    Returns:
        None if the file is DICOM but holds no image (a directory, report, plan, contours, ...).

    Raises:
        InputError: damaged, or larger than the limit.
    """
    dataset = _load(path, what, pixels=False)
    try:
        return _header(dataset, path, what)
    except MedRetrievalError:
        raise
    except Exception as error:
        # Elements are converted when accessed: ValueError, TypeError, OverflowError...
        raise InputError(
            f"{what} has a DICOM header that cannot be understood ({error}); export it again"
        ) from error


def _header(dataset: Any, path: Path, what: str) -> DicomImage | None:
    modality = str(dataset.get("Modality") or "").strip().upper()
    stored_class = str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))
    rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    if stored_class == _DICOMDIR or modality in _NOT_IMAGES or not rows or not columns:
        return None
    frames = int(dataset.get("NumberOfFrames") or 1)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if frames < 1 or samples < 1:
        raise ValueError(f"it claims {frames} frames of {samples} samples")
    allocated = max(8, int(dataset.get("BitsAllocated") or 8))
    nbytes = rows * columns * frames * samples * (allocated // 8)
    check_claim(nbytes, what)
    enhanced = len(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    if enhanced and enhanced != frames:
        raise ValueError(f"{enhanced} frames are described, {frames} are claimed")
    orientations, positions, scaling = [], [], []
    for frame in range(enhanced or 1):
        plane = _functional_group(dataset, frame, "PlaneOrientationSequence") or dataset
        place = _functional_group(dataset, frame, "PlanePositionSequence") or dataset
        values = _functional_group(dataset, frame, "PixelValueTransformationSequence") or dataset
        orientations.append(_numbers(plane, "ImageOrientationPatient", 6))
        positions.append(_numbers(place, "ImagePositionPatient", 3))
        slope = _numbers(values, "RescaleSlope", 1)
        intercept = _numbers(values, "RescaleIntercept", 1)
        scaling.append(
            (1.0 if slope is None else float(slope[0]),
             0.0 if intercept is None else float(intercept[0]))
        )  # fmt: skip
    measures = _functional_group(dataset, 0, "PixelMeasuresSequence") or dataset
    spacing = _numbers(measures, "PixelSpacing", 2)
    thickness = _numbers(measures, "SpacingBetweenSlices", 1)
    if thickness is None or thickness[0] <= 0:
        thickness = _numbers(measures, "SliceThickness", 1)
    number = dataset.get("SeriesNumber")
    return DicomImage(
        path=path,
        series=str(dataset.get("SeriesInstanceUID") or ""),
        number=None if number is None or number == "" else int(number),
        modality=modality,
        rows=rows,
        columns=columns,
        frames=frames,
        samples=samples,
        nbytes=nbytes,
        orientation=_stacked(orientations),
        position=_stacked(positions),
        spacing=None if spacing is None else (float(spacing[0]), float(spacing[1])),
        thickness=None if thickness is None or thickness[0] <= 0 else float(thickness[0]),
        scaling=tuple(scaling),
    )


def _stacked(vectors: Sequence[NDArray[np.float64] | None]) -> NDArray[np.float64] | None:
    known = [v for v in vectors if v is not None]
    return np.stack(known) if known and len(known) == len(vectors) else None


def read_pixels(image: DicomImage, what: str, *, frame: int | None = None) -> NDArray[Any]:
    """Decode the pixels of one file: scaled, MONOCHROME1 inverted, colours as 8-bit RGB.

    Inversion is `largest storable value - stored value` before scaling, so that brighter means
    the same in both photometric interpretations.

    Args:
        frame: only this frame of a multi-frame file.

    Returns:
        (F, H, W) stored integers if unscaled, float32 if scaled; or (F, H, W, 3) uint8.

    Raises:
        InputError: no pixel data, truncated or damaged.
        UnavailableError: compressed in a way that no installed package decodes.
    """
    dataset = _load(image.path, what, pixels=True)
    if "PixelData" not in dataset:
        raise InputError(f"{what} has no pixel data; expected an image: export it with pixels")
    syntax = dataset.file_meta.TransferSyntaxUID
    check_decodable(syntax, what)
    if not syntax.is_compressed and len(dataset.PixelData) < _stored_bytes(dataset, image):
        raise InputError(
            f"{what} is truncated: {size_text(len(dataset.PixelData))} of "
            f"{size_text(image.nbytes)} of pixels are there. Copy or export the file again"
        )
    try:
        pixels = decode(dataset, image.path, frame)
        count = 1 if frame is not None else image.frames
        shape = (count, image.rows, image.columns)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, dataset)[..., :3]
            return _eight_bit(pixels, pixels.dtype.itemsize * 8).reshape(*shape, 3)
        if image.samples > 1:
            return _eight_bit(pixels[..., :3], int(dataset.BitsStored)).reshape(*shape, 3)
        pixels = pixels.reshape(shape).astype(pixels.dtype.newbyteorder("="), copy=False)
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            # ~x is 2^n - 1 - x for unsigned and -1 - x for signed integers of n bits.
            mask = (1 << int(dataset.BitsStored)) - 1
            pixels = mask - (pixels & mask) if pixels.dtype.kind == "u" else ~pixels
        if dataset.get("ModalityLUTSequence"):
            return np.asarray(apply_modality_lut(pixels, dataset), dtype=np.float32)
    except Exception as error:
        # Every decoder has its own exceptions, from RuntimeError to struct.error.
        reason = " ".join(str(error).split())
        raise InputError(
            f"the pixels of {what} cannot be decoded ({type(error).__name__}: {reason}); the file "
            "is damaged, or compressed as no installed decoder expects: export it uncompressed"
        ) from error
    return _scaled(pixels, image, frame, what)


def _stored_bytes(dataset: Any, image: DicomImage) -> int:
    allocated = int(dataset.get("BitsAllocated") or 8)
    values = image.rows * image.columns * image.frames * image.samples
    if str(dataset.get("PhotometricInterpretation")) == "YBR_FULL_422":
        return values * 2 // 3
    return -(-values * allocated // 8)


def _eight_bit(colors: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    return (colors >> (bits - 8)).astype(np.uint8) if bits > 8 else colors.astype(np.uint8)


def _scaled(pixels: NDArray[Any], image: DicomImage, frame: int | None, what: str) -> NDArray[Any]:
    scaling = np.array(image.scaling, dtype=np.float64)
    if len(scaling) > 1 and frame is not None:
        scaling = scaling[frame : frame + 1]
    if not np.isfinite(scaling).all() or (scaling[:, 0] == 0).any():
        raise InputError(
            f"{what} has a rescale slope or intercept that is zero or not a number; its "
            "intensities are unknown: export it again"
        )
    if bool((scaling == [1.0, 0.0]).all()):
        return pixels
    out = np.empty(pixels.shape, np.float32)
    for i in range(len(pixels)):
        slope, intercept = scaling[i if len(scaling) > 1 else 0]
        out[i] = pixels[i].astype(np.float64) * slope + intercept
    return out


def find_files(folder: Path) -> list[Path]:
    """Return all regular files below `folder`, sorted; links and hidden files left out."""
    found = []
    for parent, directories, names in os.walk(folder):
        directories[:] = sorted(d for d in directories if not d.startswith("."))
        paths = [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
        # Pipes are no regular files either: opening one waits for its writer.
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
    return found


def same_direction(orientations: NDArray[np.float64]) -> bool:
    """Whether (F, 6) direction cosines all agree within rounding."""
    return bool(np.abs(orientations - orientations[0]).max() <= _SAME_DIRECTION)
