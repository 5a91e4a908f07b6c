"""Merlin against the network and the transforms of its own package, with random weights."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import torchvision
from merlin.data.monai_transforms import ImageTransforms
from merlin.models import i3res
from monai.transforms import CenterSpatialCropd, Compose, SpatialPadd
from scipy.ndimage import gaussian_filter

from medretrieval.embedders import REGISTRY, EmbedderSpec, load_embedder
from medretrieval.embedders import merlin as adapter
from medretrieval.errors import InputError, UsageError
from medretrieval.imaging import read_volume
from medretrieval.types import Grid, Volume

# Of the published checkpoint: merlin-vlm 0.0.7, merlin/models/load.py, MODEL_CONFIGS["default"].
FILE = "i3_resnet_clinical_longformer_best_clip_04-02-2024_23-21-36_epoch_99.pt"
IMAGE = "encode_image.i3_resnet."
LAYERS = [1, 1, 1, 1]  # of a network of the same classes that is fast
_FIELD = (SpatialPadd, CenterSpatialCropd)
PHENOTYPES = 5  # 1692 in the published one; the classifier is not used


SIZE = [64, 48, 48]  # of a field that is fast, with different sides


def small(name: str = "merlin", size: list[int] = SIZE) -> EmbedderSpec:
    spec = REGISTRY[name]
    field = {**spec.options["volume"], "size": size}
    return dataclasses.replace(spec, options={**spec.options, "layers": LAYERS, "volume": field})


@pytest.fixture(scope="module")
def reference() -> Any:
    """The image side as merlin-vlm builds it, small, with random weights in every tensor."""
    torch.manual_seed(3)
    network = i3res.I3ResNet(
        torchvision.models.resnet.ResNet(torchvision.models.resnet.Bottleneck, LAYERS),
        class_nb=PHENOTYPES,
        conv_class=True,
    )
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand_like(tensor))
            elif tensor.is_floating_point():
                # The inflated kernels are zero but in the middle: make every weight count.
                tensor.add_(0.3 * tensor.std().nan_to_num(0.1) * torch.randn_like(tensor))
    return network.eval()


@pytest.fixture(scope="module")
def state(reference: Any) -> dict[str, torch.Tensor]:
    """A state dict with the names of the published file: both encoders and the scale."""
    return {
        **{f"{IMAGE}{name}": tensor for name, tensor in reference.state_dict().items()},
        "encode_text.text_encoder.embeddings.word_embeddings.weight": torch.zeros(3, 2),
        "encode_text.linear_layer.weight": torch.zeros(2, 2),
        "logit_scale": torch.ones([]),
    }


@pytest.fixture(scope="module")
def file(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("merlin") / FILE
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def pooled(file: Path) -> Any:
    return load_embedder(small(), weights=file)


def turned(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def affine(matrix: Any, origin: Any = (12.0, -30.0, 7.5)) -> np.ndarray:
    full = np.eye(4)
    full[:3, :3] = matrix
    full[:3, 3] = origin
    return full


# Smaller than the network's field of 336 x 336 x 480 mm, larger, and both, along different axes.
GRIDS = {
    "LPS, thick slices": ((120, 110, 40), affine(np.diag([-2.0, -2.0, 5.0]))),
    "RAS at the network's own spacing, wide": ((260, 250, 20), affine(np.diag([1.5, 1.5, 3.0]))),
    "sagittal, feet first, thin": (
        (60, 130, 220),
        affine([[0, 0, -1.2], [-1.7, 0, 0], [0, -2.3, 0]]),
    ),
    "oblique": ((90, 80, 60), affine(turned(0.3) @ np.diag([3.0, 2.5, 9.0]))),
}


def smooth(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Smooth noise that looks like Hounsfield units; some of it beyond -1000 and 1000."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    return (noise / noise.std() * 600 - 200).astype(np.int16)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str) -> Path:
        shape, matrix = GRIDS[name]
        path = tmp_path / "ct.nii.gz"
        nib.save(nib.Nifti1Image(smooth(shape), matrix), path)
        return path

    return write


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def reference_features(network: Any, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """What merlin-vlm gives with ImageEmbedding=True, and its contrastive feature."""
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gradient checkpoints, called as in older versions
        contrastive, _ = network(pixels)
        network.ImageEmbedding = True
        image = network(pixels)
        network.ImageEmbedding = False
    return image[0, 0].numpy(), contrastive[0].numpy()


@pytest.mark.parametrize("name", GRIDS)
def test_the_input_is_that_of_merlin_reading_the_same_file(
    save: Callable[..., Path], name: str, file: Path
) -> None:
    path = save(name)
    theirs = ImageTransforms({"image": str(path)})["image"].as_tensor()
    assert theirs.shape == (1, 224, 224, 160)
    own = load_embedder(small(size=[224, 224, 160]), weights=file).prepare(read_volume(path))
    np.testing.assert_allclose(own.numpy(), theirs.numpy(), atol=1e-6)


def features_match(path: Path, theirs: torch.Tensor, size: list[int], file: Path, net: Any) -> None:
    volume = read_volume(path)
    image, contrastive = reference_features(net, theirs[None])
    own = load_embedder(small(size=size), weights=file).embed_volume(volume)
    assert own.shape == (2048,)
    assert own.dtype == np.float32
    assert np.linalg.norm(own) == pytest.approx(1, abs=1e-6)
    assert cosine(own, image) > 0.99999
    projected = load_embedder(small("merlin-contrastive", size), weights=file).embed_volume(volume)
    assert projected.shape == (512,)
    assert cosine(projected, contrastive) > 0.99999


@pytest.mark.parametrize("name", GRIDS)
def test_features_are_those_of_merlin_reading_the_same_file(
    save: Callable[..., Path], name: str, file: Path, reference: Any
) -> None:
    path = save(name)
    steps = [step for step in ImageTransforms.transforms if not isinstance(step, _FIELD)]
    *before, last = steps
    fields = [SpatialPadd("image", SIZE), CenterSpatialCropd("image", SIZE)]
    theirs = Compose([*before, *fields, last])({"image": str(path)})["image"].as_tensor()
    features_match(path, theirs, SIZE, file, reference)


@pytest.mark.slow
def test_features_of_the_whole_field(save: Callable[..., Path], file: Path, reference: Any) -> None:
    path = save("oblique")
    theirs = ImageTransforms({"image": str(path)})["image"].as_tensor()
    features_match(path, theirs, [224, 224, 160], file, reference)


def test_two_volumes_differ(pooled: Any) -> None:
    one, other = (pooled.embed_volume(ct(voxels=smooth((40, 40, 30), seed))) for seed in (1, 2))
    assert cosine(one, other) < 0.999


def test_the_network_is_the_whole_of_resnet152() -> None:
    """Names and shapes of the tensors are those of merlin-vlm's network, but the heads."""
    spec = REGISTRY["merlin-contrastive"]
    with torch.device("meta"):
        own = adapter.build(spec.options).state_dict()
        full = i3res.I3ResNet(
            torchvision.models.resnet152(weights=None), class_nb=1692, conv_class=True
        ).state_dict()
    wanted = {k: v.shape for k, v in full.items() if not k.startswith("classifier.")}
    assert {k: v.shape for k, v in own.items()} == wanted


def ct(
    *,
    voxels: np.ndarray | None = None,
    spacing: tuple[float, float, float] = (2.0, 2.0, 4.0),
    **changes: Any,
) -> Volume:
    voxels = smooth((30, 28, 20)) if voxels is None else voxels
    known = changes.pop("spacing_known", True)
    grid = Grid(shape=voxels.shape[:3], affine=np.diag([*spacing, 1.0]), spacing_known=known)
    return Volume(**{"voxels": voxels, "grid": grid, "name": "query", **changes})


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (ct(spacing_known=False), "query is a picture of unknown spacing"),
        (ct(voxels=np.zeros((9, 9, 1, 3), np.uint8), color=True), "is a picture"),
        (ct(voxels=smooth((30, 30, 1))), "query is a single slice"),
        (ct(modality="MR"), "query is of modality MR"),
        (ct(voxels=np.full((9, 9, 9), 40)), "lowest value is 40, where a CT shows air at -1000"),
        (ct(spacing=(90.0, 90.0, 90.0)), "2700 x 2520 x 1800 mm large, which no CT is"),
    ],
)
def test_what_is_no_ct_volume_is_refused(pooled: Any, volume: Volume, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        pooled.embed_volume(volume)
    assert "expected" in str(caught.value) or "merlin embeds whole CT" in str(caught.value)


def test_a_ct_that_says_so_needs_no_air(pooled: Any) -> None:
    inside = np.clip(smooth((20, 20, 20)), 0, None)
    row = pooled.embed_volume(ct(voxels=inside, modality="CT"))
    assert np.isfinite(row).all()


def test_the_number_of_threads_changes_rounding_only(pooled: Any, file: Path) -> None:
    one = load_embedder(small(), weights=file, threads=1)
    np.testing.assert_allclose(one.embed_volume(ct()), pooled.embed_volume(ct()), atol=1e-5)


def test_identity(pooled: Any) -> None:
    identity = pooled.identity
    assert identity.unit == "volume"
    assert (identity.name, identity.dim, identity.weights) == ("merlin", 2048, "local file")
    # merlin-vlm 0.0.7, merlin/data/monai_transforms.py
    assert identity.preprocessing["spacing_mm"] == [1.5, 1.5, 3.0]
    assert identity.preprocessing["hounsfield"] == [-1000, 1000]
    assert REGISTRY["merlin"].preprocessing["size"] == [224, 224, 160]
    assert REGISTRY["dinov2-base"].preprocessing.keys() == {
        *("input_size", "resize", "resize_to", "interpolation", "mean", "std", "grey")
    }  # a slice's says nothing of units, so that indexes made before volumes stay comparable


def reloaded(state: dict[str, torch.Tensor], path: Path, name: str = "merlin") -> Any:
    torch.save(state, path / FILE)
    return load_embedder(small(name), weights=path).identity


def test_only_tensors_that_count_are_hashed(
    state: dict[str, torch.Tensor], pooled: Any, tmp_path: Path
) -> None:
    image_only = {k: v for k, v in state.items() if k.startswith(IMAGE)}
    image_only[f"{IMAGE}classifier.bias"] = torch.ones(PHENOTYPES)
    image_only[f"{IMAGE}contrastive_head.bias"] = torch.ones(512)
    image_only[f"{IMAGE}bn1.num_batches_tracked"] = torch.tensor(7)
    assert reloaded(image_only, tmp_path).space == pooled.identity.space
    changed = {**state, f"{IMAGE}layer3.0.conv2.weight": state[f"{IMAGE}layer3.0.conv2.weight"] + 1}
    assert reloaded(changed, tmp_path).space != pooled.identity.space
    head = {**state, f"{IMAGE}contrastive_head.bias": torch.ones(512)}
    projected = {reloaded(s, tmp_path, "merlin-contrastive").space for s in (state, head)}
    assert len(projected) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{IMAGE}layer4.0.conv3.weight": None}, r"1 missing \(layer4.0.conv3.weight\)"),
        ({"decoder.weight": torch.zeros(1)}, r"1 not expected \(decoder.weight\)"),
        (
            {f"{IMAGE}bn1.bias": torch.zeros(3)},
            r"1 of another shape \(bn1.bias \(3,\), not \(64,\)\)",
        ),
    ],
)
def test_other_weights_are_refused_with_the_difference(
    state: dict[str, torch.Tensor], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    changed = {k: v for k, v in {**state, **change}.items() if v is not None}
    with pytest.raises(InputError, match=message):
        reloaded(changed, tmp_path)


def test_it_does_not_run_on_openvino_and_is_no_part_of_an_ensemble(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pooled: Any
) -> None:
    with pytest.raises(UsageError, match="runs on torch only"):
        load_embedder(small(), weights=file, runtime="openvino")
    from medretrieval.embedders.ensemble import Ensemble

    with pytest.raises(UsageError, match="merlin embeds whole volumes"):
        Ensemble([load_embedder("efficientnet-lite0"), pooled])


def test_bfloat16_is_close_and_says_so(pooled: Any, file: Path) -> None:
    low = load_embedder(small(), weights=file, precision="bfloat16")
    assert low.identity.precision == "bfloat16"
    assert low.identity.space == pooled.identity.space
    assert cosine(low.embed_volume(ct()), pooled.embed_volume(ct())) > 0.99
