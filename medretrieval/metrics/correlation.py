"""How well one number tells another."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medretrieval.errors import InputError


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of two lists.

    Args:
        x, y: (n,) finite numbers.

    Returns:
        -1..1. Fewer than two pairs, or a list of equal numbers: nan, nothing can be said.

    Raises:
        InputError: not two lists of the same length, or numbers that are not finite.

    >>> round(pearson([1, 2, 3], [2, 4, 7]), 3)
    0.993
    """
    a, b = _pairs(x, y)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip((a @ b) / np.sqrt((a @ a) * (b @ b)), -1, 1))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation: Pearson's of the ranks; equal numbers share their mean rank.

    Args, returns, raises: as for `pearson`.

    >>> round(spearman([1, 2, 3, 3], [10, 20, 15, 30]), 3)
    0.738
    """
    a, b = _pairs(x, y)
    return pearson(_ranks(a), _ranks(b))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return np.asarray((last - (counts - 1) / 2)[which], np.float64)


def _pairs(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(f"lists of shapes {a.shape} and {b.shape}; expected pairs of numbers")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("the pairs hold NaN or infinite numbers; leave those pairs out")
    return a, b
