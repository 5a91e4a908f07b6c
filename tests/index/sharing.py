"""An index as a lab makes it, and what the tests ask of its way over the Hub.

The Hub is the one of `tests/hub/server.py`: it speaks what huggingface_hub 2.4.0 asks for, and is
met with the real client.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from hub.client import LocalHub
from index_fakes import POLICY, FakeEmbedder, make_case
from numpy.typing import NDArray

from medretrieval.index import publish, table
from medretrieval.index.appending import append
from medretrieval.index.builder import build
from medretrieval.index.cases import Case
from medretrieval.index.index_store import IndexStore
from medretrieval.index.leftovers import leftovers
from medretrieval.index.push import push
from medretrieval.retrieval.engine import open_index
from medretrieval.types import EmbedderIdentity

REPO = "lab/hearts"
MANIFEST = "manifest.json"
ATTRIBUTES = ".gitattributes"  # of the Hub itself
CARD = "README.md"
COLUMNS = "columns.parquet"
EMBEDDINGS = "embeddings/embeddings.safetensors"
SHARD = "slices/slices-00000.parquet"
MODES = ("slice", "max", "count", "mean-pool")
PNG = b"\x89PNG\r\n\x1a\n"
OTHER_TOKEN = "hf_local_eve_write"  # of somebody outside the lab, see `stranger`


class OtherEmbedder(FakeEmbedder):
    """Another projection, under another name."""

    @property
    def identity(self) -> EmbedderIdentity:
        return dataclasses.replace(super().identity, name="other", weights_sha256="1" * 64)

    def _vector(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        return super()._vector(image)[::-1].copy()


def make_index(
    out: Path, *, cases: Sequence[Case] | None = None, shard_rows: int | None = None, **options: Any
) -> Path:
    """An index of four cases of three slices, under an open licence.

    Args:
        shard_rows: slices of a shard; None puts all into one.
    """
    chosen = {
        "embedder": FakeEmbedder(),
        "slices": POLICY,
        "name": "hearts",
        "license": "cc-by-4.0",
        "source": "our own",
        **options,
    }
    if cases is None:
        cases = [make_case(number) for number in range(4)]
    with nullcontext() if shard_rows is None else small_shards(shard_rows):
        return build(cases, out, **chosen)


@contextmanager
def small_shards(rows: int) -> Iterator[None]:
    """Indexes that are written within the block have shards of so many slices."""

    class Small(table.ShardWriter):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "shard_bytes": 1})

    with (
        mock.patch.object(table, "GROUP_ROWS", rows),
        mock.patch.object(publish, "ShardWriter", Small),
    ):
        yield


def hits(source: Any, *, pictures: bool = True) -> list[dict[str, Any]]:
    """What a search by an unseen case gives, in several modes.

    Args:
        pictures: search by its pictures, so that those of the hits are looked at too: are they the
            same? Otherwise by its embeddings.
    """
    volume, _ = make_case(77).load()
    index = open_index(source, embedder=FakeEmbedder())
    try:
        query = index.query_embeddings(volume)
        if not pictures:
            query = (query.embeddings, query.slice_index, query.position_mm)
        asked = volume if pictures else query
        return [index.search(asked, mode=mode, k=4).to_json() for mode in MODES]
    finally:
        index.store.close()


def assert_same(a: IndexStore, b: IndexStore) -> None:
    """Two indexes hold the same rows, with the same pictures and masks."""
    np.testing.assert_array_equal(a.embeddings, b.embeddings)
    assert a.volume_ids == b.volume_ids
    assert list(a.labels) == list(b.labels)
    for row in range(len(a)):
        np.testing.assert_array_equal(a.image(row), b.image(row))
        assert a.has_mask(row) == b.has_mask(row)
        if a.has_mask(row):
            np.testing.assert_array_equal(a.mask(row), b.mask(row))


def fetched(hub: LocalHub) -> list[str]:
    """The files of data sets whose content was sent since the log was reset, in order."""
    found = []
    for request in hub.requests("GET", r"^(hub/datasets/|cdn/)"):
        if request.status in (200, 206):
            path = request.path.partition("?")[0]
            found.append(path.split("/", 6 if request.host == "hub" else 5)[-1])
    return found


def stranger(hub: LocalHub) -> None:
    """Be somebody outside the lab from now on."""
    hub.add_user("eve", token=OTHER_TOKEN)
    hub.log_in(OTHER_TOKEN)


def pushed(hub: LocalHub, index: Path, **options: Any) -> str:
    """Publish an index and forget the requests; the commit."""
    commit = push(index, REPO, **options).commit
    hub.reset_log()
    return commit


def recorder() -> tuple[list[tuple[int, int, str]], Callable[[int, int, str], None]]:
    """What a progress callback was called with, and the callback."""
    calls: list[tuple[int, int, str]] = []
    return calls, lambda done, total, message: calls.append((done, total, message))


def next_version(index: Path, out: Path, number: int = 9) -> Path:
    """The next version of an index with shards of three slices: with one case more."""
    with small_shards(3):
        return append(index, out, [make_case(number)], embedder=FakeEmbedder())


def uploads(hub: LocalHub) -> list[str]:
    """The large objects that were sent."""
    return [r.path.split("/upload/")[1][:64] for r in hub.requests("PUT", "^cdn/")]


def nothing_left(index: Path) -> None:
    """No work of a push is left beside an index, which is alone in its folder."""
    assert leftovers(index) == []
    assert [path.name for path in index.parent.iterdir()] == [index.name]
