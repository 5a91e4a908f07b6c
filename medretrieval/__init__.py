"""Find similar annotated medical images and segment yours from them with SAM 2.

The public names load on first use: `import medretrieval` stays free of torch, faiss and gradio.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "open_index": "medretrieval.retrieval.engine",
    "Index": "medretrieval.retrieval.engine",
    "build_index": "medretrieval.pipeline",
    "append_index": "medretrieval.pipeline",
    "add_embedder": "medretrieval.pipeline",
    "merge": "medretrieval.index",
    "remove_patient": "medretrieval.index",
    "diff": "medretrieval.index",
    "push": "medretrieval.index.push",
    "pull": "medretrieval.index.pull",
    "segment": "medretrieval.pipeline",
    "load_embedder": "medretrieval.embedders",
    "load_segmenter": "medretrieval.segmentation",
    "read_volume": "medretrieval.imaging",
    "read_labels": "medretrieval.imaging",
    "write_labels": "medretrieval.imaging",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'medretrieval' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
