from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from medretrieval.errors import InputError, UsageError
from medretrieval.segmentation import Box, MemoryCache, SegmentationOptions
from medretrieval.segmentation.labels import ABSENT
from medretrieval.segmentation.segmenter import Segmenter
from medretrieval.segmentation.squares import square_masks
from medretrieval.types import Support


@pytest.fixture
def encoded(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures went through the image encoder, call by call."""
    calls: list[int] = []
    forward = segmenter.network.model.forward_image

    def count(batch: Any) -> Any:
        calls.append(len(batch))
        return forward(batch)

    monkeypatch.setattr(segmenter.network.model, "forward_image", count)
    return calls


def test_shapes_types_and_names(toys: Any, segmenter: Segmenter) -> None:
    query = toys.picture(9, (50, 70))[0]
    result = segmenter.segment(query, toys.supports(2, 3, (40, 90)))
    assert result.mask.shape == (50, 70)
    assert result.mask.dtype == np.uint8
    assert result.logits.shape == (3, 50, 70)
    assert result.logits.dtype == np.float32
    assert result.names == {1: "label 1", 2: "label 2", 3: "label 3"}
    assert set(np.unique(result.mask)) > {0}


def test_a_picture_is_encoded_once_whatever_the_number_of_labels(
    toys: Any, segmenter: Segmenter, encoded: list[int]
) -> None:
    query, supports = toys.picture(9)[0], toys.supports(4)
    first = segmenter.segment(query, supports)
    assert sum(encoded) == 4 + 1
    second = segmenter.segment(query, supports)
    assert sum(encoded) == 4 + 1, "the query is remembered too"
    np.testing.assert_array_equal(first.logits, second.logits)


def test_memories_of_one_label_serve_again_when_others_are_asked_for(
    toys: Any, segmenter: Segmenter, encoded: list[int]
) -> None:
    query, supports = toys.picture(9)[0], toys.supports(2)
    alone = segmenter.segment(query, supports, labels=["label 2"])
    assert sum(encoded) == 3
    together = segmenter.segment(query, supports)
    assert sum(encoded) == 5, "the supports once more, for the labels that are new"
    np.testing.assert_allclose(together.logits[1], alone.logits[0], atol=1e-4)


def test_memories_on_disk_serve_another_segmenter(
    toys: Any, segmenter: Segmenter, encoded: list[int], tmp_path: Path
) -> None:
    query, supports = toys.picture(9)[0], toys.supports(3)
    segmenter.cache = MemoryCache(folder=tmp_path)
    first = segmenter.segment(query, supports)
    another = toys.as_segmenter(segmenter.network.model)
    another.cache = MemoryCache(folder=tmp_path)
    encoded.clear()
    second = another.segment(query, supports)
    assert sum(encoded) == 1
    np.testing.assert_array_equal(first.logits, second.logits)


def test_prepared_supports_cost_a_query_one_encoding(
    toys: Any, segmenter: Segmenter, encoded: list[int]
) -> None:
    supports = toys.supports(3)
    steps: list[tuple[int, int]] = []
    segmenter.prepare(supports, progress=lambda done, total, message: steps.append((done, total)))
    assert steps[-1] == (3, 3)
    assert sum(encoded) == 3
    segmenter.segment(toys.picture(9)[0], supports)
    assert sum(encoded) == 4


def test_a_changed_mask_or_picture_is_not_taken_from_the_cache(
    toys: Any, segmenter: Segmenter
) -> None:
    query, (support,) = toys.picture(9)[0], toys.supports(1)
    first = segmenter.segment(query, [support]).logits
    flipped = replace(support, mask=support.mask[::-1].copy())
    assert np.abs(segmenter.segment(query, [flipped]).logits - first).max() > 0.01
    brighter = replace(support, image=255 - support.image)
    assert np.abs(segmenter.segment(query, [brighter]).logits - first).max() > 0.01


@pytest.mark.parametrize("which", ["segmenter", "pointer_segmenter"])
def test_the_order_of_supports_does_not_matter(
    toys: Any, request: pytest.FixtureRequest, which: str
) -> None:
    segmenter: Segmenter = request.getfixturevalue(which)
    query, supports = toys.picture(9)[0], toys.supports(5)
    first = segmenter.segment(query, supports, pointers="equal")
    other = segmenter.segment(query, [supports[i] for i in (3, 0, 4, 2, 1)], pointers="equal")
    np.testing.assert_array_equal(first.logits, other.logits)


def test_pointers_at_equal_distance_do_not_tell_the_order(
    toys: Any, pointer_segmenter: Segmenter
) -> None:
    network = pointer_segmenter.network
    supports = toys.supports(4)
    query, *encodings = network.encode([toys.picture(9)[0], *(s.image for s in supports)])
    row = [network.remember(e, [s.mask == 1])[0] for e, s in zip(encodings, supports, strict=True)]
    forward = network.segment(query, [row], pointers="equal")
    backward = network.segment(query, [row[::-1]], pointers="equal")
    np.testing.assert_allclose(forward, backward, atol=1e-4)
    ranked = network.segment(query, [row], pointers="rank")
    assert (ranked - forward).abs().max() > 1e-3


def test_colour_pictures(toys: Any, segmenter: Segmenter) -> None:
    query, supports = toys.picture(9)[0], toys.supports(2)
    grey = segmenter.segment(query, supports)
    as_rgb = [replace(s, image=np.repeat(s.image[..., None], 3, 2)) for s in supports]
    rgb = segmenter.segment(np.repeat(query[..., None], 3, 2), as_rgb)
    np.testing.assert_allclose(rgb.logits, grey.logits, atol=1e-4)
    red = np.stack([query, query // 2, query // 4], -1)
    assert np.abs(segmenter.segment(red, supports).logits - grey.logits).max() > 0.01


def test_names_unify_supports_of_different_sources(toys: Any, segmenter: Segmenter) -> None:
    query, (a, b) = toys.picture(9)[0], toys.supports(2, 2)
    swapped = replace(
        b,
        mask=np.array([0, 2, 1], np.uint8)[b.mask],
        names={2: "label 1", 1: "label 2"},
    )
    plain, unified = segmenter.segment(query, [a, b]), segmenter.segment(query, [a, swapped])
    assert unified.names == {1: "label 1", 2: "label 2"}
    np.testing.assert_array_equal(plain.logits, unified.logits)


def test_label_that_no_support_shows_is_absent(
    toys: Any, segmenter: Segmenter, encoded: list[int]
) -> None:
    query, (support,) = toys.picture(9)[0], toys.supports(1)
    named = replace(support, names={**support.names, 9: "tumour"})
    result = segmenter.segment(query, [named])
    assert result.names[9] == "tumour"
    assert (result.logits[3] == ABSENT).all()
    assert not (result.mask == 9).any()
    blank = replace(support, mask=np.zeros_like(support.mask))
    encoded.clear()
    assert not segmenter.segment(query, [blank]).mask.any()
    assert encoded == []


def test_supports_without_the_label_count_as_evidence_unless_told_otherwise(
    toys: Any, segmenter: Segmenter
) -> None:
    query, (a, b) = toys.picture(9)[0], toys.supports(2, 1)
    without = replace(b, mask=np.zeros_like(b.mask))
    with_negative = segmenter.segment(query, [a, without], negatives=True).logits
    left_out = segmenter.segment(query, [a, without], negatives=False).logits
    np.testing.assert_array_equal(left_out, segmenter.segment(query, [a]).logits)
    assert np.abs(with_negative - left_out).max() > 0.01


def test_labels_with_different_supports(toys: Any, segmenter: Segmenter) -> None:
    query, (a, b) = toys.picture(9)[0], toys.supports(2, 2)
    only_first = replace(b, mask=np.where(b.mask == 1, b.mask, 0))
    both = segmenter.segment(query, [a, only_first], negatives=False)
    one = segmenter.segment(query, [a], labels=["label 2"])
    np.testing.assert_allclose(both.logits[1], one.logits[0], atol=1e-4)


def test_mirrored_pair_gives_the_mirrored_mask_with_flips(toys: Any, segmenter: Segmenter) -> None:
    query, supports = toys.picture(9)[0], toys.supports(2)
    mirrored = [
        replace(s, image=s.image[:, ::-1].copy(), mask=s.mask[:, ::-1].copy()) for s in supports
    ]
    straight = segmenter.segment(query, supports, flips=True).logits
    turned = segmenter.segment(query[:, ::-1].copy(), mirrored, flips=True).logits
    np.testing.assert_allclose(turned[:, :, ::-1], straight, atol=1e-4)
    assert np.abs(segmenter.segment(query, supports).logits - straight).max() > 0.01


def test_a_threshold_below_one_half_finds_more(toys: Any, segmenter: Segmenter) -> None:
    query, supports = toys.picture(9)[0], toys.supports(3)
    half = segmenter.segment(query, supports, labels=["label 1"])
    lower = segmenter.segment(query, supports, labels=["label 1"], threshold=0.2)
    np.testing.assert_allclose(lower.logits, half.logits + np.log(4), atol=1e-4)
    np.testing.assert_array_equal(lower.mask > 0, half.logits[0] > -np.log(4))
    assert (lower.mask > 0).sum() > (half.mask > 0).sum()
    for threshold in (0.0, 1.0, -2.0, float("nan")):
        with pytest.raises(UsageError, match="threshold"):
            segmenter.segment(query, supports, threshold=threshold)


def test_crop_is_the_same_as_cropped_pictures(toys: Any, segmenter: Segmenter) -> None:
    query, supports = toys.picture(9, (80, 60))[0], toys.supports(2, 2, (40, 40))
    box = Box(0.25, 0.25, 0.75, 0.75)
    result = segmenter.segment(query, supports, crop=box)
    cut = [
        replace(s, image=s.image[10:30, 10:30].copy(), mask=s.mask[10:30, 10:30].copy())
        for s in supports
    ]
    expected = segmenter.segment(query[20:60, 15:45].copy(), cut)
    np.testing.assert_array_equal(result.logits[:, 20:60, 15:45], expected.logits)
    outside = np.ones((80, 60), bool)
    outside[20:60, 15:45] = False
    assert (result.logits[:, outside] == ABSENT).all()
    assert not result.mask[outside].any()


def test_crop_to_supports_keeps_away_from_the_rest(toys: Any, segmenter: Segmenter) -> None:
    query, (support,) = toys.picture(9)[0], toys.supports(1, 1)
    mask = np.zeros_like(support.mask)
    mask[4:12, 4:12] = 1
    result = segmenter.segment(query, [replace(support, mask=mask)], crop="supports")
    assert (result.logits[0, :20, :20] > ABSENT).all()
    assert (result.logits[0, 20:] == ABSENT).all()
    wide = segmenter.segment(
        query, [replace(support, mask=mask)], crop="supports", crop_margin=50.0
    )
    assert (wide.logits > ABSENT).all()


def test_batch_equals_one_by_one(toys: Any, segmenter: Segmenter, encoded: list[int]) -> None:
    queries = [toys.picture(seed, (64, 48))[0] for seed in range(20, 25)]
    pool = toys.supports(6)
    sets = [pool[i : i + 2] for i in range(5)]
    single = [segmenter.segment(q, s).logits for q, s in zip(queries, sets, strict=True)]
    encoded.clear()
    steps: list[int] = []
    batch = toys.as_segmenter(segmenter.network.model).segment_batch(
        queries, sets, progress=lambda done, total, message: steps.append(done)
    )
    assert [step for step in steps if step] == [1, 2, 3, 4, 5]
    assert sum(encoded) == 6 + 5
    for one, other in zip(single, batch, strict=True):
        np.testing.assert_allclose(other.logits, one, atol=1e-4)


def test_tiny_structures_stay_in_the_memory(toys: Any, segmenter: Segmenter) -> None:
    image = toys.picture(1, (512, 512))[0]
    mask = np.zeros((512, 512), bool)
    mask[200, 300] = True
    assert square_masks([mask], segmenter.network.image_size).sum() >= 1
    assert square_masks([np.zeros_like(mask)], segmenter.network.image_size).sum() == 0
    assert segmenter.segment(image, toys.supports(1)).mask.shape == (512, 512)


def test_more_labels_than_go_through_at_once(
    toys: Any, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, supports = toys.picture(9)[0], toys.supports(2)
    together = segmenter.segment(query, supports).logits
    monkeypatch.setattr(segmenter.network, "_limit", lambda table: 1)
    segmenter.cache.clear()
    np.testing.assert_allclose(segmenter.segment(query, supports).logits, together, atol=1e-4)


def test_many_threads_get_what_one_gets(toys: Any, segmenter: Segmenter) -> None:
    queries, supports = [toys.picture(seed)[0] for seed in range(30, 34)], toys.supports(2)
    expected = [segmenter.segment(query, supports).mask for query in queries]
    segmenter.cache.clear()
    found: dict[int, Any] = {}

    def work(i: int) -> None:
        found[i] = segmenter.segment(queries[i], supports).mask

    threads = [Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, mask in enumerate(expected):
        assert (found[i] != mask).mean() < 0.01


def test_wrong_use(toys: Any, segmenter: Segmenter) -> None:
    query, supports = toys.picture(9)[0], toys.supports(1)
    with pytest.raises(UsageError, match="support set is empty"):
        segmenter.segment(query, [])
    with pytest.raises(UsageError, match="no support has a label 'liver'"):
        segmenter.segment(query, supports, labels=["liver"])
    with pytest.raises(UsageError, match="2 pictures, 1 support sets"):
        segmenter.segment_batch([query, query], [supports])
    with pytest.raises(InputError, match="picture to segment"):
        segmenter.segment(query.astype(np.float32), supports)
    bad = replace(supports[0], mask=supports[0].mask[:-1])
    with pytest.raises(InputError, match="toy:0"):
        segmenter.segment(query, [bad])
    with pytest.raises(UsageError, match="crop 'head'"):
        segmenter.segment(query, supports, crop="head")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="pointers 'none'"):
        SegmentationOptions(pointers="none")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="crop_margin"):
        segmenter.segment(query, supports, crop_margin=-1)


def test_a_support_may_be_given_twice(toys: Any, segmenter: Segmenter) -> None:
    (support,) = toys.supports(1)
    twice: list[Support] = [support, support]
    assert segmenter.segment(toys.picture(9)[0], twice).logits.shape[0] == 3
