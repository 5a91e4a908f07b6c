"""Networks trained on pairs and triplets: images with captions, and images judged alike."""

from __future__ import annotations

from typing import Any

from medretrieval.embedders.rows.common import CLIP_MEAN, CLIP_STD, DREAMSIM, OPEN_CLIP
from medretrieval.embedders.spec import NOT_PINNED, EmbedderSpec

OPEN_CLIP_CONFIG = "open_clip_config.json"
# open_clip looks for safetensors first.
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# The feature of any model of open_clip; in words, because it is part of an identity.
PROJECTED = "encode_image of open_clip (projected)"

_OPEN_CLIP = "medretrieval.embedders.open_clip_models:OpenClipImage"
_DREAMSIM = "medretrieval.embedders.dreamsim:DreamSim"

# Preprocessing of open_clip (image_transform with its defaults), which CBIR-FM takes as it is:
# shorter side by a bicubic filter, centre by torchvision, mean and standard deviation of CLIP.
_OPEN_CLIP_224: dict[str, Any] = {
    "adapter": _OPEN_CLIP,
    "source": "hub",
    "input_size": 224,
    "resize": "crop",
    "resize_to": 224,
    "crop_rounding": "even",
    "interpolation": "bicubic",
    "mean": CLIP_MEAN,
    "std": CLIP_STD,
    "requires": OPEN_CLIP,
}

# open_clip_config.json of the repository at the commit that most public code pins, the parts that
# the image side depends on.
_BIOMEDCLIP: dict[str, Any] = {
    **_OPEN_CLIP_224,
    "weights": "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
    "revision": "9f341de24bfb00180f1b847274256e9b65a3a32e",
    "filenames": ("open_clip_pytorch_model.bin",),
    "license": "mit",
    "papers": ("CBIR-FM",),
    "size_mb": 784,
}
_BIOMEDCLIP_MODEL: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {
        "timm_model_name": "vit_base_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    },
    "quick_gelu": False,
}

# The repository has no configuration: it is one file of a training of open_clip's ViT-L-14, which
# started from commonpool_xl_clip_s13b_b90k (GELU, not QuickGELU) and keeps its preprocessing; so
# does src/models.py of MIC-DKFZ/VPE-in-Radiology, by authors of CBIR-FM, read it. "CF" is the
# variant trained on the filtered concepts.
_BMC_CLIP: dict[str, Any] = {
    **_OPEN_CLIP_224,
    "weights": "BIOMEDICA/BMC_CLIP_CF",
    "revision": NOT_PINNED,
    "filenames": ("BMC_CLIP_CF.pt",),
    "license": "see its model card",
    "size_mb": 1711,
}
_BMC_CLIP_MODEL: dict[str, Any] = {
    "embed_dim": 768,
    "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14},
    "quick_gelu": False,
}

# dreamsim.dreamsim(normalize_embeds=True): Resize((224, 224), BICUBIC), and every branch
# normalises what it gets itself.
_DREAMSIM_224: dict[str, Any] = {
    "adapter": _DREAMSIM,
    "source": "file",
    "revision": "v0.2.0-checkpoints",
    "input_size": 224,
    "resize": "squash",
    "resize_to": 224,
    "interpolation": "bicubic",
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "license": "mit",
    "papers": ("MSD-CBIR", "TS-CBIR"),
    "requires": DREAMSIM,
}
_VIT_B16: dict[str, Any] = {"width": 768, "depth": 12, "heads": 12, "patch": 16}

CONTRASTIVE: tuple[EmbedderSpec, ...] = (
    EmbedderSpec(
        name="biomedclip",
        dim=768,
        pooling="class token",
        options={**_BIOMEDCLIP_MODEL, "head": "backbone"},
        note="ViT-B/16, PMC-15M; the 768-d feature of the paper's table",
        **_BIOMEDCLIP,
    ),
    EmbedderSpec(
        name="biomedclip-projected",
        dim=512,
        pooling=PROJECTED,
        options={**_BIOMEDCLIP_MODEL, "head": "projected"},
        note="as biomedclip; the feature that CBIR-FM's published code computes",
        **_BIOMEDCLIP,
    ),
    EmbedderSpec(
        name="bmc-clip",
        dim=768,
        pooling=PROJECTED,
        options={**_BMC_CLIP_MODEL, "head": "projected"},
        papers=("CBIR-FM",),
        note="ViT-L/14, BIOMEDICA 24M; the 768-d feature of the paper's table",
        **_BMC_CLIP,
    ),
    EmbedderSpec(
        name="bmc-clip-backbone",
        dim=1024,
        pooling="class token",
        options={**_BMC_CLIP_MODEL, "head": "backbone"},
        note="as bmc-clip, without the projection",
        **_BMC_CLIP,
    ),
    EmbedderSpec(
        name="dreamsim",
        weights="dreamsim_ensemble_checkpoint.zip of ssundaram21/dreamsim on GitHub, unzipped",
        filenames=("ensemble_lora",),
        dim=1792,
        pooling="class token and two projected class tokens, less their mean",
        options={
            **_VIT_B16,
            "branches": {"dino_vitb16": None, "clip_vitb16": 512, "open_clip_vitb16": 512},
        },
        size_mb=1261,
        note="DINO, CLIP and OpenCLIP ViT-B/16, tuned to human judgements of likeness",
        **_DREAMSIM_224,
    ),
    EmbedderSpec(
        name="dreamsim-dino-vitb16",
        weights="dreamsim_dino_vitb16_checkpoint.zip of ssundaram21/dreamsim on GitHub, unzipped",
        filenames=("dino_vitb16_single_lora",),
        dim=768,
        pooling="class token, less its mean",
        options={**_VIT_B16, "branches": {"dino_vitb16": None}},
        size_mb=800,
        note="DINO ViT-B/16 alone, tuned to human judgements of likeness",
        **_DREAMSIM_224,
    ),
)
