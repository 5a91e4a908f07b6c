from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from medretrieval.errors import InputError, UsageError
from medretrieval.segmentation.micro import (
    WEIGHTS,
    build_micro,
    load_micro,
    set_image_size,
    standardise,
)


def test_it_is_a_small_sam2_that_keeps_every_support() -> None:
    from sam2.modeling.sam2_base import SAM2Base

    model = build_micro()
    assert type(model) is SAM2Base
    assert not model.training
    assert 2_000_000 < sum(p.numel() for p in model.parameters()) < 5_000_000
    assert model.max_cond_frames_in_attn == -1


def test_it_can_be_built_as_a_video_predictor() -> None:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    model = build_micro(SAM2VideoPredictor, image_size=64)
    assert isinstance(model, SAM2VideoPredictor)
    assert model.image_size == 64


@pytest.mark.parametrize("size", [64, 128, 192, 256])
def test_the_weights_serve_every_size(size: int) -> None:
    model = build_micro(image_size=128)
    set_image_size(model, size)
    with torch.inference_mode():
        _, features, positions, sizes = model._prepare_backbone_features(
            model.forward_image(torch.randn(1, 3, size, size))
        )
        out = model.track_step(
            frame_idx=0,
            is_init_cond_frame=True,
            current_vision_feats=features,
            current_vision_pos_embeds=positions,
            feat_sizes=sizes,
            point_inputs={
                "point_coords": torch.full((1, 1, 2), size / 2),
                "point_labels": torch.ones(1, 1, dtype=torch.int32),
            },
            mask_inputs=None,
            output_dict={"cond_frame_outputs": {}, "non_cond_frame_outputs": {}},
            num_frames=1,
        )
    assert out["pred_masks"].shape == (1, 1, size // 4, size // 4)
    assert out["pred_masks_high_res"].shape == (1, 1, size, size)


@pytest.mark.parametrize("size", [0, -32, 100, 144])
def test_a_size_that_does_not_fit_the_strides_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match="multiple of 32"):
        build_micro(image_size=size)
    with pytest.raises(UsageError, match="multiple of 32"):
        set_image_size(build_micro(), size)


def test_standardise_takes_brightness_and_contrast_away() -> None:
    pictures = torch.rand(3, 3, 32, 32)
    plain = standardise(pictures)
    assert torch.allclose(plain, standardise(pictures * 200 + 30), atol=1e-3)
    assert plain.mean((1, 2, 3)).abs().max() < 1e-3
    assert standardise(torch.full((1, 3, 32, 32), 7.0)).abs().max() == 0
    spike = torch.zeros(1, 3, 32, 32)
    spike[..., 0, 0] = 1e6
    assert standardise(spike).max() == 3


def test_the_bundled_weights_load_in_float32_and_hold_only_numbers() -> None:
    model = load_micro(image_size=64)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    assert WEIGHTS.stat().st_size < 20e6
    with safe_open(WEIGHTS, "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
    card = WEIGHTS.with_suffix(".md").read_text()
    assert "Research use only. Not for diagnosis." in card


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read weights"):
        load_micro(tmp_path / "absent.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a safetensors file")
    with pytest.raises(InputError, match="expected a safetensors file"):
        load_micro(broken)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="another network"):
        load_micro(tmp_path / "other.safetensors")
