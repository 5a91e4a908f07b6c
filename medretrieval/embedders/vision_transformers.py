"""Vision transformers in the layout of the transformers library: config.json + weights.

Only the plain numbers of config.json are used (no remote code, no quantisation, no adapters), and
the weights are read as tensors. The feature is the class token after the last layer norm, as in
CBIR-FM: "we use the class token".
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from transformers.utils import logging as transformers_logging

from medretrieval.embedders.base import TorchEmbedder
from medretrieval.embedders.checkpoint import (
    difference,
    identity_of,
    read_tensors,
    refuse_other_weights,
    weights_file,
)
from medretrieval.embedders.compute import Compute
from medretrieval.embedders.preprocessor_config import preprocessing_of_folder, read_json
from medretrieval.embedders.spec import CONFIG_FILE, EmbedderSpec
from medretrieval.errors import InputError

# Keys of config.json that say how a file was written, not what the network is.
_NOT_ARCHITECTURE = frozenset(
    {"architectures", "dtype", "model_type", "transformers_version", "output_hidden_states"}
)


class VisionTransformer(TorchEmbedder):
    """Loading shared by the families; a family names its classes and what it does not use.

    Attributes:
        model_type: what config.json must say.
        prefix: of the tensors' names in files saved with a head.
        unused: beginnings of the names of tensors that the class token does not depend on; they
            may be there or not, are not loaded, and do not count in `weights_sha256`.
    """

    model_type: ClassVar[str]
    config_class: ClassVar[type[transformers.PreTrainedConfig]]
    model_class: ClassVar[type[transformers.PreTrainedModel]]
    model_options: ClassVar[Mapping[str, Any]] = {}
    any_input_size: ClassVar[bool] = False
    prefix: ClassVar[str]
    unused: ClassVar[tuple[str, ...]]

    @classmethod
    def load(
        cls, spec: EmbedderSpec, location: Path, *, revision: str, compute: Compute
    ) -> VisionTransformer:
        """Read the folder `location`; `revision` goes into the identity.

        Where the folder holds a preprocessor_config.json, the weights were made with what it says:
        it takes precedence over the specification, a warning names the differences, and the
        identity records what is used.

        Raises:
            InputError: the folder is incomplete, or of another network than `spec` says.
        """
        weights = weights_file(spec, location)
        spec = preprocessing_of_folder(spec, location)
        config = cls._config(spec, location)
        tensors = {
            name: tensor for name, tensor in read_tensors(weights).items() if not cls._unused(name)
        }
        with _silent_transformers():
            loaded: Any = cls.model_class.from_pretrained(
                None,
                config=config,
                state_dict=dict(tensors),
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **cls.model_options,
            )
        network, info = loaded
        differs = difference(
            [name for name in info["missing_keys"] if not cls._unused(name)],
            list(info["unexpected_keys"]),
            [
                f"{name} {tuple(found)}, not {tuple(own)}"
                for name, found, own in info["mismatched_keys"]
            ],
        )
        refuse_other_weights(spec, weights, differs)
        identity = identity_of(spec, tensors, revision)
        return cls(spec, network, identity=identity, compute=compute)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.network(pixel_values=pixels).last_hidden_state
        return tokens[:, 0]  # (n, tokens, dim) -> (n, dim)

    @classmethod
    def _unused(cls, name: str) -> bool:
        return name.removeprefix(cls.prefix).startswith(cls.unused)

    @classmethod
    def _config(cls, spec: EmbedderSpec, folder: Path) -> transformers.PreTrainedConfig:
        stored = read_json(folder / CONFIG_FILE)
        found = stored.get("model_type")
        if found != cls.model_type:
            raise InputError(
                f"{folder / CONFIG_FILE} describes a network of type {found!r}; "
                f"{spec.name} is of type {cls.model_type!r}: give the folder of {spec.weights}"
            )
        known = set(cls.config_class().to_dict()) - _NOT_ARCHITECTURE
        try:
            config = cls.config_class(**{k: v for k, v in stored.items() if k in known})
        except Exception as error:  # the library validates with exceptions of its own
            raise InputError(
                f"{folder / CONFIG_FILE} is no usable configuration ({error}); fetch it again"
            ) from error
        if config.hidden_size != spec.dim:
            raise InputError(
                f"{folder} holds a network with {config.hidden_size}-d features; {spec.name} has "
                f"{spec.dim}-d features: give the folder of {spec.weights}"
            )
        native = config.image_size
        if spec.input_size % config.patch_size or not (
            cls.any_input_size or native == spec.input_size
        ):
            raise InputError(
                f"{folder} holds a network for pictures of {native} pixels in patches of "
                f"{config.patch_size}; {spec.name} feeds it {spec.input_size} pixels"
            )
        return config


class Dinov2(VisionTransformer):
    """DINOv2 without registers; position embeddings are interpolated to the input size."""

    model_type = "dinov2"
    config_class = transformers.Dinov2Config
    model_class = transformers.Dinov2Model
    any_input_size = True
    prefix = "dinov2."
    unused = ("embeddings.mask_token", "classifier.")


class Dinov2WithRegisters(VisionTransformer):
    """DINOv2 with registers; position embeddings are interpolated to the input size."""

    model_type = "dinov2_with_registers"
    config_class = transformers.Dinov2WithRegistersConfig
    model_class = transformers.Dinov2WithRegistersModel
    any_input_size = True
    prefix = "dinov2_with_registers."
    unused = ("embeddings.mask_token", "classifier.")


class ViT(VisionTransformer):
    """The plain vision transformer: google's, and DINO's first version."""

    model_type = "vit"
    config_class = transformers.ViTConfig
    model_class = transformers.ViTModel
    model_options: ClassVar[Mapping[str, Any]] = {"add_pooling_layer": False}
    prefix = "vit."
    unused = ("pooler.", "classifier.", "embeddings.mask_token")


class ViTMAE(VisionTransformer):
    """The encoder of a masked autoencoder, with nothing masked.

    transformers' encoder drops `mask_ratio` of the patches at random and shuffles the rest, in
    evaluation too. With ratio 0 and increasing noise every patch stays, in its own place, so that
    the same picture gives the same bits.
    """

    model_type = "vit_mae"
    config_class = transformers.ViTMAEConfig
    model_class = transformers.ViTMAEModel
    prefix = "vit."
    unused = ("decoder.",)

    @classmethod
    def _config(cls, spec: EmbedderSpec, folder: Path) -> transformers.PreTrainedConfig:
        config = super()._config(spec, folder)
        config.mask_ratio = 0.0
        return config

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        config: Any = self.network.config
        patches = (self.spec.input_size // config.patch_size) ** 2
        noise = torch.arange(patches, dtype=torch.float32, device=pixels.device)
        tokens: torch.Tensor = self.network(
            pixel_values=pixels, noise=noise.expand(len(pixels), -1)
        ).last_hidden_state
        return tokens[:, 0]  # (n, 1 + patches, dim) -> (n, dim)


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Keep transformers' loading report and progress bar off stderr: differences are our errors."""
    level = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
