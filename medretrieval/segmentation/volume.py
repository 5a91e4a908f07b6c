"""Whole volumes: every slice segmented from its own supports, one label map on the input's grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeAlias, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medretrieval.errors import UsageError
from medretrieval.imaging.geometry import extract, finest_plane, insert, slice_axis
from medretrieval.imaging.orientation import AS_STORED, turn, turn_back
from medretrieval.imaging.slices import make_slices
from medretrieval.segmentation.cleanup import largest_components
from medretrieval.segmentation.labels import SliceSegmentation, merge, vocabulary
from medretrieval.segmentation.members import BatchSegmenter as BatchSegmenter
from medretrieval.segmentation.members import Member, segment_members
from medretrieval.segmentation.options import VOLUME_DEFAULTS, OptionChanges, VolumeOptions
from medretrieval.segmentation.prompts import Prompts, check_asked
from medretrieval.segmentation.propagation import Found, propagate
from medretrieval.types import (
    Grid,
    LabelVolume,
    Progress,
    Slice,
    SlicePolicy,
    Support,
    Volume,
    no_progress,
)

# Slices whose supports are held in memory at the same time.
_CHUNK = 16
_CERTAIN = 32.0

_Segmented: TypeAlias = tuple[Member, SliceSegmentation]
# voxel index, label map, names of its values
_Found: TypeAlias = tuple[int, NDArray[Any], Mapping[int, str]]


def segment_volume(
    volume: Volume,
    policy: SlicePolicy,
    choose: Callable[[Slice], Sequence[Support]],
    segmenter: BatchSegmenter,
    *,
    how: VolumeOptions = VOLUME_DEFAULTS,
    labels: Sequence[str] | None = None,
    indices: Iterable[int] | None = None,
    orientation: str = AS_STORED,
    prompts: Mapping[int, Mapping[str, Prompts]] | None = None,
    progress: Progress = no_progress,
    **changes: Unpack[OptionChanges],
) -> LabelVolume:
    """Segment a volume slice by slice.

    Args:
        volume: the image.
        policy: how its slices are made; the one of the index that the supports come from.
        choose: gives the supports for a slice; none leaves the slice background, unless it has
            prompts.
        segmenter: what `load_segmenter` returns.
        how: how the slices make a volume. With propagation the supports and logits of all slices
            are held in memory; without it those of a few.
        labels: names of those wanted; default is all that any support has. A label that the
            supports of some slice do not know is absent there.
        indices: slices to segment, by voxel index along the sliced axis; default is all. The
            others stay background.
        orientation: how slices are turned before they are given to `choose` and segmented, one of
            `imaging.ORIENTATIONS`; their label maps are turned back.
        prompts: points and boxes for single slices, by voxel index along the sliced axis and then
            by label, in pixels of the slice at full size as `imaging.extract` displays it.
        progress: told after every slice, and with propagation after every slice of either
            direction. What it raises, such as `Cancelled`, ends the segmentation.
        **changes: options for `Segmenter.segment`.

    Returns:
        A label map with exactly the grid of `volume`, of the smallest unsigned type. Slices that
        the policy reduces are brought back to full size before labels are decided. Labels are
        told apart by name over the whole volume.

    Raises:
        UsageError: no slice has a support, a label that no support has, a slice that does not
            exist, prompts for a slice or a label that is not segmented.
        InputError: a support that cannot be used.
    """
    cut = _Cut(volume, slicing(policy, volume.grid, how), orientation)
    wanted = range(cut.count) if indices is None else list(dict.fromkeys(indices))
    pointed = _checked(prompts or {}, wanted, labels)
    known: set[str] = set()
    count = _Count(len(wanted), progress)

    def members() -> Iterator[Member]:
        for piece in cut.slices(wanted):
            own = cut.seen(piece, pointed.get(piece.index, {}))
            member = Member(piece, choose(piece), own)
            known.update(member.labels)
            if member.labels if labels is None else member.labels & set(labels):
                yield member
            else:
                count.add(1)

    if how.propagation == "both" and len(wanted) > 1:
        # What is only looked for to start from needs no closer look.
        quick: OptionChanges = {**changes, "closer": False}
        slices = _slice_wise(members(), segmenter, labels, count, quick)
        slices = _propagated(slices, segmenter, how.neighbours, progress, changes)
    else:
        slices = _slice_wise(members(), segmenter, labels, count, changes)
    found = [
        (member.piece.index, cut.stored(member.piece, result), result.names)
        for member, result in slices
    ]
    _check_known(known, labels)
    whole = _assemble(volume, cut.axis, found)
    return largest_components(whole) if how.keep == "largest" else whole


def slicing(policy: SlicePolicy, grid: Grid, how: VolumeOptions) -> SlicePolicy:
    """The policy that slices of a volume are made with: that of the index, or along another axis.

    The supports stay slices of the index. Retrieval compares pictures, whatever axis they were cut
    along, so other slices find supports that look alike where the index has such; an index whose
    cases are all cut across one plane has none of another.

    Args:
        policy: of the index.
        grid: of the volume.
        how: whose `axis` decides; the finest plane is that of `imaging.finest_plane`.
    """
    if how.axis == "index":
        return policy
    return replace(policy, axis=finest_plane(grid, policy.axis))


@dataclass(frozen=True, eq=False)
class _Cut:
    """Slices of a volume as the segmenter sees them, and the way back."""

    volume: Volume
    policy: SlicePolicy
    orientation: str

    @property
    def axis(self) -> int:
        return slice_axis(self.volume.grid, self.policy.axis)

    @property
    def count(self) -> int:
        return self.volume.grid.shape[self.axis]

    def slices(self, indices: Sequence[int]) -> Iterator[Slice]:
        for made in make_slices(self.volume, self.policy, indices=indices):
            yield replace(made, image=np.ascontiguousarray(turn(made.image, self.orientation)))

    def seen(self, piece: Slice, prompts: Mapping[str, Prompts]) -> dict[str, Prompts]:
        """Prompts on the slice as displayed at full size -> the same on `piece`."""
        reduced = turn_back(piece.image, self.orientation).shape
        return {
            label: one.resized(self._shape(piece), reduced).turned(reduced, self.orientation)
            for label, one in prompts.items()
        }

    def stored(self, piece: Slice, result: SliceSegmentation) -> NDArray[Any]:
        """Label map of `piece` -> (H, W) of the slice as displayed at full size."""
        full = np.empty(self._shape(piece), np.bool_)
        rows, columns = turn(full, self.orientation).shape
        return turn_back(_full_size(result, (rows, columns)), self.orientation)

    def _shape(self, piece: Slice) -> tuple[int, int]:
        rows, columns = extract(self.volume.voxels, self.volume.grid, self.axis, piece.index).shape[
            :2
        ]
        return rows, columns


class _Count:
    """Tells of slices that are done, also while a group of them is being segmented."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total, self._progress = total, progress
        self._passed = self._told = 0

    def within(self, done: int, total: int, message: str) -> None:
        """Progress of a group: `done` of its slices."""
        self._told = max(self._told, self._passed + done)
        self._progress(self._told, self._total, f"{message} slices")

    def add(self, slices: int) -> None:
        """A group is done."""
        self._passed += slices
        if self._told < self._passed:
            self.within(0, slices, "segmenting")


def _slice_wise(
    members: Iterator[Member],
    segmenter: BatchSegmenter,
    labels: Sequence[str] | None,
    count: _Count,
    changes: OptionChanges,
) -> Iterator[_Segmented]:
    """Segment every slice from its own supports, a chunk of slices at a time."""
    while chunk := list(islice(members, _CHUNK)):
        for names, group in _by_labels(chunk, labels).items():
            results = segment_members(segmenter, group, names, count.within, changes)
            count.add(len(group))
            yield from zip(group, results, strict=True)


def _propagated(
    slices: Iterable[_Segmented],
    segmenter: BatchSegmenter,
    neighbours: int,
    progress: Progress,
    changes: OptionChanges,
) -> Iterator[_Segmented]:
    """The slices of a volume after what was found on each has helped on the next ones."""
    found = [Found(member, result) for member, result in slices]
    found.sort(key=lambda slice_: slice_.member.piece.index)
    propagate(found, segmenter, neighbours=neighbours, progress=progress, changes=changes)
    for slice_ in found:
        yield slice_.member, slice_.result()


def _checked(
    prompts: Mapping[int, Mapping[str, Prompts]],
    wanted: Sequence[int],
    labels: Sequence[str] | None,
) -> Mapping[int, Mapping[str, Prompts]]:
    """Refuse prompts that would have no effect."""
    astray = sorted(set(prompts) - set(wanted))
    if astray:
        raise UsageError(
            f"prompts for slice {astray[0]}, which is not segmented; expected one of the slices "
            f"{', '.join(map(str, wanted))}"
        )
    check_asked((label for own in prompts.values() for label in own), labels)
    return prompts


def _check_known(known: set[str], labels: Sequence[str] | None) -> None:
    """Refuse labels that no slice knows."""
    if not known:
        raise UsageError("no slice has a support with a label; give at least one annotated slice")
    unknown = sorted(set(labels or ()) - known)
    if unknown:
        raise UsageError(
            f"no support has a label {', '.join(map(repr, unknown))}; the supports have: "
            f"{', '.join(sorted(known))}"
        )


def _by_labels(
    members: Sequence[Member], labels: Sequence[str] | None
) -> dict[tuple[str, ...] | None, list[Member]]:
    """Slices by which of the wanted labels they know; None stands for all of them."""
    groups: dict[tuple[str, ...] | None, list[Member]] = {}
    for member in members:
        names = None
        if labels is not None:
            names = tuple(label for label in labels if label in member.labels)
        groups.setdefault(names, []).append(member)
    return groups


def _full_size(result: SliceSegmentation, shape: tuple[int, int]) -> NDArray[Any]:
    """The label map of a slice at `shape` (H, W): decided from logits if it has to be enlarged."""
    if result.mask.shape == shape:
        return result.mask
    enlarged = np.empty((len(result.logits), *shape), np.float32)
    for i, logits in enumerate(result.logits):
        picture = Image.fromarray(logits.clip(-_CERTAIN, _CERTAIN))
        size = (shape[1], shape[0])
        enlarged[i] = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    return merge(enlarged, list(result.names))


def _assemble(volume: Volume, axis: int, found: Sequence[_Found]) -> LabelVolume:
    names = vocabulary(slice_names for _, _, slice_names in found)
    value_of = {name: value for value, name in names.items()}
    dtype = np.min_scalar_type(max(names, default=0))
    voxels = np.zeros(volume.grid.shape, dtype)
    for index, mask, slice_names in found:
        table = np.zeros(max(slice_names, default=0) + 1, dtype)
        for value, name in slice_names.items():
            table[value] = value_of[name]
        insert(voxels, volume.grid, axis, index, table[mask])
    return LabelVolume(voxels=voxels, grid=volume.grid, names=names)
