"""Numbers and names that several rows share."""

from __future__ import annotations

# Of torchvision, timm and the image processors of transformers.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Of openai/CLIP, clip.py; open_clip and transformers repeat them.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

# In a repository of transformers, the one that needs no unpickling first.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

# Optional packages, as pip takes them; requirements-embedders.txt installs all.
TIMM = ("timm==1.0.31",)
OPEN_CLIP = ("open_clip_torch==3.3.0",)
DREAMSIM = ("dreamsim==0.2.1",)
MERLIN = ("merlin-vlm==0.0.7",)
OPENVINO = ("openvino==2026.4.1",)
