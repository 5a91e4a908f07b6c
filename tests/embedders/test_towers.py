"""CLIP, SigLIP, DINOv3 and ResNet against the transformers library, with small random networks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from published import for_small_pictures
from safetensors.torch import load_file, save_file

from medretrieval.embedders import REGISTRY, EmbedderSpec, load_embedder
from medretrieval.errors import InputError

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
TEXT = {**SMALL, "vocab_size": 60, "max_position_embeddings": 12}

# Length of the tiny network's feature, and its size of input, for every row.
TINY = {
    "clip-vit-l14": (32, 28),
    "clip-vit-l14-projected": (24, 28),
    "medsiglip-448": (32, 28),
    "dinov3-vits16": (32, 32),
    "resnet50": (10, 32),
    "resnet50-logits": (10, 32),
    "resnet50-pooled": (48, 32),
}
NAMES = list(TINY)

Folder = Callable[[str], Path]


def _spec(name: str, **changes: Any) -> EmbedderSpec:
    spec = REGISTRY[name]
    dim, size = TINY[name]
    # As 224 to 256 for ResNet, whose processor wants 87.5 % of what it resizes to.
    resize_to = int(size / 0.875) if name.startswith("resnet") else size
    return dataclasses.replace(
        spec, **{"dim": dim, "input_size": size, "resize_to": resize_to, **changes}
    )


def _network(family: str) -> transformers.PreTrainedModel:
    if family == "Clip":
        vision = {**SMALL, "image_size": 28, "patch_size": 14}
        config = transformers.CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=24)
        return transformers.CLIPModel(config)
    if family == "Siglip":
        vision = {**SMALL, "image_size": 28, "patch_size": 14}
        text = {**TEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        return transformers.SiglipModel(
            transformers.SiglipConfig(text_config=text, vision_config=vision)
        )
    if family == "Dinov3":
        # Used at another size than it was trained at.
        config = transformers.DINOv3ViTConfig(
            image_size=64, patch_size=16, num_register_tokens=4, **SMALL
        )
        return transformers.DINOv3ViTModel(config)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32, 40, 48], depths=[1, 2, 1, 1], num_labels=10
    )
    return transformers.ResNetForImageClassification(config)


def _processor(family: str, spec: EmbedderSpec) -> Any:
    """The image processor of the published repository, Pillow-backed where there is such a one."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.convnext.image_processing_pil_convnext import (
        ConvNextImageProcessorPil,
    )
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    processors: dict[str, Any] = {
        "Clip": CLIPImageProcessorPil,
        "Siglip": SiglipImageProcessorPil,
        "Dinov3": transformers.DINOv3ViTImageProcessor,  # there is no other than torchvision's
        "ResNet": ConvNextImageProcessorPil,
    }
    return processors[family].from_dict(for_small_pictures(spec.weights, spec.input_size))


def _family(name: str) -> str:
    return REGISTRY[name].adapter.partition(":")[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        family = _family(name)
        if family not in made:
            torch.manual_seed(0)
            model = _network(family)
            with torch.no_grad():  # fresh norms and biases are trivial: make every tensor count
                for key, tensor in model.state_dict().items():
                    if tensor.is_floating_point():
                        noise = torch.randn_like(tensor)
                        tensor.add_(0.1 * (noise.abs() if "running_var" in key else noise))
            made[family] = tmp_path_factory.mktemp(family)
            model.save_pretrained(made[family])
            _processor(family, _spec(name)).save_pretrained(made[family])
        return made[family]

    return get


def _reference(name: str, model: Any, pixels: torch.Tensor) -> np.ndarray:
    family, head = _family(name), REGISTRY[name].options.get("head")
    with torch.inference_mode():
        if family == "Clip":
            pooled = model.vision_model(pixel_values=pixels).pooler_output
            features = model.visual_projection(pooled) if head == "projected" else pooled
        elif family == "Siglip":
            features = model.get_image_features(pixel_values=pixels).pooler_output
        elif family == "Dinov3":
            features = model(pixel_values=pixels).last_hidden_state[:, 0]
        elif head == "pooled":
            features = model.resnet(pixel_values=pixels).pooler_output.flatten(1)
        else:
            features = model(pixel_values=pixels).logits
            features = features.softmax(-1) if head == "probabilities" else features
    return features[0].numpy()


def _load(name: str, folder: Path, **changes: Any) -> Any:
    return load_embedder(_spec(name, **changes), weights=folder)


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_library(name: str, folder: Folder, pictures: list[np.ndarray]) -> None:
    where = folder(name)
    model = type(_network(_family(name))).from_pretrained(where).eval()
    processor = _processor(_family(name), _spec(name))
    embedder = _load(name, where)
    # torchvision resizes in floating point: noise that is made small differs by rounding.
    shown = pictures if name != "dinov3-vits16" else [p for p in pictures if p.shape[1] != 173]
    for row, picture in zip(embedder.embed_batch(shown), shown, strict=True):
        inputs = processor(Image.fromarray(picture).convert("RGB"), return_tensors="pt")
        expected = _reference(name, model, inputs["pixel_values"])
        assert row @ expected / np.linalg.norm(expected) > 0.9999


@pytest.mark.parametrize("name", NAMES)
def test_rows_depend_on_their_picture_alone(
    name: str, folder: Folder, pictures: list[np.ndarray]
) -> None:
    embedder = _load(name, folder(name))
    alone = np.concatenate([embedder.embed_batch([picture]) for picture in pictures])
    order = [3, 1, 4, 0, 2, 3, 3, 0, 1]
    together = embedder.embed_batch([pictures[i] for i in order])
    np.testing.assert_allclose(together, alone[order], atol=1e-5)
    assert (alone @ alone.T)[~np.eye(len(alone), dtype=bool)].min() < 0.999
    assert embedder.embed_batch([]).shape == (0, TINY[name][0])


@pytest.mark.parametrize("name", NAMES)
def test_the_published_processor_is_what_the_row_says(
    name: str, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = _load(name, folder(name))
    assert embedder.identity.preprocessing == _spec(name).preprocessing
    assert not caplog.records


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_openvino_gives_the_same(name: str, folder: Folder, pictures: list[np.ndarray]) -> None:
    compiled = load_embedder(_spec(name), weights=folder(name), runtime="openvino", threads=1)
    plain = _load(name, folder(name)).embed_batch(pictures)
    assert (compiled.embed_batch(pictures) * plain).sum(axis=1).min() > 0.99999


# A tensor that the feature depends on, and one that it does not.
TENSORS = {
    "clip-vit-l14": ("vision_model.post_layernorm.bias", "visual_projection.weight"),
    "clip-vit-l14-projected": ("visual_projection.weight", "text_projection.weight"),
    "medsiglip-448": ("vision_model.head.probe", "logit_scale"),
    "dinov3-vits16": ("embeddings.register_tokens", "embeddings.mask_token"),
    "resnet50": ("classifier.1.bias", "resnet.embedder.embedder.normalization.num_batches_tracked"),
    "resnet50-pooled": ("resnet.embedder.embedder.normalization.running_var", "classifier.1.bias"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_identity_is_of_the_used_tensors(name: str, folder: Folder, tmp_path: Path) -> None:
    used, unused = TENSORS[name]
    plain = _load(name, folder(name)).identity
    where = tmp_path / "changed"
    shutil.copytree(folder(name), where)
    tensors = load_file(where / "model.safetensors")
    (where / "model.safetensors").unlink()

    def identity(**changes: torch.Tensor) -> Any:
        torch.save({**tensors, **changes}, where / "pytorch_model.bin")
        return _load(name, where).identity

    assert identity() == plain  # the other layout of the same weights
    assert identity(**{unused: tensors[unused] + 1}) == plain
    assert identity(**{used: tensors[used] + 1}).weights_sha256 != plain.weights_sha256
    torch.save({k: v for k, v in tensors.items() if k != unused}, where / "pytorch_model.bin")
    assert _load(name, where).identity == plain


def test_buffers_of_older_files_are_ignored(folder: Folder, tmp_path: Path) -> None:
    where = tmp_path / "changed"
    shutil.copytree(folder("clip-vit-l14"), where)
    tensors = load_file(where / "model.safetensors")
    ids = {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    save_file({**tensors, **ids}, where / "model.safetensors")
    for name in ("clip-vit-l14", "clip-vit-l14-projected"):
        assert _load(name, where).identity == _load(name, folder(name)).identity


@pytest.mark.parametrize("name", TENSORS)
def test_other_weights_are_refused_with_the_difference(
    name: str, folder: Folder, tmp_path: Path
) -> None:
    used, _ = TENSORS[name]
    where = tmp_path / "changed"
    shutil.copytree(folder(name), where)
    tensors = load_file(where / "model.safetensors")
    short = used.removeprefix("vision_model.").removeprefix("resnet.")
    for changed, says in (
        ({k: v for k, v in tensors.items() if k != used}, f"1 missing .*{short}"),
        ({**tensors, "adapter.weight": torch.ones(2)}, "1 not expected .adapter.weight"),
        ({**tensors, used: torch.ones(3, 3)}, f"of another shape .*{short}.*3, 3"),
    ):
        save_file(changed, where / "model.safetensors")
        with pytest.raises(InputError, match=says):
            _load(name, where)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("clip-vit-l14", {"dim": 24}, "32-d features; clip-vit-l14 has 24-d"),
        ("clip-vit-l14-projected", {"dim": 32}, "24-d features"),
        ("resnet50", {"dim": 48}, "10-d features"),
        ("resnet50-pooled", {"dim": 10}, "48-d features"),
    ],
)
def test_another_length_is_refused(
    name: str, changes: dict[str, Any], says: str, folder: Folder
) -> None:
    with pytest.raises(InputError, match=says):
        _load(name, folder(name), **changes)


def test_another_input_size_is_refused(folder: Folder, tmp_path: Path) -> None:
    for name in ("clip-vit-l14", "medsiglip-448"):
        where = tmp_path / name
        shutil.copytree(folder(name), where)
        (where / "preprocessor_config.json").unlink()
        with pytest.raises(InputError, match="pictures of 28 pixels in patches of 14"):
            _load(name, where, input_size=42, resize_to=42)


def test_a_configuration_without_an_image_side_is_refused(folder: Folder, tmp_path: Path) -> None:
    where = tmp_path / "changed"
    shutil.copytree(folder("clip-vit-l14"), where)
    config = json.loads((where / "config.json").read_text())
    config.pop("vision_config")
    (where / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="has no vision_config"):
        _load("clip-vit-l14", where)


# config.json and preprocessor_config.json of the published repositories, as far as the rows
# depend on them: dimensions, input, crop, filter, mean.
@pytest.mark.parametrize(
    ("name", "golden"),
    [
        # CLIP's paper, table 20: ViT-L/14, width 1024, embedding 768.
        ("clip-vit-l14", (1024, 224, "crop", 224, "bicubic", 0.48145466)),
        ("clip-vit-l14-projected", (768, 224, "crop", 224, "bicubic", 0.48145466)),
        # SigLIP So400m/14: width 1152.
        ("medsiglip-448", (1152, 448, "squash", 448, "bicubic", 0.5)),
        # facebookresearch/dinov3, README: ViT-S/16, width 384.
        ("dinov3-vits16", (384, 224, "squash", 224, "bilinear", 0.485)),
        # CBIR-FM, table 2: 1000 for ResNet.
        ("resnet50", (1000, 224, "crop", 256, "bicubic", 0.485)),
        ("resnet50-logits", (1000, 224, "crop", 256, "bicubic", 0.485)),
        ("resnet50-pooled", (2048, 224, "crop", 256, "bicubic", 0.485)),
        ("dino-vitb8", (768, 224, "squash", 224, "bilinear", 0.485)),
    ],
)
def test_golden_facts(name: str, golden: tuple[Any, ...]) -> None:
    spec = REGISTRY[name]
    found = (spec.dim, spec.input_size, spec.resize, spec.resize_to, spec.interpolation)
    assert (*found, spec.mean[0]) == golden
