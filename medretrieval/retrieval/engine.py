"""An open index that can be searched."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medretrieval.embedders.compute import Precision, Runtime
from medretrieval.errors import UsageError, unknown_name
from medretrieval.imaging.orientation import AS_STORED
from medretrieval.retrieval import feedback as relevance
from medretrieval.retrieval.aggregation import DEFAULT_SIGMA
from medretrieval.retrieval.chosen import chosen_slices
from medretrieval.retrieval.database import Options
from medretrieval.retrieval.duplicates import mark
from medretrieval.retrieval.feedback import Feedback
from medretrieval.retrieval.filters import NO_FILTERS, Filters
from medretrieval.retrieval.hits import to_hit
from medretrieval.retrieval.loading import load_again
from medretrieval.retrieval.modes import DEFAULT_MODE, MODES
from medretrieval.retrieval.nearest import rounded_cosine
from medretrieval.retrieval.opened import Opened
from medretrieval.retrieval.orienting import (
    Lookup,
    check_embedded,
    check_orientation,
    embed_oriented,
)
from medretrieval.retrieval.query import (
    Query,
    QueryEmbeddings,
    check_comparable,
    from_arrays,
    searched,
)
from medretrieval.retrieval.rerank import LOCALIZED_SLICES, localize
from medretrieval.retrieval.selection import ALL_SLICES, Selection
from medretrieval.retrieval.stored import number_of_volume
from medretrieval.retrieval.whole import refuse_choice, refuse_localizing, refuse_supports
from medretrieval.types import (
    Embedder,
    Match,
    Progress,
    SearchResult,
    Volume,
    VolumeEmbedder,
    no_progress,
)

NO_FEEDBACK = Feedback()

logger = logging.getLogger(__name__)


def open_index(
    path: str | Path | Sequence[str | Path],
    *,
    embedder: Embedder | VolumeEmbedder | None = None,
    device: str = "cpu",
    weights: Path | None = None,
    precision: Precision | None = None,
    runtime: Runtime = "torch",
    verify: Literal["changed", "full", "sizes"] = "changed",
    progress: Progress = no_progress,
) -> Index:
    """Open an index, or several together, with all checks, ready to be searched.

    Args:
        path: a folder that `medretrieval build` wrote, or "ORG/NAME" or "ORG/NAME@REVISION" for a
            data set of the Hub, of which only what a search needs is fetched; behind it
            "#EMBEDDER" for another embedder than its first. Several, or "a,b,c", are searched as if
            they were one.
        embedder: embeds the queries; by default the one of the index is loaded when first needed.
        weights: local weights for that one, if they are neither bundled nor cached.
        device, precision, runtime: how that one is computed, see `embedders.load_embedder`; the
            precision is by default that of the index.
        verify: "changed" hashes the files that were not yet found right on this machine, or changed
            since; "full" hashes every file of the index; "sizes" is faster for large ones that were
            checked before.
        progress: called with the bytes fetched from the Hub, of how many, and what for.

    Raises:
        IndexFormatError: not an index, incomplete, tampered with, or of a newer version.
        UnavailableError: the Hub does not give it.
        EmbedderMismatchError: `embedder` is not the one that made the index.
    """
    # Imported when used: opening a stored index loads packages that this module does not need.
    from medretrieval.index import open_stores

    load = partial(load_again, device=device, weights=weights, precision=precision, runtime=runtime)
    return Index(open_stores(path, verify=verify, progress=progress), embedder=embedder, load=load)


class Index(Opened):
    """An index and the embedder that goes with it. Safe to search from several threads.

    Args:
        store: an open index.
        embedder: as for `open_index`.
        load: gives the embedder of an identity, when it is first needed.
    """

    def query_embeddings(
        self,
        volume: Volume,
        *,
        indices: Iterable[int] | None = None,
        orientation: str = AS_STORED,
        filters: Filters = NO_FILTERS,
        keep_images: bool = False,
        progress: Progress = no_progress,
    ) -> QueryEmbeddings:
        """Embed the slices of a volume once, to search and to choose supports many times.

        Args:
            volume: the query; its slices are made with the policy of the index. For an index of
                whole volumes it is embedded at once.
            indices: which slices, default all.
            orientation, filters: as for `search`; the filters matter for the orientation "any".
            keep_images: keep the slices as embedded, or the one that stands for the volume.

        Raises:
            UsageError: a slice or an orientation that does not exist, or slices of an index of
                whole volumes.
            InputError: the volume cannot be embedded at once, such as a picture.
        """
        return self._embed(
            volume,
            indices,
            orientation,
            self._columns.allowed(filters),
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
        select: Selection = ALL_SLICES,
        filters: Filters = NO_FILTERS,
        feedback: Feedback = NO_FEEDBACK,
        orientation: str = AS_STORED,
        sigma: float = DEFAULT_SIGMA,
        candidates: int | None = None,
        top: int = LOCALIZED_SLICES,
        query_name: str | None = None,
        channel: int = 0,
        allow_one_slice: bool = False,
        progress: Progress = no_progress,
    ) -> SearchResult:
        """Find the most similar slices or volumes.

        Args:
            query: a volume, the path of one, "case:VOLUME_ID" for a case of the index
                (`case_query`), embedded slices (`query_embeddings`), or embeddings made elsewhere:
                an array (n, dim), or a tuple with n slice indices and n positions.
            mode: a name of `modes.MODES`: "slice" gives up to k slices for every query slice, the
                others up to k volumes. A volume that no query slice hits is not a result, but in
                the pooled modes, so that there can be fewer than k; where the filters leave
                nothing there are none.
            slice_index: search with this slice of the query alone; the same as `select.slices`
                from it to itself.
            select: the slices of the query to search with, see `Selection`; only these are
                embedded. Mode "sampled" takes `selection.DEFAULT_SAMPLE` where no sample is given;
                "region" and "localized" need a range, or a structure and a label map. An index of
                whole volumes compares the query as one, so that nothing can be selected; `matches`
                then names the slices that stand for both volumes.
            filters: what may be found, see `Filters`. Of a case of the index its own patient is
                left out, unless `filters.patient` names this patient.
            feedback: results that were judged, see `Feedback`.
            orientation: how the slices of the query are turned before they are embedded: a name of
                `imaging.ORIENTATIONS`, or "any" for the one in which they are most similar to what
                may be found.
            sigma: of mode "weighted": width of the weights as a fraction of the query's slices.
            candidates: of mode "rerank": only so many volumes are re-ranked, those with the most
                hits; default all that are hit.
            top: of mode "rerank": how many slices of a volume localize the query in it.
            query_name: how the result calls the query, default its own name.
            channel, allow_one_slice: for reading a path, as in `imaging.read_volume`.

        Returns:
            Hits, best first ("slice": by query slice, then by rank); equal scores are in the order
            of the volume ids, then of the slices. Similarities are rounded to 6 decimals.

        Raises:
            UsageError: unknown mode, filter value, volume, structure or orientation, a number below
                1, a slice that does not exist, a selection that cannot be made.
            InputError: the query cannot be read, or its embeddings cannot be used.
            EmbedderMismatchError: the embeddings are of another embedder.
        """
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES, "medretrieval search --help")
        _check_counts(k=k, top=top, candidates=1 if candidates is None else candidates)
        select = select.at(slice_index)
        refuse_choice(self.store.manifest.embedder, select, MODES[mode])
        check_orientation(orientation, self.store.manifest.embedder)
        allowed = self._columns.allowed(filters)
        relevance.examples(feedback, self.store)  # refused before minutes of embedding
        read = self.read(query, channel=channel, allow_one_slice=allow_one_slice)
        if isinstance(read, QueryEmbeddings) and read.patient is not None:
            allowed = self._columns.allowed(filters, of_patient=read.patient)
        embedded, part = self._chosen(read, select, mode, orientation, allowed, progress)
        given = embedded
        if feedback:
            every = np.ones(len(self.store.volume), dtype=np.bool_)
            embedded, allowed = relevance.apply(
                feedback, self.store, embedded, every if allowed is None else allowed
            )
        ranked = []
        if allowed is None or allowed.any():
            shows = self._columns.showing_structure(select.structure)
            if shows is None and select.structure is not None and MODES[mode].localizes:
                logger.warning(
                    "no slice of the index has the label %r, so there is no localization ratio; "
                    "`medretrieval info` lists its labels",
                    select.structure,
                )
            options = Options(k=k, sigma=sigma, candidates=candidates, top=top, shows=shows)
            ranked = MODES[mode].rank(searched(embedded, part), self._database(allowed), options)
        whole = self.store.manifest.embedder.unit == "volume"
        if whole:  # the one slice of a volume stands for it, and localizes nothing
            ranked = [item._replace(located=None) for item in ranked]
        hits = [to_hit(self.store, item, structure=select.structure) for item in ranked]
        return SearchResult(
            query=embedded.name if query_name is None else query_name,
            mode=mode,
            hits=mark(hits, given, self.store, finds=MODES[mode].finds),
            orientation=embedded.orientation,
        )

    def supports(
        self,
        query: ArrayLike,
        k: int,
        *,
        labels: Sequence[str] | None = None,
        filters: Filters = NO_FILTERS,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The annotated slices most similar to one query slice, to segment it by (RAFS, II-B).

        Args:
            query: (dim,) embedding of the query slice, of any norm but zero.
            k, labels, filters: as for `supports_each`.

        Returns:
            Rows and their cosine similarities, both (<= k,); see `supports_each`.
        """
        (found,) = self.supports_each(np.asarray(query)[None], k, labels=labels, filters=filters)
        return found

    def supports_each(
        self,
        queries: ArrayLike,
        k: int,
        *,
        labels: Sequence[str] | None = None,
        filters: Filters = NO_FILTERS,
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """`supports` of many query slices in one search, which is much faster than one by one.

        Args:
            queries: (n, dim) embeddings, of any norm but zero.
            k: how many for each, at least 1.
            labels: only from volumes in which one of these labels occurs. Slices of them that do
                not show it stay: they are evidence of what its absence looks like, and in a volume
                where it never occurs nobody may have drawn it.
            filters: as for `search`; `filters.labels` leaves only slices that show one.

        Returns:
            For each query rows and their cosine similarities, both (<= k,), best first, ties as in
            `search`; empty where no annotated slice is left. `store.support(row)` gives picture
            and mask.

        Raises:
            UsageError: k below 1, an unknown label or filter value, or an index of whole volumes,
                which does not say which slices are alike.
            InputError: no queries, or an embedding that is zero or not finite.
            EmbedderMismatchError: they are of another length than those of the index.
        """
        _check_counts(k=k)
        refuse_supports(self.store.manifest.embedder)
        embedded = from_arrays(queries)
        check_comparable(self.store.manifest.embedder, embedded)
        masks = [self.store.annotated, self._columns.allowed(filters)]
        if labels is not None:
            masks.append(self._columns.in_volumes_showing(labels))
        allowed = np.logical_and.reduce([mask for mask in masks if mask is not None])
        if not allowed.any():
            return [(np.empty(0, dtype=np.int64), np.empty(0)) for _ in embedded.embeddings]
        database = self._database(None if allowed.all() else allowed)
        scores, rows = database.nearest(embedded.embeddings, k)
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
        number = number_of_volume(self.store, volume_id)
        _check_counts(top=top)
        read = self.read(query)
        if isinstance(read, Volume):
            slices = self.query_embeddings(read)
        else:
            check_comparable(self.store.manifest.embedder, read)
            slices = read
        own = self._rows.of(number)
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

    def _chosen(
        self,
        query: Volume | QueryEmbeddings,
        select: Selection,
        mode: str,
        orientation: str,
        allowed: NDArray[np.bool_] | None,
        progress: Progress,
    ) -> tuple[QueryEmbeddings, tuple[int, int] | None]:
        """The chosen slices of a query, as embeddings comparable with those of the index; and the
        part of it that they are of, as `QuerySlices.part`, None for the whole."""
        manifest = self.store.manifest
        if isinstance(query, QueryEmbeddings):
            check_comparable(manifest.embedder, query)
            check_embedded(orientation, query)
        indices, part = None, None
        if manifest.embedder.unit != "volume":
            chosen, part = chosen_slices(query, select, mode=mode, policy=manifest.slices)
            indices = chosen.tolist()
        if isinstance(query, Volume):
            return self._embed(query, indices, orientation, allowed, progress=progress), part
        return query if indices is None else query.only(indices), part

    def _embed(
        self,
        volume: Volume,
        indices: Iterable[int] | None,
        orientation: str,
        allowed: NDArray[np.bool_] | None,
        *,
        keep_images: bool = False,
        progress: Progress,
    ) -> QueryEmbeddings:
        if allowed is not None and not allowed.any():
            orientation = AS_STORED  # nothing says which way is best, and nothing can be found
        return embed_oriented(
            volume,
            self.store.manifest.slices,
            self.embedder,
            orientation=orientation,
            lookup=Lookup(nearest=self._database(allowed).nearest, picture=self.store.image),
            indices=indices,
            keep_images=keep_images,
            progress=progress,
        )


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        whole = isinstance(count, int | np.integer) and not isinstance(count, bool)
        if not whole or count < 1:
            raise UsageError(f"{name} is {count}; expected a whole number of at least 1")
