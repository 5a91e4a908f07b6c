"""An index of given vectors in memory: the real search structures, one picture for all rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.vectors import make_vectors
from medretrieval.errors import UsageError
from medretrieval.index.columns import Coded, LabelColumn, RowMap
from medretrieval.index.faiss_files import build_faiss, read_faiss, write_faiss
from medretrieval.index.kinds import resolve_parameters
from medretrieval.index.png import decode_png, encode_png
from medretrieval.index.searcher import Searcher
from medretrieval.types import EmbedderIdentity, SlicePolicy, Support

PICTURE = 512  # pixels
REGIONS = ("abdomen", "chest", "head", "pelvis", "spine")


def identity(dim: int) -> EmbedderIdentity:
    """The identity of an embedder that gives prepared vectors."""
    return EmbedderIdentity(
        name="prepared-vectors",
        weights="none",
        revision="1",
        weights_sha256="0" * 64,
        preprocessing={"what": "none"},
        pooling="none",
        dim=dim,
    )


def divided(rows: int, volumes: int) -> NDArray[np.int32]:
    """(rows,) volume of each row: `volumes` volumes whose lengths differ up to twice."""
    lengths = np.random.default_rng(0).uniform(1, 2, volumes)
    ends = np.rint(np.cumsum(lengths) / lengths.sum() * rows).astype(np.int64)
    return np.arange(volumes, dtype=np.int32).repeat(np.diff(ends, prepend=0))


def prepared(work: Path, rows: int) -> NDArray[np.float32]:
    """(rows, 768) float32 unit rows, memory-mapped; made on the first call."""
    vectors, _ = make_vectors(work / f"vectors-{rows}.npy", rows)
    return vectors


def picture() -> NDArray[np.uint8]:
    """A slice of usual size: smooth, with noise, as hard to decode as a CT."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (PICTURE // 32, PICTURE // 32), np.uint8)
    smooth = Image.fromarray(coarse).resize((PICTURE, PICTURE), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 4, (PICTURE, PICTURE))
    return (np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class MemoryManifest:
    embedder: EmbedderIdentity
    slices: SlicePolicy


class MemoryStore:
    """What a search needs of a stored index (`medretrieval.retrieval.stores.Store`).

    Args:
        embeddings: (n, dim) float32 unit rows; may be memory-mapped.
        volume: (n,) volume of each row, ascending from 0.
        kind: of the search structure, with its default parameters.
        cached: file that keeps a built structure for the next run; the settings join its name.
    """

    def __init__(
        self,
        embeddings: NDArray[np.float32],
        volume: NDArray[np.int32],
        *,
        kind: str = "flat",
        cached: Path | None = None,
    ) -> None:
        rows, dim = embeddings.shape
        volumes = int(volume[-1]) + 1
        starts = np.flatnonzero(np.diff(volume, prepend=-1))
        self.manifest = MemoryManifest(identity(dim), SlicePolicy())
        self.vocabulary: dict[int, str] = {}
        self.embeddings = embeddings
        self.volume = volume
        self.volume_ids = [f"volume-{number:06d}" for number in range(volumes)]
        self.patient = Coded(volume, [f"patient-{number:06d}" for number in range(volumes)])
        self.modality = Coded(np.zeros(rows, np.int32), ["CT"])
        self.region = Coded(volume % np.int32(len(REGIONS)), list(REGIONS))
        self.attributes: dict[str, Coded] = {}
        self.slice_index = np.arange(rows) - starts[volume]
        self.position_mm = self.slice_index * 2.5
        self.spacing = np.broadcast_to(np.array([1.0, 1.0, 2.5]), (rows, 3))
        self.labels = LabelColumn(np.zeros(rows + 1, np.int64), np.empty(0, np.int32), [])
        self.annotated = np.zeros(rows, np.bool_)
        self.searcher = _searcher(embeddings, kind, cached)
        self._picture = encode_png(picture())
        self._rows = RowMap(self.volume_ids, volume, self.slice_index)

    def pseudonyms(self, patient_id: str) -> tuple[str, ...]:
        return (patient_id,)

    def row(self, volume_id: str, slice_index: int) -> int:
        return self._rows.row(volume_id, slice_index)

    def image(self, row: int) -> NDArray[np.uint8]:
        return decode_png(self._picture, "the picture", max_side=PICTURE)

    def support(self, row: int, score: float | None = None) -> Support:
        raise UsageError("an index in memory has no masks")

    def neighbours(
        self, queries: NDArray[np.float32], k: int, rows: NDArray[Any] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return self.searcher.neighbours(queries, k, rows)


def _searcher(embeddings: NDArray[np.float32], kind: str, cached: Path | None) -> Searcher:
    rows, dim = embeddings.shape
    parameters = resolve_parameters(kind, None, rows=rows, dim=dim)
    if cached is not None:
        settings = "".join(f"-{name}{value}" for name, value in parameters.items())
        cached = cached.with_stem(cached.stem + settings)
    if cached is not None and cached.exists():
        index = read_faiss(cached, rows=rows, dim=dim, kind=kind)
    else:
        index = build_faiss(embeddings, kind, parameters)
        if cached is not None and index is not None:
            write_faiss(index, cached)
    return Searcher(embeddings=embeddings, kind=kind, parameters=parameters, index=index)
