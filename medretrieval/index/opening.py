"""Opening an index by its name: a folder, or a data set of the Hub."""

from __future__ import annotations

from pathlib import Path

from medretrieval.errors import UnavailableError
from medretrieval.index.index_store import IndexStore
from medretrieval.index.reference import Reference, parse_reference
from medretrieval.index.remote import MAIN, HubFiles, locate
from medretrieval.index.store import open_store
from medretrieval.index.trust import is_trusted
from medretrieval.index.verified import Verify
from medretrieval.types import Progress, no_progress


def open_named(
    source: str | Path,
    *,
    embedder: str | None = None,
    verify: Verify = "changed",
    trusted: bool = True,
    progress: Progress = no_progress,
) -> IndexStore:
    """Open one index.

    Args:
        source: a folder, or ORG/NAME[@REVISION] of the Hub; either with #EMBEDDER behind it, see
            `reference.parse_reference`. Of the Hub the manifest, the embeddings and the columns are
            fetched, pictures when they are looked at.
        embedder: by whose embeddings it is searched, if `source` does not name one.
        verify, trusted: as for `store.open_store`; of data sets of the Hub only those are trusted
            that `trust.is_trusted` allows.
        progress: called with fetched bytes, of how many, and what for.

    Raises:
        IndexFormatError, UsageError: as `store.open_store`.
        UnavailableError: the Hub does not give it.
    """
    named = parse_reference(source)
    chosen = named.embedder or embedder
    if named.repo is None:
        assert named.folder is not None  # a reference is one of the two
        return open_store(named.folder, embedder=chosen, verify=verify, trusted=trusted)
    try:
        commit = locate(named.repo, named.revision)
    except UnavailableError as error:
        if "://" in str(source):
            raise
        raise UnavailableError(f"{error}. There is no folder of the name {source} either") from None
    files = HubFiles(named.repo, commit, revision=named.revision or MAIN, progress=progress)
    try:
        return _open_remote(files, named, chosen, verify=verify, trusted=trusted)
    finally:
        files.progress = no_progress  # pictures come when nobody waits for this call any more


def _open_remote(
    files: HubFiles, named: Reference, chosen: str | None, *, verify: Verify, trusted: bool
) -> IndexStore:
    return open_store(
        files.folder,
        embedder=chosen,
        verify=verify,
        trusted=trusted and is_trusted(files.repo, named.revision),
        remote=files,
    )
