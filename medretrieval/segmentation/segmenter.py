"""Few-shot segmentation: annotated slices in, a picture's label map out (RAFS, section III)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import log
from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from medretrieval.errors import UsageError
from medretrieval.segmentation.boxes import boxes
from medretrieval.segmentation.cache import Memory, MemoryCache
from medretrieval.segmentation.closer import look_closer
from medretrieval.segmentation.crop import Box, crop, uncrop
from medretrieval.segmentation.encodings import RecentEncodings
from medretrieval.segmentation.labels import (
    ABSENT,
    SliceSegmentation,
    check_picture,
    check_support,
    chosen,
    merge,
    name_mask,
    vocabulary,
)
from medretrieval.segmentation.options import OptionChanges, SegmentationOptions
from medretrieval.segmentation.prompts import Prompts, checked, moved
from medretrieval.segmentation.registry import SegmenterSpec
from medretrieval.segmentation.sam2_backend import CELL, Encoding, Sam2Network
from medretrieval.segmentation.shown import Shown
from medretrieval.segmentation.tiles import look_in_tiles
from medretrieval.types import Progress, Support, no_progress

# Logits beyond this are certain; averaging must not let one view's -1024 outvote the other.
_CERTAIN = 32.0


@dataclass(frozen=True, eq=False)
class _Job:
    """One query picture: what is looked for, where, with which supports and prompts.

    `views` holds the supports once as they are and, with flips, once mirrored; `prompts` those
    of each view, in pixels of the part of the picture in `box`.
    """

    image: NDArray[np.uint8]
    names: dict[int, str]
    box: Box
    views: tuple[tuple[Shown, ...], ...]
    prompts: tuple[Mapping[str, Prompts], ...]

    @property
    def shape(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    def groups(self) -> dict[tuple[int, ...], list[str]]:
        """Labels by the supports that they have: those of a group go through as one batch."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for name in self.names.values():
            rows = tuple(k for k, shown in enumerate(self.views[0]) if name in shown.masks)
            if rows or name in self.prompts[0]:
                groups.setdefault(rows, []).append(name)
        return groups


class Segmenter:
    """A SAM 2 network that segments pictures from annotated slices, without training.

    Use `load_segmenter` to make one. Its methods may be called from several threads.

    Attributes:
        spec: what is loaded.
        options: what is done unless a call says otherwise; defaults to the spec's.
        network: the network itself.
        cache: where the supports' memories are kept.
    """

    def __init__(
        self,
        network: Sam2Network,
        spec: SegmenterSpec,
        *,
        options: SegmentationOptions | None = None,
        cache: MemoryCache | None = None,
    ) -> None:
        self.network = network
        self.spec = spec
        self.options = spec.options if options is None else options
        self.cache = MemoryCache() if cache is None else cache
        self._encode = RecentEncodings(network.encode)

    @property
    def name(self) -> str:
        return self.spec.name

    def segment(
        self,
        image: NDArray[np.uint8],
        supports: Sequence[Support],
        *,
        labels: Sequence[str] | None = None,
        prompts: Mapping[str, Prompts] | None = None,
        **changes: Unpack[OptionChanges],
    ) -> SliceSegmentation:
        """Segment one picture.

        Args:
            image: (H, W) or (H, W, 3) uint8 of any size.
            supports: annotated slices of any sizes, from any sources. Labels count as the same
                if their names are the same, whatever their values. May be empty with prompts.
            labels: names of those wanted; default is all that the supports and prompts have.
            prompts: points and boxes for labels, by name. They correct what the supports alone
                would give; a label that no support has is segmented from its prompts alone.
            **changes: single options other than `self.options`; see `SegmentationOptions`.

        Returns:
            Label map and logits at the size of `image`. A label that no support shows is absent,
            unless it has prompts.

        Raises:
            UsageError: neither supports nor prompts, a label that no support has, a prompt outside
                the picture, an option out of range.
            InputError: a picture or mask that cannot be used.
        """
        return self.segment_batch([image], [supports], labels=labels, prompts=[prompts], **changes)[
            0
        ]

    def segment_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        supports: Sequence[Sequence[Support]],
        *,
        labels: Sequence[str] | None = None,
        prompts: Sequence[Mapping[str, Prompts] | None] | None = None,
        progress: Progress = no_progress,
        **changes: Unpack[OptionChanges],
    ) -> list[SliceSegmentation]:
        """Segment several pictures, each from its own supports: `segment` for each, but faster.

        Pictures are encoded in batches, and every (slice, label) is turned into a memory once.

        Args:
            images, labels, **changes: as for `segment`.
            supports: a support set for every picture.
            prompts: for every picture its prompts, or None.
            progress: told how many pictures are done; also within a picture's passes, without a
                step, so that what it raises ends the work soon.

        Raises:
            UsageError: besides those of `segment`, not as many support sets or prompts as pictures.
            InputError: as for `segment`.
        """
        options = self.options.changed(changes)
        asked = [None] * len(images) if prompts is None else list(prompts)
        if not len(images) == len(supports) == len(asked):
            raise UsageError(
                f"{len(images)} pictures, {len(supports)} support sets and prompts for "
                f"{len(asked)}; expected as many"
            )
        results: list[SliceSegmentation] = []
        looks_again = not isinstance(options.crop, Box) and (options.closer or options.tiles != 1)

        def tell(message: str) -> None:
            # A picture is done after its last pass.
            progress(0 if looks_again else len(results), len(images), message)

        def alive(message: str) -> Progress:
            return lambda done, total, _: tell(message)

        step = self.network.pictures_at_once
        for start in range(0, len(images), step):
            jobs = [
                self._job(images[i], supports[i], labels, options, asked[i])
                for i in range(start, min(start + step, len(images)))
            ]
            memories = self._memories(jobs, alive("encoding supports"))
            encodings = self._encode_queries(jobs)
            for job, views in zip(jobs, encodings, strict=True):
                results.append(self._segment(job, views, memories, options))
                tell("segmenting")
        if not looks_again:
            return results
        second: OptionChanges = {**changes, "closer": False, "tiles": 1, "crop": "none"}
        again = partial(self.segment_batch, **second)
        if options.closer:
            closer = partial(again, progress=alive("looking closer"))
            results = look_closer(closer, images, supports, results, prompts=asked)
        if options.tiles != 1:
            results = look_in_tiles(
                partial(again, progress=alive("looking in tiles")),
                images,
                supports,
                results,
                options.tiles,
                cells=self.network.image_size // CELL,
                prompts=asked,
            )
        progress(len(images), len(images), "segmenting")
        return results

    def forget_encodings(self) -> None:
        """Forget the encodings of the last pictures, which are kept for corrections."""
        self._encode = RecentEncodings(self.network.encode)

    def prepare(
        self,
        supports: Sequence[Support],
        *,
        labels: Sequence[str] | None = None,
        progress: Progress = no_progress,
        **changes: Unpack[OptionChanges],
    ) -> None:
        """Compute and cache the memories of a support set, so that a later query is quick.

        Args, raises: as for `segment`.
        """
        options = self.options.changed(changes)
        blank = np.zeros((1, 1), np.uint8)
        self._memories([self._job(blank, supports, labels, options)], progress)

    def _job(
        self,
        image: NDArray[np.uint8],
        supports: Sequence[Support],
        labels: Sequence[str] | None,
        options: SegmentationOptions,
        prompts: Mapping[str, Prompts] | None = None,
    ) -> _Job:
        check_picture(image, "the picture to segment")
        prompts = checked(prompts, image.shape, labels)
        if not supports and not prompts:
            raise UsageError("the support set is empty; give at least one annotated slice")
        for support in supports:
            check_support(support)
        names = chosen(_vocabulary(supports, prompts), labels)
        masks = [{name: name_mask(s, name) for name in names.values()} for s in supports]
        box, support_boxes = boxes(image, supports, masks, options, prompts)
        parts = [
            (
                crop(s.image, part),
                {name: crop(mask, part) for name, mask in row.items()},
                s.distance,
            )
            for s, row, part in zip(supports, masks, support_boxes, strict=True)
        ]
        shown_names = {name for _, row, _ in parts for name, mask in row.items() if mask.any()}
        rows, columns = box.pixels((image.shape[0], image.shape[1]))
        own = moved(prompts, rows, columns) or {}
        width = columns.stop - columns.start
        views, asked = [], []
        for mirrored in (False, True) if options.flips else (False,):
            view = []
            for picture, row, distance in parts:
                wanted = {
                    name: mask[:, ::-1] if mirrored else mask
                    for name, mask in row.items()
                    if name in shown_names and (options.negatives or mask.any())
                }
                if wanted:
                    picture = picture[:, ::-1] if mirrored else picture
                    view.append(replace(self.shown(picture, wanted), distance=distance))
            views.append(view)
            asked.append({n: p.mirrored(width) if mirrored else p for n, p in own.items()})
        if options.pointers == "equal" and views[0]:
            # The sum over supports is the same in any order; this makes it so to the last bit.
            order = sorted(range(len(views[0])), key=lambda k: sorted(views[0][k].keys.items()))
            views = [[view[k] for k in order] for view in views]
        return _Job(image, names, box, tuple(map(tuple, views)), tuple(asked))

    def shown(self, picture: NDArray[np.uint8], masks: Mapping[str, NDArray[np.bool_]]) -> Shown:
        """A support as this network sees it, with the keys of its memories."""
        network = f"{self.network.digest} {self.name} {self.network.image_size}"
        return Shown.of(picture, masks, network=network)

    def _memories(
        self, jobs: Sequence[_Job], progress: Progress = no_progress
    ) -> dict[str, Memory]:
        """Every memory that the jobs need, by key."""
        supports = (shown for job in jobs for view in job.views for shown in view)
        return self.memories(supports, progress=progress)

    def memories(
        self, supports: Iterable[Shown], *, progress: Progress = no_progress
    ) -> dict[str, Memory]:
        """Every memory of some supports, by key: from the cache or computed and cached."""
        memories: dict[str, Memory] = {}
        # By picture, so that a slice is encoded once however many labels and queries need it.
        missing: dict[str, tuple[NDArray[np.uint8], dict[str, NDArray[np.bool_]]]] = {}
        passing: set[str] = set()
        for shown in supports:
            if shown.distance is not None:
                passing.update(shown.keys.values())
            for name, key in shown.keys.items():
                if key in memories:
                    continue
                # In float32 both are the same; a miss would ask every source and the disk twice.
                keys = dict.fromkeys((key, self.network.own_key(key)))
                found = next((m for m in map(self.cache.get, keys) if m is not None), None)
                if found is not None:
                    memories[key] = found
                    continue
                wanted = missing.setdefault(shown.digest, (shown.picture, {}))[1]
                wanted[key] = shown.masks[name]
        todo = list(missing.values())
        step = self.network.pictures_at_once
        for start in range(0, len(todo), step):
            batch = todo[start : start + step]
            encodings = self.network.encode([picture for picture, _ in batch])
            for (_, masks), encoding in zip(batch, encodings, strict=True):
                made = self.network.remember(encoding, list(masks.values()))
                for key, memory in zip(masks, made, strict=True):
                    # A mask that was only just found is hardly ever met again.
                    memories[key] = self.cache.put(
                        self.network.own_key(key), memory, on_disk=key not in passing
                    )
            progress(min(start + step, len(todo)), len(todo), "encoding supports")
        return memories

    def _encode_queries(self, jobs: Sequence[_Job]) -> list[list[Encoding]]:
        """One encoding a view of every job's picture; none where there is nothing to find."""
        pictures: list[NDArray[np.uint8]] = []
        counts = []
        for job in jobs:
            part = crop(job.image, job.box)
            views = [part, part[:, ::-1]][: len(job.views)] if job.groups() else []
            pictures += views
            counts.append(len(views))
        encodings = iter(self._encode(pictures))
        return [[next(encodings) for _ in range(count)] for count in counts]

    def _segment(
        self,
        job: _Job,
        encodings: Sequence[Encoding],
        memories: dict[str, Memory],
        options: SegmentationOptions,
    ) -> SliceSegmentation:
        rows, columns = job.box.pixels(job.shape)
        size = (rows.stop - rows.start, columns.stop - columns.start)
        position = {name: i for i, name in enumerate(job.names.values())}
        part: NDArray[Any] = np.full((len(position), *size), ABSENT, np.float32)
        zero = log(options.threshold / (1 - options.threshold))
        for supports, names in job.groups().items():
            views = []
            for mirrored, (encoding, view) in enumerate(zip(encodings, job.views, strict=True)):
                wanted = [[memories[view[k].keys[name]] for k in supports] for name in names]
                asked = [job.prompts[mirrored].get(name) for name in names]
                side = self.network.image_size
                points = [None if p is None else p.for_network(size, side) for p in asked]
                low = self.network.segment(
                    encoding,
                    wanted,
                    pointers=options.pointers,
                    points=points,
                    distances=[view[k].distance for k in supports],
                    memory=options.memory,
                )
                # As SAM2VideoPredictor: from the decoder's resolution to the picture's directly.
                full = F.interpolate(low[:, None], size=size, mode="bilinear", align_corners=False)
                views.append(full[:, 0].flip(-1) if mirrored else full[:, 0])
            if len(views) > 1:
                mean = torch.stack(views).clamp(-_CERTAIN, _CERTAIN).mean(0)
            else:
                mean = views[0]
            part[[position[name] for name in names]] = mean.numpy() - zero
        logits = uncrop(part, job.box, job.shape, ABSENT)
        return SliceSegmentation(
            mask=merge(logits, list(job.names)), logits=logits, names=dict(job.names)
        )


def _vocabulary(supports: Sequence[Support], prompts: Mapping[str, Prompts]) -> dict[int, str]:
    """One value a label; those that only prompts name come after those of the supports."""
    known = vocabulary(support.names for support in supports)
    more = [name for name in prompts if name not in known.values()]
    first = max(known, default=0) + 1
    return {**known, **dict(enumerate(more, start=first))}
