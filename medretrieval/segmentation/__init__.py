"""Few-shot segmentation with networks of the SAM 2 family, from annotated slices.

torch and sam2 are loaded when a segmenter is, not before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from medretrieval.segmentation.crop import Box
from medretrieval.segmentation.labels import SliceSegmentation
from medretrieval.segmentation.options import SegmentationOptions, VolumeOptions
from medretrieval.segmentation.registry import (
    DEFAULT_SEGMENTER,
    REGISTRY,
    SegmenterSpec,
    get_spec,
    list_segmenters,
    status,
)

if TYPE_CHECKING:
    from medretrieval.segmentation.cache import MemoryCache
    from medretrieval.segmentation.loading import load_segmenter
    from medretrieval.segmentation.segmenter import Segmenter
    from medretrieval.segmentation.volume import segment_volume

_LATER = {
    "MemoryCache": "cache",
    "Segmenter": "segmenter",
    "load_segmenter": "loading",
    "segment_volume": "volume",
}

__all__ = [
    "DEFAULT_SEGMENTER",
    "REGISTRY",
    "Box",
    "MemoryCache",
    "SegmentationOptions",
    "Segmenter",
    "SegmenterSpec",
    "SliceSegmentation",
    "VolumeOptions",
    "get_spec",
    "list_segmenters",
    "load_segmenter",
    "segment_volume",
    "status",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
