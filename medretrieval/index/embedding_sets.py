"""The embeddings of an index by one embedder, and how they are searched.

An index has one such set, or several over the same rows. Each has a file of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medretrieval.index.fields import Fields
from medretrieval.index.files import (
    EMBEDDINGS,
    EMBEDDINGS_FILE,
    FAISS_FILE,
    check_bare_name,
    check_file_name,
    slug,
)
from medretrieval.index.search_entry import IndexRequest, RecallReport, read_request
from medretrieval.types import EmbedderIdentity

METRIC = "cosine"
DTYPES = ("float32", "float16")
MAX_SETS = 64
_MAX_NAME = 150  # characters of a file's name; file systems allow 255


@dataclass(frozen=True, kw_only=True)
class EmbeddingSet:
    """One embedder's part of a manifest; for the fields see `manifest.Manifest`."""

    embedder: EmbedderIdentity
    dtype: str
    index_kind: str
    index_parameters: Mapping[str, int]
    index_reason: str | None = None
    index_request: IndexRequest | None = None
    recall: RecallReport | None = None
    embeddings_file: str = EMBEDDINGS_FILE
    faiss_file: str = FAISS_FILE

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-able data; `read_set` gives them back."""
        return {
            "embedder": dataclasses.asdict(self.embedder),
            "dim": self.embedder.dim,
            "dtype": self.dtype,
            "metric": METRIC,
            "normalised": True,
            "index": {
                "kind": self.index_kind,
                "parameters": dict(self.index_parameters),
                **({} if self.index_reason is None else {"reason": self.index_reason}),
                **({} if self.index_request is None else {"asked": self.index_request.to_json()}),
            },
            **({} if self.recall is None else {"recall": self.recall.to_json()}),
            **(
                {}
                if self.embeddings_file == EMBEDDINGS_FILE
                else {"embeddings": self.embeddings_file, "faiss": self.faiss_file}
            ),
        }


@dataclass(frozen=True, kw_only=True)
class SetRequest:
    """The embeddings that an index is to have of one embedder.

    Attributes:
        dtype: how they are stored.
        index_kind, index_parameters: as they were asked for: "auto" too, and only settings that
            were given.
    """

    embedder: EmbedderIdentity
    dtype: str
    index_kind: str
    index_parameters: Mapping[str, int]


def request_of(entry: EmbeddingSet) -> SetRequest:
    """What was asked for when these embeddings were made, to be asked for again."""
    asked = entry.index_request or IndexRequest(
        kind=entry.index_kind, parameters=entry.index_parameters
    )
    return SetRequest(
        embedder=entry.embedder,
        dtype=entry.dtype,
        index_kind=asked.kind,
        index_parameters=asked.parameters,
    )


def files_of(embedder: str, taken: Collection[str] = ()) -> tuple[str, str]:
    """Names of the embeddings file and the FAISS file of a further embedder of an index.

    Args:
        taken: names of files that others have; two embedders may differ in a character that a
            file name cannot have.

    >>> files_of("hf:org/repo")
    ('embeddings/hf-org-repo.safetensors', 'index-hf-org-repo.faiss')
    >>> files_of("hf:org/repo", ["embeddings/HF-org-repo.safetensors"])
    ('embeddings/hf-org-repo-2.safetensors', 'index-hf-org-repo-2.faiss')
    """
    used = {name.lower() for name in taken}  # as file systems of Windows and macOS compare names
    own = slug(embedder)[:_MAX_NAME]
    names = itertools.chain([own], (f"{own}-{number}" for number in itertools.count(2)))
    files = ((f"{EMBEDDINGS}{name}.safetensors", f"index-{name}.faiss") for name in names)
    return next(pair for pair in files if used.isdisjoint(name.lower() for name in pair))


def embedders_here(folder: Path, sets: Mapping[str, EmbeddingSet]) -> list[str]:
    """The names of those whose embeddings are in the folder of an index."""
    return [name for name, entry in sets.items() if (folder / entry.embeddings_file).is_file()]


def read_set(fields: Fields) -> EmbeddingSet:
    """Return the set that an object of a manifest describes.

    Raises:
        IndexFormatError: a field is missing, of another type or out of range.
    """
    index = fields.sub("index")
    embedder = _identity(fields.sub("embedder"))
    if fields.get("dim", int) != embedder.dim or embedder.dim < 1:
        raise fields.wrong("dim", f"is {fields.data['dim']}, the embedder's is {embedder.dim}")
    if fields.get("metric", str) != METRIC or fields.get("normalised", bool) is not True:
        raise fields.wrong("metric", f"must be {METRIC!r} of normalised embeddings")
    if fields.get("dtype", str) not in DTYPES:
        raise fields.wrong(
            "dtype", f"is {fields.data['dtype']!r}, expected one of {', '.join(DTYPES)}"
        )
    return EmbeddingSet(
        embedder=embedder,
        dtype=fields.get("dtype", str),
        index_kind=index.get("kind", str),
        index_parameters=index.sub("parameters").counts(),
        index_reason=index.get("reason", str) if "reason" in index.data else None,
        index_request=read_request(index.sub("asked")) if "asked" in index.data else None,
        recall=RecallReport.read(fields.sub("recall")) if "recall" in fields.data else None,
        embeddings_file=_file(fields, "embeddings", EMBEDDINGS_FILE, ".safetensors"),
        faiss_file=_file(fields, "faiss", FAISS_FILE, ".faiss"),
    )


def read_others(manifest: Fields, first: EmbeddingSet) -> dict[str, EmbeddingSet]:
    """Return the further sets of a manifest by the names of their embedders.

    Raises:
        IndexFormatError: one of them is wrong, or two have one file or one embedder.
    """
    if "embedders" not in manifest.data:
        return {}
    entries = manifest.sub("embedders")
    if len(entries.data) > MAX_SETS:
        raise manifest.wrong("embedders", f"has more than {MAX_SETS} entries")
    others = {name: read_set(entries.sub(name)) for name in entries.data}
    sets = [first, *others.values()]
    names = [entry.embedder.name for entry in sets]
    for what, values in (
        ("embedder", names),
        ("embeddings file", [entry.embeddings_file for entry in sets]),
        ("FAISS file", [entry.faiss_file for entry in sets]),
    ):
        if len(set(values)) < len(values):
            raise manifest.wrong("embedders", f"has one {what} twice")
    if list(others) != names[1:]:
        raise manifest.wrong("embedders", "is not listed by the names of the embedders")
    return others


def _file(fields: Fields, key: str, default: str, suffix: str) -> str:
    if key not in fields.data:
        return default
    name = fields.get(key, str)
    folder = EMBEDDINGS if suffix == ".safetensors" else "index"
    if not (check_file_name(name) and name.startswith(folder) and name.endswith(suffix)):
        raise fields.wrong(key, f"is {name!r}, which cannot be such a file of an index")
    return name


def _identity(fields: Fields) -> EmbedderIdentity:
    for part in fields.get("name", str).split("+"):
        # Opening an index must not read what its author wants read on this machine.
        kind, _, file = part.strip().partition(":")
        if kind == "file" and not check_bare_name(file):
            raise fields.wrong("name", f"is {part!r}, expected the bare name of a file")
    return EmbedderIdentity(
        name=fields.get("name", str),
        weights=fields.get("weights", str),
        revision=fields.get("revision", str),
        weights_sha256=fields.get("weights_sha256", str),
        preprocessing=fields.get("preprocessing", dict),
        pooling=fields.get("pooling", str),
        dim=fields.positive("dim"),
        # Indexes older than these fields do not say them.
        network=fields.get("network", dict) if "network" in fields.data else {},
        precision=fields.get("precision", str) if "precision" in fields.data else "float32",
    )
