"""Names for contents."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def digest(*arrays: NDArray[Any]) -> str:
    """sha256 of the numbers of arrays, however they lie in memory.

    They are taken in Fortran order, that of volumes from files, and none is copied as a whole.
    """
    hasher = hashlib.sha256()
    for array in arrays:
        for plane in array.T:
            hasher.update(np.ravel(plane).data)
    return hasher.hexdigest()
