"""The whole way through the product: build an index, segment a query.

The packages below know one subject each; this module connects them. The command line and the page
call it and add nothing of their own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medretrieval.building import add_embedder as add_embedder
from medretrieval.building import append_index as append_index
from medretrieval.building import build_index as build_index
from medretrieval.errors import UsageError
from medretrieval.metrics.segmentation import dice
from medretrieval.retrieval.fusion import search_fused as search_fused
from medretrieval.segmentation.options import VOLUME_DEFAULTS, VolumeOptions
from medretrieval.segmentation.registry import DEFAULT_SEGMENTER
from medretrieval.support_sets import DEFAULT_SUPPORT_K as DEFAULT_SUPPORT_K
from medretrieval.support_sets import Sets, support_sets
from medretrieval.types import (
    LabelVolume,
    Progress,
    Slice,
    Support,
    Volume,
    no_progress,
)

if TYPE_CHECKING:
    from medretrieval.retrieval.engine import Index
    from medretrieval.retrieval.filters import Filters
    from medretrieval.segmentation.members import BatchSegmenter
    from medretrieval.segmentation.options import OptionChanges
    from medretrieval.segmentation.prompts import Prompts
    from medretrieval.segmentation.uncertainty import Agreement


@dataclass(frozen=True, kw_only=True)
class SupportUse:
    """Which support served which query slice, and how similar it was (None: chosen by hand)."""

    query_slice: int
    key: str
    score: float | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Segmentation:
    """A label map on the query's grid, and how it came about.

    Attributes:
        orientation: how the slices were turned to be segmented; the label map is as the query.
        part: the axis and the slices across it that were asked for, None for all of them.
    """

    labels: LabelVolume
    segmenter: str
    supports: tuple[SupportUse, ...]
    seconds: float
    slices: int
    orientation: str = "as stored"
    part: tuple[int, tuple[int, ...]] | None = None

    def structures(self) -> list[dict[str, Any]]:
        """Per label: value, name, voxels, and millilitres (None where the spacing is unknown)."""
        grid = self.labels.grid
        ml = float(np.prod(grid.spacing)) / 1000 if grid.spacing_known else None
        counts = np.bincount(self.labels.voxels.ravel(), minlength=1)
        rows = []
        for value, name in sorted(self.labels.names.items()):
            voxels = int(counts[value]) if value < len(counts) else 0
            rows.append(
                {
                    "value": value,
                    "name": name,
                    "voxels": voxels,
                    "ml": None if ml is None else round(voxels * ml, 3),
                }
            )
        return rows

    def dice(self, truth: LabelVolume) -> dict[str, float]:
        """Dice of each structure that the truth or this label map shows, matched by name.

        Only the slices that were asked for are compared.

        Args:
            truth: on the same grid; its values may differ from those here.

        Raises:
            UsageError: the truth has a value without a name.
        """
        unnamed = sorted(set(np.unique(truth.voxels).tolist()) - set(truth.names) - {0})
        if unnamed:
            raise UsageError(
                f"the truth has the values {unnamed}, which have no name in the index; name them, "
                "as in --truth-names 1=RV,2=Myo,3=LV"
            )
        value_of = {name: value for value, name in truth.names.items()}
        own_value = {name: value for value, name in self.labels.names.items()}
        own, true = self.labels.voxels, truth.voxels
        if self.part is not None:
            own, true = (np.take(voxels, self.part[1], self.part[0]) for voxels in (own, true))
        scores = {}
        for name in sorted(value_of.keys() | own_value.keys()):
            found = own == own_value.get(name, -1)
            wanted = true == value_of.get(name, -1)
            if found.any() or wanted.any():
                scores[name] = dice(found, wanted)
        return scores

    def to_json(self) -> dict[str, Any]:
        return {
            "segmenter": self.segmenter,
            "labels": self.structures(),
            "slices": self.slices,
            "orientation": self.orientation,
            "seconds": round(self.seconds, 3),
            "supports": [
                {"query_slice": s.query_slice, "key": s.key, "score": s.score}
                for s in self.supports
            ],
        }


def segment(
    index: Index,
    query: Volume,
    *,
    segmenter: str | BatchSegmenter = DEFAULT_SEGMENTER,
    support_k: int = DEFAULT_SUPPORT_K,
    supports: Sequence[Support] | None = None,
    sets: Sets = "slice",
    labels: Sequence[str] | None = None,
    indices: Sequence[int] | None = None,
    filters: Filters | None = None,
    orientation: str = "as stored",
    prompts: Mapping[int, Mapping[str, Prompts]] | None = None,
    how: VolumeOptions = VOLUME_DEFAULTS,
    options: OptionChanges | None = None,
    progress: Progress = no_progress,
) -> Segmentation:
    """Segment `query` from annotated slices, without training (RAFS, section III).

    Args:
        index: where supports are retrieved; the slices of the query are made with its policy, or
            along another axis if `how` says so.
        query: image or volume.
        support_k: how many annotated slices are retrieved for each query slice.
        supports: use these for every slice instead of retrieving.
        sets: what is retrieved: "slice", for every slice the annotated slices most similar to it;
            or "volume", one set for all slices, see `support_sets.covering`.
        labels: names of the structures wanted; default is all that the supports show.
        indices: slices to segment, default all; the others stay background.
        filters: which slices may be retrieved, by default all, see `retrieval.filters.Filters`.
        orientation: how the slices are turned before supports are retrieved and they are segmented:
            a name of `imaging.ORIENTATIONS`, or "any" for the one in which they are most similar to
            the annotated slices that may be retrieved, or to the given supports.
        prompts: points and boxes for single slices, by voxel index along the sliced axis and then
            by label, in pixels of the slice as displayed.
        how: how the slices of a volume make one label map.
        options: how the network is used, where it differs from the segmenter's own defaults.

    Returns:
        A label map with exactly the grid of `query`.

    Raises:
        UsageError: no supports, a label that no support has, a slice or an orientation that does
            not exist; or `supports` are left out with an index of whole volumes, which cannot find
            any.
    """
    from medretrieval.imaging import slice_axis
    from medretrieval.segmentation import load_segmenter, segment_volume
    from medretrieval.segmentation.volume import slicing

    start = time.perf_counter()
    model = load_segmenter(segmenter) if isinstance(segmenter, str) else segmenter
    _use_stored(index, model)
    policy = slicing(index.manifest.slices, query.grid, how)
    chosen, orientation = support_sets(
        index,
        query,
        policy,
        supports,
        support_k=support_k,
        sets=sets,
        labels=_retrieved(labels, prompts, index),
        indices=indices,
        filters=filters,
        orientation=orientation,
        progress=progress,
    )
    used: list[SupportUse] = []

    def choose(piece: Slice) -> Sequence[Support]:
        picked = chosen[piece.index]
        used.extend(SupportUse(query_slice=piece.index, key=s.key, score=s.score) for s in picked)
        return picked

    result = segment_volume(
        query,
        policy,
        choose,
        model,
        how=how,
        labels=labels,
        indices=indices,
        orientation=orientation,
        prompts=prompts,
        progress=progress,
        **(options or {}),
    )
    return Segmentation(
        labels=result,
        segmenter=model.name,
        supports=tuple(used),
        seconds=time.perf_counter() - start,
        slices=len({u.query_slice for u in used}),
        orientation=orientation,
        part=None if indices is None else (slice_axis(query.grid, policy.axis), tuple(indices)),
    )


def _retrieved(
    labels: Sequence[str] | None, prompts: Mapping[int, Mapping[str, Prompts]] | None, index: Index
) -> Sequence[str] | None:
    """The labels that supports are retrieved for: those asked for, less those only pointed at."""
    if labels is None or not prompts:
        return labels
    pointed = {label for of_slice in prompts.values() for label in of_slice}
    new = pointed - set(index.store.vocabulary.values())
    return [label for label in labels if label not in new] or None


def _use_stored(index: Index, segmenter: BatchSegmenter) -> None:
    """Let a segmenter that keeps memories use those that are stored in the index."""
    if hasattr(segmenter, "cache"):
        from medretrieval.segmentation.stored import use_stored

        use_stored(index.store, segmenter)


def used_supports(
    index: Index, result: Segmentation, supports: Sequence[Support] | None = None
) -> list[Support]:
    """The supports that a segmentation was made with, each once, most similar to any slice first.

    Args:
        index: that of the segmentation; what was retrieved is read from it again.
        supports: what was given to `segment`, if anything.

    Returns:
        Supports whose score is the highest that they had for any slice; given ones as they are.
    """
    from medretrieval.segmentation.supports import distinct

    if supports is not None:
        return distinct(supports)
    best: dict[str, float] = {}
    for use in result.supports:
        score = -1.0 if use.score is None else use.score
        best[use.key] = max(score, best.get(use.key, score))
    rows = []
    for key in best:
        volume_id, _, number = key.rpartition(":")
        rows.append(index.store.row(volume_id, int(number)))
    pairs = sorted(zip(best.values(), rows, strict=True), key=lambda pair: (-pair[0], pair[1]))
    return [index.store.support(row, score) for score, row in pairs]


def agreement(
    index: Index,
    query: Volume,
    slice_index: int,
    *,
    segmenter: str | BatchSegmenter = DEFAULT_SEGMENTER,
    support_k: int = DEFAULT_SUPPORT_K,
    supports: Sequence[Support] | None = None,
    labels: Sequence[str] | None = None,
    filters: Filters | None = None,
    orientation: str = "as stored",
    how: VolumeOptions = VOLUME_DEFAULTS,
    options: OptionChanges | None = None,
    progress: Progress = no_progress,
) -> Agreement:
    """How far the mask of one slice depends on single supports, see `leave_one_out`.

    Args:
        slice_index: of the query, voxel index along the sliced axis.
        index, query, segmenter, support_k, supports, labels, filters, orientation, options: as for
            `segment`; the supports are those that it would use for this slice.
        how: only its axis matters.

    Returns:
        Masks and maps at the size of the slice, which lie as it is displayed.

    Raises:
        UsageError: as for `segment`; or there are fewer than two supports.
    """
    from medretrieval.imaging import make_slices
    from medretrieval.imaging.orientation import turn, turn_back
    from medretrieval.segmentation import load_segmenter
    from medretrieval.segmentation.uncertainty import leave_one_out
    from medretrieval.segmentation.volume import slicing

    policy = slicing(index.manifest.slices, query.grid, how)
    model = load_segmenter(segmenter) if isinstance(segmenter, str) else segmenter
    _use_stored(index, model)
    chosen, orientation = support_sets(
        index,
        query,
        policy,
        supports,
        support_k=support_k,
        labels=labels,
        indices=[slice_index],
        filters=filters,
        orientation=orientation,
        progress=progress,
    )
    piece = next(iter(make_slices(query, policy, indices=[slice_index])))
    found = leave_one_out(
        model,
        np.ascontiguousarray(turn(piece.image, orientation)),
        chosen[slice_index],
        labels=labels,
        progress=progress,
        **(options or {}),
    )
    return found.each(lambda picture: turn_back(picture, orientation))
