"""Several indexes opened together, searched as if they were one.

Every index keeps its own embeddings and its own search structure; a query goes to each of them,
and the best of all are the result. So a group can lie on several disks, and nothing is copied but
the columns. A group holds what `merge` of the same indexes would hold, in the same order.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import UsageError
from medretrieval.index.columns import Coded, LabelColumn, RowMap
from medretrieval.index.compatible import (
    check_compatible,
    check_distinct,
    join_texts,
    same_embedder,
)
from medretrieval.index.embedding_sets import EmbeddingSet
from medretrieval.index.index_store import IndexStore
from medretrieval.index.manifest import Counts, Manifest, read_manifest
from medretrieval.index.opening import open_named
from medretrieval.index.reference import parse_reference, split_references
from medretrieval.index.stacked import StackedRows as StackedRows
from medretrieval.index.verified import Verify
from medretrieval.index.vocabulary import Translation, Vocabulary
from medretrieval.types import Progress, Support, no_progress


def open_group(
    paths: Iterable[str | Path],
    *,
    embedder: str | None = None,
    verify: Verify = "changed",
    trusted: bool = True,
    progress: Progress = no_progress,
) -> IndexGroup:
    """Open several index folders together.

    Args:
        paths: at least one index, each named as for `opening.open_named`.
        embedder: by whose embeddings those are searched that do not name one; default the first
            of the first index.
        verify, trusted, progress: see there.

    Raises:
        IndexFormatError: one of them is not an index, incomplete, changed, or inconsistent.
        EmbedderMismatchError: they were made with different embedders.
        UsageError: their slices, dtypes or extra columns differ, a volume is in two of them, one
            has no such embedder, or there are none.
    """
    names = list(paths)
    if not names:
        raise UsageError("there is no index to open; give at least one folder")
    chosen = dict.fromkeys(names, embedder) if embedder is not None else _embedders(names)
    with ExitStack() as opened:
        stores = [
            opened.enter_context(
                open_named(
                    name,
                    embedder=chosen.get(name),
                    verify=verify,
                    trusted=trusted,
                    progress=progress,
                )
            )
            for name in names
        ]
        group = IndexGroup(stores)
        opened.pop_all()  # all is well: they stay open
        return group


def _embedders(names: Sequence[str | Path]) -> dict[str | Path, str | None]:
    """By which embedder each index is opened: that of the first one, where it has it.

    Those of the Hub are opened by their first.
    """
    places = {name: parse_reference(name) for name in names}
    sets = {
        name: read_manifest(place.folder).choose(place.embedder).sets
        for name, place in places.items()
        if place.folder is not None
    }
    if names[0] not in sets:
        return {}
    wanted = next(iter(sets[names[0]].values())).embedder
    return {name: same_embedder(wanted, own) for name, own in sets.items()}


def open_stores(
    source: str | Path | Sequence[str | Path],
    *,
    embedder: str | None = None,
    verify: Verify = "changed",
    trusted: bool = True,
    progress: Progress = no_progress,
) -> IndexStore | IndexGroup:
    """Open an index, or several together.

    Args:
        source: an index named as for `opening.open_named`, several of them, or their names with
            commas between them where there is no folder of that whole name.
        embedder: as for `open_group`.
        verify, trusted, progress: see there.

    Raises:
        IndexFormatError, EmbedderMismatchError, UsageError: as `open_store` and `open_group`.
        UnavailableError: the Hub does not give one of them.
    """
    names = split_references(source)
    if len(names) == 1 and isinstance(source, (str, Path)):
        return open_named(
            names[0], embedder=embedder, verify=verify, trusted=trusted, progress=progress
        )
    return open_group(names, embedder=embedder, verify=verify, trusted=trusted, progress=progress)


class IndexGroup:
    """Indexes opened together; made by `open_group`. Safe to use from several threads.

    It has everything that an `IndexStore` has, with the rows of the first index first.

    Attributes:
        paths: the folders.
        stores: the open indexes.
        manifest: what the folders say together: counts added, vocabularies united; no files.
        embeddings: (n, dim) float32 unit rows, see `StackedRows`.
        vocabulary: mask value -> name. Where two indexes use one value for different structures,
            the masks of the later one are translated as they are read.
        (others): as of `IndexStore`, for the rows of all indexes.

    Args:
        stores: at least one.

    Raises:
        UsageError, EmbedderMismatchError: they do not go together, see `open_group`.
    """

    def __init__(self, stores: Sequence[IndexStore]) -> None:
        self.stores = tuple(stores)
        self.paths = tuple(store.path for store in stores)
        manifests = [store.manifest for store in stores]
        check_compatible(self.paths, manifests, same_name=False)
        check_distinct(self.paths, [store.volume_ids for store in stores])
        known = Vocabulary(manifest.vocabulary for manifest in manifests)
        self._translations = [Translation.into(known, m.vocabulary) for m in manifests]
        self.vocabulary: dict[int, str] = known.names()
        self._starts = np.cumsum([0, *map(len, stores)])
        self.embeddings = StackedRows([store.embeddings for store in stores])
        self.volume_ids = [name for store in stores for name in store.volume_ids]
        firsts = np.cumsum([0, *(len(store.volume_ids) for store in stores)])
        self.volume = np.concatenate(
            [store.volume + first for store, first in zip(stores, firsts, strict=False)]
        ).astype(np.int32)
        self.patient = Coded.join([store.patient for store in stores])
        self.modality = Coded.join([store.modality for store in stores])
        self.region = Coded.join([store.region for store in stores])
        self.attributes: Mapping[str, Coded] = {
            name: Coded.join([store.attributes[name] for store in stores])
            for name in manifests[0].attributes
        }
        self.labels = LabelColumn.join([store.labels for store in stores])
        self.slice_index = np.concatenate([store.slice_index for store in stores])
        self.position_mm = np.concatenate([store.position_mm for store in stores])
        self.spacing = np.concatenate([store.spacing for store in stores])
        self.annotated = np.concatenate([store.annotated for store in stores])
        self.manifest = _together(manifests, self.vocabulary, len(self.patient.names))

    def __len__(self) -> int:
        return len(self.embeddings)

    def __repr__(self) -> str:
        return f"IndexGroup({', '.join(map(repr, self.stores))})"

    def __enter__(self) -> IndexGroup:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; pictures cannot be read afterwards."""
        for store in self.stores:
            store.close()

    def pseudonyms(self, patient_id: str) -> tuple[str, ...]:
        """Return the names that a patient of the source can have in `self.patient`."""
        names = (name for store in self.stores for name in store.pseudonyms(patient_id))
        return tuple(dict.fromkeys(names))

    def row(self, volume_id: str, slice_index: int) -> int:
        """As `IndexStore.row`."""
        return self._rows.row(volume_id, slice_index)

    @cached_property
    def _rows(self) -> RowMap:
        return RowMap(self.volume_ids, self.volume, self.slice_index)

    def image(self, row: int) -> NDArray[np.uint8]:
        """As `IndexStore.image`."""
        number, own = self._place(row)
        return self.stores[number].image(own)

    def fetched_with(self, row: int) -> str | None:
        """As `IndexStore.fetched_with`."""
        number, own = self._place(row)
        name = self.stores[number].fetched_with(own)
        return None if name is None else f"{number}/{name}"

    def has_image(self, row: int) -> bool:
        """As `IndexStore.has_image`."""
        number, own = self._place(row)
        return self.stores[number].has_image(own)

    def has_mask(self, row: int) -> bool:
        """As `IndexStore.has_mask`."""
        number, own = self._place(row)
        return self.stores[number].has_mask(own)

    def mask(self, row: int) -> NDArray[Any] | None:
        """As `IndexStore.mask`; its values are of the vocabulary of the group."""
        number, own = self._place(row)
        mask = self.stores[number].mask(own)
        return None if mask is None else self._translations[number](mask)

    def support(self, row: int, score: float | None = None) -> Support:
        """As `IndexStore.support`; its values are of the vocabulary of the group."""
        number, own = self._place(row)
        support = self.stores[number].support(own, score)
        translate = self._translations[number]
        names = {translate.values[value]: name for value, name in support.names.items()}
        return dataclasses.replace(
            support, mask=translate(support.mask), names=dict(sorted(names.items()))
        )

    def neighbours(
        self, queries: NDArray[Any], k: int, rows: NDArray[Any] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the k most similar rows of each query; see `Searcher.neighbours`.

        Every index gives its k best, so that none of the k best of all is missed.
        """
        chosen = None if rows is None else self._chosen(rows)
        found = []
        for store, start in zip(self.stores, self._starts.tolist(), strict=False):
            own = None if chosen is None else chosen[start : start + len(store)]
            scores, ids = store.neighbours(queries, k, None if own is None or own.all() else own)
            found.append((scores, np.where(ids < 0, ids, ids + start)))
        scores = np.concatenate([scores for scores, _ in found], axis=1)
        ids = np.concatenate([ids for _, ids in found], axis=1)
        order = np.lexsort((ids, -scores), axis=-1)[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)

    def info(self) -> dict[str, Any]:
        """Return what `medretrieval info` prints: JSON-able."""
        infos = [store.info() for store in self.stores]
        shown = (
            "path",
            "name",
            "part",
            "index",
            "exact",
            "recall",
            "counts",
            "files",
            "bytes",
            "embedders_here",
            "memories",
        )
        return {
            "path": [str(path) for path in self.paths],
            **self.manifest.to_json(),
            "files": sum(info["files"] for info in infos),
            "bytes": sum(info["bytes"] for info in infos),
            "checked": infos[0]["checked"],
            "exact": all(info["exact"] for info in infos),
            "stored_faiss_index": all(info["stored_faiss_index"] for info in infos),
            "indexes": [{key: info[key] for key in shown if key in info} for info in infos],
        }

    def _place(self, row: int) -> tuple[int, int]:
        """The number of the index that has a row, and the row there."""
        if not 0 <= row < len(self):
            raise UsageError(f"row {row} does not exist; the indexes have rows 0..{len(self) - 1}")
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return number, int(row - self._starts[number])

    def _chosen(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        rows = np.asarray(rows)
        n = len(self)
        if rows.dtype == np.bool_:
            if rows.shape != (n,):
                raise UsageError(f"the row filter has shape {rows.shape}, the indexes {n} rows")
            return rows
        if rows.size and (rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= n):
            raise UsageError(f"the row filter names rows outside 0..{n - 1}")
        chosen = np.zeros(n, np.bool_)
        chosen[rows.astype(np.int64)] = True
        return chosen


def _together(
    manifests: Sequence[Manifest], vocabulary: Mapping[int, str], patients: int
) -> Manifest:
    """What several manifests say together."""
    first = manifests[0]
    counts = [manifest.counts for manifest in manifests]
    kinds = list(dict.fromkeys(manifest.index_kind for manifest in manifests))
    same = all(m.index_parameters == first.index_parameters for m in manifests)
    splits = [manifest.split for manifest in manifests if manifest.split is not None]
    return dataclasses.replace(
        first,
        name=join_texts(manifest.name for manifest in manifests),
        index_kind=", ".join(kinds),
        index_parameters=first.index_parameters if same and len(kinds) == 1 else {},
        counts=Counts(
            volumes=sum(c.volumes for c in counts),
            patients=patients,
            slices=sum(c.slices for c in counts),
            annotated_slices=sum(c.annotated_slices for c in counts),
            skipped=sum(c.skipped for c in counts),
        ),
        vocabulary=vocabulary,
        label_counts=_added(manifest.label_counts for manifest in manifests),
        modalities=_added(manifest.modalities for manifest in manifests),
        regions=_added(manifest.regions for manifest in manifests),
        license=join_texts(manifest.license for manifest in manifests),
        source=join_texts(manifest.source for manifest in manifests),
        split=join_texts(splits) if len(splits) == len(manifests) else None,
        files={},
        version=1,
        changes=(),
        part=None,
        index_reason=None,
        index_request=None,
        recall=None,
        others=_others(manifests),
    )


def _others(manifests: Sequence[Manifest]) -> dict[str, EmbeddingSet]:
    """The further embedders by which all of the indexes could be opened, by the same name."""
    return {
        name: dataclasses.replace(entry, index_reason=None, index_request=None, recall=None)
        for name, entry in manifests[0].others.items()
        if all(same_embedder(entry.embedder, m.others) == name for m in manifests)
    }


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return dict(sorted(total.items()))
