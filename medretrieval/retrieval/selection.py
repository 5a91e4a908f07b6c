"""With which slices of a query to search: a range, the slices of a structure, a sample of them.

MSD-CBIR, section II-D c (samples); TS-CBIR, section 2.4.2 (the slices of a structure).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import InputError, UsageError
from medretrieval.retrieval.filters import same_name
from medretrieval.types import Grid, LabelVolume, Volume

# Of the samples that MSD-CBIR compares, the one that it finds best over all body regions.
DEFAULT_SAMPLE = "mm:7"
_FORMS = (
    "write random:N (N slices by chance), mm:X (a slice every X mm) or step:N (every N-th slice)"
)
# Products of spacings and slice numbers carry rounding errors; nearer than this is equal.
_EPSILON_MM = 1e-6


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which slices of a query are searched with: first the range, then the structure in it, then
    the sample of what is left. All slices by default.

    Attributes:
        slices: first and last slice, both included.
        structure: name of a structure. With `labels` the query is the smallest run of slices that
            contains it. Where a mode localizes, it is what the localization ratio is about.
        labels: label map of the query, on its grid. A case of the index brings its own labels.
        sample: "random:N", N slices drawn without replacement, uniformly, in order of the slices;
            "mm:X", from the first slice on the nearest slice to every X mm of through-plane
            spacing; "step:N", the first slice and every N-th after it. None for all slices.
        seed: of "random:N".
    """

    slices: tuple[int, int] | None = None
    structure: str | None = None
    labels: LabelVolume | None = None
    sample: str | None = None
    seed: int = 0

    def at(self, slice_index: int | None) -> Selection:
        """This selection of one slice alone; None for all.

        Raises:
            UsageError: there is a range already.
        """
        if slice_index is None:
            return self
        if self.slices is not None:
            raise UsageError(
                f"slice {slice_index} and the slices {self.slices[0]}:{self.slices[1]} were asked "
                "for; expected one of the two"
            )
        return replace(self, slices=(slice_index, slice_index))


ALL_SLICES = Selection()


@dataclass(frozen=True, eq=False, kw_only=True)
class Slices:
    """The slices of a query that there are to choose from.

    Attributes:
        name: of the query, for messages.
        index: (n,) their indices in the volume, ascending, n >= 1.
        count: number of slices of the volume.
        through_mm: distance of neighbouring slices, None where unknown.
        labels: names on each of the n slices, None where unknown.
    """

    name: str
    index: NDArray[np.int64]
    count: int
    through_mm: float | None = None
    labels: Sequence[tuple[str, ...]] | None = None


def of_volume(volume: Volume, axis: int) -> Slices:
    """All slices of a volume that is cut along the stored axis `axis`."""
    count = volume.grid.shape[axis]
    return Slices(
        name=volume.name,
        index=np.arange(count),
        count=count,
        through_mm=volume.grid.spacing[axis] if volume.grid.spacing_known else None,
    )


def choose(
    select: Selection, slices: Slices, *, axis: Callable[[Grid], int], sampled: bool = False
) -> NDArray[np.int64]:
    """Apply a selection.

    Args:
        select: what is wanted.
        slices: what there is.
        axis: gives the sliced axis of a grid, for `select.labels`.
        sampled: take `DEFAULT_SAMPLE` where no sample is given. A single slice is taken as it is.

    Returns:
        (m,) indices of the chosen slices, ascending, 1 <= m <= n.

    Raises:
        UsageError: a range or a sample that cannot be understood or that has no slice, a structure
            that no slice shows, no sample where one is needed and the spacing is unknown; the
            message says what there is, or what to do instead.
        InputError: the label map has another number of slices than the query.
    """
    return choose_sample(select, slices, choose_part(select, slices, axis=axis), sampled=sampled)


def choose_part(
    select: Selection, slices: Slices, *, axis: Callable[[Grid], int]
) -> NDArray[np.int64]:
    """The range and the structure of a selection, without its sample; else as `choose`."""
    index = slices.index
    if select.slices is not None:
        index = _in_range(select.slices, slices)
    if select.structure is not None:
        index = _showing(select, slices, index, select.structure, axis)
    elif select.labels is not None:
        raise UsageError(
            "a label map of the query was given, but no structure; name one of "
            f"{_names(select.labels.names.values())} (--structure NAME)"
        )
    return index


def choose_sample(
    select: Selection, slices: Slices, index: NDArray[np.int64], *, sampled: bool = False
) -> NDArray[np.int64]:
    """The sample of a selection among the slices `index`; else as `choose`."""
    spec = select.sample
    if spec is None and sampled and len(index) > 1:
        spec = _default_sample(slices)
    if spec is not None:
        index = sample(index, spec, seed=select.seed, through_mm=slices.through_mm)
    return index


def _default_sample(slices: Slices) -> str:
    if slices.through_mm is None:
        raise UsageError(
            f"mode sampled takes a slice every {DEFAULT_SAMPLE.partition(':')[2]} mm, but the "
            f"spacing of {slices.name} is unknown; choose another sample, such as step:5 or "
            "random:20 (--sample)"
        )
    return DEFAULT_SAMPLE


def sample(
    index: NDArray[np.int64], spec: str, *, seed: int = 0, through_mm: float | None = None
) -> NDArray[np.int64]:
    """Take a sample of slices (MSD-CBIR, section II-D c).

    Args:
        index: (n,) ascending slice indices, n >= 1. A single slice is its own sample.
        spec: "random:N", "mm:X" or "step:N", see `Selection.sample`.
        seed: of "random:N"; the same seed gives the same slices.
        through_mm: distance of neighbouring slices; needed for "mm:X".

    Returns:
        (m,) ascending, m >= 1; with "random:N" all slices where there are no more than N.

    Raises:
        UsageError: another form, a number that is not positive, or "mm:X" without a spacing.

    >>> sample(np.arange(10), "step:4").tolist()
    [0, 4, 8]
    >>> sample(np.arange(10), "mm:5", through_mm=2.0).tolist()
    [0, 2, 5, 7]
    """
    form, _, text = spec.partition(":")
    if form == "mm":
        distance = _positive(text, spec, float)
        if len(index) == 1:
            return index
        if through_mm is None:
            raise UsageError(
                f"sample {spec!r} needs the distance of the slices, and the spacing of the query "
                "is unknown; take step:N (every N-th slice) or random:N"
            )
        # Half a slice takes every slice; a shorter distance does the same with more targets.
        return _every_mm(index, max(distance, through_mm / 2), through_mm)
    number = int(_positive(text, spec, int))
    if form == "step":
        return index[::number]
    if form == "random":
        if seed < 0:
            raise UsageError(f"seed is {seed}; expected a whole number of at least 0")
        if number >= len(index):
            return index
        return np.sort(np.random.default_rng(seed).choice(index, number, replace=False))
    raise UsageError(f"sample {spec!r} is unknown; {_FORMS}")


def _every_mm(index: NDArray[np.int64], distance: float, through_mm: float) -> NDArray[np.int64]:
    """The slices nearest to every `distance` mm from the first to the last; ties to the lower."""
    place = (index - index[0]) * through_mm
    targets = np.arange(math.floor(place[-1] / distance + _EPSILON_MM) + 1) * distance
    above = np.searchsorted(place, targets - _EPSILON_MM).clip(1, len(index) - 1)
    below = above - 1
    lower = targets - place[below] <= place[above] - targets + _EPSILON_MM
    places = np.unique(np.where(lower, below, above))
    return np.asarray(index[places])


def _positive(text: str, spec: str, kind: Callable[[str], float]) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"sample {spec!r} cannot be understood; {_FORMS}")
    return value


def _in_range(wanted: tuple[int, int], slices: Slices) -> NDArray[np.int64]:
    first, last = wanted
    if first == last and not 0 <= first < slices.count:
        raise UsageError(
            f"slice {first} of {slices.name} does not exist; it has slices 0..{slices.count - 1}"
        )
    if not 0 <= first <= last < slices.count:
        raise UsageError(
            f"slices {first}:{last} of {slices.name} do not exist; expected first:last, both "
            f"included, within 0:{slices.count - 1}"
        )
    index = slices.index[(slices.index >= first) & (slices.index <= last)]
    if not index.size:
        raise UsageError(
            f"slice {runs(range(first, last + 1))} of {slices.name} is not among the query's "
            f"slices: expected one of {runs(slices.index.tolist())}"
        )
    return index


def _showing(
    select: Selection,
    slices: Slices,
    index: NDArray[np.int64],
    structure: str,
    axis: Callable[[Grid], int],
) -> NDArray[np.int64]:
    """The smallest run among `index` that contains the structure; all where nobody says where."""
    if select.labels is not None:
        shows = _in_label_map(structure, select.labels, axis(select.labels.grid), slices)
    elif slices.labels is not None:
        shows = _in_names(structure, slices)
    else:
        return index
    inside = index[np.isin(index, shows)]
    if not inside.size:
        raise UsageError(
            f"{structure} is on none of the slices {runs(index.tolist())} of {slices.name}; "
            f"it is on {runs(shows.tolist())}"
        )
    return np.asarray(index[(index >= inside[0]) & (index <= inside[-1])])


def _in_label_map(
    structure: str, labels: LabelVolume, axis: int, slices: Slices
) -> NDArray[np.int64]:
    """The slices of a label map that show the structure."""
    voxels = np.moveaxis(np.asarray(labels.voxels), axis, 0)
    if len(voxels) != slices.count:
        raise InputError(
            f"the label map of the query has {len(voxels)} slices, {slices.name} {slices.count}; "
            "expected a label map on the grid of the query"
        )
    present = [value for value in np.unique(voxels).tolist() if value]
    names = {value: labels.names.get(value, f"label_{value}") for value in present}
    wanted = same_name(structure, names.values())
    if not wanted:
        raise _absent(structure, slices.name, list(names.values()))
    values = [value for value, name in names.items() if name in wanted]
    return np.flatnonzero(np.isin(voxels, values).any(axis=(1, 2)))


def _in_names(structure: str, slices: Slices) -> NDArray[np.int64]:
    labels = slices.labels or ()
    there = sorted({name for names in labels for name in names})
    wanted = set(same_name(structure, there))
    if not wanted:
        raise _absent(structure, slices.name, there)
    return slices.index[[not wanted.isdisjoint(names) for names in labels]]


def _absent(structure: str, name: str, there: Sequence[str]) -> UsageError:
    return UsageError(f"no slice of {name} shows {structure!r}; there is {_names(there)}")


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names))) or "nothing labelled"


def runs(numbers: Iterable[int]) -> str:
    """Short text for a set of slice indices.

    >>> runs([0, 1, 2, 3, 7])
    '0..3, 7'
    """
    found: list[list[int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in found)
