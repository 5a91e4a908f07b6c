"""What rounding changes: memories as float16, and a network in bfloat16.

The tolerances are stated for the trained network: logits are within `HALF` of those from float32
memories (they span -13 to 7 here) and masks within Dice `HALF_DICE`, for several labels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medretrieval.segmentation import MemoryCache, load_segmenter
from medretrieval.segmentation.segmenter import Segmenter

PLAIN: Any = {"crop": "none", "flips": False, "closer": False, "negatives": True}
HALF, HALF_DICE = 0.01, 0.999
BFLOAT16_DICE = 0.995


def least_dice(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return min(2 * (p & q).sum() / (p.sum() + q.sum()) for p, q in zip(a > 0, b > 0, strict=True))


@pytest.fixture(scope="module")
def micro() -> Segmenter:
    return load_segmenter("sam2-micro")


def test_memories_as_float16(toys: Any, micro: Segmenter, tmp_path: Path) -> None:
    supports, query = toys.supports(5, 3, (96, 96)), toys.picture(99, (96, 96))[0]
    micro.cache = MemoryCache()
    exact = micro.segment(query, supports, **PLAIN).logits
    assert (exact > 0).any((1, 2)).all()
    micro.cache = MemoryCache(half=True, folder=tmp_path)
    made = micro.segment(query, supports, **PLAIN).logits
    assert 0 < np.abs(made - exact).max() < HALF
    assert least_dice(made, exact) >= HALF_DICE
    # From the cache, from files and just made: the same bits.
    np.testing.assert_array_equal(micro.segment(query, supports, **PLAIN).logits, made)
    micro.cache = MemoryCache(half=True, folder=tmp_path)
    np.testing.assert_array_equal(micro.segment(query, supports, **PLAIN).logits, made)


@pytest.mark.parametrize("pointers", [False, True])
def test_float16_memories_of_random_networks(
    toys: Any, models: Callable[..., Any], pointers: bool
) -> None:
    """Object pointers are rounded too."""
    segmenter = toys.as_segmenter(models(pointers))
    supports, query = toys.supports(4), toys.picture(99)[0]
    exact = segmenter.segment(query, supports, **PLAIN).logits
    segmenter.cache = MemoryCache(half=True)
    made = segmenter.segment(query, supports, **PLAIN).logits
    assert 0 < np.abs(made - exact).max() < 0.01 * exact.std()
    assert least_dice(made, exact) >= HALF_DICE


def test_bfloat16(toys: Any, micro: Segmenter) -> None:
    supports, query = toys.supports(5, 3, (96, 96)), toys.picture(99, (96, 96))[0]
    low = load_segmenter("sam2-micro", precision="bfloat16")
    micro.cache = MemoryCache()
    exact = micro.segment(query, supports, **PLAIN).logits
    rounded = low.segment(query, supports, **PLAIN).logits
    assert rounded.dtype == np.float32
    assert np.abs(rounded - exact).max() > HALF
    assert least_dice(rounded, exact) >= BFLOAT16_DICE


def test_memories_of_float32_serve_bfloat16_but_not_the_reverse(toys: Any) -> None:
    supports, query = toys.supports(1), toys.picture(99)[0]
    cache = MemoryCache()
    low = load_segmenter("sam2-micro", precision="bfloat16", cache=cache)
    full = load_segmenter("sam2-micro", cache=cache)
    low.prepare(supports, **PLAIN)
    assert len(cache) == 3
    full.prepare(supports, **PLAIN)
    assert len(cache) == 6
    with_full = low.segment(query, supports, **PLAIN).logits
    assert len(cache) == 6
    cache.clear()
    full.prepare(supports, **PLAIN)
    np.testing.assert_array_equal(low.segment(query, supports, **PLAIN).logits, with_full)
    assert len(cache) == 3


def test_what_bfloat16_gives_out_is_float32(toys: Any) -> None:
    network = load_segmenter("sam2-micro", precision="bfloat16").network
    encoding = network.encode([toys.picture(0)[0]])[0]
    memory = network.remember(encoding, [toys.picture(0)[1] == 1])[0]
    tensors = [*encoding.maps, *encoding.positions, memory.features, memory.pointer]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
