"""Several embedders as one: their embeddings side by side."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import UsageError
from medretrieval.types import Embedder, EmbedderIdentity, VolumeEmbedder

SEPARATOR = "+"


class Ensemble:
    """Embeddings of all parts, each of length 1, concatenated and scaled to length 1.

    The cosine of two such embeddings is the mean of the parts' cosines, whatever their dimensions.

    Attributes:
        parts: the embedders, in the order of the name.
        identity: names and dimensions put together; `preprocessing` holds every part's identity.
    """

    def __init__(self, parts: Sequence[Embedder | VolumeEmbedder]) -> None:
        if len(parts) < 2:
            raise UsageError(f"an ensemble needs two embedders or more, not {len(parts)}")
        identities = [part.identity for part in parts]
        for identity in identities:
            if identity.unit == "volume":
                raise UsageError(
                    f"{identity.name} embeds whole volumes, so it cannot be part of an ensemble; "
                    "join embedders of slices only"
                )
        if len({identity.space for identity in identities}) < len(parts):
            raise UsageError(
                f"ensemble {SEPARATOR.join(i.name for i in identities)} holds the same embedder "
                "twice; give each part once"
            )
        self.parts = tuple(cast(Embedder, part) for part in parts)
        self.identity = EmbedderIdentity(
            name=SEPARATOR.join(identity.name for identity in identities),
            weights=f" {SEPARATOR} ".join(identity.weights for identity in identities),
            revision=f" {SEPARATOR} ".join(identity.revision for identity in identities),
            weights_sha256=hashlib.sha256(
                "\n".join(identity.weights_sha256 for identity in identities).encode()
            ).hexdigest(),
            preprocessing={
                "parts": [
                    {k: v for k, v in dataclasses.asdict(identity).items() if k in _OF_A_PART}
                    for identity in identities
                ]
            },
            pooling="concatenated, each part of length 1",
            dim=sum(identity.dim for identity in identities),
            precision=" + ".join(dict.fromkeys(identity.precision for identity in identities)),
        )

    @property
    def batch_size(self) -> int:
        """Pictures to embed in one call: the most that a part asks for."""
        return max(int(getattr(part, "batch_size", 1)) for part in self.parts)

    def embed_batch(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """n pictures, each (H, W) or (H, W, 3) uint8 -> (n, dim) float32, rows of L2 norm 1.

        Raises:
            InputError: as the parts do.
        """
        joined = np.concatenate([part.embed_batch(images) for part in self.parts], axis=1)
        scaled: NDArray[np.float32] = joined * np.float32(len(self.parts) ** -0.5)
        return scaled


# What decides a part's space; where its weights came from does not.
_OF_A_PART = frozenset({"weights_sha256", "preprocessing", "pooling", "dim", "network"})
