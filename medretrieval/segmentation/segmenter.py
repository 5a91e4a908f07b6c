"""Few-shot segmentation: annotated slices in, a picture's label map out (RAFS, section III)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from medretrieval.errors import UsageError
from medretrieval.segmentation.cache import Memory, MemoryCache
from medretrieval.segmentation.closer import look_closer
from medretrieval.segmentation.crop import WHOLE, Box, box_around, crop, uncrop
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
from medretrieval.segmentation.registry import SegmenterSpec
from medretrieval.segmentation.sam2_backend import Encoding, Sam2Network
from medretrieval.types import Progress, Support, no_progress

# Logits beyond this are certain; averaging must not let one view's -1024 outvote the other.
_CERTAIN = 32.0


@dataclass(frozen=True, eq=False)
class _Shown:
    """One support as the network sees it in one view: cropped, perhaps mirrored.

    `digest` tells pictures apart; `masks` has one entry for every label wanted of it, `keys` the
    cache key of each.
    """

    picture: NDArray[np.uint8]
    digest: str
    masks: dict[str, NDArray[np.bool_]]
    keys: dict[str, str]


@dataclass(frozen=True, eq=False)
class _Job:
    """One query picture: what is looked for, where, and with which supports.

    `views` holds the supports once as they are and, with flips, once mirrored.
    """

    image: NDArray[np.uint8]
    names: dict[int, str]
    box: Box
    views: tuple[tuple[_Shown, ...], ...]

    def groups(self) -> dict[tuple[int, ...], list[str]]:
        """Labels by the supports that they have: those of a group go through as one batch."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for name in self.names.values():
            rows = tuple(k for k, shown in enumerate(self.views[0]) if name in shown.masks)
            if rows:
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

    @property
    def name(self) -> str:
        return self.spec.name

    def segment(
        self,
        image: NDArray[np.uint8],
        supports: Sequence[Support],
        *,
        labels: Sequence[str] | None = None,
        **changes: Unpack[OptionChanges],
    ) -> SliceSegmentation:
        """Segment one picture.

        Args:
            image: (H, W) or (H, W, 3) uint8 of any size.
            supports: annotated slices of any sizes, from any sources. Labels count as the same
                if their names are the same, whatever their values.
            labels: names of those wanted; default is all that the supports have.
            **changes: single options other than `self.options`; see `SegmentationOptions`.

        Returns:
            Label map and logits at the size of `image`. A label that no support shows is absent.

        Raises:
            UsageError: no supports, a label that no support has, an option out of range.
            InputError: a picture or mask that cannot be used.
        """
        return self.segment_batch([image], [supports], labels=labels, **changes)[0]

    def segment_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        supports: Sequence[Sequence[Support]],
        *,
        labels: Sequence[str] | None = None,
        progress: Progress = no_progress,
        **changes: Unpack[OptionChanges],
    ) -> list[SliceSegmentation]:
        """Segment several pictures, each from its own supports: `segment` for each, but faster.

        Pictures are encoded in batches, and every (slice, label) is turned into a memory once.

        Args:
            images, labels, **changes: as for `segment`.
            supports: a support set for every picture.
            progress: told after every picture.

        Raises:
            UsageError: besides those of `segment`, not as many support sets as pictures.
            InputError: as for `segment`.
        """
        options = self.options.changed(changes)
        if len(images) != len(supports):
            raise UsageError(
                f"{len(images)} pictures and {len(supports)} support sets; expected as many"
            )
        results: list[SliceSegmentation] = []
        step = self.network.pictures_at_once
        for start in range(0, len(images), step):
            jobs = [
                self._job(image, chosen_supports, labels, options)
                for image, chosen_supports in zip(
                    images[start : start + step], supports[start : start + step], strict=True
                )
            ]
            memories = self._memories(jobs)
            encodings = self._encode_queries(jobs)
            for job, views in zip(jobs, encodings, strict=True):
                results.append(self._segment(job, views, memories, options))
                progress(len(results), len(images), "segmenting")
        if options.closer and not isinstance(options.crop, Box):
            second: OptionChanges = {**changes, "closer": False, "crop": "none"}
            again = partial(self.segment_batch, **second)
            results = look_closer(again, images, supports, results)
        return results

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
    ) -> _Job:
        check_picture(image, "the picture to segment")
        if not supports:
            raise UsageError("the support set is empty; give at least one annotated slice")
        for support in supports:
            check_support(support)
        names = chosen(vocabulary(support.names for support in supports), labels)
        masks = [{name: name_mask(s, name) for name in names.values()} for s in supports]
        if options.crop == "none":
            box = WHOLE
        elif options.crop == "supports":
            every = (mask for row in masks for mask in row.values())
            box = box_around(every, margin=options.crop_margin)
        else:
            box = options.crop
        parts = [
            (crop(s.image, box), {name: crop(mask, box) for name, mask in row.items()})
            for s, row in zip(supports, masks, strict=True)
        ]
        shown_names = {name for _, row in parts for name, mask in row.items() if mask.any()}
        views = []
        for mirrored in (False, True) if options.flips else (False,):
            view = []
            for picture, row in parts:
                wanted = {
                    name: mask[:, ::-1] if mirrored else mask
                    for name, mask in row.items()
                    if name in shown_names and (options.negatives or mask.any())
                }
                if wanted:
                    view.append(self._shown(picture[:, ::-1] if mirrored else picture, wanted))
            views.append(view)
        if options.pointers == "equal":
            # The sum over supports is the same in any order; this makes it so to the last bit.
            order = sorted(range(len(views[0])), key=lambda k: sorted(views[0][k].keys.items()))
            views = [[view[k] for k in order] for view in views]
        return _Job(image, names, box, tuple(map(tuple, views)))

    def _shown(self, picture: NDArray[np.uint8], masks: dict[str, NDArray[np.bool_]]) -> _Shown:
        hasher = hashlib.sha256(
            f"2 {self.network.digest} {self.name} {self.network.image_size} "
            f"{picture.shape}".encode()
        )
        hasher.update(picture.tobytes())
        keys = {}
        for name, mask in masks.items():
            one = hasher.copy()
            one.update(np.packbits(mask).tobytes())
            keys[name] = one.hexdigest()
        return _Shown(picture, hasher.hexdigest(), masks, keys)

    def _memories(
        self, jobs: Sequence[_Job], progress: Progress = no_progress
    ) -> dict[str, Memory]:
        """Every memory that the jobs need, by key: from the cache or computed and cached."""
        memories: dict[str, Memory] = {}
        # By picture, so that a slice is encoded once however many labels and queries need it.
        missing: dict[str, tuple[NDArray[np.uint8], dict[str, NDArray[np.bool_]]]] = {}
        for shown in (shown for job in jobs for view in job.views for shown in view):
            for name, key in shown.keys.items():
                if key in memories:
                    continue
                found = self.cache.get(key) or self.cache.get(self.network.own_key(key))
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
                    memories[key] = self.cache.put(self.network.own_key(key), memory)
            progress(min(start + step, len(todo)), len(todo), "encoding supports")
        return memories

    def _encode_queries(self, jobs: Sequence[_Job]) -> list[list[Encoding]]:
        """One encoding a view of every job's picture; none where there is nothing to find."""
        pictures: list[NDArray[np.uint8]] = []
        counts = []
        for job in jobs:
            part = crop(job.image, job.box)
            views = [part, part[:, ::-1]][: len(job.views)] if any(job.views[0]) else []
            pictures += views
            counts.append(len(views))
        encodings = iter(self.network.encode(pictures))
        return [[next(encodings) for _ in range(count)] for count in counts]

    def _segment(
        self,
        job: _Job,
        encodings: Sequence[Encoding],
        memories: dict[str, Memory],
        options: SegmentationOptions,
    ) -> SliceSegmentation:
        rows, columns = job.box.pixels((job.image.shape[0], job.image.shape[1]))
        size = (rows.stop - rows.start, columns.stop - columns.start)
        position = {name: i for i, name in enumerate(job.names.values())}
        part: NDArray[Any] = np.full((len(position), *size), ABSENT, np.float32)
        for supports, names in job.groups().items():
            views = []
            for mirrored, (encoding, view) in enumerate(zip(encodings, job.views, strict=True)):
                wanted = [[memories[view[k].keys[name]] for k in supports] for name in names]
                low = self.network.segment(
                    encoding, wanted, pointers=options.pointers, memory=options.memory
                )
                # As SAM2VideoPredictor: from the decoder's resolution to the picture's directly.
                full = F.interpolate(low[:, None], size=size, mode="bilinear", align_corners=False)
                views.append(full[:, 0].flip(-1) if mirrored else full[:, 0])
            if len(views) > 1:
                mean = torch.stack(views).clamp(-_CERTAIN, _CERTAIN).mean(0)
            else:
                mean = views[0]
            part[[position[name] for name in names]] = mean.numpy()
        logits = uncrop(part, job.box, (job.image.shape[0], job.image.shape[1]), ABSENT)
        return SliceSegmentation(
            mask=merge(logits, list(job.names)), logits=logits, names=dict(job.names)
        )
