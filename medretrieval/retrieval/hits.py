"""From what was ranked to what is shown: rows of an index as hits."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from medretrieval.retrieval.database import Pair, Ranked
from medretrieval.retrieval.stores import Store
from medretrieval.types import Hit, Localization, Match


def to_hit(store: Store, ranked: Ranked, *, structure: str | None = None) -> Hit:
    """The slice of the best pair, with what the index says of it, and all pairs as matches.

    Args:
        structure: what the localization, if there is one, is about.
    """
    row = ranked.pairs[0].row
    position = float(store.position_mm[row])
    located = ranked.located
    return Hit(
        rank=ranked.rank,
        volume_id=store.volume_ids[int(store.volume[row])],
        score=float(ranked.score),
        row_id=row,
        slice_index=int(store.slice_index[row]),
        position_mm=None if np.isnan(position) else position,
        labels=store.labels[row],
        modality=store.modality[row],
        region=store.region[row],
        matches=_matches(store, ranked.pairs),
        localization=None
        if located is None
        else Localization(
            slices=_matches(store, located.pairs), structure=structure, ratio=located.ratio
        ),
    )


def _matches(store: Store, pairs: Iterable[Pair]) -> tuple[Match, ...]:
    return tuple(
        Match(
            query_slice=pair.query_slice,
            slice_index=int(store.slice_index[pair.row]),
            score=pair.score,
        )
        for pair in pairs
    )
