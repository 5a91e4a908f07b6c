"""Which rows of two indexes are of the same slice, and in what they differ.

Pictures are read a row group at a time, and only from files that the two do not have in common.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medretrieval.errors import IndexFormatError
from medretrieval.index.columns import Coded
from medretrieval.index.embedding_sets import EmbeddingSet
from medretrieval.index.files import SLICES
from medretrieval.index.store import IndexStore
from medretrieval.index.tensors import stored_embeddings
from medretrieval.index.vocabulary import MAX_VALUE
from medretrieval.types import Progress

# In the order in which they are told.
PARTS = (
    *("slices", "order", "patient", "modality", "region", "position", "spacing", "attributes"),
    *("labels", "pictures", "masks", "embeddings"),
)
_BLOCK = 4096
_DIGEST = 16


@dataclass(frozen=True, kw_only=True)
class VolumeChange:
    """In what the rows of a volume differ between two indexes.

    Attributes:
        volume_id: its name in both.
        parts: of `PARTS`, in that order. "slices": one has slices that the other lacks; all other
            parts are of the slices that both have.
        slices: how many rows each has.
        distance: the largest cosine distance between two embeddings of one slice by one embedder;
            None where none can be compared.
    """

    volume_id: str
    parts: tuple[str, ...]
    slices: tuple[int, int]
    distance: float | None


@dataclass(frozen=True, eq=False)
class Pairs:
    """The slices that two indexes have in common.

    Attributes:
        names: of the volumes that both have, in the order of the first.
        volume: (n,) place in `names` of each slice.
        rows: (n,) row in either index.
        counts: for either, (len(names),) how many rows it has of each volume.
        order: (len(names),) bool, the slices of the volume come in another order.
    """

    names: list[str]
    volume: NDArray[np.int64]
    rows: tuple[NDArray[np.int64], NDArray[np.int64]]
    counts: tuple[NDArray[np.int64], NDArray[np.int64]]
    order: NDArray[np.bool_]

    @classmethod
    def of(cls, old: IndexStore, new: IndexStore) -> Pairs:
        """Pair the rows by volume and slice; of a slice that is there twice, in order."""
        known = set(new.volume_ids)
        names = [name for name in old.volume_ids if name in known]
        keys = [_keys(store, names) for store in (old, new)]
        every, place = np.unique(
            np.concatenate([key for key, _ in keys]), axis=0, return_inverse=True
        )
        place = place.reshape(-1)
        split = len(keys[0][0])
        both, ours, theirs = np.intersect1d(
            place[:split], place[split:], assume_unique=True, return_indices=True
        )
        rows = keys[0][1][ours], keys[1][1][theirs]
        volume = every[both, 0]
        # Of a volume whose slices keep their order, both rows ascend together.
        by_row = np.lexsort((rows[0], volume))
        turned = np.diff(rows[1][by_row]) < 0
        same = np.diff(volume[by_row]) == 0
        order = np.zeros(len(names), np.bool_)
        order[volume[by_row][1:][turned & same]] = True
        counts = [np.bincount(key[:, 0], minlength=len(names)) for key, _ in keys]
        return cls(names, volume, rows, (counts[0], counts[1]), order)

    def volumes_where(self, differ: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(len(names),) the volumes of which at least one slice is marked.

        Args:
            differ: (n,) marks of slices.
        """
        found = np.zeros(len(self.names), np.bool_)
        found[self.volume[differ]] = True
        return found


def _keys(store: IndexStore, names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of some volumes: (m, 3) volume, slice, how many-th of this slice; (m,) row."""
    places = {name: place for place, name in enumerate(names)}
    codes = np.array([places.get(name, -1) for name in store.volume_ids], np.int64)[store.volume]
    rows = np.flatnonzero(codes >= 0)
    volume, number = codes[rows], store.slice_index[rows]
    order = np.lexsort((rows, number, volume))
    sorted_volume, sorted_number = volume[order], number[order]
    first = np.ones(len(rows), np.bool_)
    first[1:] = (np.diff(sorted_volume) != 0) | (np.diff(sorted_number) != 0)
    starts = np.maximum.accumulate(np.where(first, np.arange(len(rows)), 0))
    occurrence = np.arange(len(rows)) - starts
    return np.stack([sorted_volume, sorted_number, occurrence], axis=1), rows[order]


@dataclass(frozen=True, eq=False)
class RowChanges:
    """What differs in the volumes that two indexes have in common.

    Attributes:
        changed: the volumes that differ, in the order of the first index.
        same: how many do not.
        distances: for every embedder of the first index that is compared, the largest cosine
            distance, by name.
    """

    changed: tuple[VolumeChange, ...]
    same: int
    distances: dict[str, float]


def compare_rows(
    old: IndexStore,
    new: IndexStore,
    *,
    sets: Sequence[tuple[EmbeddingSet, EmbeddingSet]],
    progress: Progress,
) -> RowChanges:
    """Compare the slices that two open indexes have in common.

    Args:
        sets: embeddings that can be compared, of either.
        progress: called with what is done of reading the pictures.

    Raises:
        IndexFormatError: a file is damaged.
    """
    pairs = Pairs.of(old, new)
    found = {
        "slices": _lacking(pairs),
        "order": pairs.order,
        **{part: pairs.volumes_where(differ) for part, differ in _columns(old, new, pairs)},
    }
    found["pictures"] = _unlike(old, new, pairs, "image", progress)
    found["masks"] = _unlike(old, new, pairs, "mask", progress)
    distances = np.full(len(pairs.names), -1.0)
    largest = {}
    found["embeddings"] = np.zeros(len(pairs.names), np.bool_)
    for ours, theirs in sets:
        distance, differ = _distances(old, new, pairs, ours, theirs)
        found["embeddings"] |= pairs.volumes_where(differ)
        np.maximum.at(distances, pairs.volume, distance)
        largest[ours.embedder.name] = float(distance.max(initial=0.0))
    changed = []
    for number in np.flatnonzero(np.any([found[part] for part in PARTS], axis=0)).tolist():
        changed.append(
            VolumeChange(
                volume_id=pairs.names[number],
                parts=tuple(part for part in PARTS if found[part][number]),
                slices=(int(pairs.counts[0][number]), int(pairs.counts[1][number])),
                distance=None if distances[number] < 0 else float(distances[number]),
            )
        )
    return RowChanges(tuple(changed), len(pairs.names) - len(changed), largest)


def _lacking(pairs: Pairs) -> NDArray[np.bool_]:
    """(volumes,) where one index has slices that the other lacks."""
    common = np.bincount(pairs.volume, minlength=len(pairs.names))
    return np.asarray((pairs.counts[0] != common) | (pairs.counts[1] != common))


def _columns(
    old: IndexStore, new: IndexStore, pairs: Pairs
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """For every part but pictures, masks and embeddings: (n,) which slices differ in it."""
    a, b = pairs.rows

    def numbers(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.bool_]:
        unlike = (ours[a] != theirs[b]) & ~(np.isnan(ours[a]) & np.isnan(theirs[b]))
        return unlike if unlike.ndim == 1 else np.asarray(unlike.any(axis=1))

    def names(ours: Coded, theirs: Coded) -> NDArray[np.bool_]:
        both = Coded.join([ours, theirs]).codes
        return np.asarray(both[: len(ours)][a] != both[len(ours) :][b])

    # Under two names of an index one patient has two pseudonyms.
    same_key = old.manifest.pseudonym_keys == new.manifest.pseudonym_keys
    patient = names(old.patient, new.patient)
    yield "patient", patient if same_key else np.zeros_like(patient)
    yield "modality", names(old.modality, new.modality)
    yield "region", names(old.region, new.region)
    yield "position", numbers(old.position_mm, new.position_mm)
    yield "spacing", numbers(old.spacing, new.spacing)
    unlike = np.zeros(len(a), np.bool_)
    for name in old.attributes:
        if name in new.attributes:
            unlike |= names(old.attributes[name], new.attributes[name])
    yield "attributes", unlike
    places: dict[frozenset[str], int] = {}
    sets = [
        np.array([places.setdefault(frozenset(row), len(places)) for row in store.labels], np.int64)
        for store in (old, new)
    ]
    yield "labels", np.asarray(sets[0][a] != sets[1][b])


def _unlike(
    old: IndexStore, new: IndexStore, pairs: Pairs, column: str, progress: Progress
) -> NDArray[np.bool_]:
    """(volumes,) where a slice has another picture or mask: other pixels, not only other bytes."""
    common = {entry.sha256 for entry in old.manifest.files.values()}
    common &= {entry.sha256 for entry in new.manifest.files.values()}
    a, b = pairs.rows
    ours, theirs = _digests(old, column, common, progress), _digests(new, column, common, progress)
    ours, theirs = ours[a], theirs[b]
    found = pairs.volumes_where(ours.any(axis=1) != theirs.any(axis=1))
    other = {"image": _other_picture, "mask": _other_mask}[column](old, new)
    for number in np.flatnonzero((ours != theirs).any(axis=1)).tolist():
        volume = pairs.volume[number]
        if not found[volume]:  # one slice is enough to say so
            found[volume] = other(int(a[number]), int(b[number]))
    return found


def _digests(
    store: IndexStore, column: str, common: set[str], progress: Progress
) -> NDArray[np.uint8]:
    """(rows, 16) a hash of each stored picture, of a file in common of its place in it; 0: none."""
    digests = np.zeros((len(store), _DIGEST), np.uint8)
    done, what = 0, {"image": "pictures compared", "mask": "masks compared"}[column]
    for name in sorted(name for name in store.manifest.files if name.startswith(SLICES)):
        path, sha256 = store.path / name, store.manifest.files[name].sha256
        first = done
        try:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    progress(done, len(store), what)
                    count = file.metadata.row_group(group).num_rows
                    cells: Iterable[bytes | None]
                    if sha256 in common:
                        cells = (f"{sha256} {done - first + n}".encode() for n in range(count))
                    else:
                        table = file.read_row_group(group, columns=[column], use_threads=False)
                        cells = (cell and cell["bytes"] for cell in table.column(0).to_pylist())
                    for number, cell in enumerate(cells, start=done):
                        if cell is not None:
                            digest = hashlib.blake2b(cell, digest_size=_DIGEST).digest()
                            digests[number] = np.frombuffer(digest, np.uint8)
                    done += count
        except (OSError, pa.ArrowException) as error:
            raise IndexFormatError(f"{path} cannot be read ({error}); fetch it again") from None
    progress(done, len(store), what)
    return digests


def _other_picture(old: IndexStore, new: IndexStore) -> Callable[[int, int], bool]:
    return lambda a, b: not np.array_equal(old.image(a), new.image(b))


def _other_mask(old: IndexStore, new: IndexStore) -> Callable[[int, int], bool]:
    """A test of two rows: neither by value nor by name do their masks show the same."""
    places: dict[str, int] = {}
    tables = []
    for store in (old, new):
        table = np.zeros(MAX_VALUE + 1, np.int64)
        for value, name in store.vocabulary.items():
            table[value] = places.setdefault(name, len(places) + 1)
        tables.append(table)

    def differ(a: int, b: int) -> bool:
        ours, theirs = old.mask(a), new.mask(b)
        if ours is None or theirs is None:
            return ours is not theirs
        if np.array_equal(ours, theirs):
            return False
        return not np.array_equal(tables[0][ours], tables[1][theirs])

    return differ


def _distances(
    old: IndexStore, new: IndexStore, pairs: Pairs, ours: EmbeddingSet, theirs: EmbeddingSet
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(n,) the cosine distances of embeddings of the same slices; (n,) which are not equal.

    Those of an index with float32 and of one with float16 are compared as float16.
    """
    stored = [
        stored_embeddings(
            store.path / entry.embeddings_file,
            rows=len(store),
            dim=entry.embedder.dim,
            dtype=entry.dtype,
        )
        for store, entry in ((old, ours), (new, theirs))
    ]
    dtype = np.float16 if "float16" in (ours.dtype, theirs.dtype) else np.float32
    distance = np.zeros(len(pairs.volume))
    differ = np.zeros(len(pairs.volume), np.bool_)
    for first in range(0, len(distance), _BLOCK):
        block = slice(first, first + _BLOCK)
        x, y = (array[rows[block]] for array, rows in zip(stored, pairs.rows, strict=True))
        unlike = (x.astype(dtype) != y.astype(dtype)).any(axis=1)
        differ[block] = unlike
        x, y = x[unlike].astype(np.float64), y[unlike].astype(np.float64)
        cosine = (x * y).sum(axis=1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
        distance[block][unlike] = np.clip(1 - cosine, 0, 2)
    return distance, differ
