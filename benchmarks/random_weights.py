"""Random weights of the registered embedders at full size, in files that they can be loaded from.

What a network computes does not depend on its weights in time, only in what it says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import transformers as hf
from safetensors.torch import save_file
from torchvision.models import resnet

from medretrieval.embedders.registry import REGISTRY
from medretrieval.embedders.spec import EmbedderSpec


def write(name: str, folder: Path) -> Path:
    """Weights of `name` in `folder`; what `load_embedder(name, weights=...)` takes."""
    torch.manual_seed(0)
    spec = REGISTRY[name]
    writer = WRITERS.get(name.removesuffix("-projected").removesuffix("-neck"))
    adapter = spec.adapter.partition(":")[2]
    return (writer or ADAPTERS[adapter])(spec, folder)


def _folder(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def _file(tensors: Mapping[str, torch.Tensor], path: Path) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def _with_prefix(prefix: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}


def _torchvision(spec: EmbedderSpec, folder: Path) -> Path:
    network = resnet.ResNet(resnet.Bottleneck, list(spec.options["blocks"]))
    tensors = network.state_dict()
    if spec.adapter.endswith(":CVNetGlobal"):
        head = torch.nn.Linear(2048, spec.dim)
        tensors |= {"avgpool.p": torch.full((1,), 3.0), **_with_prefix("fc.", head)}
    return _file(tensors, folder / "weights.safetensors")


def _timm(spec: EmbedderSpec, folder: Path) -> Path:
    network = timm.create_model(spec.options["architecture"], num_classes=0)
    tensors = network.state_dict()
    if spec.options.get("head") == "projected":
        width = network.num_features
        layers = (torch.nn.Linear(width, spec.dim), torch.nn.ReLU())
        projector = torch.nn.Sequential(*layers, torch.nn.Linear(spec.dim, spec.dim))
        tensors |= _with_prefix("projector.", projector)
    return _file(tensors, folder / "weights.safetensors")


def _medclip(spec: EmbedderSpec, folder: Path) -> Path:
    backbone = hf.SwinModel(hf.SwinConfig())
    head = torch.nn.Linear(768, 512, bias=False)
    tensors = _with_prefix("vision_model.model.", backbone)
    tensors |= _with_prefix("vision_model.projection_head.", head)
    return _file(tensors, folder / "weights.safetensors")


def _open_clip(spec: EmbedderSpec, folder: Path) -> Path:
    import dataclasses

    from medretrieval.embedders.open_clip_models import build_tower

    whole = dataclasses.replace(spec, options={**spec.options, "head": "projected"})
    tensors = _with_prefix("visual.", build_tower(whole))
    for name in spec.config_files:
        options = {k: v for k, v in spec.options.items() if k != "head"}
        (folder / name).write_text(json.dumps({"model_cfg": options, "preprocess_cfg": {}}))
    path = folder / spec.filenames[0]
    torch.save({name: tensor.clone() for name, tensor in tensors.items()}, path)
    return folder if spec.config_files else path


def _dreamsim(spec: EmbedderSpec, folder: Path) -> Path:
    from medretrieval.embedders import dreamsim

    (adapter,) = spec.filenames
    (folder / adapter).mkdir()
    rank, low = 16, {}
    for i, branch in enumerate(spec.options["branches"]):
        vit = dreamsim._Branch(branch, spec).vit
        torch.save(dict(vit.state_dict()), folder / dreamsim._FILES[branch][-1])
        for j, block in enumerate(vit.blocks):
            name = f"base_model.model.extractor_list.{i}.model.blocks.{j}.attn.qkv.lora"
            low[f"{name}_A.weight"] = torch.randn(rank, block.attn.qkv.in_features)
            low[f"{name}_B.weight"] = torch.zeros(block.attn.qkv.out_features, rank)
    save_file(low, folder / adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["qkv"]}
    (folder / adapter / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _merlin(spec: EmbedderSpec, folder: Path) -> Path:
    from medretrieval.embedders.merlin import IMAGE_PREFIX, build

    network = build(spec.options)
    return _file(_with_prefix(IMAGE_PREFIX, network), folder / "weights.safetensors")


Writer = Callable[[EmbedderSpec, Path], Path]

# For adapters whose networks differ in size.
WRITERS: Mapping[str, Writer] = {
    "dinov2-small-reg": lambda _, folder: _folder(
        hf.Dinov2WithRegistersModel(
            hf.Dinov2WithRegistersConfig(
                hidden_size=384, num_attention_heads=6, patch_size=14, image_size=518
            )
        ),
        folder,
    ),
    "dino-vitb8": lambda _, folder: _folder(hf.ViTModel(hf.ViTConfig(patch_size=8)), folder),
    "clip-vit-l14": lambda _, folder: _folder(
        hf.CLIPVisionModelWithProjection(
            hf.CLIPVisionConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=24,
                num_attention_heads=16,
                patch_size=14,
                projection_dim=768,
            )
        ),
        folder,
    ),
    "medsiglip-448": lambda _, folder: _folder(
        hf.SiglipVisionModel(
            hf.SiglipVisionConfig(
                hidden_size=1152,
                intermediate_size=4304,
                num_hidden_layers=27,
                num_attention_heads=16,
                patch_size=14,
                image_size=448,
            )
        ),
        folder,
    ),
    "dinov3-vits16": lambda _, folder: _folder(
        hf.DINOv3ViTModel(
            hf.DINOv3ViTConfig(
                hidden_size=384,
                intermediate_size=1536,
                num_attention_heads=6,
                num_register_tokens=4,
                key_bias=False,
                layerscale_value=1e-5,
            )
        ),
        folder,
    ),
}
ADAPTERS: Mapping[str, Writer] = {
    "Dinov2": lambda _, folder: _folder(
        hf.Dinov2Model(hf.Dinov2Config(patch_size=14, image_size=518)), folder
    ),
    "ViT": lambda _, folder: _folder(hf.ViTModel(hf.ViTConfig()), folder),
    "ViTMAE": lambda _, folder: _folder(hf.ViTMAEModel(hf.ViTMAEConfig()), folder),
    "ResNet": lambda spec, folder: (
        _torchvision(spec, folder)
        if "blocks" in spec.options
        else _folder(hf.ResNetForImageClassification(hf.ResNetConfig(num_labels=1000)), folder)
    ),
    "Sam": lambda _, folder: _folder(hf.SamVisionModel(hf.SamVisionConfig()), folder),
    "MedClip": _medclip,
    "CVNetGlobal": _torchvision,
    "SwinTransformer": _timm,
    "Ark": _timm,
    "OpenClipImage": _open_clip,
    "DreamSim": _dreamsim,
    "MerlinCT": _merlin,
}
