"""Models of timm by name, and the Swin transformers of the papers, against timm itself."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import transforms

from medretrieval.embedders import REGISTRY, EmbedderSpec, get_spec, load_embedder
from medretrieval.embedders.preprocess import prepare
from medretrieval.errors import InputError, UnavailableError, UsageError

Tensors = dict[str, torch.Tensor]

# Bicubic and bilinear, centre crops of several fractions, convolutions and attention.
MODELS = (
    "mobilenetv3_small_050.lamb_in1k",
    "dla46_c.in1k",
    "convnext_atto.d2_in1k",
    "vit_tiny_patch16_224.augreg_in21k",
    "tf_efficientnet_lite0.in1k",
)
SQUASHED = ("dm_nfnet_f0.dm_in1k", "convnext_tiny.fb_in22k_ft_in1k_384")
SMALL = {"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}
DIM = 128


def perturbed(network: nn.Module) -> nn.Module:
    """In eval mode, with norms and biases that are not trivial: every tensor counts."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not name.endswith("running_var"):
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return network.eval()


def unit(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features, dim=1).numpy()


def expect_equal(found: np.ndarray, expected: np.ndarray) -> None:
    assert (found * expected).sum(axis=1).min() > 0.99999
    # The network must see the pictures: a constant vector would pass.
    assert (found @ found.T)[~np.eye(len(found), dtype=bool)].min() < 0.999


@pytest.fixture(scope="module")
def of_timm() -> Callable[[str], nn.Module]:
    """Gives timm's network of a name, with its classifier, perturbed."""
    made: dict[str, nn.Module] = {}

    def get(name: str, **options: Any) -> nn.Module:
        key = f"{name} {options}"
        if key not in made:
            torch.manual_seed(1)
            made[key] = perturbed(timm.create_model(name, pretrained=False, **options))
        return made[key]

    return get


def shown(name: str, pictures: list[np.ndarray]) -> torch.Tensor:
    """(n, 3, S, S), by timm's own transform for the weights called `name`."""
    stored = timm.get_pretrained_cfg(name).to_dict()
    config = timm.data.resolve_data_config({}, pretrained_cfg=stored)
    transform = timm.data.create_transform(**config, is_training=False)
    return torch.stack([transform(Image.fromarray(p).convert("RGB")) for p in pictures])


# timm:<name>


@pytest.mark.parametrize("name", MODELS)
def test_equals_timm(
    name: str,
    of_timm: Callable[[str], nn.Module],
    tmp_path: Path,
    pictures: list[np.ndarray],
) -> None:
    network = of_timm(name)
    path = tmp_path / "model.safetensors"
    save_file(network.state_dict(), path)
    embedder = load_embedder(f"timm:{name}", weights=path)
    with torch.inference_mode():
        features: Any = network
        pooled = features.forward_head(
            features.forward_features(shown(name, pictures)), pre_logits=True
        )
    expect_equal(embedder.embed_batch(pictures), unit(pooled))
    assert embedder.identity.name == f"timm:{name}"
    assert embedder.identity.dim == pooled.shape[1]


@pytest.mark.parametrize("name", [*MODELS, *SQUASHED])
def test_pixels_equal_those_of_timm(name: str, pictures: list[np.ndarray]) -> None:
    spec = get_spec(f"timm:{name}")
    # Odd margins of a centre crop are where roundings differ.
    odd = [*pictures, np.full((97, 131), 7, np.uint8), np.arange(96, dtype=np.uint8).reshape(8, 12)]
    np.testing.assert_allclose(prepare(odd, spec), shown(name, odd).numpy(), atol=2e-6)


def test_what_a_name_says() -> None:
    # timm 1.0.31, convnext.py: crop_pct 0.95 (224 / 0.95 = 235.8) and 768 features.
    spec = get_spec("timm:convnext_tiny.in12k_ft_in1k")
    assert (spec.source, spec.weights, spec.revision) == (
        "hub",
        "timm/convnext_tiny.in12k_ft_in1k",
        "main",
    )
    assert spec.filenames == ("model.safetensors", "pytorch_model.bin")
    assert (spec.dim, spec.input_size, spec.resize, spec.resize_to) == (768, 224, "crop", 235)
    assert (spec.crop_rounding, spec.interpolation) == ("even", "bicubic")
    assert spec.license == "apache-2.0"
    assert spec.requires == ("timm==1.0.31",)
    assert 105 < spec.size_mb < 115  # 28 million parameters, the classifier not counted


def test_a_name_without_weights_is_made_complete() -> None:
    assert get_spec("timm:convnext_tiny") == get_spec("timm:convnext_tiny.in12k_ft_in1k")
    with pytest.warns(UserWarning, match="deprecated"):
        spec = get_spec("timm:vit_tiny_patch16_224_in21k")
    assert spec == get_spec("timm:vit_tiny_patch16_224.augreg_in21k")


def test_pooling_that_widens_is_seen() -> None:
    # timm 1.0.31, mobilenetv3.py: 576 channels, then a layer of 1024 before the classifier.
    assert get_spec("timm:mobilenetv3_small_050.lamb_in1k").dim == 1024
    assert get_spec("timm:dm_nfnet_f0.dm_in1k").resize == "squash-crop"
    assert get_spec("timm:convnext_tiny.fb_in22k_ft_in1k_384").resize == "squash"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("convnex_tiny", "did you mean convnext_tiny"),
        ("convnext_tiny.in13k", "did you mean .*convnext_tiny.in12k"),
        ("", "unknown timm model ''; known: "),
        ("zzzzzzzzzz", "known: convnext_tiny.in12k_ft_in1k, resnet50.a1_in1k"),
    ],
)
def test_unknown_names(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        get_spec(f"timm:{name}")
    assert "timm.list_models" in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vit_large_patch16_sapiens2.fb", "1024 by 768 pixels, not a square"),
        ("deepseek_vit_412m.deepseek_v4_1_flash", "crop mode border, not center or squash"),
    ],
)
def test_settings_that_are_not_supported(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        get_spec(f"timm:{name}")


def test_weights_without_a_place_are_asked_for(tmp_path: Path) -> None:
    spec = get_spec("timm:gcvit_xxtiny")  # timm has an address of its own for these, no repository
    assert spec.source == "file"
    with pytest.raises(UnavailableError, match="Get them from their authors"):
        load_embedder(spec)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"model": {f"module.{n}": t for n, t in tensors.items()}, "epoch": 3},
        lambda tensors: {"state_dict": {}, "state_dict_ema": tensors},
        lambda tensors: {n: t for n, t in tensors.items() if not n.startswith("classifier.")},
    ],
    ids=["checkpoint of training", "averaged weights first", "without classifier"],
)
def test_local_files_of_timm(
    wrap: Callable[[Tensors], Mapping[str, Any]],
    of_timm: Callable[[str], nn.Module],
    tmp_path: Path,
) -> None:
    tensors = of_timm(MODELS[0]).state_dict()
    torch.save(tensors, tmp_path / "plain.pth")
    torch.save(wrap(tensors), tmp_path / "wrapped.pth.tar")
    plain = load_embedder(f"timm:{MODELS[0]}", weights=tmp_path / "plain.pth")
    wrapped = load_embedder(f"timm:{MODELS[0]}", weights=tmp_path / "wrapped.pth.tar")
    assert plain.identity == wrapped.identity


def test_files_of_the_authors_of_a_network(
    of_timm: Callable[..., nn.Module], tmp_path: Path
) -> None:
    """timm's own translation is used, here of the names of the first ConvNeXt."""
    network = of_timm("convnext_atto.d2_in1k")
    save_file(network.state_dict(), tmp_path / "timm.safetensors")
    first = {
        name.replace("stem.", "downsample_layers.0.").replace("head.fc.", "head.")
        .replace("head.norm.", "norm."): tensor
        for name, tensor in network.state_dict().items()
    }  # fmt: skip
    renamed = {}
    for name, tensor in first.items():
        parts = name.split(".")
        if parts[0] == "stages" and parts[2] == "downsample":
            name = ".".join(["downsample_layers", parts[1], *parts[3:]])
        elif parts[0] == "stages":
            rest = ".".join(parts[4:])
            for new, old in (("conv_dw", "dwconv"), ("mlp.fc1", "pwconv1"), ("mlp.fc2", "pwconv2")):
                rest = rest.replace(new, old)
            name = ".".join(["stages", parts[1], parts[3], rest])
        renamed[name] = tensor
    torch.save({"model": renamed}, tmp_path / "authors.pth")
    one, other = (
        load_embedder("timm:convnext_atto.d2_in1k", weights=tmp_path / file).identity
        for file in ("timm.safetensors", "authors.pth")
    )
    assert one.weights_sha256 == other.weights_sha256


def test_the_hash_is_of_what_is_used(of_timm: Callable[..., nn.Module], tmp_path: Path) -> None:
    tensors = of_timm(MODELS[0]).state_dict()

    def identity(**changes: Any) -> Any:
        torch.save({**tensors, **changes}, tmp_path / "weights.pth")
        return load_embedder(f"timm:{MODELS[0]}", weights=tmp_path / "weights.pth").identity

    plain = identity()
    assert identity(**{"classifier.bias": tensors["classifier.bias"] + 1}) == plain
    counter = "bn1.num_batches_tracked"
    assert identity(**{counter: tensors[counter] + 1}) == plain
    assert identity(**{"conv_head.bias": tensors["conv_head.bias"] + 1}) != plain


@pytest.mark.parametrize("name", [MODELS[0], "convnext_atto.d2_in1k"])
def test_other_weights_are_refused_with_the_difference(
    name: str, of_timm: Callable[..., nn.Module], tmp_path: Path
) -> None:
    tensors = of_timm(name).state_dict()
    kernels = [n for n, t in tensors.items() if t.ndim == 4]
    del tensors[kernels[3]]
    tensors[kernels[4]] = torch.zeros(7, 1, 1, 1)
    tensors["stranger"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as error:
        load_embedder(f"timm:{name}", weights=tmp_path / "model.safetensors")
    assert f"1 missing ({kernels[3]})" in str(error.value)
    assert "1 not expected (stranger)" in str(error.value)
    assert f"{kernels[4]} (7, 1, 1, 1), not " in str(error.value)
    assert f"timm/{name}" in str(error.value)


def test_another_model_is_refused(of_timm: Callable[..., nn.Module], tmp_path: Path) -> None:
    save_file(of_timm(MODELS[0]).state_dict(), tmp_path / "model.safetensors")
    for name in ("dla46_c.in1k", "vit_tiny_patch16_224.augreg_in21k"):
        with pytest.raises(InputError, match="missing"):
            load_embedder(f"timm:{name}", weights=tmp_path / "model.safetensors")


def test_a_description_may_give_arguments(
    of_timm: Callable[..., nn.Module], tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    network = of_timm("vit_tiny_patch16_224", img_size=96, num_classes=0)
    save_file(network.state_dict(), tmp_path / "ours.safetensors")
    description = {
        "like": "timm:vit_tiny_patch16_224",
        "weights": "ours.safetensors",
        "input_size": 96,
        "resize": "squash",
        "options": {"arguments": {"img_size": 96}},
    }
    path = tmp_path / "ours.json"
    path.write_text(json.dumps(description))
    embedder: Any = load_embedder(f"file:{path}")
    with torch.inference_mode():
        expected = network(torch.from_numpy(prepare(pictures, embedder.spec)))
    expect_equal(embedder.embed_batch(pictures), unit(expected))
    for wrong, says in (
        ({"input_size": 90}, "does not take pictures of 90 by 90 pixels"),
        ({"dim": 200}, "described as 200-d; .* are 192-d"),
        ({"options": {"arguments": {"colour": "red"}}}, "makes no network .*colour"),
        ({"options": {"arguments": {"checkpoint_path": "x"}}}, "with checkpoint_path; expected"),
        ({"options": {"architecture": "hf-hub:timm/resnet18.a1_in1k"}}, "with an address"),
        ({"options": {"architecture": "vit_miniature"}}, "makes no network 'vit_miniature'"),
    ):
        path.write_text(json.dumps({**description, **wrong}))
        with pytest.raises(UsageError, match=says):
            load_embedder(f"file:{path}")


@pytest.mark.slow
def test_downloaded_once_then_offline(
    run_python: Callable[..., subprocess.CompletedProcess[str]],
    local_hub: Any,
    of_timm: Callable[..., nn.Module],
    tmp_path: Path,
) -> None:
    name = MODELS[0]
    save_file(of_timm(name).state_dict(), tmp_path / "model.safetensors")
    local_hub.repo = f"timm/{name}"
    local_hub.files = {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()}
    script = f"""
import dataclasses, json
from medretrieval.embedders import load_embedder
print(json.dumps(dataclasses.asdict(load_embedder("timm:{name}").identity)))
"""
    first = run_python(script, HF_ENDPOINT=local_hub.url)
    assert first.returncode == 0, first.stderr
    identity = json.loads(first.stdout)
    assert identity["name"] == f"timm:{name}"
    assert identity["weights"] == f"timm/{name}"
    assert identity["revision"] == local_hub.commit
    again = run_python(script, HF_ENDPOINT=local_hub.url, HF_HUB_OFFLINE="1")
    assert json.loads(again.stdout) == identity


# Swin transformers of the papers


def small_swin(name: str, **changes: Any) -> EmbedderSpec:
    spec = REGISTRY[name]
    options = {**spec.options, "arguments": SMALL}
    dim = 48 if name == "ark-projected" else DIM
    return dataclasses.replace(spec, **{"dim": dim, "options": options, **changes})


@pytest.fixture(scope="module")
def swin(of_timm: Callable[..., nn.Module]) -> nn.Module:
    return of_timm("swin_base_patch4_window7_224", num_classes=5, **SMALL)


def before_0_9(tensors: Tensors) -> Tensors:
    """The names of Microsoft's code base, and of timm before 0.9."""
    renamed = {}
    for name, tensor in tensors.items():
        parts = name.replace("head.fc.", "head.").split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) - 1)
        renamed[".".join(parts)] = tensor
    return {
        **renamed,
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64),
        "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49),
    }


def projected(tensors: Tensors, layers: int) -> Tensors:
    """A checkpoint of Ark: one linear layer as projector, or two, and the heads."""
    generator = torch.Generator().manual_seed(3)

    def linear(prefix: str, width: int, out: int) -> Tensors:
        return {
            f"{prefix}.weight": torch.randn(out, width, generator=generator) / width**0.5,
            f"{prefix}.bias": 0.1 * torch.randn(out, generator=generator),
        }

    projector = (
        linear("projector", DIM, 48)
        if layers == 1
        else linear("projector.0", DIM, 48) | linear("projector.2", 48, 48)
    )
    return {**before_0_9(tensors), **projector, **linear("omni_heads.0", 48, 14)}


def training(tensors: Tensors) -> dict[str, Any]:
    """What Ark's engine saves (Ark_Plus/Pretraining/engine.py)."""
    return {
        "epoch": 199,
        "lossMIN": [0.1, 0.2],
        "state_dict": {f"module.{n}": t + 1 for n, t in tensors.items()},
        "teacher": {f"module.{n}": t for n, t in tensors.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.3}]},
        "scheduler": {"base_values": [0.3]},
    }


FILES: dict[str, tuple[str, Callable[[Tensors], Mapping[str, Any]]]] = {
    "timm": ("swin-radimagenet", dict),
    "microsoft": ("swin-radimagenet", lambda t: {"model": before_0_9(t), "epoch": 1}),
    "no head": (
        "swin-radimagenet",
        lambda t: {
            "state_dict": {f"module.{n}": v for n, v in t.items() if not n.startswith("head.")}
        },
    ),
    "ark-6": ("ark", lambda t: projected(t, 2)),
    "ark-5": ("ark", lambda t: projected(t, 1)),
    "ark, training": ("ark", lambda t: training(projected(t, 2))),
    "ark-6, projected": ("ark-projected", lambda t: projected(t, 2)),
    "ark-5, projected": ("ark-projected", lambda t: projected(t, 1)),
    "ark, training, projected": ("ark-projected", lambda t: training(projected(t, 2))),
}


def swin_pixels(spec: EmbedderSpec, pictures: list[np.ndarray]) -> torch.Tensor:
    """torchvision's transforms, as the authors use them."""
    if spec.name.startswith("ark"):  # dataloader.py: PIL's resize, then mode "valid"
        first = [
            transforms.Lambda(lambda image: image.resize((256, 256))),
            transforms.Resize((256, 256)),
            transforms.CenterCrop(224),
        ]
        normalise = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    else:
        first = [transforms.Resize((224, 224))]
        normalise = transforms.Normalize([0.5] * 3, [0.5] * 3)
    transform = transforms.Compose([*first, transforms.ToTensor(), normalise])
    return torch.stack([transform(Image.fromarray(p).convert("RGB")) for p in pictures])


@pytest.mark.parametrize("key", FILES)
def test_swin_equals_timm(
    key: str, swin: nn.Module, tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    name, file = FILES[key]
    spec = small_swin(name)
    content = file(swin.state_dict())
    torch.save(content, tmp_path / "weights.pth.tar")
    embedder = load_embedder(spec, weights=tmp_path / "weights.pth.tar")
    library: Any = swin
    with torch.inference_mode():
        maps = library.forward_features(swin_pixels(spec, pictures))  # (n, 7, 7, DIM)
        expected = maps.mean(dim=(1, 2))
        if name == "ark-projected":
            stored = projected(swin.state_dict(), 1 if "ark-5" in key else 2)
            linear = torch.nn.functional.linear
            if "ark-5" in key:
                expected = linear(expected, stored["projector.weight"], stored["projector.bias"])
            else:
                hidden = linear(expected, stored["projector.0.weight"], stored["projector.0.bias"])
                weight, bias = stored["projector.2.weight"], stored["projector.2.bias"]
                expected = linear(hidden.relu(), weight, bias)
    expect_equal(embedder.embed_batch(pictures), unit(expected))


@pytest.mark.slow
def test_full_size_swin_equals_timm(
    of_timm: Callable[..., nn.Module], tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    spec = REGISTRY["ark-projected"]
    network: Any = of_timm("swin_base_patch4_window7_224", num_classes=0)
    projector = nn.Sequential(nn.Linear(1024, 1376), nn.ReLU(), nn.Linear(1376, 1376))
    of_projector = {f"projector.{n}": t for n, t in projector.state_dict().items()}
    torch.save({**before_0_9(network.state_dict()), **of_projector}, tmp_path / "weights.pth")
    with torch.inference_mode():
        expected = projector(network(swin_pixels(spec, pictures[:2])))
    found = load_embedder(spec, weights=tmp_path / "weights.pth").embed_batch(pictures[:2])
    assert found.shape == (2, 1376)
    assert (found * unit(expected)).sum(axis=1).min() > 0.99999


def test_layouts_of_the_same_swin_have_one_hash(swin: nn.Module, tmp_path: Path) -> None:
    hashes = set()
    for key in ("timm", "microsoft", "no head"):
        torch.save(FILES[key][1](swin.state_dict()), tmp_path / "weights.pth")
        embedder = load_embedder(small_swin("swin-radimagenet"), weights=tmp_path / "weights.pth")
        hashes.add(embedder.identity.weights_sha256)
    assert len(hashes) == 1


@pytest.mark.parametrize("name", ["ark", "ark-projected"])
def test_ark_counts_the_projector_where_it_is_used(
    name: str, swin: nn.Module, tmp_path: Path
) -> None:
    def identity(change: str) -> Any:
        tensors = projected(swin.state_dict(), 2)
        tensors[change] = tensors[change] + 1
        torch.save(tensors, tmp_path / "weights.pth")
        return load_embedder(small_swin(name), weights=tmp_path / "weights.pth").identity

    unused = identity("omni_heads.0.bias")
    assert identity("head.bias") == unused
    assert identity("layers.0.blocks.1.attn_mask") == unused
    assert (identity("projector.2.bias") == unused) == (name == "ark")
    assert identity("layers.0.downsample.norm.bias") != unused
    assert unused.dim == (48 if name == "ark-projected" else DIM)


@pytest.mark.parametrize("key", ["microsoft", "ark-6, projected"])
def test_swin_rows_depend_on_their_picture_alone(
    key: str, swin: nn.Module, tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    name, file = FILES[key]
    torch.save(file(swin.state_dict()), tmp_path / "weights.pth")
    embedder = load_embedder(small_swin(name), weights=tmp_path / "weights.pth")
    alone = np.concatenate([embedder.embed_batch([picture]) for picture in pictures])
    order = [3, 1, 4, 0, 2, 3, 0]
    together = embedder.embed_batch([pictures[i] for i in order])
    np.testing.assert_allclose(together, alone[order], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("key", ["timm", "microsoft", "ark-6"])
def test_another_swin_is_refused_with_the_difference(
    key: str, swin: nn.Module, tmp_path: Path
) -> None:
    name, file = FILES[key]
    tensors = dict(swin.state_dict())
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    tensors[table] = torch.zeros(23 * 23, 1)  # of a window of 12
    del tensors["layers.1.downsample.norm.weight"]
    tensors["layers.0.blocks.2.norm1.weight"] = torch.zeros(16)
    torch.save(file(tensors), tmp_path / "weights.pth")
    with pytest.raises(InputError) as error:
        load_embedder(small_swin(name), weights=tmp_path / "weights.pth")
    text = str(error.value)
    assert "1 missing (layers.1.downsample.norm.weight)" in text
    assert "1 not expected (layers.0.blocks.2.norm1.weight)" in text
    assert f"{table} (529, 1), not (169, 1)" in text


@pytest.mark.parametrize(
    ("layers", "dim", "says"),
    [
        (1, 50, r"projector\.weight \(48, 128\), not \(50, 128\)"),
        (0, 48, r"2 missing \(projector\.bias, projector\.weight\)"),
    ],
)
def test_another_projector_is_refused(
    layers: int, dim: int, says: str, swin: nn.Module, tmp_path: Path
) -> None:
    tensors = projected(swin.state_dict(), 1) if layers else before_0_9(swin.state_dict())
    torch.save(tensors, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=says):
        load_embedder(small_swin("ark-projected", dim=dim), weights=tmp_path / "weights.pth")


def test_the_student_is_not_taken_for_the_teacher(swin: nn.Module, tmp_path: Path) -> None:
    torch.save({"state_dict": projected(swin.state_dict(), 2)}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="saved alone or under teacher"):
        load_embedder(small_swin("ark"), weights=tmp_path / "weights.pth")


def test_facts_of_the_papers() -> None:
    # TS-CBIR, section 2.3: 224 pixels, mean and standard deviation 0.5. CBIR-FM, table 2: Ark,
    # Swin-B, 1024 features. jlianglab/Ark, README: --projector_features 1376.
    spec = REGISTRY["swin-radimagenet"]
    assert (spec.dim, spec.input_size, spec.mean, spec.std) == (1024, 224, (0.5,) * 3, (0.5,) * 3)
    assert (REGISTRY["ark"].dim, REGISTRY["ark-projected"].dim) == (1024, 1376)
    for name in ("ark", "ark-projected"):
        assert REGISTRY[name].mean == (0.485, 0.456, 0.406)
        assert (REGISTRY[name].resize_to, REGISTRY[name].input_size) == (256, 224)


def test_where_a_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRETRIEVAL_WEIGHTS", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"store them as .*ark\.pth\.tar\. "):
        load_embedder("ark")
    (tmp_path / "ark.pth.tar").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read as weights"):
        load_embedder("ark")
