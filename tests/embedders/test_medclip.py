"""MedCLIP's image side against transformers' Swin and MedCLIP's own way to prepare a picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from medretrieval.embedders import REGISTRY, EmbedderSpec, load_embedder
from medretrieval.embedders.preprocess import prepare
from medretrieval.errors import InputError, UnavailableError

NAMES = ["medclip", "medclip-projected"]
SIDE = 64
CONFIG = {
    "image_size": SIDE,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 2, 1],
    "num_heads": [1, 2, 4],
    "window_size": 4,
}
PROJECTION = "vision_model.projection_head.weight"


def _spec(name: str, **changes: Any) -> EmbedderSpec:
    spec = REGISTRY[name]
    dim = 12 if name.endswith("projected") else 32
    options = {**spec.options, "config": CONFIG}
    sizes = {"dim": dim, "input_size": SIDE, "resize_to": SIDE, "options": options}
    return dataclasses.replace(spec, **{**sizes, **changes})


@pytest.fixture(scope="module")
def swin() -> Any:
    torch.manual_seed(0)
    model = transformers.SwinModel(transformers.SwinConfig(**CONFIG))
    with torch.no_grad():  # norms, biases and positions begin trivial: make every tensor count
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def stored(swin: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """MedCLIPModel's state dict, medclip/modeling_medclip.py, written with transformers 4.2x.

    transformers saves Swin under the names it had then; the table of indices was a buffer.
    """
    folder = tmp_path_factory.mktemp("swin")
    swin.save_pretrained(folder)
    tensors = {
        f"vision_model.model.{name}": tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    table = "vision_model.model.encoder.layers.0.blocks.0.attention.self.relative_position_"
    return {
        **tensors,
        f"{table}index": torch.arange(256).reshape(16, 16),
        PROJECTION: torch.randn(12, 32),
        "text_model.projection_head.weight": torch.randn(5, 7),
        "text_model.model.embeddings.position_ids": torch.arange(9)[None],
        "logit_scale": torch.tensor(2.6),
    }


@pytest.fixture(scope="module")
def file(stored: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("medclip") / "pytorch_model.bin"
    torch.save(stored, path)
    return path


def _prepared(picture: np.ndarray, size: int = SIDE) -> torch.Tensor:
    """What MedCLIPFeatureExtractor does, medclip/dataset.py, then MedCLIPVisionModelViT.forward."""
    image = Image.fromarray(picture)
    width, height = image.size
    side = max(size, width, height)
    square = Image.new("L", (side, side), 0)
    square.paste(image, (int((side - width) / 2), int((side - height) / 2)))
    small = np.asarray(square.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    pixels = (small / 255 - 0.5862785803043838) / 0.27950088968644304
    return torch.from_numpy(pixels)[None, None].repeat(1, 3, 1, 1).float()


@pytest.mark.parametrize("name", NAMES)
def test_equals_medclip(
    name: str,
    swin: Any,
    stored: dict[str, torch.Tensor],
    file: Path,
    pictures: list[np.ndarray],
) -> None:
    embedder = load_embedder(_spec(name), weights=file)
    for row, picture in zip(embedder.embed_batch(pictures), pictures, strict=True):
        with torch.inference_mode():
            expected = swin(_prepared(picture)).pooler_output
            if name.endswith("projected"):
                expected = expected @ stored[PROJECTION].T
        expected = expected[0].numpy()
        assert row @ expected / np.linalg.norm(expected) > 0.9999


def test_pixels_of_grey_pictures_equal_medclip(pictures: list[np.ndarray]) -> None:
    spec = _spec("medclip")
    for picture in (p for p in pictures if p.ndim == 2):
        np.testing.assert_allclose(prepare([picture], spec), _prepared(picture), atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_rows_depend_on_their_picture_alone(
    name: str, file: Path, pictures: list[np.ndarray]
) -> None:
    embedder = load_embedder(_spec(name), weights=file)
    alone = np.concatenate([embedder.embed_batch([picture]) for picture in pictures])
    order = [3, 1, 4, 0, 2, 3]
    together = embedder.embed_batch([pictures[i] for i in order])
    np.testing.assert_allclose(together, alone[order], atol=1e-5)
    assert (alone @ alone.T)[~np.eye(len(alone), dtype=bool)].min() < 0.999


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_openvino_gives_the_same(name: str, file: Path, pictures: list[np.ndarray]) -> None:
    compiled = load_embedder(_spec(name), weights=file, runtime="openvino", threads=1)
    plain = load_embedder(_spec(name), weights=file).embed_batch(pictures)
    assert (compiled.embed_batch(pictures) * plain).sum(axis=1).min() > 0.99999


def test_a_folder_is_read_as_its_file(file: Path) -> None:
    spec = _spec("medclip")
    of_folder, of_file = (load_embedder(spec, weights=where) for where in (file.parent, file))
    assert of_folder.identity == of_file.identity


@pytest.mark.parametrize("name", NAMES)
def test_identity_is_of_the_used_tensors(
    name: str, stored: dict[str, torch.Tensor], file: Path, tmp_path: Path
) -> None:
    plain = load_embedder(_spec(name), weights=file).identity.weights_sha256
    path = tmp_path / "changed.bin"
    for key, counts in (
        ("vision_model.model.layernorm.bias", True),
        (PROJECTION, name.endswith("projected")),
        ("text_model.projection_head.weight", False),
        ("logit_scale", False),
    ):
        torch.save({**stored, key: stored[key] + 1}, path)
        changed = load_embedder(_spec(name), weights=path).identity.weights_sha256
        assert (changed != plain) is counts
    vision = {k: v for k, v in stored.items() if "vision_model" in k and "_index" not in k}
    torch.save(vision, path)
    assert load_embedder(_spec(name), weights=path).identity.weights_sha256 == plain


def test_other_weights_are_refused_with_the_difference(
    stored: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "changed.bin"
    norm = "vision_model.model.layernorm.bias"
    for changed, says in (
        ({k: v for k, v in stored.items() if k != norm}, "1 missing .layernorm.bias"),
        ({k: v for k, v in stored.items() if k != PROJECTION}, f"1 missing .{PROJECTION}"),
        ({**stored, "vision_model.model.extra": torch.ones(1)}, "1 not expected .extra"),
        ({**stored, "head.weight": torch.ones(1)}, "1 not expected .head.weight"),
        ({**stored, norm: torch.ones(1)}, "of another shape .layernorm.bias"),
        ({**stored, PROJECTION: torch.ones(12, 3)}, f"of another shape .{PROJECTION}"),
    ):
        torch.save(changed, path)
        with pytest.raises(InputError, match=says):
            load_embedder(_spec("medclip-projected"), weights=path)


@pytest.mark.slow
def test_the_published_size(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    torch.manual_seed(0)
    swin = transformers.SwinModel(transformers.SwinConfig()).eval()
    swin.save_pretrained(tmp_path)
    projection = torch.randn(512, 768)
    path = tmp_path / "pytorch_model.bin"
    tensors = load_file(tmp_path / "model.safetensors")
    torch.save(
        {f"vision_model.model.{k}": v for k, v in tensors.items()} | {PROJECTION: projection}, path
    )
    row = load_embedder("medclip-projected", weights=path).embed_batch(pictures[:1])[0]
    with torch.inference_mode():
        expected = (swin(_prepared(pictures[0], 224)).pooler_output @ projection.T)[0].numpy()
    assert row @ expected / np.linalg.norm(expected) > 0.9999


def test_the_other_medclip_is_refused(tmp_path: Path) -> None:
    # MedCLIPVisionModel: torchvision's ResNet-50 whose classifier is the projection.
    path = tmp_path / "pytorch_model.bin"
    torch.save({"vision_model.model.conv1.weight": torch.ones(64, 3, 7, 7)}, path)
    with pytest.raises(InputError, match=r"not expected .conv1.weight.*expected exactly those of"):
        load_embedder("medclip", weights=path)


def test_another_length_is_refused(file: Path) -> None:
    with pytest.raises(InputError, match="32-d features for pictures of 64 pixels"):
        load_embedder(_spec("medclip", dim=31), weights=file)


def test_without_a_file_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDRETRIEVAL_WEIGHTS", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"MedCLIP-ViT.*cannot be fetched by a program"):
        load_embedder("medclip")


def test_golden_facts() -> None:
    # medclip/constants.py: IMG_SIZE, IMG_MEAN, IMG_STD, VIT_TYPE; modeling_medclip.py: 768 -> 512.
    for name, dim in (("medclip", 768), ("medclip-projected", 512)):
        spec = REGISTRY[name]
        assert (spec.dim, spec.input_size, spec.interpolation) == (dim, 224, "bicubic")
        assert spec.mean == (0.5862785803043838,) * 3
        assert spec.std == (0.27950088968644304,) * 3
    # microsoft/swin-tiny-patch4-window7-224 is what transformers' defaults describe.
    config = transformers.SwinConfig()
    assert (config.embed_dim, list(config.depths), config.window_size) == (96, [2, 2, 6, 2], 7)
    assert (list(config.num_heads), config.image_size) == ([3, 6, 12, 24], 224)
    assert config.hidden_size == 768
