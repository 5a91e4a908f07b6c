"""The last step of a build: put the index together aside, then move it into place."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medretrieval import __version__
from medretrieval.errors import UsageError
from medretrieval.index.card import dataset_card
from medretrieval.index.cases import Case
from medretrieval.index.faiss_backend import build_faiss, write_faiss
from medretrieval.index.manifest import (
    CARD,
    EMBEDDINGS_FILE,
    FAISS_FILE,
    MANIFEST,
    Counts,
    FileEntry,
    Manifest,
    sha256_file,
)
from medretrieval.index.store import pseudonym
from medretrieval.index.table import ShardWriter, TableRow
from medretrieval.index.tensors import EmbeddingWriter, read_embeddings
from medretrieval.index.workspace import Workspace, sync
from medretrieval.types import UNKNOWN, EmbedderIdentity, SlicePolicy

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a manifest says beside what is counted while writing."""

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


def write_index(
    folder: Path,
    cases: Sequence[Case],
    workspace: Workspace,
    names: Mapping[int, str],
    description: Description,
    *,
    shard_bytes: int,
) -> None:
    """Write a complete index into the empty `folder`, case by case, in the order of `cases`.

    The files depend on cases, embeddings and description alone, bit for bit: not on the time, the
    machine or how often the build was interrupted.

    Args:
        names: mask value -> name, of all values in the finished cases.
    """
    about = description
    (folder / "slices").mkdir()
    (folder / "embeddings").mkdir()
    total = sum(workspace.rows(case.key) for case in cases)
    tally = _Tally()
    embeddings = EmbeddingWriter(
        folder / EMBEDDINGS_FILE, rows=total, dim=about.embedder.dim, dtype=about.dtype
    )
    with embeddings, ShardWriter(folder / "slices", shard_bytes=shard_bytes) as table:
        for case in cases:
            done = workspace.read(case.key)
            embeddings.write(done.embeddings)
            patient = pseudonym(case.patient_id, about.name)
            tally.patients.add(patient)
            for piece in done.slices:
                structures = (names[value] for value in piece.values)
                row = TableRow(
                    row_id=tally.rows,
                    volume_id=case.volume_id,
                    patient_id=patient,
                    modality=done.modality or UNKNOWN,
                    region=case.region,
                    slice_index=piece.slice_index,
                    position_mm=piece.position_mm,
                    spacing=piece.spacing,
                    labels=tuple(dict.fromkeys((*case.labels, *structures))),
                    image=piece.image,
                    mask=piece.mask,
                )
                table.write(row)
                tally.add(row, piece.values)
    vectors = read_embeddings(
        folder / EMBEDDINGS_FILE, rows=total, dim=about.embedder.dim, dtype=about.dtype
    )
    index = build_faiss(vectors, about.index_kind, about.index_parameters)
    if index is not None:
        write_faiss(index, folder / FAISS_FILE)
    manifest = tally.manifest(about, volumes=len(cases), names=names)
    (folder / CARD).write_text(dataset_card(manifest), encoding="utf-8")
    files = {
        path.relative_to(folder).as_posix(): FileEntry(
            bytes=path.stat().st_size, sha256=sha256_file(path)
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = dataclasses.replace(manifest, files=files)
    (folder / MANIFEST).write_text(manifest.dumps(), encoding="utf-8")
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


class _Tally:
    """What is counted while the rows go by."""

    def __init__(self) -> None:
        self.rows = 0
        self.annotated = 0
        self.patients: set[str] = set()
        self.values: set[int] = set()
        self.labels: Counter[str] = Counter()
        self.modalities: Counter[str] = Counter()
        self.regions: Counter[str] = Counter()

    def add(self, row: TableRow, values: tuple[int, ...]) -> None:
        self.rows += 1
        self.annotated += row.mask is not None
        self.values.update(values)
        self.labels.update(row.labels)
        self.modalities[row.modality] += 1
        self.regions[row.region] += 1

    def manifest(self, about: Description, *, volumes: int, names: Mapping[int, str]) -> Manifest:
        return Manifest(
            name=about.name,
            embedder=about.embedder,
            slices=about.slices,
            index_kind=about.index_kind,
            index_parameters=about.index_parameters,
            dtype=about.dtype,
            counts=Counts(
                volumes=volumes,
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
            medretrieval_version=__version__,
            files={},
        )


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
