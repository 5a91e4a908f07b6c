"""An index as it is published: checked, with the files that others need, without what may not go.

What is published is a folder of its own, in which files that stay as they are are hard links. It is
an index itself, which opens and gives the same hits.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medretrieval.errors import UsageError
from medretrieval.index.card import dataset_card
from medretrieval.index.files import (
    CARD,
    COLUMNS_FILE,
    MANIFEST,
    MEMORIES,
    SLICES,
    FileEntry,
    embeddings_table,
    file_entry,
)
from medretrieval.index.gate import Gate, with_gate
from medretrieval.index.identifiers import find_identifiers
from medretrieval.index.index_store import IndexStore
from medretrieval.index.kinds import KINDS
from medretrieval.index.manifest import Manifest, read_manifest
from medretrieval.index.row_columns import write_columns
from medretrieval.index.slice_table import SliceTable
from medretrieval.index.sources import may_publish_pictures
from medretrieval.index.store import open_store
from medretrieval.index.table import schema_of
from medretrieval.index.tables import write_embeddings_table, write_flat_faiss
from medretrieval.index.tensors import read_embeddings
from medretrieval.types import Progress, no_progress

logger = logging.getLogger(__name__)

_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Release:
    """A folder to publish.

    Attributes:
        withheld: why images and masks were left out, None if they were not.
    """

    folder: Path
    manifest: Manifest
    withheld: str | None


def make_release(
    index: Path,
    folder: Path,
    *,
    repo: str,
    images: bool | None = None,
    tables: bool = True,
    gate: Callable[[], Gate | None] = lambda: None,
    progress: Progress = no_progress,
) -> Release:
    """Put together what is published of an index.

    Args:
        index: an index folder; every file is checked.
        folder: empty, on the same disk if that can be.
        repo: ORG/NAME, for the card.
        images: whether images and masks go along. None: if their source is known to allow it, not
            if it is known to forbid it, and otherwise the caller is asked to say.
        tables: add the embeddings as parquet and `index.faiss` for `datasets`.
        gate: gives the gate, if there is one, whose questions belong on the card (see
            `gate.with_gate`); called when all else was checked.

    Raises:
        UsageError: images that their source forbids to pass on, or of which nothing is known and
            `images` is None; something looks like an identifier.
        IndexFormatError: the index is damaged, or has files that its manifest does not list.
    """
    progress(0, 1, "checking what is published")
    _refuse_parts(index)
    with open_store(index, verify="full") as store:
        manifest = store.manifest
        withheld = _withheld(manifest, images)
        _refuse_identifiers(store)
    for name in manifest.others:
        open_store(index, embedder=name).close()
    shards = sorted(name for name in manifest.files if name.startswith(SLICES))
    rows = _rows(index, shards, manifest)
    if withheld is not None:
        rows = [_without_pictures(table) for table in rows]
        counts = dataclasses.replace(manifest.counts, annotated_slices=0)
        manifest = dataclasses.replace(manifest, counts=counts, withheld=withheld)
        _write_shards(folder, shards, rows, manifest)
    hashed = _link(index, folder, manifest)
    write_columns(folder / COLUMNS_FILE, rows, manifest.attributes)
    if tables:
        _write_tables(folder, manifest)
    manifest = _finish(folder, manifest, hashed, repo, gate)
    open_store(folder, verify="sizes").close()  # it would be bad to find out elsewhere
    return Release(folder=folder, manifest=manifest, withheld=withheld)


def _refuse_parts(index: Path) -> None:
    manifest = read_manifest(index)
    missing = [name for name in _embeddings_files(manifest) if not (index / name).exists()]
    if missing:
        raise UsageError(
            f"{', '.join(missing)} is missing, so that the index is not published whole; fetch it, "
            "or take the embedder out of the index (medretrieval drop-embedder)"
        )


def _refuse_identifiers(store: IndexStore) -> None:
    found = find_identifiers(store)
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UsageError(
            f"{store.path} is not published: {'; '.join(found[:_SHOWN])}{more}. Build it again "
            "from a table with other names (columns volume_id and patient_id), and without --keep "
            "of columns that tell who somebody is"
        )


def _withheld(manifest: Manifest, images: bool | None) -> str | None:
    """Why images are left out; None if they go along.

    Raises:
        UsageError: they may not, or it has to be said whether they may.
    """
    if not manifest.pictures:
        if images:
            raise UsageError("the index has no images that could be published")
        return manifest.withheld
    if images is False:
        return "its publisher chose so"
    verdict = may_publish_pictures(manifest.source, manifest.license)
    if verdict.allowed == "no":
        if images:
            raise UsageError(
                f"images of this index cannot be published: {verdict.reason}. Publish the "
                "embeddings, positions and labels alone (--no-images)"
            )
        return verdict.reason
    if verdict.allowed == "unknown" and images is None:
        raise UsageError(
            f"whether the images may be published is not known: {verdict.reason}. Say so: "
            "--images if you have the right to pass images and masks on, --no-images to publish "
            "embeddings, positions and labels alone"
        )
    return None


def _rows(index: Path, shards: Sequence[str], manifest: Manifest) -> list[Any]:
    """All columns of the shards but the bytes of the pictures."""
    paths = [index / name for name in shards]
    table = SliceTable(paths, manifest.attributes, pictures=manifest.pictures)
    try:
        return table.tables()
    finally:
        table.close()


def _without_pictures(table: Any) -> Any:
    nothing = pa.nulls(len(table), table.schema.field("image").type)
    for name in ("image", "mask"):
        table = table.set_column(table.schema.get_field_index(name), name, nothing)
    return table


def _write_shards(
    folder: Path, shards: Iterable[str], tables: Iterable[Any], manifest: Manifest
) -> None:
    """Write the shards again without images and masks."""
    schema = schema_of(manifest.attributes)
    (folder / SLICES).mkdir()
    for name, table in zip(shards, tables, strict=True):
        nothing = pa.nulls(len(table), schema.field("image").type)
        columns = [
            nothing if column in ("image", "mask") else table.column(column)
            for column in schema.names
        ]
        whole = pa.table(columns, names=schema.names).cast(schema)
        pq.write_table(whole, folder / name, compression="none")


def _as_they_are(manifest: Manifest) -> list[str]:
    """The files that are published as they are in the index."""
    made_here = {CARD, COLUMNS_FILE, *map(embeddings_table, _embeddings_files(manifest))}
    names = [name for name in manifest.files if name not in made_here]
    if manifest.pictures:
        return names
    return [name for name in names if not name.startswith((SLICES, MEMORIES))]


def _embeddings_files(manifest: Manifest) -> list[str]:
    return [entry.embeddings_file for entry in manifest.sets.values()]


def _link(index: Path, folder: Path, manifest: Manifest) -> dict[str, FileEntry]:
    """Take over the files that stay as they are; they were hashed when the index was opened."""
    taken = {}
    for name in _as_they_are(manifest):
        if (index / name).exists():  # what is derived may be missing
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(index / name, folder / name)
            taken[name] = manifest.files[name]
    return taken


def link_or_copy(old: Path, new: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot do that."""
    try:
        os.link(old.resolve(), new)
    except OSError:
        shutil.copyfile(old, new)


def _write_tables(folder: Path, manifest: Manifest) -> None:
    from medretrieval.index.faiss_files import build_faiss, write_faiss

    for entry in manifest.sets.values():
        embeddings = read_embeddings(
            folder / entry.embeddings_file,
            rows=manifest.counts.slices,
            dim=entry.embedder.dim,
            dtype=entry.dtype,
            check=False,
        )
        write_embeddings_table(folder / embeddings_table(entry.embeddings_file), embeddings)
        faiss_file = folder / entry.faiss_file
        if faiss_file.exists():
            continue
        if KINDS[entry.index_kind].build is None:
            write_flat_faiss(faiss_file, embeddings)
        else:  # left out by whoever pulled the index and did not trust it
            index = build_faiss(embeddings, entry.index_kind, entry.index_parameters)
            write_faiss(index, faiss_file)


def _finish(
    folder: Path,
    manifest: Manifest,
    hashed: Mapping[str, FileEntry],
    repo: str,
    gate: Callable[[], Gate | None],
) -> Manifest:
    """Write the card and a manifest that lists what is in the folder.

    Args:
        hashed: what is known of some of the files already.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    files = {name: hashed.get(name) or file_entry(folder / name) for name in names}
    manifest = dataclasses.replace(manifest, files=files)
    text = with_gate(dataset_card(manifest, repo=repo), gate())
    (folder / CARD).write_text(text, encoding="utf-8")
    files = dict(sorted({**files, CARD: file_entry(folder / CARD)}.items()))
    manifest = dataclasses.replace(manifest, files=files)
    (folder / MANIFEST).write_text(manifest.dumps(), encoding="utf-8")
    return manifest
