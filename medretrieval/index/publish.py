"""The last step of a build: put the index together aside, then move it into place."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval import __version__
from medretrieval.errors import UsageError
from medretrieval.index.card import with_card
from medretrieval.index.cases import Case
from medretrieval.index.changes import Change
from medretrieval.index.embedding_sets import EmbeddingSet, SetRequest, files_of
from medretrieval.index.files import file_entry
from medretrieval.index.manifest import (
    CARD,
    EMBEDDINGS_FILE,
    FAISS_FILE,
    MANIFEST,
    Counts,
    Manifest,
)
from medretrieval.index.searching import make_set
from medretrieval.index.table import ShardWriter, TableRow
from medretrieval.index.tensors import EmbeddingWriter
from medretrieval.index.workspace import Workspace, sync
from medretrieval.types import UNKNOWN, EmbedderIdentity, Progress, SlicePolicy, no_progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a manifest says beside what is counted while writing.

    Attributes:
        embedder, dtype, index_kind, index_parameters: of the first embeddings, see `SetRequest`.
        others: the further embeddings of the same rows.
        command: what built it, as a manifest may keep it; see `commands.shareable`.
    """

    name: str
    embedder: EmbedderIdentity
    slices: SlicePolicy
    index_kind: str
    index_parameters: Mapping[str, int]
    dtype: str
    license: str
    source: str
    split: str | None
    skipped: int
    part: str | None = None
    attributes: tuple[str, ...] = ()
    version: int = 1
    changes: tuple[Change, ...] = ()
    command: str | None = None
    withheld: str | None = None
    keys: tuple[str, ...] = ()
    others: tuple[SetRequest, ...] = ()

    @property
    def sets(self) -> tuple[SetRequest, ...]:
        """All embeddings, in their order."""
        own = SetRequest(
            embedder=self.embedder,
            dtype=self.dtype,
            index_kind=self.index_kind,
            index_parameters=self.index_parameters,
        )
        return (own, *self.others)


@dataclass(frozen=True, eq=False, kw_only=True)
class Block:
    """Some rows of an index to be, in order; those of a volume follow one another.

    Attributes:
        rows: with the numbers that they will have.
        embeddings: of each embedder (number of rows, dim), written as they are if of the dtype that
            the index has them in.
        values: mask values that occur in these rows; named by the vocabulary of the index.
    """

    rows: Sequence[TableRow]
    embeddings: Sequence[NDArray[Any]]
    values: Iterable[int]


def blocks_of_cases(
    cases: Iterable[Case],
    workspace: Workspace,
    names: Mapping[int, str],
    pseudonym_of: Callable[[str], str],
) -> Iterator[Block]:
    """Yield the rows of finished cases, in the order of `cases`.

    Args:
        names: mask value -> name, of all values in the finished cases.
        pseudonym_of: gives the pseudonym of a patient.
    """
    numbers = itertools.count()
    for case in cases:
        done = workspace.read(case.key)
        patient = pseudonym_of(case.patient_id)
        rows = [
            TableRow(
                row_id=next(numbers),
                volume_id=case.volume_id,
                patient_id=patient,
                modality=done.modality or UNKNOWN,
                region=case.region,
                slice_index=piece.slice_index,
                position_mm=piece.position_mm,
                spacing=piece.spacing,
                labels=tuple(dict.fromkeys((*case.labels, *(names[v] for v in piece.values)))),
                image=piece.image,
                mask=piece.mask,
                attributes=case.attributes,
            )
            for piece in done.slices
        ]
        used = {value for piece in done.slices for value in piece.values}
        yield Block(rows=rows, embeddings=[done.embeddings], values=used)


def write_index(
    folder: Path,
    blocks: Iterable[Block],
    names: Mapping[int, str],
    description: Description,
    *,
    total: int,
    shard_bytes: int,
    progress: Progress = no_progress,
) -> None:
    """Write a complete index into `folder`, block by block; what is in it already belongs to it.

    The files depend on rows, embeddings and description alone, bit for bit: not on the time, the
    machine, how often the build was interrupted, or how the rows were cut into blocks. The search
    structure of a large approximate index is an exception, see `structures.build_hnsw`.

    Args:
        names: mask value -> name, at least of all values in the blocks.
        total: number of rows in all blocks.
        progress: called with what is done of the search structure.
    """
    (folder / "slices").mkdir()
    (folder / "embeddings").mkdir()
    files = _file_names(description)
    tally = _write_rows(folder, blocks, description, files, total=total, shard_bytes=shard_bytes)
    volume = tally.volume_codes()
    first, *others = [
        make_set(
            asked,
            own,
            volume,
            embeddings=folder / own[0],
            faiss=folder / own[1],
            progress=progress,
        )
        for asked, own in zip(description.sets, files, strict=True)
    ]
    manifest = tally.manifest(description, first, others, names=names)
    entries = {
        path.relative_to(folder).as_posix(): file_entry(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest, card = with_card(dataclasses.replace(manifest, files=entries))
    (folder / CARD).write_bytes(card)
    (folder / MANIFEST).write_text(manifest.dumps(), encoding="utf-8")
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def _file_names(description: Description) -> list[tuple[str, str]]:
    """Names of the embeddings file and the FAISS file of each embedder."""
    files = [(EMBEDDINGS_FILE, FAISS_FILE)]
    for asked in description.others:
        files.append(files_of(asked.embedder.name, [name for pair in files for name in pair]))
    return files


def _write_rows(
    folder: Path,
    blocks: Iterable[Block],
    description: Description,
    files: Sequence[tuple[str, str]],
    *,
    total: int,
    shard_bytes: int,
) -> _Tally:
    """Write the shards and the embeddings."""
    tally = _Tally()
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                EmbeddingWriter(
                    folder / name, rows=total, dim=asked.embedder.dim, dtype=asked.dtype
                )
            )
            for asked, (name, _) in zip(description.sets, files, strict=True)
        ]
        table = stack.enter_context(
            ShardWriter(
                folder / "slices", attributes=description.attributes, shard_bytes=shard_bytes
            )
        )
        for block in blocks:
            for writer, vectors in zip(writers, block.embeddings, strict=True):
                writer.write(vectors)
            tally.values.update(block.values)
            for row in block.rows:
                table.write(row)
                tally.add(row)
    return tally


class _Tally:
    """What is counted while the rows go by."""

    def __init__(self) -> None:
        self.rows = 0
        self.annotated = 0
        self.volumes: dict[str, int] = {}
        self._codes: list[int] = []
        self.patients: set[str] = set()
        self.values: set[int] = set()
        self.labels: Counter[str] = Counter()
        self.modalities: Counter[str] = Counter()
        self.regions: Counter[str] = Counter()

    def add(self, row: TableRow) -> None:
        self.rows += 1
        self.annotated += row.mask is not None
        self._codes.append(self.volumes.setdefault(row.volume_id, len(self.volumes)))
        self.patients.add(row.patient_id)
        self.labels.update(row.labels)
        self.modalities[row.modality] += 1
        self.regions[row.region] += 1

    def volume_codes(self) -> NDArray[np.int32]:
        """(n,) number of each row's volume."""
        return np.array(self._codes, np.int32)

    def manifest(
        self,
        about: Description,
        first: EmbeddingSet,
        others: Sequence[EmbeddingSet],
        *,
        names: Mapping[int, str],
    ) -> Manifest:
        return Manifest(
            **vars(first),
            others={entry.embedder.name: entry for entry in others},
            name=about.name,
            slices=about.slices,
            counts=Counts(
                volumes=len(self.volumes),
                patients=len(self.patients),
                slices=self.rows,
                annotated_slices=self.annotated,
                skipped=about.skipped,
            ),
            vocabulary={value: names[value] for value in sorted(self.values)},
            label_counts=dict(sorted(self.labels.items())),
            modalities=dict(sorted(self.modalities.items())),
            regions=dict(sorted(self.regions.items())),
            license=about.license,
            source=about.source,
            split=about.split,
            part=about.part,
            attributes=about.attributes,
            version=about.version,
            changes=about.changes,
            command=about.command,
            withheld=about.withheld,
            keys=about.keys,
            medretrieval_version=__version__,
            files={},
        )


def named_path(out: Path) -> Path:
    """The path of a folder, ending with its name: hidden folders beside it are named by it."""
    return out.resolve() if out.name in ("", "..") else out


def check_output(out: Path, *, force: bool) -> None:
    """Refuse an output that must not be written.

    Raises:
        UsageError: `out` exists and not `force`, or it is something else than an index.
    """
    if not (out.exists() or out.is_symlink()):
        return
    if not force:
        raise UsageError(f"{out} exists already; choose another output, or replace it with --force")
    if out.is_symlink() or not out.is_dir() or (any(out.iterdir()) and not _is_index(out)):
        raise UsageError(
            f"{out} is not an index, so it is not replaced, not even with --force; "
            "remove it yourself or choose another output"
        )


def recover(out: Path) -> None:
    """Put back an old index that a build was about to replace when it was killed."""
    old = _old(out)
    if old.exists() and not out.exists():
        os.rename(old, out)
    elif old.exists():
        shutil.rmtree(old)


def move_into_place(stage: Path, out: Path) -> None:
    """Make `stage` the index at `out`; an old one there is removed afterwards."""
    old = _old(out)
    if out.exists():
        os.rename(out, old)
        try:
            os.rename(stage, out)
        except BaseException:
            os.rename(old, out)
            raise
    else:
        os.rename(stage, out)
    sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _old(out: Path) -> Path:
    return out.with_name(f".{out.name}.old")


def _is_index(folder: Path) -> bool:
    try:
        data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and "schema_version" in data and "embedder" in data
