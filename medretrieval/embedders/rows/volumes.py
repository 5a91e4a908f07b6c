"""Networks that embed a whole volume at once."""

from __future__ import annotations

from dataclasses import replace

from medretrieval.embedders.rows.common import MERLIN
from medretrieval.embedders.spec import NOT_PINNED, EmbedderSpec

_MERLIN = EmbedderSpec(
    name="merlin",
    adapter="medretrieval.embedders.merlin:MerlinCT",
    source="hub",
    weights="stanfordmimi/Merlin",
    revision=NOT_PINNED,
    # MODEL_CONFIGS["default"] of merlin-vlm 0.0.7, merlin/models/load.py; a state dict alone.
    filenames=("i3_resnet_clinical_longformer_best_clip_04-02-2024_23-21-36_epoch_99.pt",),
    dim=2048,
    unit="volume",
    input_size=224,
    resize="squash",
    resize_to=224,
    interpolation="bilinear",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    pooling="global average of the last feature map",
    options={
        "head": "image",
        # Of resnet152, from which the network is inflated.
        "layers": [3, 8, 36, 3],
        # ImageTransforms of merlin-vlm 0.0.7, merlin/data/monai_transforms.py.
        "volume": {
            "orientation": "RAS",
            "spacing_mm": [1.5, 1.5, 3.0],
            "interpolation": "trilinear (monai Spacing)",
            "hounsfield": [-1000, 1000],
            "size": [224, 224, 160],
            "fit": "centre, cropped or padded with -1000 HU",
            "grey": "replicated to 3 channels",
        },
    },
    license="mit",
    size_mb=1065,
    requires=MERLIN,
    note="one vector for a whole abdominal CT, 224 x 224 x 160 voxels of 1.5 x 1.5 x 3 mm; "
    "I3ResNet-152, image embedding",
)

VOLUMES: tuple[EmbedderSpec, ...] = (
    _MERLIN,
    replace(
        _MERLIN,
        name="merlin-contrastive",
        dim=512,
        pooling="contrastive head on the global average of the last feature map",
        options={**_MERLIN.options, "head": "contrastive"},
        note="the same volume and weights, projected to the space shared with the reports",
    ),
)
