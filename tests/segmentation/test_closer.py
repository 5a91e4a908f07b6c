from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medretrieval.segmentation.closer import look_closer
from medretrieval.segmentation.crop import Box
from medretrieval.segmentation.labels import SliceSegmentation, merge
from medretrieval.segmentation.segmenter import Segmenter
from medretrieval.types import Support

NAMES = {1: "a", 2: "b"}


def disc(shape: tuple[int, int], row: float, column: float, radius: float) -> NDArray[np.bool_]:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y + 0.5 - row) ** 2 + (x + 0.5 - column) ** 2 < radius**2


def support(shape: tuple[int, int], row: float, column: float, value: int = 1) -> Support:
    mask = disc(shape, row, column, 6).astype(np.uint8) * value
    return Support(image=mask * 100, mask=mask, names=NAMES, key=f"{row} {column}")


def first_pass(*probable: NDArray[np.bool_]) -> SliceSegmentation:
    logits = np.stack([np.where(mask, 4.0, -4.0) for mask in probable]).astype(np.float32)
    return SliceSegmentation(mask=merge(logits, [1, 2]), logits=logits, names=NAMES)


class Second:
    """A second pass that finds what is bright, and remembers what it was shown."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Any], list[Any], list[str]]] = []
        self.prompts: list[Any] = []

    def __call__(
        self,
        images: Sequence[NDArray[np.uint8]],
        supports: Sequence[Sequence[Support]],
        *,
        labels: Sequence[str] | None,
        prompts: Any,
    ) -> list[SliceSegmentation]:
        names = list(labels or ())
        self.prompts.append(prompts)
        self.calls.append((list(images), list(supports), names))
        value = {name: value for value, name in NAMES.items()}[names[0]]
        return [
            SliceSegmentation(
                mask=(image > 50).astype(np.uint8) * value,
                logits=np.where(image > 50, 9.0, -9.0).astype(np.float32)[None],
                names={value: names[0]},
            )
            for image in images
        ]


def test_the_structure_is_put_in_the_middle_of_every_picture() -> None:
    second, truth = Second(), disc((100, 80), 65, 30, 6)
    supports = [support((100, 80), 30, 40), support((50, 60), 25, 35), support((100, 80), 0, 0, 2)]
    # The first pass finds the structure a little off, and something that is not there.
    first = first_pass(disc((100, 80), 63, 31, 6), np.zeros((100, 80), bool))
    (result,) = look_closer(second, [truth.astype(np.uint8) * 100], [supports], [first])
    assert (result.mask > 0).sum() == truth.sum()
    np.testing.assert_array_equal(result.mask == 1, truth)

    ((images, (shown,), labels),) = second.calls
    assert labels == ["a"], "a label that was not found is not looked for again"
    assert images[0].shape == pytest.approx((50, 50), abs=2)
    for picture in (shown[0].mask == 1, shown[1].mask == 1):
        rows, columns = np.nonzero(picture)
        assert rows.mean() + 0.5 == pytest.approx(picture.shape[0] / 2, abs=1.5)
        assert columns.mean() + 0.5 == pytest.approx(picture.shape[1] / 2, abs=1.5)
        assert picture.sum() > 90
    assert shown[2].mask.shape == shown[2].image.shape == pytest.approx(images[0].shape, abs=1)


def test_outside_the_crop_a_label_is_absent() -> None:
    big = disc((100, 100), 30, 30, 8)
    stray = disc((100, 100), 90, 90, 2)
    first = first_pass(big | stray, np.zeros((100, 100), bool))
    (result,) = look_closer(
        Second(), [big.astype(np.uint8) * 100], [[support((100, 100), 50, 50)]], [first]
    )
    assert not (result.mask[stray] > 0).any()
    assert (result.logits[0][stray] < 0).all()
    assert first.logits[0][stray].min() > 0, "the first pass is not changed in place"


def test_both_passes_count_where_the_second_looked() -> None:
    found = disc((60, 60), 30, 30, 6)
    first = first_pass(found, np.zeros((60, 60), bool))
    (result,) = look_closer(
        Second(), [found.astype(np.uint8) * 100], [[support((60, 60), 30, 30)]], [first]
    )
    assert result.logits[0, 30, 30] == pytest.approx(0.25 * 4 + 0.75 * 9)


def test_a_structure_as_large_as_the_picture_stays_as_it_was() -> None:
    second, shape = Second(), (20, 20)
    first = first_pass(disc(shape, 10, 10, 6), np.zeros(shape, bool))
    (result,) = look_closer(
        second, [np.zeros(shape, np.uint8)], [[support(shape, 10, 10)]], [first]
    )
    assert second.calls == []
    np.testing.assert_array_equal(result.logits, first.logits)
    np.testing.assert_array_equal(result.mask, first.mask)


def test_the_size_of_the_crop_does_not_depend_on_the_query() -> None:
    supports = [support((100, 100), 40, 40), support((100, 100), 55, 60)]
    shown = []
    for row in (20, 45, 80):
        second = Second()
        first = first_pass(disc((100, 100), row, row, 4), np.zeros((100, 100), bool))
        look_closer(second, [np.zeros((100, 100), np.uint8)], [supports], [first])
        shown.append([s.image.tobytes() for s in second.calls[0][1][0]])
    assert shown[0] == shown[1] == shown[2], "stored memories would not serve again"


def test_the_segmenter_looks_closer_when_told_to(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, ...]] = []
    encode = segmenter.network.encode

    def seen(pictures: Sequence[NDArray[np.uint8]]) -> Any:
        sizes.extend(picture.shape for picture in pictures)
        return encode(pictures)

    monkeypatch.setattr(segmenter.network, "encode", seen)
    shape, supports = (90, 90), [support((90, 90), 45, 45), support((90, 90), 30, 60)]
    query = (disc(shape, 40, 50, 6) * 100).astype(np.uint8)
    plain = segmenter.segment(query, supports, labels=["a"], crop="none", closer=False)
    assert set(sizes) == {shape}
    assert (plain.logits > 0).any(), "random weights that find something are needed here"
    sizes.clear()
    closer = segmenter.segment(query, supports, labels=["a"], crop="none", closer=True)
    assert any(size[0] < 60 for size in sizes), "no crop was encoded"
    assert closer.logits.shape == plain.logits.shape
    assert not np.array_equal(closer.logits, plain.logits)
    own = Box(0.0, 0.0, 1.0, 1.0)
    boxed = segmenter.segment(query, supports, labels=["a"], crop=own, closer=True)
    np.testing.assert_array_equal(boxed.logits, plain.logits)
