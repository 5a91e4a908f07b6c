from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medretrieval.index.columns import Coded, LabelColumn, RowMap
from medretrieval.similarity import normalise
from medretrieval.types import EmbedderIdentity, SlicePolicy, Support


def identity(dim: int, **changes: Any) -> EmbedderIdentity:
    fields: dict[str, Any] = {
        "name": "toy",
        "weights": "none",
        "revision": "1",
        "weights_sha256": "0" * 64,
        "preprocessing": {"size": 4, "mean": [0.5]},
        "pooling": "grid",
        "dim": dim,
    }
    return EmbedderIdentity(**{**fields, **changes})


@dataclass(frozen=True)
class ToyManifest:
    embedder: EmbedderIdentity
    slices: SlicePolicy
    name: str = "toy"


@dataclass
class ToyStore:
    """An index in memory: exhaustive search in float32, ties in the order of the rows."""

    embeddings: NDArray[np.float32]
    volume_ids: list[str]
    volume: NDArray[np.int64]
    slice_index: NDArray[np.int64]
    patient: Coded
    modality: Coded
    region: Coded
    labels: LabelColumn
    annotated: NDArray[np.bool_]
    position_mm: NDArray[np.float64]
    spacing: NDArray[np.float64]
    manifest: ToyManifest
    attributes: dict[str, Coded] = field(default_factory=dict)
    vocabulary: dict[int, str] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)

    def pseudonyms(self, patient_id: str) -> tuple[str, ...]:
        return (f"hash-of-{patient_id}",)

    def row(self, volume_id: str, slice_index: int) -> int:
        return RowMap(self.volume_ids, self.volume, self.slice_index).row(volume_id, slice_index)

    def image(self, row: int) -> NDArray[np.uint8]:
        return np.zeros((2, 2), dtype=np.uint8)

    def fetched_with(self, row: int) -> None:
        return None

    def support(self, row: int, score: float | None = None) -> Support:
        picture = self.image(row)
        return Support(image=picture, mask=picture, names={}, key=str(row), score=score)

    def neighbours(
        self,
        queries: NDArray[np.float32],
        k: int,
        rows: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        self.asked.append(k)
        similar = queries @ self.embeddings.T
        if rows is not None:
            similar = np.where(rows, similar, -np.inf)
        order = np.argsort(-similar, axis=1, kind="stable")[:, :k]
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        found = np.full((len(queries), k), -1, dtype=np.int64)
        scores[:, : order.shape[1]] = np.take_along_axis(similar, order, axis=1)
        found[:, : order.shape[1]] = order
        found[~np.isfinite(scores)] = -1
        return scores, found


def toy_store(
    volumes: dict[str, Sequence[Sequence[float]]],
    *,
    order: Sequence[int] | None = None,
    volume_order: Sequence[int] | None = None,
    modality: dict[str, str] | None = None,
    region: dict[str, str] | None = None,
    patient: dict[str, str] | None = None,
    labels: dict[tuple[str, int], tuple[str, ...]] | None = None,
    attributes: dict[str, dict[str, str]] | None = None,
    unannotated: Sequence[str] = (),
) -> ToyStore:
    """A store of these volumes; `order` permutes its rows, `volume_order` its list of volumes.

    `attributes` is column -> volume -> value, "" where a volume has none.
    """
    cells = [(name, i, row) for name, rows in volumes.items() for i, row in enumerate(rows)]
    cells = [cells[i] for i in order] if order is not None else cells
    names = list(volumes)
    ids = [names[i] for i in volume_order] if volume_order is not None else names
    dim = len(cells[0][2])
    owners = [name for name, _, _ in cells]
    return ToyStore(
        embeddings=normalise([row for _, _, row in cells]),
        volume_ids=ids,
        volume=np.array([ids.index(name) for name in owners]),
        slice_index=np.array([i for _, i, _ in cells]),
        patient=Coded.of(f"hash-of-{(patient or {}).get(n, n)}" for n in owners),
        modality=Coded.of((modality or {}).get(n, "CT") for n in owners),
        region=Coded.of((region or {}).get(n, "chest") for n in owners),
        labels=LabelColumn.of((labels or {}).get((n, i), ()) for n, i, _ in cells),
        attributes={
            name: Coded.of(values.get(n, "") for n in owners)
            for name, values in (attributes or {}).items()
        },
        annotated=np.array([n not in unannotated for n in owners]),
        position_mm=np.array([2.5 * i if n != "nowhere" else np.nan for n, i, _ in cells]),
        spacing=np.array([(1.0, 1.0, 2.5 if n != "nowhere" else np.nan) for n in owners]),
        manifest=ToyManifest(identity(dim), SlicePolicy(axis="axial", window="identity")),
    )


class ToyEmbedder:
    """Embeds a picture as its 2 x 2 corner grey values plus one."""

    def __init__(self, **changes: Any) -> None:
        self.identity = identity(4, **changes)
        self.batch_size = 3
        self.batches: list[int] = []

    def embed_batch(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.batches.append(len(images))
        return normalise([1.0 + image[:2, :2].astype(float).ravel() for image in images])


@pytest.fixture(scope="session")
def make_store() -> Callable[..., ToyStore]:
    return toy_store


@pytest.fixture(scope="session")
def make_embedder() -> Callable[..., ToyEmbedder]:
    return ToyEmbedder


@pytest.fixture(scope="session")
def make_identity() -> Callable[..., EmbedderIdentity]:
    return identity
