"""Slices, label maps and thumbnails as pictures for a browser.

Pictures travel inside the page as data URIs, so no picture of an upload is ever written to disk.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medretrieval.retrieval.figures import colours

RGB = tuple[int, int, int]

# Okabe and Ito, "Color Universal Design" (2008), without black and brightened for grey pictures,
# and two more, so that ten neighbouring labels differ; the next ten are lighter.
COLOURS: tuple[RGB, ...] = (
    (240, 168, 0),
    (86, 180, 233),
    (0, 190, 140),
    (240, 228, 66),
    (236, 110, 180),
    (240, 104, 20),
    (60, 130, 246),
    (170, 220, 80),
    (190, 140, 255),
    (255, 150, 140),
)
FILL_ALPHA = 120  # of 255, inside a contour; the contour itself is opaque
HEAT_ALPHA = 190
DISPLAY_SIDE = 512  # overlays are drawn at least this large, so that contours stay thin


@dataclass(frozen=True)
class Palette:
    """A colour for every label name: by its place in a vocabulary, others after it.

    Names that stand together in the vocabulary (the organs of one region) get different colours.
    """

    places: Mapping[str, int]

    @classmethod
    def of(cls, names: Iterable[str]) -> Palette:
        return cls({name: place for place, name in enumerate(dict.fromkeys(names))})

    def with_names(self, names: Iterable[str]) -> Palette:
        """The same colours, and further ones for names that are not in the vocabulary."""
        return Palette.of([*self.places, *names])

    def __getitem__(self, name: str) -> RGB:
        turn, place = divmod(self.places.get(name, len(self.places)), len(COLOURS))
        red, green, blue = (round(110 + c * 0.57) if turn % 2 else c for c in COLOURS[place])
        return red, green, blue

    def css(self, name: str) -> str:
        return "#{:02x}{:02x}{:02x}".format(*self[name])


def blank(words: str, side: int) -> NDArray[np.uint8]:
    """A grey picture (side, side) uint8 that says why it shows nothing."""
    image = Image.new("L", (side, side), 52)
    ImageDraw.Draw(image).text((side / 2, side / 2), words, fill=190, anchor="mm", font_size=26)
    return np.asarray(image)


def outline(mask: NDArray[np.generic], width: int = 1) -> NDArray[np.bool_]:
    """Pixels of labelled regions within `width` pixels (4-neighbourhood) of another label.

    Args:
        mask: (H, W) label map.

    Returns:
        (H, W) bool; a region that touches the border of the picture has no outline there.
    """
    edge = np.zeros(mask.shape, bool)
    for step in range(1, width + 1):
        for axis in (0, 1):
            moved = np.swapaxes(mask, 0, axis)
            differs = moved[step:] != moved[:-step]
            target = np.swapaxes(edge, 0, axis)
            target[step:] |= differs
            target[:-step] |= differs
    edge &= mask != 0
    return edge


def overlay(
    mask: NDArray[np.generic], names: Mapping[int, str], palette: Palette
) -> NDArray[np.uint8]:
    """A label map as a transparent picture: filled regions with opaque contours.

    Args:
        mask: (H, W) label map.
        names: label value -> name; values without a name are shown under "label <value>".

    Returns:
        (rH, rW, 4) uint8 RGBA, r the whole number that makes the longer side at least 512.
    """
    factor = max(1, -(-DISPLAY_SIDE // max(mask.shape)))
    large = np.repeat(np.repeat(mask, factor, axis=0), factor, axis=1)
    picture = np.zeros((*large.shape, 4), np.uint8)
    for value in np.unique(mask):
        if value != 0:
            inside = large == value
            picture[inside, :3] = palette[names.get(int(value), f"label {value}")]
            picture[inside, 3] = FILL_ALPHA
    picture[outline(large, 2), 3] = 255
    return picture


def heat(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Numbers as a transparent picture in the colours of `gradient`; 0 is left clear.

    Args:
        values: (H, W), 0..1.

    Returns:
        (H, W, 4) uint8 RGBA.
    """
    picture = np.empty((*values.shape, 4), np.uint8)
    picture[..., :3] = colours(values, 0.0, 1.0)
    picture[..., 3] = np.where(values > 0, HEAT_ALPHA, 0)
    return picture


def gradient(steps: int = 9) -> list[str]:
    """The colours of heat maps from the lowest to the highest number, for CSS."""
    shown = colours(np.linspace(0, 1, steps), 0.0, 1.0)
    return [f"rgb({red} {green} {blue})" for red, green, blue in shown.tolist()]


def thumbnail(
    image: NDArray[np.uint8],
    mask: NDArray[np.generic] | None = None,
    names: Mapping[int, str] | None = None,
    palette: Palette | None = None,
    *,
    aspect: float | None = None,
    side: int = 224,
) -> NDArray[np.uint8]:
    """A slice on a square black ground, with the contours of its labels drawn in.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        mask: (H, W) label map of the same size, or None.
        aspect: width divided by height as it should look; default is that of the pixels.

    Returns:
        (side, side, 3) uint8.
    """
    aspect = aspect or image.shape[1] / image.shape[0]
    height, width = (max(1, round(side * min(1.0, part))) for part in (1 / aspect, aspect))
    picture = np.array(
        Image.fromarray(image).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    )
    if mask is not None and mask.any():
        rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(np.intp)
        columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(np.intp)
        small = mask[rows[:, None], columns[None, :]]
        edge = outline(small)
        shown = palette or Palette.of((names or {}).values())
        for value in np.unique(small[edge]):
            name = (names or {}).get(int(value), f"label {value}")
            picture[edge & (small == value)] = shown[name]
    ground = np.zeros((side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    ground[top : top + height, left : left + width] = picture
    return ground


def data_uri(picture: NDArray[np.uint8], *, lossy: bool = False) -> str:
    """A picture as a data URI: PNG, or JPEG if `lossy` (thumbnails only).

    Args:
        picture: (H, W), (H, W, 3) or (H, W, 4) uint8.
    """
    buffer = io.BytesIO()
    if lossy:
        Image.fromarray(picture).save(buffer, "JPEG", quality=88)
    else:
        Image.fromarray(picture).save(buffer, "PNG", compress_level=3)
    kind = "jpeg" if lossy else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
