"""Features of the parts of pictures: what they are in each family, and where they lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from open_clip.model import _build_vision_tower
from torchvision.models import resnet
from transformers.models.sam.modeling_sam import SamVisionEncoder

from medretrieval.embedders import REGISTRY, EmbedderSpec, load_embedder
from medretrieval.embedders.any_transformers import CLASS_TOKEN, MEAN, POOLED, AnyTransformer
from medretrieval.embedders.base import TorchEmbedder
from medretrieval.embedders.ensemble import Ensemble
from medretrieval.embedders.medclip import MedClip
from medretrieval.embedders.open_clip_models import OpenClipImage
from medretrieval.embedders.preprocess import prepare, seen_box
from medretrieval.embedders.resnets import CVNetGlobal, ResNet
from medretrieval.embedders.sam import Sam
from medretrieval.embedders.timm_models import Ark, TimmModel
from medretrieval.embedders.vision_transformers import Clip, Siglip
from medretrieval.embedders.vision_transformers import ResNet as TransformersResNet
from medretrieval.errors import InputError, UnavailableError
from medretrieval.types import EmbedderIdentity

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
SQUARE = {"image_size": 32, "patch_size": 8}


def spec(name: str = "test", size: int = 32, **changes: Any) -> EmbedderSpec:
    fields: dict[str, Any] = {
        "name": name,
        "input_size": size,
        "resize": "squash",
        "resize_to": size,
        "dim": 32,
        "options": {},
    }
    return dataclasses.replace(REGISTRY["efficientnet-lite0"], **{**fields, **changes})


def identity() -> EmbedderIdentity:
    return EmbedderIdentity(
        name="test",
        weights="random",
        revision="1",
        weights_sha256="0" * 64,
        preprocessing={},
        pooling="test",
        dim=32,
    )


def made(adapter: type[TorchEmbedder], network: Any, size: int = 32, **changes: Any) -> Any:
    """An embedder of a network with random weights in which every tensor counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapter(spec(size=size, **changes), network, identity=identity())


def sam(head: str) -> Any:
    config = transformers.SamVisionConfig(
        hidden_size=32,
        output_channels=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        window_size=3,
        global_attn_indexes=[1],
        mlp_dim=64,
    )
    network: Any = SamVisionEncoder(config)
    if head == "tokens":
        network.neck = torch.nn.Identity()
    options = {"head": head, "vision_config": {}}
    return made(Sam, network, 64, resize="pad-end", options=options)


def medclip(head: str) -> Any:
    config = transformers.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 2, 1],
        num_heads=[1, 2, 4],
        window_size=4,
    )
    network = torch.nn.ModuleDict({"backbone": transformers.SwinModel(config)})
    if head == "projected":
        network["projection"] = torch.nn.Linear(32, 12, bias=False)
    return made(MedClip, network, 64, resize="pad-centre", options={"head": head})


def torchvision_resnet(adapter: type[TorchEmbedder]) -> Any:
    network: Any = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1])
    network.fc = torch.nn.Identity()
    return made(adapter, network, 64)


def transformers_resnet(head: str) -> Any:
    config = transformers.ResNetConfig(
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], embedding_size=8, num_labels=5
    )
    pooled = head == "pooled"
    kind = transformers.ResNetModel if pooled else transformers.ResNetForImageClassification
    return made(TransformersResNet, kind(config), 64, options={"head": head})


def any_swin() -> Any:
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
    )
    return made(AnyTransformer, transformers.SwinModel(config), options={"feature": POOLED})


def any_vit(feature: str) -> Any:
    network = transformers.ViTModel(
        transformers.ViTConfig(**SMALL, **SQUARE), add_pooling_layer=False
    )
    return made(AnyTransformer, network, options={"feature": feature})


def of_timm(name: str, size: int = 64, **arguments: Any) -> Any:
    network = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    return made(TimmModel, network, size)


def ark(*, linear: bool) -> Any:
    network: Any = timm.create_model(
        "swin_tiny_patch4_window7_224",
        pretrained=False,
        num_classes=0,
        img_size=56,
        window_size=7,
        embed_dim=16,
        depths=[1, 1],
        num_heads=[1, 2],
    )
    one = torch.nn.Linear(32, 12)
    two = torch.nn.Sequential(torch.nn.Linear(32, 12), torch.nn.ReLU(), torch.nn.Linear(12, 12))
    network.projector = one if linear else two
    return made(Ark, network, 56, options={"head": "projected"})


def of_open_clip(**changes: Any) -> Any:
    vision = {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8}
    tower = _build_vision_tower(24, {**vision, **changes}, quick_gelu=False)
    size = int(changes.get("image_size", 32))
    return made(OpenClipImage, torch.nn.ModuleDict({"visual": tower}), size)


# Embedder, whether embeddings are means of its parts, shape of its grid.
FAMILIES: dict[str, tuple[Callable[[], Any], bool, tuple[int, int, int]]] = {
    "efficientnet": (lambda: load_embedder("efficientnet-lite0"), True, (7, 7, 1280)),
    "resnet": (lambda: torchvision_resnet(ResNet), True, (2, 2, 2048)),
    "cvnet": (lambda: torchvision_resnet(CVNetGlobal), False, (2, 2, 2048)),
    "transformers-resnet": (lambda: transformers_resnet("pooled"), True, (2, 2, 32)),
    "transformers-logits": (lambda: transformers_resnet("logits"), True, (2, 2, 5)),
    "transformers-probable": (lambda: transformers_resnet("probabilities"), False, (2, 2, 5)),
    "sam": (lambda: sam("tokens"), True, (8, 8, 32)),
    "sam-neck": (lambda: sam("neck"), True, (8, 8, 24)),
    "medclip": (lambda: medclip("backbone"), True, (4, 4, 32)),
    "medclip-projected": (lambda: medclip("projected"), True, (4, 4, 12)),
    "hf-swin": (any_swin, True, (4, 4, 32)),
    "hf-vit": (lambda: any_vit(CLASS_TOKEN), False, (4, 4, 32)),
    "hf-vit-mean": (lambda: any_vit(MEAN), False, (4, 4, 32)),  # the class token counts too
    "timm-resnet": (lambda: of_timm("resnet10t"), True, (2, 2, 512)),
    "timm-mobilenet": (lambda: of_timm("mobilenetv3_small_050"), False, (2, 2, 288)),
    "timm-convnext": (lambda: of_timm("convnext_atto"), False, (2, 2, 320)),
    "timm-vit": (lambda: of_timm("vit_tiny_patch16_224", img_size=64), False, (4, 4, 192)),
    "timm-reg": (
        lambda: of_timm("vit_small_patch14_reg4_dinov2", 56, img_size=56),
        False,
        (4, 4, 384),
    ),
    "ark": (lambda: ark(linear=True), True, (7, 7, 12)),
    "ark-mlp": (lambda: ark(linear=False), False, (7, 7, 32)),
    "clip-of-open-clip": (of_open_clip, False, (4, 4, 24)),
    "average-of-open-clip": (lambda: of_open_clip(pool_type="avg"), True, (4, 4, 24)),
    "resnet-of-open-clip": (
        lambda: of_open_clip(image_size=64, layers=[1, 1, 1, 1], width=8, head_width=8),
        False,
        (2, 2, 256),
    ),
    "coca": (
        lambda: of_open_clip(attentional_pool=True, attn_pooler_heads=4, attn_pooler_queries=6),
        False,
        (4, 4, 48),
    ),
    "timm-of-open-clip": (
        lambda: of_open_clip(
            timm_model_name="resnet10t", timm_pool="avg", timm_proj="linear", image_size=64
        ),
        True,
        (2, 2, 24),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_each_family(family: str, pictures: list[np.ndarray]) -> None:
    make, mean_pooled, shape = FAMILIES[family]
    embedder = make()
    before = embedder.embed_batch(pictures)
    found = embedder.patches(pictures)
    assert found.features.shape == (len(pictures), *shape)
    assert found.features.dtype == np.float32
    assert found.mean_pooled is mean_pooled
    np.testing.assert_array_equal(embedder.embed_batch(pictures), before)  # the same bits
    # Rows are of their own picture, and its parts differ.
    alone = embedder.patches(pictures[3:4])
    rounding = 1e-5 * np.abs(found.features).max()
    np.testing.assert_allclose(alone.features[0], found.features[3], atol=rounding)
    assert alone.features[0].reshape(-1, shape[2]).std(axis=0).max() > 1e-4
    mean = found.features.mean(axis=(1, 2), dtype=np.float64)
    if mean_pooled:
        unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        np.testing.assert_allclose((unit * before).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["dinov2-small-reg", "dinov2-base", "dino-vitb8", "rad-dino", "vit-b16-in21k", "mae-vit-b"],
)
def test_tokens_of_patches_are_those_of_the_library(
    name: str,
    tiny_spec: Callable[..., EmbedderSpec],
    tiny_folder: Callable[[str], Path],
    pictures: list[np.ndarray],
) -> None:
    folder = tiny_folder(name)
    options = {"mask_ratio": 0.0} if name == "mae-vit-b" else {}
    model: Any = transformers.AutoModel.from_pretrained(folder, **options).eval()
    embedder: Any = load_embedder(tiny_spec(name), weights=folder)
    found = embedder.patches(pictures)
    side = embedder.spec.input_size // model.config.patch_size
    assert found.features.shape == (len(pictures), side, side, 32)
    assert not found.mean_pooled
    pixels = torch.from_numpy(prepare(pictures, embedder.spec))
    if name == "mae-vit-b":  # patches are shuffled unless the noise says how
        noise = torch.arange(side**2).float().expand(len(pixels), -1)
        tokens = model(pixels, noise=noise).last_hidden_state
    else:
        tokens = model(pixels).last_hidden_state
    others = 1 + getattr(model.config, "num_register_tokens", 0)
    assert tokens.shape[1] == others + side**2
    expected = tokens[:, others:].detach().numpy().reshape(found.features.shape)
    np.testing.assert_allclose(found.features, expected, atol=2e-5)


@pytest.mark.parametrize("head", ["backbone", "projected"])
def test_tokens_of_clip_are_in_the_space_of_its_feature(
    head: str, pictures: list[np.ndarray]
) -> None:
    config = transformers.CLIPVisionConfig(**SMALL, **SQUARE, projection_dim=20)
    kind = (
        transformers.CLIPVisionModelWithProjection
        if head == "projected"
        else transformers.CLIPVisionModel
    )
    embedder = made(Clip, kind(config), options={"head": head})
    found = embedder.patches(pictures)
    assert found.features.shape == (len(pictures), 4, 4, 20 if head == "projected" else 32)
    pixels = torch.from_numpy(prepare(pictures, embedder.spec))
    with torch.inference_mode():
        # The class token goes the same way: its place shows that the others do.
        feature, token = embedder.forward(pixels), embedder._tokens(pixels)[:, 0]
    np.testing.assert_allclose(token, feature, atol=1e-5)


def test_tokens_of_siglip_are_all_patches(pictures: list[np.ndarray]) -> None:
    config = transformers.SiglipVisionConfig(image_size=36, patch_size=8, **SMALL)
    embedder = made(Siglip, transformers.SiglipVisionModel(config), 36)
    found = embedder.patches(pictures[:1])
    assert found.features.shape == (1, 4, 4, 32)
    # 36 pixels hold four patches of 8; the last four rows and columns are not looked at.
    height, width = pictures[0].shape
    np.testing.assert_allclose(found.boxes[0], [0, 0, height * 32 / 36, width * 32 / 36])


def test_a_part_lies_where_its_pixels_are() -> None:
    embedder: Any = load_embedder("efficientnet-lite0")
    dark = np.zeros((280, 280), np.uint8)
    spot = dark.copy()
    spot[85:115, 185:215] = 255
    found = embedder.patches([dark, spot])
    changed = np.abs(found.features[1] - found.features[0]).sum(axis=-1)
    row, column = np.unravel_index(changed.argmax(), changed.shape)
    top, left, bottom, right = found.boxes[1]
    cell = (bottom - top) / 7
    assert abs(top + (row + 0.5) * cell - 100) <= 1.1 * cell
    assert abs(left + (column + 0.5) * (right - left) / 7 - 200) <= 1.1 * cell


POLICIES = [
    {"resize": "squash", "resize_to": 40},
    {"resize": "squash-crop", "resize_to": 49},
    {"resize": "crop", "resize_to": 51},
    {"resize": "crop", "resize_to": 51, "crop_rounding": "even"},
    {"resize": "pad-end", "resize_to": 40},
    {"resize": "pad-centre", "resize_to": 40},
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: "-".join(map(str, p.values())))
@given(height=st.integers(20, 200), width=st.integers(20, 200))
def test_the_box_is_what_the_network_sees(policy: dict[str, Any], height: int, width: int) -> None:
    one = spec(size=40, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3, interpolation="bilinear")
    one = dataclasses.replace(one, **policy)
    # Every pixel says how far down, or right, it is: what is prepared says where it comes from.
    rows, columns = np.mgrid[20 : height + 20, 20 : width + 20].astype(np.uint8)
    top, left, bottom, right = seen_box(height, width, one)
    for ramp, axis, begin, end, length in (
        (rows, 0, top, bottom, height),
        (columns, 1, left, right, width),
    ):
        shown = prepare([ramp], one)[0, 0].max(axis=1 - axis) - 20
        step = (end - begin) / 40
        centres = begin + (np.arange(40) + 0.5) * step
        inside = (centres > 2 * step + 1) & (centres < length - 2 * step - 1)
        np.testing.assert_allclose(shown[inside], centres[inside] - 0.5, atol=0.6)


def test_what_has_no_parts_says_what_has(pictures: list[np.ndarray]) -> None:
    class Plain(TorchEmbedder):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.mean(dim=(2, 3))

    plain = Plain(spec("plain"), torch.nn.Identity(), identity=identity())
    with pytest.raises(UnavailableError, match=r"plain gives no features .*efficientnet-lite0"):
        plain.patches(pictures)
    with pytest.raises(InputError, match="no pictures"):
        load_embedder("efficientnet-lite0").patches([])  # type: ignore[union-attr]
    assert not hasattr(Ensemble, "patches")


def test_tokens_that_make_no_square_are_refused(pictures: list[np.ndarray]) -> None:
    network = transformers.YolosModel(
        transformers.YolosConfig(
            **SMALL, image_size=[32, 32], patch_size=8, num_detection_tokens=30
        ),
        add_pooling_layer=False,
    )
    embedder = made(AnyTransformer, network, options={"feature": CLASS_TOKEN})
    with pytest.raises(UnavailableError, match="47 tokens"):
        embedder.patches(pictures)
