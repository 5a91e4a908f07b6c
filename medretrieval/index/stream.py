"""Cases in, slices out, prepared in threads beside the embedder.

One thread reads the next case while another slices, encodes and translates the present one. At most
two volumes and a bounded number of slices are in memory; where whole volumes are embedded, at most
three: the one being embedded, one that waits, and the next.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import MedRetrievalError, UsageError
from medretrieval.imaging import make_slices, same_grid, slice_axis
from medretrieval.index.cases import Case
from medretrieval.index.png import encode_png
from medretrieval.index.vocabulary import Remapper, Vocabulary
from medretrieval.types import UNKNOWN, LabelVolume, Slice, SlicePolicy, Volume

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredSlice:
    """A slice as it will be stored.

    Attributes:
        values: mask values (of the vocabulary) on the slice, ascending; on all slices of the
            volume where the slice stands for it.
        image, mask: PNG.
    """

    slice_index: int
    position_mm: float | None
    spacing: tuple[float, float, float] | None
    values: tuple[int, ...]
    image: bytes
    mask: bytes | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Ready:
    """A slice to embed, or a volume.

    Attributes:
        case: index of its case in the list.
        picture: (H, W) or (H, W, 3) uint8.
        volume: the volume that the slice stands for where volumes are embedded, else None.
        last: whether it is the last of its case.
        modality: of its case.
    """

    case: int
    picture: NDArray[np.uint8]
    stored: StoredSlice
    last: bool
    modality: str
    volume: Volume | None = None


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A case that cannot be used, and why; slices of it may have come before."""

    case: int
    reason: str


class SliceStream:
    """Iterates over the slices of `cases[i] for i in wanted`, in order.

    Use as a context manager: leaving it stops the threads.

    Args:
        depth: slices that wait at most.
        whole: every case gives one item, which holds its volume and the slice that stands for it.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        wanted: Sequence[int],
        *,
        policy: SlicePolicy,
        vocabulary: Vocabulary,
        depth: int,
        whole: bool = False,
    ) -> None:
        self._cases = cases
        self._wanted = wanted
        self._policy = policy
        self._vocabulary = vocabulary
        self._whole = whole
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="medretrieval-slices", daemon=True)

    def __enter__(self) -> SliceStream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Ready | Unreadable]:
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _put(self, item: Ready | Unreadable | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL_SECONDS)
                return
            except queue.Full:
                continue

    def _run(self) -> None:
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="medretrieval-read") as reader:
                future: Future[tuple[Volume, LabelVolume | None]] | None = None
                for number, following in zip(self._wanted, [*self._wanted[1:], None], strict=True):
                    if self._stop.is_set():
                        return
                    loaded = future or reader.submit(self._cases[number].load)
                    failure = loaded.exception()
                    # The next case is read while this one is sliced; not earlier, for the memory.
                    future = None
                    if following is not None and not self._whole:
                        future = reader.submit(self._cases[following].load)
                    if failure is None:
                        # Handed over, not kept: the future would hold the volume until the next.
                        volumes = [loaded.result()]
                        del loaded
                        failure = self._slices(number, volumes)
                    if failure is not None:
                        self._put(Unreadable(case=number, reason=self._reason(number, failure)))
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _reason(self, number: int, error: BaseException) -> str:
        if isinstance(error, MedRetrievalError):
            return str(error)
        name = self._cases[number].volume_id
        logger.warning("case %s cannot be read", name, exc_info=error)
        return f"{type(error).__name__}: {error}"

    def _slices(
        self, number: int, volumes: list[tuple[Volume, LabelVolume | None]]
    ) -> Exception | None:
        """Queue the slices of a case; return what is wrong with it, if anything.

        Raises:
            UsageError: the policy itself is wrong; no other case would go better.
        """
        volume, labels = volumes.pop()
        case = self._cases[number]
        modality = volume.modality if case.modality == UNKNOWN else case.modality
        remap = Remapper(self._vocabulary, case.label_names, labels.names if labels else {})
        try:
            if self._whole:
                stored, picture = _representative(volume, labels, self._policy, remap)
                volume = replace(volume, modality=modality)
                whole = Ready(
                    case=number,
                    picture=picture,
                    stored=stored,
                    last=True,
                    modality=modality,
                    volume=volume,
                )
                self._put(whole)
                return None
            made = make_slices(volume, self._policy, labels=labels, indices=case.indices)
            piece: Slice | None = next(made)
            while piece is not None and not self._stop.is_set():
                stored = _store(piece, remap)
                picture, piece = piece.image, next(made, None)
                last = piece is None
                self._put(
                    Ready(case=number, picture=picture, stored=stored, last=last, modality=modality)
                )
        except UsageError:
            raise
        except Exception as error:
            return error
        return None


def _representative(
    volume: Volume, labels: LabelVolume | None, policy: SlicePolicy, remap: Remapper
) -> tuple[StoredSlice, NDArray[np.uint8]]:
    """The slice that stands for a volume, with the structures of the whole of it."""
    axis = slice_axis(volume.grid, policy.axis)
    shown: list[frozenset[int]] = [frozenset()] * volume.grid.shape[axis]
    # Labels on another grid are refused where the slice is made.
    if labels is not None and same_grid(labels.grid, volume.grid):
        shown = [
            frozenset(remap(np.take(labels.voxels, index, axis))[1]) for index in range(len(shown))
        ]
    index = representative(shown)
    piece = next(make_slices(volume, policy, labels=labels, indices=[index]))
    everywhere = tuple(sorted(frozenset().union(*shown)))
    return replace(_store(piece, remap), values=everywhere), piece.image


def representative(shown: Sequence[AbstractSet[int]]) -> int:
    """Which slice stands for a volume: of those with the most structures, the one nearest to the
    middle, the lower of two.

    Args:
        shown: the structures on every slice, at least one slice.

    >>> representative([{1}, {1, 2}, {2}, {1, 3}, set()]), representative([set()] * 4)
    (1, 2)
    """
    middle = len(shown) // 2
    return min(range(len(shown)), key=lambda i: (-len(shown[i]), abs(i - middle)))


def _store(piece: Slice, remap: Remapper) -> StoredSlice:
    mask: bytes | None = None
    values: tuple[int, ...] = ()
    if piece.mask is not None:
        translated, values = remap(piece.mask)
        mask = encode_png(translated)
    return StoredSlice(
        slice_index=piece.index,
        position_mm=piece.position_mm,
        spacing=piece.spacing,
        values=values,
        image=encode_png(piece.image),
        mask=mask,
    )
