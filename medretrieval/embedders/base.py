"""What all embedders that run on torch share: batching, normalisation, identity, weight hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medretrieval.embedders.preprocess import check_picture, prepare
from medretrieval.embedders.spec import EmbedderSpec
from medretrieval.errors import InputError, UsageError
from medretrieval.types import EmbedderIdentity

MAX_LISTED = 8


class TorchEmbedder:
    """A network in eval mode plus its preprocessing; `forward` is all that a subclass adds.

    Attributes:
        spec: the specification it was made from.
        identity: what an index stores.
        device: where the network is.
        threads: forward passes that run at the same time on a CPU, each on one core. Splitting
            the pictures over cores, not the layers, needs no waiting between cores, and gives the
            same numbers whatever their count.
        pass_size: pictures per forward pass; longer lists are split.
    """

    pass_size = 4

    def __init__(
        self,
        spec: EmbedderSpec,
        network: torch.nn.Module,
        *,
        identity: EmbedderIdentity,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}; expected 1 or more, or None")
        self.spec = spec
        self.identity = identity
        self.device = checked_device(device)
        self.threads = 1 if self.device.type != "cpu" else threads or torch.get_num_threads()
        self._workers = ThreadPoolExecutor(self.threads, initializer=_on_one_core)
        self.network = network.eval().requires_grad_(False).to(self.device)

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
        return 4 * self.pass_size * self.threads

    def _features(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        with torch.inference_mode():
            pixels = torch.from_numpy(prepare(images, self.spec)).to(self.device)
            features: NDArray[np.float32] = self.forward(pixels).float().cpu().numpy()
        return features


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
            f"the features of picture(s) {bad[:MAX_LISTED]} are zero or not finite; "
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


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names (sorted), dtypes, shapes and bytes: independent of the file's layout."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a .safetensors file, or a torch file restricted to tensors (`weights_only`).

    Raises:
        InputError: it is missing, truncated, or holds anything but named tensors.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file; expected a .safetensors, .pth, .pt or .bin file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has its own kinds of failure for damaged files
        raise InputError(
            f"{path} cannot be read as weights ({type(error).__name__}); expected safetensors, or "
            "a torch file that holds tensors only (nothing else is ever unpickled). Fetch it again"
        ) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in tensors.items()
    ):
        raise InputError(
            f"{path} holds no plain table of named tensors; expected a state dict saved alone"
        )
    return dict(tensors)


def difference(
    missing: Sequence[str], unexpected: Sequence[str], mismatched: Sequence[str]
) -> str | None:
    """One line that says how a file differs from what the network needs, None if it does not."""
    parts = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:MAX_LISTED])}"
        + (", ...)" if len(names) > MAX_LISTED else ")")
        for what, names in (
            ("missing", missing),
            ("not expected", unexpected),
            ("of another shape", mismatched),
        )
        if names
    ]
    return "; ".join(parts) or None


def refuse_other_weights(spec: EmbedderSpec, where: object, differs: str | None) -> None:
    """Raise InputError if `differs` says that the tensors of `where` are not those of `spec`."""
    if differs:
        raise InputError(
            f"{where} does not hold the weights of {spec.name}: tensors {differs}; "
            f"expected exactly those of {spec.weights}"
        )
