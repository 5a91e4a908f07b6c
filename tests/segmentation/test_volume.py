from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medretrieval.errors import Cancelled, UsageError
from medretrieval.imaging import AS_STORED, ORIENTATIONS, extract, slice_axis
from medretrieval.segmentation import SliceSegmentation, VolumeOptions, segment_volume
from medretrieval.segmentation.labels import chosen, merge, vocabulary
from medretrieval.segmentation.prompts import Prompts
from medretrieval.segmentation.segmenter import Segmenter
from medretrieval.segmentation.volume import slicing
from medretrieval.types import Grid, Slice, SlicePolicy, Support, Volume, no_progress

SHAPE = (7, 9, 11)


class Bright:
    """A stand-in for a segmenter: label i is where the picture is brighter than 60 i."""

    name = "bright"

    def __init__(self) -> None:
        self.calls: list[tuple[int, Any]] = []
        self.seen: list[tuple[NDArray[np.uint8], Any]] = []
        self.closer: list[bool | None] = []

    def segment_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        supports: Sequence[Sequence[Support]],
        *,
        labels: Sequence[str] | None = None,
        prompts: Any = None,
        progress: Any = no_progress,
        **changes: Any,
    ) -> list[SliceSegmentation]:
        self.calls.append((len(images), labels))
        self.closer.append(changes.get("closer"))
        self.seen += zip(images, prompts or [None] * len(images), strict=True)
        results = []
        for done, (image, chosen_supports) in enumerate(zip(images, supports, strict=True), 1):
            asked = {} if not prompts else dict(enumerate(prompts[done - 1], start=1))
            names = chosen(vocabulary([*(s.names for s in chosen_supports), asked]), labels)
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
BY_SLICE = VolumeOptions(propagation="none")


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
        how=BY_SLICE,
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
        how=BY_SLICE,
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
        how=BY_SLICE,
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


ONE = [support({1: "over 1"})]


def test_the_best_axis_is_across_the_coarsest_steps_and_the_result_on_the_grid() -> None:
    """Whatever the axes are called and wherever they run: the third has the longest steps."""
    voxels = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.uint8)
    how = VolumeOptions(axis="best")
    for affine in orientations():
        query, segmenter = volume(voxels, affine), Bright()
        assert slice_axis(query.grid, slicing(IDENTITY, query.grid, how).axis) == 2
        indices: list[int] = []

        def choose(piece: Slice, indices: list[int] = indices) -> list[Support]:
            indices.append(piece.index)
            return ONE

        result = segment_volume(query, IDENTITY, choose, segmenter, how=how)
        assert indices == list(range(SHAPE[2]))
        np.testing.assert_array_equal(segmenter.seen[3][0], extract(voxels, query.grid, 2, 3))
        assert result.grid is query.grid
        np.testing.assert_array_equal(result.voxels, voxels > 60)


def test_the_axis_of_the_index_stays_where_another_is_no_better() -> None:
    cube = Grid(shape=SHAPE, affine=np.eye(4))
    for axis in ("axial", "coronal", "sagittal"):
        policy = SlicePolicy(axis=axis)
        assert slicing(policy, cube, VolumeOptions(axis="best")) == policy
    thick = Grid(shape=SHAPE, affine=np.diag([1.0, 1.0, 3.0, 1.0]))
    policy = SlicePolicy(axis="sagittal")
    assert slicing(policy, thick, VolumeOptions()) is policy
    assert slicing(policy, thick, VolumeOptions(axis="best")).axis == "axial"


def test_only_the_largest_part_is_kept() -> None:
    voxels = np.zeros((6, 6, 4), np.uint8)
    voxels[:3, :3, :2] = voxels[5, 5, 3] = 200
    found = {
        keep: segment_volume(
            volume(voxels), IDENTITY, lambda piece: ONE, Bright(), how=VolumeOptions(keep=keep)
        ).voxels
        for keep in ("all", "largest")
    }
    assert (found["all"].sum(), found["largest"].sum()) == (19, 18)
    assert found["largest"][5, 5, 3] == 0


@pytest.mark.parametrize("indices", [None, [3, 1, 2]])
def test_propagation_goes_through_the_volume_and_counts_its_steps(indices: Any) -> None:
    voxels = np.full((4, 4, 5), 200, np.uint8)
    steps: list[tuple[int, int, str]] = []
    segmenter = Bright()
    result = segment_volume(
        volume(voxels),
        IDENTITY,
        lambda piece: ONE,
        segmenter,
        how=VolumeOptions(),
        indices=indices,
        progress=lambda done, total, message: steps.append((done, total, message)),
    )
    count = 5 if indices is None else 3
    # Within a slice it is told again, without a step.
    assert list(dict.fromkeys(steps)) == [
        *((i, count, "segmenting slices") for i in range(1, count + 1)),
        *((i, 2 * count, "propagating") for i in range(2 * count + 1)),
    ]
    # All at once, and then each once more, first the start, from which the others follow.
    assert [n for n, _ in segmenter.calls] == [count] + [1] * count
    assert segmenter.closer == [False] + [None] * count
    assert (result.voxels == 1).sum() == 16 * count


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("max_side", [1024, 8])
def test_prompts_point_at_what_is_displayed(orientation: str, max_side: int) -> None:
    """Turned and reduced with the slice: the one bright place stays under its point."""
    voxels = np.zeros((16, 12, 3), np.uint8)
    voxels[8:10, 2:4, 1] = 200
    query = volume(voxels, np.diag([-1.0, -1.0, 1.0, 1.0]))
    # Columns run along the first axis: x is 8 and 9, y is 2 and 3.
    pointed = Prompts(positive=((8.5, 2.5),), box=(7.5, 1.5, 9.5, 3.5))
    segmenter = Bright()
    segment_volume(
        query,
        SlicePolicy(axis="axial", window="identity", max_side=max_side),
        lambda piece: ONE,
        segmenter,
        how=BY_SLICE,
        orientation=orientation,
        prompts={1: {"over 1": pointed}},
    )
    assert [not prompts for _, prompts in segmenter.seen] == [True, False, True]
    image, prompts = segmenter.seen[1]
    moved = prompts["over 1"]
    ((x, y),) = moved.positive
    assert image[round(y - 0.25), round(x - 0.25)] == 200
    left, top, right, bottom = moved.box
    assert left < x < right
    assert top < y < bottom
    assert image.sum() == image[round(top + 0.5) : round(bottom + 0.5)].sum()
    if orientation == AS_STORED and max_side == 1024:
        assert moved == pointed


def test_prompts_do_without_supports_and_reach_the_propagation() -> None:
    voxels = np.full((4, 4, 3), 200, np.uint8)
    prompts = {1: {"over 1": Prompts(positive=((1, 1),))}, 2: {"over 2": Prompts(box=(0, 0, 2, 2))}}
    segmenter = Bright()
    result = segment_volume(
        volume(voxels),
        IDENTITY,
        lambda piece: ONE if piece.index == 2 else [],
        segmenter,
        how=VolumeOptions(),
        prompts=prompts,
    )
    assert result.voxels.any(axis=(0, 1)).tolist() == [False, True, True]
    assert sorted(result.names.values()) == ["over 1", "over 2"]
    # "over 1" starts on slice 1; on slice 2 it has no prompts.
    assert segmenter.seen[-1][1] is None


def test_wrong_prompts() -> None:
    query = volume(np.zeros((4, 4, 2), np.uint8))
    some = {"over 1": Prompts(positive=((1, 1),))}
    with pytest.raises(UsageError, match="slice 5, which is not segmented"):
        segment_volume(query, IDENTITY, lambda piece: ONE, Bright(), prompts={5: some})
    with pytest.raises(UsageError, match="'over 1', which is not among the labels"):
        segment_volume(
            query, IDENTITY, lambda piece: ONE, Bright(), prompts={1: some}, labels=["over 2"]
        )


@pytest.mark.parametrize("last", [1, 2, 5])
def test_cancelling_leaves_a_sound_cache(toys: Any, segmenter: Any, last: int) -> None:
    """During the first pass or the propagation; what was remembered serves the next try."""
    stack = np.stack([toys.picture(seed)[0] for seed in range(3)])
    query = volume(stack.transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]))
    supports, how = toys.supports(2), VolumeOptions()
    steps = []

    def cancel(done: int, total: int, message: str) -> None:
        steps.append(message)
        if len(steps) == last:
            raise Cancelled("not wanted any more")

    with pytest.raises(Cancelled, match="not wanted any more"):
        segment_volume(query, IDENTITY, lambda piece: supports, segmenter, how=how, progress=cancel)
    assert len(steps) == last
    assert len(segmenter.cache) > 0
    again = segment_volume(query, IDENTITY, lambda piece: supports, segmenter, how=how)
    segmenter.cache.clear()
    fresh = segment_volume(query, IDENTITY, lambda piece: supports, segmenter, how=how)
    np.testing.assert_array_equal(again.voxels, fresh.voxels)
    assert fresh.voxels.any()


def test_one_slice_is_segmented_by_itself() -> None:
    segmenter = Bright()
    query = volume(np.full((4, 4, 3), 200, np.uint8))
    segment_volume(query, IDENTITY, lambda piece: ONE, segmenter, indices=[1])
    assert segmenter.calls == [(1, None)]


@pytest.mark.parametrize(
    "kind", ["encoding supports", "segmenting", "looking closer", "looking in tiles"]
)
def test_every_pass_can_be_cancelled(toys: Any, segmenter: Segmenter, kind: str) -> None:
    """The network never computes long without the callback being asked."""
    told: list[str] = []

    def stop(done: int, total: int, message: str) -> None:
        told.append(message)
        if message == kind:
            raise Cancelled("stopped")

    corner = np.zeros((64, 64), np.uint8)
    corner[20:44, 20:44] = 1
    small = [replace(support, mask=corner) for support in toys.supports(2)]
    with pytest.raises(Cancelled):
        segmenter.segment_batch(
            [toys.picture(9, (128, 128))[0]],
            [small],
            progress=stop,
            closer=True,
            tiles=2,
            crop="none",
            threshold=1e-6,  # whatever the network, something is found
        )
    assert told[-1] == kind
