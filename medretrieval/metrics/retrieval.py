"""How many of the retrieved items are relevant. Empty cases are part of each definition.

`relevant` says for each retrieved item, best first, whether it is relevant. A query that retrieved
nothing still counts: it scores 0, it does not vanish from a mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from medretrieval.errors import UsageError


def precision_at_k(relevant: Sequence[bool], k: int) -> float:
    """Relevant items among the first `k`, divided by `k` (CBIR-FM, section 2.5, of one query).

    Args:
        relevant: of each retrieved item, best first.
        k: cut-off, at least 1.

    Returns:
        0..1. With fewer than k items the missing ones count as irrelevant: the divisor stays k.

    Raises:
        UsageError: k is below 1.

    >>> precision_at_k([True, False, True], k=2)
    0.5
    """
    return sum(map(bool, relevant[: _cutoff(k)])) / k


def recall_at_k(relevant: Sequence[bool], k: int, *, total: int) -> float:
    """Relevant items among the first `k`, divided by all relevant items of the database.

    Args:
        relevant: of each retrieved item, best first.
        k: cut-off, at least 1.
        total: relevant items in the whole database.

    Returns:
        0..1. With `total` 0 there is nothing to find: 0.0, as trec_eval has it.

    Raises:
        UsageError: k is below 1, or `total` is smaller than the number of relevant items found.

    >>> recall_at_k([True, False, True], k=3, total=4)
    0.5
    """
    found = sum(map(bool, relevant[: _cutoff(k)]))
    if total < found:
        raise UsageError(
            f"total is {total}, but {found} relevant items were retrieved; "
            "total counts the relevant items of the whole database"
        )
    return found / total if total else 0.0


def hit_at_k(relevant: Sequence[bool], k: int) -> float:
    """1.0 if any of the first `k` items is relevant, else 0.0 (also when nothing was retrieved)."""
    return float(any(relevant[: _cutoff(k)]))


def hit_rate(queries: Sequence[Sequence[bool]], k: int) -> float:
    """Mean of `hit_at_k` over queries; 0.0 without queries.

    At k = 1 this is the recall of MSD-CBIR: the share of queries whose most similar case has the
    query's label.
    """
    _cutoff(k)
    return sum(hit_at_k(relevant, k) for relevant in queries) / len(queries) if queries else 0.0


def _cutoff(k: int) -> int:
    if k < 1:
        raise UsageError(f"k is {k}; expected at least 1")
    return k
