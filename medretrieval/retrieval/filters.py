"""Which slices of an index may be found: filters as masks over its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import UsageError


@dataclass(frozen=True, eq=False, kw_only=True)
class Columns:
    """What slices are filtered by.

    Attributes:
        volume: (rows,) number of each slice's volume.
        patient_id, modality, region: (rows,) text.
        labels: for each row the names on it.
    """

    volume: NDArray[Any]
    patient_id: NDArray[Any]
    modality: NDArray[Any]
    region: NDArray[Any]
    labels: Sequence[tuple[str, ...]]

    @cached_property
    def rows_with(self) -> dict[str, NDArray[np.int64]]:
        """Label name -> the rows that carry it."""
        rows: dict[str, list[int]] = {}
        for row, names in enumerate(self.labels):
            for name in names:
                rows.setdefault(name, []).append(row)
        return {name: np.array(found, dtype=np.int64) for name, found in rows.items()}

    @cached_property
    def known(self) -> dict[str, list[str]]:
        """The values that occur in the columns modality and region."""
        return {
            "modality": np.unique(self.modality).tolist(),
            "region": np.unique(self.region).tolist(),
        }

    def allowed(
        self,
        *,
        modality: str | None = None,
        region: str | None = None,
        labels: Sequence[str] | None = None,
        without_patients: Sequence[str] = (),
    ) -> NDArray[np.bool_]:
        """The slices that pass every filter given.

        Args:
            modality, region: only these, in upper or lower case.
            labels: only slices that show at least one of them.
            without_patients: patient ids, as in the column, that are left out.

        Returns:
            (rows,) bool, a new array; all False where the filters leave nothing together.

        Raises:
            UsageError: a modality, region or label that no slice has, or no labels at all.
        """
        mask = np.ones(len(self.volume), dtype=np.bool_)
        filters = (("modality", modality, self.modality), ("region", region, self.region))
        for kind, wanted, column in filters:
            if wanted is not None:
                mask &= np.isin(column, _meant(kind, wanted, self.known[kind]))
        if len(without_patients):
            mask &= ~np.isin(self.patient_id, without_patients)
        if labels is not None:
            mask &= self.showing(labels)
        return mask

    def showing(self, labels: Sequence[str]) -> NDArray[np.bool_]:
        """(rows,) which slices show at least one of the labels; raises as `allowed`."""
        names = (labels,) if isinstance(labels, str) else tuple(labels)
        if not names:
            raise UsageError("the filter by labels names none; leave it out to search them all")
        mask = np.zeros(len(self.volume), dtype=np.bool_)
        for label in names:
            for name in _meant("label", label, self.rows_with):
                mask[self.rows_with[name]] = True
        return mask

    def in_volumes_showing(self, labels: Sequence[str]) -> NDArray[np.bool_]:
        """(rows,) the slices of volumes in which one of the labels occurs; raises as `allowed`."""
        return np.isin(self.volume, self.volume[self.showing(labels)])


def _meant(kind: str, wanted: str, known: Iterable[str]) -> list[str]:
    """The known values that `wanted` means: the exact one, else all that differ in case only.

    Raises:
        UsageError: there is none; the message lists what there is.
    """
    known = sorted(known)
    if wanted in known:
        return [wanted]
    found = [name for name in known if name.casefold() == wanted.casefold()]
    if not found:
        there = f"it has {', '.join(known)}" if known else "none has any"
        raise UsageError(f"no slice of the index has the {kind} {wanted!r}; {there}")
    return found
