"""The annotated slices that a query is segmented by: retrieved from an index, or given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import UsageError, unknown_name
from medretrieval.retrieval.nearest import rounded_cosine
from medretrieval.types import Progress, SlicePolicy, Support, Volume

if TYPE_CHECKING:
    from medretrieval.retrieval.engine import Index
    from medretrieval.retrieval.filters import Filters
    from medretrieval.retrieval.query import QueryEmbeddings

Sets = Literal["slice", "volume"]
DEFAULT_SUPPORT_K = 8

# Rows of the index with their similarities, best first.
_Ranked = tuple[NDArray[np.int64], NDArray[np.float64]]


def support_sets(
    index: Index,
    query: Volume,
    policy: SlicePolicy,
    supports: Sequence[Support] | None,
    *,
    support_k: int,
    sets: Sets = "slice",
    labels: Sequence[str] | None,
    indices: Sequence[int] | None,
    filters: Filters | None,
    orientation: str,
    progress: Progress,
) -> tuple[Mapping[int, Sequence[Support]], str]:
    """The supports of every slice, and how slices are turned for them.

    Args:
        policy: how the slices of the query are made.
        supports: the same for every slice; None to retrieve them.
        sets: "slice" retrieves for every slice the `support_k` most similar annotated slices,
            "volume" one set of `support_k` for all slices, see `covering`.
        (others): as for `pipeline.segment`.

    Returns:
        By voxel index along the sliced axis the supports, most similar first; and the orientation,
        never "any".

    Raises:
        UsageError: as `pipeline.segment`.
    """
    from medretrieval.imaging import slice_axis
    from medretrieval.retrieval.filters import Filters
    from medretrieval.retrieval.orienting import annotated, given, oriented
    from medretrieval.retrieval.query import embed_query
    from medretrieval.retrieval.whole import refuse_supports

    if sets not in get_args(Sets):
        raise UsageError(f"sets is {sets!r}; expected {' or '.join(get_args(Sets))}")
    if supports is not None:
        if not supports:
            raise UsageError("the support set is empty; add at least one annotated slice")
        lookup = given(index, supports)
        orientation = oriented(index, query, orientation, lookup, indices, progress, policy=policy)
        if indices is None:
            indices = range(query.grid.shape[slice_axis(query.grid, policy.axis)])
        return dict.fromkeys(indices, supports), orientation
    refuse_supports(index.manifest.embedder)
    if support_k < 1:
        raise UsageError(f"support_k is {support_k}; at least 1 support is needed")
    _check_labels(labels, index)
    filters = filters or Filters()
    lookup = annotated(index, labels=labels, filters=filters)
    orientation = oriented(index, query, orientation, lookup, indices, progress, policy=policy)
    embedded = embed_query(
        query,
        policy,
        index.embedder,
        indices=indices,
        orientation=orientation,
        progress=progress,
    )
    ranked = index.supports_each(embedded.embeddings, support_k, labels=labels, filters=filters)
    if sets == "volume":
        ranked = _one_for_all(index, embedded, ranked, support_k)
    # Neighbouring slices share most of their supports: each is read once.
    stored = cache(index.store.support)
    chosen = {
        number: [
            replace(stored(row), score=score)
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
        ]
        for number, (rows, scores) in zip(embedded.slice_index.tolist(), ranked, strict=True)
    }
    if not any(chosen.values()):
        raise UsageError(
            "the index has no annotated slices to segment from; choose another index, or give "
            "supports"
        )
    return chosen, orientation


def _check_labels(labels: Sequence[str] | None, index: Index) -> None:
    """Refuse unknown labels before minutes are spent on embedding."""
    known = set(index.store.vocabulary.values())
    for label in labels or ():
        if label not in known:
            raise unknown_name("label", label, known, "medretrieval info INDEX")


def _one_for_all(
    index: Index, embedded: QueryEmbeddings, ranked: Sequence[_Ranked], k: int
) -> list[_Ranked]:
    """Of what was retrieved for single slices the k rows that cover all of them together."""
    candidates = np.unique(np.concatenate([rows for rows, _ in ranked]))
    if not len(candidates):
        return list(ranked)
    similar = rounded_cosine(embedded.embeddings, index.store.embeddings[candidates])
    columns = covering(similar, k)
    rows, similar = candidates[columns], similar[:, columns]
    order = np.argsort(-similar, axis=1, kind="stable")
    return [(rows[o], own[o].astype(np.float64)) for o, own in zip(order, similar, strict=True)]


def covering(similar: NDArray[Any], k: int) -> list[int]:
    """Choose k candidates so that every slice has one that is similar to it.

    What is maximised is the sum over the slices of their similarity to the most similar chosen
    candidate (facility location). Candidates are added one by one, each time the one that adds
    most; that reaches at least 1 - 1/e of the best sum (Nemhauser, Wolsey, Fisher: An analysis of
    approximations for maximizing submodular set functions, 1978). Once nothing can be added, all
    slices are covered once more by the candidates that are left, and so on.

    Args:
        similar: (slices, candidates) cosines.
        k: how many, at least 1.

    Returns:
        At most k columns, in the order in which they were chosen; of equal ones the first.

    >>> covering(np.array([[0.9, 0.8, 0.0], [0.1, 0.8, 0.0], [0.0, 0.1, 0.9]]), 2)
    [1, 2]
    """
    chosen: list[int] = []
    left = np.ones(similar.shape[1], np.bool_)
    best = np.full(len(similar), -1.0)
    while len(chosen) < k and left.any():
        gains = np.where(left, np.maximum(similar - best[:, None], 0).sum(axis=0), -1.0)
        column = int(gains.argmax())
        if gains[column] <= 0 and (best > -1).any():
            best[:] = -1.0
            continue
        chosen.append(column)
        left[column] = False
        best = np.maximum(best, similar[:, column])
    return chosen
