"""NIfTI-1 and NIfTI-2 single files, plain or gzipped.

nibabel interprets the header; the bytes are read here, because a hostile or damaged file must be
refused from its header, before anything is allocated or decompressed at length.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import InputError, MedRetrievalError
from medretrieval.imaging.geometry import check_affine
from medretrieval.imaging.limits import (
    DEFLATE_RATIO,
    as_float32,
    check_channel,
    check_claim,
    check_voxels,
    rescale,
    size_text,
)
from medretrieval.types import UNKNOWN, Grid, Volume

_log = logging.getLogger(__name__)

GZIP_MAGIC = b"\x1f\x8b"
# NIfTI type codes of real scalars; nifti1.h. Complex, RGB and 1-bit voxels are refused.
_REAL_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8",
    1280: "u8",
}  # fmt: skip
_OTHER_TYPES = {
    1: "1-bit", 32: "complex", 128: "RGB colour", 1536: "128-bit float", 1792: "complex",
    2048: "complex", 2304: "RGBA colour",
}  # fmt: skip
_GEOMETRY_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
    "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip
_NOT_MM = {1: "metres", 3: "micrometres"}
# Bytes after the voxels that are read to verify the checksum; more is not an image's business.
_MAX_TRAILING = 1 << 24
_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False, kw_only=True)
class NiftiImage:
    """One channel of a NIfTI file, as stored.

    Attributes:
        voxels: (X, Y, Z) in the stored dtype, native byte order, not scaled.
        grid: geometry, with a header that carries nothing else.
        slope, intercept: scaling by the header; 1 and 0 if it says none.
    """

    voxels: NDArray[Any]
    grid: Grid
    slope: float
    intercept: float


def header_size(head: bytes) -> int | None:
    """Return 348 (NIfTI-1) or 540 (NIfTI-2) if `head` starts with such a header, else None.

    Args:
        head: the first bytes of a decompressed file; at least 348 to recognise NIfTI-1.
    """
    if len(head) >= 8:
        for order in "<>":
            size = struct.unpack(order + "i", head[:4])[0]
            if size == 348 and head[344:347] in (b"n+1", b"ni1"):
                return 348
            if size == 540 and head[4:7] in (b"n+2", b"ni2"):
                return 540
    return None


@contextmanager
def readable(path: Path, what: str) -> Iterator[IO[bytes]]:
    """Open a plain or gzipped file for reading; what goes wrong inside becomes an InputError."""
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == GZIP_MAGIC
            raw.seek(0)
            if zipped:
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield cast(IO[bytes], stream)
            else:
                yield raw
    except MedRetrievalError:
        raise
    except EOFError as error:
        raise _truncated(what, "the compressed data ends early") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{what} is damaged: its gzip data does not decompress ({error}). Copy or download "
            "the file again"
        ) from error
    except OSError as error:
        raise InputError(f"{what} cannot be read: {error.strerror or error}") from error


def _truncated(what: str, detail: str) -> InputError:
    return InputError(f"{what} is truncated: {detail}. Copy or download the file again")


def _parse(head: bytes, what: str) -> Any:
    """Return nibabel's header of the first bytes, checked as far as nibabel does."""
    size = header_size(head)
    if size is None:
        raise InputError(
            f"{what} is not a NIfTI file: the header does not start with the NIfTI signature. "
            "Export it as .nii or .nii.gz (NIfTI-1 or NIfTI-2)"
        )
    if len(head) < size:
        raise _truncated(what, f"its header has {len(head)} of {size} bytes")
    magic = head[344:347] if size == 348 else head[4:7]
    if magic[:2] == b"ni":
        raise InputError(
            f"{what} is half of a .hdr/.img pair; expected a single file: convert it to .nii.gz"
        )
    kind: Any = nib.Nifti1Header if size == 348 else nib.Nifti2Header
    try:
        return kind(head[:size])
    except Exception as error:
        # nibabel raises HeaderDataError, but also ValueError and KeyError on damaged fields.
        raise InputError(
            f"the NIfTI header of {what} is damaged ({error}); export the image again"
        ) from error


def _shape(header: Any, raw: bytes, what: str) -> tuple[int, ...]:
    """Return the stored shape, 2 to 4 axes, each at least one long."""
    little = header.endianness
    format_ = f"{little}8h" if len(raw) == 348 else f"{little}8q"
    dims = struct.unpack_from(format_, raw, 40 if len(raw) == 348 else 16)
    if not 1 <= dims[0] <= 7:
        raise InputError(f"{what} claims {dims[0]} dimensions; the header is damaged")
    shape = tuple(int(n) for n in dims[1 : 1 + dims[0]])
    if any(n < 1 for n in shape):
        raise InputError(f"{what} is empty: its header gives the shape {shape}; export it again")
    if len(shape) > 4:
        raise InputError(
            f"{what} has {len(shape)} dimensions {shape}; expected a 3-D volume or a 4-D one of "
            "several channels: save the part that you want as 3-D"
        )
    if len(shape) < 2:
        raise InputError(f"{what} has one dimension {shape}; expected a 3-D or 4-D image")
    return shape


def _geometry(header: Any, raw: bytes, shape: tuple[int, int, int], what: str) -> Grid:
    if int(header["sform_code"]) <= 0:
        # nibabel replaces zero spacings by 1, which would be a guess.
        little, wide = header.endianness, len(raw) == 540
        pixdim = struct.unpack_from(f"{little}4{'d' if wide else 'f'}", raw, 104 if wide else 76)
        used = [abs(p) for p, n in zip(pixdim[1:], shape, strict=True) if n > 1]
        if not all(0 < p < math.inf for p in used):
            raise InputError(
                f"{what} has no geometry: no sform, and voxel spacings of {used} mm. Set the "
                "spacing (pixdim) in its header or export it again"
            )
    try:
        affine = header.get_best_affine()
    except Exception as error:
        # An impossible quaternion: ValueError or HeaderDataError, depending on the field.
        raise InputError(
            f"the geometry of {what} cannot be used ({error}); repair its qform or sform"
        ) from error
    unit = int(header["xyzt_units"]) & 7
    if unit in _NOT_MM:
        _log.warning("%s gives its geometry in %s; read as mm", what, _NOT_MM[unit])
    return Grid(
        shape=shape,
        affine=check_affine(affine, what),
        header=geometry_header(header, shape),
    )


def geometry_header(header: Any, shape: tuple[int, int, int]) -> Any:
    """Return a fresh header of the same class with the geometry of `header` and nothing else.

    Descriptions, names, auxiliary files, intents, scaling and extensions may identify a patient
    or do not belong to a mask; shape, spacings, qform, sform and units are copied bit for bit.
    """
    clean = type(header)(endianness=header.endianness)
    clean.set_data_shape(shape)
    clean["pixdim"][:4] = header["pixdim"][:4]
    for field in _GEOMETRY_FIELDS:
        clean[field] = header[field]
    return clean


def _read_exactly(stream: IO[bytes], count: int, what: str) -> bytearray:
    """Read `count` bytes; allocates no more than the stream really holds (plus one chunk)."""
    data = bytearray()
    while len(data) < count:
        chunk = stream.read(min(_CHUNK, count - len(data)))
        if not chunk:
            raise _truncated(
                what, f"{size_text(len(data))} of {size_text(count)} of voxels are there"
            )
        data += chunk
    return data


def _skip(stream: IO[bytes], count: int, what: str) -> None:
    while count:
        chunk = stream.read(min(_CHUNK, count))
        if not chunk:
            raise _truncated(what, "it ends before its voxels")
        count -= len(chunk)


def _verify_end(stream: IO[bytes], what: str) -> None:
    """Read to the end, so that gzip compares its checksum, but not endlessly."""
    left = _MAX_TRAILING
    while chunk := stream.read(_CHUNK):
        left -= len(chunk)
        if left < 0:
            raise InputError(
                f"{what} holds more than {size_text(_MAX_TRAILING)} after its image, which no "
                "NIfTI file needs; it may be a decompression bomb. Export the image again"
            )


def read_nifti(path: Path, what: str, *, channel: int | None = 0) -> NiftiImage:
    """Read one channel of a NIfTI file, unscaled.

    Args:
        path: .nii or .nii.gz file; plain or gzip is recognised by content.
        what: how messages call it.
        channel: index along the fourth axis; None for a file that must have one channel only.

    Raises:
        InputError: not NIfTI, damaged, truncated, too large, not 2-D to 4-D, or not real numbers.
        UsageError: no such channel.
    """
    with readable(path, what) as stream:
        head = stream.read(540)
        header = _parse(head, what)
        size = int(header["sizeof_hdr"])
        full = _shape(header, head[:size], what)
        code = int(header["datatype"])
        if code not in _REAL_TYPES:
            raise InputError(
                f"{what} has {_OTHER_TYPES.get(code, f'unknown (code {code})')} voxels; expected "
                "real numbers: save magnitudes, or colours as a PNG, instead"
            )
        dtype = np.dtype(_REAL_TYPES[code]).newbyteorder(header.endianness)
        shape = (full[0], full[1], full[2] if len(full) > 2 else 1)
        channels = full[3] if len(full) == 4 else 1
        one = math.prod(shape) * dtype.itemsize
        check_claim(one * channels, what)
        start = float(header["vox_offset"])
        if not (size <= start <= size + _MAX_TRAILING and start.is_integer()):
            raise InputError(
                f"{what} is damaged: it claims that its voxels start at byte {start:g}; export "
                "the image again"
            )
        _check_size(path, int(start) + one * channels, what)
        if channel is None and channels > 1:
            raise InputError(
                f"{what} has {channels} channels; expected one: save them as one 3-D image"
            )
        channel = channel or 0
        check_channel(channel, channels, what)
        grid = _geometry(header, head[:size], shape, what)
        stream.seek(0)
        _skip(stream, int(start) + one * channel, what)
        data = _read_exactly(stream, one, what)
        _skip(stream, one * (channels - 1 - channel), what)
        _verify_end(stream, what)
    voxels = np.frombuffer(data, dtype).reshape(shape, order="F")
    slope, intercept = _scaling(head[:size], header.endianness, what)
    return NiftiImage(
        voxels=voxels.astype(dtype.newbyteorder("="), copy=False),
        grid=grid,
        slope=slope,
        intercept=intercept,
    )


def _check_size(path: Path, claimed: int, what: str) -> None:
    """Refuse a header that claims more bytes than the file can hold."""
    held = os.path.getsize(path)
    with open(path, "rb") as raw:
        zipped = raw.read(2) == GZIP_MAGIC
    if claimed > (held * DEFLATE_RATIO if zipped else held):
        raise _truncated(
            what, f"its header claims {size_text(claimed)}, which {held} bytes cannot hold"
        )


def _scaling(raw: bytes, endianness: str, what: str) -> tuple[float, float]:
    if len(raw) == 348:
        slope, intercept = struct.unpack_from(f"{endianness}2f", raw, 112)
    else:
        slope, intercept = struct.unpack_from(f"{endianness}2d", raw, 176)
    if slope == 0:
        return 1.0, 0.0  # nifti1.h: a slope of zero means no scaling
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise InputError(
            f"{what} has a scaling that is not a number (scl_slope {slope}, scl_inter "
            f"{intercept}); its intensities are unknown: set both in the header (1 and 0 for none)"
        )
    return slope, intercept


def read_nifti_volume(
    path: Path,
    what: str,
    name: str,
    *,
    channel: int = 0,
    modality: str | None = None,
    allow_one_slice: bool = False,
) -> Volume:
    """Read a NIfTI image; see `medretrieval.imaging.read_volume`."""
    image = read_nifti(path, what, channel=channel)
    if 1 in image.grid.shape and not allow_one_slice:
        raise InputError(
            f"{what} has the shape {image.grid.shape}: one slice, not a volume. If that is meant, "
            "pass allow_one_slice=True (command line: --allow-one-slice)"
        )
    voxels = rescale(image.voxels, image.slope, image.intercept, what)
    if voxels.dtype.kind == "f":
        voxels = as_float32(voxels, what)
    check_voxels(voxels, what)
    return Volume(voxels=voxels, grid=image.grid, modality=modality or UNKNOWN, name=name)
