"""Networks that embed a whole volume at once."""

from __future__ import annotations

from medretrieval.embedders.spec import EmbedderSpec

VOLUMES: tuple[EmbedderSpec, ...] = ()
