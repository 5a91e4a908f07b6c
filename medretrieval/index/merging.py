"""Merging: several indexes become one folder, and nothing is embedded again.

Embeddings and pictures are copied as they are stored. Only where two indexes use one mask value for
different structures are the masks decoded, translated and encoded.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medretrieval.errors import IndexFormatError, UsageError
from medretrieval.index.cases import check_text
from medretrieval.index.changes import MAX_NOTE, Change, and_change, day_of
from medretrieval.index.commands import joined, shareable
from medretrieval.index.compatible import (
    check_compatible,
    check_distinct,
    common_embedders,
    join_texts,
)
from medretrieval.index.embedding_sets import EmbeddingSet, SetRequest, request_of
from medretrieval.index.manifest import Manifest
from medretrieval.index.memory_files import copy_memories
from medretrieval.index.png import decode_png, encode_png
from medretrieval.index.publish import (
    Block,
    Description,
    check_output,
    move_into_place,
    named_path,
    recover,
    write_index,
)
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
    name: str | None = None,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
    command: str | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Write one index with the rows of several, in their order.

    The merge of all parts of a build, in order, equals the build of all cases. Embeddings of every
    embedder that all indexes have are kept, in the order of the first index; others are left out,
    with a warning. One row group is in memory at a time. Nothing appears at `out` before the index
    is complete; a merge that was killed begins anew.

    Args:
        paths: at least one index folder; every file is checked against its hash.
        out: the folder to write.
        index_kind, index_parameters: see `build`; by default those of the first index for each
            embedder. Parameters that were left to the size of an index are chosen again.
        name: of the new index; needed where the indexes have different names, as those of two labs
            have. Pseudonyms stay as they are: a patient who is in two such indexes is two. If it is
            the name of the first index, the new one is the next version of that.
        force: replace an index at `out`.
        shard_bytes: size after which another parquet file is begun.
        command: what the card says that the index was merged by, after the commands that built the
            indexes; see `build`.
        progress: called with copied rows, number of rows, and what is going on.

    Returns:
        `out`.

    Raises:
        UsageError: `out` exists or is one of `paths`; the indexes have different slices, names,
            dtypes or extra columns; a volume is in two of them.
        EmbedderMismatchError: they have no embedder in common.
        IndexFormatError: one of them is damaged, or lacks the embeddings of a common embedder.
        MedRetrievalError: the disk is full or cannot be written.
    """
    sources = [Path(path) for path in paths]
    out = named_path(Path(out))
    if not sources:
        raise UsageError("there is nothing to merge; give at least one index folder")
    if out.resolve() in {source.resolve() for source in sources}:
        raise UsageError(f"{out} is one of the indexes to merge; choose another output")
    if name is not None:
        check_text(name=name)
    with writing(out):
        check_output(out, force=force)
    checked = check_sources(sources, same_name=name is None)
    description = describe(checked, index_kind, index_parameters, name=name)
    own = None if command is None else shareable(command)
    built = joined([source.manifest.command for source in checked], own)
    description = dataclasses.replace(description, command=built)
    if name == checked[0].manifest.name:
        description = _next_version(description, checked)
    return write_merged(
        checked, out, description, force=force, shard_bytes=shard_bytes, progress=progress
    )


def _next_version(description: Description, sources: Sequence[Source]) -> Description:
    """The merge as a change of the first index, to which the others were added."""
    first, *others = (source.manifest for source in sources)
    change = Change(
        version=first.version + 1,
        date=day_of(None),
        volumes=sum(manifest.counts.volumes for manifest in others),
        slices=sum(manifest.counts.slices for manifest in others),
        note=f"merged with {join_texts(manifest.name for manifest in others)}"[:MAX_NOTE],
    )
    changes = and_change(first.changes, change)
    return dataclasses.replace(description, version=change.version, changes=changes)


def write_merged(
    sources: Sequence[Source],
    out: Path,
    description: Description,
    *,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = no_progress,
) -> Path:
    """Write the kept rows of indexes that go together as one index.

    Stored memories come along from those that are kept whole: which file holds the memories of a
    volume that is left out cannot be told.

    Raises:
        UsageError, IndexFormatError, MedRetrievalError: as `merge`.
    """
    total = sum(source.rows for source in sources)
    vocabulary = Vocabulary(source.manifest.vocabulary for source in sources)
    settings = {"merge": [str(source.path.resolve()) for source in sources]}
    with Workspace(out, settings) as workspace, writing(out):
        recover(out)
        check_output(out, force=force)  # another command may have finished since
        whole = [(source.path, source.manifest) for source in sources if source.kept.all()]
        copy_memories(whole, workspace.stage)
        write_index(
            workspace.stage,
            _blocks(sources, vocabulary, total, progress),
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


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """An index whose rows go into another.

    Attributes:
        kept: (n,) bool, which of its rows.
        embedders: the names of those whose embeddings go along, in the order of the new index;
            None for all of them.
    """

    path: Path
    manifest: Manifest
    kept: NDArray[np.bool_]
    embedders: tuple[str, ...] | None = None

    @property
    def sets(self) -> list[EmbeddingSet]:
        """The embeddings that go along, in the order of the new index."""
        sets = self.manifest.sets
        return [sets[name] for name in (sets if self.embedders is None else self.embedders)]

    @property
    def rows(self) -> int:
        return int(self.kept.sum())


def check_sources(
    paths: Sequence[Path], *, without: Collection[str] = (), same_name: bool = True
) -> list[Source]:
    """Open every index once, one at a time, and check that they go together.

    Args:
        same_name: whether they must have one name.
        without: volumes of the first index that are left out.

    Raises:
        UsageError, EmbedderMismatchError, IndexFormatError: as `merge`.
    """
    sources: list[Source] = []
    volumes: list[list[str]] = []
    for path in paths:
        # Contents are hashed when they are copied; this is what can be known in a moment.
        with open_store(path, verify="sizes") as store:
            left_out = set() if sources else {*without}
            stays = np.array([name not in left_out for name in store.volume_ids])
            sources.append(Source(path=path, manifest=store.manifest, kept=stays[store.volume]))
            volumes.append([name for name in store.volume_ids if name not in left_out])
    manifests = [source.manifest for source in sources]
    common = common_embedders(paths, manifests)
    alike = [m.choose(names[0]) for m, names in zip(manifests, common, strict=True)]
    check_compatible(paths, alike, same_name=same_name)
    check_distinct(paths, volumes)
    sources = [
        dataclasses.replace(source, embedders=names)
        for source, names in zip(sources, common, strict=True)
    ]
    _check_embeddings(sources)
    parts = [manifest.part for manifest in manifests if manifest.part is not None]
    if len(manifests) > 1 and parts:
        count = int(parts[0].partition("/")[2])
        if parts != [f"{number}/{count}" for number in range(1, count + 1)]:
            logger.warning(
                "these are the parts %s: not all parts of one build, or not in order, so the "
                "merged index is not that of the whole build",
                ", ".join(parts),
            )
    return sources


def _check_embeddings(sources: Sequence[Source]) -> None:
    """Refuse an index that lacks some of the embeddings: opening it misses only those it uses."""
    for source in sources:
        for entry in source.sets:
            if not (source.path / entry.embeddings_file).is_file():
                name = entry.embedder.name
                raise IndexFormatError(
                    f"{source.path / entry.embeddings_file} is missing: the embeddings by {name}; "
                    f"fetch that file, make it again (medretrieval add-embedder {source.path} "
                    f"--embedder {name}), or take that embedder out (medretrieval drop-embedder)"
                )


def describe(
    sources: Sequence[Source],
    kind: str | None,
    parameters: Mapping[str, int] | None,
    *,
    name: str | None = None,
) -> Description:
    """What the merged index says of itself, beside what is counted.

    Args:
        kind, parameters, name: as for `merge`.
    """
    manifests = [source.manifest for source in sources]
    first = manifests[0]
    own, *others = map(request_of, sources[0].sets)
    own = _asked(own, kind, parameters)
    split = {manifest.split for manifest in manifests}
    name = name or first.name
    keys = tuple(dict.fromkeys(key for m in manifests for key in m.pseudonym_keys))
    return Description(
        name=name,
        keys=() if keys == (name,) else keys,
        withheld=first.withheld,
        **vars(own),
        others=tuple(
            # Settings that were given are of one kind.
            _asked(old, kind, parameters if (kind or old.index_kind) == own.index_kind else None)
            for old in others
        ),
        slices=first.slices,
        license=join_texts(manifest.license for manifest in manifests),
        source=join_texts(manifest.source for manifest in manifests),
        split=join_texts(sorted(filter(None, split))) if None not in split else None,
        skipped=sum(manifest.counts.skipped for manifest in manifests),
        part=first.part if len(manifests) == 1 else None,
        attributes=first.attributes,
        version=first.version if len(manifests) == 1 else 1,
        changes=first.changes if len(manifests) == 1 else (),
        command=first.command,
    )


def _asked(old: SetRequest, kind: str | None, parameters: Mapping[str, int] | None) -> SetRequest:
    """What is asked for of embeddings that were asked for as `old`; arguments as for `merge`."""
    from medretrieval.index.kinds import check_parameters

    if kind is None:
        kind = old.index_kind
    if parameters is None:
        parameters = old.index_parameters if kind == old.index_kind else {}
    check_parameters(kind, parameters, dim=old.embedder.dim)
    return dataclasses.replace(old, index_kind=kind, index_parameters=parameters)


def _blocks(
    sources: Sequence[Source], vocabulary: Vocabulary, total: int, progress: Progress
) -> Iterator[Block]:
    """Yield the kept rows, a row group at a time; each index is checked fully before."""
    numbers = itertools.count()
    done = 0
    progress(done, total, "slices copied")
    for source in sources:
        path = source.path
        with open_store(path, verify="full") as store:
            manifest = store.manifest
        if manifest != source.manifest:
            raise IndexFormatError(f"{path} was changed while it was merged; merge again")
        translate = Translation.into(vocabulary, manifest.vocabulary)
        arrays = [
            stored_embeddings(
                path / entry.embeddings_file,
                rows=manifest.counts.slices,
                dim=entry.embedder.dim,
                dtype=entry.dtype,
            )
            for entry in source.sets
        ]
        first = 0
        for rows in _row_groups(path, manifest):
            kept = source.kept[first : first + len(rows)]
            made = [
                _row(row, next(numbers), manifest, translate, path)
                for row, stays in zip(rows, kept.tolist(), strict=True)
                if stays
            ]
            yield Block(
                rows=made,
                embeddings=[vectors[first : first + len(rows)][kept] for vectors in arrays],
                values=_values(source, made, vocabulary, translate),
            )
            first += len(rows)
            done += len(made)
            progress(done, total, "slices copied")


def _values(
    source: Source, rows: Sequence[TableRow], vocabulary: Vocabulary, translate: Translation
) -> Iterable[int]:
    """The mask values in some rows of an index; of a whole index they are known beforehand."""
    if source.kept.all():
        return translate.values.values()
    shown = {name for row in rows if row.mask is not None for name in row.labels}
    return {value for value, name in vocabulary.names().items() if name in shown}


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
        image=None if row["image"] is None else row["image"]["bytes"],
        mask=mask,
        attributes={name: row[name] for name in manifest.attributes},
    )


def _translate(data: bytes, translate: Translation, where: str, *, max_side: int) -> bytes:
    stored = decode_png(data, where, max_side=max_side)
    mask = translate(stored)
    if stored.ndim != 2 or ((mask == 0) != (stored == 0)).any():
        raise IndexFormatError(f"{where} has a value that the vocabulary does not name")
    return encode_png(mask)
