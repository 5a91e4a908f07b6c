"""Every family against the transformers library itself, with small random networks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from medretrieval.embedders import EmbedderSpec, load_embedder
from medretrieval.errors import InputError

NAMES = [
    "dinov2-small-reg",
    "dinov2-base",
    "dino-vitb16",
    "dino-vitb8",
    "rad-dino",
    "vit-b16-in21k",
    "mae-vit-b",
]
ONE_PER_FAMILY = ["dinov2-small-reg", "dinov2-base", "vit-b16-in21k", "mae-vit-b"]

Folder = Callable[[str], Path]
Spec = Callable[..., EmbedderSpec]


def _load(name: str, tiny_spec: Spec, folder: Path) -> Any:
    return load_embedder(tiny_spec(name), weights=folder)


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_library(
    name: str, backend: str, tiny_spec: Spec, tiny_folder: Folder, pictures: list[np.ndarray]
) -> None:
    from transformers import AutoImageProcessor, AutoModel

    folder = tiny_folder(name)
    options = {"mask_ratio": 0.0} if name == "mae-vit-b" else {}
    model = AutoModel.from_pretrained(folder, **options).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend=backend)
    embedder = _load(name, tiny_spec, folder)
    assert embedder.spec == tiny_spec(name)  # the published file changes nothing in the row
    # Noise resized to a fraction differs by rounding between the backends: smooth pictures do not.
    shown = [picture for picture in pictures if backend == "pil" or picture.shape != (61, 173, 3)]
    found = embedder.embed_batch(shown)
    for row, picture in zip(found, shown, strict=True):
        inputs = processor(Image.fromarray(picture).convert("RGB"), return_tensors="pt")
        with torch.inference_mode():
            expected = model(**inputs).last_hidden_state[0, 0].numpy()
        assert row @ expected / np.linalg.norm(expected) > 0.9999


@pytest.mark.parametrize("name", NAMES)
def test_rows_depend_on_their_picture_alone(
    name: str, tiny_spec: Spec, tiny_folder: Folder, pictures: list[np.ndarray]
) -> None:
    embedder = _load(name, tiny_spec, tiny_folder(name))
    alone = np.concatenate([embedder.embed_batch([picture]) for picture in pictures])
    order = [3, 1, 4, 0, 2, 3, 3, 0, 1]  # more than one batch
    together = embedder.embed_batch([pictures[i] for i in order])
    np.testing.assert_allclose(together, alone[order], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-6)
    # The network must see the pictures: a constant vector would pass everything above.
    assert (alone @ alone.T)[~np.eye(len(alone), dtype=bool)].min() < 0.999
    assert embedder.embed_batch([]).shape == (0, 32)


def test_masked_autoencoder_gives_the_same_bits(
    tiny_spec: Spec, tiny_folder: Folder, pictures: list[np.ndarray]
) -> None:
    embedder = _load("mae-vit-b", tiny_spec, tiny_folder("mae-vit-b"))
    torch.manual_seed(1)
    first = embedder.embed_batch(pictures)
    torch.manual_seed(2)
    np.testing.assert_array_equal(embedder.embed_batch(pictures), first)


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_identity(name: str, tiny_spec: Spec, tiny_folder: Folder, tmp_path: Path) -> None:
    embedder = _load(name, tiny_spec, tiny_folder(name))
    assert embedder.identity.pooling == "class token"
    assert embedder.identity.dim == 32
    assert embedder.identity.preprocessing == tiny_spec(name).preprocessing
    # The same tensors in the other layout have the same hash; a head does not count.
    other = tmp_path / "other"
    shutil.copytree(tiny_folder(name), other)
    tensors = load_file(other / "model.safetensors")
    (other / "model.safetensors").unlink()
    head = {"mae-vit-b": "decoder.extra", "vit-b16-in21k": "pooler.dense.weight"}.get(
        name, "classifier.weight"
    )
    torch.save({**tensors, head: torch.ones(3, 3)}, other / "pytorch_model.bin")
    again = _load(name, tiny_spec, other)
    assert again.identity == embedder.identity
    changed = {key: value + (key.endswith("cls_token")) for key, value in tensors.items()}
    torch.save(changed, other / "pytorch_model.bin")
    assert _load(name, tiny_spec, other).identity != embedder.identity


@pytest.mark.parametrize("name", ONE_PER_FAMILY)
def test_other_weights_are_refused_with_the_difference(
    name: str,
    tiny_spec: Spec,
    tiny_folder: Folder,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(tiny_folder(name), folder)
    tensors = load_file(folder / "model.safetensors")
    cls_token = next(key for key in tensors if key.endswith("embeddings.cls_token"))
    projection = next(key for key in tensors if key.endswith("projection.bias"))
    del tensors[cls_token]
    tensors[projection] = torch.zeros(7)
    tensors["stranger.weight"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError) as error:
        _load(name, tiny_spec, folder)
    text = str(error.value)
    assert "1 missing (embeddings.cls_token)" in text
    assert "stranger.weight" in text
    assert "projection.bias (7,), not (32,)" in text
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


def test_another_size_of_network_is_refused(tiny_folder: Folder) -> None:
    with pytest.raises(InputError, match="32-d features; dinov2-base has 768-d"):
        load_embedder("dinov2-base", weights=tiny_folder("dinov2-base"))


def test_another_family_is_refused(tiny_folder: Folder) -> None:
    with pytest.raises(InputError, match="type 'vit'; dinov2-base is of type 'dinov2'"):
        load_embedder("dinov2-base", weights=tiny_folder("vit-b16-in21k"))


def test_another_input_size_is_refused(
    tiny_spec: Spec, tiny_folder: Folder, tmp_path: Path
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(tiny_folder("vit-b16-in21k"), folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="pictures of 32 pixels"):
        load_embedder(tiny_spec("vit-b16-in21k", input_size=48, resize_to=48), weights=folder)


def test_code_and_quantisation_in_config_are_not_followed(
    tiny_spec: Spec, tiny_folder: Folder, tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(tiny_folder("dinov2-base"), folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    config["dtype"] = "float16"
    path.write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    plain = _load("dinov2-base", tiny_spec, tiny_folder("dinov2-base"))
    changed = _load("dinov2-base", tiny_spec, folder)
    np.testing.assert_array_equal(changed.embed_batch(pictures), plain.embed_batch(pictures))


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", None, "incomplete"),
        ("model.safetensors", None, "incomplete"),
        ("config.json", b"{", "cannot be read as JSON"),
        ("config.json", b"[]", "not a JSON object"),
        ("model.safetensors", b"", "cannot be read as weights"),
    ],
)
def test_damaged_folders_are_refused(
    file: str,
    content: bytes | None,
    says: str,
    tiny_spec: Spec,
    tiny_folder: Folder,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(tiny_folder("dinov2-base"), folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=says):
        _load("dinov2-base", tiny_spec, folder)


def test_a_file_instead_of_a_folder_is_refused(tiny_folder: Folder) -> None:
    with pytest.raises(InputError, match="is no folder"):
        load_embedder("dinov2-base", weights=tiny_folder("dinov2-base") / "config.json")
