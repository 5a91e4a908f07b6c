"""The embedder of an index, loaded again by what the index says of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from medretrieval.embedders.compute import Precision, Runtime
from medretrieval.embedders.spec import LOCAL_FILE
from medretrieval.errors import MedRetrievalError, UnavailableError
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


def load_every(
    wanted: Iterable[EmbedderIdentity],
    *,
    loaded: Sequence[Embedder | VolumeEmbedder] = (),
    device: str = "cpu",
    weights: Path | None = None,
    precision: Precision | None = None,
    runtime: Runtime = "torch",
) -> list[Embedder | VolumeEmbedder]:
    """Load the embedders of all embeddings of an index, so that cases can be added to it.

    Args:
        wanted: what the index says of them.
        loaded: those that need not be loaded again.
        weights: local weights of the first.
        (others): as for `load_again`.

    Raises:
        UnavailableError: one of them cannot be loaded here; the message says which, and how to do
            without it where there are others.
        MedRetrievalError: as `load_again`, where there is only one.
    """
    identities = list(wanted)
    found: list[Embedder | VolumeEmbedder] = []
    for number, identity in enumerate(identities):
        own = next((one for one in loaded if one.identity.space == identity.space), None)
        try:
            found.append(
                own
                or load_again(
                    identity,
                    device=device,
                    weights=weights if number == 0 else None,
                    precision=precision,
                    runtime=runtime,
                )
            )
        except MedRetrievalError as error:
            if len(identities) == 1:
                raise
            raise UnavailableError(
                f"the index has embeddings by {identity.name}, which cannot be loaded here: "
                f"{error}. To write a new version that lacks its embeddings: --without-embedder "
                f"{identity.name} (without_embedders=[{identity.name!r}])"
            ) from error
    return found
