from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medretrieval.errors import UsageError
from medretrieval.segmentation import SliceSegmentation, segment_volume
from medretrieval.segmentation.labels import chosen, merge, vocabulary
from medretrieval.types import Grid, Slice, SlicePolicy, Support, Volume, no_progress

SHAPE = (7, 9, 11)


class Bright:
    """A stand-in for a segmenter: label i is where the picture is brighter than 60 i."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Any]] = []

    def segment_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        supports: Sequence[Sequence[Support]],
        *,
        labels: Sequence[str] | None = None,
        progress: Any = no_progress,
        **changes: Any,
    ) -> list[SliceSegmentation]:
        self.calls.append((len(images), labels))
        results = []
        for done, (image, chosen_supports) in enumerate(zip(images, supports, strict=True), 1):
            names = chosen(vocabulary(s.names for s in chosen_supports), labels)
            number = [int(name.split()[1]) for name in names.values()]
            logits = np.stack([i * (image - 60.0 * i) for i in number]).astype(np.float32)
            mask = merge(logits, list(names))
            results.append(SliceSegmentation(mask=mask, logits=logits, names=names))
            progress(done, len(images), "segmenting")
        return results


def support(names: dict[int, str]) -> Support:
    blank = np.zeros((4, 4), np.uint8)
    return Support(image=blank, mask=blank, names=names, key="case:0")


def volume(voxels: NDArray[Any], affine: NDArray[np.float64] | None = None) -> Volume:
    grid = Grid(shape=voxels.shape[:3], affine=np.eye(4) if affine is None else affine)
    return Volume(voxels=voxels, grid=grid, color=voxels.ndim == 4)


def orientations() -> list[NDArray[np.float64]]:
    affines = []
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = 0
            for stored, (world, sign) in enumerate(zip(axes, signs, strict=True)):
                affine[world, stored] = sign * (1.0, 1.5, 3.0)[stored]
            affines.append(affine)
    return affines


IDENTITY = SlicePolicy(axis="axial", window="identity")


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal", "acquisition"])
def test_the_result_is_on_the_grid_in_all_orientations(axis: str) -> None:
    voxels = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    for affine in orientations():
        query = volume(voxels, affine)
        policy = SlicePolicy(axis=axis, window="identity")
        result = segment_volume(
            query, policy, lambda piece: [support({1: "over 1", 2: "over 3"})], Bright()
        )
        assert result.grid is query.grid
        # 3 (v - 180) is above v - 60 from v = 240 on.
        expected = np.where(voxels > 240, 2, np.where(voxels > 60, 1, 0))
        np.testing.assert_array_equal(result.voxels, expected)
        assert result.voxels.dtype == np.uint8
        assert result.names == {1: "over 1", 2: "over 3"}


def test_labels_are_told_apart_by_name_over_the_volume() -> None:
    voxels = np.full((4, 4, 2), 200, np.uint8)
    sets = {0: [support({1: "over 1"})], 1: [support({1: "over 2", 5: "over 1"})]}
    result = segment_volume(volume(voxels), IDENTITY, lambda piece: sets[piece.index], Bright())
    by_name = {name: value for value, name in result.names.items()}
    assert sorted(by_name) == ["over 1", "over 2"]
    assert (result.voxels[..., 0] == by_name["over 1"]).all()
    assert (result.voxels[..., 1] == by_name["over 2"]).all()


def test_reduced_slices_come_back_at_full_size() -> None:
    voxels = np.zeros((64, 40, 3), np.uint8)
    voxels[16:48, 8:24] = 200
    policy = SlicePolicy(axis="axial", window="identity", max_side=16)
    sizes: list[tuple[int, ...]] = []

    def choose(piece: Slice) -> list[Support]:
        sizes.append(piece.image.shape)
        return [support({1: "over 1"})]

    result = segment_volume(volume(voxels), policy, choose, Bright())
    assert set(sizes) == {(10, 16)}
    assert result.voxels.shape == voxels.shape
    right = (result.voxels == 1) == (voxels == 200)
    assert right.mean() > 0.95
    assert (result.voxels[20:44, 12:20] == 1).all()
    assert (result.voxels[:8] == 0).all()


def test_only_the_slices_asked_for() -> None:
    voxels = np.full((4, 4, 6), 200, np.uint8)
    steps: list[tuple[int, int]] = []
    result = segment_volume(
        volume(voxels),
        IDENTITY,
        lambda piece: [support({1: "over 1"})],
        Bright(),
        indices=[4, 1],
        progress=lambda done, total, message: steps.append((done, total)),
    )
    assert result.voxels.any(axis=(0, 1)).tolist() == [False, True, False, False, True, False]
    assert steps == [(1, 2), (2, 2)]


def test_slices_without_supports_stay_background_and_count_as_done() -> None:
    voxels = np.full((4, 4, 40), 200, np.uint8)
    steps: list[int] = []
    segmenter = Bright()
    result = segment_volume(
        volume(voxels),
        IDENTITY,
        lambda piece: [support({1: "over 1"})] if piece.index % 2 else [],
        segmenter,
        progress=lambda done, total, message: steps.append(done),
    )
    assert result.voxels.any(axis=(0, 1)).tolist() == [False, True] * 20
    assert sorted(steps) == list(range(1, 41))
    assert [count for count, _ in segmenter.calls] == [16, 4]


def test_labels_that_only_some_slices_know() -> None:
    voxels = np.full((4, 4, 3), 200, np.uint8)
    sets = {
        0: [support({1: "over 1", 2: "over 2"})],
        1: [support({1: "over 1"})],
        2: [support({3: "over 3"})],
    }
    segmenter = Bright()
    result = segment_volume(
        volume(voxels),
        IDENTITY,
        lambda piece: sets[piece.index],
        segmenter,
        labels=["over 2", "over 1"],
    )
    assert {labels for _, labels in segmenter.calls} == {("over 2", "over 1"), ("over 1",)}
    assert result.names == {1: "over 1", 2: "over 2"}
    assert not result.voxels[..., 2].any()


def test_wrong_use() -> None:
    query = volume(np.zeros((4, 4, 2), np.uint8))
    with pytest.raises(UsageError, match="no slice has a support"):
        segment_volume(query, IDENTITY, lambda piece: [], Bright())
    with pytest.raises(UsageError, match="'over 9'; the supports have: over 1"):
        segment_volume(
            query, IDENTITY, lambda piece: [support({1: "over 1"})], Bright(), labels=["over 9"]
        )
    with pytest.raises(UsageError, match="slice 2"):
        segment_volume(
            query, IDENTITY, lambda piece: [support({1: "over 1"})], Bright(), indices=[2]
        )


def test_a_colour_picture_with_a_real_network(toys: Any, segmenter: Any) -> None:
    grey = toys.picture(9, (48, 60))[0]
    colour = np.repeat(grey.T[..., None, None], 3, 3)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    query = volume(colour, affine)
    supports = toys.supports(2)
    result = segment_volume(query, SlicePolicy(), lambda piece: supports, segmenter)
    expected = segmenter.segment(np.repeat(grey[..., None], 3, 2), supports).mask
    np.testing.assert_array_equal(result.voxels[..., 0].T, expected)
    assert result.voxels.any()
