"""Searching an index of whole volumes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from medretrieval.errors import EmbedderMismatchError, InputError, UsageError
from medretrieval.retrieval.engine import Index
from medretrieval.retrieval.filters import Filters
from medretrieval.retrieval.modes import MODES
from medretrieval.retrieval.selection import Selection
from medretrieval.similarity import normalise
from medretrieval.types import Grid, SlicePolicy, Volume

ROWS = {
    "near": [[1.0, 0.1, 0, 0]],
    "far": [[0, 0, 1.0, 0]],
    "middle": [[1.0, 1.0, 0, 0]],
}
WHOLE = {"unit": "volume"}


@pytest.fixture
def store(make_store, make_identity) -> Any:
    store = make_store(ROWS, region={"far": "head"}, labels={("middle", 0): ("liver", "cyst")})
    store.slice_index = np.array([7, 2, 30])
    store.manifest = type(store.manifest)(
        make_identity(4, preprocessing=WHOLE, name="whole"), SlicePolicy(axis="axial")
    )
    return store


class ToyVolumeEmbedder:
    """The first row of ROWS for every volume; takes no picture."""

    def __init__(self, identity: Any) -> None:
        self.identity = identity
        self.seen: list[Volume] = []

    def embed_volume(self, volume: Volume) -> np.ndarray:
        if not volume.grid.spacing_known:
            raise InputError(f"{volume.name} is a picture; expected a volume")
        self.seen.append(volume)
        return np.asarray(normalise([[1.0, 0, 0, 0]])[0])


@pytest.fixture
def index(store, make_identity) -> Index:
    return Index(store, embedder=ToyVolumeEmbedder(store.manifest.embedder))


def query(slices: int = 8, **changes: Any) -> Volume:
    rng = np.random.default_rng(0)
    grid = Grid(shape=(5, 6, slices), affine=np.diag([1.0, 1.0, 4.0, 1.0]), **changes)
    return Volume(voxels=rng.normal(size=grid.shape).astype(np.float32), grid=grid, name="q")


@pytest.mark.parametrize("slices", [8, 9])
def test_every_mode_compares_whole_volumes(index: Index, slices: int) -> None:
    cosines = {"near": 1 / math.sqrt(1.01), "middle": 1 / math.sqrt(2), "far": 0.0}
    for mode in (name for name in MODES if not MODES[name].needs):
        result = index.search(query(slices), mode=mode, k=5)
        first = result.hits[0]
        assert (first.volume_id, first.slice_index) == ("near", 7)
        assert [(m.query_slice, m.slice_index) for m in first.matches] == [(slices // 2, 7)]
        assert first.matches[0].score == pytest.approx(cosines["near"], abs=1e-6)
        expected = 1.0 if mode in ("count", "weighted") else cosines["near"]
        assert first.score == pytest.approx(expected, abs=1e-6)
        assert first.localization is None
        if mode == "slice" or mode.endswith("-pool"):  # these rank more than the volume that is hit
            assert [h.volume_id for h in result.hits] == ["near", "middle", "far"]
            assert [h.rank for h in result.hits] == [1, 2, 3]
            for hit in result.hits:
                assert hit.score == pytest.approx(cosines[hit.volume_id], abs=1e-6)
        else:
            assert len(result.hits) == 1


def test_filters_see_the_labels_of_the_volume(index: Index) -> None:
    for filters, expected in (
        (Filters(labels=["cyst"]), ["middle"]),
        (Filters(region="head"), ["far"]),
        (Filters(exclude_patient="near"), ["middle", "far"]),
    ):
        hits = index.search(query(), filters=filters).hits
        assert [h.volume_id for h in hits] == expected


def test_a_query_is_embedded_once_and_shown_by_its_middle_slice(index: Index) -> None:
    steps: list[tuple[int, int, str]] = []
    made = index.query_embeddings(
        query(), keep_images=True, progress=lambda *step: steps.append(step)
    )
    assert (len(made), made.slice_count, made.slice_index.tolist()) == (1, 8, [4])
    assert made.position_mm == (16.0,)
    assert made.images is not None
    assert made.images[0].shape == (6, 5)
    assert steps == [(0, 1, "embedding q"), (1, 1, "embedding q")]
    for mode in ("slice", "rerank", "count"):
        assert index.search(made, mode=mode).hits[0].volume_id == "near"
    assert len(index.embedder.seen) == 1  # type: ignore[union-attr]
    assert index.query_embeddings(query()).images is None


def test_embeddings_made_elsewhere(index: Index) -> None:
    assert index.search([[1.0, 0, 0, 0]]).hits[0].volume_id == "near"  # type: ignore[arg-type]
    with pytest.raises(InputError, match="2 embeddings, but in this index one embedding is of a"):
        index.search([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])  # type: ignore[arg-type]
    with pytest.raises(EmbedderMismatchError, match="3 components"):
        index.search([[1.0, 0, 0]])  # type: ignore[arg-type]


def test_what_it_cannot_answer_is_refused_with_the_reason(index: Index) -> None:
    why = "embedder whole gives one embedding for a whole volume, none for a slice"
    with pytest.raises(UsageError, match=rf"single slices: its {why}.*--slice"):
        index.search(query(), slice_index=3)
    with pytest.raises(UsageError, match=why):
        index.query_embeddings(query(), indices=[1, 2])
    with pytest.raises(UsageError, match=rf"{why}.*by hand.*embedder of slices"):
        index.supports([1.0, 0, 0, 0], 3)
    with pytest.raises(UsageError, match=rf"nothing can be localized.*{why}"):
        index.localize(query(), "near")
    for mode in (name for name in MODES if MODES[name].needs):
        with pytest.raises(UsageError, match=rf"mode {mode} searches with some slices.*{why}"):
            index.search(query(), mode=mode)
    for choice in ({"slices": (1, 2)}, {"sample": "step:2"}, {"structure": "liver"}):
        with pytest.raises(UsageError, match=rf"{why}.*--slices"):
            index.search(query(), mode="rerank", select=Selection(**choice))
    assert index.search(query(), select=Selection(seed=7)).hits


def test_a_picture_is_refused_by_the_embedder(index: Index) -> None:
    with pytest.raises(InputError, match="q is a picture; expected a volume"):
        index.search(query(1, spacing_known=False))


def test_embeddings_of_slices_are_refused(store: Any, make_store, make_embedder) -> None:
    slices = Index(make_store(ROWS), embedder=make_embedder()).query_embeddings(query())
    with pytest.raises(EmbedderMismatchError, match=r"preprocessing unit +volume +-  \(differs\)"):
        Index(store).search(slices)
    with pytest.raises(EmbedderMismatchError, match="the embedder given"):
        Index(store, embedder=make_embedder())
