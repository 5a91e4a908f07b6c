"""What a visitor chose under "Search options", and what the library is asked because of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from medretrieval.errors import UsageError
from medretrieval.imaging.orientation import AS_STORED
from medretrieval.retrieval.aggregation import DEFAULT_SIGMA
from medretrieval.retrieval.feedback import Feedback
from medretrieval.retrieval.filters import Filters
from medretrieval.retrieval.modes import MODES
from medretrieval.retrieval.rerank import LOCALIZED_SLICES
from medretrieval.retrieval.selection import Selection
from medretrieval.types import LabelVolume

ANY_ORIENTATION = "any"
ALL, RANGE, STRUCTURE = "all", "range", "structure"
# Of each control the value that changes nothing.
DEFAULTS: Mapping[str, Any] = {
    "slices": ALL,
    "first": 0,
    "last": 0,
    "structure": None,
    "sample": "",
    "seed": 0,
    "modality": "",
    "region": "",
    "labels": [],
    "column": "",
    "value": None,
    "patient": "",
    "without": "",
    "orientation": AS_STORED,
    "sigma": DEFAULT_SIGMA,
    "candidates": 0,  # an emptied field says 0 as well
    "top": LOCALIZED_SLICES,
    "also": [],
}
# The modes that have a use for them.
SIGMA_MODES = ("weighted",)
CANDIDATE_MODES = ("rerank",)
TOP_MODES = ("rerank",)
PART_MODES = tuple(mode.name for mode in MODES.values() if mode.needs == "part")
SAMPLE_MODES = tuple(mode.name for mode in MODES.values() if mode.needs == "sample")
# For an image whose spacing is known, and for any other.
SAMPLES = ("mm:7", "step:4")


@dataclass(frozen=True, eq=False, kw_only=True)
class Wanted:
    """How to search, besides mode and number of results.

    Attributes:
        also: keys of further indexes of the same cases, whose rankings are fused.
    """

    select: Selection = field(default_factory=Selection)
    filters: Filters = field(default_factory=Filters)
    feedback: Feedback = field(default_factory=Feedback)
    orientation: str = AS_STORED
    sigma: float = DEFAULT_SIGMA
    candidates: int | None = None
    top: int = LOCALIZED_SLICES
    also: tuple[str, ...] = ()

    def keywords(self) -> dict[str, Any]:
        """As arguments of `Index.search`, but for the orientation."""
        return {
            "select": self.select,
            "filters": self.filters,
            "feedback": self.feedback,
            "sigma": self.sigma,
            "candidates": self.candidates,
            "top": self.top,
        }

    def to_json(self, *, patient: Callable[[str], str] = str) -> dict[str, Any]:
        """JSON-able; `patient` gives the name of a patient under which to write it down."""
        filters = self.filters
        return {
            "slices": self.select.slices and list(self.select.slices),
            "structure": self.select.structure,
            "sample": self.select.sample,
            "seed": self.select.seed,
            "modality": filters.modality,
            "region": filters.region,
            "labels": None if filters.labels is None else list(filters.labels),
            "where": dict(filters.where),
            "patient": filters.patient and patient(filters.patient),
            "exclude_patient": filters.exclude_patient and patient(filters.exclude_patient),
            "like": list(self.feedback.like),
            "unlike": list(self.feedback.unlike),
            "orientation": self.orientation,
            "sigma": self.sigma,
            "candidates": self.candidates,
            "top": self.top,
        }


def wanted(
    values: Mapping[str, Any],
    *,
    mode: str,
    feedback: Feedback,
    labels: LabelVolume | None,
    count: int,
    whole: bool = False,
) -> Wanted:
    """What the controls ask for; what is not shown for this mode and index asks for nothing.

    Args:
        values: value of each control of `DEFAULTS`; one that is missing has its default.
        feedback: the chosen examples.
        labels: the label map of the image, if there is one.
        count: number of slices of the image.
        whole: the index is one of whole volumes.

    Raises:
        UsageError: a choice is incomplete, no number, or a slice that does not exist.
    """
    values = {**DEFAULTS, **values}
    whose = {"modality": values["modality"], "region": values["region"]}
    filters = Filters(
        **{name: value for name, value in whose.items() if value},
        labels=tuple(values["labels"]) or None,
        patient=(values["patient"] or "").strip() or None,
        exclude_patient=(values["without"] or "").strip() or None,
        where=_where(values["column"], values["value"]),
    )
    return Wanted(
        select=Selection() if whole or mode == "slice" else _selection(values, mode, labels, count),
        filters=filters,
        feedback=feedback,
        orientation=AS_STORED if whole else values["orientation"] or AS_STORED,
        sigma=_number(values["sigma"], "the width") if mode in SIGMA_MODES else DEFAULT_SIGMA,
        candidates=_count(values["candidates"], "the number of cases to compare closely") or None
        if mode in CANDIDATE_MODES
        else None,
        top=(_count(values["top"], "the number of slices that locate it") or LOCALIZED_SLICES)
        if mode in TOP_MODES
        else LOCALIZED_SLICES,
        also=tuple(values["also"] or ()),
    )


def _selection(
    values: Mapping[str, Any], mode: str, labels: LabelVolume | None, count: int
) -> Selection:
    sample = (values["sample"] or "").strip() or None
    seed = _count(values["seed"], "the seed")
    which = values["slices"] or ALL
    if which == RANGE:
        return Selection(slices=_range(values, count), sample=sample, seed=seed)
    if which == STRUCTURE:
        if labels is None:
            raise UsageError(
                "no label map of your image is loaded; upload one under “Search options”, or "
                "search with a range of slices"
            )
        if not values["structure"]:
            raise UsageError("no structure is chosen; choose one of your label map's")
        return Selection(structure=values["structure"], labels=labels, sample=sample, seed=seed)
    if mode in PART_MODES:
        raise UsageError(
            "this way of searching takes a part of your image; choose a range of slices, or a "
            "structure of a label map, under “Search options”"
        )
    return Selection(sample=sample, seed=seed)


def _range(values: Mapping[str, Any], count: int) -> tuple[int, int]:
    first = _count(values["first"], "the first slice")
    last = _count(values["last"], "the last slice")
    if first > last:
        raise UsageError(
            f"the range of slices begins at {first} and ends at {last}; enter the lower number "
            "first"
        )
    if last >= count:
        raise UsageError(
            f"your image has no slice {last}; its slices are counted from 0 to {count - 1}"
        )
    return first, last


def _where(column: str | None, value: str | None) -> dict[str, str]:
    if not column:
        return {}
    if not value:
        raise UsageError(f"no value of the column {column!r} is chosen; choose one, or no column")
    return {column: value}


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{what} is {value!r}; expected a number") from None


def _count(value: Any, what: str) -> int:
    number = _number(value or 0, what)
    if number != int(number) or number < 0:
        raise UsageError(f"{what} is {number:g}; expected a whole number from 0")
    return int(number)


def with_example(feedback: Feedback, key: str, *, like: bool) -> Feedback:
    """The examples with `key` added to one side; taken out if it was there already."""
    chosen, other = (feedback.like, feedback.unlike) if like else (feedback.unlike, feedback.like)
    other = _without(other, key)
    chosen = _without(chosen, key) if key in chosen else (*chosen, key)
    sides = (chosen, other) if like else (other, chosen)
    return replace(feedback, like=sides[0], unlike=sides[1])


def without_example(feedback: Feedback, key: str) -> Feedback:
    """The examples without `key`, on whichever side it was."""
    return replace(
        feedback, like=_without(feedback.like, key), unlike=_without(feedback.unlike, key)
    )


def _without(keys: Sequence[str], key: str) -> tuple[str, ...]:
    return tuple(other for other in keys if other != key)
