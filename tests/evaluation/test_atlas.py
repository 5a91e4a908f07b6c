"""Multi-atlas fusion where the answer is known."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy import ndimage

from medretrieval.errors import UnavailableError, UsageError
from medretrieval.evaluation.atlas import MultiAtlas, local_weight
from medretrieval.metrics.segmentation import dice
from medretrieval.segmentation.prompts import Prompts
from medretrieval.types import Support

SIZE = 72


def scene(shift: tuple[float, float] = (0, 0), scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A bright ellipse beside a dark disc, moved and enlarged; and the mask of the ellipse."""
    y, x = np.indices((SIZE, SIZE)) - SIZE / 2
    y, x = (y - shift[0]) / scale, (x - shift[1]) / scale
    mask = (y / 9) ** 2 + ((x + 8) / 6) ** 2 < 1
    body = (y / 26) ** 2 + (x / 30) ** 2 < 1
    disc = (y + 6) ** 2 + (x - 12) ** 2 < 36
    picture = 20 + 90 * body + 100 * mask - 60 * disc
    return ndimage.gaussian_filter(picture.astype(float), 1).astype(np.uint8), mask


def support(shift: tuple[float, float], scale: float = 1.0, value: int = 1) -> Support:
    picture, mask = scene(shift, scale)
    return Support(
        image=picture,
        mask=(mask * value).astype(np.uint8),
        names={value: "ellipse"},
        key=str(shift),
    )


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip("SimpleITK")


def test_recovers_shift_and_scale() -> None:
    picture, mask = scene()
    moved = support((7, -6), 1.15, value=4)
    assert dice(moved.mask, mask) < 0.6
    (found,) = MultiAtlas().segment_batch([picture], [[moved]])
    assert found.names == {4: "ellipse"}
    assert dice(found.mask, mask) > 0.9


def test_supports_of_other_sizes_and_colour() -> None:
    picture, mask = scene()
    big = support((3, 2))
    big = Support(
        image=np.repeat(np.kron(big.image, np.ones((2, 2), np.uint8))[..., None], 3, axis=2),
        mask=np.kron(big.mask, np.ones((2, 2), np.uint8)),
        names=big.names,
        key="big",
    )
    (found,) = MultiAtlas().segment_batch([picture], [[big, support((-4, 4))]])
    assert found.mask.shape == picture.shape
    assert dice(found.mask, mask) > 0.9


def test_the_same_every_time_and_background_votes() -> None:
    picture, _ = scene()
    empty = Support(image=picture, mask=np.zeros((SIZE, SIZE), np.uint8), names={}, key="empty")
    supports = [support((5, 5), 0.9), empty, empty]
    first, second = MultiAtlas().segment_batch([picture] * 2, [supports] * 2)
    np.testing.assert_array_equal(first.logits, second.logits)
    assert not first.mask.any()


def test_pictures_without_contrast_stay_where_they_are() -> None:
    flat = np.full((SIZE, SIZE), 90, np.uint8)
    (found,) = MultiAtlas().segment_batch([flat], [[support((0, 0))]])
    assert np.isfinite(found.logits).all()


def test_weights_favour_what_is_alike() -> None:
    query = np.zeros((32, 32), np.float32)
    query[:, 16:] = 100
    warped = query.copy()
    warped[:16] += 40
    weight = local_weight(query, warped)
    assert (weight > 0).all()
    assert weight[28].min() > 100 * weight[4].max()


def test_refuses_points_and_no_supports(monkeypatch: pytest.MonkeyPatch) -> None:
    picture, _ = scene()
    with pytest.raises(UsageError, match="cannot follow points"):
        MultiAtlas().segment_batch(
            [picture], [[support((0, 0))]], prompts=[{"ellipse": Prompts(positive=((1, 1),))}]
        )
    with pytest.raises(UsageError, match="empty"):
        MultiAtlas().segment_batch([picture], [[]])
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(UnavailableError, match=r"pip install -r requirements-evaluation\.txt"):
        MultiAtlas().segment_batch([picture], [[support((0, 0))]])
