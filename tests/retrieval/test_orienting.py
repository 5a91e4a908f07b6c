"""The orientation of a query is found, named, refused, and undone in the mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medretrieval.errors import UsageError
from medretrieval.imaging import ORIENTATIONS, inverse, turn
from medretrieval.pipeline import segment
from medretrieval.retrieval.engine import Index
from medretrieval.retrieval.filters import Filters
from medretrieval.retrieval.orienting import CHOICES, spread
from medretrieval.retrieval.query import QueryEmbeddings, from_arrays
from medretrieval.segmentation import VolumeOptions
from medretrieval.segmentation.labels import SliceSegmentation
from medretrieval.types import Grid, Progress, SlicePolicy, Support, Volume, no_progress

# Different in all eight orientations, as the toy embedder sees corners only.
PICTURE = np.array([[250, 120], [60, 10]], np.uint8)


def volume(picture: NDArray[np.uint8], slices: int = 3) -> Volume:
    """Slices that are displayed as `picture`, and darker from one to the next."""
    stack = np.stack([picture - picture // 8 * i for i in range(slices)])
    grid = Grid(shape=(2, 2, slices), affine=np.diag([-1.0, -1.0, 3.0, 1.0]))
    return Volume(voxels=stack.transpose(2, 1, 0), grid=grid, name="turned")


def rows(picture: NDArray[np.uint8]) -> list[list[float]]:
    return [(1.0 + picture.astype(float).ravel()).tolist()]


@pytest.fixture
def index(make_store, make_embedder) -> Index:
    store = make_store({"same": rows(PICTURE), "even": rows(np.full((2, 2), 100, np.uint8))})
    return Index(store, embedder=make_embedder())


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_any_finds_how_the_query_was_turned(index: Index, name: str) -> None:
    result = index.search(volume(turn(PICTURE, name)), mode="count", k=1, orientation="any")
    assert result.orientation == inverse(name)
    assert result.hits[0].volume_id == "same"
    assert result.to_json()["orientation"] == inverse(name)
    named = index.search(volume(turn(PICTURE, name)), mode="count", k=1, orientation=inverse(name))
    assert named == result


def test_the_result_of_any_does_not_depend_on_how_the_query_lies(index: Index) -> None:
    found = [
        index.search(volume(turn(PICTURE, name)), mode="rerank", orientation="any").hits
        for name in ORIENTATIONS
    ]
    assert all(hits == found[0] for hits in found)


def test_as_stored_is_kept_where_all_are_as_good(index: Index) -> None:
    even = volume(np.full((2, 2), 80, np.uint8))
    assert index.search(even, orientation="any").orientation == "as stored"


def test_only_what_may_be_found_decides(make_store, make_embedder) -> None:
    store = make_store(
        {"upright": rows(PICTURE), "turned": rows(turn(PICTURE, "rotated 180"))},
        modality={"upright": "CT", "turned": "MR"},
    )
    index = Index(store, embedder=make_embedder())
    for modality, expected in (("CT", "as stored"), ("MR", "rotated 180")):
        filters = Filters(modality=modality)
        result = index.search(volume(PICTURE), orientation="any", filters=filters)
        assert result.orientation == expected


def test_where_nothing_may_be_found_there_is_no_orientation_to_find(index: Index) -> None:
    index.store.modality = type(index.store.modality).of(["CT", "MR"])  # type: ignore[misc]
    filters = Filters(modality="CT", region="chest", exclude_patient="same")
    result = index.search(volume(PICTURE), orientation="any", filters=filters)
    assert result.hits == ()
    assert result.orientation == "as stored"


def test_at_most_sixteen_slices_are_embedded_eight_times(index: Index, make_embedder) -> None:
    index.search(volume(PICTURE // 8, slices=40), mode="count", orientation="any")
    embedder: Any = index.embedder
    assert sum(embedder.batches) == 8 * 16 + 40


def test_spread_is_equidistant_and_symmetric() -> None:
    for count in range(1, 200):
        places = spread(count, 16)
        assert len(places) == min(count, 16)
        assert len(set(places)) == len(places)
        assert 0 <= places[0] <= places[-1] < count
        steps = np.diff(places)
        assert steps.size == 0 or steps.max() - steps.min() <= 1
        assert abs(places[0] - (count - 1 - places[-1])) <= 1


def test_the_slices_embedded_are_the_turned_ones(index: Index) -> None:
    query = index.query_embeddings(volume(PICTURE), orientation="rotated left", keep_images=True)
    assert query.orientation == "rotated left"
    assert query.images is not None
    np.testing.assert_array_equal(query.images[0], turn(PICTURE, "rotated left"))
    assert index.search(query, orientation="rotated left").orientation == "rotated left"
    assert index.search(query).orientation == "rotated left"


def test_embeddings_cannot_be_turned(index: Index) -> None:
    query: QueryEmbeddings = from_arrays(rows(PICTURE))
    for orientation in ("any", "rotated left"):
        with pytest.raises(UsageError, match="cannot be turned; give the image"):
            index.search(query, orientation=orientation)


def test_whole_volumes_are_not_turned(make_store, make_identity) -> None:
    store = make_store({"a": rows(PICTURE)})
    whole = make_identity(4, preprocessing={"unit": "volume"})
    store.manifest = replace(store.manifest, embedder=whole)
    with pytest.raises(UsageError, match="takes whole volumes, and slices are turned"):
        Index(store).search(from_arrays(rows(PICTURE)), mode="count", orientation="any")


def test_unknown_orientation_is_refused_with_a_suggestion(index: Index) -> None:
    with pytest.raises(UsageError, match="did you mean rotated left"):
        index.search(volume(PICTURE), orientation="rotate left")


def test_choices_are_the_orientations_and_any() -> None:
    assert sorted(CHOICES) == sorted([*ORIENTATIONS, "any"])


class CopyingSegmenter:
    """The label map is what is bright in the picture, so that it shows how the picture lay."""

    name = "copying"

    def __init__(self) -> None:
        self.seen: list[NDArray[np.uint8]] = []

    def segment_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        supports: Sequence[Sequence[Support]],
        *,
        labels: Sequence[str] | None = None,
        progress: Progress = no_progress,
        **changes: Any,
    ) -> list[SliceSegmentation]:
        self.seen += images
        return [
            SliceSegmentation(
                mask=(image > 100).astype(np.uint8),
                logits=np.where(image > 100, 5.0, -5.0)[None].astype(np.float32),
                names={1: "bright"},
            )
            for image in images
        ]


def picture_of_a_corner(shape: tuple[int, int]) -> Volume:
    picture = np.full(shape, 20, np.uint8)
    picture[: shape[0] // 3, : shape[1] // 2] = 200
    grid = Grid(shape=(shape[1], shape[0], 2), affine=np.diag([-1.0, -2.0, 5.0, 1.0]))
    voxels = np.stack([picture, picture // 2 + 60]).transpose(2, 1, 0)
    return Volume(voxels=voxels, grid=grid)


HAND = Support(
    image=np.zeros((4, 4), np.uint8), mask=np.ones((4, 4), np.uint8), names={1: "bright"}, key="s"
)


@pytest.mark.parametrize("max_side", [1024, 20])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_the_mask_lies_as_the_query_whatever_was_segmented(
    make_store, make_embedder, name: str, max_side: int
) -> None:
    store = make_store({"a": rows(PICTURE)})
    policy = SlicePolicy(axis="axial", window="identity", max_side=max_side)
    store.manifest = replace(store.manifest, slices=policy)
    index = Index(store, embedder=make_embedder())
    query = picture_of_a_corner((36, 24))
    segmenter = CopyingSegmenter()
    result = segment(index, query, segmenter=segmenter, supports=[HAND], orientation=name)
    assert result.orientation == name
    assert result.to_json()["orientation"] == name
    assert result.labels.grid is query.grid
    # What was seen is turned, what comes back is not.
    plain = segment(index, query, segmenter=CopyingSegmenter(), supports=[HAND])
    np.testing.assert_array_equal(result.labels.voxels, plain.labels.voxels)
    side = (36, 24) if max_side == 1024 else (20, 13)
    assert segmenter.seen[0].shape == turn(np.empty(side), name).shape


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_any_segments_the_way_the_supports_lie(make_store, make_embedder, name: str) -> None:
    index = Index(make_store({"a": rows(PICTURE)}), embedder=make_embedder())
    hand = replace(HAND, image=PICTURE, mask=np.ones((2, 2), np.uint8))
    retrieved = replace(hand, key="retrieved")
    index.store.support = lambda row, score=None: retrieved  # type: ignore[method-assign]
    query = volume(turn(PICTURE, name))
    for supports in ([hand], None):
        segmenter = CopyingSegmenter()
        result = segment(
            index, query, segmenter=segmenter, supports=supports, orientation="any", support_k=1
        )
        assert result.orientation == inverse(name)
        np.testing.assert_array_equal(segmenter.seen[0], PICTURE)
        expected = turn(PICTURE, name) > 100
        np.testing.assert_array_equal(result.labels.voxels[:, :, 0].T == 1, expected)


@pytest.mark.parametrize("by_hand", [False, True])
def test_another_axis_is_that_of_embeddings_supports_and_mask(
    make_store, make_embedder, by_hand: bool
) -> None:
    """An index of sagittal slices, a query whose axial ones have the finest pixels."""
    store = make_store({"a": rows(PICTURE)})
    policy = SlicePolicy(axis="sagittal", window="identity")
    store.manifest = replace(store.manifest, slices=policy)
    store.support = lambda row, score=None: HAND
    index = Index(store, embedder=make_embedder())
    query, segmenter = picture_of_a_corner((9, 6)), CopyingSegmenter()
    result = segment(
        index,
        query,
        segmenter=segmenter,
        supports=[HAND] if by_hand else None,
        support_k=1,
        how=VolumeOptions(propagation="none", axis="best"),
    )
    assert [picture.shape for picture in segmenter.seen] == [(9, 6)] * 2
    assert {use.query_slice for use in result.supports} == {0, 1}
    assert result.labels.grid is query.grid
    np.testing.assert_array_equal(result.labels.voxels, query.voxels > 100)
    along_index = segment(index, query, segmenter=CopyingSegmenter(), supports=[HAND])
    assert along_index.slices == 6
    np.testing.assert_array_equal(along_index.labels.voxels, query.voxels > 100)
