"""What `engine` needs of a stored index; `medretrieval.index.IndexStore` has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medretrieval.index.columns import Coded, LabelColumn
from medretrieval.types import EmbedderIdentity, SlicePolicy, Support


class Manifest(Protocol):
    """What a search needs to know of an index."""

    @property
    def embedder(self) -> EmbedderIdentity: ...
    @property
    def slices(self) -> SlicePolicy: ...


class Vectors(Protocol):
    """Rows of numbers: an array, a memory map, or several of them one after the other.

    `[a:b]`, `[row]` and `[rows]` (integers) give arrays in memory, of the same dtype.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any: ...


class Store(Protocol):
    """What a search needs of a stored index (`medretrieval.index.IndexStore`).

    Columns have one entry per row: volume (n,) integers into `volume_ids`; patient (pseudonyms),
    modality, region and each of `attributes` (extra columns by name) text as codes; slice_index
    (n,) integers; position_mm (n,) float, NaN where unknown; spacing (n, 3) float, NaN where
    unknown; labels n tuples of names; annotated (n,) bool; embeddings (n, dim), rows of norm 1.
    """

    @property
    def manifest(self) -> Manifest: ...
    @property
    def vocabulary(self) -> Mapping[int, str]: ...
    @property
    def volume_ids(self) -> Sequence[str]: ...
    @property
    def volume(self) -> NDArray[Any]: ...
    @property
    def patient(self) -> Coded: ...
    @property
    def modality(self) -> Coded: ...
    @property
    def region(self) -> Coded: ...
    @property
    def attributes(self) -> Mapping[str, Coded]: ...
    @property
    def slice_index(self) -> NDArray[Any]: ...
    @property
    def position_mm(self) -> NDArray[Any]: ...
    @property
    def spacing(self) -> NDArray[Any]: ...
    @property
    def labels(self) -> LabelColumn: ...
    @property
    def annotated(self) -> NDArray[np.bool_]: ...
    @property
    def embeddings(self) -> Vectors: ...
    def pseudonyms(self, patient_id: str) -> tuple[str, ...]:
        """The names that a patient of the source can have in `patient`."""
        ...

    def row(self, volume_id: str, slice_index: int) -> int:
        """The row of a slice; UsageError if there is none."""
        ...

    def image(self, row: int) -> NDArray[np.uint8]:
        """The picture of a row, (H, W) or (H, W, 3)."""
        ...

    def fetched_with(self, row: int) -> str | None:
        """The file that has to be fetched for the picture of a row; None of an index on disk."""
        ...

    def support(self, row: int, score: float | None = None) -> Support:
        """A row with picture and mask; UsageError if it has no mask."""
        ...

    def neighbours(
        self, queries: NDArray[np.float32], k: int, rows: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k most similar rows of each query, cosines and ids (m, k); -inf and -1 if none."""
        ...
