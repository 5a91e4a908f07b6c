"""What `engine` needs of a stored index; `medretrieval.index.IndexStore` has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medretrieval.types import EmbedderIdentity, SlicePolicy, Support


class Manifest(Protocol):
    """What a search needs to know of an index."""

    @property
    def embedder(self) -> EmbedderIdentity: ...
    @property
    def slices(self) -> SlicePolicy: ...


class Store(Protocol):
    """What a search needs of a stored index (`medretrieval.index.IndexStore`).

    Columns have one entry per row: volume (n,) integers into `volume_ids`; patient_id, modality and
    region (n,) text; slice_index (n,) integers; position_mm (n,) float, NaN where unknown; labels n
    tuples of names; annotated (n,) bool; embeddings (n, dim), rows of norm 1.
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
    def patient_id(self) -> NDArray[Any]: ...
    @property
    def modality(self) -> NDArray[Any]: ...
    @property
    def region(self) -> NDArray[Any]: ...
    @property
    def slice_index(self) -> NDArray[Any]: ...
    @property
    def position_mm(self) -> NDArray[Any]: ...
    @property
    def labels(self) -> Sequence[tuple[str, ...]]: ...
    @property
    def annotated(self) -> NDArray[np.bool_]: ...
    @property
    def embeddings(self) -> NDArray[Any]: ...
    def pseudonym(self, patient_id: str) -> str: ...
    def support(self, row: int, score: float | None = None) -> Support: ...
    def neighbours(
        self, queries: NDArray[np.float32], k: int, rows: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
