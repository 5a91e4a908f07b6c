"""From slices to volumes: every query slice votes for the volume of its most similar slice.

MSD-CBIR, section II-D: (a) all slices, (b) Gaussian-weighted slices; 3D-MIR (Ben Abacha et al.,
2023): the largest similarity, the sum of the similarities. Pure functions of arrays.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medretrieval.errors import UsageError

# MSD-CBIR gives no width. A quarter of the volume leaves the outermost slices a weight of
# exp(-2) = 0.14 and the middle half at least 0.61: the ends, which carry less information, count
# little, and yet a volume hit by the ends alone is still found.
DEFAULT_SIGMA = 0.25


class Votes(NamedTuple):
    """The row of one volume in the hit table.

    Attributes:
        volume: number of the volume.
        hits: sum of the weights of the query slices whose best slice lies in this volume.
        total: the same sum, each weight times the similarity.
        best: the largest of these similarities.
    """

    volume: int
    hits: float
    total: float
    best: float


def gaussian_weights(
    position: ArrayLike, count: int, *, sigma: float = DEFAULT_SIGMA
) -> NDArray[np.float64]:
    """Weight of query slices by their distance from the middle of the query volume.

    exp(-d^2 / (2 s^2)) with d = |position - (count - 1) / 2| slices and s = sigma * count slices
    (MSD-CBIR, section II-D b; the paper gives neither the width nor the normalisation).

    Args:
        position: (n,) index of each slice among all slices of its volume, 0..count-1.
        count: number of slices of the volume, also of those that are not searched.
        sigma: standard deviation as a fraction of `count`.

    Returns:
        (n,) float64 in 0..1, 1 at the middle; the only slice of a one-slice volume has weight 1.

    Raises:
        UsageError: sigma is not a positive number.

    >>> gaussian_weights([0, 1, 2, 3, 4], 5, sigma=0.4).round(3).tolist()
    [0.607, 0.882, 1.0, 0.882, 0.607]
    """
    if not (math.isfinite(sigma) and sigma > 0):
        raise UsageError(
            f"sigma is {sigma}; expected a positive fraction of the number of slices, "
            f"e.g. {DEFAULT_SIGMA}"
        )
    distance = np.asarray(position, dtype=np.float64) - (count - 1) / 2
    weights: NDArray[np.float64] = np.exp(-0.5 * (distance / (sigma * count)) ** 2)
    return weights


def hit_table(
    volume: NDArray[np.int64],
    score: NDArray[Any],
    weight: NDArray[np.float64],
    *,
    by: Callable[[Votes], float] | None = None,
) -> list[Votes]:
    """Count the (weighted) votes of the query slices and rank the volumes.

    MSD-CBIR, section II-D a (all weights 1) and b; TS-CBIR, section 2.4.1.

    Args:
        volume: (n,) number of the volume with the best slice for each query slice, -1 where none
            was found: such a slice does not vote.
        score: (n,) similarity of that slice.
        weight: (n,) weight of each query slice.
        by: what the volumes are ranked by, default their hits.

    Returns:
        One row per volume with a vote: most hits first, ties by the larger total, then by the
        smaller number of the volume; or the largest `by` first, ties by that number. The papers do
        not say what a tie is; sums are exact (`math.fsum`), so that it does not depend on the order
        of the votes.
    """
    votes: defaultdict[int, list[int]] = defaultdict(list)
    for query_slice in np.flatnonzero(volume >= 0).tolist():
        votes[int(volume[query_slice])].append(query_slice)
    product = weight * score
    table = [
        Votes(
            number,
            math.fsum(weight[slices].tolist()),
            math.fsum(product[slices].tolist()),
            float(score[slices].max()),
        )
        for number, slices in votes.items()
    ]
    if by is None:
        return sorted(table, key=lambda row: (-row.hits, -row.total, row.volume))
    return sorted(table, key=lambda row: (-by(row), row.volume))
