"""What an index of whole volumes (one embedding for each) cannot answer, and why."""

from __future__ import annotations

from dataclasses import replace

from medretrieval.errors import UsageError
from medretrieval.retrieval.modes import Mode
from medretrieval.retrieval.selection import Selection
from medretrieval.types import EmbedderIdentity


def refuse_slices(embedder: EmbedderIdentity, slices: object) -> None:
    """Refuse a choice of slices of the query, where one embedding is of the whole volume.

    Args:
        slices: what was chosen, None for nothing.

    Raises:
        UsageError: the message says what to do instead.
    """
    if embedder.unit == "volume" and slices is not None:
        raise UsageError(
            f"this index cannot be searched with single slices: {_reason(embedder)}. Leave the "
            "slices out (--slice, --slices, --structure, --sample), and the whole volume is "
            "compared"
        )


def refuse_choice(embedder: EmbedderIdentity, select: Selection, mode: Mode) -> None:
    """Refuse to choose slices of the query, and modes that need such a choice.

    Raises:
        UsageError: the message says what to do instead.
    """
    if embedder.unit == "volume" and mode.needs:
        raise UsageError(
            f"mode {mode.name} searches with some slices of the query, and this index cannot: "
            f"{_reason(embedder)}. Choose another mode, such as mean-pool"
        )
    refuse_slices(embedder, None if select == replace(Selection(), seed=select.seed) else select)


def refuse_supports(embedder: EmbedderIdentity) -> None:
    """Refuse to look for annotated slices by the embeddings of whole volumes.

    The slices that stand for the volumes could serve as supports, but nothing says that they show
    what a query slice shows: that is for a person to decide.

    Raises:
        UsageError: the message says what to do instead.
    """
    if embedder.unit == "volume":
        raise UsageError(
            f"annotated slices cannot be retrieved from this index: {_reason(embedder)}. Choose "
            "the annotated slices to segment from by hand (on the page: add them to the support "
            "set), or build an index of the same images with an embedder of slices"
        )


def refuse_localizing(embedder: EmbedderIdentity) -> None:
    """Refuse to say where in a volume something is, by the embeddings of whole volumes.

    Raises:
        UsageError: the message says what to do instead.
    """
    if embedder.unit == "volume":
        raise UsageError(
            f"nothing can be localized with this index: {_reason(embedder)}. Build an index of "
            "the same images with an embedder of slices"
        )


def _reason(embedder: EmbedderIdentity) -> str:
    return f"its embedder {embedder.name} gives one embedding for a whole volume, none for a slice"
