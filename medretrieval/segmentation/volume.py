"""Whole volumes: every slice segmented from its own supports, one label map on the input's grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medretrieval.errors import UsageError
from medretrieval.imaging.geometry import extract, insert, slice_axis
from medretrieval.imaging.orientation import AS_STORED, turn, turn_back
from medretrieval.imaging.slices import make_slices
from medretrieval.segmentation.labels import SliceSegmentation, merge, vocabulary
from medretrieval.segmentation.options import OptionChanges
from medretrieval.types import (
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

_Member: TypeAlias = tuple[Slice, Sequence[Support]]
# voxel index, label map, names of its values
_Found: TypeAlias = tuple[int, NDArray[Any], Mapping[int, str]]


class BatchSegmenter(Protocol):
    """What segments slices: a `Segmenter`, a baseline, or a stand-in for them."""

    @property
    def name(self) -> str: ...

    def segment_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        supports: Sequence[Sequence[Support]],
        *,
        labels: Sequence[str] | None = None,
        progress: Progress = no_progress,
        **changes: Unpack[OptionChanges],
    ) -> list[SliceSegmentation]: ...


def segment_volume(
    volume: Volume,
    policy: SlicePolicy,
    choose: Callable[[Slice], Sequence[Support]],
    segmenter: BatchSegmenter,
    *,
    labels: Sequence[str] | None = None,
    indices: Iterable[int] | None = None,
    orientation: str = AS_STORED,
    progress: Progress = no_progress,
    **changes: Unpack[OptionChanges],
) -> LabelVolume:
    """Segment a volume slice by slice.

    Args:
        volume: the image.
        policy: how its slices are made; the one of the index that the supports come from.
        choose: gives the supports for a slice; none leaves the slice background.
        segmenter: what `load_segmenter` returns.
        labels: names of those wanted; default is all that any support has. A label that the
            supports of some slice do not know is absent there.
        indices: slices to segment, by voxel index along the sliced axis; default is all. The
            others stay background.
        orientation: how slices are turned before they are given to `choose` and segmented, one of
            `imaging.ORIENTATIONS`; their label maps are turned back.
        progress: told after every slice.
        **changes: options for `Segmenter.segment`.

    Returns:
        A label map with exactly the grid of `volume`, of the smallest unsigned type. Slices that
        the policy reduces are brought back to full size before labels are decided. Labels are
        told apart by name over the whole volume.

    Raises:
        UsageError: no slice has a support, a label that no support has, a slice that does not
            exist.
        InputError: a support that cannot be used.
    """
    axis = slice_axis(volume.grid, policy.axis)
    wanted = range(volume.grid.shape[axis]) if indices is None else list(indices)
    found: list[_Found] = []
    chunk: list[_Member] = []
    known: set[str] = set()
    passed = 0

    def flush() -> None:
        nonlocal passed

        def step(done: int, total: int, message: str) -> None:
            nonlocal passed
            passed += 1
            progress(passed, len(wanted), f"{message} slices")

        for names, members in _by_labels(chunk, labels).items():
            results = segmenter.segment_batch(
                [piece.image for piece, _ in members],
                [supports for _, supports in members],
                labels=names,
                progress=step,
                **changes,
            )
            for (piece, _), result in zip(members, results, strict=True):
                stored = extract(volume.voxels, volume.grid, axis, piece.index)
                rows, columns = turn(stored, orientation).shape[:2]
                mask = turn_back(_full_size(result, (rows, columns)), orientation)
                found.append((piece.index, mask, result.names))
        chunk.clear()

    for made in make_slices(volume, policy, indices=wanted):
        piece = replace(made, image=np.ascontiguousarray(turn(made.image, orientation)))
        supports = choose(piece)
        names = _names(supports)
        known |= names
        if names if labels is None else names & set(labels):
            chunk.append((piece, supports))
        else:
            passed += 1
            progress(passed, len(wanted), "segmenting slices")
        if len(chunk) == _CHUNK:
            flush()
    flush()
    if not known:
        raise UsageError("no slice has a support with a label; give at least one annotated slice")
    unknown = sorted(set(labels or ()) - known)
    if unknown:
        raise UsageError(
            f"no support has a label {', '.join(map(repr, unknown))}; the supports have: "
            f"{', '.join(sorted(known))}"
        )
    return _assemble(volume, axis, found)


def _names(supports: Sequence[Support]) -> set[str]:
    return {name for s in supports for value, name in s.names.items() if value != 0}


def _by_labels(
    chunk: Sequence[_Member], labels: Sequence[str] | None
) -> dict[tuple[str, ...] | None, list[_Member]]:
    """Slices by which of the wanted labels their supports know; None stands for all of them."""
    groups: dict[tuple[str, ...] | None, list[_Member]] = {}
    for member in chunk:
        names = None
        if labels is not None:
            have = _names(member[1])
            names = tuple(label for label in labels if label in have)
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
