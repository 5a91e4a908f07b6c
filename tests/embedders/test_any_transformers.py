"""hf:<repo> against the transformers library: many kinds of small random networks."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from medretrieval.embedders import get_spec, load_embedder
from medretrieval.embedders.any_transformers import CLASS_TOKEN, MEAN, POOLED, describe
from medretrieval.errors import InputError, UsageError

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
SQUARE = {"image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
TEXT = {**SMALL, "vocab_size": 60, "max_position_embeddings": 12}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

HALF = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
SIDE = {"height": 32, "width": 32}
SQUASH = {"image_processor_type": "ViTImageProcessor", "size": SIDE, "resample": 2}
CROP = {"size": {"shortest_edge": 40}, "crop_size": SIDE, "do_center_crop": True, "resample": 3}

# Model type: the class that is saved, its configuration, the processor, and the feature.
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "vit": ("ViTForImageClassification", {**SMALL, **SQUARE}, SQUASH, CLASS_TOKEN),
    "dinov2": (
        "Dinov2Model",
        {**SMALL, "image_size": 56, "patch_size": 8},
        {"image_processor_type": "BitImageProcessor", **CROP},
        CLASS_TOKEN,
    ),
    "deit": (
        "DeiTForImageClassificationWithTeacher",
        {**SMALL, **SQUARE},
        {
            "image_processor_type": "DeiTImageProcessor",
            "size": {"height": 40, "width": 40},
            "crop_size": SIDE,
            "do_center_crop": True,
            "resample": 3,
        },
        CLASS_TOKEN,
    ),
    "beit": (
        "BeitForImageClassification",
        {**SMALL, **SQUARE, "use_absolute_position_embeddings": True},
        {**SQUASH, "image_processor_type": "BeitImageProcessor", "do_center_crop": False},
        POOLED,
    ),
    "convnext": (
        "ConvNextForImageClassification",
        STAGES,
        {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 32},
            "crop_pct": 0.875,
            "resample": 3,
        },
        POOLED,
    ),
    "resnet": (
        "ResNetForImageClassification",
        {**STAGES, "embedding_size": 8},
        {
            "feature_extractor_type": "ConvNextFeatureExtractor",
            "size": 32,
            "crop_pct": 0.8,
            "resample": 2,
        },
        POOLED,
    ),
    "regnet": ("RegNetModel", {**STAGES, "embedding_size": 8, "groups_width": 8}, SQUASH, POOLED),
    "swin": (
        "SwinForImageClassification",
        {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2],
         "window_size": 4},
        {**SQUASH, "resample": 1},
        POOLED,
    ),
    "clip": (
        "CLIPModel",
        {"vision_config": {**SMALL, **SQUARE}, "text_config": TEXT, "projection_dim": 20},
        {"image_processor_type": "CLIPImageProcessor", **CROP},
        POOLED,
    ),
    "siglip": (
        "SiglipModel",
        {"vision_config": {**SMALL, **SQUARE}, "text_config": {**TEXT, **IDS}},
        {**SQUASH, "image_processor_type": "SiglipImageProcessor", "resample": 3},
        POOLED,
    ),
    "siglip_vision_model": ("SiglipVisionModel", {**SMALL, **SQUARE}, SQUASH, POOLED),
    "clip_vision_model": ("CLIPVisionModel", {**SMALL, **SQUARE}, SQUASH, POOLED),
    "ijepa": ("IJepaModel", {**SMALL, **SQUARE}, SQUASH, MEAN),
    "segformer": (
        "SegformerModel",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
         "num_attention_heads": [1, 1, 1, 1]},
        SQUASH,
        MEAN,
    ),
}  # fmt: skip

Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            class_name, config, processor, _ = KINDS[kind]
            torch.manual_seed(0)
            model = getattr(transformers, class_name)(transformers.CONFIG_MAPPING[kind](**config))
            with torch.no_grad():  # fresh norms and biases are trivial: make every tensor count
                for key, tensor in model.state_dict().items():
                    if tensor.is_floating_point():
                        noise = torch.randn_like(tensor)
                        tensor.add_(0.1 * (noise.abs() if "running_var" in key else noise))
            made[kind] = tmp_path_factory.mktemp(kind)
            model.save_pretrained(made[kind])
            stored = {"do_resize": True, "do_normalize": True, "do_rescale": True, **processor}
            path = made[kind] / "preprocessor_config.json"
            path.write_text(json.dumps({**stored, **HALF}))
        return made[kind]

    return get


def _expected(kind: str, where: Path, picture: np.ndarray) -> np.ndarray:
    """The library's own feature of its own pixels, made by its Pillow-backed processor."""
    class_name, _, _, feature = KINDS[kind]
    model = getattr(transformers, class_name).from_pretrained(where).eval()
    model = getattr(model, "vision_model", None) or model.base_model
    processor = transformers.AutoImageProcessor.from_pretrained(where, backend="pil")
    inputs = processor(Image.fromarray(picture).convert("RGB"), return_tensors="pt")
    with torch.inference_mode():
        output = model(pixel_values=inputs["pixel_values"])
    states = output.last_hidden_state
    return {
        CLASS_TOKEN: lambda: states[0, 0],
        POOLED: lambda: output.pooler_output[0].flatten(),
        MEAN: lambda: states[0].mean(0) if states.ndim == 3 else states[0].mean((1, 2)),
    }[feature]().numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_library(kind: str, folder: Folder, pictures: list[np.ndarray]) -> None:
    where = folder(kind)
    embedder = load_embedder("hf:lab/model", weights=where)
    assert embedder.identity.pooling == KINDS[kind][3]
    for row, picture in zip(embedder.embed_batch(pictures), pictures, strict=True):
        expected = _expected(kind, where, picture)
        assert row @ expected / np.linalg.norm(expected) > 0.9999


@pytest.mark.parametrize("kind", ["vit", "resnet", "clip", "segformer"])
def test_rows_depend_on_their_picture_alone(
    kind: str, folder: Folder, pictures: list[np.ndarray]
) -> None:
    embedder = load_embedder("hf:lab/model", weights=folder(kind))
    alone = np.concatenate([embedder.embed_batch([picture]) for picture in pictures])
    order = [3, 1, 4, 0, 2, 3]
    together = embedder.embed_batch([pictures[i] for i in order])
    np.testing.assert_allclose(together, alone[order], atol=1e-5)
    assert (alone @ alone.T)[~np.eye(len(alone), dtype=bool)].min() < 0.999


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deit", "convnext", "swin", "siglip", "segformer"])
def test_openvino_gives_the_same(kind: str, folder: Folder, pictures: list[np.ndarray]) -> None:
    where = folder(kind)
    compiled = load_embedder("hf:lab/model", weights=where, runtime="openvino", threads=1)
    plain = load_embedder("hf:lab/model", weights=where).embed_batch(pictures)
    assert (compiled.embed_batch(pictures) * plain).sum(axis=1).min() > 0.99999


def test_the_same_space_as_a_registered_embedder(
    folder: Folder, tiny_folder: Callable[[str], Path], tiny_spec: Callable[..., Any]
) -> None:
    for name in ("dinov2-base", "dinov2-small-reg", "vit-b16-in21k"):
        where = tiny_folder(name)
        registered = load_embedder(tiny_spec(name), weights=where).identity
        assert load_embedder("hf:lab/model", weights=where).identity == dataclasses.replace(
            registered, name="hf:lab/model"
        )


def test_specification_of_a_local_folder(folder: Folder) -> None:
    spec = describe("lab/model", folder("convnext"))
    assert (spec.name, spec.weights, spec.dim) == ("hf:lab/model", "lab/model", 32)
    assert (spec.resize, spec.resize_to, spec.input_size) == ("crop", 36, 32)
    assert spec.mean == (0.5, 0.4, 0.3)
    identity = load_embedder("hf:lab/model", weights=folder("convnext")).identity
    assert (identity.name, identity.revision) == ("hf:lab/model", "local file")
    assert identity.preprocessing == spec.preprocessing


# A head or the other side of the model, a tensor that is used, and what that is called inside.
TENSORS = {
    "vit": ("classifier.weight", "vit.layernorm.bias"),
    "clip": ("visual_projection.weight", "vision_model.post_layernorm.bias"),
    "resnet": ("classifier.1.weight", "resnet.embedder.embedder.normalization.running_mean"),
    "swin": ("classifier.weight", "swin.layernorm.weight"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_identity_and_refusals(kind: str, folder: Folder, tmp_path: Path) -> None:
    head, used = TENSORS[kind]
    plain = load_embedder("hf:lab/model", weights=folder(kind)).identity
    where = tmp_path / "changed"
    shutil.copytree(folder(kind), where)
    tensors = load_file(where / "model.safetensors")
    (where / "model.safetensors").unlink()

    def load(changed: dict[str, torch.Tensor]) -> Any:
        torch.save(changed, where / "pytorch_model.bin")
        return load_embedder("hf:lab/model", weights=where).identity

    assert load({**tensors, head: tensors[head] + 1}) == plain
    assert load({k: v for k, v in tensors.items() if k != head}) == plain
    assert load({**tensors, used: tensors[used] + 1}).weights_sha256 != plain.weights_sha256
    prefix, _, short = used.partition(".")
    with pytest.raises(InputError, match=f"1 missing .*{short}"):
        load({k: v for k, v in tensors.items() if k != used})
    with pytest.raises(InputError, match=r"1 not expected .*adapter"):
        load({**tensors, f"{prefix}.adapter": torch.ones(1)})
    with pytest.raises(InputError, match=f"of another shape .*{short}"):
        load({**tensors, used: torch.ones(1, 2)})


def test_a_file_without_a_head_has_nothing_else(folder: Folder, tmp_path: Path) -> None:
    where = tmp_path / "changed"
    shutil.copytree(folder("dinov2"), where)
    tensors = load_file(where / "model.safetensors")
    save_file({**tensors, "classifier.weight": torch.ones(1)}, where / "model.safetensors")
    with pytest.raises(InputError, match=r"1 not expected .*classifier"):
        load_embedder("hf:lab/model", weights=where)


@pytest.mark.parametrize(
    ("file", "changes", "says"),
    [
        ("config.json", {"auto_map": {"AutoModel": "evil.Model"}}, "auto_map.*without"),
        ("config.json", {"quantization_config": {"bits": 4}}, "quantised weights"),
        ("config.json", {"model_type": "ours"}, "type 'ours', which transformers"),
        ("config.json", {"model_type": ["vit"]}, "which transformers"),
        ("config.json", {"model_type": "bert"}, "no model that takes pictures alone"),
        ("config.json", {"model_type": "videomae"}, "cannot be given one picture"),
        ("config.json", {"model_type": "vit_mae"}, "hides patches at random.*mae-vit-b"),
        ("config.json", {"model_type": "timm_wrapper"}, "name it with timm:"),
        ("config.json", {"model_type": "clip"}, "has no vision_config"),
        ("config.json", {"hidden_size": 31}, r"of another shape .*\(31,\)"),
        ("config.json", {"image_size": 64}, "cannot be given one picture of 32 pixels"),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "e.P"}}, "auto_map"),
        ("preprocessor_config.json", {"resample": None}, "does not say resample"),
        ("preprocessor_config.json", {"image_mean": None}, "does not say image_mean"),
        ("preprocessor_config.json", {"do_resize": False}, "do_resize False"),
        (
            "preprocessor_config.json",
            {"do_center_crop": True, "crop_size": 48},
            "crop_size 48, larger than size 32",
        ),
        (
            "preprocessor_config.json",
            {"image_processor_type": "MobileViTImageProcessor"},
            "kind MobileViT",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(
    file: str, changes: dict[str, Any], says: str, folder: Folder, tmp_path: Path
) -> None:
    where = tmp_path / "changed"
    shutil.copytree(folder("vit"), where)
    (where / "evil.py").write_text("raise SystemExit('ran')")
    stored = json.loads((where / file).read_text())
    (where / file).write_text(json.dumps({**stored, **changes}))
    with pytest.raises(InputError, match=says):
        load_embedder("hf:lab/model", weights=where)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused(file: str, folder: Folder, tmp_path: Path) -> None:
    where = tmp_path / "changed"
    shutil.copytree(folder("vit"), where)
    (where / file).unlink()
    with pytest.raises(InputError, match=file.replace(".", r"\.")):
        load_embedder("hf:lab/model", weights=where)


def test_a_file_instead_of_a_folder_is_refused() -> None:
    with pytest.raises(InputError, match="is no folder"):
        load_embedder("hf:lab/model", weights=Path(__file__))


@pytest.mark.parametrize("reference", ["", "model", "a/b/c", "a/b@", "a/../b", "a b/c", "/a/b"])
def test_names_that_are_no_repository_are_refused(reference: str) -> None:
    with pytest.raises(UsageError, match="names no repository; expected hf:<owner>/<name>"):
        get_spec(f"hf:{reference}")


# ------------------------------------------------------------------ from a Hub on this machine

SCRIPT = """
import dataclasses, json
import numpy as np
from medretrieval.embedders import get_spec, load_embedder
from medretrieval.errors import MedRetrievalError
found = []
for name in {names!r}:
    try:
        embedder = load_embedder(name)
        picture = np.arange(1200, dtype=np.uint32).reshape(30, 40).astype(np.uint8)
        row = embedder.embed_batch([picture])[0]
        found.append([dataclasses.asdict(embedder.identity), row.tolist()])
    except MedRetrievalError as error:
        found.append(str(error))
print(json.dumps(found))
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


def _found(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def served(local_hub: Any, folder: Folder) -> Any:
    local_hub.repo = "lab/model"
    local_hub.files = {path.name: path.read_bytes() for path in folder("clip").iterdir()}
    return local_hub


@pytest.mark.slow
def test_an_index_finds_the_same_commit_again(run_python: Run, served: Any, folder: Folder) -> None:
    pinned = f"hf:lab/model@{served.commit}"
    first = _found(run_python(SCRIPT.format(names=["hf:lab/model"]), HF_ENDPOINT=served.url))
    ((identity, row),) = first
    assert (identity["name"], identity["revision"]) == (pinned, served.commit)
    assert identity["weights"] == "lab/model"
    local = load_embedder("hf:lab/model", weights=folder("clip"))
    assert identity["weights_sha256"] == local.identity.weights_sha256
    picture = np.arange(1200, dtype=np.uint32).reshape(30, 40).astype(np.uint8)
    np.testing.assert_allclose(local.embed_batch([picture])[0], row, atol=1e-6)
    # The name in the identity loads the same again, offline too; the branch by its last commit.
    asked = len(served.requests)
    script = SCRIPT.format(names=[pinned, "hf:lab/model"])
    again = _found(run_python(script, HF_ENDPOINT=served.url, HF_HUB_OFFLINE="1"))
    assert again == [first[0], first[0]]
    assert len(served.requests) == asked


def test_offline_without_a_copy(run_python: Run) -> None:
    script = SCRIPT.format(names=["hf:lab/model", "hf:lab/model@" + 40 * "a"])
    unpinned, pinned = _found(run_python(script, HF_HUB_OFFLINE="1"))
    assert "HF_HUB_OFFLINE is set" in unpinned
    assert "hf download lab/model --revision main" in unpinned
    assert "weights=FOLDER" in unpinned
    assert f"--revision {40 * 'a'}" in pinned


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("config.json", "has no config.json"),
        ("preprocessor_config.json", "has no preprocessor_config.json"),
        ("model.safetensors", "has no model.safetensors or pytorch_model.bin"),
    ],
)
def test_a_repository_that_lacks_a_file(
    missing: str, says: str, run_python: Run, served: Any
) -> None:
    served.files.pop(missing)
    (message,) = _found(run_python(SCRIPT.format(names=["hf:lab/model"]), HF_ENDPOINT=served.url))
    assert says in message


@pytest.mark.slow
def test_a_repository_that_is_not_there(run_python: Run, local_hub: Any) -> None:
    local_hub.error = (404, "RepoNotFound")
    (message,) = _found(
        run_python(SCRIPT.format(names=["hf:lab/other"]), HF_ENDPOINT=local_hub.url)
    )
    assert "no such public repository" in message
