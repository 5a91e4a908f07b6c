"""The query: slices of a volume as embeddings, made once and searched many times."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medretrieval.errors import EmbedderMismatchError, InputError, UsageError
from medretrieval.retrieval.database import QuerySlices
from medretrieval.retrieval.duplicates import thumbnail
from medretrieval.retrieval.identity import check_identity
from medretrieval.retrieval.selection import Slices, runs
from medretrieval.retrieval.whole import refuse_slices
from medretrieval.similarity import normalise
from medretrieval.types import (
    Embedder,
    EmbedderIdentity,
    Progress,
    SlicePolicy,
    Volume,
    VolumeEmbedder,
    no_progress,
)

BATCH = 32  # for embedders that do not say which batch size suits them


@dataclass(frozen=True, eq=False, kw_only=True)
class QueryEmbeddings:
    """Embedded slices of one image or volume.

    Attributes:
        embeddings: (n, dim) float32, rows of norm 1.
        slice_index: (n,) int64, index of each slice in its volume.
        position_mm: n world coordinates along the sliced direction, None where unknown.
        slice_count: number of slices of the volume, embedded or not.
        name: of the volume, for messages and results.
        identity: the embedder that made them, None if unknown: then only `dim` is checked.
        images: the n slices as embedded, (H, W) or (H, W, 3) uint8, or None if not kept.
        orientation: how the slices were turned before, a name of `imaging.ORIENTATIONS`.
        through_mm: distance of neighbouring slices, None where unknown.
        labels: names on each of the n slices, None where unknown.
        patient: id of the patient as the searched index stores it, where the query is a case of it.
        thumbnails: (n, 32, 32) uint8, the slices made small (`duplicates.thumbnail`), or None.

    Of an embedder of whole volumes there is one embedding, and `slice_index` names the slice that
    stands for the volume, which is the middle one.
    """

    embeddings: NDArray[np.float32]
    slice_index: NDArray[np.int64]
    position_mm: tuple[float | None, ...]
    slice_count: int
    name: str = "query"
    identity: EmbedderIdentity | None = None
    images: tuple[NDArray[np.uint8], ...] | None = None
    orientation: str = "as stored"
    through_mm: float | None = None
    labels: tuple[tuple[str, ...], ...] | None = None
    patient: str | None = None
    thumbnails: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    @property
    def slices(self) -> Slices:
        """The slices that there are to choose from."""
        order = np.argsort(self.slice_index, kind="stable").tolist()
        return Slices(
            name=self.name,
            index=self.slice_index[order],
            count=self.slice_count,
            through_mm=self.through_mm,
            labels=None if self.labels is None else [self.labels[place] for place in order],
        )

    def only(self, indices: ArrayLike) -> QueryEmbeddings:
        """The same query, reduced to some of its slices, in their order here.

        Args:
            indices: one slice index or several; those that were not embedded are not there.

        Raises:
            UsageError: none of them is among the embedded ones.
        """
        places = np.flatnonzero(np.isin(self.slice_index, indices)).tolist()
        if not places:
            raise UsageError(
                f"slice {runs(np.ravel(indices).tolist())} of {self.name} is not among the "
                f"query's slices: expected one of {runs(self.slice_index.tolist())}"
            )
        if len(places) == len(self):
            return self
        return replace(
            self,
            embeddings=self.embeddings[places],
            slice_index=self.slice_index[places],
            position_mm=tuple(self.position_mm[place] for place in places),
            images=None if self.images is None else tuple(self.images[i] for i in places),
            labels=None if self.labels is None else tuple(self.labels[i] for i in places),
            thumbnails=None if self.thumbnails is None else self.thumbnails[places],
        )


# A path, "case:VOLUME_ID" for a case of the index, a volume, or embeddings: as `QueryEmbeddings`,
# as an array (n, dim) of all slices of a volume, or as a tuple of such an array, n slice indices
# and n positions in mm.
Query = (
    Volume | QueryEmbeddings | str | Path | tuple[ArrayLike, Sequence[int], Sequence[float | None]]
)


def from_arrays(
    embeddings: ArrayLike,
    slice_index: Sequence[int] | NDArray[Any] | None = None,
    position_mm: Sequence[float | None] | None = None,
    *,
    slice_count: int | None = None,
    name: str = "query",
    identity: EmbedderIdentity | None = None,
) -> QueryEmbeddings:
    """A query from embeddings made elsewhere.

    Args:
        embeddings: (n, dim), n >= 1, of any norm but zero; they are normalised.
        slice_index: n indices in the volume, all different, default 0..n-1.
        position_mm: n coordinates, default unknown.
        slice_count: slices of the whole volume, default up to the highest index given.

    Raises:
        InputError: no rows, rows that are zero or not finite, or sequences of other lengths.
    """
    unit = normalise(embeddings)
    n = len(unit)
    if n == 0:
        raise InputError("the query has no slices; expected at least one embedding")
    index = np.arange(n) if slice_index is None else np.asarray(slice_index)
    positions = (None,) * n if position_mm is None else tuple(position_mm)
    if index.shape != (n,) or len(positions) != n:
        raise InputError(
            f"{n} embeddings, {index.size} slice indices and {len(positions)} positions; "
            "expected as many of each"
        )
    index = index.astype(np.int64)
    if index.min() < 0 or len(np.unique(index)) < n:
        raise InputError("slice indices of a query must be >= 0 and all different")
    highest = int(index.max())
    if slice_count is not None and slice_count <= highest:
        raise InputError(f"slice_count is {slice_count}, but there is a slice {highest}")
    return QueryEmbeddings(
        embeddings=unit,
        slice_index=index,
        position_mm=positions,
        slice_count=highest + 1 if slice_count is None else slice_count,
        name=name,
        identity=identity,
    )


def embed_query(
    volume: Volume,
    policy: SlicePolicy,
    embedder: Embedder | VolumeEmbedder,
    *,
    indices: Iterable[int] | None = None,
    orientation: str = "as stored",
    keep_images: bool = False,
    progress: Progress = no_progress,
) -> QueryEmbeddings:
    """Make and embed the slices of a volume, in batches, or the volume at once.

    Args:
        volume: the query image.
        policy: how slices are made: that of the index.
        embedder: of slices, or of whole volumes.
        indices: which slices, default all; never with an embedder of whole volumes.
        orientation: how slices are turned before, a name of `imaging.ORIENTATIONS`; of a volume
            that is embedded at once only "as stored".
        keep_images: keep the slices as embedded, or the one that stands for the volume.

    Raises:
        UsageError: a slice that does not exist, or no slices asked for.
        InputError: the embedder gave rows that are zero or not finite, or the image is no volume
            that it can embed at once.
    """
    if embedder.identity.unit == "volume":
        refuse_slices(embedder.identity, indices)
        whole = cast(VolumeEmbedder, embedder)
        return _embed_whole(volume, policy, whole, keep_images=keep_images, progress=progress)
    embedder = cast(Embedder, embedder)
    # Imported when used: reading images loads packages that a search by embeddings does not need.
    from medretrieval.imaging import embedded_part, make_slices, slice_axis, turn

    axis = slice_axis(volume.grid, policy.axis)
    count = volume.grid.shape[axis]
    wanted = range(count) if indices is None else [int(i) for i in indices]
    if not len(wanted):
        raise UsageError(f"no slices of {volume.name} were asked for; it has 0..{count - 1}")
    slices = make_slices(volume, policy, indices=wanted)
    size = max(1, int(getattr(embedder, "batch_size", BATCH)))
    message = f"embedding {volume.name}"
    index: list[int] = []
    positions: list[float | None] = []
    images: list[NDArray[np.uint8]] = []
    thumbnails: list[NDArray[np.uint8]] = []
    parts: list[NDArray[np.float32]] = []
    progress(0, len(wanted), message)
    while batch := list(islice(slices, size)):
        turned = [np.ascontiguousarray(turn(s.image, orientation)) for s in batch]
        parts.append(embedder.embed_batch([embedded_part(image, policy.crop) for image in turned]))
        index += [s.index for s in batch]
        positions += [s.position_mm for s in batch]
        thumbnails += map(thumbnail, turned)
        if keep_images:
            images += turned
        progress(len(index), len(wanted), message)
    query = from_arrays(
        np.concatenate(parts),
        index,
        positions,
        slice_count=count,
        name=volume.name,
        identity=embedder.identity,
    )
    return replace(
        query,
        images=tuple(images) if keep_images else None,
        orientation=orientation,
        thumbnails=np.stack(thumbnails),
        through_mm=volume.grid.spacing[axis] if volume.grid.spacing_known else None,
    )


def _embed_whole(
    volume: Volume,
    policy: SlicePolicy,
    embedder: VolumeEmbedder,
    *,
    keep_images: bool,
    progress: Progress,
) -> QueryEmbeddings:
    """One embedding; the middle slice stands for the volume."""
    # Imported when used, as above.
    from medretrieval.imaging import make_slices, slice_axis

    message = f"embedding {volume.name}"
    progress(0, 1, message)
    embedding = embedder.embed_volume(volume)
    progress(1, 1, message)
    count = volume.grid.shape[slice_axis(volume.grid, policy.axis)]
    (middle,) = make_slices(volume, policy, indices=[count // 2])
    query = from_arrays(
        embedding[None],
        [middle.index],
        [middle.position_mm],
        slice_count=count,
        name=volume.name,
        identity=embedder.identity,
    )
    return replace(query, images=(middle.image,)) if keep_images else query


def searched(query: QueryEmbeddings, part: tuple[int, int] | None = None) -> QuerySlices:
    """What the modes rank by.

    Args:
        part: as `QuerySlices.part`, None for the whole volume. A volume embedded at once is a part
            of one slice, which has the weight of a middle slice.
    """
    if query.identity is not None and query.identity.unit == "volume":
        part = (int(query.slice_index[0]), 1)
    return QuerySlices(
        embeddings=query.embeddings,
        slice_index=query.slice_index,
        part=(0, query.slice_count) if part is None else part,
    )


def read_query(
    query: Query, *, channel: int = 0, allow_one_slice: bool = False
) -> Volume | QueryEmbeddings:
    """Read a path, wrap arrays, leave the rest as it is.

    Args:
        query: see `Query`.
        channel, allow_one_slice: for a path, as in `imaging.read_volume`.

    Raises:
        InputError: the file cannot be read, or the embeddings cannot be used.
    """
    if isinstance(query, Volume | QueryEmbeddings):
        return query
    if isinstance(query, str | Path):
        from medretrieval.imaging import read_volume

        return read_volume(query, channel=channel, allow_one_slice=allow_one_slice)
    return from_arrays(*query) if isinstance(query, tuple) else from_arrays(query)


def check_comparable(index: EmbedderIdentity, query: QueryEmbeddings) -> None:
    """Refuse a query whose embeddings cannot be compared with those of an index.

    Raises:
        EmbedderMismatchError: they are of another embedder or of another length.
        InputError: several embeddings, where one is of a whole volume.
    """
    if query.identity is not None:
        check_identity(index, query.identity)
    if index.unit == "volume" and len(query) > 1:
        raise InputError(
            f"the query has {len(query)} embeddings, but in this index one embedding is of a whole "
            "volume; search with one volume at a time"
        )
    dim = query.embeddings.shape[1]
    if dim != index.dim:
        raise EmbedderMismatchError(
            f"the query's embeddings have {dim} components, those of the index {index.dim}; "
            f"embed the query with {index.name}, as the index was"
        )
