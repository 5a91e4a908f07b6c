"""An open index that can be searched: the one place where retrieval meets the stored index."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medretrieval.embedders.compute import Precision, Runtime
from medretrieval.errors import UsageError, unknown_name
from medretrieval.retrieval.aggregation import DEFAULT_SIGMA
from medretrieval.retrieval.filters import Columns
from medretrieval.retrieval.hits import to_hit
from medretrieval.retrieval.identity import check_identity
from medretrieval.retrieval.loading import load_again
from medretrieval.retrieval.modes import (
    DEFAULT_MODE,
    MODES,
    Database,
    Rows,
)
from medretrieval.retrieval.nearest import rounded_cosine
from medretrieval.retrieval.query import (
    Query,
    QueryEmbeddings,
    check_comparable,
    embed_query,
    from_arrays,
    read_query,
    searched,
)
from medretrieval.retrieval.rerank import LOCALIZED_SLICES, localize
from medretrieval.retrieval.stores import Store
from medretrieval.retrieval.whole import refuse_localizing, refuse_slices, refuse_supports
from medretrieval.types import (
    Embedder,
    EmbedderIdentity,
    Match,
    Progress,
    SearchResult,
    Volume,
    VolumeEmbedder,
    no_progress,
)

logger = logging.getLogger(__name__)


def open_index(
    path: str | Path,
    *,
    embedder: Embedder | VolumeEmbedder | None = None,
    device: str = "cpu",
    weights: Path | None = None,
    precision: Precision | None = None,
    runtime: Runtime = "torch",
    verify: Literal["full", "sizes"] = "full",
) -> Index:
    """Open an index folder, with all its checks, ready to be searched.

    Args:
        path: a folder that `medretrieval build` wrote.
        embedder: embeds the queries; by default the one of the index is loaded when first needed.
        weights: local weights for that one, if they are neither bundled nor cached.
        device, precision, runtime: how that one is computed, see `embedders.load_embedder`; the
            precision is by default that of the index.
        verify: "full" hashes every file of the index; "sizes" is faster for large ones that were
            checked before.

    Raises:
        IndexFormatError: not an index, incomplete, tampered with, or of a newer version.
        EmbedderMismatchError: `embedder` is not the one that made the index.
    """
    # Imported when used: opening a stored index loads packages that this module does not need.
    from medretrieval.index import open_store

    load = partial(load_again, device=device, weights=weights, precision=precision, runtime=runtime)
    return Index(open_store(path, verify=verify), embedder=embedder, load=load)


class Index:
    """An index and the embedder that goes with it. Safe to search from several threads.

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

    def query_embeddings(
        self,
        volume: Volume,
        *,
        indices: Iterable[int] | None = None,
        keep_images: bool = False,
        progress: Progress = no_progress,
    ) -> QueryEmbeddings:
        """Embed the slices of a volume once, to search and to choose supports many times.

        Args:
            volume: the query; its slices are made with the policy of the index. For an index of
                whole volumes it is embedded at once.
            indices: which slices, default all.
            keep_images: keep the slices as embedded, or the one that stands for the volume.

        Raises:
            UsageError: a slice that does not exist, or slices of an index of whole volumes.
            InputError: the volume cannot be embedded at once, such as a picture.
        """
        return embed_query(
            volume,
            self.store.manifest.slices,
            self.embedder,
            indices=indices,
            keep_images=keep_images,
            progress=progress,
        )

    def search(
        self,
        query: Query,
        *,
        mode: str = DEFAULT_MODE,
        k: int = 5,
        slice_index: int | None = None,
        exclude_patient: str | None = None,
        modality: str | None = None,
        region: str | None = None,
        labels: Sequence[str] | None = None,
        sigma: float = DEFAULT_SIGMA,
        query_name: str | None = None,
        channel: int = 0,
        allow_one_slice: bool = False,
        progress: Progress = no_progress,
    ) -> SearchResult:
        """Find the most similar slices or volumes.

        Args:
            query: a volume, the path of one, embedded slices (`query_embeddings`), or embeddings
                made elsewhere: an array (n, dim), or a tuple with n slice indices and n positions.
            mode: a name of `modes.MODES`: "slice" gives up to k slices for every query slice, the
                others up to k volumes. A volume that no query slice hits is not a result, so that
                there can be fewer than k; where the filters leave nothing there are none.
            slice_index: search with this slice of the query alone; not in an index of whole
                volumes, where the query is one embedding and `matches` names the slices that
                stand for both volumes.
            exclude_patient: leave out this patient, by the id given when the index was built or as
                stored. A patient who is not in the index excludes nothing.
            modality, region: only slices of this modality or body region, in upper or lower case.
            labels: only slices that show at least one of these labels.
            sigma: of mode "weighted": width of the weights as a fraction of the query's slices.
            query_name: how the result calls the query, default its own name.
            channel, allow_one_slice: for reading a path, as in `imaging.read_volume`.

        Returns:
            Hits, best first ("slice": by query slice, then by rank); equal scores are in the order
            of the volume ids, then of the slices. Similarities are rounded to 6 decimals.

        Raises:
            UsageError: unknown mode or filter value, k below 1, a slice that does not exist, a
                slice of an index of whole volumes.
            InputError: the query cannot be read, or its embeddings cannot be used.
            EmbedderMismatchError: the embeddings are of another embedder.
        """
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES, "medretrieval search --help")
        _check_k(k)
        refuse_slices(self.store.manifest.embedder, slice_index)
        allowed = self._columns.allowed(
            modality=modality,
            region=region,
            labels=labels,
            without_patients=self._stored_ids(exclude_patient),
        )
        query = read_query(query, channel=channel, allow_one_slice=allow_one_slice)
        slices = self._embedded(query, slice_index, progress)
        ranked = []
        if allowed.any():
            ranked = MODES[mode].rank(searched(slices), self._database(allowed), k, sigma)
        return SearchResult(
            query=slices.name if query_name is None else query_name,
            mode=mode,
            hits=tuple(to_hit(self.store, item) for item in ranked),
        )

    def supports(
        self,
        query: ArrayLike,
        k: int,
        *,
        labels: Sequence[str] | None = None,
        exclude_patient: str | None = None,
        modality: str | None = None,
        region: str | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The annotated slices most similar to one query slice, to segment it by (RAFS, II-B).

        Args:
            query: (dim,) embedding of the query slice, of any norm but zero.
            k, labels, exclude_patient, modality, region: as for `supports_each`.

        Returns:
            Rows and their cosine similarities, both (<= k,); see `supports_each`.
        """
        (found,) = self.supports_each(
            np.asarray(query)[None],
            k,
            labels=labels,
            exclude_patient=exclude_patient,
            modality=modality,
            region=region,
        )
        return found

    def supports_each(
        self,
        queries: ArrayLike,
        k: int,
        *,
        labels: Sequence[str] | None = None,
        exclude_patient: str | None = None,
        modality: str | None = None,
        region: str | None = None,
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """`supports` of many query slices in one search, which is much faster than one by one.

        Args:
            queries: (n, dim) embeddings, of any norm but zero.
            k: how many for each, at least 1.
            labels: only from volumes in which one of these labels occurs. Slices of them that do
                not show it stay: they are evidence of what its absence looks like, and in a volume
                where it never occurs nobody may have drawn it.
            exclude_patient, modality, region: as for `search`.

        Returns:
            For each query rows and their cosine similarities, both (<= k,), best first, ties as in
            `search`; empty where no annotated slice is left. `store.support(row)` gives picture
            and mask.

        Raises:
            UsageError: k below 1, an unknown label, modality or region, or an index of whole
                volumes, which does not say which slices are alike.
            InputError: no queries, or an embedding that is zero or not finite.
            EmbedderMismatchError: they are of another length than those of the index.
        """
        _check_k(k)
        refuse_supports(self.store.manifest.embedder)
        embedded = from_arrays(queries)
        check_comparable(self.store.manifest.embedder, embedded)
        unit = embedded.embeddings
        allowed = self.store.annotated & self._columns.allowed(
            modality=modality, region=region, without_patients=self._stored_ids(exclude_patient)
        )
        if labels is not None:
            allowed &= self._columns.in_volumes_showing(labels)
        if not allowed.any():
            return [(np.empty(0, dtype=np.int64), np.empty(0)) for _ in unit]
        scores, rows = self._database(allowed).nearest(unit, k)
        return [(r[r >= 0], s[r >= 0]) for r, s in zip(rows, scores, strict=True)]

    def localize(
        self, query: Query, volume_id: str, *, top: int = LOCALIZED_SLICES
    ) -> tuple[Match, ...]:
        """Where in a volume of the index the query is found (TS-CBIR, eq. 6).

        Args:
            query: as for `search`; typically the slices around one structure.
            volume_id: a volume of the index.
            top: how many of its slices, all of a shorter volume.

        Returns:
            For each of these slices the query slice most similar to it; most similar first.

        Raises:
            UsageError: unknown volume, `top` below 1, or an index of whole volumes.
        """
        refuse_localizing(self.store.manifest.embedder)
        if volume_id not in self.store.volume_ids:
            raise unknown_name("volume", volume_id, self.store.volume_ids, "medretrieval info")
        if top < 1:
            raise UsageError(f"top is {top}; expected at least 1 slice")
        slices = self._embedded(read_query(query), None, no_progress)
        own = self._rows.by_volume
        own = own[self.store.volume[own] == list(self.store.volume_ids).index(volume_id)]
        similar = rounded_cosine(slices.embeddings, self.store.embeddings[own])
        best = similar.argmax(axis=0)
        return tuple(
            Match(
                query_slice=int(slices.slice_index[best[column]]),
                slice_index=int(self.store.slice_index[own[column]]),
                score=float(similar[best[column], column]),
            )
            for column in localize(similar, top=top).tolist()
        )

    @cached_property
    def _rows(self) -> Rows:
        ids = np.asarray(self.store.volume_ids, dtype=np.str_)
        number = np.empty(len(ids), dtype=np.int64)
        number[np.argsort(ids, kind="stable")] = np.arange(len(ids))
        return Rows(
            embeddings=self.store.embeddings,
            volume=number[self.store.volume],
            slice_index=np.asarray(self.store.slice_index, dtype=np.int64),
        )

    @cached_property
    def _columns(self) -> Columns:
        store = self.store
        return Columns(
            volume=self._rows.volume,
            patient_id=store.patient_id,
            modality=store.modality,
            region=store.region,
            labels=store.labels,
        )

    def _stored_ids(self, patient: str | None) -> tuple[str, ...]:
        if patient is None:
            return ()
        ids = (patient, self.store.pseudonym(patient))
        if not np.isin(self.store.patient_id, ids).any():
            # Right where other hospitals' patients are searched, but a typing error looks the same.
            logger.warning(
                "the patient to leave out has no slice in this index, so nothing is left out; "
                "without a table of patient ids every file is a patient of its own"
            )
        return ids

    def _embedded(
        self, query: Volume | QueryEmbeddings, slice_index: int | None, progress: Progress
    ) -> QueryEmbeddings:
        """The query as embeddings that can be compared with those of the index."""
        if isinstance(query, Volume):
            indices = None if slice_index is None else [slice_index]
            return self.query_embeddings(query, indices=indices, progress=progress)
        check_comparable(self.store.manifest.embedder, query)
        return query if slice_index is None else query.only(slice_index)

    def _database(self, allowed: NDArray[np.bool_]) -> Database:
        rows = None if allowed.all() else allowed
        return Database(
            rows=self._rows,
            allowed=allowed,
            neighbours=lambda queries, k: self.store.neighbours(queries, k, rows=rows),
        )


def _check_k(k: int) -> None:
    if k < 1:
        raise UsageError(f"k is {k}; expected at least 1")
