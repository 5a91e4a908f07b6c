"""Whether indexes can become one: merged into a folder, or opened together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medretrieval.errors import EmbedderMismatchError, UsageError
from medretrieval.index.manifest import Manifest
from medretrieval.index.table import MAX_TEXT

_SHOWN = 5


def check_compatible(
    paths: Sequence[Path], manifests: Sequence[Manifest], *, same_name: bool
) -> None:
    """Refuse indexes whose rows cannot stand in one index.

    Args:
        same_name: whether their names must be equal too.

    Raises:
        EmbedderMismatchError: embeddings of another space.
        UsageError: other slices, dtype, extra columns or name.
    """
    first = manifests[0]
    for path, manifest in zip(paths[1:], manifests[1:], strict=True):
        both = f"{paths[0]} and {path}"
        if manifest.embedder.space != first.embedder.space:
            differences = _differences(asdict(first.embedder), asdict(manifest.embedder))
            raise EmbedderMismatchError(
                f"{both} were made with different embedders, whose embeddings cannot be compared "
                f"({differences}); build one of them again with the embedder of the other"
            )
        if manifest.slices != first.slices:
            raise UsageError(
                f"the slices of {both} were made differently "
                f"({_differences(asdict(first.slices), asdict(manifest.slices))}); build one of "
                "them again with the settings of the other"
            )
        for what, ours, theirs, advice in (
            ("precision", first.dtype, manifest.dtype, "with or without --float16"),
            ("extra columns", _listed(first), _listed(manifest), "with the same --keep"),
        ):
            if ours != theirs:
                raise UsageError(
                    f"{both} differ in their {what} ({ours}, {theirs}); build one of them again, "
                    f"both {advice}"
                )
        if same_name and manifest.name != first.name:
            raise UsageError(
                f"{both} have different names ({first.name!r}, {manifest.name!r}). The name is the "
                "key of the patients' pseudonyms, so the same patient would be two in the merged "
                "index; build one of them again with the --name of the other, or open them "
                f"together without merging: {paths[0]},{path}"
            )


def check_distinct(paths: Sequence[Path], volume_ids: Sequence[Sequence[str]]) -> None:
    """Refuse a volume that is in two indexes.

    Raises:
        UsageError: it names volumes and indexes.
    """
    seen: dict[str, Path] = {}
    for path, ids in zip(paths, volume_ids, strict=True):
        twice = [name for name in ids if name in seen]
        if twice:
            names = ", ".join(map(repr, twice[:_SHOWN])) + (", ..." if twice[_SHOWN:] else "")
            raise UsageError(
                f"{len(twice)} volumes of {path} are in {seen[twice[0]]} too: {names}. Every "
                "volume can be in one index only, or it would count twice; leave one index out, "
                "or build it again without them"
            )
        seen.update(dict.fromkeys(ids, path))


def join_texts(texts: Iterable[str]) -> str:
    """Return all different texts as one, or as many of them as an index can store."""
    different = list(dict.fromkeys(texts))
    text = "; ".join(different)
    shown = len(different)
    while len(text) > MAX_TEXT:
        shown -= 1
        text = "; ".join([*different[:shown], f"and {len(different) - shown} more"])
    return text


def _listed(manifest: Manifest) -> str:
    return ", ".join(manifest.attributes) or "none"


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    return "; ".join(
        f"{key}: {value!r}, {theirs[key]!r}" for key, value in ours.items() if value != theirs[key]
    )
