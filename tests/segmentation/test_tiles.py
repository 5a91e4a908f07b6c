from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from medretrieval.errors import UsageError
from medretrieval.segmentation.crop import WHOLE, Box, crop
from medretrieval.segmentation.labels import SliceSegmentation, merge
from medretrieval.segmentation.options import SegmentationOptions
from medretrieval.segmentation.prompts import Prompts
from medretrieval.segmentation.segmenter import Segmenter
from medretrieval.segmentation.tiles import (
    MOST,
    WIDTH,
    blend,
    grid,
    look_in_tiles,
    thickness,
    tiles_for,
)
from medretrieval.types import Support

NAMES = {1: "vessel", 2: "organ"}
sides = st.integers(40, 130)


def stripes(shape: tuple[int, int], width: int, period: int) -> NDArray[np.uint8]:
    column = (np.arange(shape[1]) + period // 2) % period < width
    return np.broadcast_to(column, shape).astype(np.uint8)


def support(mask: NDArray[np.uint8]) -> Support:
    return Support(image=mask * 100, mask=mask, names=NAMES, key=str(mask.shape))


def nothing(shape: tuple[int, int]) -> SliceSegmentation:
    logits = np.full((2, *shape), -4.0, np.float32)
    return SliceSegmentation(mask=merge(logits, [1, 2]), logits=logits, names=NAMES)


class Bright:
    """A pass that finds what is bright, and remembers what it was shown."""

    def __init__(self) -> None:
        self.images: list[Any] = []
        self.supports: list[Any] = []
        self.labels: list[Any] = []
        self.prompts: list[Any] = []

    def __call__(
        self,
        images: Sequence[NDArray[np.uint8]],
        supports: Sequence[Sequence[Support]],
        *,
        labels: Sequence[str] | None,
        prompts: Any,
    ) -> list[SliceSegmentation]:
        self.images += images
        self.supports += supports
        self.labels.append(labels)
        self.prompts += prompts
        return [
            SliceSegmentation(
                mask=(image > 50).astype(np.uint8),
                logits=np.where(image > 50, 9.0, -9.0).astype(np.float32)[None],
                names={1: "vessel"},
            )
            for image in images
        ]


@given(shape=st.tuples(sides, sides), count=st.integers(1, 6))
def test_tiles_cover_every_pixel_and_their_weights_sum_to_one(
    shape: tuple[int, int], count: int
) -> None:
    boxes = grid(count, WHOLE)
    assert len(boxes) == count**2
    picture = np.full(shape, np.nan, np.float32)
    # Parts that are all one: the blend is the sum of the weights over itself.
    blend(picture, [np.ones_like(crop(picture, box)) for box in boxes], boxes)
    np.testing.assert_allclose(picture, 1, atol=1e-6)


@given(shape=st.tuples(sides, sides), count=st.integers(1, 6), seed=st.integers(0, 99))
def test_a_picture_whose_tiles_agree_is_returned_unchanged(
    shape: tuple[int, int], count: int, seed: int
) -> None:
    truth = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    boxes = grid(count, Box(0.125, 0.0, 1.0, 0.75))
    picture = np.full(shape, 7.0, np.float32)
    blend(picture, [crop(truth, box) for box in boxes], boxes)
    inside = np.zeros(shape, bool)
    for box in boxes:
        crop(inside, box)[...] = True
    np.testing.assert_allclose(picture[inside], truth[inside], atol=1e-5)
    assert (picture[~inside] == 7).all(), "outside of the tiles nothing changes"


def test_the_thickness_of_strips_and_discs() -> None:
    for width in (2, 4, 8, 16):
        mask = stripes((96, 96), width, 48)
        assert thickness(mask, WHOLE, 96) == pytest.approx(width, rel=0.15)
        assert thickness(mask, WHOLE, 48) == pytest.approx(width / 2, rel=0.15)
        # Half of the picture on the same grid: everything is twice as large.
        assert thickness(mask, Box(0, 0, 0.5, 0.5), 48) == pytest.approx(width, rel=0.2)
    y, x = np.mgrid[:96, :96]
    disc = np.hypot(y - 48, x - 48) < 24
    assert thickness(disc, WHOLE, 96) == pytest.approx(48 * 2 / 3, rel=0.1)
    assert thickness(np.zeros((9, 9)), WHOLE, 48) == 0
    assert thickness(np.ones((9, 9)), WHOLE, 48) > 0


@given(st.lists(st.floats(0, 100), max_size=8))
def test_enough_tiles_for_the_width(widths: list[float]) -> None:
    count = tiles_for(widths)
    assert 1 <= count <= MOST
    shown = [width for width in widths if width > 0]
    if count < MOST and shown:
        assert np.median(shown) * count >= WIDTH * (1 - 1e-6)


def test_a_thin_label_is_seen_in_tiles_of_picture_and_supports_alike() -> None:
    truth = stripes((240, 200), 2, 20)
    second, first = Bright(), nothing((240, 200))
    supports = [support(stripes((120, 100), 1, 10)), support(stripes((240, 200), 2, 20))]
    (result,) = look_in_tiles(
        second,
        [truth * 100],
        [supports],
        [first],
        3,
        cells=48,
        prompts=[{"vessel": Prompts(positive=((1.0, 2.0),))}],
    )
    np.testing.assert_array_equal(result.mask == 1, truth > 0)
    np.testing.assert_array_equal(result.logits[1], first.logits[1])
    assert second.labels == [["vessel"]]
    assert len(second.images) == 9
    for image, (half, whole) in zip(second.images, second.supports, strict=True):
        np.testing.assert_array_equal(whole.image, image)
        assert np.array(half.mask.shape) == pytest.approx(np.array(image.shape) / 2, abs=1)
    assert second.prompts[0] == {"vessel": Prompts(positive=((1.0, 2.0),))}
    assert not any(second.prompts[1:]), "the point lies in the first tile only"


@pytest.mark.parametrize(("width", "calls"), [(2, 1), (60, 0)])
def test_auto_is_for_thin_labels(width: int, calls: int) -> None:
    truth = stripes((480, 480), width, 120)
    second = Bright()
    look_in_tiles(second, [truth], [[support(truth)]], [nothing(truth.shape)], "auto", cells=48)
    assert len(second.labels) == calls


def test_small_pictures_and_absent_labels_stay_as_they_were() -> None:
    second, small = Bright(), stripes((50, 50), 1, 10)
    (result,) = look_in_tiles(
        second, [small], [[support(small)]], [nothing(small.shape)], 4, cells=48
    )
    empty = np.zeros((200, 200), np.uint8)
    look_in_tiles(second, [empty], [[support(empty)]], [nothing(empty.shape)], 4, cells=48)
    assert not second.labels
    assert not result.mask.any()


def test_a_segmenter_looks_in_tiles_where_told(segmenter: Segmenter) -> None:
    picture = stripes((160, 160), 3, 20) * 200
    supports = [support(stripes((160, 160), 3, 20))]
    plain = segmenter.segment(picture, supports, labels=["vessel"])
    tiled = segmenter.segment(picture, supports, labels=["vessel"], tiles=2)
    assert tiled.logits.shape == plain.logits.shape
    assert not np.array_equal(tiled.logits, plain.logits)
    assert np.isfinite(tiled.logits).all()


@pytest.mark.parametrize("tiles", [0, -1, 17, 1.5, True, None, "some"])
def test_numbers_of_tiles_that_cannot_be(tiles: Any) -> None:
    with pytest.raises(UsageError, match="tiles"):
        SegmentationOptions(tiles=tiles)
