"""Pictures of similarities: numbers as colours, with axes that say what they are.

Colours are viridis (Smith and van der Walt, matplotlib, CC0), in which equal differences of numbers
look equal, in grey and to colour-blind eyes too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# Twenty of viridis's 256 colours, equally far apart.
_VIRIDIS = np.array(
    [
        (68, 1, 84), (72, 21, 103), (72, 38, 119), (69, 55, 129), (64, 71, 136),
        (57, 86, 140), (51, 99, 141), (45, 112, 142), (40, 125, 142), (35, 138, 141),
        (31, 150, 139), (32, 163, 135), (41, 175, 127), (60, 187, 117), (85, 198, 103),
        (115, 208, 85), (149, 216, 64), (184, 222, 41), (220, 227, 25), (253, 231, 37),
    ],
    dtype=np.float64,
)  # fmt: skip

_INK, _PAPER, _MARK = (30, 30, 30), (255, 255, 255), (255, 60, 60)
_FONT_SIZE = 14
_WIDE, _HIGH = 720, 640  # pixels that a matrix is drawn in; at most twice that
_LARGEST_CELL, _LEAST_SIDE = 40, 120
_SIDE = 320  # pixels of the longer side of a picture in a panel
_GAP = 10
_BAR = 16  # width of a colour bar
_LEGEND = "cosine similarity; red: the most similar slice for each query slice"
_STEPS = (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000, 2000, 5000)
_OPAQUE = 0.55  # of a heat map over its picture
_DARKENED = 0.4  # of a picture where a heat map says nothing


def colours(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Numbers as colours of viridis.

    Args:
        values: any shape, finite.
        low, high: the numbers of the first and the last colour; what is beyond gets these. Where
            they are equal everything gets the colour of the middle.

    Returns:
        The same shape and a last axis of 3, uint8.
    """
    values = np.asarray(values, dtype=np.float64)
    share = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    place = np.clip(share, 0.0, 1.0) * (len(_VIRIDIS) - 1)
    anchors = np.arange(len(_VIRIDIS))
    channels = [np.interp(place, anchors, _VIRIDIS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def limits(heats: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """The least and the largest number of maps; NaN does not count, without numbers 0 and 0."""
    numbers = np.concatenate([heat[np.isfinite(heat)] for heat in heats])
    return (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 0.0)


def overlay(
    picture: NDArray[np.uint8], heat: NDArray[Any], bounds: tuple[float, float] | None = None
) -> NDArray[np.uint8]:
    """A heat map over its picture, see `explain.overlay`."""
    low, high = bounds or limits([heat])
    seen = np.isfinite(heat)
    colour = colours(np.where(seen, heat, low), low, high)
    ground = _rgb(picture).astype(np.float64)
    mixed = _OPAQUE * colour + (1 - _OPAQUE) * ground
    return np.where(seen[..., None], mixed, _DARKENED * ground).round().astype(np.uint8)


def matrix_figure(
    values: NDArray[Any],
    rows: Sequence[int],
    columns: Sequence[int],
    *,
    best: NDArray[np.int64],
    down: str,
    across: str,
) -> NDArray[np.uint8]:
    """A matrix of similarities with axes and a colour bar.

    Args:
        values: (n, m) real numbers.
        rows, columns: n and m numbers for the axes.
        best: (n,) a column of each row, which is marked.
        down, across: what the axes are.

    Returns:
        (H, W, 3) uint8; about 800 x 600 pixels. Matrices that do not fit are drawn smaller.
    """
    height, width = _plot_size(*values.shape)
    low, high = limits([values])
    font = _font(_FONT_SIZE)
    left = _GAP + _line(font) + _GAP + _widest(rows, font) + _GAP
    top, line = _GAP + _line(font) + _GAP, _line(font)
    bar = left + width + 2 * _GAP
    total = bar + _BAR + _GAP + _widest(_bar_labels(low, high), font) + _GAP
    total = max(total, _GAP + _widest([_LEGEND], font) + _GAP)
    canvas = Image.new("RGB", (total, top + height + 2 * (line + _GAP)), _PAPER)
    draw = ImageDraw.Draw(canvas)
    cells = Image.fromarray(colours(values, low, high))
    enlarged = height >= len(rows) and width >= len(columns)
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.BOX
    canvas.paste(cells.resize((width, height), how), (left, top))
    draw.rectangle((left - 1, top - 1, left + width, top + height), outline=_INK)
    _mark(draw, best, (left, top), (height / len(rows), width / len(columns)))
    for place, text in _ticks(rows, height, 1.6 * line):
        draw.line((left - 5, top + place, left - 2, top + place), fill=_INK)
        draw.text((left - 8, top + place), text, fill=_INK, font=font, anchor="rm")
    for place, text in _ticks(columns, width, _widest(columns, font) + 2 * _GAP):
        x = left + place
        draw.line((x, top + height + 1, x, top + height + 4), fill=_INK)
        draw.text((x, top + height + 7), text, fill=_INK, font=font, anchor="mt")
    text = _fitting(across, total - left - _GAP, font)
    start = max(left, left + (width - font.getlength(text)) / 2)
    start = min(start, total - _GAP - font.getlength(text))
    foot = top + height + _GAP + line
    draw.text((start, foot), text, fill=_INK, font=font)
    _sideways(canvas, down, (_GAP, top + height / 2), font)
    _bar(draw, canvas, (bar, top), height, (low, high), font)
    draw.text((_GAP, _GAP), _LEGEND, fill=_INK, font=font)
    return np.asarray(canvas)


def pair_figure(
    pictures: Sequence[NDArray[np.uint8]],
    heats: Sequence[NDArray[Any]],
    titles: Sequence[str],
    caption: str,
) -> NDArray[np.uint8]:
    """Two pictures side by side, and below them the same under their heat maps.

    Args:
        pictures: two, (H, W) or (H, W, 3) uint8.
        heats: their maps, (H, W).
        titles: of both, written above them.
        caption: of the numbers, written below.

    Returns:
        (H, W, 3) uint8.
    """
    font, bounds = _font(_FONT_SIZE), limits(heats)
    plain = [_scaled(_rgb(picture)) for picture in pictures]
    warm = [_scaled(overlay(p, h, bounds)) for p, h in zip(pictures, heats, strict=True)]
    heights = max(image.height for image in plain)
    lefts = [_GAP, _GAP + _SIDE + _GAP]
    tops = [_GAP + _line(font) + _GAP, 2 * _GAP + _line(font) + _GAP + heights]
    bar = lefts[1] + _SIDE + _GAP
    total = bar + _BAR + _GAP + _widest(_bar_labels(*bounds), font) + _GAP
    foot = tops[1] + heights + _GAP
    canvas = Image.new("RGB", (total, foot + _line(font) + _GAP), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for left, title, *images in zip(lefts, titles, plain, warm, strict=True):
        draw.text((left, _GAP), _fitting(title, _SIDE, font), fill=_INK, font=font)
        for top, image in zip(tops, images, strict=True):
            middle = left + (_SIDE - image.width) // 2, top + (heights - image.height) // 2
            canvas.paste(image, middle)
    _bar(draw, canvas, (bar, tops[1]), heights, bounds, font)
    draw.text((_GAP, foot), _fitting(caption, total - 2 * _GAP, font), fill=_INK, font=font)
    return np.asarray(canvas)


def _plot_size(rows: int, columns: int) -> tuple[int, int]:
    """(height, width) in pixels: whole pixels a cell and square cells where that is possible."""
    cell = max(1, min(_LARGEST_CELL, _WIDE // columns, _HIGH // rows))
    sizes = []
    for count, most in ((rows, _HIGH), (columns, _WIDE)):
        # One slice against many is a strip that would be too thin to be seen.
        own = max(cell, -(-_LEAST_SIDE // count))
        sizes.append(min(own * count, 2 * most))
    return sizes[0], sizes[1]


def _mark(
    draw: ImageDraw.ImageDraw,
    best: NDArray[np.int64],
    corner: tuple[int, int],
    cell: tuple[float, float],
) -> None:
    """Frames around cells that are large enough, else dots."""
    for row, column in enumerate(best.tolist()):
        x, y = corner[0] + column * cell[1], corner[1] + row * cell[0]
        if min(cell) >= 8:
            draw.rectangle((x, y, x + cell[1] - 1, y + cell[0] - 1), outline=_MARK, width=2)
        else:
            x, y = x + cell[1] / 2, y + cell[0] / 2
            draw.rectangle((x - 1, y - 1, x + 1, y + 1), fill=_MARK)


def _ticks(numbers: Sequence[int], length: int, apart: float) -> list[tuple[float, str]]:
    """Where numbers are written along an axis, and which: round ones, as many as fit."""
    cell = length / len(numbers)
    step = next((step for step in _STEPS if step * cell >= apart), len(numbers))
    # Numbers that go up by one are written where they are round, others from the first on.
    begin = -numbers[0] % step if _even(numbers) and len(numbers) > step else 0
    places = range(begin, len(numbers), step)
    return [((place + 0.5) * cell, str(numbers[place])) for place in places]


def _even(numbers: Sequence[int]) -> bool:
    return all(b - a == 1 for a, b in pairwise(numbers))


def _bar_labels(low: float, high: float) -> list[str]:
    if low == high:
        return [f"{low:.2f}"]
    decimals = 2 if high - low >= 0.1 else 3 if high - low >= 0.01 else 4
    return [f"{value:.{decimals}f}" for value in np.linspace(low, high, 5).tolist()]


def _bar(
    draw: ImageDraw.ImageDraw,
    canvas: Image.Image,
    corner: tuple[int, int],
    height: int,
    bounds: tuple[float, float],
    font: Any,
) -> None:
    """A colour bar with five numbers, the largest at the top."""
    left, top = corner
    ramp = colours(np.linspace(1, 0, height)[:, None].repeat(_BAR, axis=1), 0.0, 1.0)
    canvas.paste(Image.fromarray(ramp), corner)
    draw.rectangle((left - 1, top - 1, left + _BAR, top + height), outline=_INK)
    texts = _bar_labels(*bounds)
    for place, text in enumerate(texts):
        share = place / (len(texts) - 1) if len(texts) > 1 else 0.5
        anchor = {0.0: "ld", 1.0: "lt"}.get(share, "lm")
        y = top + (1 - share) * (height - 1)
        draw.text((left + _BAR + _GAP, y), text, fill=_INK, font=font, anchor=anchor)


def _sideways(canvas: Image.Image, text: str, at: tuple[int, float], font: Any) -> None:
    """Text that runs upwards; its middle is at the height of `at`."""
    image = Image.new("RGB", (round(font.getlength(text)) + 1, _line(font)), _PAPER)
    ImageDraw.Draw(image).text((0, 0), text, fill=_INK, font=font)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    canvas.paste(turned, (at[0], round(at[1] - turned.height / 2)))


def _scaled(picture: NDArray[np.uint8]) -> Image.Image:
    """The picture with a longer side of `_SIDE` pixels."""
    height, width = picture.shape[:2]
    scale = _SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)


def _rgb(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return picture if picture.ndim == 3 else picture[..., None].repeat(3, axis=2)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _line(font: Any) -> int:
    return int(sum(font.getmetrics()))


def _widest(texts: Sequence[object], font: Any) -> int:
    return max(int(font.getlength(str(text))) + 1 for text in texts)


def _fitting(text: str, room: float, font: Any) -> str:
    """`text`, or as much of its beginning as there is room for."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"
