"""Embedding the pictures that an index stores, in its folder and so that a killed run can go on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval import __version__
from medretrieval.errors import MedRetrievalError
from medretrieval.index.embedding import batch_size, embed_pictures, is_unit, norms_of
from medretrieval.index.embedding_sets import SetRequest
from medretrieval.index.files import SLICES, slug
from medretrieval.index.manifest import Manifest
from medretrieval.index.store import IndexStore
from medretrieval.index.tensors import EmbeddingWriter, rows_in
from medretrieval.index.workspace import sync, writing
from medretrieval.types import Embedder, Progress

logger = logging.getLogger(__name__)

_SAVE_SECONDS = 2.0  # a killed run loses at most so much, and a batch
_MAX_NAME = 150


def work_folder(folder: Path, embedder: str) -> Path:
    """The folder in an index for unfinished embeddings; hidden, so it is no part of the index."""
    return folder / f".adding-{slug(embedder)[:_MAX_NAME]}"


class PartialEmbeddings:
    """The hidden folder in an index for the embeddings that are not finished.

    Args:
        folder: the index.
        asked: what is made. Another request for an embedder of this name, or other pictures, begin
            anew.

    Attributes:
        embeddings, faiss: files in the hidden folder.
        done: how many rows are embedded; they outlive a crash of the machine.
    """

    def __init__(self, folder: Path, manifest: Manifest, asked: SetRequest) -> None:
        self._path = work_folder(folder, asked.embedder.name)
        self.embeddings = self._path / "embeddings.safetensors"
        self.faiss = self._path / "index.faiss"
        self._record = self._path / "done.json"
        self._shape: dict[str, Any] = {
            "rows": manifest.counts.slices,
            "dim": asked.embedder.dim,
            "dtype": asked.dtype,
        }
        self._settings = _digest(manifest, asked)
        with writing(self._path):
            self._path.mkdir(exist_ok=True)
        self.done = self._read()
        if not self.done:
            self._record.unlink(missing_ok=True)  # it is not of what is written from now on
        else:
            logger.info("resuming: %d slices are embedded already", self.done)

    def writer(self) -> EmbeddingWriter:
        """Return what the rows after `done` are written with."""
        return EmbeddingWriter(self.embeddings, **self._shape, done=self.done)

    def save(self, writer: EmbeddingWriter, done: int) -> None:
        """Note that so many rows are written."""
        if done == self.done:
            return
        temporary = self._record.with_suffix(".tmp")
        with writing(self._path):
            writer.sync()
            temporary.write_text(json.dumps({"settings": self._settings, "rows": done}))
            sync(temporary)
            os.replace(temporary, self._record)
            sync(self._path)
        self.done = done

    def close(self) -> None:
        """Leave what another call goes on with, if there is anything."""
        if not self.done:
            self.remove()

    def remove(self) -> None:
        """Delete the folder; its files are part of the index, or nobody needs them."""
        shutil.rmtree(self._path, ignore_errors=True)

    def _read(self) -> int:
        try:
            record = json.loads(self._record.read_text())
            if record["settings"] != self._settings:
                logger.warning("%s is of other settings or pictures: starting anew", self._path)
                return 0
            return min(int(record["rows"]), rows_in(self.embeddings, **self._shape))
        except (OSError, ValueError, KeyError, TypeError):
            return 0


def embed_stored(
    store: IndexStore, embedder: Embedder, work: PartialEmbeddings, progress: Progress
) -> None:
    """Embed the rows of an index that are not done, in the batches of a build.

    Raises:
        MedRetrievalError: the embedder gives no vector of length 1 for a slice, or it cannot be
            written.
    """
    done, rows = work.done, len(store)
    saved = time.monotonic()
    progress(done, rows, "slices embedded")
    with work.writer() as writer:
        try:
            with closing(_batches(store, done, batch_size(embedder))) as batches:
                for first, pictures in batches:
                    vectors = embed_pictures(embedder, pictures, store.manifest.slices.crop)
                    norms = norms_of(vectors, len(pictures), embedder.identity)
                    _check_norms(norms, first, store, embedder.identity.name)
                    with writing(work.embeddings):
                        writer.write(vectors.astype(np.float32))
                    done = first + len(pictures)
                    if time.monotonic() - saved >= _SAVE_SECONDS:
                        work.save(writer, done)
                        saved = time.monotonic()
                    progress(done, rows, "slices embedded")
        finally:
            work.save(writer, done)  # also what was done before an interruption


def _batches(
    store: IndexStore, start: int, size: int
) -> Generator[tuple[int, list[NDArray[np.uint8]]]]:
    """Yield the pictures from row `start` on, with the first row of each batch; one is read ahead.

    An open index keeps a bounded number of row groups in memory, so rows are asked for in order.
    """

    def read(first: int) -> list[NDArray[np.uint8]]:
        return [store.image(row) for row in range(first, min(first + size, len(store)))]

    with ThreadPoolExecutor(1, thread_name_prefix="medretrieval-read") as reader:
        ahead = reader.submit(read, start)
        for first in range(start, len(store), size):
            pictures = ahead.result()
            ahead = reader.submit(read, first + size)
            yield first, pictures


def _check_norms(norms: NDArray[np.float64], first: int, store: IndexStore, name: str) -> None:
    for row, norm in enumerate(norms.tolist(), start=first):
        if not is_unit(norm):
            volume = store.volume_ids[store.volume[row]]
            raise MedRetrievalError(
                f"{name} gives no embedding of length 1 ({norm:.3g}) for slice "
                f"{store.slice_index[row]} of {volume}, so it cannot be an embedder of this index"
            )


def _digest(manifest: Manifest, asked: SetRequest) -> str:
    """What the embeddings depend on, as a hash."""
    files = manifest.files.items()
    settings = {
        "version": __version__,
        "embedder": dataclasses.asdict(asked.embedder),
        "dtype": asked.dtype,
        "slices": dataclasses.asdict(manifest.slices),
        "pictures": {name: entry.sha256 for name, entry in files if name.startswith(SLICES)},
    }
    text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
