from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medretrieval.errors import UsageError
from medretrieval.imaging import POLICIES, Window, apply_window, resolve_window
from medretrieval.imaging import intensity as module


def ct() -> np.ndarray:
    return np.linspace(-1024, 1500, 1000).astype(np.int16).reshape(10, 10, 10)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("ct-lung", -1350, 150),
        ("ct-mediastinum", -125, 225),
        ("ct-abdomen", -160, 240),
        ("ct-bone", -500, 1300),
        ("ct-brain", 0, 80),
        ("ct-wide", -1000, 1000),
    ],
)
def test_ct_windows(name: str, low: float, high: float) -> None:
    window = resolve_window(ct(), name)
    assert (window.low, window.high) == (low, high)
    assert f"{low}..{high}" in POLICIES[name].description
    values = np.array([low - 50, low, (low + high) / 2, high, high + 50], np.float32)
    assert apply_window(values, window).tolist() == [0, 0, 128, 255, 255]


def test_every_policy_resolves() -> None:
    for name in POLICIES:
        out = apply_window(ct(), name)
        assert out.dtype == np.uint8
        assert out.shape == (10, 10, 10)


def test_unknown_policy_has_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean ct-lung"):
        resolve_window(ct(), "ct-lun")


def test_auto_sees_air() -> None:
    assert resolve_window(ct(), "auto") == resolve_window(ct(), "ct-wide")
    assert resolve_window(ct().astype(np.float32), "auto").policy == "ct-wide"


def test_auto_takes_percentiles_of_other_volumes() -> None:
    volume = np.arange(1001, dtype=np.float32).reshape(7, 11, 13)
    window = resolve_window(volume, "auto")
    assert (window.policy, window.low, window.high) == ("percentile", 5.0, 995.0)


@pytest.mark.parametrize(
    ("shape", "kept"), [((9, 8, 1), True), ((9, 8, 1, 3), True), ((9, 8), True), ((9, 8, 7), False)]
)
def test_auto_keeps_eight_bit_pictures_only(shape: tuple[int, ...], kept: bool) -> None:
    picture = (np.arange(np.prod(shape)) % 90).astype(np.uint8).reshape(shape)
    assert (resolve_window(picture, "auto").policy == "identity") is kept
    if kept:
        assert np.array_equal(apply_window(picture, "auto"), picture)


def test_auto_stretches_sixteen_bit_pictures() -> None:
    picture = np.arange(2000, 2100, dtype=np.uint16).reshape(10, 10, 1)
    assert resolve_window(picture, "auto").policy == "percentile"
    assert apply_window(picture, "auto").max() == 255


def test_identity_returns_a_copy() -> None:
    picture = np.arange(4, dtype=np.uint8)
    apply_window(picture, "identity")[0] = 9
    assert picture[0] == 0
    assert apply_window(np.array([-3.0, 7.0, 300.0]), "identity").tolist() == [0, 7, 255]


def test_mostly_background_still_shows_something() -> None:
    volume = np.zeros((20, 20, 20), np.float32)
    volume[0, 0, 0] = 7
    assert apply_window(volume, "percentile")[0, 0, 0] == 255


def test_constant_becomes_black() -> None:
    assert apply_window(np.full((3, 3, 3), 5.0), "percentile").max() == 0


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.float64])
def test_extreme_values_do_not_overflow(dtype: type) -> None:
    info = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
    values = np.array([info.min, info.max], dtype)
    out = apply_window(values, Window(policy="percentile", low=float(info.min),
                                      high=float(info.max)))  # fmt: skip
    assert out.tolist() == [0, 255]


def test_large_offsets_keep_their_contrast() -> None:
    values = 2**40 + np.arange(256, dtype=np.int64)
    assert apply_window(values, "percentile").tolist()[::51] == pytest.approx(
        [0, 51, 102, 153, 204, 255], abs=2
    )


def test_subsampling_is_deterministic_and_close(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = np.random.default_rng(0).normal(size=(40, 40, 40)).astype(np.float32)
    whole = resolve_window(volume, "percentile")
    monkeypatch.setattr(module, "MAX_SAMPLES", 10_000)
    part = resolve_window(volume, "percentile")
    assert part == resolve_window(volume.copy(), "percentile")
    assert part.low == pytest.approx(whole.low, abs=0.2)
    assert part != whole


@given(
    hnp.arrays(np.float32, 50, elements=st.floats(-1e6, 1e6, width=32)),
    st.floats(-1e5, 1e5),
    st.floats(1, 1e5),
)
def test_windowing_is_monotonic_and_matches_the_formula(
    values: np.ndarray, low: float, width: float
) -> None:
    values.sort()
    out = apply_window(values, Window(policy="w", low=low, high=low + width))
    assert (np.diff(out.astype(int)) >= 0).all()
    exact = np.clip((values.astype(np.float64) - low) / width, 0, 1) * 255
    assert np.abs(out - exact).max() <= 0.5 + 255 * np.spacing(np.float32(2e5)) / width + 1e-3
