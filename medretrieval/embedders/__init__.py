"""Embedders: frozen networks that turn slices into vectors whose cosine is a similarity.

`import medretrieval.embedders` loads no torch; an adapter is imported when it is loaded.
"""

from medretrieval.embedders.loader import get_spec, list_embedders, load_embedder, status
from medretrieval.embedders.registry import DEFAULT_EMBEDDER, REGISTRY
from medretrieval.embedders.spec import EmbedderSpec

__all__ = [
    "DEFAULT_EMBEDDER",
    "REGISTRY",
    "EmbedderSpec",
    "get_spec",
    "list_embedders",
    "load_embedder",
    "status",
]
