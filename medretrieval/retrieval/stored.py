"""A stored index as the arrays that searching needs, and a case of it as a query."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from medretrieval.errors import unknown_name
from medretrieval.retrieval.database import Rows
from medretrieval.retrieval.filters import Columns
from medretrieval.retrieval.query import QueryEmbeddings, from_arrays
from medretrieval.retrieval.stores import Store

logger = logging.getLogger(__name__)

CASE = "case:"  # before the volume id of a query that is a case of the index
_COMPARED = 5000  # names among which close ones to a wrong one are looked for


def rows_of_store(store: Store) -> Rows:
    """The slices of an index, volumes numbered in the order of their ids."""
    ids = np.asarray(store.volume_ids, dtype=np.str_)
    number = np.empty(len(ids), dtype=np.int64)
    number[np.argsort(ids, kind="stable")] = np.arange(len(ids))
    return Rows(
        embeddings=store.embeddings,
        volume=number[store.volume],
        slice_index=np.asarray(store.slice_index, dtype=np.int64),
    )


def columns_of_store(store: Store) -> Columns:
    """What the slices of an index are filtered by."""
    return Columns(
        volume=store.volume,
        volume_ids=store.volume_ids,
        patient=store.patient,
        modality=store.modality,
        region=store.region,
        labels=store.labels,
        attributes=store.attributes,
        pseudonyms=store.pseudonyms,
    )


def number_of_volume(store: Store, volume_id: str) -> int:
    """The number of a volume in `rows_of_store`: its place in the order of the ids.

    Raises:
        UsageError: the index has no such volume.
    """
    if volume_id not in store.volume_ids:
        known = store.volume_ids
        if len(known) > _COMPARED:  # comparing with a million names takes minutes
            near = [name for name in known if volume_id.casefold() in name.casefold()]
            known = near or known[:3]
        raise unknown_name("volume", volume_id, known[:_COMPARED], None)
    return sum(other < volume_id for other in store.volume_ids)


def case_query(store: Store, rows: Rows, volume_id: str) -> QueryEmbeddings:
    """A case of an index as a query, from its stored embeddings; see `Index.case_query`."""
    own = rows.of(number_of_volume(store, volume_id))
    if len(store.pseudonyms("")) > 1:
        logger.warning(
            "the indexes opened together have different names, and so different pseudonyms of a "
            "patient: slices of the patient of %s that are in another of them are not left out. "
            "Leave the patient out by the id of the source (exclude_patient), or build all with "
            "one name",
            volume_id,
        )
    positions = [None if np.isnan(mm) else float(mm) for mm in store.position_mm[own]]
    through = float(store.spacing[own[0], 2])
    query = from_arrays(
        store.embeddings[own],
        store.slice_index[own],
        positions,
        name=volume_id,
        identity=store.manifest.embedder,
    )
    return replace(
        query,
        patient=store.patient[int(own[0])],
        through_mm=None if np.isnan(through) else through,
        labels=tuple(store.labels[row] for row in own.tolist()),
    )
