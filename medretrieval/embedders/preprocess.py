"""From a slice to the network's input: one implementation for every embedder.

Resizing is Pillow's on 8-bit pictures, as in the image processors the published weights were made
with; it is antialiased and gives the same bits on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medretrieval.embedders.spec import CROPPING, EmbedderSpec
from medretrieval.errors import InputError

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def check_picture(picture: Any) -> NDArray[np.uint8]:
    """Return `picture` if it is (H, W) or (H, W, 3) uint8 with H, W > 0.

    Raises:
        InputError: it is not.
    """
    expected = "expected a uint8 array of shape (H, W) or (H, W, 3)"
    if not isinstance(picture, np.ndarray):
        raise InputError(f"cannot embed a {type(picture).__name__}; {expected}")
    if picture.dtype != np.uint8:
        raise InputError(
            f"cannot embed a picture of {picture.dtype}; {expected}: "
            "window it first (medretrieval.imaging.make_slices does)"
        )
    if picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] != 3):
        raise InputError(f"cannot embed a picture of shape {picture.shape}; {expected}")
    if 0 in picture.shape:
        raise InputError(f"cannot embed an empty picture of shape {picture.shape}; {expected}")
    return picture


def resized_shape(height: int, width: int, spec: EmbedderSpec) -> tuple[int, int]:
    """(height, width) after resizing, before cropping or padding.

    "crop" keeps the aspect ratio and rounds the longer side down, as
    `transformers.image_transforms.get_resize_output_image_size` and torchvision's Resize do;
    "pad-end" rounds the shorter side, as `segment_anything.utils.transforms.ResizeLongestSide`.
    """
    if spec.resize == "crop":
        if height <= width:
            return spec.resize_to, int(spec.resize_to * width / height)
        return int(spec.resize_to * height / width), spec.resize_to
    if spec.resize == "pad-end":
        scale = spec.resize_to / max(height, width)
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    return spec.resize_to, spec.resize_to


def resize(picture: NDArray[np.uint8], spec: EmbedderSpec) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) uint8 -> (S, S) or (S, S, 3) uint8, S = `spec.input_size`.

    "pad-end" gives (h, w), h and w at most S, one of them equal to S: its padding follows the
    normalisation.
    """
    if spec.resize == "pad-centre":
        picture = _centred(picture, spec.input_size)
    height, width = resized_shape(picture.shape[0], picture.shape[1], spec)
    image = Image.fromarray(np.ascontiguousarray(picture))
    if image.size != (width, height):
        image = image.resize((width, height), _RESAMPLING[spec.interpolation])
    if spec.resize not in CROPPING:
        return np.asarray(image)
    top, left = _centre(height, width, spec)
    return np.asarray(image)[top : top + spec.input_size, left : left + spec.input_size]


def seen_box(height: int, width: int, spec: EmbedderSpec) -> tuple[float, float, float, float]:
    """Which rectangle of a picture the network's input shows: the inverse of `resize`.

    Returns:
        (top, left, bottom, right) in pixels of the picture, where pixel (0, 0) reaches from 0 to 1.
        Smaller than the picture where that is cropped, larger where it is padded.
    """
    if spec.resize == "pad-centre":
        side, top, left = _square(height, width, spec.input_size)
        return -top, -left, side - top, side - left
    rows, columns = resized_shape(height, width, spec)
    top, left = _centre(rows, columns, spec) if spec.resize in CROPPING else (0, 0)
    down, across = height / rows, width / columns  # pixels of the picture for one of the input
    bottom, right = top + spec.input_size, left + spec.input_size
    return top * down, left * across, bottom * down, right * across


def _centre(height: int, width: int, spec: EmbedderSpec) -> tuple[int, int]:
    """First row and column of the centre that is cut out of a resized picture."""
    half = round if spec.crop_rounding == "even" else int
    return half((height - spec.input_size) / 2), half((width - spec.input_size) / 2)


def _square(height: int, width: int, at_least: int) -> tuple[int, int, int]:
    """Side of the square that a picture is put into, and the picture's first row and column."""
    side = max(height, width, at_least)
    return side, (side - height) // 2, (side - width) // 2


def _centred(picture: NDArray[np.uint8], at_least: int) -> NDArray[np.uint8]:
    """`picture` in the middle of a black square, rounded to the top and the left."""
    height, width = picture.shape[:2]
    side, top, left = _square(height, width, at_least)
    square = np.zeros((side, side, *picture.shape[2:]), dtype=np.uint8)
    square[top : top + height, left : left + width] = picture
    return square


def prepare(pictures: Sequence[NDArray[np.uint8]], spec: EmbedderSpec) -> NDArray[np.float32]:
    """Resize, replicate grey to 3 channels, normalise and, for "pad-end", fill up with zeros.

    Args:
        pictures: n pictures, each (H, W) or (H, W, 3) uint8, of any sizes.

    Returns:
        (n, 3, S, S) float32, S = `spec.input_size`.

    Raises:
        InputError: one of them is no such picture.
    """
    size = spec.input_size
    mean = np.asarray(spec.mean, dtype=np.float32)[:, None, None]
    std = np.asarray(spec.std, dtype=np.float32)[:, None, None]
    out = np.zeros((len(pictures), 3, size, size), dtype=np.float32)
    for row, picture in zip(out, pictures, strict=True):
        small = resize(check_picture(picture), spec)
        filled = row[:, : small.shape[0], : small.shape[1]]
        filled[:] = small if small.ndim == 2 else small.transpose(2, 0, 1)
        filled *= np.float32(1 / 255)
        filled -= mean
        filled /= std
    return out
