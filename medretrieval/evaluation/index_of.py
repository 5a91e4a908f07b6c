"""The index that the supports of a set are retrieved from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from medretrieval.evaluation.cells import file_name
from medretrieval.evaluation.sets import EvaluationSet
from medretrieval.types import Progress, no_progress

if TYPE_CHECKING:
    from medretrieval.retrieval.engine import Index


def open_set(
    chosen: EvaluationSet, folder: Path, *, embedder: str, progress: Progress = no_progress
) -> Index:
    """Open the index of the database rows of a set; build it in `folder` if it is not there.

    An index that was built of other rows or by another embedder is left alone: its name differs.

    Raises:
        UsageError, InputError, UnavailableError: as `pipeline.build_index`.
    """
    from medretrieval.pipeline import build_index
    from medretrieval.retrieval.engine import open_index

    where = {**chosen.where, "split": "database"}
    rows = chosen.rows("database")
    named = [row[column] for row in rows for column in ("path", "mask") if row.get(column)]
    stats = [(chosen.table.parent / name).stat() for name in named]
    files = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
    made_of = [rows, files, sorted(chosen.labels.items()), embedder]
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:8]
    path = folder / f"{file_name(chosen.name)}-{digest}"
    if not path.exists():
        build_index(
            chosen.table,
            path,
            embedder=embedder,
            where=where,
            label_names=chosen.labels,
            split="database",
            progress=progress,
        )
    return open_index(path)
