"""What the weights were published with, as plain data: nothing here is taken from the rows.

The tests compare the table of embedders, and what it does to pictures, with these numbers.
"""

from __future__ import annotations

import copy
from typing import Any

_BY_256 = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
}
_SQUARE_224 = {
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ViTFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "size": 224,
}

# preprocessor_config.json of repositories of the Hub. "Copy": the file as public code repeats it.
# "No copy": none was found; the numbers are those of the source that is named.
PREPROCESSORS: dict[str, dict[str, Any]] = {
    # Copy: tests of NVIDIA's tensorrt_model_connect, families/dinov2 ("Published
    # facebook/dinov2-small and facebook/dinov2-with-registers-small configs").
    "facebook/dinov2-with-registers-small": _BY_256,
    # Copy: an OpenVINO notebook that quantises DINOv2 prints the processor of this repository.
    "facebook/dinov2-base": _BY_256,
    # No copy. That of facebook/dino-vits16, by the same authors and conversion, is printed in
    # public code (ViTEvaluator): these numbers. Of dino-vitb8 public code reads size["height"] as
    # the side of a picture, so that it has no crop either.
    "facebook/dino-vitb16": _SQUARE_224,
    "facebook/dino-vitb8": _SQUARE_224,
    # No copy. Mean and deviation as many public repositories repeat them from the repository, and
    # 518 pixels as its processor is used; kind and filter are those of DINOv2, of which it is a
    # further training (model card), and whose files transformers writes.
    "microsoft/rad-dino": {
        "crop_size": {"height": 518, "width": 518},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5307, 0.5307, 0.5307],
        "image_processor_type": "BitImageProcessor",
        "image_std": [0.2583, 0.2583, 0.2583],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 518},
    },
    # Copy: huggingface/blog, fine-tune-vit.md, prints it.
    "google/vit-base-patch16-224-in21k": {
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ViTFeatureExtractor",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "size": 224,
    },
    # No copy. transformers, models/vit_mae/convert_vit_mae_to_pytorch.py: ViTFeatureExtractor of
    # the size of the configuration, whose filter is bilinear; facebookresearch/mae,
    # demo/mae_visualize.ipynb: mean and deviation of ImageNet.
    "facebook/vit-mae-base": _SQUARE_224,
    # No copy. transformers, models/resnet/convert_resnet_to_pytorch.py, pushes the extractor of
    # facebook/convnext-base-224-22k-1k: the defaults of ConvNextFeatureExtractor.
    "microsoft/resnet-50": {
        "crop_pct": 0.875,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": 224,
    },
    # No copy. The defaults of SamImageProcessor, with which transformers converts SAM
    # (models/sam/convert_sam_to_hf.py).
    "facebook/sam-vit-base": {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "SamImageProcessor",
        "image_std": [0.229, 0.224, 0.225],
        "pad_size": {"height": 1024, "width": 1024},
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": 1024},
    },
    # Copy: Cerebras/modelzoo, converter of LLaVA, and others.
    "openai/clip-vit-large-patch14": {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    },
    # No copy: the repository is gated. 448 pixels by its model card; the rest is the defaults of
    # SiglipImageProcessor, its filter among them. (The card resizes by TensorFlow's bilinear
    # filter without antialiasing before that, to repeat its own evaluation.)
    "google/medsiglip-448": {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 448, "width": 448},
    },
    # Copy: tests of public code that trains on it (DINO_PREPROCESSOR_CONFIG, beside the
    # configuration of this network).
    "facebook/dinov3-vits16-pretrain-lvd1689m": {
        "crop_size": None,
        "data_format": "channels_first",
        "default_to_square": True,
        "do_center_crop": None,
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "DINOv3ViTImageProcessorFast",
        "image_std": [0.229, 0.224, 0.225],
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 224, "width": 224},
    },
}

# resize, resize_to, input_size, interpolation, mean, std, crop_rounding
Facts = tuple[str, int, int, str, tuple[float, float, float], tuple[float, float, float], str]
_BIOMEDCLIP: Facts = (
    "crop", 224, 224, "bicubic",
    (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "even",
)  # fmt: skip
_DREAMSIM: Facts = ("squash", 224, 224, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "down")
_HALF_SQUARE: Facts = ("squash", 224, 224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "down")
_IMAGENET_SQUARE: Facts = (
    "squash", 224, 224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "down"
)  # fmt: skip
_ARK: Facts = (
    "squash-crop", 256, 224, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "down"
)  # fmt: skip
_MEDSAM: Facts = (
    "pad-end", 1024, 1024, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "down"
)  # fmt: skip
_MEDCLIP: Facts = (
    "pad-centre", 224, 224, "bicubic",
    (0.5862785803043838,) * 3, (0.27950088968644304,) * 3, "down",
)  # fmt: skip

# Embedders of other layouts, by name.
FACTS: dict[str, Facts] = {
    # tensorflow/tpu, models/official/efficientnet/lite/efficientnet_lite_builder.py: MEAN_RGB
    # 127, STDDEV_RGB 128, 224 pixels. timm 1.0.31, tf_efficientnet_lite0: "should be bilinear but
    # bicubic better match for TF bilinear at low res". Its crop, which would cut off the edge of a
    # body, is left out.
    "efficientnet-lite0": (
        "squash", 224, 224, "bicubic", (0.4980392156862745,) * 3, (0.5019607843137255,) * 3, "down"
    ),
    # BMEII-AI/RadImageNet, acl/acl_pytorch_train.ipynb: (image - 127.5) * 2 / 255, then
    # cv2.resize to 224 by 224, which is bilinear; TS-CBIR, section 2.3: 0.5 and 0.5.
    "resnet50-radimagenet": _HALF_SQUARE,
    # TS-CBIR, section 2.3.
    "resnet50-fractaldb": _IMAGENET_SQUARE,
    "swin-radimagenet": _HALF_SQUARE,
    # sungonce/CVNet, test/dataset.py: mean and deviation; CBIR-FM, table 2: 224 pixels.
    "cvnet-r50": _IMAGENET_SQUARE,
    "cvnet-r101": _IMAGENET_SQUARE,
    # jlianglab/Ark, Ark_Plus/Pretraining/dataloader.py: resized to 256 by 256, the centre of 224.
    "ark": _ARK,
    "ark-projected": _ARK,
    # bowang-lab/MedSAM's weights as CBIR-FM prepares pictures for them: by SamImageProcessor.
    "medsam-vit-b": _MEDSAM,
    "medsam-vit-b-neck": _MEDSAM,
    # RyanWangZf/MedCLIP, medclip/constants.py (IMG_MEAN, IMG_STD, IMG_SIZE) and
    # medclip/dataset.py (MedCLIPFeatureExtractor: pad_img, then bicubic).
    "medclip": _MEDCLIP,
    "medclip-projected": _MEDCLIP,
    # open_clip 3.3.0, transform.py and constants.py: image_transform with its defaults.
    "biomedclip": _BIOMEDCLIP,
    "biomedclip-projected": _BIOMEDCLIP,
    "bmc-clip": _BIOMEDCLIP,
    "bmc-clip-backbone": _BIOMEDCLIP,
    # dreamsim 0.2.1, model.py: Resize((224, 224), BICUBIC) and ToTensor; every branch normalises.
    "dreamsim": _DREAMSIM,
    "dreamsim-dino-vitb16": _DREAMSIM,
}  # fmt: skip


def for_small_pictures(repository: str, size: int, resize_to: int | None = None) -> dict[str, Any]:
    """The file of `repository` with other sizes, as a tiny network of the same family has it.

    Args:
        size: height and width of the network's input.
        resize_to: what is resized to before a crop; `size` by default.
    """
    stored = copy.deepcopy(PREPROCESSORS[repository])
    inner = "crop_size" if stored.get("crop_size") else "size"

    def like(old: Any, side: int) -> Any:
        return {key: side for key in old} if isinstance(old, dict) else side

    stored["size"] = like(stored["size"], resize_to or size)
    stored[inner] = like(stored[inner], size)
    if "pad_size" in stored:
        stored["pad_size"] = like(stored["pad_size"], size)
    return stored
