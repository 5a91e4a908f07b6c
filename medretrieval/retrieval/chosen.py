"""Which slices of a query a search in an index is made with."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import unknown_name
from medretrieval.retrieval.modes import MODES, check_part
from medretrieval.retrieval.query import QueryEmbeddings
from medretrieval.retrieval.selection import Selection, choose, of_volume
from medretrieval.types import SlicePolicy, Volume


def chosen_slices(
    query: Volume | QueryEmbeddings, select: Selection, *, mode: str, policy: SlicePolicy
) -> NDArray[np.int64]:
    """The slices that `Index.search` takes of a query, in an index of slices.

    Args:
        query: as it was read.
        select, mode: as for `Index.search`.
        policy: of the index.

    Returns:
        (n,) slice indices, ascending, n >= 1.

    Raises:
        UsageError: unknown mode, and as `selection.choose` and `modes.check_part`.
        InputError: as `selection.choose`.
    """
    # Imported when used: reading images loads packages that a search by embeddings does not need.
    from medretrieval.imaging import slice_axis

    if mode not in MODES:
        raise unknown_name("mode", mode, MODES, "medretrieval search --help")
    axis = partial(slice_axis, axis=policy.axis)
    slices = of_volume(query, axis(query.grid)) if isinstance(query, Volume) else query.slices
    check_part(MODES[mode], select, slices)
    return choose(select, slices, axis=axis, sampled=MODES[mode].needs == "sample")
