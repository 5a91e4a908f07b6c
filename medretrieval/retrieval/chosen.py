"""Which slices of a query a search in an index is made with."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import unknown_name
from medretrieval.retrieval.modes import MODES, check_part, is_part
from medretrieval.retrieval.query import QueryEmbeddings
from medretrieval.retrieval.selection import Selection, choose_part, choose_sample, of_volume
from medretrieval.types import SlicePolicy, Volume


class Chosen(NamedTuple):
    """Slices of a query.

    Attributes:
        slices: (n,) slice indices, ascending, n >= 1.
        part: first slice, and number of slices, of the part of the query that they are a sample of;
            None for the whole.
    """

    slices: NDArray[np.int64]
    part: tuple[int, int] | None


def chosen_slices(
    query: Volume | QueryEmbeddings, select: Selection, *, mode: str, policy: SlicePolicy
) -> Chosen:
    """The slices that a search takes of a query, in an index of slices.

    Args:
        query: as it was read.
        select, mode: as for `Index.search`.
        policy: of the index.

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
    index = choose_part(select, slices, axis=axis)
    part = None
    if is_part(select, slices):
        part = (int(index[0]), int(index[-1] - index[0]) + 1)
    sampled = MODES[mode].needs == "sample"
    return Chosen(choose_sample(select, slices, index, sampled=sampled), part)
