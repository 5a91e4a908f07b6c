"""One query volume of a study, and what its slices are segmented from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medretrieval.evaluation.points import draw_points, generator
from medretrieval.evaluation.sets import QueryCase
from medretrieval.imaging.geometry import extract, slice_axis
from medretrieval.imaging.labels import read_labels
from medretrieval.imaging.readers import read_volume
from medretrieval.imaging.slices import make_slices
from medretrieval.retrieval.filters import Filters
from medretrieval.retrieval.query import embed_query
from medretrieval.types import LabelVolume, Slice, Volume

if TYPE_CHECKING:
    from medretrieval.retrieval.engine import Index
    from medretrieval.segmentation.prompts import Prompts


class Query:
    """A volume to segment; read and embedded when that is first needed.

    Args:
        case: its files and whose it is.
        index: where supports come from.
        every: only every n-th slice is scored.
        seed: of random supports and points.
        most: supports that a slice is given at most.
    """

    def __init__(self, case: QueryCase, index: Index, *, every: int, seed: int, most: int) -> None:
        self.case = case
        self._index = index
        self._every = every
        self._seed = seed
        self._most = most
        self._nearest: dict[int, list[int]] = {}

    @cached_property
    def volume(self) -> Volume:
        return read_volume(self.case.image, channel=self.case.channel, modality=self.case.modality)

    @cached_property
    def truth(self) -> LabelVolume:
        return read_labels(self.case.mask, reference=self.volume.grid)

    @cached_property
    def axis(self) -> int:
        """The stored axis that slices are taken across."""
        return slice_axis(self.volume.grid, self._index.manifest.slices.axis)

    @property
    def every_index(self) -> list[int]:
        """All slices."""
        return list(range(self.volume.grid.shape[self.axis]))

    @property
    def indices(self) -> list[int]:
        """The slices that are scored: every n-th, as far from both ends of the volume."""
        return self.every_index[(len(self.every_index) - 1) % self._every // 2 :: self._every]

    @property
    def patient(self) -> str:
        """A pseudonym: reports are shared."""
        return self._index.store.pseudonyms(self.case.patient_id)[0]

    def slices(self, indices: Sequence[int]) -> list[Slice]:
        """Slices as a segmenter sees them, with the true mask."""
        policy = self._index.manifest.slices
        return list(make_slices(self.volume, policy, labels=self.truth, indices=indices))

    def retrieved(self, k: int, indices: Sequence[int]) -> dict[int, list[int]]:
        """For every slice the rows of its k most similar annotated slices, best first.

        No slice is of the query's own patient.
        """
        missing = [index for index in indices if index not in self._nearest]
        if missing:
            policy, embedder = self._index.manifest.slices, self._index.embedder
            query = embed_query(self.volume, policy, embedder, indices=missing)
            own = set(self._index.store.pseudonyms(self.case.patient_id))
            known = not own.isdisjoint(self._index.store.patient.names)
            filters = Filters(exclude_patient=self.case.patient_id if known else None)
            found = self._index.supports_each(query.embeddings, self._most, filters=filters)
            for index, (rows, _) in zip(query.slice_index.tolist(), found, strict=True):
                self._nearest[index] = rows.tolist()
        return {index: self._nearest[index][:k] for index in indices}

    def random(self, k: int) -> dict[int, list[int]]:
        """For every slice the rows of k annotated slices of other patients, drawn uniformly.

        The first ones do not depend on how many more are drawn after them.
        """
        store = self._index.store
        own = store.patient.rows_where(store.pseudonyms(self.case.patient_id))
        rows: NDArray[np.intp] = np.flatnonzero(store.annotated & ~own)
        drawn = {}
        for index in self.indices:
            order = generator(self._seed, self.case.volume_id, index).permutation(rows)
            drawn[index] = order[:k].tolist()
        return drawn

    def points(
        self, labels: Mapping[int, str], positive: int, negative: int
    ) -> dict[int, dict[str, Prompts]]:
        """For every slice that truly shows a structure points on and beside it, by label.

        Args:
            labels: value in the truth -> name.
            positive, negative: how many of each, see `points.draw_points`.
        """
        prompts: dict[int, dict[str, Prompts]] = {}
        for index in self.indices:
            shown = extract(self.truth.voxels, self.truth.grid, self.axis, index)
            for value, label in labels.items():
                random = generator(self._seed, self.case.volume_id, index, label)
                drawn = draw_points(
                    shown == value, positive=positive, negative=negative, random=random
                )
                if drawn is not None:
                    prompts.setdefault(index, {})[label] = drawn
        return prompts
