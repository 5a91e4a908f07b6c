"""Our memory path against sam2's own `track_step` and `SAM2VideoPredictor`, same random weights.

Parity is that of the plain path: whole pictures, no mirror images, no second look, supports as
frames 0, 1, ... in the order given (`PLAIN`). All weights are random, with fixed seeds.

The logits of `track_step` are met within 1e-4. The predictor differs from `track_step`, and so
from us, in two ways, which its tests keep apart:

- It passes a support's mask through a quarter of the resolution before it encodes it, which
  rounds off corners. The masks of the main test have none and come back unchanged; one more test
  measures this effect alone. (Built as `build_sam2_video_predictor` does it, it then makes the
  mask zeros and ones again.)
- It keeps memories in bfloat16 and is made for autocast to bfloat16. That moves every logit by a
  little, so logits next to 0 change sign. The networks are such that few are: see `clear_case`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from medretrieval.segmentation import load_segmenter
from medretrieval.segmentation.loading import build
from medretrieval.segmentation.micro import MICRO, standardise
from medretrieval.segmentation.registry import REGISTRY
from medretrieval.segmentation.squares import imagenet
from medretrieval.types import Support

# Every option by name: no default, of the options or of a network, decides what is compared.
PLAIN: Any = {
    "crop": "none",
    "flips": False,
    "closer": False,
    "negatives": True,
    "pointers": "rank",
    "memory": "all",
}

TOLERANCE = 1e-4
LEAST_DICE = 0.995
LEAST_DICE_WITH_ITS_MASKS = 0.999
LEAST_DICE_OF_FOLLOWING = 0.975

# The first seeds whose networks pass `assert_clear` in all cases: a property of the float32 logits
# of `track_step` alone.
SEEDS = {"micro": 1, "with-pointers": 2, "hiera-tiny": 12}


def pictures(supports: Sequence[Support], query: NDArray[np.uint8], normalise: Any) -> torch.Tensor:
    """(n + 1, 3, S, S): supports, then query; S x S pictures, so that nothing is resized."""
    stack = torch.from_numpy(np.stack([*(s.image for s in supports), query])).float() / 255
    return normalise(stack[:, None].expand(-1, 3, -1, -1))


@torch.inference_mode()
def by_track_step(
    model: Any, frames: torch.Tensor, supports: Sequence[Support], label: int
) -> torch.Tensor:
    """Logits (S/4, S/4) of the last frame for one label, by `SAM2Base.track_step` alone.

    Supports with a distance are kept as frames that were tracked.
    """
    outputs: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    for index, frame in enumerate(frames):
        _, features, positions, sizes = model._prepare_backbone_features(
            model.forward_image(frame[None])
        )
        support = index < len(supports)
        mask = None
        if support:
            mask = torch.from_numpy(supports[index].mask == label).float()[None, None]
        out = model.track_step(
            frame_idx=index,
            is_init_cond_frame=support,
            current_vision_feats=features,
            current_vision_pos_embeds=positions,
            feat_sizes=sizes,
            point_inputs=None,
            mask_inputs=mask,
            output_dict=outputs,
            num_frames=len(frames),
        )
        prompted = support and supports[index].distance is None
        outputs["cond_frame_outputs" if prompted else "non_cond_frame_outputs"][index] = out
    return out["pred_masks"][0, 0]


def enlarged(low: torch.Tensor, size: int) -> NDArray[np.float32]:
    """(L, S/4, S/4) -> (L, size, size), as the predictor enlarges its logits."""
    return F.interpolate(low[:, None], size=(size, size), mode="bilinear", align_corners=False)[
        :, 0
    ].numpy()


def reference(
    model: Any, frames: torch.Tensor, supports: Sequence[Support], labels: Sequence[int]
) -> NDArray[np.float32]:
    """Logits (L, S, S) of the last frame by `track_step` in float32."""
    low = [by_track_step(model, frames, supports, label) for label in labels]
    return enlarged(torch.stack(low), frames.shape[-1])


def by_video_predictor(
    predictor: Any,
    frames: torch.Tensor,
    supports: Sequence[Support],
    labels: int,
    folder: Path,
    *,
    bfloat16: bool = True,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks (m, L, S, S) of the frames after the supports, and those that the supports' memories
    hold (n, L, S, S).

    Args:
        bfloat16: run under CPU autocast; memories are kept in bfloat16 in any case.
    """
    # As sam2.build_sam.build_sam2_video_predictor sets it.
    predictor.binarize_mask_from_pts_for_mem_enc = True
    size = frames.shape[-1]
    for index in range(len(frames)):
        Image.new("RGB", (size, size)).save(folder / f"{index:05d}.jpg")
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        state = predictor.init_state(str(folder))
        # The predictor reads JPEG files only, which are lossy: give it the very same tensors.
        state["images"] = frames
        state["cached_features"] = {}
        for index, support in enumerate(supports):
            for label in range(1, labels + 1):
                mask = torch.from_numpy(support.mask == label)
                predictor.add_new_mask(state, index, label, mask)
        predictor.propagate_in_video_preflight(state)
        rows = [row["cond_frame_outputs"] for row in state["output_dict_per_obj"].values()]
        if not bfloat16:
            # Outside autocast the rounded memories do not fit the weights' type.
            for out in (out for row in rows for out in row.values()):
                out["maskmem_features"] = out["maskmem_features"].float()
        tracked = []
        for index, ids, logits in predictor.propagate_in_video(state, start_frame_idx=0):
            assert list(ids) == list(range(1, labels + 1))
            if index >= len(supports):
                tracked.append((logits[:, 0] > 0).numpy())
    assert len(supports) + len(tracked) == len(frames)
    held = [
        enlarged(torch.cat([row[index]["pred_masks"][0] for row in rows]).float(), size) > 0
        for index in range(len(supports))
    ]
    return np.stack(tracked), np.stack(held)


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def label_masks(supports: Sequence[Support], labels: int) -> NDArray[np.bool_]:
    """(n, L, S, S)"""
    values = np.arange(1, labels + 1)[:, None, None]
    return np.stack([support.mask == values for support in supports])


def clear_case(
    toys: Any, model: Any, supports: Sequence[Support], labels: int, normalise: Any
) -> tuple[NDArray[np.uint8], torch.Tensor, NDArray[np.float32]]:
    """Set the mask bias of a random network so that bfloat16 turns few signs.

    A random network's logits have one broad peak and no reason to be clear about 0, where rounding
    decides. So the bias goes where fewest logits are, and what came out is asserted. All of it
    looks at `track_step` in float32 only; neither our path nor the predictor has a say.

    Returns:
        The query picture, frames (n + 1, 3, S, S) and the float32 logits (L, S, S).
    """
    size = model.image_size
    query = toys.zoned_picture(1099, size)
    frames = pictures(supports, query, normalise)
    values = range(1, labels + 1)
    offset = toys.part(model, reference(model, frames, supports, values))
    logits = reference(model, frames, supports, values)
    # The masks of the background, in place of a label's, make memories that say the opposite.
    opposite = reference(model, frames, supports, [0])[0] > 0
    assert_clear(logits, offset, opposite)
    for label, row in enumerate(logits):
        for mask in label_masks(supports, labels)[:, label]:
            assert dice(row > 0, mask) < 0.9
    return query, frames, logits


def assert_clear(logits: NDArray[np.float32], offset: float, opposite: NDArray[np.bool_]) -> None:
    """The masks are not trivial, they depend on the memories, and few logits are near 0."""
    # A large bias that the rest of a logit cancels leaves bfloat16 few digits for the difference.
    assert offset < 1.5
    for row in logits:
        assert row.std() > 1
        assert 0.05 < (row > 0).mean() < 0.95
        assert (abs(row) < 0.1 * row.std()).mean() < 0.03
        assert dice(row > 0, opposite) < 0.985


def least_dice(ours: NDArray[np.float32], theirs: NDArray[np.bool_]) -> float:
    """The lowest Dice of a label, its logits (L, S, S) above 0 against its mask."""
    return min(dice(logits > 0, mask) for logits, mask in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("count", [1, 4, 8])
@pytest.mark.parametrize("pointers", [False, True], ids=["micro", "with-pointers"])
def test_logits_are_those_of_track_step(
    toys: Any, models: Callable[..., Any], pointers: bool, count: int, labels: int
) -> None:
    model = models(pointers)
    supports, query = toys.supports(count, labels), toys.picture(99)[0]
    result = toys.as_segmenter(model).segment(query, supports, **PLAIN)
    frames = pictures(supports, query, standardise)
    low = [by_track_step(model, frames, supports, label) for label in range(1, labels + 1)]
    expected = F.interpolate(
        torch.stack(low)[:, None], size=query.shape, mode="bilinear", align_corners=False
    )[:, 0].numpy()
    assert expected.std() > 1
    assert all(0.1 < (logits > 0).mean() < 0.9 for logits in expected)
    np.testing.assert_allclose(result.logits, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("count", [1, 4, 8])
@pytest.mark.parametrize("kind", ["micro", "with-pointers"])
def test_masks_are_those_of_the_video_predictor(
    toys: Any, tmp_path: Path, kind: str, count: int, labels: int
) -> None:
    model, predictor = clear_pair(toys, kind)
    supports = toys.band_supports(count, labels, model.image_size)
    query, frames, _ = clear_case(toys, model, supports, labels, standardise)
    predictor.load_state_dict(model.state_dict())
    result = toys.as_segmenter(model).segment(query, supports, **PLAIN)
    (masks,), held = by_video_predictor(predictor, frames, supports, labels, tmp_path)
    np.testing.assert_array_equal(held, label_masks(supports, labels))
    assert least_dice(result.logits, masks) >= LEAST_DICE


@pytest.mark.parametrize("kind", ["micro", "with-pointers"])
def test_only_the_quarter_resolution_sets_the_predictor_apart(
    toys: Any, tmp_path: Path, kind: str
) -> None:
    """Round masks change on the way into its memories; given those masks, we agree with it."""
    labels = 3
    model, predictor = clear_pair(toys, kind)
    size = model.image_size
    supports = toys.supports(4, labels, (size, size))
    query, frames, _ = clear_case(toys, model, supports, labels, standardise)
    predictor.load_state_dict(model.state_dict())
    (masks,), held = by_video_predictor(
        predictor, frames, supports, labels, tmp_path, bfloat16=False
    )
    given = label_masks(supports, labels)
    assert 0 < (held != given).mean() < 0.01

    segmenter = toys.as_segmenter(model)
    network = segmenter.network
    rows = []
    encodings = network.encode([support.image for support in supports])
    for encoding, before, after in zip(encodings, given, held, strict=True):
        # The predictor makes pointers when a mask is added, before its resolution is reduced.
        pairs = zip(
            network.remember(encoding, before), network.remember(encoding, after), strict=True
        )
        rows.append([replace(theirs, pointer=ours.pointer) for ours, theirs in pairs])
    by_label = list(zip(*rows, strict=True))
    low = network.segment(network.encode([query])[0], by_label, pointers="rank")
    with_theirs = least_dice(enlarged(low, size), masks)
    assert with_theirs >= LEAST_DICE_WITH_ITS_MASKS
    with_given = least_dice(segmenter.segment(query, supports, **PLAIN).logits, masks)
    assert LEAST_DICE <= with_given < with_theirs


def clear_pair(toys: Any, kind: str) -> tuple[Any, Any]:
    """A clear random network of the micro architecture, and a predictor of the same shape."""
    from sam2.modeling.sam2_base import SAM2Base
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    model, predictor = (
        toys.small_model(cls, pointers=kind == "with-pointers", seed=SEEDS[kind], config=MICRO)
        for cls in (SAM2Base, SAM2VideoPredictor)
    )
    toys.make_clear(model)
    return model, predictor


def test_parity_would_notice_the_order_of_pointers(toys: Any, models: Callable[..., Any]) -> None:
    """The tolerance above is finer than what the pointers' frame distances change."""
    model = models(True)
    supports, query = toys.supports(4), toys.picture(99)[0]
    segmenter = toys.as_segmenter(model)
    ranked = segmenter.segment(query, supports, **PLAIN).logits
    turned = segmenter.segment(query, supports[::-1], **PLAIN).logits
    equal = segmenter.segment(query, supports, **{**PLAIN, "pointers": "equal"}).logits
    assert np.abs(ranked - turned).max() > 10 * TOLERANCE
    assert np.abs(ranked - equal).max() > 10 * TOLERANCE


@pytest.mark.slow
def test_hiera_tiny_from_an_official_file(toys: Any, tmp_path: Path) -> None:
    """The real configuration of SAM 2.1 with random weights, through a file as published."""
    spec, size, labels = REGISTRY["sam2.1-hiera-tiny"], 256, 3
    torch.manual_seed(SEEDS["hiera-tiny"])
    random = build(spec, image_size=size)
    toys.make_clear(random)
    # More supports than the package's own limit must not be dropped here either.
    random.max_cond_frames_in_attn = -1
    supports = toys.band_supports(4, labels, size)
    query, frames, expected = clear_case(toys, random, supports, labels, imagenet)

    torch.save({"model": random.state_dict()}, tmp_path / "random.pt")
    segmenter = load_segmenter(checkpoint=tmp_path / "random.pt", image_size=size)
    assert segmenter.name == spec.name
    model = segmenter.network.model
    assert model.use_obj_ptrs_in_encoder
    assert model.max_cond_frames_in_attn == -1
    result = segmenter.segment(query, supports, **PLAIN)
    np.testing.assert_allclose(result.logits, expected, rtol=0, atol=TOLERANCE)

    predictor = build(spec, image_size=size, cls="sam2.sam2_video_predictor.SAM2VideoPredictor")
    predictor.load_state_dict(model.state_dict())
    (masks,), held = by_video_predictor(predictor, frames, supports, labels, tmp_path)
    np.testing.assert_array_equal(held, label_masks(supports, labels))
    assert least_dice(result.logits, masks) >= LEAST_DICE


def test_slices_before_are_the_tracked_frames_of_track_step(
    toys: Any, models: Callable[..., Any]
) -> None:
    """Also where there are more of them than SAM 2 has temporal positions for."""
    model, labels, annotated = models(True), 2, 2
    known, before = toys.supports(annotated, labels), toys.supports(8, labels, first_seed=20)
    assert len(before) >= model.num_maskmem
    query = toys.picture(99)[0]
    # Far ones first, as the frames of a video; ours may come in any order.
    before = [replace(s, distance=len(before) - i) for i, s in enumerate(before)]
    result = toys.as_segmenter(model).segment(query, [*before[::-1], *known], **PLAIN)
    alone = toys.as_segmenter(model).segment(query, known, **PLAIN)
    frames = pictures([*known, *before], query, standardise)
    low = [by_track_step(model, frames, [*known, *before], label) for label in (1, 2)]
    expected = enlarged(torch.stack(low), model.image_size)
    np.testing.assert_allclose(result.logits, expected, rtol=0, atol=TOLERANCE)
    assert np.abs(alone.logits - expected).max() > 1000 * TOLERANCE


def test_following_slices_are_those_that_the_video_predictor_tracks(
    toys: Any, tmp_path: Path
) -> None:
    """Three slices in a row, each segmented with those before it.

    The predictor encodes a tracked frame's logits, one label at a time. We encode the label map.
    """
    labels = 2
    model, predictor = clear_pair(toys, "with-pointers")
    size = model.image_size
    supports = toys.band_supports(4, labels, size)
    first, frames, _ = clear_case(toys, model, supports, labels, standardise)
    predictor.load_state_dict(model.state_dict())
    slices = [first, toys.zoned_picture(1100, size), toys.zoned_picture(1101, size)]
    more = [pictures([], image, standardise) for image in slices[1:]]
    masks, _ = by_video_predictor(predictor, torch.cat([frames, *more]), supports, labels, tmp_path)
    segmenter = toys.as_segmenter(model)
    before: list[Support] = []
    for image, theirs in zip(slices, masks, strict=True):
        before = [replace(support, distance=(support.distance or 0) + 1) for support in before]
        result = segmenter.segment(image, [*supports, *before], **PLAIN)
        assert least_dice(result.logits, theirs) >= LEAST_DICE_OF_FOLLOWING
        before.append(Support(image=image, mask=result.mask, names=result.names, key="before"))
    alone = segmenter.segment(image, supports, **PLAIN)
    assert least_dice(alone.logits, theirs) < LEAST_DICE_OF_FOLLOWING
