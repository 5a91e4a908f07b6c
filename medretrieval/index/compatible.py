"""Whether indexes can become one: merged into a folder, or opened together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medretrieval.errors import EmbedderMismatchError, UsageError
from medretrieval.index.embedding_sets import EmbeddingSet
from medretrieval.index.manifest import Manifest
from medretrieval.index.table import MAX_TEXT
from medretrieval.types import EmbedderIdentity

logger = logging.getLogger(__name__)

_SHOWN = 5


def common_embedders(paths: Sequence[Path], manifests: Sequence[Manifest]) -> list[tuple[str, ...]]:
    """Find the embedders that all indexes have; the others are logged.

    Two are the same if their embeddings can be compared, whatever they are called.

    Returns:
        For each index the names that it gives them, in the order of the first index.

    Raises:
        EmbedderMismatchError: they have none in common.
        UsageError: the embeddings of one of them are stored with different precision.
    """
    sets = [manifest.sets for manifest in manifests]
    names_of = (
        [same_embedder(entry.embedder, others) for others in sets] for entry in sets[0].values()
    )
    found = [[name for name in names if name is not None] for names in names_of]
    found = [names for names in found if len(names) == len(sets)]
    if not found:
        first = manifests[0].embedder
        lacks = next(n for n, others in enumerate(sets) if same_embedder(first, others) is None)
        raise _mismatch(f"{paths[0]} and {paths[lacks]}", first, manifests[lacks].embedder)
    common = list(zip(*found, strict=True))
    for path, own, names in zip(paths, sets, common, strict=True):
        if left_out := [name for name in own if name not in names]:
            logger.warning(
                "embeddings by %s are left out: %s has them, but not all of the indexes do",
                ", ".join(left_out),
                path,
            )
        for ours, theirs in zip(common[0][1:], names[1:], strict=True):
            if sets[0][ours].dtype != own[theirs].dtype:
                raise UsageError(
                    f"{paths[0]} and {path} differ in the precision of the embeddings by {theirs} "
                    f"({sets[0][ours].dtype}, {own[theirs].dtype}); take them out of one of the "
                    f"indexes (medretrieval drop-embedder {path} --embedder {theirs}), and add "
                    "them with the precision of the other or leave them out"
                )
    return common


def same_embedder(wanted: EmbedderIdentity, sets: Mapping[str, EmbeddingSet]) -> str | None:
    """The name under which an index has embeddings that can be compared with those of `wanted`."""
    same = [name for name, entry in sets.items() if entry.embedder.space == wanted.space]
    return wanted.name if wanted.name in same else next(iter(same), None)


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
            raise _mismatch(both, first.embedder, manifest.embedder)
        if manifest.slices != first.slices:
            raise UsageError(
                f"the slices of {both} were made differently "
                f"({_differences(asdict(first.slices), asdict(manifest.slices))}); build one of "
                "them again with the settings of the other"
            )
        for what, ours, theirs, advice in (
            ("precision", first.dtype, manifest.dtype, "with or without --float16"),
            ("pictures", first.pictures, manifest.pictures, "with or without --images at push"),
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
                "key of the patients' pseudonyms, so a patient who is in both would be two in the "
                "merged index. If that is right, as for indexes of two labs, give the merged index "
                "a name (--name); otherwise build one of them again with the --name of the other. "
                f"They can also be opened together without merging: {paths[0]},{path}"
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


def _mismatch(both: str, ours: EmbedderIdentity, theirs: EmbedderIdentity) -> EmbedderMismatchError:
    return EmbedderMismatchError(
        f"{both} were made with different embedders, whose embeddings cannot be compared "
        f"({_differences(asdict(ours), asdict(theirs))}); build one of them again with the "
        "embedder of the other, or add that embedder to it (medretrieval add-embedder)"
    )


def _listed(manifest: Manifest) -> str:
    return ", ".join(manifest.attributes) or "none"


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    return "; ".join(
        f"{key}: {value!r}, {theirs[key]!r}" for key, value in ours.items() if value != theirs[key]
    )
