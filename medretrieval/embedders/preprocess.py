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

from medretrieval.embedders.spec import EmbedderSpec
from medretrieval.errors import InputError

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
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
    """(height, width) after resizing, before cropping.

    "crop" keeps the aspect ratio and rounds the longer side down, as
    `transformers.image_transforms.get_resize_output_image_size` does.
    """
    if spec.resize == "squash":
        return spec.resize_to, spec.resize_to
    if height <= width:
        return spec.resize_to, int(spec.resize_to * width / height)
    return int(spec.resize_to * height / width), spec.resize_to


def resize(picture: NDArray[np.uint8], spec: EmbedderSpec) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) uint8 -> (S, S) or (S, S, 3) uint8, S = `spec.input_size`."""
    height, width = resized_shape(picture.shape[0], picture.shape[1], spec)
    top = (height - spec.input_size) // 2
    left = (width - spec.input_size) // 2
    image = Image.fromarray(np.ascontiguousarray(picture))
    if image.size != (width, height):
        image = image.resize((width, height), _RESAMPLING[spec.interpolation])
    return np.asarray(image)[top : top + spec.input_size, left : left + spec.input_size]


def prepare(pictures: Sequence[NDArray[np.uint8]], spec: EmbedderSpec) -> NDArray[np.float32]:
    """Resize, replicate grey to 3 channels, and normalise.

    Args:
        pictures: n pictures, each (H, W) or (H, W, 3) uint8, of any sizes.

    Returns:
        (n, 3, S, S) float32, S = `spec.input_size`.

    Raises:
        InputError: one of them is no such picture.
    """
    size = spec.input_size
    out = np.empty((len(pictures), 3, size, size), dtype=np.float32)
    for row, picture in zip(out, pictures, strict=True):
        small = resize(check_picture(picture), spec)
        row[:] = small if small.ndim == 2 else small.transpose(2, 0, 1)
    mean = np.asarray(spec.mean, dtype=np.float32)[:, None, None]
    std = np.asarray(spec.std, dtype=np.float32)[:, None, None]
    out *= np.float32(1 / 255)
    out -= mean
    out /= std
    return out
