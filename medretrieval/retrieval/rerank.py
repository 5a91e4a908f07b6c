"""Re-ranking by late interaction and localization (TS-CBIR, section 2.5, after ColBERT).

Pure functions of similarity matrices; `similarity.maxsim` computes eq. 5 for many volumes at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LOCALIZED_SLICES = 15  # L of TS-CBIR, section 2.5.4


def rank_score(similar: NDArray[Any]) -> float:
    """RS: the sum over the query slices of the largest similarity (TS-CBIR, eq. 5).

    Args:
        similar: (n, m) similarity of n query slices with the m slices of one volume, m >= 1.

    Returns:
        The score, summed exactly: it does not depend on the order of the slices.
    """
    return math.fsum(similar.max(axis=1).tolist())


def slice_maxima(similar: NDArray[Any]) -> NDArray[Any]:
    """m_SIM: the largest similarity of each slice of a volume with a query slice (eq. 6).

    Args:
        similar: (n, m), n >= 1.

    Returns:
        (m,) of the same dtype.
    """
    maxima: NDArray[Any] = similar.max(axis=0)
    return maxima


def localize(similar: NDArray[Any], *, top: int = LOCALIZED_SLICES) -> NDArray[np.int64]:
    """The slices of a volume where the query is found: the `top` largest of eq. 6.

    Args:
        similar: (n, m) similarity of the query with the slices of the volume.
        top: L of the paper, which requires L <= m; of a shorter volume all slices are taken.

    Returns:
        (min(top, m),) int64 column numbers, most similar first, ties by the smaller number.
    """
    order = np.argsort(-slice_maxima(similar), kind="stable")
    return order[:top].astype(np.int64)


def localization_ratio(shows: Sequence[bool] | NDArray[np.bool_]) -> float:
    """LR: the share of the localized slices that show the wanted structure (TS-CBIR, eq. 7).

    Args:
        shows: for each of the L slices of `localize` whether it shows the structure. The divisor is
            their number, so that a volume with fewer than L slices can reach 1.

    Returns:
        0..1; without slices 0.0.

    >>> localization_ratio([True, False, False, False])
    0.25
    """
    return sum(map(bool, shows)) / len(shows) if len(shows) else 0.0
