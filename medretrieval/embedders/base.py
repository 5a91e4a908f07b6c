"""What all embedders that run on torch share: passes, normalisation, how they are computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from medretrieval.embedders.compute import DEFAULT_COMPUTE, Compute
from medretrieval.embedders.patches import FeatureMaps, no_patches, patch_features
from medretrieval.embedders.preprocess import check_picture, prepare
from medretrieval.embedders.spec import EmbedderSpec
from medretrieval.errors import InputError, UsageError
from medretrieval.types import EmbedderIdentity, PatchFeatures

# Features that are computed in bfloat16 and have a lower cosine to themselves are other features.
KEPT = 0.999
GPU_PASS = 32


class TorchEmbedder:
    """A network in eval mode plus its preprocessing; `forward` is all that a subclass adds.

    Attributes:
        spec: the specification it was made from.
        identity: what an index stores.
        device: where the network is.
        precision: "float32" or "bfloat16", decided.
        threads: forward passes that run at the same time on a CPU, each on one core. Splitting
            the pictures over cores, not the layers, needs no waiting between cores, and gives the
            same numbers whatever their count.
        pass_size: pictures per forward pass; longer lists are split. One picture of a vision
            transformer fills a core; a small convolutional network gains from a few, and a GPU
            from many.
    """

    pass_size: int = 1

    def __init__(
        self,
        spec: EmbedderSpec,
        network: torch.nn.Module,
        *,
        identity: EmbedderIdentity,
        compute: Compute = DEFAULT_COMPUTE,
    ) -> None:
        self.spec = spec
        self.device = checked_device(compute.device)
        on_cpu = self.device.type == "cpu"
        if not on_cpu:
            self.pass_size = GPU_PASS
        self.threads = (compute.threads or torch.get_num_threads()) if on_cpu else 1
        self._workers = ThreadPoolExecutor(self.threads, initializer=_on_one_core)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.precision: Literal["float32", "bfloat16"] = "float32"
        if compute.precision == "bfloat16" or (
            compute.precision == "auto"
            and multiplies_bfloat16(self.device)
            and self._cosine_in_bfloat16() > KEPT
        ):
            self.precision = "bfloat16"
        self.identity = dataclasses.replace(identity, precision=self.precision)
        # A kernel may round by the shape of its input where precision is low (as on a GPU, in
        # TF32), so there, and where the network is compiled for one shape, every pass is filled up
        # to the same shape.
        plain = on_cpu and self.precision == "float32" and compute.runtime == "torch"
        self._filled = not plain
        self._run: Callable[[torch.Tensor], torch.Tensor] = self._run_torch
        if compute.runtime == "openvino":
            from medretrieval.embedders.openvino_runtime import compiled

            size = spec.input_size
            example = torch.zeros(self.pass_size, 3, size, size)
            self._run = compiled(self, example, threads=self.threads, precision=self.precision)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec.name}, {self.spec.dim}-d, {self.device})"

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) float32, normalised -> (n, dim) features, not yet of unit length."""
        raise NotImplementedError

    def embed_batch(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Embed n pictures, each (H, W) or (H, W, 3) uint8 of any size.

        Grey pictures are replicated to 3 channels. A row does not depend on which other pictures
        are in the list.

        Returns:
            (n, dim) float32, every row of L2 norm 1; (0, dim) for an empty list.

        Raises:
            InputError: a picture has another shape or dtype, or its features are not finite.
        """
        for image in images:
            check_picture(image)
        chunks = [images[i : i + self.pass_size] for i in range(0, len(images), self.pass_size)]
        features = list(self._workers.map(self._features, chunks))
        return unit_rows(np.concatenate(features or [np.empty((0, self.spec.dim), np.float32)]))

    @property
    def mean_pooled(self) -> bool:
        """Whether `forward` is the mean of what `feature_maps` gives."""
        return False

    def feature_maps(self, pixels: torch.Tensor) -> FeatureMaps:
        """(n, 3, S, S) float32, normalised -> the features of the parts of n pictures.

        Raises:
            UnavailableError: this network has none that can be told apart.
        """
        raise no_patches(self.spec.name)

    def patches(self, images: Sequence[NDArray[np.uint8]]) -> PatchFeatures:
        """The features of the parts of n >= 1 pictures, (n, rows, columns, c) and where they lie.

        Raises:
            UnavailableError: this network has none that can be told apart.
            InputError: as `embed_batch`.
        """
        return patch_features(self, images)

    @property
    def batch_size(self) -> int:
        """Pictures to embed in one call: a few passes a thread, so that none waits for long."""
        return max(16, 4 * self.pass_size) * self.threads

    def _features(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        pixels = torch.from_numpy(prepare(images, self.spec))
        if self._filled and len(images) < self.pass_size:
            empty = pixels.new_zeros(self.pass_size - len(images), *pixels.shape[1:])
            pixels = torch.cat([pixels, empty])
        features: NDArray[np.float32] = self._run(pixels).float().cpu().numpy()
        return features[: len(images)]

    def _run_torch(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._run_as(self.precision, pixels)

    def _run_as(self, precision: str, pixels: torch.Tensor) -> torch.Tensor:
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bfloat16"),
        ):
            return self.forward(pixels.to(self.device))

    def _cosine_in_bfloat16(self) -> float:
        """The least cosine of a test picture's features to themselves in bfloat16."""
        pixels = torch.from_numpy(prepare(test_pictures(), self.spec))
        plain, low = (
            torch.cat([self._run_as(precision, row[None]).float() for row in pixels])
            for precision in ("float32", "bfloat16")
        )
        return float(torch.nn.functional.cosine_similarity(plain, low).min())


def _on_one_core() -> None:
    # OpenMP keeps this number per thread: it holds for the worker that calls this alone.
    torch.set_num_threads(1)


def unit_rows(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, dim) float32 -> the same with rows of L2 norm 1 (computed in float64).

    Raises:
        InputError: a row is zero or not finite, so it has no direction.
    """
    norms = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    if not np.all(np.isfinite(norms) & (norms > 0)):
        bad = np.flatnonzero(~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0))).tolist()
        raise InputError(
            f"the features of picture(s) {bad[:8]} are zero or not finite; "
            "expected finite features: the weights are damaged or not those of this embedder"
        )
    rows: NDArray[np.float32] = (features / norms).astype(np.float32)
    return rows


def checked_device(name: str) -> torch.device:
    """The torch device called `name`.

    Raises:
        UsageError: there is no such device on this machine.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        # torch raises AssertionError for "cuda" in a build without CUDA.
        raise UsageError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); "
            "use 'cpu', or 'cuda' on a machine with a GPU"
        ) from error
    return device


def test_pictures() -> list[NDArray[np.uint8]]:
    """Three grey pictures with edges, shades and texture, always the same."""
    y, x = np.mgrid[-1:1:256j, -1:1:256j]
    body = (x / 0.9) ** 2 + (y / 0.7) ** 2 < 1
    organs = ((x - 0.3) ** 2 + y**2 < 0.06) + 2.0 * ((x + 0.4) ** 2 + (y - 0.1) ** 2 < 0.04)
    texture = np.random.default_rng(0).random(x.shape)
    shades = (
        body * (90 + 50 * organs + 20 * texture),
        128 + 60 * np.sin(9 * x + 4 * y) + 60 * np.cos(15 * y * x),
        255 * (texture**4 * body + ~body * (x > 0)),
    )
    return [np.clip(shade, 0, 255).astype(np.uint8) for shade in shades]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the processor has instructions to multiply bfloat16, so that it is faster."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
