"""From what was ranked to what is shown: rows of an index as hits."""

from __future__ import annotations

import numpy as np

from medretrieval.retrieval.modes import Ranked
from medretrieval.retrieval.stores import Store
from medretrieval.types import Hit, Match


def to_hit(store: Store, ranked: Ranked) -> Hit:
    """The slice of the best pair, with what the index says of it, and all pairs as matches."""
    row = ranked.pairs[0].row
    position = float(store.position_mm[row])
    return Hit(
        rank=ranked.rank,
        volume_id=store.volume_ids[int(store.volume[row])],
        score=float(ranked.score),
        row_id=row,
        slice_index=int(store.slice_index[row]),
        position_mm=None if np.isnan(position) else position,
        labels=tuple(store.labels[row]),
        modality=str(store.modality[row]),
        region=str(store.region[row]),
        matches=tuple(
            Match(
                query_slice=pair.query_slice,
                slice_index=int(store.slice_index[pair.row]),
                score=pair.score,
            )
            for pair in ranked.pairs
        ),
    )
