from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medretrieval.errors import UsageError
from medretrieval.segmentation.crop import WHOLE, Box, box_around, crop, uncrop
from medretrieval.segmentation.options import CropPolicy
from medretrieval.segmentation.segmenter import Segmenter

edges = st.tuples(st.integers(0, 47), st.integers(1, 48)).map(
    lambda e: (min(e[0], e[1] - 1) / 48, e[1] / 48)
)
boxes = st.builds(lambda v, h: Box(v[0], h[0], v[1], h[1]), edges, edges)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(boxes, shapes)
def test_uncrop_undoes_crop_pixel_by_pixel(box: Box, shape: tuple[int, int]) -> None:
    numbers = np.arange(1.0, shape[0] * shape[1] + 1).reshape(shape)
    part = crop(numbers, box)
    back = uncrop(part, box, shape, -1.0)
    assert back.shape == shape
    inside = back != -1
    assert inside.sum() == part.size > 0
    np.testing.assert_array_equal(back[inside], numbers[inside])


@given(boxes, shapes)
def test_crop_covers_the_box_and_less_than_a_pixel_more(box: Box, shape: tuple[int, int]) -> None:
    for span, low, high, size in zip(
        box.pixels(shape), (box.top, box.left), (box.bottom, box.right), shape, strict=True
    ):
        assert 0 <= span.start < span.stop <= size
        assert low * size - 1 < span.start <= low * size + 1e-6
        assert high * size - 1e-6 <= span.stop < high * size + 1


@given(st.lists(shapes, max_size=3), st.floats(0, 2), st.data())
def test_box_contains_every_mask(
    given_shapes: list[tuple[int, int]], margin: float, data: st.DataObject
) -> None:
    masks = []
    for height, width in given_shapes:
        mask = np.zeros((height, width), np.uint8)
        row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        mask[row : row + 5, column : column + 3] = 2
        masks.append(mask)
    box = box_around(masks, margin=margin)
    for mask in masks:
        assert crop(mask, box).sum() == mask.sum()
    assert box.bottom - box.top >= 0.25
    assert box.right - box.left >= 0.25


def test_margin_is_a_fraction_of_the_box_on_every_side() -> None:
    mask = np.zeros((160, 320), bool)
    mask[70:90, 140:180] = True
    assert box_around([mask], margin=0) == Box(6 / 16, 6 / 16, 10 / 16, 10 / 16)
    assert box_around([mask], margin=1.0) == Box(5 / 16, 5 / 16, 11 / 16, 11 / 16)
    assert box_around([mask], margin=100.0) == WHOLE


def test_union_is_in_relative_coordinates() -> None:
    small, large = np.zeros((16, 16), bool), np.zeros((160, 160), bool)
    small[4:8, 4:8] = True
    large[100:120, 40:50] = True
    assert box_around([small, large], margin=0) == Box(4 / 16, 4 / 16, 12 / 16, 8 / 16)


def test_empty_masks_mean_the_whole_picture() -> None:
    assert box_around([np.zeros((5, 5), bool)], margin=1) == WHOLE
    assert box_around([], margin=1) == WHOLE


@pytest.mark.parametrize("margin", [-0.1, float("nan"), float("inf")])
def test_bad_margin(margin: float) -> None:
    with pytest.raises(UsageError, match="margin"):
        box_around([], margin=margin)


@pytest.mark.parametrize("box", [(0, 0, 0, 1), (0.5, 0, 0.4, 1), (0, 0, 1, 1.1), (-0.1, 0, 1, 1)])
def test_bad_box(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(UsageError, match="fractions"):
        Box(*box)
    with pytest.raises(UsageError, match="fractions"):
        Box(0, 0, float("nan"), 1)


def test_a_part_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(UsageError, match="does not fill"):
        uncrop(np.zeros((3, 3)), Box(0, 0, 0.5, 0.5), (8, 8), 0)


@pytest.mark.parametrize("policy", ["body", "body+supports"])
def test_a_border_changes_nothing_where_the_body_is_shown(
    toys: Any, segmenter: Segmenter, policy: CropPolicy
) -> None:
    """Query and supports, each with an own black border: the masks are those without borders."""
    query, supports = toys.picture(9)[0], toys.supports(2)
    # The toys' own background is not black; a border of it is what the body stands out from.
    bare = [replace(s, image=np.where(s.mask > 0, s.image, 0)) for s in supports]
    query = np.where(toys.picture(9)[1] > 0, query, 0)
    framed = [
        replace(s, image=np.pad(s.image, pad), mask=np.pad(s.mask, pad))
        for s, pad in zip(bare, (10, 23), strict=True)
    ]
    plain = segmenter.segment(query, bare, crop=policy, closer=False)
    wide = segmenter.segment(np.pad(query, ((5, 17), (31, 2))), framed, crop=policy, closer=False)
    assert 0.05 < (plain.mask > 0).mean() < 0.95
    inner = wide.mask[5:-17, 31:-2]
    assert (inner != plain.mask).mean() < 0.02
    assert wide.mask[:5].max() == wide.mask[:, :31].max() == 0


def _on_sixteenths() -> st.SearchStrategy[Box]:
    spans = st.tuples(st.integers(0, 15), st.integers(1, 16)).map(
        lambda e: (min(e[0], e[1] - 1) / 16, e[1] / 16)
    )
    return st.builds(lambda v, h: Box(v[0], h[0], v[1], h[1]), spans, spans)


@given(_on_sixteenths(), _on_sixteenths())
def test_a_part_of_a_part_is_that_part_of_the_whole(outer: Box, inner: Box) -> None:
    # A picture whose pixels the edges of sixteenths of sixteenths fall on.
    picture = np.arange(256 * 256, dtype=np.int32).reshape(256, 256)
    expected = crop(crop(picture, outer), inner)
    np.testing.assert_array_equal(crop(picture, outer.part(inner)), expected)
    assert outer.relative(outer.part(inner)) == inner
