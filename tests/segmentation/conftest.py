"""Small random SAM 2 networks whose masks are neither all on nor all off, and toy pictures."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medretrieval.segmentation.micro import WEIGHTS, MicroConfig, build_micro, standardise
from medretrieval.segmentation.options import SegmentationOptions
from medretrieval.segmentation.registry import REGISTRY
from medretrieval.segmentation.sam2_backend import Sam2Network, weights_digest
from medretrieval.segmentation.segmenter import Segmenter
from medretrieval.types import Support

torch.set_num_threads(1)

SMALL = MicroConfig(image_size=64, embed_dim=16, d_model=64, mem_dim=32, feedforward=64)

# The switches of sam2's configs/sam2.1/*.yaml that build_micro leaves off.
AS_SAM2_1 = {
    "num_maskmem": 7,
    "no_obj_embed_spatial": True,
    "multimask_output_in_sam": True,
    "use_obj_ptrs_in_encoder": True,
    "add_tpos_enc_to_obj_ptrs": True,
    "proj_tpos_enc_in_obj_ptrs": True,
    "use_signed_tpos_enc_to_obj_ptrs": True,
    "only_obj_ptrs_in_the_past_for_eval": True,
    "pred_obj_scores": True,
    "pred_obj_scores_mlp": True,
    "fixed_no_obj_ptr": True,
    "multimask_output_for_tracking": True,
    "use_multimask_token_for_obj_ptr": True,
    "multimask_min_pt_num": 0,
    "multimask_max_pt_num": 1,
    "use_mlp_for_obj_ptr_proj": True,
}


def small_model(cls: type, *, pointers: bool, seed: int = 0) -> Any:
    """A random network with (`pointers`) or without SAM 2.1's object pointers and scores."""
    torch.manual_seed(seed)
    extra = AS_SAM2_1 if pointers else {}
    return build_micro(lambda **options: cls(**{**options, **extra}), config=SMALL)


@torch.no_grad()
def make_decisive(model: Any) -> None:
    """Give a random network masks that are half on, half off, and depend on the memories.

    Some weights are made larger, or the memories would hardly count. One channel of the mask
    decoder's upscaled features is made constant, so that the weight of it is a bias of the mask,
    which a random network lacks.
    """
    decoder = model.sam_mask_decoder
    for layer in model.memory_attention.layers:
        attention = layer.cross_attn_image
        for projection, gain in (("k_proj", 3), ("v_proj", 6), ("out_proj", 6)):
            getattr(attention, projection).weight.mul_(gain)
    model.memory_encoder.out_proj.weight.mul_(6)
    if model.proj_tpos_enc_in_obj_ptrs:
        model.obj_ptr_tpos_proj.weight.mul_(5)
    first, _, _, last, _ = decoder.output_upscaling
    first.weight.mul_(4)
    last.weight.mul_(8)
    last.weight[:, 0] = 0
    last.bias[0] = 0
    decoder.conv_s0.weight[0] = 0
    decoder.conv_s0.bias[0] = 10.0
    for mlp in decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.mul_(20)
        mlp.layers[-1].weight[0] = 0
        mlp.layers[-1].bias[0] = 0
    settle(model)
    seen = []
    predict = decoder.predict_masks

    def spy(**inputs: Any) -> Any:
        out = predict(**inputs)
        seen.append(out[0])
        return out

    network = Sam2Network(model, normalise=standardise, digest="")
    support, query = network.encode([toy_picture(seed)[0] for seed in (50, 51)])
    memory = network.remember(support, [toy_picture(50)[1] > 0])
    decoder.predict_masks = spy
    network.segment(query, [memory])
    del decoder.predict_masks
    for i, mlp in enumerate(decoder.output_hypernetworks_mlps):
        mlp.layers[-1].bias[0] = -seen[-1][0, i].median() / 10.0


@torch.no_grad()
def settle(model: Any) -> None:
    """Let objects always count as present and one candidate mask as the best, whatever rounds."""
    decoder = model.sam_mask_decoder
    decoder.iou_prediction_head.layers[-1].bias.copy_(torch.tensor([0.0, 0.0, 4.0, 0.0]))
    if model.pred_obj_scores:
        decoder.pred_obj_score_head.layers[-1].bias.fill_(20.0)


@torch.no_grad()
def shipped_and_shaken(cls: type, *, pointers: bool, seed: int = 0, noise: float = 0.05) -> Any:
    """The shipped weights, each changed at random by some 5 %; what `pointers` adds is random.

    For comparisons of masks: those of a network that is random throughout have so many pixels
    next to the threshold that the rounding of bfloat16 alone moves several per cent of them.
    """
    torch.manual_seed(seed)
    extra = AS_SAM2_1 if pointers else {}
    model = build_micro(lambda **options: cls(**{**options, **extra}))
    own = model.state_dict()
    for name, tensor in load_file(WEIGHTS).items():
        tensor = tensor.float() * (1 + noise * torch.randn(tensor.shape))
        if own[name].shape == tensor.shape:
            own[name].copy_(tensor)
    own["maskmem_tpos_enc"].copy_(load_file(WEIGHTS)["maskmem_tpos_enc"].float())
    if pointers:
        # Only the first mask token is trained in the shipped weights.
        decoder = model.sam_mask_decoder
        decoder.mask_tokens.weight.copy_(decoder.mask_tokens.weight[:1].expand(4, -1))
        for mlp in decoder.output_hypernetworks_mlps[1:]:
            mlp.load_state_dict(decoder.output_hypernetworks_mlps[0].state_dict())
        settle(model)
    return model


def toy_picture(seed: int, shape: tuple[int, int] = (64, 64), labels: int = 3) -> tuple[Any, Any]:
    """A grey picture with a large disc cut into bands of different brightness, and its labels."""
    rng = np.random.default_rng(seed)
    rows, columns = (np.mgrid[: shape[0], : shape[1]] + 0.5) / np.array(shape)[:, None, None]
    centre = rng.uniform(0.44, 0.56, 2)
    radius = rng.uniform(0.38, 0.42)
    band = np.floor((rows - centre[0] + radius) / (2 * radius) * labels).clip(0, labels - 1) + 1
    inside = np.hypot(rows - centre[0], columns - centre[1]) < radius
    mask = np.where(inside, band, 0).astype(np.uint8)
    image = 40 + 55 * mask + 30 * columns + rng.normal(0, 8, shape)
    return image.clip(0, 255).astype(np.uint8), mask


def toy_supports(
    count: int, labels: int = 3, shape: tuple[int, int] = (64, 64), first_seed: int = 0
) -> list[Support]:
    names = {value: f"label {value}" for value in range(1, labels + 1)}
    supports = []
    for seed in range(first_seed, first_seed + count):
        image, mask = toy_picture(seed, shape, labels)
        supports.append(Support(image=image, mask=mask, names=names, key=f"toy:{seed}"))
    return supports


def as_segmenter(model: Any, **options: Any) -> Segmenter:
    network = Sam2Network(model, normalise=standardise, digest=weights_digest(model.state_dict()))
    return Segmenter(network, REGISTRY["sam2-micro"], options=SegmentationOptions(**options))


@pytest.fixture(scope="session")
def toys() -> SimpleNamespace:
    """The functions above, for test modules, which cannot import this file."""
    return SimpleNamespace(
        as_segmenter=as_segmenter,
        make_decisive=make_decisive,
        shipped_and_shaken=shipped_and_shaken,
        picture=toy_picture,
        small_model=small_model,
        supports=toy_supports,
    )


@pytest.fixture(scope="session")
def models() -> Callable[..., Any]:
    """(pointers) -> a decisive random SAM2Base, made once."""
    from sam2.modeling.sam2_base import SAM2Base

    made: dict[bool, Any] = {}

    def get(pointers: bool) -> Any:
        if pointers not in made:
            made[pointers] = small_model(SAM2Base, pointers=pointers)
            make_decisive(made[pointers])
        return made[pointers]

    return get


@pytest.fixture
def segmenter(models: Callable[..., Any]) -> Segmenter:
    """A small random network without object pointers, with an empty cache."""
    return as_segmenter(models(False))


@pytest.fixture
def pointer_segmenter(models: Callable[..., Any]) -> Segmenter:
    """The same with object pointers and scores, as in SAM 2.1."""
    return as_segmenter(models(True))
