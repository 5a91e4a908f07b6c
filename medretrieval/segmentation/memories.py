"""Computing the memories of all annotated slices of an index, once, to be stored in it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.torch import save_file

from medretrieval.errors import UsageError, unknown_name
from medretrieval.index.in_place import changing
from medretrieval.index.memory_files import COUNT, add_memories, memory_prefix
from medretrieval.index.store import IndexStore, open_store
from medretrieval.index.workspace import sync, writing
from medretrieval.segmentation.boxes import body_part
from medretrieval.segmentation.cache import Memory
from medretrieval.segmentation.crop import WHOLE, crop
from medretrieval.segmentation.labels import check_support, name_mask
from medretrieval.segmentation.segmenter import Segmenter
from medretrieval.segmentation.shown import Shown
from medretrieval.segmentation.stored import FORMAT, StoredMemories
from medretrieval.types import Progress, Support, no_progress

# Other crops depend on the set that a support is in.
OwnCrop = Literal["none", "body"]
_CROPS = ("none", "body")
# A killed run loses what was not yet written: at most so many slices.
_FILE_SLICES = 512
_FILE_BYTES = 64 << 20
_ABSENT = ""  # no label has an empty name


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """What `remember_index` did.

    Attributes:
        slices: annotated slices of the index.
        memories: how many belong to them, `computed` of them now.
        bytes: size of the files of this segmenter in the index.
    """

    slices: int
    memories: int
    computed: int
    bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "seconds": round(self.seconds, 3)}


def remember_index(
    index: str | Path,
    segmenter: Segmenter,
    *,
    crop: OwnCrop = "none",
    flips: bool | None = None,
    labels: Sequence[str] | None = None,
    progress: Progress = no_progress,
) -> Remembered:
    """Compute and store the memory of every annotated slice and label of an index.

    They are used whenever something is segmented with this index, segmenter and crop; then only
    the query is encoded. A slice that lacks one of the labels also gets a memory of absence, one
    for all of them. What is stored already is not computed again; the index is valid at any time,
    and an interrupted call that is made again goes on.

    Args:
        index: an index folder, which is changed: files in `memories/` are added to it.
        segmenter: those made in less than float32 serve in the same precision only. All are stored
            as float16. Its own cache is used too.
        crop: as of `SegmentationOptions`; crops that depend on a whole support set cannot be
            computed beforehand.
        flips: also of the mirrored slices, which the option `flips` needs; default by segmenter.
        labels: only of these; default all that the index has.
        progress: called with slices done, number of slices, and what is going on. If it raises,
            what was computed is kept.

    Raises:
        UsageError: no annotated slice, an unknown label or crop, another call for this index runs.
        IndexFormatError: the index is damaged.
        MedRetrievalError: the disk is full or cannot be written.
    """
    folder, start = Path(index), time.perf_counter()
    if crop not in _CROPS:
        raise UsageError(
            f"crop {crop!r}: memories can be computed beforehand for {' or '.join(_CROPS)} only; "
            "any other depends on the supports that a query finds"
        )
    with open_store(folder) as store, changing(folder) as work:
        names = _wanted(store, labels)
        rows = np.flatnonzero(store.annotated).tolist()
        known = StoredMemories(store, segmenter)
        writer = _Writer(folder, work, memory_prefix(segmenter.name, segmenter.network.digest))
        every: set[str] = set()
        step = segmenter.network.pictures_at_once
        mirrored = segmenter.options.flips if flips is None else flips
        progress(0, len(rows), "slices remembered")
        with writer:
            for first in range(0, len(rows), step):
                batch = [
                    shown
                    for row in rows[first : first + step]
                    for shown in _shown(segmenter, store.support(row), names, crop, mirrored)
                ]
                missing = [_missing(shown, segmenter, known, writer.keys) for shown in batch]
                made = segmenter.memories([shown for shown in missing if shown.masks])
                own_key = segmenter.network.own_key
                writer.add({own_key(key): memory for key, memory in made.items()})
                every.update(key for shown in batch for key in shown.keys.values())
                writer.slices += len(rows[first : first + step])
                progress(min(first + step, len(rows)), len(rows), "slices remembered")
    with open_store(folder) as store:
        files = StoredMemories(store, segmenter).files
    return Remembered(
        slices=len(rows),
        memories=len(every),
        computed=len(writer.keys),
        bytes=sum(entry.bytes for entry in files.values()),
        seconds=time.perf_counter() - start,
    )


def _wanted(store: IndexStore, labels: Sequence[str] | None) -> list[str]:
    known = set(store.vocabulary.values())
    for label in labels or ():
        if label not in known:
            raise unknown_name("label", label, known, "medretrieval info INDEX")
    if not store.annotated.any():
        raise UsageError(f"{store.path} has no annotated slices, so there is nothing to remember")
    return sorted(known if labels is None else set(labels))


def _shown(
    segmenter: Segmenter, support: Support, names: Sequence[str], policy: OwnCrop, flips: bool
) -> Iterator[Shown]:
    """An annotated slice as the network sees it, with every mask that a query may need of it."""
    check_support(support)
    box = body_part(support.image) if policy == "body" else WHOLE
    every = {name: name_mask(support, name) for name in names}
    masks = {name: crop(mask, box) for name, mask in every.items() if mask.any()}
    picture = crop(support.image, box)
    if len(masks) < len(names) or not names:
        masks[_ABSENT] = np.zeros(picture.shape[:2], np.bool_)
    yield segmenter.shown(picture, masks)
    if flips:
        yield segmenter.shown(picture[:, ::-1], {n: mask[:, ::-1] for n, mask in masks.items()})


def _missing(shown: Shown, segmenter: Segmenter, known: StoredMemories, new: set[str]) -> Shown:
    """What of a slice is not stored yet; a memory in float32 serves in every precision."""
    keys = {}
    for name, key in shown.keys.items():
        own = segmenter.network.own_key(key)
        if key not in known and own not in known and own not in new:
            keys[name] = key
    return dataclasses.replace(shown, keys=keys, masks={n: shown.masks[n] for n in keys})


class _Writer:
    """Collects memories and adds them to an index file by file; the last one on leaving.

    Attributes:
        keys: of all memories that were given.
        slices: how many are collected for the next file, counted by who gives them.
    """

    def __init__(self, folder: Path, work: Path, prefix: str) -> None:
        self.keys: set[str] = set()
        self.slices = 0
        self._folder = folder
        self._staged = work / "memories.safetensors"
        self._prefix = prefix
        self._open: dict[str, Memory] = {}
        self._bytes = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()  # also what was done before an interruption

    def add(self, memories: Mapping[str, Memory]) -> None:
        """Take memories, by key."""
        halves = {key: memory.half() for key, memory in memories.items()}
        self._open.update(halves)
        self._bytes += sum(memory.nbytes for memory in halves.values())
        self.keys.update(memories)
        if self.slices >= _FILE_SLICES or self._bytes >= _FILE_BYTES:
            self._flush()

    def _flush(self) -> None:
        self.slices = 0
        if not self._open:
            return
        tensors = {
            f"{key}.{name}": tensor
            for key, memory in self._open.items()
            for name, tensor in memory.tensors().items()
        }
        with writing(self._staged):
            save_file(tensors, self._staged, {"format": FORMAT, COUNT: str(len(self._open))})
            sync(self._staged)
        add_memories(self._folder, self._staged, self._prefix)
        self._open, self._bytes = {}, 0
