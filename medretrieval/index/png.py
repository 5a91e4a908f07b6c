"""PNG bytes of slices and masks.

The encoder is written for speed: one filter ("up") for all rows and run lengths only take less than
half the time of a general encoder at its fastest level, with smaller files for medical slices, and
both the subtraction and zlib work outside the interpreter lock, beside the embedder.
Format: W3C, Portable Network Graphics (PNG) Specification, second edition.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medretrieval.errors import IndexFormatError, InputError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FILTER_UP = 2
_GREY, _RGB = 0, 2
_MODES = {"L": np.uint8, "RGB": np.uint8, "I;16": np.uint16}
HEADER_BYTES = 26  # signature, and the header as far as it says how large a pixel is
_PIXEL_BYTES = {(8, _GREY): 1, (16, _GREY): 2, (8, _RGB): 3}


def encode_png(picture: NDArray[Any]) -> bytes:
    """Encode a picture without loss.

    Args:
        picture: (H, W) uint8 or uint16, or (H, W, 3) uint8; H and W at least 1.

    Raises:
        InputError: another shape or dtype.
    """
    color = picture.ndim == 3
    deep = picture.dtype == np.uint16
    if (
        picture.dtype not in (np.uint8, np.uint16)
        or picture.size == 0
        or not (picture.ndim == 2 or (color and picture.shape[2] == 3 and not deep))
    ):
        raise InputError(
            f"a slice of shape {picture.shape} and type {picture.dtype} cannot be stored; expected "
            "(H, W) uint8 or uint16, or (H, W, 3) uint8"
        )
    height, width = picture.shape[:2]
    samples = np.ascontiguousarray(picture, dtype=">u2" if deep else np.uint8)
    raw = samples.view(np.uint8).reshape(height, -1)  # (H, bytes of a row)
    filtered = np.empty((height, raw.shape[1] + 1), np.uint8)
    filtered[:, 0] = _FILTER_UP
    filtered[0, 1:] = raw[0]
    np.subtract(raw[1:], raw[:-1], out=filtered[1:, 1:])
    header = struct.pack(
        ">IIBBBBB", width, height, 16 if deep else 8, _RGB if color else _GREY, 0, 0, 0
    )
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", _deflate(filtered)),
            _chunk(b"IEND", b""),
        )
    )


def _deflate(filtered: NDArray[np.uint8]) -> bytes:
    # Runs are all that the filter leaves to find: smaller and a third faster than a full search.
    stream = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
    return stream.compress(filtered.data) + stream.flush()


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def decode_png(data: bytes, what: str, *, max_side: int) -> NDArray[Any]:
    """Decode a stored picture.

    Args:
        data: PNG, grey with 8 or 16 bits or RGB with 8.
        what: names file and row in errors.
        max_side: larger pictures are refused before they are decoded.

    Returns:
        (H, W) uint8 or uint16, or (H, W, 3) uint8; owns its memory.

    Raises:
        IndexFormatError: not such a picture.
    """
    try:
        return png_pixels(data, max_side=max_side)
    except ValueError as error:
        raise IndexFormatError(
            f"{what} is not a valid picture ({error}); fetch or build the index again"
        ) from None


def png_pixels(data: bytes, *, max_side: int) -> NDArray[Any]:
    """As `decode_png`, for pictures that are not those of an index.

    Raises:
        ValueError: not such a picture; the message says why.
    """
    try:
        with warnings.catch_warnings():
            # The size is judged below, against the size that was promised.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=("PNG",))
            if picture.mode not in _MODES:
                raise ValueError(f"pixels of kind {picture.mode}")
            if max(picture.size) > max_side:
                raise ValueError(f"{picture.width} x {picture.height} pixels, limit {max_side}")
            return np.array(picture, dtype=_MODES[picture.mode])
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None


def claimed_bytes(head: bytes, *, max_side: int) -> int:
    """How many bytes the array of a PNG takes, by its header; nothing is decoded.

    Args:
        head: its first `HEADER_BYTES`.

    Raises:
        ValueError: not a picture that `encode_png` writes, or one with more than `max_side` rows
            or columns.
    """
    if len(head) < HEADER_BYTES or head[:8] != _SIGNATURE or head[12:16] != b"IHDR":
        raise ValueError("not a PNG file")
    width, height, depth, color = struct.unpack(">IIBB", head[16:HEADER_BYTES])
    if (depth, color) not in _PIXEL_BYTES:
        raise ValueError(f"pixels of {depth} bits and kind {color}")
    if not 0 < max(width, height) <= max_side:
        raise ValueError(f"{width} x {height} pixels, limit {max_side}")
    return int(width * height * _PIXEL_BYTES[depth, color])
