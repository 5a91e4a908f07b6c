"""From slice to slice through a volume: what was found on a slice helps to segment the next.

Annotated slices of other cases say what a structure looks like; the slice beside says where it
must be. So each label starts on the slice where it was found most surely from supports alone, and
from there is followed outwards in both directions, every slice segmented from its own supports and
from the slices segmented just before: in SAM 2's terms from frames prompted with a mask and from
frames tracked (Ravi et al., 2024, section 4, "Memory bank").

How it differs from SAM 2's tracking: the memory of a slice is encoded from its label map (ones and
zeros, no voxel of two labels) and not from the logits of one label.

Who wins a voxel is decided by logits. Of the slice that it starts from, and of slices without a
neighbour, a label has the logits from supports alone, of every other those from supports and
neighbours. Of two labels the higher logit wins, and background where none is positive. A label
passes every slice once, away from its start, so the two directions never meet. A label that was
found on no slice stays as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from medretrieval.segmentation.labels import SliceSegmentation, merge
from medretrieval.segmentation.members import BatchSegmenter, Member, segment_members
from medretrieval.segmentation.options import OptionChanges
from medretrieval.types import Progress, Support, no_progress

LEAST = -16.0  # logits below this (one in ten million) count as this


@dataclass(frozen=True, eq=False)
class _Patch:
    """Logits (H, W) of one label: kept where they are above `LEAST`, at half precision."""

    shape: tuple[int, int]
    box: tuple[slice, slice]
    values: NDArray[np.float16]

    @classmethod
    def of(cls, logits: NDArray[np.float32]) -> _Patch:
        possible = logits > LEAST
        rows, columns = np.flatnonzero(possible.any(axis=1)), np.flatnonzero(possible.any(axis=0))
        box = (slice(0, 0), slice(0, 0))
        if rows.size:
            box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        values = logits[box].clip(LEAST, np.finfo(np.float16).max).astype(np.float16)
        return cls((logits.shape[0], logits.shape[1]), box, values)

    def full(self) -> NDArray[np.float32]:
        logits = np.full(self.shape, LEAST, np.float32)
        logits[self.box] = self.values
        return logits


class Found:
    """One slice, its supports, and what was found on it, in little memory.

    Args:
        member: the slice as it was segmented.
        result: its segmentation.
    """

    def __init__(self, member: Member, result: SliceSegmentation) -> None:
        self.member = member
        self._names = dict(result.names)
        self._patches = {
            name: _Patch.of(logits)
            for name, logits in zip(result.names.values(), result.logits, strict=True)
        }
        self._mask = result.mask

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._patches)

    def confidence(self, label: str) -> tuple[bool, float]:
        """How surely the slice shows a label: whether a person pointed at it, and a number.

        The number is the mean probability inside its mask times the root of the mask's area, 0
        without a mask: the end of a structure is often sharp, but small.
        """
        logits = self._patches[label].values.astype(np.float64)
        inside = logits[logits > 0]
        if not inside.size:
            return False, 0.0
        mean = float((1 / (1 + np.exp(-inside))).mean())
        return bool(self.member.prompts.get(label)), mean * sqrt(inside.size)

    def add(self, result: SliceSegmentation) -> None:
        """Take what neighbours said of some of the labels in place of what was known."""
        for name, logits in zip(result.names.values(), result.logits, strict=True):
            self._patches[name] = _Patch.of(logits)
        self._mask = self.result().mask

    def result(self) -> SliceSegmentation:
        logits = np.stack([patch.full() for patch in self._patches.values()])
        return SliceSegmentation(
            mask=merge(logits, list(self._names)), logits=logits, names=self._names
        )

    def as_support(self, distance: int) -> Support:
        """The slice and its label map, to segment a slice that lies `distance` slices away by."""
        return Support(
            image=self.member.piece.image,
            mask=self._mask,
            names=self._names,
            key=f"slice {self.member.piece.index}",
            distance=distance,
        )


def starts(found: Sequence[Found]) -> dict[str, int]:
    """Where each label starts: the place in `found` of the slice that shows it most surely.

    See `Found.confidence`; of equals the first. A label that was found nowhere has no start.
    """
    best: dict[str, tuple[bool, float]] = {}
    start: dict[str, int] = {}
    for place, slice_ in enumerate(found):
        for label in slice_.labels:
            confidence = slice_.confidence(label)
            if confidence > best.get(label, (False, 0.0)):
                best[label], start[label] = confidence, place
    return start


def propagate(
    found: Sequence[Found],
    segmenter: BatchSegmenter,
    *,
    neighbours: int,
    progress: Progress = no_progress,
    changes: OptionChanges,
) -> None:
    """Let what was found on each slice help on the next ones; `found` is changed in place.

    Args:
        found: the slices of a volume that were segmented from supports alone, by ascending index,
            perhaps more quickly than by `changes`.
        segmenter: what segmented them.
        neighbours: how many slices segmented just before are shown, at most; they must lie within
            as many slices. A network without temporal positions, such as `sam2-micro`, takes
            them for further supports.
        progress: told after every slice of both directions.
        changes: options for `Segmenter.segment`.
    """
    start = starts(found)
    passed = 0

    def alive(done: int, total: int, message: str) -> None:
        progress(passed, 2 * len(found), "propagating")

    for label, place in start.items():
        first = found[place]
        first.add(*segment_members(segmenter, [first.member], [label], alive, changes))
    for direction in (1, -1):
        for done, place in enumerate(range(len(found))[::direction], start=1):
            here = found[place]
            together: dict[tuple[int, ...], list[str]] = {}
            for label in here.labels:
                if label in start and (place - start[label]) * direction > 0:
                    seen = _behind(found, label, place, start[label], direction, neighbours)
                    together.setdefault(seen, []).append(label)
            for seen, labels in together.items():
                shown = [found[i].as_support(_apart(found[i], here)) for i in seen]
                member = replace(here.member, supports=[*here.member.supports, *shown])
                here.add(*segment_members(segmenter, [member], labels, alive, changes))
            passed = done + (len(found) if direction < 0 else 0)
            progress(passed, 2 * len(found), "propagating")


def _behind(
    found: Sequence[Found], label: str, place: int, start: int, direction: int, most: int
) -> tuple[int, ...]:
    """Places from `start` to before `place` where a label was looked for, the nearest first.

    None is further away than `most` slices.
    """
    behind = range(place - direction, start - direction, -direction)
    return tuple(
        i
        for i in behind[:most]
        if label in found[i].labels and _apart(found[i], found[place]) <= most
    )


def _apart(a: Found, b: Found) -> int:
    return abs(a.member.piece.index - b.member.piece.index)
