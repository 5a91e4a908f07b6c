from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from medretrieval.errors import Cancelled
from medretrieval.segmentation import MemoryCache, SliceSegmentation
from medretrieval.segmentation.labels import merge
from medretrieval.segmentation.members import Member
from medretrieval.segmentation.prompts import Prompts
from medretrieval.segmentation.propagation import LEAST, Found, propagate, starts
from medretrieval.types import Slice, Support, no_progress

SIZE = (4, 6)
NAMES = {1: "a", 2: "b"}
ANNOTATED = Support(
    image=np.zeros(SIZE, np.uint8), mask=np.zeros(SIZE, np.uint8), names=NAMES, key="case:0"
)


def found(
    index: int, *, pointed: str | None = None, **logits: float | NDArray[np.float32]
) -> Found:
    """A slice whose labels have these logits: one number everywhere, or (H, W)."""
    maps = np.stack([np.broadcast_to(np.float32(v), SIZE) for v in logits.values()])
    names = {value: name for value, name in NAMES.items() if name in logits}
    result = SliceSegmentation(mask=merge(maps, list(names)), logits=maps, names=names)
    piece = Slice(index=index, image=np.full(SIZE, index, np.uint8))
    prompts = {} if pointed is None else {pointed: Prompts(positive=((1, 1),))}
    return Found(Member(piece, [ANNOTATED], prompts), result)


def some(pixels: int, value: float) -> NDArray[np.float32]:
    """`value` on the first pixels, -`value` elsewhere."""
    logits = np.full(SIZE, -value, np.float32)
    logits.ravel()[:pixels] = value
    return logits


class Follower:
    """A stand-in for a segmenter: a label is, surely, where the first neighbour has it.

    Without a neighbour it is where it was found.
    """

    name = "follower"

    def __init__(self, found: Sequence[Found]) -> None:
        self.alone = {slice_.member.piece.index: slice_.result() for slice_ in found}
        self.calls: list[tuple[int, tuple[str, ...], list[tuple[int, int]]]] = []

    def segment_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        supports: Sequence[Sequence[Support]],
        *,
        labels: Sequence[str] | None = None,
        progress: Any = no_progress,
        **changes: Any,
    ) -> list[SliceSegmentation]:
        (image,), ((first, *before),) = images, supports
        assert first is ANNOTATED
        assert labels is not None
        shown = [(int(s.image[0, 0]), s.distance or 0) for s in before]
        self.calls.append((int(image[0, 0]), tuple(labels), shown))
        names = {value: name for value, name in NAMES.items() if name in labels}
        if before:
            value_of = {name: value for value, name in before[0].names.items()}
            maps = np.stack([np.where(before[0].mask == value_of[n], 100, -100) for n in labels])
            maps = maps.astype(np.float32)
        else:
            alone = self.alone[int(image[0, 0])]
            rows = [list(alone.names.values()).index(name) for name in labels]
            maps = alone.logits[rows]
        return [SliceSegmentation(mask=merge(maps, list(names)), logits=maps, names=names)]


def test_a_label_starts_where_it_was_found_most_surely() -> None:
    slices = [
        found(0, a=some(12, 1), b=some(3, -4)),  # b all but three pixels
        found(1, a=some(12, 2), b=some(24, -4)),
        found(2, a=some(12, 2)),
        found(3, a=some(2, 9)),  # surer, but an end
    ]
    assert starts(slices) == {"a": 1, "b": 0}
    assert starts([found(0, a=-1.0), found(1, b=-3.0)]) == {}


def test_a_label_starts_where_a_person_pointed_at_it() -> None:
    slices = [found(0, a=9.0, b=9.0), found(1, a=1.0, b=1.0, pointed="a")]
    assert starts(slices) == {"a": 1, "b": 0}
    nothing = [found(0, a=9.0), found(1, a=-1.0, pointed="a")]
    assert starts(nothing) == {"a": 0}


def test_slices_are_visited_outwards_with_their_neighbours() -> None:
    slices = [
        found(i, a=some(12, 3 if i == 2 else 1), b=some(12, 3 if i == 1 else 1)) for i in range(4)
    ]
    segmenter = Follower(slices)
    steps: list[tuple[int, int]] = []
    propagate(
        slices,
        segmenter,
        neighbours=2,
        changes={},
        progress=lambda done, total, message: steps.append((done, total)),
    )
    assert segmenter.calls == [
        (2, ("a",), []),
        (1, ("b",), []),
        (2, ("b",), [(1, 1)]),
        (3, ("a",), [(2, 1)]),
        (3, ("b",), [(2, 1), (1, 2)]),
        (1, ("a",), [(2, 1)]),
        (0, ("a",), [(1, 1), (2, 2)]),
        (0, ("b",), [(1, 1)]),
    ]
    assert steps == [(i, 8) for i in range(1, 9)]


def test_labels_that_see_the_same_neighbours_go_through_together() -> None:
    slices = [found(i, a=some(12, 5.0 - i), b=some(12, 5.0 - i)) for i in range(3)]
    segmenter = Follower(slices)
    propagate(slices, segmenter, neighbours=1, changes={})
    assert segmenter.calls[2:] == [(1, ("a", "b"), [(0, 1)]), (2, ("a", "b"), [(1, 1)])]


def test_only_near_slices_that_know_the_label_are_neighbours() -> None:
    slices = [found(0, a=5.0), found(3, a=1.0), found(4, b=5.0), found(5, a=1.0), found(9, a=1.0)]
    segmenter = Follower(slices)
    propagate(slices, segmenter, neighbours=2, changes={})
    # 0 and 4 are the starts; 3 and 9 are too far from any.
    assert segmenter.calls == [
        *((0, ("a",), []), (4, ("b",), [])),
        *((3, ("a",), []), (5, ("a",), [(3, 2)]), (9, ("a",), [])),
    ]


def test_what_a_slice_shows_with_its_neighbours_replaces_what_it_shows_alone() -> None:
    slices = [found(0, a=some(12, 5)), found(1, a=-10.0)]
    propagate(slices, Follower(slices), neighbours=1, changes={})
    np.testing.assert_allclose(slices[0].result().logits[0], some(12, 5))
    expected = np.where(some(12, 1) > 0, 100, LEAST)
    np.testing.assert_array_equal(slices[1].result().logits[0], expected)
    np.testing.assert_array_equal(slices[1].result().mask, some(12, 1) > 0)


def test_of_two_labels_the_higher_logit_wins_and_is_what_the_next_slice_sees() -> None:
    slices = [
        found(0, a=some(12, 9), b=some(12, 3)),
        found(1, a=-1.0, b=4.0),
        found(2, a=-1.0, b=0.5),
    ]
    propagate(slices, Follower(slices), neighbours=1, changes={})
    # a starts on slice 0, the only one that shows it; b on slice 1, which shows more of it.
    first = some(12, 1) > 0
    np.testing.assert_array_equal(slices[1].result().mask, np.where(first, 1, 2))
    np.testing.assert_array_equal(slices[2].result().mask, np.where(first, 1, 2))


def test_a_label_found_nowhere_is_left_as_it_was() -> None:
    for slices in ([found(0, a=-1.0), found(1, a=-2.0)], []):
        segmenter = Follower(slices)
        propagate(slices, segmenter, neighbours=2, changes={})
        assert segmenter.calls == []


@given(arrays(np.float32, SIZE, elements=st.floats(-1024, 1024, width=32)))
def test_logits_are_kept_but_where_there_is_surely_nothing(logits: NDArray[np.float32]) -> None:
    kept = found(0, a=logits).result().logits[0]
    np.testing.assert_allclose(kept, logits.clip(min=LEAST), rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(kept > 0, logits.astype(np.float16) > 0)


def test_progress_may_cancel() -> None:
    def cancel(done: int, total: int, message: str) -> None:
        if done == 2:
            raise Cancelled("enough")

    slices = [found(i, a=5.0) for i in range(5)]
    segmenter = Follower(slices)
    with pytest.raises(Cancelled, match="enough"):
        propagate(slices, segmenter, neighbours=1, changes={}, progress=cancel)
    assert len(segmenter.calls) == 2


def test_a_network_without_temporal_positions_takes_neighbours_for_supports(
    toys: Any, segmenter: Any
) -> None:
    supports = toys.supports(3)
    query = toys.picture(9)[0]
    with_distance = [*supports[:2], replace(supports[2], distance=1)]
    np.testing.assert_array_equal(
        segmenter.segment(query, with_distance).logits, segmenter.segment(query, supports).logits
    )


def test_neighbours_alone_serve_as_supports(toys: Any, pointer_segmenter: Any) -> None:
    """Where no annotated support counts for a label: nothing of SAM 2's is asked without any."""
    supports = toys.supports(2)
    query = toys.picture(9)[0]
    result = pointer_segmenter.segment(query, [replace(s, distance=1) for s in supports])
    np.testing.assert_array_equal(result.logits, pointer_segmenter.segment(query, supports).logits)


def test_memories_of_neighbours_do_not_go_to_disk(toys: Any, models: Any, tmp_path: Path) -> None:
    segmenter = toys.as_segmenter(models(False))
    segmenter.cache = MemoryCache(folder=tmp_path)
    known, before = toys.supports(2, labels=1)
    segmenter.segment(toys.picture(9)[0], [known, replace(before, distance=1)])
    assert len(segmenter.cache) == 2
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("pointers", [False, True], ids=["micro", "with-pointers"])
def test_a_real_network_follows_a_volume(toys: Any, models: Any, pointers: bool) -> None:
    """Every slice is as if it were segmented with those before it as supports."""
    segmenter = toys.as_segmenter(models(pointers))
    pictures, supports = [toys.picture(seed)[0] for seed in range(30, 34)], toys.supports(2, 1)
    alone = segmenter.segment_batch(pictures, [supports] * 4)
    slices = [
        Found(Member(Slice(index=i, image=picture), supports, {}), result)
        for i, (picture, result) in enumerate(zip(pictures, alone, strict=True))
    ]
    (start,) = starts(slices).values()
    propagate(slices, segmenter, neighbours=2, changes={})
    results = [slice_.result() for slice_ in slices]
    np.testing.assert_array_equal(results[start].mask, alone[start].mask)
    for i, picture in enumerate(pictures):
        if i != start:
            step = 1 if i < start else -1
            behind = range(i + step, start + step, step)[:2]
            shown = [slices[j].as_support(abs(j - i)) for j in behind]
            expected = segmenter.segment(picture, [*supports, *shown])
            np.testing.assert_array_equal(results[i].mask, expected.mask)
            assert not np.array_equal(expected.logits, alone[i].logits)
