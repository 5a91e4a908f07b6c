"""An open index with what is derived from it: the one place where retrieval meets a store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.retrieval.database import Database, Rows
from medretrieval.retrieval.filters import Columns, Filters
from medretrieval.retrieval.identity import check_identity
from medretrieval.retrieval.loading import load_again
from medretrieval.retrieval.query import Query, QueryEmbeddings, read_query
from medretrieval.retrieval.stored import CASE, case_query, columns_of_store, rows_of_store
from medretrieval.retrieval.stores import Store
from medretrieval.types import Embedder, EmbedderIdentity, Volume, VolumeEmbedder


class Opened:
    """An index, its embedder, and the arrays to search in, each loaded or made on first use.

    Args:
        store: an open index.
        embedder: as for `open_index`.
        load: gives the embedder of an identity, when it is first needed.
    """

    def __init__(
        self,
        store: Store,
        *,
        embedder: Embedder | VolumeEmbedder | None = None,
        load: Callable[[EmbedderIdentity], Embedder | VolumeEmbedder] = load_again,
    ) -> None:
        if embedder is not None:
            check_identity(store.manifest.embedder, embedder.identity, what="the embedder given")
        self.store = store
        self._embedder = embedder
        self._load = load
        self._loading = threading.Lock()

    @property
    def manifest(self) -> Any:
        """What the index says about itself."""
        return self.store.manifest

    @property
    def embedder(self) -> Embedder | VolumeEmbedder:
        """The embedder of the index, loaded on first use.

        Raises:
            UnavailableError: its weights are not on this machine and cannot be fetched.
            EmbedderMismatchError: what was loaded under its name is not what made the index.
        """
        with self._loading:
            if self._embedder is None:
                wanted = self.store.manifest.embedder
                loaded = self._load(wanted)
                check_identity(wanted, loaded.identity, what="loaded here")
                self._embedder = loaded
            return self._embedder

    def case_query(self, volume_id: str) -> QueryEmbeddings:
        """A case of the index as a query, from its stored embeddings: no image is needed.

        Its labels are those that the index holds; `patient` is set, so that `search` leaves out
        all cases of its own patient.

        Raises:
            UsageError: the index has no such volume.
        """
        return case_query(self.store, self._rows, volume_id)

    def read(
        self, query: Query, *, channel: int = 0, allow_one_slice: bool = False
    ) -> Volume | QueryEmbeddings:
        """A query as a volume or as embeddings; arguments and errors as for `search`."""
        if isinstance(query, str) and query.startswith(CASE):
            return self.case_query(query.removeprefix(CASE))
        return read_query(query, channel=channel, allow_one_slice=allow_one_slice)

    def allowed(self, filters: Filters) -> NDArray[np.bool_]:
        """(rows,) which slices of the index pass every filter.

        Raises:
            UsageError: as `Columns.allowed`.
        """
        mask = self._columns.allowed(filters)
        return np.ones(len(self.store.volume), dtype=np.bool_) if mask is None else mask

    @cached_property
    def _rows(self) -> Rows:
        return rows_of_store(self.store)

    @cached_property
    def _columns(self) -> Columns:
        return columns_of_store(self.store)

    def _database(self, allowed: NDArray[np.bool_] | None) -> Database:
        return Database(
            rows=self._rows,
            allowed=allowed,
            neighbours=lambda queries, k: self.store.neighbours(queries, k, rows=allowed),
        )
