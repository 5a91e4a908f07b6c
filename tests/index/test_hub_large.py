"""An index of 100,000 slices of the Hub: what of it is sent before a first search has its hits.

The Hub of this test is modelled on huggingface_hub 2.4.0, see `tests/hub/server.py`. It maps the
files instead of keeping them in memory.
"""

from __future__ import annotations

import dataclasses
import mmap
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub.client import LocalHub
from index_fakes import FakeEmbedder, make_case
from numpy.typing import NDArray
from sharing import CARD, COLUMNS, EMBEDDINGS, MANIFEST, REPO

from medretrieval.index.files import file_entry, is_derived
from medretrieval.index.manifest import canonical
from medretrieval.index.png import encode_png
from medretrieval.index.publish import Block, Description, write_index
from medretrieval.index.release import make_release
from medretrieval.index.table import SHARD_BYTES, TableRow
from medretrieval.retrieval.engine import open_index
from medretrieval.types import EmbedderIdentity, SlicePolicy

ROWS, OF_A_VOLUME, DIM = 100_000, 100, 128
FIRST = {MANIFEST, COLUMNS, EMBEDDINGS}


class WideEmbedder(FakeEmbedder):
    """As `FakeEmbedder`, with longer vectors."""

    def __init__(self) -> None:
        super().__init__()
        self._projection = np.random.default_rng(9).standard_normal((65, DIM))

    @property
    def identity(self) -> EmbedderIdentity:
        return dataclasses.replace(super().identity, name="wide", dim=DIM)


def blocks(vectors: NDArray[np.float32]) -> Iterator[Block]:
    rng = np.random.default_rng(3)
    pictures = [encode_png(rng.integers(0, 200, (96, 96), dtype=np.uint8)) for _ in range(6)]
    assert all(8_000 < len(picture) < 20_000 for picture in pictures)
    for first in range(0, ROWS, OF_A_VOLUME):
        volume = first // OF_A_VOLUME
        rows = [
            TableRow(
                row_id=number,
                volume_id=f"scan-{volume:05d}",
                patient_id=f"{volume // 2:016x}",
                modality="CT" if volume % 3 else "MR",
                region=("head", "chest", "abdomen")[volume % 3],
                slice_index=number - first,
                position_mm=2.5 * (number - first),
                spacing=(0.8, 0.8, 2.5),
                labels=("liver", "kidney") if number % 5 else (),
                image=pictures[number % len(pictures)],
                mask=None,
            )
            for number in range(first, first + OF_A_VOLUME)
        ]
        yield Block(rows=rows, embeddings=[vectors[first : first + OF_A_VOLUME]], values=())


def publish(hub: LocalHub, folder: Path, vectors: NDArray[np.float32]) -> dict[str, int]:
    """Put the index on the Hub; the bytes of each file."""
    index = folder / "index"
    index.mkdir()
    description = Description(
        name="large",
        embedder=canonical(WideEmbedder().identity),
        slices=SlicePolicy(axis="axial", window="percentile", max_side=128),
        index_kind="flat",
        index_parameters={},
        dtype="float32",
        license="cc-by-4.0",
        source="our own",
        split=None,
        skipped=0,
    )
    write_index(index, blocks(vectors), {}, description, total=ROWS, shard_bytes=SHARD_BYTES)
    (folder / "release").mkdir()
    done = make_release(index, folder / "release", repo=REPO)
    shutil.rmtree(index)
    repo = hub.add_repo(REPO)
    entries = {**done.manifest.files, MANIFEST: file_entry(done.folder / MANIFEST)}

    def add(tree: dict[str, Any]) -> None:
        for name, entry in entries.items():
            with open(done.folder / name, "rb") as file:
                data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if name in (CARD, MANIFEST):
                tree[name] = repo.regular(data[:])
            else:
                repo.contents[entry.sha256] = data
                tree[name] = repo.large(entry.sha256)

    repo.add_commit(add, title="Push", author="ada")
    return {name: entry.bytes for name, entry in entries.items()}


@pytest.mark.slow
def test_a_quarter_is_more_than_enough(hub: LocalHub, tmp_path: Path) -> None:
    volume, _ = make_case(5, depth=20).load()
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((ROWS, DIM), dtype=np.float32)
    like = WideEmbedder().embed_batch(
        [s for s in np.moveaxis(volume.voxels, 2, 0).astype(np.uint8)]
    )
    assert like.shape == (20, DIM)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    files = publish(hub, tmp_path, vectors)
    everything = sum(files.values())
    needed = sum(size for name, size in files.items() if not is_derived(name))
    assert everything > 800_000_000

    hub.reset_log()
    index = open_index(REPO, embedder=WideEmbedder())
    first = hub.bytes_sent()
    assert first < 0.1 * needed
    assert {r.path.partition("?")[0].rpartition("/")[2] for r in hub.requests("GET")} == {
        name.rpartition("/")[2] for name in FIRST
    }

    query = index.query_embeddings(volume)
    expected = np.argsort(-(vectors @ query.embeddings.T), axis=0)[:10].T
    by_numbers = index.search((query.embeddings, query.slice_index), k=10)
    assert hub.bytes_sent() == first
    by_pictures = index.search(volume, k=10)
    sent = hub.bytes_sent()
    assert sent < 0.25 * needed < 0.25 * everything
    assert len(hub.requests("GET", "^cdn/.*slices")) <= 4

    for found in (by_numbers, by_pictures):
        assert len(found.hits) == 200
        best = [hit for hit in found.hits if hit.rank == 1]
        rows = [int(hit.volume_id[5:]) * OF_A_VOLUME + hit.slice_index for hit in best]
        np.testing.assert_array_equal(rows, expected[:, 0])
    index.store.close()

    hub.stop()
    with_cache = open_index(REPO, embedder=WideEmbedder())
    assert with_cache.search((query.embeddings, query.slice_index), k=10).hits == by_numbers.hits
    with_cache.store.close()
