"""What all embedders that run on torch share: passes, normalisation, how they are computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from medretrieval.embedders.compute import DEFAULT_COMPUTE, Compute, Precision
from medretrieval.embedders.preprocess import check_picture, prepare
from medretrieval.embedders.spec import EmbedderSpec
from medretrieval.errors import InputError, UsageError
from medretrieval.types import EmbedderIdentity


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
            transformer fills a core; a small convolutional network gains from a few.
        keeps_in_bfloat16: whether features computed in bfloat16 keep a cosine above 0.999 to
            those in float32, as `benchmarks/embedders.py` measures; only then does precision
            "auto" take it.
    """

    pass_size: ClassVar[int] = 1
    keeps_in_bfloat16: ClassVar[bool] = False

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
        self.precision = decided_precision(
            compute.precision, gains=self.keeps_in_bfloat16 and multiplies_bfloat16(self.device)
        )
        self.identity = dataclasses.replace(identity, precision=self.precision)
        on_cpu = self.device.type == "cpu"
        self.threads = (compute.threads or torch.get_num_threads()) if on_cpu else 1
        self._workers = ThreadPoolExecutor(self.threads, initializer=_on_one_core)
        self.network = network.eval().requires_grad_(False).to(self.device)
        # A kernel may round by the shape of its input where precision is low, so there, and where
        # the network is compiled for one shape, every pass is filled up to the same shape.
        self._filled = self.precision != "float32" or compute.runtime != "torch"
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
        low = self.precision == "bfloat16"
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=low),
        ):
            return self.forward(pixels.to(self.device))


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


def decided_precision(wanted: Precision, *, gains: bool) -> Literal["float32", "bfloat16"]:
    """What `wanted` means for a network that gains from bfloat16 here, or does not."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if gains else "float32"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the processor has instructions to multiply bfloat16, so that it is faster."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
