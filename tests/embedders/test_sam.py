"""SAM's image encoder against segment_anything and transformers, with small random networks."""

from __future__ import annotations

import dataclasses
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from medretrieval.embedders import REGISTRY, EmbedderSpec, load_embedder
from medretrieval.embedders.sam import encoder_tensors
from medretrieval.errors import InputError

NAMES = ["sam-vit-b", "sam-vit-b-neck", "medsam-vit-b", "medsam-vit-b-neck"]
SIDE = 64
CONFIG = {
    "hidden_size": 32,
    "output_channels": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 8,
    "window_size": 3,
    "global_attn_indexes": [1],
    "mlp_dim": 128,
}


def _spec(name: str, **changes: Any) -> EmbedderSpec:
    spec = REGISTRY[name]
    dim = 24 if spec.options["head"] == "neck" else 32
    options = {**spec.options, "vision_config": CONFIG}
    sizes = {"dim": dim, "input_size": SIDE, "resize_to": SIDE, "options": options}
    return dataclasses.replace(spec, **{**sizes, **changes})


def _official() -> Any:
    """A small network of Meta's package, put together as its build_sam.py does."""
    from segment_anything.modeling import (
        ImageEncoderViT,
        MaskDecoder,
        PromptEncoder,
        Sam,
        TwoWayTransformer,
    )

    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=SIDE,
        patch_size=8,
        embed_dim=32,
        depth=3,
        num_heads=4,
        mlp_ratio=4,
        out_chans=24,
        qkv_bias=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=(1,),
    )
    transformer = TwoWayTransformer(depth=1, embedding_dim=24, mlp_dim=32, num_heads=2)
    model = Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=24,
            image_embedding_size=(8, 8),
            input_image_size=(SIDE, SIDE),
            mask_in_chans=4,
        ),
        mask_decoder=MaskDecoder(transformer_dim=24, transformer=transformer),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    with torch.no_grad():  # norms, biases and positions begin trivial: make every tensor count
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def official() -> Any:
    return _official()


@pytest.fixture(scope="module")
def file(official: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("meta") / "medsam_vit_b.pth"
    torch.save(official.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def folder(official: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same encoder as transformers saves it, with a prompt encoder and a mask decoder."""
    model = transformers.SamModel(
        transformers.SamConfig(
            vision_config=CONFIG,
            prompt_encoder_config={"hidden_size": 24, "image_size": SIDE, "patch_size": 8},
            mask_decoder_config={
                "hidden_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "mlp_dim": 32,
            },
        )
    )
    model.vision_encoder.load_state_dict(encoder_tensors(official.state_dict()))
    path = tmp_path_factory.mktemp("transformers")
    model.save_pretrained(path)
    _processor().save_pretrained(path)
    return path


def _processor() -> Any:
    from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

    return SamImageProcessorPil(
        size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE}
    )


def _weights(name: str, file: Path, folder: Path) -> Path:
    return file if name.startswith("medsam") else folder


def _cosine(row: np.ndarray, expected: np.ndarray) -> float:
    return float(row @ expected / np.linalg.norm(expected))


@pytest.mark.parametrize("name", NAMES)
def test_equals_segment_anything(
    name: str, official: Any, file: Path, folder: Path, pictures: list[np.ndarray]
) -> None:
    from segment_anything.utils.transforms import ResizeLongestSide

    tokens: list[torch.Tensor] = []
    hook = official.image_encoder.blocks[-1].register_forward_hook(
        lambda _module, _inputs, output: tokens.append(output)
    )
    embedder = load_embedder(_spec(name), weights=_weights(name, file, folder))
    for row, picture in zip(embedder.embed_batch(pictures), pictures, strict=True):
        colour = np.asarray(Image.fromarray(picture).convert("RGB"))
        small = ResizeLongestSide(SIDE).apply_image(colour)
        pixels = torch.as_tensor(small).permute(2, 0, 1)[None]
        with torch.inference_mode():
            after = official.image_encoder(official.preprocess(pixels))
        neck = name.endswith("neck")
        expected = after.mean(dim=[2, 3]) if neck else tokens[-1].mean(dim=[1, 2])
        assert _cosine(row, expected[0].numpy()) > 0.9999
    hook.remove()


@pytest.mark.parametrize("name", ["sam-vit-b-neck", "medsam-vit-b-neck"])
def test_equals_transformers(
    name: str, file: Path, folder: Path, pictures: list[np.ndarray]
) -> None:
    model = transformers.SamModel.from_pretrained(folder).eval()
    embedder = load_embedder(_spec(name), weights=_weights(name, file, folder))
    for row, picture in zip(embedder.embed_batch(pictures), pictures, strict=True):
        inputs = _processor()(Image.fromarray(picture).convert("RGB"), return_tensors="pt")
        with torch.inference_mode():
            after = model.get_image_embeddings(inputs["pixel_values"])
        assert _cosine(row, after.mean(dim=[2, 3])[0].numpy()) > 0.9999


@pytest.mark.parametrize("name", NAMES)
def test_rows_depend_on_their_picture_alone(
    name: str, file: Path, folder: Path, pictures: list[np.ndarray]
) -> None:
    embedder = load_embedder(_spec(name), weights=_weights(name, file, folder))
    alone = np.concatenate([embedder.embed_batch([picture]) for picture in pictures])
    order = [3, 1, 4, 0, 2, 3]
    together = embedder.embed_batch([pictures[i] for i in order])
    np.testing.assert_allclose(together, alone[order], atol=1e-5)
    assert (alone @ alone.T)[~np.eye(len(alone), dtype=bool)].min() < 0.999


@pytest.mark.slow
@pytest.mark.parametrize("name", ["medsam-vit-b", "medsam-vit-b-neck"])
def test_openvino_gives_the_same(name: str, file: Path, pictures: list[np.ndarray]) -> None:
    compiled = load_embedder(_spec(name), weights=file, runtime="openvino", threads=1)
    plain = load_embedder(_spec(name), weights=file).embed_batch(pictures)
    assert (compiled.embed_batch(pictures) * plain).sum(axis=1).min() > 0.99999


@pytest.mark.parametrize("name", NAMES)
def test_both_layouts_are_the_same_weights(name: str, file: Path, folder: Path) -> None:
    of_meta = load_embedder(_spec(name), weights=file).identity
    of_transformers = load_embedder(
        _spec(name, filenames=("model.safetensors",)), weights=folder
    ).identity
    assert of_meta == of_transformers
    alone = load_embedder(_spec(name), weights=folder / "model.safetensors").identity
    assert alone == of_meta


@pytest.mark.parametrize("head", ["", "-neck"])
def test_identity_is_of_the_used_tensors(
    head: str, official: Any, file: Path, tmp_path: Path
) -> None:
    spec = _spec(f"medsam-vit-b{head}")
    plain = load_embedder(spec, weights=file).identity.weights_sha256
    path = tmp_path / "changed.pth"
    for key, counts in (
        ("image_encoder.pos_embed", True),
        ("image_encoder.neck.3.bias", bool(head)),
        ("mask_decoder.iou_token.weight", False),
        ("prompt_encoder.no_mask_embed.weight", False),
    ):
        tensors = official.state_dict()
        torch.save({**tensors, key: tensors[key] + 1}, path)
        assert (load_embedder(spec, weights=path).identity.weights_sha256 != plain) is counts
    torch.save(
        {k: v for k, v in official.state_dict().items() if k.startswith("image_encoder.")}, path
    )
    assert load_embedder(spec, weights=path).identity.weights_sha256 == plain


def test_other_weights_are_refused_with_the_difference(official: Any, tmp_path: Path) -> None:
    spec = _spec("medsam-vit-b-neck")
    path = tmp_path / "changed.pth"
    tensors = official.state_dict()
    missing = "image_encoder.blocks.1.norm1.bias"
    for changed, says in (
        (
            {k: v for k, v in tensors.items() if k != missing},
            "1 missing .layers.1.layer_norm1.bias",
        ),
        ({**tensors, "image_encoder.adapter": torch.ones(1)}, "1 not expected .adapter"),
        ({**tensors, "head.weight": torch.ones(1)}, "1 not expected .head.weight"),
        ({**tensors, "image_encoder.pos_embed": torch.ones(1)}, r"shape .pos_embed \(1,\), not"),
    ):
        torch.save(changed, path)
        with pytest.raises(InputError, match=says):
            load_embedder(spec, weights=path)


def test_another_size_of_network_is_refused(file: Path, folder: Path) -> None:
    with pytest.raises(InputError, match="32-d features for pictures of 64 pixels"):
        load_embedder("sam-vit-b", weights=folder)
    with pytest.raises(InputError, match=r"does not hold the weights of medsam-vit-b: .* missing"):
        load_embedder("medsam-vit-b", weights=file)
    with pytest.raises(InputError, match="24-d features"):
        load_embedder(_spec("sam-vit-b-neck", dim=23), weights=folder)


def test_another_kind_of_network_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "config.json").write_text('{"model_type": "sam2", "vision_config": {}}')
    with pytest.raises(InputError, match="type 'sam2'; expected type 'sam'"):
        load_embedder(_spec("sam-vit-b"), weights=other)


def test_golden_names_and_shapes_of_vit_b() -> None:
    # sam_model_registry["vit_b"] builds what medsam_vit_b.pth and sam_vit_b_01ec64.pth hold.
    from segment_anything import sam_model_registry
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    with torch.device("meta"):
        official = encoder_tensors(sam_model_registry["vit_b"]().state_dict())
        own = SamVisionEncoder(transformers.SamVisionConfig()).state_dict()
    assert {k: v.shape for k, v in official.items()} == {k: v.shape for k, v in own.items()}
    # CBIR-FM, table 2: 768-d; its code takes what follows the neck, 256-d. Both at 1024 pixels.
    assert official["pos_embed"].shape == (1, 64, 64, 768)
    assert official["neck.conv2.weight"].shape == (256, 256, 3, 3)
    for name in NAMES:
        spec = REGISTRY[name]
        assert (spec.dim, spec.input_size) == (256 if name.endswith("neck") else 768, 1024)


def test_the_file_of_transformers_has_the_other_parts(folder: Path) -> None:
    # What is dropped by name must be there to be dropped, or the tests above show nothing.
    parts = {name.partition(".")[0] for name in load_file(folder / "model.safetensors")}
    assert parts == {
        "vision_encoder",
        "prompt_encoder",
        "mask_decoder",
        "shared_image_embedding",
    }
