"""Reciprocal rank fusion, of rankings and of whole indexes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medretrieval.errors import EmbedderMismatchError, UsageError
from medretrieval.pipeline import search_fused
from medretrieval.retrieval.engine import Index
from medretrieval.retrieval.fusion import depth, fuse
from medretrieval.similarity import normalise
from medretrieval.types import (
    EmbedderIdentity,
    Grid,
    Hit,
    Match,
    SearchResult,
    SlicePolicy,
    Volume,
)


def hit(rank: int, volume_id: str, *, query_slice: int = 0, slice_index: int = 0, **changes) -> Hit:
    fields = {
        "rank": rank,
        "volume_id": volume_id,
        "score": 1.0 / rank,
        "row_id": 0,
        "slice_index": slice_index,
        "position_mm": None,
        "labels": (),
        "modality": "CT",
        "region": "chest",
        "matches": (Match(query_slice=query_slice, slice_index=slice_index, score=0.5),),
    }
    return Hit(**{**fields, **changes})


def ranking(names: str | list[str]) -> SearchResult:
    hits = tuple(hit(place + 1, name) for place, name in enumerate(names))
    return SearchResult(query="q", mode="count", hits=hits)


def test_golden_by_hand() -> None:
    # Cormack et al. 2009: a 1/61 + 1/62, b 1/62 + 1/61, c 1/63, d 1/63.
    fused = fuse([ranking("abc"), ranking("bad")], 3, finds="volumes")
    assert [(h.rank, h.volume_id, h.score) for h in fused.hits] == [
        (1, "a", 1 / 61 + 1 / 62),
        (2, "b", 1 / 61 + 1 / 62),
        (3, "c", 1 / 63),
    ]


rankings = st.lists(st.permutations("abcdef").map(lambda p: p[:4]), min_size=1, max_size=4)


@given(rankings, st.randoms())
def test_order_of_the_rankings_does_not_matter(lists: list[list[str]], random) -> None:
    def fused(some: list[list[str]]) -> list[tuple[int, str, float]]:
        result = fuse([ranking(names) for names in some], 6, finds="volumes")
        return [(h.rank, h.volume_id, h.score) for h in result.hits]

    shuffled = lists.copy()
    random.shuffle(shuffled)
    assert fused(lists) == fused(shuffled)


@given(st.permutations("abcdef"))
def test_one_ranking_stays_as_it_is(names: list[str]) -> None:
    fused = fuse([ranking(names)] * 2, 6, finds="volumes")
    assert [h.volume_id for h in fused.hits] == names


@given(rankings)
def test_what_is_ahead_everywhere_stays_ahead(lists: list[list[str]]) -> None:
    fused = [h.volume_id for h in fuse([ranking(n) for n in lists], 6, finds="volumes").hits]
    for a, b in itertools.permutations("abcdef", 2):
        if all(a in n and (b not in n or n.index(a) < n.index(b)) for n in lists):
            assert b not in fused or fused.index(a) < fused.index(b)


def test_slices_are_fused_for_each_query_slice_alone() -> None:
    one = [hit(1, "a", query_slice=0, slice_index=3), hit(1, "b", query_slice=1, slice_index=4)]
    two = [hit(1, "a", query_slice=1, slice_index=3), hit(1, "a", query_slice=0, slice_index=2)]
    results = [SearchResult(query="q", mode="slice", hits=tuple(hits)) for hits in (one, two)]
    found = [
        (h.matches[0].query_slice, h.rank, h.volume_id, h.slice_index)
        for h in fuse(results, 5, finds="slices").hits
    ]
    assert found == [(0, 1, "a", 2), (0, 2, "a", 3), (1, 1, "a", 3), (1, 2, "b", 4)]


def test_a_near_duplicate_of_one_is_one_of_all() -> None:
    flagged = SearchResult(query="q", mode="count", hits=(hit(1, "a", near_duplicate=True),))
    for results in ([flagged, ranking("a")], [ranking("a"), flagged]):
        assert fuse(results, 1, finds="volumes").hits[0].near_duplicate


def test_nothing_found_and_nothing_given() -> None:
    assert fuse([ranking(""), ranking("")], 3, finds="volumes").hits == ()
    with pytest.raises(UsageError, match="no rankings"):
        fuse([], 3, finds="volumes")


VOLUMES = {
    "a": [[9, 1, 1, 1], [8, 2, 1, 1]],
    "b": [[1, 9, 1, 1], [1, 8, 2, 1]],
    "c": [[1, 1, 9, 1], [5, 1, 8, 2]],
}


def query() -> Volume:
    voxels = np.array([[[200, 150, 20]], [[10, 90, 5]]], np.uint8).repeat(2, axis=1)
    grid = Grid(shape=(2, 2, 3), affine=np.diag([-1.0, -1.0, 3.0, 1.0]))
    return Volume(voxels=voxels, grid=grid, name="me")


@pytest.fixture
def indexes(make_store, make_embedder, make_identity) -> list[Index]:
    """The same cases by two embedders; the second is that of the first with its axes turned."""

    class Other(type(make_embedder())):
        def embed_batch(self, images):
            return super().embed_batch(images)[:, ::-1].copy()

    turned = {name: [row[::-1] for row in rows] for name, rows in VOLUMES.items()}
    second = make_store(turned, order=[5, 3, 1, 0, 2, 4], volume_order=[2, 0, 1])
    changes = {"name": "other", "weights_sha256": "1" * 64}
    second.manifest = replace(second.manifest, embedder=make_identity(4, **changes))
    return [
        Index(make_store(VOLUMES), embedder=make_embedder()),
        Index(second, embedder=Other(**changes)),
    ]


@pytest.mark.parametrize("mode", ["slice", "count", "rerank", "mean-pool"])
def test_indexes_of_the_same_cases_are_fused(indexes: list[Index], mode: str) -> None:
    result = search_fused(indexes, query(), mode=mode, k=2)
    other_way = search_fused(indexes[::-1], query(), mode=mode, k=2)
    single = indexes[0].search(query(), mode=mode, k=2)
    assert result.mode == mode

    def ranked(found: SearchResult) -> list[tuple]:
        return [(h.matches[0].query_slice, h.rank, h.volume_id) for h in found.hits]

    # Both embedders find the same, so that fusing them changes nothing but the scores.
    assert ranked(result) == ranked(single)
    assert [(h.rank, h.volume_id, h.score) for h in other_way.hits] == [
        (h.rank, h.volume_id, h.score) for h in result.hits
    ]
    assert result.hits[0].score == 2 / 61
    for found, index in ((result, indexes[0]), (other_way, indexes[1])):
        for h in found.hits:
            row = index.store.row(h.volume_id, h.slice_index)
            assert h.row_id == row


class Brightness:
    """Another embedder than the toy in everything: two numbers, by how bright a picture is."""

    batch_size = 2

    def __init__(self, identity: EmbedderIdentity) -> None:
        self.identity = identity

    def embed_batch(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return normalise([[image.mean(), 255 - image.mean()] for image in images])


def test_two_embedders_that_find_different_cases(
    make_store, make_identity, indexes: list[Index]
) -> None:
    grey = {"a": [[30, 225]], "b": [[128, 127]], "c": [[200, 55]]}
    identity = make_identity(2, name="brightness", weights_sha256="2" * 64)
    store = make_store(grey)
    store.manifest = replace(store.manifest, embedder=identity)
    both = [indexes[0], Index(store, embedder=Brightness(identity))]
    ranked = [
        {hit.volume_id: hit.rank for hit in index.search(query(), mode="mean-pool").hits}
        for index in both
    ]
    assert [min(ranks, key=ranks.get) for ranks in ranked] == ["c", "b"]
    found = search_fused(both, query(), mode="mean-pool", k=3)
    expected = {name: sum(1 / (60 + ranks[name]) for ranks in ranked) for name in "abc"}
    assert {h.volume_id: h.score for h in found.hits} == pytest.approx(expected)
    assert [h.rank for h in found.hits] == [1, 2, 3]
    assert [h.volume_id for h in found.hits] == sorted("abc", key=lambda n: (-expected[n], n))
    with pytest.raises(EmbedderMismatchError):
        search_fused(both, both[0].query_embeddings(query()), mode="mean-pool")


def test_a_case_of_the_indexes_is_a_query(indexes: list[Index]) -> None:
    result = search_fused(indexes, "case:a", mode="mean-pool", k=5)
    assert {h.volume_id for h in result.hits} == {"b", "c"}


def test_one_orientation_for_all(indexes: list[Index]) -> None:
    result = search_fused(indexes, query(), mode="count", orientation="any")
    alone = indexes[1].search(query(), mode="count", orientation="any")
    assert result.orientation == alone.orientation  # "other" is before "toy"


def test_indexes_without_common_cases_are_refused(indexes: list[Index], make_store) -> None:
    stranger = Index(make_store({"x": [[1, 0, 0, 0]]}))
    stranger.store.manifest = replace(stranger.store.manifest, name="elsewhere")
    with pytest.raises(UsageError, match="indexes toy and elsewhere have no case in common"):
        search_fused([indexes[0], stranger], query(), mode="count")
    with pytest.raises(UsageError, match="no indexes"):
        search_fused([], query(), mode="count")


def test_slices_cut_along_other_axes_are_refused_but_volumes_are_not(indexes: list[Index]) -> None:
    store = indexes[1].store
    store.manifest = replace(store.manifest, slices=SlicePolicy(axis="sagittal"))
    with pytest.raises(UsageError, match="cut along axial and along sagittal"):
        search_fused(indexes, query(), mode="slice")
    assert search_fused(indexes, query(), mode="count").hits


def test_unknown_mode_is_refused(indexes: list[Index]) -> None:
    with pytest.raises(UsageError, match="did you mean count"):
        search_fused(indexes, query(), mode="coun")


def test_depth_grows_with_k() -> None:
    assert depth(1) == 100
    assert depth(1000) == 4000
