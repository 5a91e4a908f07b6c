"""A second embedder of an index, written by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medretrieval.index.files import MANIFEST, FileEntry, sha256_file
from medretrieval.index.manifest import read_manifest
from medretrieval.index.tensors import EmbeddingWriter


def add_embedder(index: Path, name: str) -> NDArray[np.float32]:
    """Give an index further embeddings, random ones of 5 numbers; they are returned."""
    manifest = read_manifest(index)
    rows = manifest.counts.slices
    numbers = np.random.default_rng(1).standard_normal((rows, 5)).astype(np.float32)
    numbers /= np.linalg.norm(numbers, axis=1, keepdims=True)
    first = manifest.sets[manifest.embedder.name]
    file = f"embeddings/{name}.safetensors"
    with EmbeddingWriter(index / file, rows=rows, dim=5, dtype="float32") as writer:
        writer.write(numbers)
    entry = FileEntry(bytes=(index / file).stat().st_size, sha256=sha256_file(index / file))
    other = dataclasses.replace(
        first,
        dtype="float32",
        embedder=dataclasses.replace(first.embedder, name=name, dim=5),
        embeddings_file=file,
        faiss_file=f"index-{name}.faiss",
    )
    manifest = dataclasses.replace(
        manifest,
        others={name: other},
        files={**manifest.files, file: entry},
    )
    (index / MANIFEST).write_text(manifest.dumps())
    return numbers
