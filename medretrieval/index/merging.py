"""Merging: several indexes become one folder, and nothing is embedded again.

Embeddings and pictures are copied as they are stored. Only where two indexes use one mask value for
different structures are the masks decoded, translated and encoded.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from medretrieval.errors import IndexFormatError, UsageError
from medretrieval.index.compatible import check_compatible, check_distinct, join_texts
from medretrieval.index.manifest import EMBEDDINGS_FILE, Manifest
from medretrieval.index.png import decode_png, encode_png
from medretrieval.index.publish import (
    Block,
    Description,
    check_output,
    move_into_place,
    recover,
    write_index,
)
from medretrieval.index.search_entry import IndexRequest
from medretrieval.index.store import open_store
from medretrieval.index.table import SHARD_BYTES, TableRow
from medretrieval.index.tensors import stored_embeddings
from medretrieval.index.vocabulary import Translation, Vocabulary
from medretrieval.index.workspace import Workspace, writing
from medretrieval.types import Progress, no_progress

logger = logging.getLogger(__name__)


def merge(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    index_kind: str | None = None,
    index_parameters: Mapping[str, int] | None = None,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = no_progress,
) -> Path:
    """Write one index with the rows of several, in their order.

    The merge of all parts of a build, in order, equals the build of all cases. One row group is in
    memory at a time. Nothing appears at `out` before the index is complete; a merge that was killed
    begins anew.

    Args:
        paths: at least one index folder; every file is checked against its hash.
        out: the folder to write.
        index_kind, index_parameters: see `build`; by default those of the first index. Parameters
            that were left to the size of an index are chosen again.
        force: replace an index at `out`.
        shard_bytes: size after which another parquet file is begun.
        progress: called with copied rows, number of rows, and what is going on.

    Returns:
        `out`.

    Raises:
        UsageError: `out` exists or is one of `paths`; the indexes have different slices, names,
            dtypes or extra columns; a volume is in two of them.
        EmbedderMismatchError: they were made with different embedders.
        IndexFormatError: one of them is damaged.
        MedRetrievalError: the disk is full or cannot be written.
    """
    sources = [Path(path) for path in paths]
    out = Path(out)
    if out.name in ("", ".."):
        out = out.resolve()
    if not sources:
        raise UsageError("there is nothing to merge; give at least one index folder")
    if out.resolve() in {source.resolve() for source in sources}:
        raise UsageError(f"{out} is one of the indexes to merge; choose another output")
    with writing(out):
        check_output(out, force=force)
    manifests = _check(sources)
    total = sum(manifest.counts.slices for manifest in manifests)
    description = _describe(manifests, index_kind, index_parameters)
    vocabulary = Vocabulary(manifest.vocabulary for manifest in manifests)
    settings = {"merge": [str(source.resolve()) for source in sources]}
    with Workspace(out, settings) as workspace, writing(out):
        recover(out)
        check_output(out, force=force)  # another command may have finished since
        write_index(
            workspace.stage,
            _blocks(sources, manifests, vocabulary, total, progress),
            vocabulary.names(),
            description,
            total=total,
            shard_bytes=shard_bytes,
            progress=progress,
        )
        move_into_place(workspace.stage, out)
        workspace.remove()
    progress(total, total, "done")
    return out


def _check(sources: Sequence[Path]) -> list[Manifest]:
    """Open every index once, one at a time, and check that they go together."""
    manifests: list[Manifest] = []
    volumes: list[list[str]] = []
    for source in sources:
        # Contents are hashed when they are copied; this is what can be known in a moment.
        with open_store(source, verify="sizes") as store:
            manifests.append(store.manifest)
            volumes.append(list(store.volume_ids))
    check_compatible(sources, manifests, same_name=True)
    check_distinct(sources, volumes)
    parts = [manifest.part for manifest in manifests if manifest.part is not None]
    if len(manifests) > 1 and parts:
        count = int(parts[0].partition("/")[2])
        if parts != [f"{number}/{count}" for number in range(1, count + 1)]:
            logger.warning(
                "these are the parts %s: not all parts of one build, or not in order, so the "
                "merged index is not that of the whole build",
                ", ".join(parts),
            )
    return manifests


def _describe(
    manifests: Sequence[Manifest], kind: str | None, parameters: Mapping[str, int] | None
) -> Description:
    from medretrieval.index.kinds import check_parameters

    first = manifests[0]
    asked = first.index_request or IndexRequest(
        kind=first.index_kind, parameters=first.index_parameters
    )
    kind = asked.kind if kind is None else kind
    if parameters is None and kind == asked.kind:
        parameters = asked.parameters
    check_parameters(kind, parameters, dim=first.dim)
    split = {manifest.split for manifest in manifests}
    return Description(
        name=first.name,
        embedder=first.embedder,
        slices=first.slices,
        index_kind=kind,
        index_parameters=parameters or {},
        dtype=first.dtype,
        license=join_texts(manifest.license for manifest in manifests),
        source=join_texts(manifest.source for manifest in manifests),
        split=join_texts(sorted(filter(None, split))) if None not in split else None,
        skipped=sum(manifest.counts.skipped for manifest in manifests),
        part=first.part if len(manifests) == 1 else None,
        attributes=first.attributes,
    )


def _blocks(
    sources: Sequence[Path],
    manifests: Sequence[Manifest],
    vocabulary: Vocabulary,
    total: int,
    progress: Progress,
) -> Iterator[Block]:
    """Yield the rows of all indexes, a row group at a time; each is checked fully before."""
    numbers = itertools.count()
    done = 0
    progress(done, total, "slices copied")
    for source, expected in zip(sources, manifests, strict=True):
        with open_store(source, verify="full") as store:
            manifest = store.manifest
        if manifest != expected:
            raise IndexFormatError(f"{source} was changed while it was merged; merge again")
        translate = Translation.into(vocabulary, manifest.vocabulary)
        vectors = stored_embeddings(
            source / EMBEDDINGS_FILE,
            rows=manifest.counts.slices,
            dim=manifest.dim,
            dtype=manifest.dtype,
        )
        values = translate.values.values()
        first = 0
        for rows in _row_groups(source, manifest):
            made = [_row(row, next(numbers), manifest, translate, source) for row in rows]
            yield Block(rows=made, embeddings=vectors[first : first + len(made)], values=values)
            first += len(made)
            done += len(made)
            progress(done, total, "slices copied")


def _row_groups(source: Path, manifest: Manifest) -> Iterator[list[dict[str, Any]]]:
    for name in sorted(name for name in manifest.files if name.startswith("slices/")):
        path = source / name
        try:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, use_threads=False).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise IndexFormatError(f"{path} cannot be read ({error}); merge again") from None


def _row(
    row: Mapping[str, Any],
    number: int,
    manifest: Manifest,
    translate: Translation,
    source: Path,
) -> TableRow:
    mask = None if row["mask"] is None else row["mask"]["bytes"]
    if mask is not None and translate:
        where = f"mask of {source}, row_id {row['row_id']}"
        mask = _translate(mask, translate, where, max_side=manifest.slices.max_side)
    return TableRow(
        row_id=number,
        volume_id=row["volume_id"],
        patient_id=row["patient_id"],
        modality=row["modality"],
        region=row["region"],
        slice_index=row["slice_index"],
        position_mm=row["position_mm"],
        spacing=None if row["spacing"] is None else tuple(row["spacing"]),
        labels=tuple(row["labels"]),
        image=row["image"]["bytes"],
        mask=mask,
        attributes={name: row[name] for name in manifest.attributes},
    )


def _translate(data: bytes, translate: Translation, where: str, *, max_side: int) -> bytes:
    stored = decode_png(data, where, max_side=max_side)
    mask = translate(stored)
    if stored.ndim != 2 or ((mask == 0) != (stored == 0)).any():
        raise IndexFormatError(f"{where} has a value that the vocabulary does not name")
    return encode_png(mask)
