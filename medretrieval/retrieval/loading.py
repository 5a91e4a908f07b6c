"""The embedder of an index, loaded again by what the index says of it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from medretrieval.embedders.compute import Precision, Runtime
from medretrieval.embedders.spec import LOCAL_FILE
from medretrieval.errors import UnavailableError
from medretrieval.folders import weights_dir
from medretrieval.types import Embedder, EmbedderIdentity, VolumeEmbedder


def load_again(
    wanted: EmbedderIdentity,
    *,
    device: str = "cpu",
    weights: Path | None = None,
    precision: Precision | None = None,
    runtime: Runtime = "torch",
) -> Embedder | VolumeEmbedder:
    """Load the embedder with an identity that was stored; whether it is the same is not checked.

    Args:
        precision: default that of the identity.

    Raises:
        UnavailableError: its weights are not on this machine and cannot be fetched.
        MedRetrievalError: as `embedders.load_embedder`.
    """
    from medretrieval.embedders import load_embedder

    stored = wanted.precision if wanted.precision in get_args(Precision) else "float32"
    try:
        return load_embedder(
            wanted.name,
            revision=wanted.revision,
            device=device,
            weights=weights,
            precision=precision or stored,  # type: ignore[arg-type]
            runtime=runtime,
        )
    except UnavailableError as error:
        if weights is not None or LOCAL_FILE not in wanted.weights:
            raise
        raise UnavailableError(
            f"the index was made by {wanted.name} with weights from a local file (sha256 of its "
            f"tensors {wanted.weights_sha256[:12]}), and they are not here. Give the same as "
            f"weights=PATH (--embedder-weights PATH), or put them into {weights_dir()} under the "
            f"embedder's name. What was tried: {error}"
        ) from error
