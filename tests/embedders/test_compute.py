"""How a network is run: threads, precision and runtime never change what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medretrieval.embedders import EmbedderSpec, load_embedder
from medretrieval.embedders import base as base_module
from medretrieval.embedders.base import TorchEmbedder, multiplies_bfloat16
from medretrieval.embedders.compute import Compute
from medretrieval.embedders.packages import missing, pip_command
from medretrieval.errors import UnavailableError, UsageError

LITE = "efficientnet-lite0"
WAYS = [
    {"runtime": runtime, "precision": precision}
    for runtime in ("torch", "openvino")
    for precision in ("float32", "bfloat16")
]


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(way.values()))
@pytest.mark.parametrize("name", [LITE, "dinov2-small-reg", "mae-vit-b"])
def test_a_picture_alone_and_among_others_gives_the_same(
    name: str,
    way: dict[str, Any],
    pictures: list[np.ndarray],
    tiny_spec: Callable[..., EmbedderSpec],
    tiny_folder: Callable[[str], Path],
) -> None:
    spec = name if name == LITE else tiny_spec(name)
    weights = None if name == LITE else tiny_folder(name)
    embedder = load_embedder(spec, weights=weights, threads=1, **way)
    together = embedder.embed_batch(pictures)
    for picture, row in zip(pictures, together, strict=True):
        np.testing.assert_allclose(embedder.embed_batch([picture])[0], row, atol=1e-5)
    np.testing.assert_allclose(embedder.embed_batch(pictures[::-1])[::-1], together, atol=1e-5)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(way.values()))
def test_the_number_of_threads_changes_nothing(
    way: dict[str, Any], pictures: list[np.ndarray]
) -> None:
    one, three = (
        load_embedder(LITE, threads=threads, **way).embed_batch(pictures * 3) for threads in (1, 3)
    )
    np.testing.assert_allclose(one, three, atol=1e-5)


@pytest.mark.parametrize("name", ["dinov2-small-reg", "dino-vitb16", "mae-vit-b"])
def test_the_compiled_network_says_what_the_network_says(
    name: str,
    pictures: list[np.ndarray],
    tiny_spec: Callable[..., EmbedderSpec],
    tiny_folder: Callable[[str], Path],
) -> None:
    plain = load_embedder(tiny_spec(name), weights=tiny_folder(name))
    compiled = load_embedder(tiny_spec(name), weights=tiny_folder(name), runtime="openvino")
    assert cosines(plain.embed_batch(pictures), compiled.embed_batch(pictures)).min() > 0.999999
    assert compiled.identity == plain.identity


def test_the_compiled_bundled_network(pictures: list[np.ndarray]) -> None:
    plain, compiled = load_embedder(LITE), load_embedder(LITE, runtime="openvino")
    assert cosines(plain.embed_batch(pictures), compiled.embed_batch(pictures)).min() > 0.999999
    assert compiled.embed_batch([]).shape == (0, plain.identity.dim)


def test_low_precision_is_said_but_is_the_same_space(pictures: list[np.ndarray]) -> None:
    plain, low = load_embedder(LITE), load_embedder(LITE, precision="bfloat16")
    assert plain.identity.precision == "float32"
    assert low.identity.precision == "bfloat16"
    assert plain.identity.space == low.identity.space
    found = cosines(plain.embed_batch(pictures), low.embed_batch(pictures))
    assert found.min() > 0.98
    assert found.min() < 0.99999, "bfloat16 was asked for and not used"


class Toy(TorchEmbedder):
    """The mean of each quarter of the picture."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.quarters(pixels) @ torch.eye(4)

    def quarters(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pixels.mean(dim=1), 112).flatten(1)


class Fragile(Toy):
    """What each quarter has more than the mean, of numbers that are nearly alike in bfloat16."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (self.quarters(pixels) + 1000) @ (torch.eye(4) - 0.25)


@pytest.mark.parametrize(
    ("kind", "able", "decided"),
    [(Toy, True, "bfloat16"), (Toy, False, "float32"), (Fragile, True, "float32")],
)
def test_auto_needs_a_processor_that_gains_and_features_that_stay(
    kind: type[TorchEmbedder], able: bool, decided: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lite = load_embedder(LITE)
    monkeypatch.setattr(base_module, "multiplies_bfloat16", lambda device: able)
    made = kind(
        lite.spec,  # type: ignore[attr-defined]
        torch.nn.Identity(),
        identity=lite.identity,
        compute=Compute(precision="auto"),
    )
    assert made.precision == made.identity.precision == decided


def test_auto_leaves_the_bundled_network_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its trained weights lose 0.002 and more of cosine in bfloat16; random ones would not.
    monkeypatch.setattr(base_module, "multiplies_bfloat16", lambda device: True)
    assert load_embedder(LITE, precision="auto").identity.precision == "float32"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo here")
def test_what_the_processor_can() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert multiplies_bfloat16(torch.device("cpu")) is bool(flags & {"avx512_bf16", "amx_bf16"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float16"}, "precision is 'float16'; expected float32, bfloat16, auto"),
        ({"runtime": "onnx"}, "runtime is 'onnx'; expected torch, openvino"),
        ({"threads": 0}, "threads is 0"),
        ({"runtime": "openvino", "device": "cuda"}, "is for the CPU"),
    ],
)
def test_a_way_that_there_is_not(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_embedder(LITE, **options)


def test_a_runtime_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    installed = metadata.version

    def without_openvino(package: str) -> str:
        if package == "openvino":
            raise metadata.PackageNotFoundError(package)
        return installed(package)

    monkeypatch.setattr("importlib.metadata.version", without_openvino)
    with pytest.raises(UnavailableError, match=r"run `pip install openvino==[\d.]+`"):
        load_embedder(LITE, runtime="openvino")
    assert load_embedder(LITE).identity.name == LITE


def test_packages() -> None:
    assert missing(["torch", "numpy>=1", "no-such-package==1.0"]) == ["no-such-package==1.0"]
    assert pip_command(["a==1", "b"]) == "pip install a==1 b"
