"""Relevance feedback: the query moves towards what was liked and away from what was not.

Rocchio's rule (J. Rocchio, Relevance feedback in information retrieval, in G. Salton, ed., The
SMART retrieval system, Prentice-Hall 1971, p. 313-323), with embeddings of slices in place of term
vectors: q' = q + a * mean(liked) - b * mean(unliked). A query of many slices has no single vector,
so each of its slices is moved by itself, and an example that is a volume counts with the one slice
that is most similar to the query slice: a lung slice is not moved by the liver of a liked case.

What becomes of the examples: a liked one may be found again (it shows how the others compare with
it, and it is usually wanted in the list); an unliked one is left out of the result, a whole volume
or only the slice that was named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import UsageError
from medretrieval.retrieval.query import QueryEmbeddings
from medretrieval.retrieval.stored import number_of_volume
from medretrieval.retrieval.stores import Store

# Common values of the two weights, that of the query being 1: what was liked says more than what
# was not (Manning, Raghavan, Schuetze: Introduction to information retrieval, 9.1.1, has 0.75 and
# 0.15). Ours of the unliked is a little larger, as results are few and each is judged by a person.
WEIGHT_LIKE = 0.75
WEIGHT_UNLIKE = 0.25
_NOWHERE = 1e-6  # a sum of unit vectors that is shorter has no direction


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """Results of an index that were judged.

    Attributes:
        like, unlike: "VOLUME_ID" or "VOLUME_ID:SLICE", the slice by its `slice_index`.
        weight_like, weight_unlike: how far a query slice is moved, as a fraction of its own weight.

    It is false where nothing was judged.
    """

    like: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()
    weight_like: float = WEIGHT_LIKE
    weight_unlike: float = WEIGHT_UNLIKE

    def __bool__(self) -> bool:
        return bool(self.like or self.unlike)


def move(
    query: NDArray[Any],
    liked: Sequence[NDArray[Any]],
    unliked: Sequence[NDArray[Any]],
    *,
    weight_like: float = WEIGHT_LIKE,
    weight_unlike: float = WEIGHT_UNLIKE,
) -> NDArray[np.float32]:
    """Move each query slice towards the liked examples and away from the unliked (Rocchio 1971).

    q' = unit(q + weight_like * mean(l) - weight_unlike * mean(u)), where l and u run over the
    examples, each with the slice that is most similar to q (the first of equals).

    Args:
        query: (n, dim), rows of norm 1.
        liked, unliked: for each example its slices, (m, dim), m >= 1, rows of norm 1.
        weight_like, weight_unlike: not negative.

    Returns:
        (n, dim) float32, rows of norm 1. A slice that would be moved to nowhere (it is itself what
        was not liked, with the weight 1) stays where it is.
    """
    start = np.asarray(query, dtype=np.float64)
    moved = start.copy()
    for examples, weight in ((liked, weight_like), (unliked, -weight_unlike)):
        if examples:
            nearest = [_most_similar(start, example) for example in examples]
            moved += weight * np.mean(nearest, axis=0)
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    lost = length < _NOWHERE
    unit: NDArray[np.float64] = np.where(lost, start, moved / np.where(lost, 1.0, length))
    return unit.astype(np.float32)


def _most_similar(query: NDArray[np.float64], slices: NDArray[Any]) -> NDArray[np.float64]:
    """(n, dim) of the slices of an example the one most similar to each query slice."""
    example = np.asarray(slices, dtype=np.float64)
    best: NDArray[np.float64] = example[(query @ example.T).argmax(axis=1)]
    return best


def example_rows(store: Store, key: str) -> NDArray[np.int64]:
    """The rows of an index that a key names: those of a volume, or one.

    Args:
        key: "VOLUME_ID" or "VOLUME_ID:SLICE". A volume whose own name ends in a colon and a number
            is taken for a volume.

    Raises:
        UsageError: no such volume (close names are listed), or no such slice of it.
    """
    ids = store.volume_ids
    if key in ids:
        return np.flatnonzero(store.volume == list(ids).index(key)).astype(np.int64)
    volume_id, colon, number = key.rpartition(":")
    if not (colon and number.isdecimal()):
        volume_id = key
    number_of_volume(store, volume_id)  # refuses an unknown one
    return np.array([store.row(volume_id, int(number))], dtype=np.int64)


def examples(
    feedback: Feedback, store: Store
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """The rows of every liked and of every unliked example.

    Raises:
        UsageError: an unknown volume or slice, an example that is both liked and unliked, or a
            weight that is negative or not finite.
    """
    for name in ("weight_like", "weight_unlike"):
        weight = getattr(feedback, name)
        if not (math.isfinite(weight) and weight >= 0):
            raise UsageError(f"{name} is {weight}; expected a number of at least 0, such as 0.5")
    both = sorted(set(feedback.like) & set(feedback.unlike))
    if both:
        raise UsageError(f"{', '.join(both)}: both liked and unliked; expected one of the two")
    # Of examples named twice one counts; so do all of the same volume or slice.
    liked, unliked = (
        [example_rows(store, key) for key in dict.fromkeys(keys)]
        for keys in (feedback.like, feedback.unlike)
    )
    return liked, unliked


def apply(
    feedback: Feedback, store: Store, query: QueryEmbeddings, allowed: NDArray[np.bool_]
) -> tuple[QueryEmbeddings, NDArray[np.bool_]]:
    """Move a query by what was judged, and leave out what was not liked.

    Args:
        feedback: keys of examples; an example counts whether or not the filters allow it.
        query: embeddings comparable with those of the index.
        allowed: (rows,) which rows may be found.

    Returns:
        The moved query and the rows that may still be found (a new array where it differs).

    Raises:
        UsageError: as `examples`.
    """
    liked, unliked = examples(feedback, store)
    if not feedback:
        return query, allowed
    embeddings = move(
        query.embeddings,
        [np.asarray(store.embeddings[rows]) for rows in liked],
        [np.asarray(store.embeddings[rows]) for rows in unliked],
        weight_like=feedback.weight_like,
        weight_unlike=feedback.weight_unlike,
    )
    if unliked:
        allowed = allowed.copy()
        allowed[np.concatenate(unliked)] = False
    return replace(query, embeddings=embeddings), allowed
