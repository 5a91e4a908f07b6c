"""The embedders there are: a plain table, read by the loader, the command line and the README."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from medretrieval.embedders.rows.contrastive import CONTRASTIVE
from medretrieval.embedders.rows.supervised import SUPERVISED
from medretrieval.embedders.rows.transformers import TRANSFORMERS
from medretrieval.embedders.rows.volumes import VOLUMES
from medretrieval.embedders.spec import EmbedderSpec

DEFAULT_EMBEDDER = "efficientnet-lite0"

_SPECS = (*SUPERVISED, *TRANSFORMERS, *CONTRASTIVE, *VOLUMES)

REGISTRY: Mapping[str, EmbedderSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
