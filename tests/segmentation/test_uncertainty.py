from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from medretrieval.errors import UsageError
from medretrieval.segmentation.baselines import MaskCopy
from medretrieval.segmentation.segmenter import Segmenter
from medretrieval.segmentation.uncertainty import leave_one_out
from medretrieval.types import Support

IMAGE = np.zeros((4, 4), np.uint8)


def copies(masks: Sequence[Any], names: Any = None) -> list[Support]:
    return [
        Support(image=IMAGE, mask=np.array(m, np.uint8), names=names or {1: "a"}, key=f"s:{i}")
        for i, m in enumerate(masks)
    ]


def rows(count: int) -> Any:
    """A mask with the first `count` of 4 rows."""
    return (np.arange(4)[:, None] < count) * np.ones((1, 4), int)


def test_the_score_is_the_mean_dice_with_the_mask_of_all() -> None:
    # "nearest-mask" is the first support's mask; only without it is the mask another.
    supports = copies([rows(2), rows(3), rows(2), rows(2)])
    found = leave_one_out(MaskCopy("nearest-mask"), IMAGE, supports)
    # 8 pixels against 12, 8 of them common: 2 * 8 / 20; three times the same mask.
    assert found.scores == {"a": pytest.approx((0.8 + 3) / 4)}
    np.testing.assert_allclose(found.maps[0, 2], 0.75)
    np.testing.assert_allclose(found.maps[0, [0, 1, 3]], 1.0)
    np.testing.assert_allclose(found.overall(), found.maps[0])


def test_equal_supports_agree_and_nothing_found_is_no_agreement() -> None:
    same = leave_one_out(MaskCopy("mean-mask"), IMAGE, copies([rows(2)] * 3))
    assert same.scores == {"a": 1.0}
    nothing = leave_one_out(MaskCopy("mean-mask"), IMAGE, copies([rows(0)] * 3))
    assert np.isnan(nothing.scores["a"])
    np.testing.assert_allclose(nothing.maps, 1.0)


def test_a_label_of_one_support_only_depends_on_it() -> None:
    supports = [*copies([rows(2)], {1: "b"}), *copies([rows(2)] * 2)]
    found = leave_one_out(MaskCopy("nearest-mask"), IMAGE, supports)
    assert found.scores["b"] == pytest.approx(2 / 3)


def test_one_support_cannot_be_left_out() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        leave_one_out(MaskCopy("mean-mask"), IMAGE, copies([rows(2)]))


def test_a_network_encodes_the_picture_and_each_support_once(
    toys: Any, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    forward = segmenter.network.model.forward_image

    def count(batch: Any) -> Any:
        encoded.append(len(batch))
        return forward(batch)

    monkeypatch.setattr(segmenter.network.model, "forward_image", count)
    image, _ = toys.picture(9)
    steps: list[int] = []
    found = leave_one_out(
        segmenter,
        image,
        toys.supports(4),
        progress=lambda done, total, message: steps.append(done),
        crop="none",
    )
    assert sum(encoded) == 5
    assert steps == [1, 2, 3, 4]
    assert found.maps.shape == (3, 64, 64)
    assert found.maps.dtype == np.float32
    assert all(0 <= score <= 1 for score in found.scores.values())
