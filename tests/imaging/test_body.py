"""The box around the body: never empty, and not moved by borders, letters or tables."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from medretrieval.errors import UsageError
from medretrieval.imaging import (
    ORIENTATIONS,
    body_box,
    embedded_part,
    make_slices,
    read_volume,
    turn,
)
from medretrieval.types import SlicePolicy

SHARED = (Path(__file__).parents[2] / "../shared/data").resolve()


def body(
    shape: tuple[int, int],
    centre: tuple[float, float],
    radii: tuple[float, float],
    *,
    noise: float = 0,
) -> np.ndarray:
    """An ellipse of some texture on a dark background."""
    rows, columns = np.indices(shape)
    inside = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2 < 1
    random = np.random.default_rng(0)
    texture = ndimage.gaussian_filter(random.normal(size=shape), 2) * 60 + 120
    picture = np.where(inside, texture, 0) + noise * np.abs(random.normal(size=shape))
    return np.clip(picture, 0, 255).astype(np.uint8)


def edges(box: tuple[slice, slice]) -> list[int]:
    return [box[0].start, box[0].stop, box[1].start, box[1].stop]


@settings(max_examples=200)
@given(
    hnp.arrays(
        np.uint8,
        st.one_of(
            hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40),
            st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)),
        ),
    )
)
def test_the_box_is_never_empty_and_in_the_picture(picture: np.ndarray) -> None:
    top, bottom, left, right = edges(body_box(picture))
    assert 0 <= top < bottom <= picture.shape[0]
    assert 0 <= left < right <= picture.shape[1]
    part = embedded_part(picture, "body")
    np.testing.assert_array_equal(part, picture[top:bottom, left:right])
    assert part.flags.c_contiguous


@settings(max_examples=60, deadline=None)
@given(
    noise=st.sampled_from([0, 6]),
    size=st.tuples(st.integers(40, 300), st.integers(40, 300)),
    pads=st.tuples(*[st.integers(0, 150)] * 4),
    value=st.sampled_from([0, 3]),
)
def test_borders_around_do_not_change_what_is_shown(
    noise: int, size: tuple[int, int], pads: tuple[int, int, int, int], value: int
) -> None:
    picture = body(size, (size[0] / 2, size[1] / 2), (size[0] * 0.35, size[1] * 0.3), noise=noise)
    around = ((pads[0], pads[1]), (pads[2], pads[3]))
    wider = np.pad(picture, around, constant_values=value)
    np.testing.assert_array_equal(embedded_part(wider, "body"), embedded_part(picture, "body"))


def test_the_body_is_found_in_noise_beside_letters_and_a_table() -> None:
    picture = body((256, 256), (120, 128), (60, 90), noise=5)
    picture[5:13, 5:30] = 255  # letters
    picture[230:232, 20:240] = 200  # a table
    top, bottom, left, right = edges(body_box(picture))
    # The ellipse is 60..180 by 38..218; smoothing and the margin make the box a little larger.
    assert 48 <= top <= 60
    assert 180 <= bottom <= 192
    assert 26 <= left <= 38
    assert 218 <= right <= 230


def test_two_legs_are_one_body() -> None:
    legs = np.maximum(body((200, 200), (100, 55), (40, 30)), body((200, 200), (100, 145), (40, 30)))
    _, _, left, right = edges(body_box(legs))
    assert left <= 27
    assert right >= 173


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((50, 40), np.uint8),
        np.full((50, 40), 200, np.uint8),
        np.zeros((1, 1), np.uint8),
        np.random.default_rng(1).integers(80, 200, (60, 60)).astype(np.uint8),
    ],
    ids=["black", "white", "one pixel", "no background"],
)
def test_all_of_a_picture_without_a_body_or_a_background(picture: np.ndarray) -> None:
    assert edges(body_box(picture)) == [0, picture.shape[0], 0, picture.shape[1]]


def test_colour_counts_where_one_channel_does() -> None:
    red = np.zeros((100, 100, 3), np.uint8)
    red[..., 0] = body((100, 100), (50, 50), (30, 30))
    assert embedded_part(red, "body").shape[2] == 3
    top, bottom, _, _ = edges(body_box(red))
    assert 10 <= top <= 22 < 78 <= bottom <= 90


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_a_turned_picture_shows_the_same_part(name: str) -> None:
    picture = body((150, 120), (70, 50), (40, 30))
    np.testing.assert_array_equal(
        embedded_part(turn(picture, name), "body"), turn(embedded_part(picture, "body"), name)
    )


def test_crop_none_is_the_picture_itself() -> None:
    picture = body((40, 40), (20, 20), (10, 10))
    assert embedded_part(picture, "none") is picture


def test_unknown_crop_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean body"):
        embedded_part(np.zeros((4, 4), np.uint8), "bodi")


@pytest.mark.data
@pytest.mark.skipif(
    not SHARED.exists(), reason="the annotated images beside the project are absent"
)
@pytest.mark.parametrize("organ", ["heart", "hippocampus", "abdomen", "head-neck"])
def test_no_annotated_structure_is_cut_off(organ: str) -> None:
    from medretrieval.imaging import read_labels

    with (SHARED / "volumes.csv").open() as file:
        row = next(r for r in csv.DictReader(file) if r["organ"] == organ)
    volume = read_volume(SHARED / row["path"])
    labels = read_labels(SHARED / row["mask"], reference=volume.grid)
    annotated = 0
    for piece in make_slices(volume, SlicePolicy(), labels=labels):
        assert piece.mask is not None
        assert embedded_part(piece.image, "body").size
        kept = (piece.mask[body_box(piece.image)] > 0).sum()
        assert kept == (piece.mask > 0).sum()
        annotated += int(kept)
    assert annotated
