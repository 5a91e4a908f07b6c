"""One ranking of several indexes of the same cases, such as one for each of several embedders.

Scores of different embedders cannot be compared, ranks can: reciprocal rank fusion (Cormack,
Clarke, Buettcher: Reciprocal rank fusion outperforms Condorcet and individual rank learning
methods, SIGIR 2009) adds 1 / (60 + rank) over the rankings in which something occurs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from medretrieval.errors import UsageError, unknown_name
from medretrieval.types import Hit, SearchResult

if TYPE_CHECKING:
    from medretrieval.retrieval.engine import Index
    from medretrieval.retrieval.query import Query

CONSTANT = 60  # of the paper, which found the result to depend little on it
DEPTH = 100  # a ranking is fused down to this place, or to four times k if that is more


def depth(k: int) -> int:
    """How many results of each index are fused to find the first `k`.

    Deeper than `k`, as what is a little below it in every ranking can be above what one of them has
    near the top. From the place 100 on, a ranking adds less than 1/160 to a score.

    >>> depth(5), depth(50)
    (100, 200)
    """
    return max(DEPTH, 4 * k)


def fuse(results: Sequence[SearchResult], k: int, *, finds: str) -> SearchResult:
    """Fuse rankings by the sum of 1 / (60 + rank) (Cormack et al. 2009).

    Args:
        results: of one query in one mode, at least one; each as deep as `depth(k)`.
        k: volumes, or slices for each query slice, at most.
        finds: "volumes", which are the same if their ids are, or "slices", which are the same if
            volume id and slice index are; these are fused for each query slice alone.

    Returns:
        Hits with the sum as score, largest first (slices: by query slice, then by rank); equal sums
        in the order of the volume ids, then of the slices. Neither rank nor score depends on the
        order of the results. What else a hit says is from the first result that has it; it is a
        near duplicate if one result says so.

    Raises:
        UsageError: nothing to fuse.
    """
    if not results:
        raise UsageError("no rankings to fuse; expected at least one")
    groups: dict[int | None, list[list[Hit]]] = {}
    for number, result in enumerate(results):
        for hit in result.hits:
            # A hit of a slice has exactly one match; of a volume there is one group.
            group = hit.matches[0].query_slice if finds == "slices" else None
            groups.setdefault(group, [[] for _ in results])[number].append(hit)
    ordered = groups if finds == "volumes" else dict(sorted(groups.items(), key=_number))
    hits = [hit for rankings in ordered.values() for hit in _fused(rankings, k, finds)]
    return replace(results[0], hits=tuple(hits))


def _number(item: tuple[int | None, object]) -> int:
    return -1 if item[0] is None else item[0]


def _fused(rankings: Sequence[Sequence[Hit]], k: int, finds: str) -> list[Hit]:
    shares: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    shown: dict[tuple[str, int], Hit] = {}
    doubled: set[tuple[str, int]] = set()
    for ranking in rankings:
        for hit in ranking:
            key = (hit.volume_id, hit.slice_index if finds == "slices" else 0)
            shares[key].append(1 / (CONSTANT + hit.rank))
            shown.setdefault(key, hit)
            if hit.near_duplicate:
                doubled.add(key)
    # Summed exactly, so that it does not depend on the order of the rankings.
    score: Mapping[tuple[str, int], float] = {key: math.fsum(s) for key, s in shares.items()}
    best = sorted(score, key=lambda key: (-score[key], key))[:k]
    return [
        replace(shown[key], rank=place + 1, score=score[key], near_duplicate=key in doubled)
        for place, key in enumerate(best)
    ]


def search_fused(
    indexes: Sequence[Index],
    query: Query,
    *,
    mode: str = "count",
    k: int = 5,
    orientation: str = "as stored",
    channel: int = 0,
    allow_one_slice: bool = False,
    **options: Any,
) -> SearchResult:
    """Search several indexes of the same cases, and fuse what they find by rank.

    Every index embeds the query with its own embedder and is searched deeper than `k` (`depth`);
    `fuse` says what the order of the result is.

    Args:
        indexes: at least one. Cases that only some of them have can be found, but come late.
        query: as for `Index.search`; embeddings only where all indexes have the same embedder.
        mode, k, channel, allow_one_slice: as for `Index.search`.
        orientation: as for `Index.search`; for "any" the index whose embedder has the first name
            in the alphabet decides for all.
        **options: other options of `Index.search`.

    Returns:
        Hits whose score is the sum of 1 / (60 + rank). `row_id` is a row of the first index, -1
        where that does not have the slice. The order of the indexes matters for nothing else but
        which slice and which matches are shown of a volume that several of them found.

    Raises:
        UsageError: no indexes, indexes that have no case in common with the first, slices are
            searched that are cut along other axes, and as `Index.search`.
    """
    # Imported when used: the pipeline names this function, and must not load all of retrieval.
    from medretrieval.retrieval.modes import MODES
    from medretrieval.retrieval.orienting import ANY
    from medretrieval.retrieval.query import QueryEmbeddings

    if mode not in MODES:
        raise unknown_name("mode", mode, MODES, "medretrieval search --help")
    finds = MODES[mode].finds
    _check_alike(indexes, finds)
    first = indexes[0]
    read: Query = first.read(query, channel=channel, allow_one_slice=allow_one_slice)
    if isinstance(query, str) and isinstance(read, QueryEmbeddings):
        read = query  # a case of the indexes, each of which has its own embeddings of it
    results: dict[int, SearchResult] = {}
    for number in sorted(range(len(indexes)), key=lambda i: _key(indexes[i])):
        results[number] = indexes[number].search(
            read, mode=mode, k=depth(k), orientation=orientation, **options
        )
        if orientation == ANY:
            orientation = results[number].orientation
    fused = fuse([results[number] for number in range(len(indexes))], k, finds=finds)
    return replace(fused, hits=tuple(_in_rows_of(first, hit) for hit in fused.hits))


def _key(index: Index) -> tuple[str, str]:
    return index.manifest.embedder.name, index.manifest.embedder.space


def _check_alike(indexes: Sequence[Index], finds: str) -> None:
    if not indexes:
        raise UsageError("no indexes to search; expected at least one")
    own, axis = set(indexes[0].store.volume_ids), indexes[0].manifest.slices.axis
    for index in indexes[1:]:
        if own.isdisjoint(index.store.volume_ids):
            raise UsageError(
                f"the indexes {indexes[0].manifest.name} and {index.manifest.name} have no case in "
                "common; expected indexes of the same cases. To search several collections at "
                "once, open them as a group"
            )
        if finds == "slices" and index.manifest.slices.axis != axis:
            raise UsageError(
                f"slices of these indexes are not the same: they are cut along {axis} and along "
                f"{index.manifest.slices.axis}; fuse a mode that finds volumes, such as count"
            )


def _in_rows_of(index: Index, hit: Hit) -> Hit:
    try:
        row = index.store.row(hit.volume_id, hit.slice_index)
    except UsageError:
        row = -1
    return replace(hit, row_id=row)
