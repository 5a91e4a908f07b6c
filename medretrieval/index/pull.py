"""A folder of one's own with an index of the Hub."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from medretrieval.errors import IndexFormatError, UnavailableError, UsageError
from medretrieval.index.files import (
    CARD,
    COLUMNS_FILE,
    EMBEDDINGS,
    MANIFEST,
    SLICES,
    FileEntry,
    file_entry,
    is_derived,
)
from medretrieval.index.manifest import Manifest, read_manifest
from medretrieval.index.pages import check_pages
from medretrieval.index.publish import check_output, move_into_place, named_path, recover
from medretrieval.index.reference import parse_reference
from medretrieval.index.release import link_or_copy
from medretrieval.index.remote import MAIN, HubFiles, locate
from medretrieval.index.store import open_store
from medretrieval.index.trust import is_trusted
from medretrieval.index.workspace import lock_folder, writing
from medretrieval.types import Progress, no_progress

logger = logging.getLogger(__name__)


def pull(
    source: str,
    out: str | Path,
    *,
    embedders: Sequence[str] | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> Path:
    """Fetch an index from the Hub into a folder, at one commit, with every file checked.

    Manifest and embeddings come first. What was fetched is kept in the cache of the Hub's client:
    an interrupted pull goes on, and another revision only fetches what differs. Left out is what is
    made again from the rest where it is needed: tables for `datasets`, `index.faiss` unless it is
    of a trusted source (see `trust.is_trusted`), and a card that was edited on the Hub since.
    Nothing appears at `out` before all is there.

    Args:
        source: ORG/NAME, or ORG/NAME@REVISION.
        out: the folder to write.
        embedders: only the embeddings of these, by default of all.
        force: replace an index at `out`.
        progress: called with fetched bytes, of how many, and what for.

    Returns:
        `out`.

    Raises:
        UsageError: `source` is no such name, `out` exists, the index has no such embedder.
        UnavailableError: the Hub does not give it.
        IndexFormatError: it is no index, of a newer schema, or a file is not what it should be.
        MedRetrievalError: the disk is full or cannot be written.
    """
    named = parse_reference(source)
    if named.repo is None:
        raise UsageError(f"{source!r} is a folder; give ORG/NAME or ORG/NAME@REVISION of the Hub")
    if named.embedder is not None:
        embedders = [*(embedders or ()), named.embedder]
    out = named_path(Path(out))
    with writing(out):
        check_output(out, force=force)
    commit = locate(named.repo, named.revision)
    remote = HubFiles(named.repo, commit, revision=named.revision or MAIN, progress=progress)
    manifest = read_manifest(remote.folder, blobs=remote.blobs)
    first = manifest.choose(embedders[0]) if embedders else manifest
    trusted = is_trusted(named.repo, named.revision)
    wanted = _wanted(manifest, embedders, trusted=trusted)
    card = {CARD: wanted.pop(CARD)} if CARD in wanted else {}
    remote.fetch(wanted)
    if _same(remote, card):
        wanted |= card
    with writing(out):
        work = out.with_name(f".{out.name}.pull")
        with lock_folder(work, out):
            try:
                stage = work / "stage"
                shutil.rmtree(stage, ignore_errors=True)
                _fill(stage, remote, [*wanted, MANIFEST])
                _check(stage, first, wanted, remote)
                recover(out)
                check_output(out, force=force)  # another command may have finished since
                move_into_place(stage, out)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return out


def _wanted(
    manifest: Manifest, embedders: Sequence[str] | None, *, trusted: bool
) -> dict[str, FileEntry]:
    """The files to fetch, in this order: embeddings, the rest, pictures."""
    left_out = set()
    for name, entry in manifest.sets.items():
        if embedders and name not in embedders:
            left_out |= {entry.embeddings_file, entry.faiss_file}
    for name in embedders or ():
        manifest.choose(name)  # refuses an unknown one
    files = {
        name: entry
        for name, entry in manifest.files.items()
        if name not in left_out
        and not (name.startswith(EMBEDDINGS) and is_derived(name))
        and (trusted or not name.endswith(".faiss"))
    }
    order = sorted(files, key=lambda n: (not n.startswith(EMBEDDINGS), n.startswith(SLICES), n))
    return {name: files[name] for name in order}


def _same(remote: HubFiles, card: Mapping[str, FileEntry]) -> bool:
    """Whether the card is here, and still the one that the manifest lists; it is fetched.

    Its owners may have edited it on its page, and the index does without.
    """
    try:
        remote.fetch(card)
        for name, entry in card.items():
            _check_one(remote.folder, name, entry)
    except UnavailableError as error:
        logger.warning("the card of %s is left out: %s", remote.repo, error)
        return False
    except IndexFormatError as error:
        logger.warning(
            "the card of %s was edited on the Hub and is left out: %s", remote.repo, error
        )
        return False
    return True


def _fill(stage: Path, remote: HubFiles, names: Sequence[str]) -> None:
    stage.mkdir()
    for name in names:
        (stage / name).parent.mkdir(exist_ok=True)
        link_or_copy(remote.folder / name, stage / name)


def _check(stage: Path, first: Manifest, wanted: dict[str, FileEntry], remote: HubFiles) -> None:
    """Hash every file; those that are wrong are deleted from the cache too."""
    refused = []
    for name, entry in wanted.items():
        try:
            _check_one(stage, name, entry)
        except IndexFormatError as error:
            refused.append(remote.refuse(name, error))
    if refused:
        raise refused[0]
    open_store(stage, embedder=first.embedder.name, verify="sizes").close()


def _check_one(stage: Path, name: str, entry: FileEntry) -> None:
    found = file_entry(stage / name)
    if found != entry:
        raise IndexFormatError(
            f"it has {found.bytes} bytes and sha256 {found.sha256[:12]}, expected {entry.bytes} "
            f"and {entry.sha256[:12]}"
        )
    if name.startswith(SLICES) or name == COLUMNS_FILE:
        check_pages(stage / name)
