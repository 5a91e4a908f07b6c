"""Which slices of an index may be found: filters as masks over its rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import UsageError, unknown_name
from medretrieval.index.columns import Coded, LabelColumn

logger = logging.getLogger(__name__)

_LISTED = 20  # names that an error message lists


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What may be found; a slice must pass every filter given.

    Values are compared exactly, or in upper or lower case where no slice has exactly that value.

    Attributes:
        modality, region: only slices of this modality or body region.
        labels: only slices that show at least one of these labels.
        patient: only this patient, by the id given when the index was built, or as stored.
        exclude_patient: not this patient, by either id. One who is not in the index excludes
            nothing.
        where: column -> value; "volume_id", "modality", "region" or a column of its own that the
            index stores.
    """

    modality: str | None = None
    region: str | None = None
    labels: Sequence[str] | None = None
    patient: str | None = None
    exclude_patient: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)


NO_FILTERS = Filters()


@dataclass(frozen=True, eq=False, kw_only=True)
class Columns:
    """What slices are filtered by. Everything is a mask over codes: milliseconds for 1.3 M rows.

    Attributes:
        volume: (rows,) number of each slice's volume, as `volume_ids` counts them.
        volume_ids: names of the volumes.
        patient, modality, region: one value for each row.
        labels: for each row the names on it.
        attributes: other stored columns.
        pseudonyms: gives the ids in the column of patients that an id of the source can have.
    """

    volume: NDArray[Any]
    volume_ids: Sequence[str]
    patient: Coded
    modality: Coded
    region: Coded
    labels: LabelColumn
    attributes: Mapping[str, Coded] = field(default_factory=dict)
    pseudonyms: Callable[[str], Sequence[str]] = lambda patient: ()

    def allowed(
        self, filters: Filters, *, of_patient: str | None = None
    ) -> NDArray[np.bool_] | None:
        """The slices that pass every filter.

        Args:
            filters: what may be found.
            of_patient: whom the query is of, as in the column: left out, unless `filters.patient`
                is the same.

        Returns:
            (rows,) bool, all False where the filters leave nothing together; None where they leave
            all slices.

        Raises:
            UsageError: a value that no slice has, an unknown column, or no labels at all.
        """
        masks = [
            self._rows_where(kind, column, wanted) for kind, column, wanted in self._asked(filters)
        ]
        if "volume_id" in filters.where:
            masks.append(self._in_volume(filters.where["volume_id"]))
        if filters.labels is not None:
            masks.append(self.showing(filters.labels))
        masks += self._of_patients(filters, of_patient)
        if not masks:
            return None
        mask = np.logical_and.reduce(masks)
        return None if mask.all() else mask

    def _asked(self, filters: Filters) -> list[tuple[str, Coded, str]]:
        """Name, column and wanted value of every filter on a column of single values."""
        fixed = {"modality": self.modality, "region": self.region}
        given = {"modality": filters.modality, "region": filters.region}
        asked = [(kind, fixed[kind], value) for kind, value in given.items() if value is not None]
        columns = {**self.attributes, **fixed}
        for name, value in filters.where.items():
            if name == "volume_id":
                continue
            if name not in columns:
                raise unknown_name("column", name, [*columns, "volume_id"], None)
            asked.append((name, columns[name], value))
        return asked

    def _of_patients(self, filters: Filters, own: str | None) -> list[NDArray[np.bool_]]:
        wanted, without = self._ids(filters.patient), self._ids(filters.exclude_patient)
        known = set(self.patient.names) if wanted or without else set()
        if wanted and known.isdisjoint(wanted):
            raise UsageError(
                f"no slice of the index is of the patient {filters.patient!r}; expected an id of "
                "the table that the index was built from, or one as stored. Without such a table "
                "every file is a patient of its own"
            )
        if without and known.isdisjoint(without):
            # Right where other hospitals' patients are searched, but a typing error looks the same.
            logger.warning(
                "the patient to leave out has no slice in this index, so nothing is left out; "
                "without a table of patient ids every file is a patient of its own"
            )
            without = ()
        if own is not None and own not in wanted:
            without = (*without, own)
        masks = [self.patient.rows_where(wanted)] if wanted else []
        return [*masks, ~self.patient.rows_where(without)] if without else masks

    def _ids(self, patient: str | None) -> tuple[str, ...]:
        return () if patient is None else (patient, *self.pseudonyms(patient))

    def _rows_where(self, kind: str, column: Coded, wanted: str) -> NDArray[np.bool_]:
        return column.rows_where(_meant(kind, wanted, column.names))

    def _in_volume(self, wanted: str) -> NDArray[np.bool_]:
        found = set(_meant("volume_id", wanted, self.volume_ids))
        flags = np.fromiter((name in found for name in self.volume_ids), dtype=np.bool_)
        return np.asarray(flags[self.volume])

    def showing(self, labels: Sequence[str]) -> NDArray[np.bool_]:
        """(rows,) which slices show at least one of the labels; raises as `allowed`."""
        names = (labels,) if isinstance(labels, str) else tuple(labels)
        if not names:
            raise UsageError("the filter by labels names none; leave it out to search them all")
        meant = [name for label in names for name in _meant("label", label, self.labels.names)]
        return self.labels.showing(meant)

    def in_volumes_showing(self, labels: Sequence[str]) -> NDArray[np.bool_]:
        """(rows,) the slices of volumes in which one of the labels occurs; raises as `allowed`."""
        flags = np.zeros(len(self.volume_ids), dtype=np.bool_)
        flags[self.volume[self.showing(labels)]] = True
        return np.asarray(flags[self.volume])

    def showing_structure(self, name: str | None) -> NDArray[np.bool_] | None:
        """(rows,) which slices show a structure; None where no slice of the index has the label."""
        names = [] if name is None else same_name(name, self.labels.names)
        return self.labels.showing(names) if names else None


def same_name(wanted: str, known: Iterable[str]) -> list[str]:
    """The known names that `wanted` means: the exact one, else all that differ in case only."""
    known = list(known)
    if wanted in known:
        return [wanted]
    return sorted(name for name in known if name.casefold() == wanted.casefold())


def _meant(kind: str, wanted: str, known: Iterable[str]) -> list[str]:
    """As `same_name`.

    Raises:
        UsageError: there is none; the message lists what there is.
    """
    names = list(known)
    found = same_name(wanted, names)
    if not found:
        raise UsageError(f"no slice of the index has the {kind} {wanted!r}; {_there_are(names)}")
    return found


def _there_are(names: list[str]) -> str:
    named = sorted(filter(None, names))
    more = f" and {len(named) - _LISTED} others" if len(named) > _LISTED else ""
    return f"it has {', '.join(named[:_LISTED])}{more}" if named else "none has any"
