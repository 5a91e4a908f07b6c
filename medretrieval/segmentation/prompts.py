"""Points and boxes by which a person says what belongs to a label, on top of the supports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import UsageError
from medretrieval.segmentation.crop import Box

Point: TypeAlias = tuple[float, float]
Kind = Literal["positive", "negative", "box"]

# The codes by which SAM's prompt encoder tells its points apart (Kirillov et al., 2023).
_NEGATIVE, _POSITIVE, _TOP_LEFT, _BOTTOM_RIGHT = 0, 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What a person points at, for one label on one picture.

    Places are (x, y) in pixels of the picture, x to the right and y downwards; (0, 0) is the
    centre of the first pixel.

    Attributes:
        positive: points that belong to the label.
        negative: points that do not.
        box: left, top, right, bottom of a box around the label's part.

    Raises:
        UsageError: a place is not finite, or the box is empty.
    """

    positive: tuple[Point, ...] = ()
    negative: tuple[Point, ...] = ()
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        numbers = [number for point in self.places() for number in point]
        if not all(map(isfinite, numbers)):
            raise UsageError(f"prompts at {numbers}: expected finite coordinates in pixels")
        if self.box is not None:
            left, top, right, bottom = self.box
            if not (left < right and top < bottom):
                raise UsageError(
                    f"box {self.box}: expected left, top, right, bottom with left < right and "
                    "top < bottom"
                )

    def __bool__(self) -> bool:
        return bool(self.positive or self.negative or self.box)

    def places(self) -> list[Point]:
        """All points, and the corners of the box."""
        corners = [] if self.box is None else [self.box[:2], self.box[2:]]
        return [*corners, *self.positive, *self.negative]

    def check(self, shape: tuple[int, int], label: str) -> None:
        """Raise UsageError unless every place lies in a picture of `shape` (H, W)."""
        for x, y in self.places():
            if not (-0.5 <= x <= shape[1] - 0.5 and -0.5 <= y <= shape[0] - 0.5):
                raise UsageError(
                    f"prompt for {label!r} at x={x:g}, y={y:g}: the picture is {shape[1]} wide "
                    f"and {shape[0]} high; expected 0..{shape[1] - 1} and 0..{shape[0] - 1}"
                )

    def within(self, rows: slice, columns: slice) -> Prompts:
        """The prompts in pixels of a part of the picture; points outside of it are left out.

        A box is cut to the part, and left out where nothing of it remains.
        """
        left, top = columns.start, rows.start
        wide, high = columns.stop - left, rows.stop - top

        def inside(points: Iterable[Point]) -> tuple[Point, ...]:
            moved = ((x - left, y - top) for x, y in points)
            return tuple(
                (x, y) for x, y in moved if -0.5 <= x <= wide - 0.5 and -0.5 <= y <= high - 0.5
            )

        box = None
        if self.box is not None:
            x = np.clip(np.array(self.box[::2]) - left, -0.5, wide - 0.5)
            y = np.clip(np.array(self.box[1::2]) - top, -0.5, high - 0.5)
            if x[0] < x[1] and y[0] < y[1]:
                box = (float(x[0]), float(y[0]), float(x[1]), float(y[1]))
        return Prompts(positive=inside(self.positive), negative=inside(self.negative), box=box)

    def mirrored(self, width: int) -> Prompts:
        """The prompts on the picture of `width` pixels with left and right exchanged."""

        def turn(points: Iterable[Point]) -> tuple[Point, ...]:
            return tuple((width - 1 - x, y) for x, y in points)

        box = self.box
        if box is not None:
            box = (width - 1 - box[2], box[1], width - 1 - box[0], box[3])
        return Prompts(positive=turn(self.positive), negative=turn(self.negative), box=box)

    def resized(self, shape: tuple[int, ...], new: tuple[int, ...]) -> Prompts:
        """The prompts on the picture of `shape` (H, W) after it is resized to `new`."""
        x_scale, y_scale = new[1] / shape[1], new[0] / shape[0]
        return self._moved(lambda x, y: ((x + 0.5) * x_scale - 0.5, (y + 0.5) * y_scale - 0.5))

    def turned(self, shape: tuple[int, ...], orientation: str) -> Prompts:
        """The prompts on the picture of `shape` (H, W) after `imaging.turn`."""
        # Imported when used: the command line reads prompts before it reads images.
        from medretrieval.imaging.orientation import turn_point

        return self._moved(lambda x, y: turn_point((x, y), shape, orientation))

    def _moved(self, move: Callable[[float, float], Point]) -> Prompts:
        box = self.box
        if box is not None:
            # A mirror image exchanges corners.
            (x0, y0), (x1, y1) = move(*box[:2]), move(*box[2:])
            box = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        return Prompts(
            positive=tuple(move(x, y) for x, y in self.positive),
            negative=tuple(move(x, y) for x, y in self.negative),
            box=box,
        )

    def for_network(
        self, shape: tuple[int, int], size: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """What SAM's prompt encoder takes for a picture resized to `size` x `size`.

        As `SAM2VideoPredictor.add_new_points_or_box`: the corners of the box first, coordinates
        scaled by size / (width, height).

        Args:
            shape: (H, W) of the picture that the places are in.
            size: side of the network's input in pixels.

        Returns:
            (P, 2) coordinates x, y in pixels of the network's input, and (P,) codes.
        """
        corners = [] if self.box is None else [_TOP_LEFT, _BOTTOM_RIGHT]
        codes = [*corners, *[_POSITIVE] * len(self.positive), *[_NEGATIVE] * len(self.negative)]
        places = np.array(self.places(), np.float32).reshape(-1, 2)
        scale = np.array([size / shape[1], size / shape[0]], np.float32)
        return places * scale, np.array(codes, np.int32)


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One step of a correction; to undo is to drop the last one.

    Attributes:
        at: (x, y) of a point; left, top, right, bottom of a box, which replaces the label's box.
    """

    label: str
    kind: Kind
    at: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(f"edit {self.kind!r}: expected {', '.join(get_args(Kind))}")
        if len(self.at) != (4 if self.kind == "box" else 2):
            raise UsageError(
                f"{self.kind} at {self.at}: expected x,y of a point or left,top,right,bottom of a "
                "box"
            )


def prompts_of(edits: Iterable[Edit]) -> dict[str, Prompts]:
    """Put the steps of a correction together, label by label.

    >>> prompts_of([Edit(label="LV", kind="positive", at=(3, 4))])
    {'LV': Prompts(positive=((3, 4),), negative=(), box=None)}
    """
    found: dict[str, Prompts] = {}
    for edit in edits:
        old = found.get(edit.label, Prompts())
        if edit.kind == "box":
            left, top, right, bottom = edit.at
            found[edit.label] = replace(old, box=(left, top, right, bottom))
        elif edit.kind == "positive":
            found[edit.label] = replace(old, positive=(*old.positive, (edit.at[0], edit.at[1])))
        else:
            found[edit.label] = replace(old, negative=(*old.negative, (edit.at[0], edit.at[1])))
    return found


def widened(box: Box, prompts: Iterable[Prompts], shape: tuple[int, int]) -> Box:
    """The smallest box that holds `box` and, with a pixel around, what belongs to a label.

    Those are positive points and boxes. A negative point outside says what holds there anyway.

    Args:
        shape: (H, W) of the picture that the places are in.
    """
    top, left, bottom, right = box.top, box.left, box.bottom, box.right
    for x, y in (place for one in prompts for place in replace(one, negative=()).places()):
        top, bottom = min(top, (y - 1) / shape[0]), max(bottom, (y + 2) / shape[0])
        left, right = min(left, (x - 1) / shape[1]), max(right, (x + 2) / shape[1])
    return Box(max(0.0, top), max(0.0, left), min(1.0, bottom), min(1.0, right))


def moved(
    prompts: Mapping[str, Prompts] | None, rows: slice, columns: slice
) -> dict[str, Prompts] | None:
    """`Prompts.within` for every label; labels that have none there are left out."""
    if prompts is None:
        return None
    parts = {label: one.within(rows, columns) for label, one in prompts.items()}
    return {label: one for label, one in parts.items() if one} or None


def check_asked(prompted: Iterable[str], labels: Sequence[str] | None) -> None:
    """Raise UsageError where a label has prompts, but is not among those asked for (if given)."""
    others = sorted(set(prompted) - set(labels)) if labels is not None else []
    if labels is not None and others:
        raise UsageError(
            f"prompts for {others[0]!r}, which is not among the labels asked for: "
            f"{', '.join(labels)}"
        )


def checked(
    prompts: Mapping[str, Prompts] | None, shape: Sequence[int], labels: Sequence[str] | None
) -> dict[str, Prompts]:
    """The prompts that say something, each inside a picture of `shape` (H, W).

    Raises:
        UsageError: a place is outside the picture, or its label is not among `labels` (if given).
    """
    kept = {label: one for label, one in (prompts or {}).items() if one}
    check_asked(kept, labels)
    for label, one in kept.items():
        one.check((shape[0], shape[1]), label)
    return kept
