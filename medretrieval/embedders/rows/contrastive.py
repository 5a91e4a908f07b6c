"""Networks trained on pairs and triplets: images with captions, and images judged alike."""

from __future__ import annotations

from medretrieval.embedders.spec import EmbedderSpec

CONTRASTIVE: tuple[EmbedderSpec, ...] = ()
