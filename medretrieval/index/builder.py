"""Building an index: cases are read, sliced, embedded and stored as a stream."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval import __version__
from medretrieval.errors import InputError, MedRetrievalError, UsageError
from medretrieval.index.cases import Case, check_cases
from medretrieval.index.faiss_backend import resolve_parameters
from medretrieval.index.manifest import canonical
from medretrieval.index.publish import (
    Description,
    check_output,
    move_into_place,
    recover,
    write_index,
)
from medretrieval.index.stream import Ready, SliceStream, StoredSlice, Unreadable
from medretrieval.index.table import MAX_TEXT, SHARD_BYTES
from medretrieval.index.vocabulary import Vocabulary
from medretrieval.index.workspace import DoneCase, Workspace, writing
from medretrieval.types import (
    UNKNOWN,
    Embedder,
    Progress,
    SlicePolicy,
    VolumeEmbedder,
    no_progress,
)

logger = logging.getLogger(__name__)

DEFAULT_BATCH = 32
_NORM_TOLERANCE = 1e-3
_LISTED = 20


def build(
    cases: Iterable[Case],
    out: str | Path,
    *,
    embedder: Embedder | VolumeEmbedder,
    slices: SlicePolicy,
    index_kind: str = "flat",
    index_parameters: Mapping[str, int] | None = None,
    name: str,
    license: str = UNKNOWN,
    source: str = UNKNOWN,
    split: str | None = None,
    float16: bool = False,
    force: bool = False,
    skip_bad: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = no_progress,
) -> Path:
    """Build an index folder.

    Nothing appears at `out` before the index is complete. Until then the work is in the sibling
    folder `.<out>.partial`: a build that was killed and is started again with the same embedder and
    slices goes on after the last finished case.

    Args:
        cases: rows come in their order; the same slice twice gives two rows.
        out: the folder to write; its parents are made.
        embedder: its `batch_size`, if it has one, is the number of slices embedded together;
            batches are full but the last, across the borders of cases. One of whole volumes gives
            a volume a single row: its picture and mask are of the slice with the most structures
            (of several the one nearest to the middle, which it is without a mask), its labels are
            those of the whole volume.
        index_kind, index_parameters: see `medretrieval.index.KINDS`.
        name: of the index; also keys the pseudonyms of the patients.
        license: Hub identifier of the licence of the images, for the card.
        source: where the images come from, in words, for the card.
        split: which part of the source this is, for the card.
        float16: halve the embeddings' size; scores change by less than 0.001.
        force: replace an index at `out`; the old one is removed when the new one is in place.
        skip_bad: leave out cases that cannot be read, and count them in the manifest.
        shard_bytes: size after which another parquet file is begun.
        progress: called with finished cases, number of cases, and what is going on.

    Returns:
        `out`.

    Raises:
        UsageError: `out` exists, another build of it is running, unknown kind or parameter, an
            embedder that does what its identity does not say.
        InputError: no cases, repeated names, cases that cannot be read (all of them are listed,
            after all others are done, so that the next start only does what was missing).
        MedRetrievalError: the disk is full or cannot be written.
    """
    out = Path(out)
    if out.name in ("", ".."):
        out = out.resolve()
    _check_text(name=name, license=license, source=source, split=split or UNKNOWN)
    parameters = resolve_parameters(index_kind, index_parameters)
    cases = check_cases(cases)
    identity = canonical(embedder.identity)
    _check_unit(embedder)
    known = Vocabulary(case.label_names for case in cases)
    settings = {
        "version": __version__,
        "embedder": dataclasses.asdict(identity),
        "slices": dataclasses.asdict(slices),
        "vocabulary": {str(value): label for value, label in known.names().items()},
    }
    with writing(out):
        check_output(out, force=force)
    with Workspace(out, settings) as workspace:
        with writing(out):
            recover(out)
            check_output(out, force=force)  # another build may have finished since
        known.restore(workspace.names)
        run = _Run(cases, workspace, known, embedder, progress)
        bad = run.embed_all(slices)
        good = [case for number, case in enumerate(cases) if number not in bad]
        if bad and (not skip_bad or not good):
            raise InputError(_list_bad(cases, bad, can_skip=bool(good)))
        progress(len(cases), len(cases), "writing the index")
        description = Description(
            name=name,
            embedder=identity,
            slices=slices,
            index_kind=index_kind,
            index_parameters=parameters,
            dtype="float16" if float16 else "float32",
            license=license,
            source=source,
            split=split,
            skipped=len(bad),
        )
        with writing(out):
            write_index(
                workspace.stage,
                good,
                workspace,
                known.names(),
                description,
                shard_bytes=shard_bytes,
            )
            move_into_place(workspace.stage, out)
        workspace.remove()
    progress(len(cases), len(cases), "done")
    return out


def _check_unit(embedder: Embedder | VolumeEmbedder) -> None:
    unit = embedder.identity.unit
    method = {"slice": "embed_batch", "volume": "embed_volume"}[unit]
    if not callable(getattr(embedder, method, None)):
        raise UsageError(
            f"the identity of embedder {embedder.identity.name} says that it embeds a {unit} at a "
            f'time, but it has no {method}; one of whole volumes says "unit": "volume" in its '
            "preprocessing"
        )


def _check_text(**texts: str) -> None:
    for what, text in texts.items():
        if not text or len(text) > MAX_TEXT or not text.isprintable():
            raise UsageError(
                f"{what} is {text!r}; expected 1 to {MAX_TEXT} printable characters on one line"
            )


def _list_bad(cases: Sequence[Case], bad: Mapping[int, str], *, can_skip: bool) -> str:
    lines = [
        f"  {cases[number].volume_id}: {reason}" for number, reason in sorted(bad.items())[:_LISTED]
    ]
    if len(bad) > _LISTED:
        lines.append(f"  and {len(bad) - _LISTED} more")
    advice = "repair them and run the same build again; what is done is kept"
    if can_skip:
        advice += ". Or leave them out with --skip-bad (skip_bad=True)"
    return "\n".join(
        [f"{len(bad)} of {len(cases)} cases cannot be used:", *lines, f"Nothing written: {advice}"]
    )


class _Run:
    """One pass over the cases that are not finished yet."""

    def __init__(
        self,
        cases: Sequence[Case],
        workspace: Workspace,
        vocabulary: Vocabulary,
        embedder: Embedder | VolumeEmbedder,
        progress: Progress,
    ) -> None:
        self._cases = cases
        self._workspace = workspace
        self._vocabulary = vocabulary
        self._embedder: Any = embedder
        self._progress = progress
        self._whole = embedder.identity.unit == "volume"
        batch_size = 1 if self._whole else getattr(embedder, "batch_size", DEFAULT_BATCH)
        self._batch_size = max(1, int(batch_size))
        self._batch: list[Ready] = []
        self._open: dict[int, list[tuple[StoredSlice, NDArray[np.float32]]]] = {}
        self._bad: dict[int, str] = {}
        self._finished = 0
        self._embedded = 0
        self._saving: Future[None] | None = None

    def embed_all(self, policy: SlicePolicy) -> dict[int, str]:
        """Embed and store every case that is not stored yet; return the bad ones with reasons."""
        wanted = [n for n, case in enumerate(self._cases) if case.key not in self._workspace]
        self._finished = len(self._cases) - len(wanted)
        self._report()
        # What is written to the disk is one batch behind what is embedded, never more.
        with (
            ThreadPoolExecutor(1, thread_name_prefix="medretrieval-save") as saver,
            SliceStream(
                self._cases,
                wanted,
                policy=policy,
                vocabulary=self._vocabulary,
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
        expected = (len(batch), self._embedder.identity.dim)
        if vectors.shape != expected or vectors.dtype.kind != "f":
            raise MedRetrievalError(
                f"embedder {self._embedder.identity.name} gave an array of shape {vectors.shape} "
                f"and type {vectors.dtype}, expected {expected} of floating point"
            )
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        done: list[DoneCase] = []
        for item, vector, norm in zip(batch, vectors, norms, strict=True):
            if item.case in self._bad:
                continue
            if not abs(norm - 1) <= _NORM_TOLERANCE:
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
            names = self._vocabulary.names()
            self._saving = saver.submit(self._workspace.write, done, names)
            self._finished += len(done)
        self._report()

    def _vectors(self, batch: Sequence[Ready]) -> NDArray[Any]:
        if not self._whole:
            return np.asarray(self._embedder.embed_batch([item.picture for item in batch]))
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
        units = "volumes" if self._whole else "slices"
        message = f"cases, {self._embedded} {units} embedded"
        self._progress(self._finished, len(self._cases), message)
