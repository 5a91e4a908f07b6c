"""How far a mean can be trusted: bootstrap intervals over patients."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from medretrieval.errors import InputError

SAMPLES = 10_000


def bootstrap_interval(
    values: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    samples: int = SAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, resampling whole patients.

    Two volumes of one patient say less than two of different patients: patients are drawn with
    replacement, as many as there are, each with all of its values (cluster bootstrap; Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Each draw gives the mean of all
    values in it.

    Args:
        values: (n,) finite numbers, n >= 1.
        groups: patient of each value; None makes every value a patient of its own.
        confidence: 0..1, exclusive.
        samples: how many draws.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        Lower and upper end. With a single patient (nan, nan): one says nothing about the spread.

    Raises:
        InputError: no values, values that are not finite, or not as many groups as values.
    """
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or not len(numbers) or not np.isfinite(numbers).all():
        raise InputError(f"values {numbers}: expected a list of one or more finite numbers")
    if groups is None:
        groups = range(len(numbers))
    if len(groups) != len(numbers):
        raise InputError(f"{len(numbers)} values of {len(groups)} groups; expected as many")
    code: dict[Hashable, int] = {}
    member = np.array([code.setdefault(group, len(code)) for group in groups])
    if len(code) < 2:
        return float("nan"), float("nan")
    sums = np.bincount(member, numbers)
    counts = np.bincount(member)
    drawn = np.random.default_rng(seed).integers(len(code), size=(samples, len(code)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
