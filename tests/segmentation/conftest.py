"""Small random SAM 2 networks whose masks are neither all on nor all off, and toy pictures."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medretrieval.segmentation.micro import MicroConfig, build_micro, standardise
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


def small_model(cls: type, *, pointers: bool, seed: int = 0, config: MicroConfig = SMALL) -> Any:
    """A random network with (`pointers`) or without SAM 2.1's object pointers and scores."""
    torch.manual_seed(seed)
    extra = AS_SAM2_1 if pointers else {}
    return build_micro(lambda **options: cls(**{**options, **extra}), config=config)


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
def make_clear(model: Any) -> None:
    """As `make_decisive`, with masks in zones as large as those of the picture.

    Random transposed convolutions draw a checkerboard over the logits. Here all positions of a
    kernel have one weight, so a zone of the picture keeps to one side of the threshold.
    """
    make_decisive(model)
    first, _, _, last, _ = model.sam_mask_decoder.output_upscaling
    for layer in (first, last):
        layer.weight.copy_(2 * layer.weight.mean((2, 3), keepdim=True).expand_as(layer.weight))


@torch.no_grad()
def part(model: Any, logits: NDArray[np.float32]) -> float:
    """Move the mask bias of a decisive network so that few of `logits` (L, S, S) are near 0.

    Returns:
        How far the bias then moves the logits, in their standard deviations.
    """
    places = np.quantile(logits, np.linspace(0.2, 0.8, 61))
    even = [p for p in places if all(0.15 < (label > p).mean() < 0.85 for label in logits)]
    places = even or list(places)
    width = 0.1 * logits.std()
    crowds = [max((abs(label - place) < width).mean() for label in logits) for place in places]
    place = float(places[int(np.argmin(crowds))])
    mlps = model.sam_mask_decoder.output_hypernetworks_mlps
    for mlp in mlps:
        mlp.layers[-1].bias[0] -= place / 10.0
    # `settle` makes candidate 2 the best, where there are candidates.
    used = mlps[2 if model.multimask_output_in_sam else 0]
    return abs(10.0 * used.layers[-1].bias[0].item()) / float(logits.std())


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


def zoned_picture(seed: int, size: int) -> NDArray[np.uint8]:
    """Three evenly grey ellipses on a grey slope: pixels are of few kinds."""
    rng = np.random.default_rng(seed)
    rows, columns = (np.mgrid[:size, :size] + 0.5) / size
    image = np.full((size, size), rng.uniform(40, 80))
    for _ in range(3):
        (y, x), (a, b) = rng.uniform(0.2, 0.8, 2), rng.uniform(0.15, 0.35, 2)
        image[np.hypot((rows - y) / a, (columns - x) / b) < 1] = rng.uniform(100, 250)
    return (image + 20 * columns).clip(0, 255).astype(np.uint8)


def band_mask(seed: int, labels: int, size: int) -> NDArray[np.uint8]:
    """Adjacent bands from side to side, one a label; every edge is on a multiple of size / 16."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.choice(np.arange(2, 15), labels + 1, replace=False)) * (size // 16)
    line = np.zeros(size, np.uint8)
    for label, start, stop in zip(rng.permutation(labels) + 1, cuts[:-1], cuts[1:], strict=True):
        line[start:stop] = label
    bands = np.broadcast_to(line, (size, size))
    return np.ascontiguousarray(bands if seed % 2 else bands.T)


def band_supports(count: int, labels: int, size: int) -> list[Support]:
    """Zoned pictures with masks that have no corners, and their edges on multiples of 4 pixels."""
    names = {value: f"label {value}" for value in range(1, labels + 1)}
    return [
        Support(
            image=zoned_picture(1000 + seed, size),
            mask=band_mask(seed, labels, size),
            names=names,
            key=f"bands:{seed}",
        )
        for seed in range(count)
    ]


def as_segmenter(model: Any, **options: Any) -> Segmenter:
    network = Sam2Network(model, normalise=standardise, digest=weights_digest(model.state_dict()))
    return Segmenter(network, REGISTRY["sam2-micro"], options=SegmentationOptions(**options))


@pytest.fixture(scope="session")
def toys() -> SimpleNamespace:
    """The functions above, for test modules, which cannot import this file."""
    return SimpleNamespace(
        as_segmenter=as_segmenter,
        band_supports=band_supports,
        make_clear=make_clear,
        part=part,
        picture=toy_picture,
        small_model=small_model,
        supports=toy_supports,
        zoned_picture=zoned_picture,
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
