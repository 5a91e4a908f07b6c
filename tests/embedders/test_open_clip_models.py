"""Our image sides against open_clip's own models and transforms, with random weights."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.pretrained import get_pretrained_cfg
from PIL import Image

from medretrieval.embedders import REGISTRY, EmbedderSpec, get_spec, load_embedder
from medretrieval.embedders.base import unit_rows
from medretrieval.embedders.open_clip_models import build_tower
from medretrieval.embedders.preprocess import prepare
from medretrieval.embedders.rows.contrastive import OPEN_CLIP_CONFIG, PROJECTED
from medretrieval.errors import InputError, UnavailableError, UsageError

TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8}
TIMM = {
    "timm_model_name": "vit_tiny_patch16_224",
    "timm_model_pretrained": False,
    "timm_pool": "",
    "timm_proj": "linear",
    "image_size": 224,
}
MODELS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "vit-quickgelu": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "timm": {"embed_dim": 24, "vision_cfg": TIMM, "text_cfg": TEXT, "custom_text": True},
    "resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
        "text_cfg": TEXT,
    },
    "coca": {
        "embed_dim": 24,
        "vision_cfg": {
            **VIT,
            "attentional_pool": True,
            "attn_pooler_heads": 4,
            "attn_pooler_queries": 6,
            "output_tokens": True,
        },
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
        "custom_text": True,
    },
}
SQUASHED = {
    "mean": [0.3, 0.4, 0.5],
    "std": [0.2, 0.3, 0.25],
    "resize_mode": "squash",
    "interpolation": "bilinear",
}
NAME = "open_clip:hf-hub:lab/model"
FILE = "open_clip_pytorch_model.bin"


def write(folder: Path, config: dict[str, Any], preprocess: dict[str, Any]) -> Path:
    """A repository of open_clip with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(stored))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}")
    with torch.no_grad():  # fresh norms and biases are trivial: make every tensor count
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save(model.state_dict(), folder / FILE)
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def get(model: str, preprocess: dict[str, Any] | None = None) -> Path:
        key = f"{model}{preprocess}"
        if key not in made:
            folder = tmp_path_factory.mktemp("repository")
            made[key] = write(folder, MODELS[model], preprocess or {})
        return made[key]

    return get


@pytest.fixture
def many(pictures: list[np.ndarray]) -> list[np.ndarray]:
    """The pictures, and two whose centre has a margin of 1.5 pixels after resizing to 32."""
    return [*pictures, pictures[0][:35, :32], pictures[1][:32, :35]]


def reference(folder: Path, pictures: list[np.ndarray], *, trunk: bool = False) -> np.ndarray:
    """What open_clip makes of the pictures: of the whole, or of the trunk of its image tower."""
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model.eval()
    encode = model.visual.trunk if trunk else model.encode_image
    with torch.inference_mode():
        rows = [encode(preprocess(Image.fromarray(picture))[None]) for picture in pictures]
    return unit_rows(torch.cat(rows).numpy())


def state(folder: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(folder / FILE, weights_only=True)
    return loaded


def tiny(name: str, model: str) -> EmbedderSpec:
    """The registered specification for a small network of the same kind."""
    spec, config = REGISTRY[name], MODELS[model]
    vision = config["vision_cfg"]
    backbone = spec.options["head"] == "backbone"
    width = vision.get("width", 192)  # of timm's ViT-Ti
    return dataclasses.replace(
        spec,
        dim=width if backbone else config["embed_dim"],
        input_size=vision["image_size"],
        resize_to=vision["image_size"],
        options={**spec.options, "embed_dim": config["embed_dim"], "vision_cfg": vision},
    )


@pytest.mark.parametrize("preprocess", [{}, SQUASHED], ids=["default", "squashed"])
@pytest.mark.parametrize("model", MODELS)
def test_equals_open_clip(
    repository: Callable[..., Path],
    many: list[np.ndarray],
    model: str,
    preprocess: dict[str, Any],
) -> None:
    folder = repository(model, preprocess)
    embedder: Any = load_embedder(NAME, weights=folder)
    found, expected = embedder.embed_batch(many), reference(folder, many)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found * expected).sum(axis=1).min() > 0.9999
    assert embedder.identity.name == NAME
    assert embedder.identity.pooling == PROJECTED


def test_equals_open_clip_by_openvino(
    repository: Callable[..., Path], pictures: list[np.ndarray]
) -> None:
    folder = repository("vit")
    found = load_embedder(NAME, weights=folder, runtime="openvino").embed_batch(pictures)
    assert (found * reference(folder, pictures)).sum(axis=1).min() > 0.9999


def test_the_activation_matters(
    repository: Callable[..., Path], tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    quick = load_embedder(NAME, weights=repository("vit-quickgelu")).embed_batch(pictures)
    (tmp_path / FILE).write_bytes((repository("vit-quickgelu") / FILE).read_bytes())
    (tmp_path / OPEN_CLIP_CONFIG).write_bytes((repository("vit") / OPEN_CLIP_CONFIG).read_bytes())
    other = load_embedder(NAME, weights=tmp_path).embed_batch(pictures)
    assert np.abs(quick - other).max() > 1e-4


@pytest.mark.parametrize("head", ["backbone", "projected"])
def test_biomedclip(repository: Callable[..., Path], many: list[np.ndarray], head: str) -> None:
    folder = repository("timm")
    spec = tiny({"backbone": "biomedclip", "projected": "biomedclip-projected"}[head], "timm")
    found = load_embedder(spec, weights=folder / FILE).embed_batch(many)
    expected = reference(folder, many, trunk=head == "backbone")
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["bmc-clip", "bmc-clip-backbone"])
def test_bmc_clip(
    repository: Callable[..., Path], tmp_path: Path, many: list[np.ndarray], name: str
) -> None:
    folder = repository("vit")
    tensors = state(folder)
    path = tmp_path / "BMC_CLIP_CF.pt"  # a checkpoint as open_clip_train.main writes them
    torch.save(
        {
            "epoch": 9,
            "name": "run",
            "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()},
            "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]},
        },
        path,
    )
    found = load_embedder(tiny(name, "vit"), weights=path).embed_batch(many)
    if name == "bmc-clip-backbone":  # what the projection is applied to
        found = unit_rows(found @ tensors["visual.proj"].numpy())
    np.testing.assert_allclose(found, reference(folder, many), atol=1e-5)


def test_rows() -> None:
    vit_l = open_clip.get_model_config("ViT-L-14")
    for name, dim in (("bmc-clip", 768), ("bmc-clip-backbone", 1024)):
        options = REGISTRY[name].options
        assert options["vision_cfg"] == vit_l["vision_cfg"]
        assert options["embed_dim"] == vit_l["embed_dim"] == 768
        assert not options["quick_gelu"]
        assert REGISTRY[name].dim == dim
    # open_clip_config.json of microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224.
    config = {
        "embed_dim": 512,
        "vision_cfg": {
            "timm_model_name": "vit_base_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
    }
    for name, dim in (("biomedclip", 768), ("biomedclip-projected", 512)):
        options = REGISTRY[name].options
        assert {key: options[key] for key in config} == config
        assert REGISTRY[name].dim == dim
    for name in ("bmc-clip", "bmc-clip-backbone", "biomedclip", "biomedclip-projected"):
        default = open_clip.transform.PreprocessCfg()
        spec = REGISTRY[name]
        assert (spec.mean, spec.std) == (default.mean, default.std)
        assert (spec.resize, spec.interpolation, spec.crop_rounding) == ("crop", "bicubic", "even")
        assert (default.resize_mode, default.interpolation, default.size) == (
            "shortest",
            "bicubic",
            224,
        )


@pytest.mark.slow
def test_biomedclip_full_size(tmp_path: Path, pictures: list[np.ndarray]) -> None:
    options = REGISTRY["biomedclip"].options
    config = {**{key: options[key] for key in ("embed_dim", "vision_cfg")}, "text_cfg": TEXT}
    folder = write(tmp_path, {**config, "custom_text": True}, {})
    found = load_embedder("biomedclip", weights=folder).embed_batch(pictures[:2])
    np.testing.assert_allclose(found, reference(folder, pictures[:2], trunk=True), atol=1e-5)
    del found
    found = load_embedder("biomedclip-projected", weights=folder / FILE).embed_batch(pictures[:2])
    np.testing.assert_allclose(found, reference(folder, pictures[:2]), atol=1e-5)


def test_vit_l_has_the_tensors_of_open_clip() -> None:
    with torch.device("meta"):
        tower = build_tower(REGISTRY["bmc-clip"])
        model = open_clip.CLIP(**open_clip.get_model_config("ViT-L-14"))
    own = {name: tensor.shape for name, tensor in tower.state_dict().items()}
    assert own == {name: tensor.shape for name, tensor in model.visual.state_dict().items()}


@pytest.mark.parametrize("model", ["vit", "timm"])
def test_rows_depend_on_their_picture_alone(
    repository: Callable[..., Path], many: list[np.ndarray], model: str
) -> None:
    embedder: Any = load_embedder(NAME, weights=repository(model))
    alone = embedder.embed_batch(many)
    with torch.inference_mode():
        together = embedder.forward(torch.from_numpy(prepare(many, embedder.spec)))
    np.testing.assert_allclose(unit_rows(together.numpy()), alone, atol=1e-5)


def test_the_hash_is_of_what_the_feature_depends_on(
    repository: Callable[..., Path], tmp_path: Path
) -> None:
    def hashed(spec: EmbedderSpec, change: str = "") -> str:
        tensors = state(repository("vit"))
        if change:
            tensors[change] = tensors[change] + 1
        path = tmp_path / "weights.bin"
        torch.save(tensors, path)
        return str(load_embedder(spec, weights=path).identity.weights_sha256)

    backbone, projected = tiny("bmc-clip-backbone", "vit"), tiny("bmc-clip", "vit")
    assert hashed(backbone) == hashed(backbone, "visual.proj")
    assert hashed(projected) != hashed(projected, "visual.proj")
    for spec in (backbone, projected):
        assert hashed(spec) != hashed(spec, "visual.ln_pre.bias")
        for name in ("logit_scale", "positional_embedding", "text_projection", "ln_final.bias"):
            assert hashed(spec) == hashed(spec, name)


def test_counts_of_batches_do_not_matter(
    repository: Callable[..., Path], tmp_path: Path, pictures: list[np.ndarray]
) -> None:
    folder = repository("resnet")
    tensors = state(folder)
    kept = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    assert len(kept) < len(tensors)
    (tmp_path / OPEN_CLIP_CONFIG).write_bytes((folder / OPEN_CLIP_CONFIG).read_bytes())
    torch.save(kept, tmp_path / FILE)
    one, other = (load_embedder(NAME, weights=path) for path in (folder, tmp_path))
    assert one.identity == other.identity
    np.testing.assert_array_equal(one.embed_batch(pictures), other.embed_batch(pictures))


@pytest.mark.parametrize("model", ["vit", "timm"])
def test_other_weights_are_refused_with_the_difference(
    repository: Callable[..., Path], tmp_path: Path, model: str
) -> None:
    folder = repository(model)
    tensors = state(folder)
    first, second = [name for name in tensors if name.startswith("visual.")][:2]
    del tensors[first]
    tensors[second] = torch.zeros(7)
    tensors["visual.extra"] = tensors["stray"] = torch.zeros(2)
    (tmp_path / OPEN_CLIP_CONFIG).write_bytes((folder / OPEN_CLIP_CONFIG).read_bytes())
    torch.save(tensors, tmp_path / FILE)
    with pytest.raises(InputError) as error:
        load_embedder(NAME, weights=tmp_path)
    text = str(error.value)
    assert f"1 missing ({first})" in text
    assert "2 not expected (stray, visual.extra)" in text
    assert f"{second} (7,), not" in text


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models among those that open_clip knows by name."""
    from open_clip import factory, pretrained

    for name in ("vit", "vit-quickgelu"):
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, MODELS[name])
    tags = {
        "lab_s1": pretrained._slpcfg(hf_hub="lab/model/"),
        "lab_s2": pretrained._pcfg(hf_hub="lab/model/pytorch_model.bin"),
        "elsewhere": pretrained._pcfg(url="https://example.org/weights.pt"),
    }
    quick = pretrained._pcfg(hf_hub="lab/model/", quick_gelu=True)
    monkeypatch.setitem(pretrained._PRETRAINED, "vit", {**tags, "quick": quick})
    monkeypatch.setitem(pretrained._PRETRAINED, "vit-quickgelu", {"quick": quick})


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("name", ["vit/lab_s1", "vit/LAB-S1"])
def test_a_model_by_name(
    repository: Callable[..., Path], pictures: list[np.ndarray], name: str
) -> None:
    folder = repository("vit", {**SQUASHED, "mean": [0.5] * 3, "std": [0.5] * 3,
                                "interpolation": "bicubic"})  # fmt: skip
    embedder: Any = load_embedder(f"open_clip:{name}", weights=folder / FILE)
    np.testing.assert_allclose(
        embedder.embed_batch(pictures), reference(folder, pictures), atol=1e-5
    )
    assert embedder.identity.name == "open_clip:vit/lab_s1"
    spec = embedder.spec
    assert (spec.source, spec.weights, spec.revision) == ("hub", "lab/model", "main")
    assert spec.filenames == ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    assert get_spec(spec.name) == spec
    filenames = get_spec("open_clip:vit/lab_s2").filenames
    assert filenames == ("pytorch_model.safetensors", "pytorch_model.bin")


def test_published_models_by_name() -> None:
    spec = get_spec("open_clip:ViT-B/32/laion2b_s34b_b79k")
    assert spec.name == "open_clip:ViT-B-32/laion2b_s34b_b79k"
    assert spec.weights == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    assert (spec.dim, spec.input_size, spec.resize) == (512, 224, "crop")
    siglip = get_spec("open_clip:ViT-B-16-SigLIP-384/webli")
    assert (siglip.dim, siglip.input_size, siglip.resize) == (768, 384, "squash")
    assert siglip.mean == (0.5, 0.5, 0.5)


def test_every_published_model_is_described_or_has_another_name() -> None:
    published = open_clip.list_pretrained()
    # Trained with QuickGELU, in models without it.
    wrong = [
        (model, tag)
        for model, tag in published
        if get_pretrained_cfg(model, tag).get("quick_gelu")
        and not open_clip.get_model_config(model).get("quick_gelu")
    ]
    assert ("ViT-L-14", "openai") in wrong
    for model, tag in published:
        if (model, tag) in wrong:
            with pytest.raises(UsageError, match=f"use open_clip:{model}-quickgelu/{tag}"):
                get_spec(f"open_clip:{model}/{tag}")
            model = f"{model}-quickgelu"
        spec = get_spec(f"open_clip:{model}/{tag}")
        assert (spec.name, spec.source) == (f"open_clip:{model}/{tag}", "hub")


@pytest.mark.usefixtures("named")
def test_weights_of_ones_own(
    repository: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pictures: list[np.ndarray],
) -> None:
    monkeypatch.setenv("MEDRETRIEVAL_WEIGHTS", str(tmp_path))
    with pytest.raises(UsageError, match=r"names no weights; expected one of open_clip:vit/lab_s1"):
        load_embedder("open_clip:vit")
    folder = repository("vit")
    found = load_embedder("open_clip:vit", weights=folder / FILE)
    expected = reference(folder, pictures)
    np.testing.assert_allclose(found.embed_batch(pictures), expected, atol=1e-5)
    (tmp_path / "open_clip:vit.bin").write_bytes((folder / FILE).read_bytes())
    stored = load_embedder("open_clip:vit")
    assert stored.identity == found.identity
    # A whole repository in the folder for weights needs no network either.
    own = tmp_path / NAME
    own.mkdir(parents=True)
    for name in (FILE, OPEN_CLIP_CONFIG):
        (own / name).write_bytes((folder / name).read_bytes())
    assert load_embedder(NAME).identity.space == found.identity.space


@pytest.mark.usefixtures("named")
def test_names_that_are_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown model of open_clip 'ViT-B-33'.*ViT-B-32.*list"):
        get_spec("open_clip:ViT-B-33/openai")
    with pytest.raises(
        UsageError, match=r"weights of open_clip:vit 'lab_s3'; did you mean.*lab_s1"
    ):
        get_spec("open_clip:vit/lab_s3")
    with pytest.raises(UsageError, match=r"QuickGELU.*use open_clip:vit-quickgelu/quick"):
        get_spec("open_clip:vit/quick")
    with pytest.raises(UnavailableError, match=r"elsewhere of vit.*example\.org.*weights=FILE"):
        get_spec("open_clip:vit/elsewhere")
    for reference_ in ("hf-hub:nothing", "hf-hub:a/b/c", "hf-hub:a/b@", "hf-hub:../b c"):
        with pytest.raises(UsageError, match="names no repository; expected"):
            get_spec(f"open_clip:{reference_}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preprocess_cfg": {"resize_mode": "longest"}}, "resized by 'longest'"),
        ({"preprocess_cfg": {"mean": ["a", 1, 2]}}, "3 channels"),
        ({"preprocess_cfg": []}, "no configuration of open_clip"),
        ({"model_cfg": None}, "no configuration of open_clip"),
        ({"model_cfg": {"embed_dim": 24}}, "no vision_cfg and embed_dim"),
        ({"model_cfg": {"embed_dim": 24, "vision_cfg": {"image_size": [32, 48]}}}, "a square"),
        ({"model_cfg": {"embed_dim": 24, "vision_cfg": {**VIT, "odd": 1}}}, "cannot be built"),
        (
            {"model_cfg": {"embed_dim": 24, "vision_cfg": {"timm_model_name": "hf-hub:a/b"}}},
            "'hf-hub:a/b', which timm",
        ),
    ],
)
def test_configurations_that_are_refused(
    repository: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = repository("vit")
    stored = json.loads((folder / OPEN_CLIP_CONFIG).read_text())
    (tmp_path / OPEN_CLIP_CONFIG).write_text(json.dumps({**stored, **changes}))
    (tmp_path / FILE).write_bytes((folder / FILE).read_bytes())
    with pytest.raises(InputError, match=message):
        load_embedder(NAME, weights=tmp_path)


def test_a_folder_without_its_configuration(repository: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"no folder with open_clip_config\.json"):
        load_embedder(NAME, weights=repository("vit") / FILE)


def test_nothing_is_fetched_when_a_tower_is_built(
    repository: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no network in this test")

    folder = repository("timm")
    stored = json.loads((folder / OPEN_CLIP_CONFIG).read_text())
    stored["model_cfg"]["vision_cfg"]["timm_model_pretrained"] = True
    stored["model_cfg"]["text_cfg"] = {"hf_model_name": "lab/text", "hf_tokenizer_name": "lab/text"}
    (tmp_path / OPEN_CLIP_CONFIG).write_text(json.dumps(stored))
    (tmp_path / FILE).write_bytes((folder / FILE).read_bytes())
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert load_embedder(NAME, weights=tmp_path).identity.dim == 24


@pytest.mark.slow
def test_a_repository_of_the_hub(
    repository: Callable[..., Path],
    local_hub: Any,
    run_python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    folder = repository("vit")
    local_hub.repo = "lab/model"
    local_hub.files = {name: (folder / name).read_bytes() for name in (FILE, OPEN_CLIP_CONFIG)}
    script = """
import dataclasses, json
from medretrieval.embedders import load_embedder
print(json.dumps(dataclasses.asdict(load_embedder({name!r}).identity)))
"""
    name = f"{NAME}@{local_hub.commit}"
    first = run_python(script.format(name=NAME), HF_ENDPOINT=local_hub.url)
    assert first.returncode == 0, first.stderr
    identity = json.loads(first.stdout)
    assert identity["name"] == name
    assert (identity["weights"], identity["revision"]) == ("lab/model", local_hub.commit)
    # The name that an index stores opens the same weights, without a network.
    again = run_python(script.format(name=name), HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == identity
