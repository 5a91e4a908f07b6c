"""Vision transformers, and the convolutional networks, that transformers has classes for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers

from medretrieval.embedders.options import chosen
from medretrieval.embedders.patches import FeatureMaps, of_channels_first, of_tokens
from medretrieval.embedders.spec import EmbedderSpec
from medretrieval.embedders.transformers_folder import FolderEmbedder
from medretrieval.errors import InputError


class VisionTransformer(FolderEmbedder):
    """The class token after the last layer norm, as in CBIR-FM: "we use the class token"."""

    any_input_size: ClassVar[bool] = False

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._tokens(pixels)[:, 0]  # (n, tokens, dim) -> (n, dim)

    def feature_maps(self, pixels: torch.Tensor) -> FeatureMaps:
        network: Any = self.network
        return of_tokens(
            self._tokens(pixels),
            self.spec.name,
            input_size=self.spec.input_size,
            patch=network.config.patch_size,
        )

    def _tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, tokens, dim), those of the patches last."""
        tokens: torch.Tensor = self.network(pixel_values=pixels).last_hidden_state
        return tokens

    @classmethod
    def _check_input(cls, config: Any, spec: EmbedderSpec, folder: Path) -> None:
        native = config.image_size
        if spec.input_size % config.patch_size or not (
            cls.any_input_size or native == spec.input_size
        ):
            raise InputError(
                f"{folder} holds a network for pictures of {native} pixels in patches of "
                f"{config.patch_size}; {spec.name} feeds it {spec.input_size} pixels"
            )


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


class Dinov3(VisionTransformer):
    """DINOv3's vision transformers: rotary position embeddings, for any input size."""

    model_type = "dinov3_vit"
    config_class = transformers.DINOv3ViTConfig
    model_class = transformers.DINOv3ViTModel
    any_input_size = True
    unused = ("embeddings.mask_token",)


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

    def _tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        config: Any = self.network.config
        patches = (self.spec.input_size // config.patch_size) ** 2
        noise = torch.arange(patches, dtype=torch.float32, device=pixels.device)
        tokens: torch.Tensor = self.network(
            pixel_values=pixels, noise=noise.expand(len(pixels), -1)
        ).last_hidden_state
        return tokens  # (n, 1 + patches, dim)


class _Tower(VisionTransformer):
    """The image side of a model of images and texts, whose files hold both."""

    section = "vision_config"
    prefix = "vision_model."

    @classmethod
    def _renamed(
        cls, tensors: Mapping[str, torch.Tensor], spec: EmbedderSpec
    ) -> dict[str, torch.Tensor]:
        return {name.removeprefix(cls.prefix): tensor for name, tensor in tensors.items()}


class Clip(_Tower):
    """CLIP's vision transformer, by `options["head"]`.

    "backbone" is the class token after the last layer norm, "projected" its linear projection into
    the space shared with texts: what CLIP's own `encode_image` gives.
    """

    model_type = "clip"
    above_section = ("projection_dim",)
    config_class = transformers.CLIPVisionConfig

    @classmethod
    def _model_class(cls, spec: EmbedderSpec) -> type[transformers.PreTrainedModel]:
        if _projected(spec):
            return transformers.CLIPVisionModelWithProjection
        return transformers.CLIPVisionModel

    @classmethod
    def _unused(cls, name: str, spec: EmbedderSpec) -> bool:
        heads = () if _projected(spec) else ("visual_projection.",)
        return super()._unused(name, spec) or name.startswith(
            ("text_model.", "text_projection.", "logit_scale", *heads)
        )

    @classmethod
    def _renamed(
        cls, tensors: Mapping[str, torch.Tensor], spec: EmbedderSpec
    ) -> dict[str, torch.Tensor]:
        return dict(tensors) if _projected(spec) else super()._renamed(tensors, spec)

    @classmethod
    def _dim(cls, config: Any, spec: EmbedderSpec) -> int:
        return int(config.projection_dim if _projected(spec) else config.hidden_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        output = self.network(pixel_values=pixels)
        features: torch.Tensor = (
            output.image_embeds if _projected(self.spec) else output.pooler_output
        )
        return features

    def _tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        # What is done to the class token is done to the others: they stay in the same space.
        network: Any = self.network
        if not _projected(self.spec):
            tokens: torch.Tensor = network.post_layernorm(super()._tokens(pixels))
            return tokens
        inside = network.vision_model
        states = inside(pixel_values=pixels).last_hidden_state
        projected: torch.Tensor = network.visual_projection(inside.post_layernorm(states))
        return projected


class Siglip(_Tower):
    """SigLIP's vision transformer: its attention pooling, which is the space shared with texts."""

    model_type = "siglip"
    config_class = transformers.SiglipVisionConfig
    model_class = transformers.SiglipVisionModel

    @classmethod
    def _unused(cls, name: str, spec: EmbedderSpec) -> bool:
        return super()._unused(name, spec) or name.startswith(
            ("text_model.", "logit_scale", "logit_bias")
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network(pixel_values=pixels).pooler_output
        return features


class ResNet(FolderEmbedder):
    """A residual network, by `options["head"]`.

    "pooled" is the global average of the last feature map, "logits" the scores of the classifier,
    "probabilities" their softmax.
    """

    pass_size = 4
    model_type = "resnet"
    config_class = transformers.ResNetConfig
    prefix = "resnet."

    @classmethod
    def _model_class(cls, spec: EmbedderSpec) -> type[transformers.PreTrainedModel]:
        if _resnet_head(spec) == "pooled":
            return transformers.ResNetModel
        return transformers.ResNetForImageClassification

    @classmethod
    def _unused(cls, name: str, spec: EmbedderSpec) -> bool:
        heads = ("classifier.",) if _resnet_head(spec) == "pooled" else ()
        return super()._unused(name, spec) or name.startswith(heads)

    @classmethod
    def _dim(cls, config: Any, spec: EmbedderSpec) -> int:
        pooled = _resnet_head(spec) == "pooled"
        return int(config.hidden_sizes[-1] if pooled else config.num_labels)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        output = self.network(pixel_values=pixels)
        head = _resnet_head(self.spec)
        if head == "pooled":
            pooled: torch.Tensor = output.pooler_output  # (n, dim, 1, 1)
            return pooled.flatten(1)
        logits: torch.Tensor = output.logits
        return logits.softmax(dim=-1) if head == "probabilities" else logits

    @property
    def mean_pooled(self) -> bool:
        return _resnet_head(self.spec) != "probabilities"

    def feature_maps(self, pixels: torch.Tensor) -> FeatureMaps:
        network: Any = self.network
        pooled = _resnet_head(self.spec) == "pooled"
        states = (network if pooled else network.resnet)(pixel_values=pixels).last_hidden_state
        maps = of_channels_first(states, self.spec.input_size)
        if pooled:
            return maps
        # A linear layer of a mean is the mean of the layer; the softmax after it is not.
        return maps._replace(features=network.classifier[-1](maps.features))


def _projected(spec: EmbedderSpec) -> bool:
    return chosen(spec, "head", ("backbone", "projected")) == "projected"


def _resnet_head(spec: EmbedderSpec) -> str:
    return chosen(spec, "head", ("pooled", "logits", "probabilities"))
