"""The search structure of an index that is being written: chosen, built, stored, and measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.index.choice import choose
from medretrieval.index.embedding_sets import EmbeddingSet, SetRequest
from medretrieval.index.faiss_files import build_faiss, write_faiss
from medretrieval.index.kinds import AUTO, KINDS, resolve_parameters
from medretrieval.index.recall import measure_recall
from medretrieval.index.search_entry import IndexRequest
from medretrieval.index.searcher import Searcher
from medretrieval.index.tensors import read_embeddings
from medretrieval.types import Progress, no_progress

logger = logging.getLogger(__name__)


def make_set(
    asked: SetRequest,
    files: tuple[str, str],
    volume: NDArray[np.int32],
    *,
    embeddings: Path,
    faiss: Path,
    progress: Progress = no_progress,
) -> EmbeddingSet:
    """Check written embeddings and build what they are searched with.

    Args:
        files: names of the embeddings file and the FAISS file in the index.
        volume: as for `make_search`.
        embeddings: where the file of embeddings is now.
        faiss: where the FAISS index is to be written.

    Returns:
        What the manifest says of them.

    Raises:
        UsageError: as `make_search`.
        IndexFormatError: the embeddings are not those that were asked for.
    """
    vectors = read_embeddings(
        embeddings, rows=len(volume), dim=asked.embedder.dim, dtype=asked.dtype
    )
    search = make_search(
        vectors,
        volume,
        kind=asked.index_kind,
        given=asked.index_parameters,
        path=faiss,
        progress=progress,
    )
    return EmbeddingSet(
        embedder=asked.embedder,
        dtype=asked.dtype,
        embeddings_file=files[0],
        faiss_file=files[1],
        **search,
    )


def make_search(
    embeddings: NDArray[np.float32],
    volume: NDArray[np.int32],
    *,
    kind: str,
    given: Mapping[str, int],
    path: Path,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Build and store what an index is searched with.

    Args:
        embeddings: (n, dim) float32 unit rows.
        volume: (n,) number of each row's volume; the rows of a volume follow one another.
        kind, given: as asked for; "auto" chooses the kind by the number of rows.
        path: the file for the FAISS index; not written if the kind needs none.

    Returns:
        The fields of the manifest that speak of the search.

    Raises:
        UsageError: unknown kind or parameter, or a value out of range.
    """
    rows, dim = embeddings.shape
    reason = None
    request = IndexRequest(kind=kind, parameters=dict(given))
    if kind == AUTO:
        kind, reason = choose(rows, dim)
        logger.info("index kind %s: %s", kind, reason)
        progress(1, 1, f"index kind {kind}: {reason}")
    parameters = resolve_parameters(kind, given, rows=rows, dim=dim)
    report = None
    if KINDS[kind].build is not None:
        progress(0, 1, f"building the {kind} index")
        index = build_faiss(embeddings, kind, parameters)
        write_faiss(index, path)
        searcher = Searcher(embeddings=embeddings, kind=kind, parameters=parameters, index=index)
        report = measure_recall(searcher, volume, progress=progress)
        logger.info("recall@10 of the %s index: %.4f", kind, report.recall_at_10)
    resolved = IndexRequest(kind=kind, parameters=parameters)
    return {
        "index_kind": kind,
        "index_parameters": parameters,
        "index_reason": reason,
        "index_request": None if request == resolved else request,
        "recall": report,
    }
