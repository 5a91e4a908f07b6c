"""EfficientTAM from sam2's classes against numbers of the authors' own package.

The numbers come from efficient-track-anything 1.0 (PyPI: the authors' copy of sam2 with a ViT),
built from `efficienttam_ti.yaml` of github.com/yformer/EfficientTAM at 256 pixels and, for `_1`,
with its `EfficientRoPEAttention1` as cross-attention. Its state dict has the same 455 names and
shapes as ours. Filled by `fill` and driven as in `tracked`, on 2026-11-27 under torch 2.12.1, it
gave the same bits as ours (plain) and the same numbers within 3e-6 (`_1`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medretrieval.errors import InputError
from medretrieval.segmentation import load_segmenter
from medretrieval.segmentation.efficienttam import build_efficienttam
from medretrieval.segmentation.loading import infer_spec
from medretrieval.segmentation.registry import REGISTRY
from medretrieval.segmentation.tokens import choose, grouped

SIZE = 256
# Of the query's logits (64 x 64): mean, deviation, and a diagonal of them.
GOLDEN: dict[str, tuple[float, float, list[float]]] = {
    "plain": (
        0.237782,
        1.228717,
        [2.55548, 2.46487, 2.54625, 2.49466, 2.50612, 2.44391, 2.43152, 2.24196],
    ),
    "_1": (
        0.227707,
        1.248774,
        [2.61681, 2.54515, 2.6325, 2.57459, 2.58011, 2.52216, 2.51672, 2.31129],
    ),
}


@torch.no_grad()
def fill(model: Any) -> None:
    """Weights that depend on the order of the names alone, not on a random number generator."""
    for number, (name, tensor) in enumerate(sorted(model.state_dict().items())):
        index = torch.arange(tensor.numel(), dtype=torch.float64)
        noise = torch.sin(index * 12.9898 + number * 78.233) * 43758.5453
        noise = (noise - noise.floor()) - 0.5
        if tensor.ndim > 1:
            noise = noise * 2 * (3 / tensor[0].numel()) ** 0.5
        else:
            noise = noise * 0.2 + float(name.endswith(("weight", "gamma")))
        if name == "sam_mask_decoder.pred_obj_score_head.layers.2.bias":
            noise = noise + 20  # the object is there
        tensor.copy_(noise.view(tensor.shape).float())


@torch.inference_mode()
def tracked(model: Any) -> torch.Tensor:
    """Logits (64, 64) of a third picture after two with a mask."""
    steps = torch.arange(3 * 3 * SIZE * SIZE, dtype=torch.float64)
    frames = 0.3 * torch.sin(steps * 0.37).view(3, 3, SIZE, SIZE).float()
    ramp = torch.linspace(-1, 1, SIZE)
    frames = frames + ramp[:, None] - 0.5 * ramp
    frames[1] = frames[1].flip(-1)
    mask = torch.zeros(1, 1, SIZE, SIZE)
    mask[..., SIZE // 4 : SIZE // 2, SIZE // 4 : 3 * SIZE // 4] = 1
    outputs: dict[str, dict[int, Any]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    for number, frame in enumerate(frames):
        support = number < 2
        _, features, positions, sizes = model._prepare_backbone_features(
            model.forward_image(frame[None])
        )
        out = model.track_step(
            frame_idx=number,
            is_init_cond_frame=support,
            current_vision_feats=features,
            current_vision_pos_embeds=positions,
            feat_sizes=sizes,
            point_inputs=None,
            mask_inputs=mask if support else None,
            output_dict=outputs,
            num_frames=3,
        )
        if support:
            outputs["cond_frame_outputs"][number] = out
    logits: torch.Tensor = out["pred_masks"][0, 0]
    return logits


@pytest.mark.parametrize("kind", ["plain", "_1"])
def test_logits_are_those_of_the_authors_package(kind: str) -> None:
    model = build_efficienttam(embed_dim=192, depth=12, image_size=SIZE)
    assert len(model.state_dict()) == 455
    fill(model)
    places = torch.zeros(1, 2, SIZE // 16, SIZE // 16, dtype=torch.bool)
    groups = choose(places, "pooled" if kind == "_1" else "all")
    with grouped([layer.cross_attn_image for layer in model.memory_attention.layers], groups):
        logits = tracked(model)
    mean, deviation, diagonal = GOLDEN[kind]
    assert logits.mean().item() == pytest.approx(mean, abs=1e-4)
    assert logits.std().item() == pytest.approx(deviation, abs=1e-4)
    torch.testing.assert_close(logits.diagonal()[::8], torch.tensor(diagonal), atol=1e-4, rtol=0)


def test_a_file_in_the_published_format_segments(toys: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_efficienttam(embed_dim=192, depth=12, image_size=SIZE)
    fill(model)
    path = tmp_path / "efficienttam_ti_512x512.pt"
    torch.save({"model": model.state_dict()}, path)
    segmenter = load_segmenter(checkpoint=path, image_size=64)
    assert segmenter.name == "efficienttam-ti-512"
    supports = toys.supports(2)
    result = segmenter.segment(toys.picture(9)[0], supports)
    assert result.logits.shape == (3, 64, 64)
    pooled = segmenter.segment(toys.picture(9)[0], supports, memory="pooled")
    assert abs(pooled.logits - result.logits).max() > 1e-4


def test_parameters_in_the_registry_are_those_of_the_networks() -> None:
    for name in ("efficienttam-s", "efficienttam-ti-512"):
        spec = REGISTRY[name]
        model = build_efficienttam(embed_dim=spec.embed_dim, depth=spec.blocks, image_size=64)
        millions = sum(weight.numel() for weight in model.parameters()) / 1e6
        assert round(millions, 1) == spec.parameters


def test_edgetam_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "edgetam.pt"
    state = {
        "image_encoder.trunk.body.stem_0.conv.c.weight": torch.ones(1),
        "spatial_perceiver.latents": torch.ones(2, 2),
    }
    torch.save({"model": state}, path)
    with pytest.raises(InputError, match=r"EdgeTAM.*RepViT.*perceiver.*EfficientTAM"):
        load_segmenter(checkpoint=path)


def test_files_of_one_shape_are_told_apart_by_their_published_names() -> None:
    spec = REGISTRY["medsam2"]
    state = {"image_encoder.trunk.patch_embed.proj.weight": torch.ones(spec.embed_dim, 3, 7, 7)}
    for block in range(spec.blocks):
        state[f"image_encoder.trunk.blocks.{block}.norm1.weight"] = torch.ones(1)
    assert infer_spec(state, Path("MedSAM2_latest.pt")) is spec
    assert infer_spec(state, Path("mine.pt")) is REGISTRY["sam2.1-hiera-tiny"]
