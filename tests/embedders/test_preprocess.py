"""The pixels equal those of the image processors the weights were published with."""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from published import PREPROCESSORS

from medretrieval.embedders import REGISTRY
from medretrieval.embedders.preprocess import prepare, resize, resized_shape
from medretrieval.embedders.preprocessor_config import (
    described_preprocessing,
    preprocessing_of_folder,
)
from medretrieval.errors import InputError, UsageError

CROP, SQUASH = REGISTRY["dinov2-base"], REGISTRY["mae-vit-b"]


# A row, and the Pillow-backed image processor of the published repository.
REFERENCES = [
    ("dinov2-base", "bit.image_processing_pil_bit:BitImageProcessorPil"),
    ("rad-dino", "bit.image_processing_pil_bit:BitImageProcessorPil"),
    ("vit-b16-in21k", "vit.image_processing_pil_vit:ViTImageProcessorPil"),
    ("mae-vit-b", "vit.image_processing_pil_vit:ViTImageProcessorPil"),
    ("clip-vit-l14", "clip.image_processing_pil_clip:CLIPImageProcessorPil"),
    ("medsiglip-448", "siglip.image_processing_pil_siglip:SiglipImageProcessorPil"),
    ("resnet50", "convnext.image_processing_pil_convnext:ConvNextImageProcessorPil"),
    ("sam-vit-b", "sam.image_processing_pil_sam:SamImageProcessorPil"),
    ("deit", "deit.image_processing_pil_deit:DeiTImageProcessorPil"),
]
# No row is prepared as DeiT (facebook/deit-base-patch16-224), but a folder of the user may be.
DEIT = dataclasses.replace(
    CROP, name="deit", weights="deit", resize="squash-crop", mean=(0.5,) * 3, std=(0.5,) * 3
)
DEIT_FILE = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "size": {"height": 256, "width": 256},
}


@pytest.mark.parametrize(("name", "path"), REFERENCES, ids=lambda value: value.split(":")[0])
def test_equals_the_reference_processor(
    name: str, path: str, pictures: list[np.ndarray], tmp_path: Path
) -> None:
    spec = DEIT if name == "deit" else REGISTRY[name]
    module, _, class_name = path.partition(":")
    processor = getattr(importlib.import_module(f"transformers.models.{module}"), class_name)
    reference = processor.from_dict(dict({**PREPROCESSORS, "deit": DEIT_FILE}[spec.weights]))
    colour = [Image.fromarray(picture).convert("RGB") for picture in pictures]
    expected = np.stack([reference(image)["pixel_values"][0] for image in colour])
    np.testing.assert_allclose(prepare(pictures, spec), expected, atol=2e-6)
    # What such a processor writes is read as the row, which names the same preprocessing.
    reference.save_pretrained(tmp_path)
    assert preprocessing_of_folder(spec, tmp_path) == spec


@given(height=st.integers(1, 400), width=st.integers(1, 400), spec=st.sampled_from([CROP, SQUASH]))
def test_every_shape_becomes_the_input_size(height: int, width: int, spec: Any) -> None:
    spec = dataclasses.replace(spec, input_size=14, resize_to=20 if spec is CROP else 14)
    picture = np.full((height, width), 200, dtype=np.uint8)
    small = resize(picture, spec)
    assert small.shape == (14, 14)
    np.testing.assert_array_equal(small, 200)


def test_crop_keeps_the_aspect_ratio_and_squash_does_not() -> None:
    assert resized_shape(300, 260, CROP) == (295, 256)
    assert resized_shape(260, 300, CROP) == (256, 295)
    assert resized_shape(260, 300, SQUASH) == (224, 224)


def test_golden_pixels() -> None:
    # (value / 255 - mean) / std with ImageNet's numbers, by hand, for a grey 51 = 0.2.
    pixels = prepare([np.full((9, 11), 51, dtype=np.uint8)], CROP)
    np.testing.assert_allclose(
        pixels[0, :, 100, 100], [-1.2445414, -1.1428571, -0.9155555], atol=1e-6
    )


def test_grey_equals_its_replication(pictures: list[np.ndarray]) -> None:
    grey = pictures[0]
    colour = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(prepare([grey], CROP), prepare([colour], CROP))


def test_a_view_with_negative_strides_is_read_as_shown(pictures: list[np.ndarray]) -> None:
    flipped = pictures[1][::-1, ::-1]
    np.testing.assert_array_equal(prepare([flipped], CROP), prepare([flipped.copy()], CROP))


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (np.zeros((4, 4), dtype=np.float32), "float32"),
        (np.zeros((4, 4, 4), dtype=np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((2, 4, 4, 3), dtype=np.uint8), r"\(2, 4, 4, 3\)"),
        (np.zeros(4, dtype=np.uint8), r"\(4,\)"),
        (np.zeros((0, 4), dtype=np.uint8), "empty"),
        ([[1, 2], [3, 4]], "list"),
    ],
)
def test_other_arrays_are_refused(picture: Any, says: str) -> None:
    with pytest.raises(InputError, match=f"{says}.*expected a uint8 array"):
        prepare([picture], CROP)


def test_a_specification_with_contradicting_sizes_is_refused() -> None:
    with pytest.raises(UsageError, match="resize_to is 256"):
        dataclasses.replace(SQUASH, resize_to=256)
    with pytest.raises(UsageError, match="at least input_size"):
        dataclasses.replace(CROP, resize_to=200)


def _folder(tmp_path: Path, **changes: Any) -> Path:
    stored = {
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "do_resize": True,
        "image_mean": list(CROP.mean),
        "image_std": list(CROP.std),
        "resample": 3,
        "size": {"shortest_edge": 256},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**stored, **changes}))
    return tmp_path


def test_the_folder_agrees(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert preprocessing_of_folder(CROP, _folder(tmp_path)) == CROP
    assert not caplog.records


def test_without_the_file_the_specification_stands(tmp_path: Path) -> None:
    assert preprocessing_of_folder(CROP, tmp_path) is CROP


def test_the_folder_takes_precedence_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _folder(tmp_path, resample=2, image_mean=[0.5, 0.5, 0.5])
    changed = preprocessing_of_folder(CROP, folder)
    assert (changed.interpolation, changed.mean) == ("bilinear", (0.5, 0.5, 0.5))
    assert changed.preprocessing["interpolation"].startswith("bilinear")
    assert "takes precedence" in caplog.text
    assert "interpolation bilinear" in caplog.text


def test_old_square_sizes_are_understood(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"size": 224, "resample": 2}')
    assert preprocessing_of_folder(SQUASH, tmp_path) == SQUASH


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


# preprocessor_config.json as repositories publish it, of several ages, and what it means.
@pytest.mark.parametrize(
    ("stored", "means"),
    [
        (  # microsoft/resnet-50
            {
                "feature_extractor_type": "ConvNextFeatureExtractor",
                "crop_pct": 0.875,
                "size": 224,
                "resample": 3,
            },
            ("crop", 256, 224, "bicubic"),
        ),
        (  # facebook/convnext-base-384
            {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 384, "resample": 3},
            ("squash", 384, 384, "bicubic"),
        ),
        (  # facebook/deit-base-patch16-224
            {
                "feature_extractor_type": "DeiTFeatureExtractor",
                "crop_size": 224,
                "do_center_crop": True,
                "size": 256,
                "resample": 3,
            },
            ("squash-crop", 256, 224, "bicubic"),
        ),
        (  # microsoft/beit-base-patch16-224
            {
                "feature_extractor_type": "BeitFeatureExtractor",
                "crop_size": 224,
                "do_center_crop": False,
                "size": 224,
                "resample": 2,
            },
            ("squash", 224, 224, "bilinear"),
        ),
        (  # openai/clip-vit-large-patch14
            {
                "feature_extractor_type": "CLIPFeatureExtractor",
                "crop_size": 224,
                "do_center_crop": True,
                "size": 224,
                "resample": 3,
            },
            ("crop", 224, 224, "bicubic"),
        ),
        (  # facebook/dinov3-vits16-pretrain-lvd1689m
            {
                "image_processor_type": "DINOv3ViTImageProcessorFast",
                "crop_size": None,
                "do_center_crop": None,
                "size": {"height": 224, "width": 224},
                "resample": 2,
            },
            ("squash", 224, 224, "bilinear"),
        ),
        (  # facebook/sam-vit-base
            {
                "image_processor_type": "SamImageProcessor",
                "do_pad": True,
                "pad_size": {"height": 1024, "width": 1024},
                "size": {"longest_edge": 1024},
                "resample": 2,
            },
            ("pad-end", 1024, 1024, "bilinear"),
        ),
        (  # lanczos, and the same side twice, which is no crop
            {
                "image_processor_type": "DeiTImageProcessor",
                "size": {"height": 224, "width": 224},
                "crop_size": {"height": 224, "width": 224},
                "resample": 1,
            },
            ("squash", 224, 224, "lanczos"),
        ),
    ],
)
def test_published_forms(stored: dict[str, Any], means: tuple[Any, ...], tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**stored, **IMAGENET, "do_resize": True}))
    found = described_preprocessing(path)
    fields = ("resize", "resize_to", "input_size", "interpolation")
    assert tuple(found[field] for field in fields) == means
    assert found["mean"] == (0.485, 0.456, 0.406)


def test_what_the_file_leaves_out_stays(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{}")
    sam = REGISTRY["sam-vit-b"]
    assert preprocessing_of_folder(sam, tmp_path) == sam
    assert described_preprocessing(tmp_path / "preprocessor_config.json") == {}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"resample": 0}, "resample 0"),
        ({"do_resize": False}, "do_resize False"),
        ({"rescale_factor": 1.0}, "rescale_factor 1.0"),
        ({"rescale_factor": "1/255"}, "rescale_factor '1/255'"),
        ({"size": {"height": 256, "width": 200}}, "gives the size"),
        ({"size": {}}, "gives the size"),
        ({"size": {"shortest_edge": 10**6}}, "gives the size.*at most 4096"),
        ({"size": {"shortest_edge": [256]}}, "gives the size"),
        ({"size": {"longest_edge": 256}}, "longest_edge"),
        ({"do_center_crop": False}, "shortest_edge.*do_center_crop False"),
        ({"crop_size": 300}, "crop_size 300, larger than size 256"),
        ({"image_std": [0.2]}, "expected 3 numbers"),
        ({"do_pad": True}, "do_pad True"),
        ({"crop_pct": 0.9}, "crop_pct 0.9"),
        ({"image_processor_type": "LevitImageProcessor"}, "of the kind Levit"),
        ({"image_processor_type": "SamImageProcessor"}, "do_center_crop True"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "do_center_crop True"),
        (
            {
                "image_processor_type": "ConvNextImageProcessor",
                "do_center_crop": None,
                "crop_pct": 0,
            },
            "crop_pct 0",
        ),
        (
            {
                "image_processor_type": "SamImageProcessor",
                "do_center_crop": False,
                "size": {"longest_edge": 1024},
                "pad_size": {"height": 512, "width": 512},
            },
            "pad_size",
        ),
    ],
)
def test_what_is_not_supported_is_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        preprocessing_of_folder(CROP, _folder(tmp_path, **changes))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        preprocessing_of_folder(CROP, tmp_path)
