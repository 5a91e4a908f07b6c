"""Points and boxes: what they mean in pixels, and parity with sam2's own handling of clicks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from medretrieval.errors import UsageError
from medretrieval.segmentation.crop import WHOLE, Box
from medretrieval.segmentation.micro import standardise
from medretrieval.segmentation.prompts import Edit, Prompts, prompts_of, widened
from medretrieval.segmentation.segmenter import Segmenter

PLAIN: Any = {"crop": "none", "flips": False, "closer": False, "pointers": "rank"}
CLICKS = Prompts(positive=((20, 31.5),), negative=((50, 8),))
BOXED = Prompts(positive=((20, 31),), box=(10, 12, 40, 50))
TOLERANCE = 1e-4

places = st.tuples(st.floats(0, 39), st.floats(0, 29))


def tracked(model: Any, frames: torch.Tensor, masks: list[Any], prompts: Prompts) -> torch.Tensor:
    """(S/4, S/4) logits of the last frame by `SAM2Base.track_step`, then corrected by clicks."""
    outputs: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    size = frames.shape[-1]
    at, codes = prompts.for_network((size, size), size)
    points = {
        "point_coords": torch.from_numpy(at)[None],
        "point_labels": torch.from_numpy(codes)[None],
    }

    def step(index: int, **inputs: Any) -> Any:
        _, features, positions, sizes = model._prepare_backbone_features(
            model.forward_image(frames[index][None])
        )
        return model.track_step(
            frame_idx=index,
            current_vision_feats=features,
            current_vision_pos_embeds=positions,
            feat_sizes=sizes,
            output_dict=outputs,
            num_frames=len(frames),
            **inputs,
        )

    with torch.inference_mode():
        for index, mask in enumerate(masks):
            given = torch.from_numpy(mask).float()[None, None]
            outputs["cond_frame_outputs"][index] = step(
                index, is_init_cond_frame=True, point_inputs=None, mask_inputs=given
            )
        if not masks:
            only = step(0, is_init_cond_frame=True, point_inputs=points, mask_inputs=None)
            return only["pred_masks"][0, 0]
        query = {"is_init_cond_frame": False, "mask_inputs": None}
        first = step(len(masks), point_inputs=None, **query)
        second = step(
            len(masks),
            point_inputs=points,
            prev_sam_mask_logits=first["pred_masks"].clamp(-32, 32),
            **query,
        )
        return second["pred_masks"][0, 0]


def frames_of(pictures: list[NDArray[np.uint8]]) -> torch.Tensor:
    stack = torch.from_numpy(np.stack(pictures)).float() / 255
    return standardise(stack[:, None].expand(-1, 3, -1, -1))


@pytest.mark.parametrize("prompts", [CLICKS, BOXED], ids=["clicks", "box"])
@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("pointers", [False, True], ids=["micro", "with-pointers"])
def test_logits_are_those_of_track_step(
    toys: Any, models: Callable[..., Any], pointers: bool, count: int, prompts: Prompts
) -> None:
    model = models(pointers)
    supports, query = toys.supports(count, 2), toys.picture(99)[0]
    segmenter = toys.as_segmenter(model)
    result = segmenter.segment(query, supports, prompts={"label 1": prompts}, **PLAIN)
    frames = frames_of([*(s.image for s in supports), query])
    low = tracked(model, frames, [s.mask == 1 for s in supports], prompts)
    expected = F.interpolate(low[None, None], query.shape, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(result.logits[0], expected[0, 0].numpy(), rtol=0, atol=TOLERANCE)
    if count:
        plain = segmenter.segment(query, supports, **PLAIN)
        np.testing.assert_allclose(result.logits[1], plain.logits[1], rtol=0, atol=TOLERANCE)
        assert np.abs(result.logits[0] - plain.logits[0]).max() > 100 * TOLERANCE


@pytest.mark.parametrize("prompts", [CLICKS, BOXED], ids=["clicks", "box"])
def test_points_alone_give_what_the_video_predictor_gives(
    toys: Any, models: Callable[..., Any], tmp_path: Path, prompts: Prompts
) -> None:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    model, query = models(True), toys.picture(99)[0]
    predictor = toys.small_model(SAM2VideoPredictor, pointers=True)
    predictor.load_state_dict(model.state_dict())
    Image.new("RGB", query.shape).save(tmp_path / "00000.jpg")
    with torch.inference_mode():
        state = predictor.init_state(str(tmp_path))
        state["images"], state["cached_features"] = frames_of([query]), {}
        points = np.array([*prompts.positive, *prompts.negative], np.float32)
        codes = np.array([1] * len(prompts.positive) + [0] * len(prompts.negative), np.int32)
        _, _, logits = predictor.add_new_points_or_box(
            state, 0, 1, points=points, labels=codes, box=prompts.box
        )
    result = toys.as_segmenter(model).segment(query, [], prompts={"x": prompts}, **PLAIN)
    assert result.names == {1: "x"}
    np.testing.assert_allclose(result.logits[0], logits[0, 0].numpy(), rtol=0, atol=TOLERANCE)


def test_a_label_that_no_support_has_comes_from_its_prompts_alone(
    toys: Any, segmenter: Segmenter
) -> None:
    query, supports = toys.picture(9)[0], toys.supports(2, 2)
    both = segmenter.segment(query, supports, prompts={"new": CLICKS}, **PLAIN)
    alone = segmenter.segment(query, [], prompts={"new": CLICKS}, **PLAIN)
    plain = segmenter.segment(query, supports, **PLAIN)
    assert both.names == {1: "label 1", 2: "label 2", 3: "new"}
    np.testing.assert_allclose(both.logits[2], alone.logits[0], atol=TOLERANCE)
    np.testing.assert_allclose(both.logits[:2], plain.logits, atol=TOLERANCE)


def test_a_correction_encodes_nothing_again(
    toys: Any, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, supports = toys.picture(9)[0], toys.supports(3)
    segmenter.segment(query, supports, **PLAIN)
    monkeypatch.setattr(segmenter.network.model, "forward_image", None)
    segmenter.segment(query, supports, prompts={"label 1": CLICKS}, **PLAIN)


@pytest.mark.parametrize("flips", [False, True])
def test_prompts_go_with_the_part_that_is_shown(
    toys: Any, segmenter: Segmenter, flips: bool
) -> None:
    """A crop by hand, and the same crop asked for, with the prompts in its own pixels."""
    query = toys.picture(9)[0]
    box = Box(0.25, 0.125, 1.0, 0.875)
    rows, columns = box.pixels(query.shape)
    given = Prompts(positive=((30, 40),), negative=((12, 60),))
    asked = segmenter.segment(query, [], prompts={"x": given}, crop=box, flips=flips, closer=False)
    part = segmenter.segment(
        np.ascontiguousarray(query[rows, columns]),
        [],
        prompts={"x": Prompts(positive=((22, 24),), negative=((4, 44),))},
        crop="none",
        flips=flips,
        closer=False,
    )
    np.testing.assert_allclose(asked.logits[:, rows, columns], part.logits, atol=TOLERANCE)


def test_a_crop_is_widened_to_what_belongs_to_a_label(toys: Any, segmenter: Segmenter) -> None:
    query, supports = toys.picture(9)[0], toys.supports(2, 1)
    options: Any = {"crop": "supports", "crop_margin": 0.0, "closer": False}
    far = Prompts(positive=((63, 0),))
    result = segmenter.segment(query, supports, prompts={"label 1": far}, **options)
    assert result.logits[0, 0, 63] > -1000
    # Supports are shown to the same scale: as with that box asked for.
    shown = result.logits[0] > -1000
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    box = Box(rows[0] / 64, columns[0] / 64, (rows[-1] + 1) / 64, (columns[-1] + 1) / 64)
    asked = segmenter.segment(query, supports, prompts={"label 1": far}, crop=box, closer=False)
    np.testing.assert_allclose(result.logits, asked.logits, atol=TOLERANCE)


@pytest.mark.parametrize("closer", [False, True])
def test_a_negative_point_elsewhere_changes_nothing(
    toys: Any, segmenter: Segmenter, closer: bool
) -> None:
    query, supports = toys.picture(9)[0], toys.supports(2, 1)
    options: Any = {"crop": "supports", "crop_margin": 0.0, "closer": closer}
    plain = segmenter.segment(query, supports, **options)
    far = {"label 1": Prompts(negative=((63, 0),))}
    assert plain.logits[0, 0, 63] < -0.9
    again = segmenter.segment(query, supports, prompts=far, **options)
    np.testing.assert_allclose(again.logits, plain.logits, atol=TOLERANCE)


def test_the_closer_look_gets_the_prompts(toys: Any, segmenter: Segmenter) -> None:
    query = toys.picture(9)[0]
    supports = [s for s in toys.supports(3, 3)]
    options: Any = {"crop": "none", "flips": False, "closer": True}
    plain = segmenter.segment(query, supports, **options)
    again = segmenter.segment(query, supports, prompts={"label 2": CLICKS}, **options)
    assert np.abs(again.logits[1] - plain.logits[1]).max() > 100 * TOLERANCE
    np.testing.assert_allclose(again.logits[[0, 2]], plain.logits[[0, 2]], atol=TOLERANCE)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"label 1": Prompts(positive=((64, 3),))}, "64 wide"),
        ({"label 1": Prompts(box=(-3, 0, 4, 4))}, "64 wide"),
        ({"other": CLICKS}, "not among the labels asked for"),
    ],
)
def test_prompts_that_cannot_be_are_refused(
    toys: Any, segmenter: Segmenter, prompts: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        segmenter.segment(toys.picture(9)[0], toys.supports(1), labels=["label 1"], prompts=prompts)


def test_neither_supports_nor_prompts(toys: Any, segmenter: Segmenter) -> None:
    with pytest.raises(UsageError, match="support set is empty"):
        segmenter.segment(toys.picture(9)[0], [], prompts={"x": Prompts()})


@pytest.mark.parametrize("box", [(5, 1, 5, 9), (5, 9, 8, 2), (0, 0, float("nan"), 4)])
def test_a_box_without_inside_is_refused(box: Any) -> None:
    with pytest.raises(UsageError, match="expected"):
        Prompts(box=box)


@given(st.lists(places), st.lists(places), st.integers(0, 20), st.integers(1, 19))
def test_a_part_keeps_what_is_inside(
    positive: list[Any], negative: list[Any], start: int, length: int
) -> None:
    prompts = Prompts(positive=tuple(positive), negative=tuple(negative))
    rows, columns = slice(start // 2, start // 2 + length), slice(start, start + length)
    part = prompts.within(rows, columns)
    back = [(x + columns.start, y + rows.start) for x, y in (*part.positive, *part.negative)]
    inside = [
        (x, y)
        for x, y in (*positive, *negative)
        if columns.start - 0.5 <= x <= columns.stop - 0.5
        and rows.start - 0.5 <= y <= rows.stop - 0.5
    ]
    np.testing.assert_allclose(np.array(back), np.array(inside), atol=1e-9)


@given(st.lists(places, max_size=3), st.booleans())
def test_mirroring_twice_changes_nothing(positive: list[Any], boxed: bool) -> None:
    prompts = Prompts(positive=tuple(positive), box=(1, 2, 30, 20) if boxed else None)
    twice = prompts.mirrored(40).mirrored(40)
    np.testing.assert_allclose(np.array(twice.positive), np.array(positive), atol=1e-9)
    assert (twice.box is None) == (prompts.box is None)
    if twice.box is not None and prompts.box is not None:
        np.testing.assert_allclose(twice.box, prompts.box)


@given(st.lists(places, min_size=1, max_size=4))
def test_a_widened_box_holds_every_place(at: list[Any]) -> None:
    prompts = Prompts(positive=tuple(at))
    box = widened(Box(0.4, 0.4, 0.5, 0.5), [prompts], (30, 40))
    rows, columns = box.pixels((30, 40))
    assert prompts.within(rows, columns).positive == tuple(
        (x - columns.start, y - rows.start) for x, y in at
    )
    assert widened(WHOLE, [prompts], (30, 40)) == WHOLE


def test_steps_are_put_together_and_undone_by_dropping_the_last() -> None:
    edits = [
        Edit(label="LV", kind="positive", at=(1, 2)),
        Edit(label="RV", kind="box", at=(0, 0, 5, 5)),
        Edit(label="LV", kind="negative", at=(3, 4)),
        Edit(label="RV", kind="box", at=(1, 1, 6, 6)),
    ]
    assert prompts_of(edits) == {
        "LV": Prompts(positive=((1, 2),), negative=((3, 4),)),
        "RV": Prompts(box=(1, 1, 6, 6)),
    }
    assert prompts_of(edits[:3])["RV"].box == (0, 0, 5, 5)
    assert prompts_of([]) == {}
    with pytest.raises(UsageError, match="expected"):
        Edit(label="LV", kind="box", at=(1, 2))
