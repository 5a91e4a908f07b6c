"""Opening an index folder, with every check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from medretrieval.errors import IndexFormatError, UsageError
from medretrieval.index.files import COLUMNS_FILE, MANIFEST, SLICES
from medretrieval.index.index_files import IndexFiles, Remote
from medretrieval.index.index_store import IndexStore as IndexStore
from medretrieval.index.index_store import pseudonym as pseudonym
from medretrieval.index.manifest import Manifest, read_manifest
from medretrieval.index.row_columns import Columns, read_columns
from medretrieval.index.slice_table import SliceTable
from medretrieval.index.tensors import read_embeddings
from medretrieval.index.verified import Verified, Verify, check_files


def open_store(
    path: str | Path,
    *,
    embedder: str | None = None,
    verify: Verify = "changed",
    trusted: bool = True,
    remote: Remote | None = None,
) -> IndexStore:
    """Open an index folder.

    Args:
        path: the folder.
        embedder: by whose embeddings it is searched, where it has several; default the first.
        verify: "changed" hashes every file and looks at every embedding the first time, which reads
            the whole folder once (about a second per gigabyte), and later only the files that
            changed since; "full" does it every time; "sizes" compares sizes only and trusts the
            contents. Manifest, rows, counts and the header of the embeddings are always checked.
        trusted: whether the folder is of this machine's user, or of an allowed source at a pinned
            commit. `index.faiss` of any other is never read (a manipulated one can corrupt the
            memory of the process); it is made again from the embeddings.
        remote: whence files come that are not in the folder yet. What a search needs is fetched
            now, pictures when they are looked at.

    Raises:
        IndexFormatError: not an index, of a newer schema, incomplete, changed, or inconsistent; the
            message names the file.
        UsageError: the index has no such embedder.
        UnavailableError: a file cannot be fetched.
    """
    if verify not in get_args(Verify):
        raise UsageError(f"verify is {verify!r}; expected 'changed', 'full' or 'sizes'")
    folder = Path(path)
    blobs = None if remote is None else remote.blobs
    manifest = read_manifest(folder, blobs=blobs).choose(embedder)
    _check_kind(manifest, folder)
    shards = sorted(name for name in manifest.files if name.startswith(SLICES))
    apart = COLUMNS_FILE in manifest.files and (remote or (folder / COLUMNS_FILE).exists())
    verified = Verified(folder)
    files = IndexFiles(folder, manifest.files, verified, verify=verify, remote=remote)
    if remote is not None:
        needed = [manifest.embeddings_file, *([COLUMNS_FILE] if apart else shards)]
        remote.fetch({name: manifest.files[name] for name in needed})
        for name in needed:
            files.check(name)
    try:
        check_files(folder, manifest, verified, verify, blobs=blobs)
    except IndexFormatError:
        if read_manifest(folder, blobs=blobs).choose(embedder) == manifest:
            raise
        # It was changed in place between the two: the files are of another manifest.
        return open_store(path, embedder=embedder, verify=verify, trusted=trusted, remote=remote)
    counts = manifest.counts
    embeddings = read_embeddings(
        folder / manifest.embeddings_file,
        rows=counts.slices,
        dim=manifest.dim,
        dtype=manifest.dtype,
        check=_norms_unknown(verified, manifest, verify),
    )
    if verify != "sizes":
        verified.note_norms(manifest.embeddings_file)
    table, columns = _read_rows(folder, manifest, shards, files, apart=bool(apart))
    try:
        _check_counts(columns, manifest, folder)
        verified.save()
        return IndexStore(folder, manifest, embeddings, table, columns, files, trusted=trusted)
    except BaseException:
        table.close()
        raise


def _read_rows(
    folder: Path, manifest: Manifest, shards: Sequence[str], files: IndexFiles, *, apart: bool
) -> tuple[SliceTable, Columns]:
    """The table, and all of it but the pictures.

    Args:
        apart: read them from `columns.parquet`; no shard is opened then.
    """
    columns = sizes = None
    rows = manifest.counts.slices
    if apart:
        columns, sizes = read_columns(
            folder / COLUMNS_FILE, rows=rows, shards=len(shards), attributes=manifest.attributes
        )
    table = SliceTable(
        [folder / name for name in shards],
        manifest.attributes,
        pictures=manifest.pictures,
        sizes=sizes,
        fetch=lambda number: files.check(shards[number]),
    )
    try:
        if table.rows != rows:
            raise IndexFormatError(
                f"{folder / 'slices'} holds {table.rows} rows, {MANIFEST} says {rows}"
            )
        return table, columns or table.columns()
    except BaseException:
        table.close()
        raise


def _norms_unknown(verified: Verified, manifest: Manifest, verify: Verify) -> bool:
    name = manifest.embeddings_file
    entry = manifest.files[name]
    known = verify == "changed" and verified.holds(name, entry.sha256, norms=True)
    return not (known or verify == "sizes")


def _check_kind(manifest: Manifest, folder: Path) -> None:
    from medretrieval.index.kinds import resolve_parameters

    try:
        parameters = resolve_parameters(
            manifest.index_kind,
            manifest.index_parameters,
            rows=manifest.counts.slices,
            dim=manifest.dim,
        )
    except UsageError as error:
        raise IndexFormatError(f"{folder / MANIFEST}: {error}") from None
    if parameters != dict(manifest.index_parameters):
        raise IndexFormatError(f"{folder / MANIFEST}: index parameters are missing")


def _check_counts(columns: Columns, manifest: Manifest, folder: Path) -> None:
    counts = manifest.counts
    for what, found, expected in (
        ("volumes", len(columns.volume_ids), counts.volumes),
        ("patients", len(columns.patient.names), counts.patients),
        ("annotated slices", int(columns.annotated.sum()), counts.annotated_slices),
    ):
        if found != expected:
            raise IndexFormatError(
                f"{folder / 'slices'} holds {found} {what}, {MANIFEST} says {expected}; fetch or "
                "build the index again"
            )
