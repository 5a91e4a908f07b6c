"""PNG, JPEG and TIFF pictures: one slice of unknown spacing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from medretrieval.errors import InputError, MedRetrievalError
from medretrieval.imaging.geometry import picture_grid
from medretrieval.imaging.limits import as_float32, check_channel, check_claim, check_voxels
from medretrieval.types import UNKNOWN, Volume

_FORMATS = ("PNG", "JPEG", "TIFF")
_JPEG = ("JPEG", "MPO")  # MPO: a JPEG with an embedded second view, of which the first is read
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2, "I": 4, "F": 4}
_PHOTOMETRIC = 262  # TIFF tag; 0 means that zero is white


@contextmanager
def _opened(path: Path, what: str) -> Iterator[tuple[Image.Image, str]]:
    """Open one upright picture and its format; what goes wrong inside becomes an InputError."""
    try:
        # From an open file, not from its name: given a name, Pillow 12.3 maps uncompressed TIFF
        # into memory and scrambles the pixels of those with a rotated orientation.
        with open(path, "rb") as file, Image.open(file, formats=_FORMATS) as picture:
            width, height = picture.size
            check_claim(width * height * _BYTES.get(picture.mode, 4), what)
            frames = getattr(picture, "n_frames", 1)
            if frames > 1 and picture.format not in _JPEG:
                raise InputError(
                    f"{what} has {frames} pages; expected a picture of one page. Save the page "
                    "that you want as its own file, or the stack as NIfTI with its spacing"
                )
            inverted = (
                picture.format == "TIFF"
                and picture.mode.startswith("I;16")
                and getattr(picture, "tag_v2", {}).get(_PHOTOMETRIC) == 0
            )
            upright = ImageOps.exif_transpose(picture)
            if inverted:
                # Pillow inverts white-is-zero pictures of 1 and 8 bits, not those of 16.
                upright = Image.fromarray(65535 - np.asarray(upright, dtype=np.uint16))
            # The upright copy has forgotten its format.
            yield upright, str(picture.format)
    except MedRetrievalError:
        raise
    except Exception as error:
        # Decoders raise OSError, SyntaxError, ValueError, struct.error, DecompressionBombError...
        raise InputError(
            f"{what} is damaged or not a PNG, JPEG or TIFF picture that can be read "
            f"({type(error).__name__}: {_without_path(error, path)}); save it again"
        ) from error


def _without_path(error: Exception, path: Path) -> str:
    return str(error).replace(str(path), path.name)


def _grey(picture: Image.Image) -> NDArray[Any] | None:
    """Return (H, W) stored values of a one-channel picture, None if it has more channels."""
    if picture.mode == "1":
        return np.asarray(picture).astype(np.uint8)
    if picture.mode.startswith("I;16"):
        # A palette-free 16-bit mode; the byte order is Pillow's, made native here.
        return np.asarray(picture).astype(np.uint16)
    if picture.mode in ("L", "I", "F"):
        return np.array(picture)
    return None


def _collapse(colors: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W) if the three channels are equal everywhere, else (H, W, 3) as given."""
    first = colors[..., :1]
    return colors[..., 0] if bool((colors == first).all()) else colors


def read_picture(path: Path, what: str) -> NDArray[Any]:
    """Read the pixels of a picture as displayed.

    EXIF orientation is applied, palettes are resolved, transparency is laid over black, 1 bit
    becomes 0 and 255. Colour whose three channels are equal everywhere is returned as grey.

    Args:
        path: PNG, JPEG or TIFF file of one page.
        what: how messages call it.

    Returns:
        (H, W) uint8, uint16, int32 or float32, or (H, W, 3) uint8 if coloured.

    Raises:
        InputError: unreadable, several pages, or larger than the limit.
    """
    with _opened(path, what) as (picture, _):
        grey = _grey(picture)
        if grey is not None:
            return grey * np.uint8(255) if picture.mode == "1" else grey
        if picture.has_transparency_data:
            black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
            picture = Image.alpha_composite(black, picture.convert("RGBA"))
        return _collapse(np.array(picture.convert("RGB")))


def read_label_picture(path: Path, what: str) -> NDArray[Any]:
    """Read label values from a PNG or TIFF picture.

    A palette picture holds its palette indices, a grey one its grey values, a 1-bit one 0 and 1.

    Returns:
        (H, W) array of the stored numbers.

    Raises:
        InputError: unreadable, JPEG (lossy, which invents labels), or coloured or transparent.
    """
    with _opened(path, what) as (picture, format_):
        if format_ in _JPEG:
            raise InputError(
                f"{what} is a JPEG: lossy compression changes label values at every edge. "
                "Expected a PNG, TIFF or NIfTI mask: export it again in one of these"
            )
        if picture.mode == "P":
            return np.array(picture)
        grey = _grey(picture)
        if grey is not None:
            return grey
        rgba = np.array(picture.convert("RGBA"))
        flat = _collapse(rgba[..., :3])
        if flat.ndim == 3 or (rgba[..., 3] != 255).any():
            raise InputError(
                f"{what} is a colour or transparent picture; expected a mask whose grey values "
                "are the label values. Save it as 8-bit or 16-bit grey, or with a palette"
            )
        return flat


def read_picture_volume(
    path: Path, what: str, name: str, *, channel: int = 0, modality: str | None = None
) -> Volume:
    """Read a picture as a volume of one slice; see `medretrieval.imaging.read_volume`."""
    check_channel(channel, 1, what)
    pixels = read_picture(path, what)
    if pixels.dtype.kind == "f":
        pixels = as_float32(pixels, what)
    voxels = pixels.swapaxes(0, 1)[:, :, None]  # (W, H, 1) or (W, H, 1, 3)
    check_voxels(voxels, what)
    height, width = pixels.shape[:2]
    return Volume(
        voxels=voxels,
        grid=picture_grid(width, height),
        color=pixels.ndim == 3,
        modality=modality or UNKNOWN,
        name=name,
    )
