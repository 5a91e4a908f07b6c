"""Embedding the cases of a build, in batches that are full across the borders of cases."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import InputError, MedRetrievalError, UsageError
from medretrieval.imaging import embedded_part
from medretrieval.index.cases import Case
from medretrieval.index.stream import Ready, SliceStream, StoredSlice, Unreadable
from medretrieval.index.vocabulary import Vocabulary
from medretrieval.index.workspace import DoneCase
from medretrieval.types import Embedder, EmbedderIdentity, SlicePolicy, VolumeEmbedder

logger = logging.getLogger(__name__)

DEFAULT_BATCH = 32
_NORM_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """What of a build has to be embedded.

    Attributes:
        cases: all cases of the build.
        wanted: indices of those that are not finished yet, ascending.
        vocabulary: gives the mask values; new names are added in the order of the cases.
        save: stores finished cases, with names for the mask values in them.
        report: called with the number of cases that are finished, good or bad, and of slices (or
            volumes) that are embedded.
    """

    cases: Sequence[Case]
    wanted: Sequence[int]
    embedder: Embedder | VolumeEmbedder
    policy: SlicePolicy
    vocabulary: Vocabulary
    save: Callable[[Sequence[DoneCase], Mapping[int, str]], None]
    report: Callable[[int, int], None]


# Embeds a job; returns the cases that cannot be used, with reasons.
Engine = Callable[[Job], Mapping[int, str]]


def embed_cases(job: Job) -> dict[int, str]:
    """Embed and save the wanted cases in this process; return the bad ones with reasons."""
    return _Run(job).embed_all()


def batch_size(embedder: Embedder | VolumeEmbedder) -> int:
    """Return how many slices (or volumes) this embedder takes at a time."""
    if embedder.identity.unit == "volume":
        return 1
    return max(1, int(getattr(embedder, "batch_size", DEFAULT_BATCH)))


def check_unit(embedder: Embedder | VolumeEmbedder) -> None:
    """Refuse an embedder that cannot do what its identity says.

    Raises:
        UsageError: it lacks the method.
    """
    unit = embedder.identity.unit
    method = {"slice": "embed_batch", "volume": "embed_volume"}[unit]
    if not callable(getattr(embedder, method, None)):
        raise UsageError(
            f"the identity of embedder {embedder.identity.name} says that it embeds a {unit} at a "
            f'time, but it has no {method}; one of whole volumes says "unit": "volume" in its '
            "preprocessing"
        )


def embed_pictures(
    embedder: Embedder, pictures: Sequence[NDArray[np.uint8]], crop: str
) -> NDArray[Any]:
    """Embed pictures as they are stored in an index.

    Args:
        pictures: n of them, (H, W) or (H, W, 3).
        crop: what of them is embedded.

    Returns:
        What the embedder gives; `norms_of` checks it.
    """
    return np.asarray(embedder.embed_batch([embedded_part(p, crop) for p in pictures]))


def norms_of(vectors: NDArray[Any], count: int, identity: EmbedderIdentity) -> NDArray[np.float64]:
    """Return the (n,) norms of what an embedder gave.

    Raises:
        MedRetrievalError: that is not `count` vectors of its dimension.
    """
    expected = (count, identity.dim)
    if vectors.shape != expected or vectors.dtype.kind != "f":
        raise MedRetrievalError(
            f"embedder {identity.name} gave an array of shape {vectors.shape} and type "
            f"{vectors.dtype}, expected {expected} of floating point"
        )
    norms: NDArray[np.float64] = np.linalg.norm(vectors.astype(np.float64), axis=1)
    return norms


def is_unit(norm: float) -> bool:
    """Whether a vector of this norm can be stored; a NaN cannot."""
    return bool(abs(norm - 1) <= _NORM_TOLERANCE)


class _Run:
    """One pass over the cases that are not finished yet."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._cases = job.cases
        self._embedder: Any = job.embedder
        self._whole = job.embedder.identity.unit == "volume"
        self._batch_size = batch_size(job.embedder)
        self._batch: list[Ready] = []
        self._open: dict[int, list[tuple[StoredSlice, NDArray[np.float32]]]] = {}
        self._bad: dict[int, str] = {}
        self._finished = 0
        self._embedded = 0
        self._saving: Future[None] | None = None

    def embed_all(self) -> dict[int, str]:
        """Embed and save; return the bad cases with reasons."""
        self._report()
        # What is written to the disk is one batch behind what is embedded, never more.
        with (
            ThreadPoolExecutor(1, thread_name_prefix="medretrieval-save") as saver,
            SliceStream(
                self._cases,
                self._job.wanted,
                policy=self._job.policy,
                vocabulary=self._job.vocabulary,
                # Slices are small; of whole volumes one waits.
                depth=1 if self._whole else 2 * self._batch_size,
                whole=self._whole,
            ) as stream,
        ):
            for item in stream:
                if isinstance(item, Unreadable):
                    self._reject(item.case, item.reason)
                elif item.case not in self._bad:
                    self._batch.append(item)
                    if len(self._batch) == self._batch_size:
                        self._embed(saver)
            if self._batch:
                self._embed(saver)
            self._wait()
        return self._bad

    def _reject(self, number: int, reason: str) -> None:
        logger.warning("case %s cannot be used: %s", self._cases[number].volume_id, reason)
        self._bad[number] = reason
        self._open.pop(number, None)
        self._batch = [item for item in self._batch if item.case != number]
        self._finished += 1
        self._report()

    def _embed(self, saver: ThreadPoolExecutor) -> None:
        batch, self._batch = self._batch, []
        try:
            vectors = self._vectors(batch)
        except InputError as error:
            if not self._whole:
                raise  # a slice that was made here is always a picture
            self._reject(batch[0].case, str(error))
            return
        norms = norms_of(vectors, len(batch), self._embedder.identity)
        done: list[DoneCase] = []
        for item, vector, norm in zip(batch, vectors, norms, strict=True):
            if item.case in self._bad:
                continue
            if not is_unit(norm):
                what = "it" if self._whole else f"slice {item.stored.slice_index}"
                self._reject(item.case, f"{what} has no embedding of length 1 ({norm:.3g})")
                continue
            rows = self._open.setdefault(item.case, [])
            rows.append((item.stored, vector.astype(np.float32)))
            if item.last:
                done.append(self._complete(item))
        self._embedded += len(batch)
        self._wait()
        if done:
            names = self._job.vocabulary.names()
            self._saving = saver.submit(self._job.save, done, names)
            self._finished += len(done)
        self._report()

    def _vectors(self, batch: Sequence[Ready]) -> NDArray[Any]:
        if not self._whole:
            pictures = [item.picture for item in batch]
            return embed_pictures(self._embedder, pictures, self._job.policy.crop)
        return np.stack([self._embedder.embed_volume(item.volume) for item in batch])

    def _complete(self, item: Ready) -> DoneCase:
        rows = self._open.pop(item.case)
        return DoneCase(
            key=self._cases[item.case].key,
            modality=item.modality,
            slices=[stored for stored, _ in rows],
            embeddings=np.stack([vector for _, vector in rows]),
        )

    def _wait(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _report(self) -> None:
        self._job.report(self._finished, self._embedded)
