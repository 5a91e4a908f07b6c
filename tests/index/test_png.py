"""The PNG encoder against Pillow's decoder."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from medretrieval.errors import IndexFormatError, InputError
from medretrieval.index.png import decode_png, encode_png

SIDES = st.integers(1, 20)
GREY = st.tuples(SIDES, SIDES)
PICTURES = st.one_of(
    hnp.arrays(np.uint8, GREY),
    hnp.arrays(np.uint16, GREY),
    hnp.arrays(np.uint8, st.tuples(SIDES, SIDES, st.just(3))),
)


@given(PICTURES, st.booleans())
def test_pictures_survive(picture: np.ndarray, turned: bool) -> None:
    if turned:
        picture = picture.swapaxes(0, 1)  # not contiguous
    data = encode_png(picture)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == {2: "L", 3: "RGB"}[picture.ndim] or picture.dtype == np.uint16
        np.testing.assert_array_equal(np.asarray(image), picture)
    decoded = decode_png(data, "x", max_side=20)
    assert decoded.dtype == picture.dtype
    np.testing.assert_array_equal(decoded, picture)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((2, 2), np.float32),
        np.zeros((0, 2), np.uint8),
        np.zeros((2, 2, 4), np.uint8),
        np.zeros((2, 2, 3), np.uint16),
        np.zeros(4, np.uint8),
    ],
)
def test_other_arrays_are_refused(picture: np.ndarray) -> None:
    with pytest.raises(InputError, match="cannot be stored"):
        encode_png(picture)


def _pillow(mode: str, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (4, 4)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        encode_png(np.zeros((8, 8), np.uint8))[:-30],
        _pillow("RGBA"),
        _pillow("L", "JPEG"),
        encode_png(np.zeros((9, 1), np.uint8)),
    ],
)
def test_what_is_no_such_picture_is_refused(data: Any) -> None:
    with pytest.raises(IndexFormatError, match="row 3 is not a valid picture"):
        decode_png(data, "row 3", max_side=8)
