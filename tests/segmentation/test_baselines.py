"""The two baselines, against hand-made label maps."""

from __future__ import annotations

import numpy as np
import pytest

from medretrieval.errors import UsageError
from medretrieval.segmentation.baselines import MaskCopy
from medretrieval.types import Support

IMAGE = np.zeros((4, 6), np.uint8)


def support(columns: range, value: int = 1, name: str = "liver", size: int = 1) -> Support:
    mask = np.zeros((4 * size, 6 * size), np.uint8)
    mask[:, columns.start * size : columns.stop * size] = value
    image = np.zeros(mask.shape, np.uint8)
    return Support(image=image, mask=mask, names={value: name}, key=f"{columns}{name}")


def segment(name: str, supports: list[Support], **options: object) -> np.ndarray:
    (result,) = MaskCopy(name).segment_batch([IMAGE], [supports], **options)
    return result.mask


def test_nearest_copies_the_first_support_at_the_size_of_the_query() -> None:
    mask = segment("nearest-mask", [support(range(0, 2), size=3), support(range(4, 6))])
    np.testing.assert_array_equal(mask[0], [1, 1, 0, 0, 0, 0])


def test_mean_keeps_what_half_of_the_supports_share() -> None:
    supports = [support(range(0, 3)), support(range(2, 4)), support(range(2, 5)), support(range(1))]
    np.testing.assert_array_equal(segment("mean-mask", supports)[0], [1, 0, 1, 1, 0, 0])


def test_labels_are_told_apart_by_name() -> None:
    supports = [support(range(0, 2)), support(range(3, 6), value=1, name="spleen")]
    (result,) = MaskCopy("mean-mask").segment_batch([IMAGE], [supports])
    assert set(result.names.values()) == {"liver", "spleen"}
    value = {name: value for value, name in result.names.items()}
    expected = [value["liver"]] * 2 + [0] + [value["spleen"]] * 3
    np.testing.assert_array_equal(result.mask[0], expected)
    wanted = segment("mean-mask", supports, labels=["spleen"])
    np.testing.assert_array_equal(wanted[0], [0] * 3 + [value["spleen"]] * 3)


def test_no_supports_and_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        segment("mean-mask", [])
    with pytest.raises(UsageError, match="nearest-mask, mean-mask"):
        MaskCopy("median-mask")
