"""Our DreamSim against the package's own model, adapters and preprocessing, with random weights."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dreamsim
import numpy as np
import peft
import pytest
import torch
from dreamsim import constants
from dreamsim.config import dreamsim_args
from dreamsim.feature_extraction import load_clip_as_dino, load_open_clip_as_dino
from dreamsim.feature_extraction.vision_transformer import VisionTransformer, vit_base
from dreamsim.model import EMBED_DIMS, PerceptualModel
from PIL import Image
from safetensors.torch import load_file, save_file

from medretrieval.embedders import REGISTRY, EmbedderSpec, dreamsim_archive, load_embedder
from medretrieval.embedders.base import unit_rows
from medretrieval.embedders.preprocess import prepare
from medretrieval.embedders.rows.common import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from medretrieval.errors import InputError, UnavailableError

WIDTH, HEADS, PROJECTED = 48, 3, 20
DINO, CLIP, OPEN = (
    "dino_vitb16_pretrain.pth",
    "clip_vitb16_pretrain.pth.tar",
    "open_clip_vitb16_pretrain.pth.tar",
)
TYPES = {"dreamsim": "ensemble", "dreamsim-dino-vitb16": "dino_vitb16"}
# r and lora_alpha of adapter_config.json in the two archives of the release, as copies of them in
# public repositories show (yukaryote/ml-flextok, ramcha24/nonisotropic).
ADAPTERS = {
    "dreamsim": ("ensemble_lora", 16, 1.0),
    "dreamsim-dino-vitb16": ("dino_vitb16_single_lora", 16, 32.0),
}


def small_vit(patch_size: int = 16) -> VisionTransformer:
    """`vit_base` with narrower layers; the package looks at the twelfth block, so there are 12."""
    return VisionTransformer(
        patch_size=patch_size,
        embed_dim=WIDTH,
        depth=12,
        num_heads=HEADS,
        mlp_ratio=4,
        qkv_bias=True,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
    )


def perturbed(network: Any) -> Any:
    """Fresh norms, biases and adapters are trivial: make every tensor count."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def make_release(
    folder: Path, name: str, vit: Callable[..., Any], patch: pytest.MonkeyPatch
) -> Any:
    """Random weights as the release stores them; the package's own model and preprocessing."""
    torch.manual_seed(0)
    backbone = perturbed(vit())

    def hub_load(repository: str, model: str) -> Any:
        assert (repository, model) == ("facebookresearch/dino:main", "dino_vitb16")
        network = vit()
        network.load_state_dict(backbone.state_dict())
        return network

    patch.setattr(torch.hub, "load", hub_load)
    patch.setattr(torch.hub, "set_dir", lambda _: None)
    patch.setattr(load_clip_as_dino, "vit_base", vit)
    patch.setattr(load_open_clip_as_dino, "vit_base", vit)
    layers = [f"mlp.{i}.{what}" for i in (0, 2, 4) for what in ("weight", "bias")]
    head = {f"head.{layer}": torch.randn(4, 4) for layer in [*layers, "last_layer.weight"]}
    stored = {f"backbone.{key}": tensor for key, tensor in backbone.state_dict().items()} | head
    student = {f"module.{key}": torch.randn_like(tensor) for key, tensor in head.items()}
    torch.save({"student": student, "teacher": stored, "epoch": 400}, folder / DINO)
    if name == "dreamsim":
        for path in (folder / CLIP, folder / OPEN):
            network = vit()
            network.pos_drop = torch.nn.LayerNorm(network.embed_dim)
            perturbed(network)
            projection = 0.2 * torch.randn(network.embed_dim, PROJECTED)
            torch.save({"state_dict": {**network.state_dict(), "proj": projection}}, path)
    adapter, rank, alpha = ADAPTERS[name]
    model = PerceptualModel(
        **dreamsim_args["model_config"][TYPES[name]], device="cpu", load_dir=str(folder)
    )
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.3, bias="none", target_modules=["qkv"]
    )
    perturbed(peft.get_peft_model(model, config)).save_pretrained(folder / adapter)
    return dreamsim.dreamsim(device="cpu", cache_dir=str(folder), dreamsim_type=TYPES[name])


@dataclasses.dataclass(frozen=True)
class Release:
    folder: Path
    model: Any
    preprocess: Any

    def embed(self, pictures: list[np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            rows = [self.model.embed(self.preprocess(Image.fromarray(p))) for p in pictures]
        embeddings: np.ndarray = torch.cat(rows).numpy()
        return embeddings


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Release]]:
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in TYPES:
            folder = tmp_path_factory.mktemp(name)
            made[name] = Release(folder, *make_release(folder, name, small_vit, patch))
    return made


@pytest.fixture(params=TYPES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def copy(releases: dict[str, Release], tmp_path: Path, name: str) -> Path:
    """A release to change."""
    return shutil.copytree(releases[name].folder, tmp_path / "release")


def small(name: str) -> EmbedderSpec:
    spec = REGISTRY[name]
    branches = {k: v and PROJECTED for k, v in spec.options["branches"].items()}
    options = {**spec.options, "width": WIDTH, "heads": HEADS, "branches": branches}
    dim = sum(length or WIDTH for length in branches.values())
    return dataclasses.replace(spec, dim=dim, options=options)


def hashed(name: str, folder: Path) -> str:
    return str(load_embedder(small(name), weights=folder).identity.weights_sha256)


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    if path.suffix == ".json":
        stored = json.loads(path.read_text())
        edit(stored)
        path.write_text(json.dumps(stored))
    elif path.suffix == ".safetensors":
        stored = load_file(path)
        edit(stored)
        save_file(stored, path)
    else:
        stored = torch.load(path, weights_only=True)
        edit(stored)
        torch.save(stored, path)


def test_equals_the_package(
    releases: dict[str, Release], pictures: list[np.ndarray], name: str
) -> None:
    release = releases[name]
    found = load_embedder(small(name), weights=release.folder).embed_batch(pictures)
    expected = release.embed(pictures)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found * expected).sum(axis=1).min() > 0.9999
    # The mean of an embedding is part of the angles: without it they are others.
    np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-6)


@pytest.mark.slow
def test_equals_the_package_by_openvino(
    releases: dict[str, Release], pictures: list[np.ndarray], name: str
) -> None:
    release = releases[name]
    found = load_embedder(small(name), weights=release.folder, runtime="openvino")
    assert (found.embed_batch(pictures) * release.embed(pictures)).sum(axis=1).min() > 0.9999


@pytest.mark.slow
def test_equals_the_package_in_full_size(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    name = "dreamsim-dino-vitb16"
    with pytest.MonkeyPatch.context() as patch:
        release = Release(tmp_path, *make_release(tmp_path, name, vit_base, patch))
    found = load_embedder(name, weights=tmp_path).embed_batch(pictures[:1])
    np.testing.assert_allclose(found, release.embed(pictures[:1]), atol=1e-5)


def test_rows_say_what_the_package_says(name: str) -> None:
    spec, config = REGISTRY[name], dreamsim_args["model_config"][TYPES[name]]
    assert spec.input_size == dreamsim_args["img_size"] == 224
    models, features = config["model_type"].split(","), config["feat_type"].split(",")
    assert list(spec.options["branches"]) == models
    lengths = [
        None if feature == "cls" else EMBED_DIMS[model][feature]
        for model, feature in zip(models, features, strict=True)
    ]
    assert list(spec.options["branches"].values()) == lengths
    assert spec.dim == sum(length or EMBED_DIMS["dino_vitb16"]["cls"] for length in lengths)
    assert set(config["stride"].split(",")) == {str(spec.options["patch"])}
    assert spec.filenames == (ADAPTERS[name][0],)


def test_constants_are_those_of_the_package() -> None:
    assert tuple(constants.IMAGENET_DEFAULT_MEAN) == IMAGENET_MEAN
    assert tuple(constants.IMAGENET_DEFAULT_STD) == IMAGENET_STD
    assert tuple(constants.OPENAI_CLIP_MEAN) == CLIP_MEAN
    assert tuple(constants.OPENAI_CLIP_STD) == CLIP_STD


def test_norms_have_the_epsilon_of_the_package(releases: dict[str, Release], name: str) -> None:
    # Too small a difference for random weights to show.
    def epsilons(network: Any) -> list[float]:
        return [m.eps for m in network.modules() if isinstance(m, torch.nn.LayerNorm)]

    embedder: Any = load_embedder(small(name), weights=releases[name].folder)
    extractors = releases[name].model.base_model.model.extractor_list
    for branch, extractor in zip(embedder.network, extractors, strict=True):
        expected = epsilons(extractor.model)
        unused = 1 if branch.projected_to is None else 0  # the norm after the last block
        assert epsilons(branch) == expected[: len(expected) - unused]


def test_rows_depend_on_their_picture_alone(
    releases: dict[str, Release], pictures: list[np.ndarray], name: str
) -> None:
    embedder: Any = load_embedder(small(name), weights=releases[name].folder)
    with torch.inference_mode():
        together = embedder.forward(torch.from_numpy(prepare(pictures, embedder.spec)))
    np.testing.assert_allclose(
        unit_rows(together.numpy()), embedder.embed_batch(pictures), atol=1e-5
    )


def test_neither_the_hub_of_torch_nor_the_network_is_asked(
    releases: dict[str, Release], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in this test")

    for owner, attribute in (
        (socket.socket, "connect"),
        (torch.hub, "load"),
        (torch.hub, "download_url_to_file"),
        (torch.hub, "load_state_dict_from_url"),
    ):
        monkeypatch.setattr(owner, attribute, refuse)
    assert hashed(name, releases[name].folder)


def test_other_layouts_of_the_same_weights(
    releases: dict[str, Release], copy: Path, pictures: list[np.ndarray], name: str
) -> None:
    original: Any = load_embedder(small(name), weights=releases[name].folder)
    # The backbone as torch.hub leaves it in the package's folder, and the adapter of older peft.
    teacher = torch.load(copy / DINO, weights_only=True)["teacher"]
    backbone = {k[9:]: v for k, v in teacher.items() if k.startswith("backbone.")}
    (copy / "checkpoints").mkdir()
    torch.save(backbone, copy / "checkpoints" / "dino_vitbase16_pretrain.pth")
    (copy / DINO).write_bytes(b"")
    adapter = copy / ADAPTERS[name][0]
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    other: Any = load_embedder(small(name), weights=copy)
    assert other.identity == original.identity
    np.testing.assert_array_equal(other.embed_batch(pictures), original.embed_batch(pictures))
    (copy / "checkpoints" / "dino_vitbase16_pretrain.pth").rename(
        copy / "dino_vitbase16_pretrain.pth"
    )
    assert hashed(name, copy) == original.identity.weights_sha256


@pytest.mark.parametrize("around", ["", "dreamsim_checkpoint/"])
def test_the_zip_of_a_release(
    releases: dict[str, Release], tmp_path: Path, name: str, around: str
) -> None:
    folder = releases[name].folder
    path = tmp_path / "release.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../outside.txt", "no")
        archive.writestr(f"{around}unused/{DINO}.txt", "no")
        for file in folder.rglob("*"):
            archive.write(file, f"{around}{file.relative_to(folder)}")
    assert hashed(name, path) == hashed(name, folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["release.zip"]


def test_zips_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, releases: dict[str, Release]
) -> None:
    name = "dreamsim-dino-vitb16"
    path = tmp_path / "release.zip"
    path.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(InputError, match="cannot be read as a zip"):
        load_embedder(small(name), weights=path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(releases[name].folder / DINO, DINO)
    with pytest.raises(InputError, match=r"release\.zip is incomplete: it has no adapter_model"):
        load_embedder(small(name), weights=path)
    damaged = bytearray(path.read_bytes())
    damaged[200:5000] = bytes(4800)
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="cannot be read as a zip"):
        load_embedder(small(name), weights=path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(DINO, bytes(1 << 20))
    monkeypatch.setattr(dreamsim_archive, "MAX_BYTES", 1 << 19)
    with pytest.raises(InputError, match=r"claims 1048576 bytes for dino_vitb16_pretrain\.pth"):
        load_embedder(small(name), weights=path)


def test_the_hash_is_of_what_the_feature_depends_on(copy: Path, name: str) -> None:
    before = hashed(name, copy)

    def teacher(key: str) -> Callable[[dict[str, Any]], None]:
        return lambda stored: stored["teacher"][key].add_(1)

    adapter = copy / ADAPTERS[name][0]
    change(copy / DINO, teacher("backbone.norm.weight"))
    change(copy / DINO, teacher("head.mlp.0.weight"))
    change(copy / DINO, lambda stored: stored.pop("student"))
    change(adapter / "adapter_config.json", lambda stored: stored.update(lora_dropout=0.1))
    assert hashed(name, copy) == before
    seen = {before}
    change(copy / DINO, teacher("backbone.cls_token"))
    seen.add(hashed(name, copy))
    change(adapter / "adapter_config.json", lambda stored: stored.update(lora_alpha=3))
    seen.add(hashed(name, copy))
    change(
        adapter / "adapter_model.safetensors", lambda stored: next(iter(stored.values())).add_(1)
    )
    seen.add(hashed(name, copy))
    assert len(seen) == 4


def test_other_weights_are_refused_with_the_difference(
    releases: dict[str, Release], tmp_path: Path
) -> None:
    copy = shutil.copytree(releases["dreamsim"].folder, tmp_path / "release")

    def edit(stored: dict[str, Any]) -> None:
        tensors = stored["state_dict"]
        del tensors["norm.bias"]
        tensors["extra"] = torch.zeros(2)
        tensors["proj"] = torch.zeros(WIDTH, 7)

    change(copy / CLIP, edit)
    with pytest.raises(InputError) as error:
        load_embedder(small("dreamsim"), weights=copy)
    text = str(error.value)
    assert text.startswith(f"{copy / CLIP} does not hold the weights of dreamsim")
    assert "1 missing (norm.bias)" in text
    assert "1 not expected (extra)" in text
    assert f"proj ({WIDTH}, 7), not ({WIDTH}, {PROJECTED})" in text


def test_another_adapter_is_refused_with_the_difference(copy: Path, name: str) -> None:
    path = copy / ADAPTERS[name][0] / "adapter_model.safetensors"
    block = "base_model.model.extractor_list.0.model.blocks.{}.attn.qkv.lora_{}.weight"

    def edit(stored: dict[str, Any]) -> None:
        del stored[block.format(3, "A")]
        stored[block.format(12, "A")] = torch.zeros(2)
        stored[block.format(1, "B")] = torch.zeros(5, 16)

    change(path, edit)
    with pytest.raises(InputError) as error:
        load_embedder(small(name), weights=copy)
    text = str(error.value)
    assert f"1 missing ({block.format(3, 'A')})" in text
    assert f"1 not expected ({block.format(12, 'A')})" in text
    assert f"{block.format(1, 'B')} (5, 16), not ({3 * WIDTH}, 16)" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"bias": "all"},
        {"target_modules": ["qkv", "proj"]},
        {"rank_pattern": {"qkv": 4}},
        {"peft_type": "IA3"},
        {"r": 0},
        {"r": None},
        {"lora_alpha": "1"},
    ],
    ids=str,
)
def test_adapters_that_do_more_are_refused(
    releases: dict[str, Release], tmp_path: Path, changes: dict[str, Any]
) -> None:
    name = "dreamsim-dino-vitb16"
    copy = shutil.copytree(releases[name].folder, tmp_path / "release")
    path = copy / ADAPTERS[name][0] / "adapter_config.json"
    change(path, lambda stored: stored.update(changes))
    (key,) = changes
    with pytest.raises(InputError, match=f"describes no adapter of DreamSim.*{key}"):
        load_embedder(small(name), weights=copy)


def test_incomplete_folders_are_refused(copy: Path, name: str) -> None:
    adapter = ADAPTERS[name][0]
    (copy / adapter / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"is incomplete: it has no adapter_config\.json"):
        load_embedder(small(name), weights=copy)
    change(copy / DINO, lambda stored: stored.pop("teacher"))
    with pytest.raises(InputError, match=r"If the file has no teacher, fetch https://dl\.fbai"):
        load_embedder(small(name), weights=copy)
    (copy / DINO).unlink()
    with pytest.raises(InputError, match=r"it has no checkpoints/dino_vitbase16_pretrain\.pth or"):
        load_embedder(small(name), weights=copy)


def test_without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MEDRETRIEVAL_WEIGHTS", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"dreamsim_ensemble_checkpoint\.zip.*1261 MB"):
        load_embedder("dreamsim")


def test_unknown_branches_are_refused(tmp_path: Path) -> None:
    spec = small("dreamsim")
    spec = dataclasses.replace(spec, options={**spec.options, "branches": {"clip_vitb32": 512}})
    with pytest.raises(InputError, match=r"clip_vitb32.* 'branches'; expected some of dino_vitb16"):
        load_embedder(spec, weights=tmp_path)
