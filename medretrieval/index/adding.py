"""Further embedders of an index: their embeddings of the pictures that it stores.

The index is changed in place, as a copy of its pictures for every embedder would be too much.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import UsageError, unknown_name
from medretrieval.index.changes import check_note, day_of
from medretrieval.index.embedding import check_unit
from medretrieval.index.embedding_sets import (
    MAX_SETS,
    EmbeddingSet,
    SetRequest,
    embedders_here,
    files_of,
    request_of,
)
from medretrieval.index.files import embeddings_table, file_entry
from medretrieval.index.in_place import (
    changing,
    next_version,
    publish,
    replace_manifest,
)
from medretrieval.index.kinds import check_parameters
from medretrieval.index.manifest import Manifest, canonical, read_manifest
from medretrieval.index.reembedding import PartialEmbeddings, embed_stored, work_folder
from medretrieval.index.searching import make_set
from medretrieval.index.store import IndexStore, open_store
from medretrieval.index.workspace import sync, writing
from medretrieval.types import Embedder, Progress, VolumeEmbedder, no_progress


def add_embedder(
    index: str | Path,
    *,
    embedder: Embedder | VolumeEmbedder,
    float16: bool = False,
    index_kind: str | None = None,
    index_parameters: Mapping[str, int] | None = None,
    note: str = "",
    day: str | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Add the embeddings of one more embedder to an index, in place.

    The stored pictures are embedded, which are those that `build` embeds: the embeddings are those
    of an index that is built with this embedder from the same cases. The index is valid at any
    moment, with or without them. A call that was interrupted and is made again goes on where it
    stopped. Embeddings that the manifest lists and that are missing are made again.

    Args:
        index: an index folder, which is changed: two files come, the manifest and the card are
            written anew, as the next version.
        embedder: of slices; its `batch_size`, if it has one, is the number of slices embedded
            together.
        float16: halve the embeddings' size; scores change by less than 0.001.
        index_kind, index_parameters: see `build`; by default the kind that was asked for of the
            first embedder.
        note: what the list of changes says of this one.
        day: of the change, as 2026-11-27; default today (UTC).
        progress: called with embedded slices, number of slices, and what is going on.

    Returns:
        `index`.

    Raises:
        UsageError: the index has embeddings of an embedder of this name, or no pictures; it or the
            embedder is of whole volumes; unknown kind or parameter; another process changes it.
        IndexFormatError: the index is damaged.
        MedRetrievalError: the embedder gives no vector of length 1 for a slice, or the disk is full
            or cannot be written.
    """
    folder = Path(index)
    check_note(note)
    day = day_of(day)
    check_unit(embedder)
    read_manifest(folder)  # before anything is written there
    with changing(folder):
        manifest = read_manifest(folder)
        _refuse(manifest, embedder, folder)
        asked = _request(
            manifest,
            embedder,
            float16=float16,
            index_kind=index_kind,
            index_parameters=index_parameters,
        )
        work = PartialEmbeddings(folder, manifest, asked)
        try:
            with _open(folder, manifest) as store:
                embed_stored(store, cast(Embedder, embedder), work, progress)
                volume = store.volume
            with writing(folder):
                _finish(folder, asked, work, volume, note=note, day=day, progress=progress)
        except BaseException:
            work.close()
            raise
        work.remove()
    progress(len(volume), len(volume), "done")
    return folder


def drop_embedder(
    index: str | Path, embedder: str, *, note: str = "", day: str | None = None
) -> Path:
    """Take the embeddings of an embedder out of an index, in place, as its next version.

    If it is the first of the index, the next takes its place. The index is valid at any moment.

    Args:
        embedder: its name.
        note, day: as for `add_embedder`.

    Returns:
        `index`.

    Raises:
        UsageError: the index has no embedder of that name, or no other whose embeddings are there;
            another process changes it.
        IndexFormatError: the manifest is damaged.
        MedRetrievalError: it cannot be written.
    """
    folder = Path(index)
    check_note(note)
    day = day_of(day)
    read_manifest(folder)  # before anything is written there
    with changing(folder), writing(folder):
        manifest = read_manifest(folder)
        sets = manifest.sets
        if embedder not in sets:
            raise unknown_name("embedder of this index", embedder, sets, "medretrieval info INDEX")
        left = sets.pop(embedder)
        here = embedders_here(folder, sets)
        if not here:
            raise UsageError(
                f"{folder} has no other embeddings than those by {embedder} in its folder, and "
                "needs some; add another embedder first (medretrieval add-embedder)"
            )
        if manifest.embedder.name == embedder:
            # Only the embeddings of a further embedder may be missing.
            manifest = manifest.choose(here[0])
            replace_manifest(folder, manifest)
        others = {name: entry for name, entry in manifest.others.items() if name != embedder}
        manifest = dataclasses.replace(manifest, others=others)
        publish(
            folder,
            next_version(manifest, day=day, dropped=embedder, note=note),
            leaving=[
                left.embeddings_file,
                embeddings_table(left.embeddings_file),
                left.faiss_file,
            ],
        )
    return folder


def _refuse(manifest: Manifest, embedder: Embedder | VolumeEmbedder, folder: Path) -> None:
    """Refuse what cannot be added."""
    identity = embedder.identity
    name = identity.name
    if identity.unit == "volume" or manifest.embedder.unit == "volume":
        whose = f"the embedder {name}" if identity.unit == "volume" else f"{folder}"
        raise UsageError(
            f"{whose} is of whole volumes, of which an index has no more than pictures of slices; "
            f"build another index with {name} from the images it was built from, and search both "
            "together (--fuse)"
        )
    if not manifest.pictures:
        raise UsageError(
            f"{folder} has no pictures that could be embedded; build an index with {name} from the "
            "images it was built from"
        )
    sets = manifest.sets
    there = sets.get(name)
    if name in embedders_here(folder, sets):
        shutil.rmtree(work_folder(folder, name), ignore_errors=True)  # of a run killed at its end
        raise UsageError(
            f"{folder} has embeddings by {name} already; to make them anew, take them out first "
            f"(medretrieval drop-embedder {folder} --embedder {name})"
        )
    if there is not None and there.embedder.space != identity.space:
        raise UsageError(
            f"{folder} has listed embeddings by another {name}, with other weights or settings, "
            "and they are missing; fetch them, or take them out first (medretrieval drop-embedder "
            f"{folder} --embedder {name})"
        )
    if there is None and len(sets) > MAX_SETS:
        raise UsageError(f"{folder} has {len(sets)} embedders, which is the most; drop one first")


def _request(
    manifest: Manifest,
    embedder: Embedder | VolumeEmbedder,
    *,
    float16: bool,
    index_kind: str | None,
    index_parameters: Mapping[str, int] | None,
) -> SetRequest:
    """What is to be made; what is not given is as it was for missing ones, or the first."""
    identity = canonical(embedder.identity)
    first, *_ = manifest.sets.values()
    old = manifest.sets.get(identity.name)
    like = request_of(old or first)
    kind = like.index_kind if index_kind is None else index_kind
    parameters = index_parameters or {}
    if index_parameters is None and old is not None and kind == like.index_kind:
        parameters = like.index_parameters
    check_parameters(kind, parameters, dim=identity.dim)
    half = float16 or (old is not None and old.dtype == "float16")
    return SetRequest(
        embedder=identity,
        dtype="float16" if half else "float32",
        index_kind=kind,
        index_parameters=parameters,
    )


def _open(folder: Path, manifest: Manifest) -> IndexStore:
    """Open the index by an embedder whose embeddings are in the folder."""
    here = embedders_here(folder, manifest.sets)
    return open_store(folder, embedder=here[0] if here else None)


def _finish(
    folder: Path,
    asked: SetRequest,
    work: PartialEmbeddings,
    volume: NDArray[np.int32],
    *,
    note: str,
    day: str,
    progress: Progress,
) -> None:
    """Build the search structure, and make both part of the index."""
    name = asked.embedder.name
    manifest = read_manifest(folder)
    sets = manifest.sets
    old = sets.get(name)
    if old is None:
        taken = [file for entry in sets.values() for file in _files(entry)]
        files = files_of(name, [*taken, *manifest.files])
    else:
        files = _files(old)
    work.faiss.unlink(missing_ok=True)
    entry = make_set(
        asked,
        files,
        volume,
        embeddings=work.embeddings,
        faiss=work.faiss,
        progress=progress,
    )
    # The embeddings come last: as long as they are missing, the same call makes the rest.
    arriving = {files[1]: work.faiss} if work.faiss.exists() else {}
    arriving[files[0]] = work.embeddings
    for staged in arriving.values():
        sync(staged)
    same = manifest.files.get(files[0]) == file_entry(work.embeddings)
    sets[name] = entry
    first, *others = sets.values()
    manifest = dataclasses.replace(
        manifest, **vars(first), others={other.embedder.name: other for other in others}
    )
    leaving = set(files) - set(arriving)
    if not same:
        manifest = next_version(manifest, day=day, embedder=name, note=note)
        leaving.add(embeddings_table(files[0]))
    publish(folder, manifest, arriving=arriving, leaving=leaving)


def _files(entry: EmbeddingSet) -> tuple[str, str]:
    return entry.embeddings_file, entry.faiss_file
