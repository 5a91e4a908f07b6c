"""What one visitor has on the page. Frozen, so that concurrent actions never share a change."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medretrieval.errors import UsageError
from medretrieval.imaging import make_slices, slice_axis
from medretrieval.imaging.orientation import AS_STORED
from medretrieval.pipeline import Segmentation
from medretrieval.retrieval.feedback import Feedback
from medretrieval.retrieval.filters import Filters
from medretrieval.types import (
    Hit,
    LabelVolume,
    Match,
    SearchResult,
    Slice,
    SlicePolicy,
    Support,
    Volume,
)
from medretrieval.ui.options import ANY_ORIENTATION, Wanted

PAIR_SLICES = 8  # of an uploaded annotated volume, so many slices become supports


def _token() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True, eq=False, kw_only=True)
class Query:
    """The image that the visitor works on.

    Attributes:
        title: shown on the page; never a file name, which may hold a patient's name.
        labels: label map on its grid, if the visitor brought one.
        token: different for every image loaded, so that an older result is recognised.
    """

    volume: Volume
    title: str
    synthetic: bool = False
    labels: LabelVolume | None = None
    token: str = field(default_factory=_token)

    def slices(self, policy: SlicePolicy) -> int:
        """How many slices the image has across the axis of `policy`."""
        return self.volume.grid.shape[slice_axis(self.volume.grid, policy.axis)]

    def view(self, policy: SlicePolicy, window: str, index: int) -> Slice:
        """One slice for display, across the axis of `policy` with another intensity window."""
        shown = SlicePolicy(axis=policy.axis, window=window, max_side=policy.max_side)
        return next(iter(make_slices(self.volume, shown, indices=[index])))


@dataclass(frozen=True, eq=False, kw_only=True)
class Found:
    """The outcome of a search, and what it was a search for.

    Attributes:
        query: token of the query.
        slice_index: the only slice that was searched with because it was shown, None otherwise.
        chosen: the slices of the query that it was searched with.
        seconds: that it took.
        wanted: the other options.
        embedded: embeddings of all slices (`retrieval.query.QueryEmbeddings`) if they were made.
        whole: whether whole volumes were compared, each shown by one of its slices.
        also: names of the further indexes whose rankings were fused.
    """

    result: SearchResult
    query: str
    index: str
    k: int
    slice_index: int | None
    chosen: tuple[int, ...]
    seconds: float
    wanted: Wanted = field(default_factory=Wanted)
    embedded: Any = None
    whole: bool = False
    also: tuple[str, ...] = ()

    @property
    def slices(self) -> int:
        """With how many slices of the query; 1 where it was compared as a whole."""
        return 1 if self.whole else len(self.chosen)

    @property
    def fused(self) -> bool:
        """Whether scores are those of several rankings together."""
        return bool(self.also)

    @property
    def narrowed(self) -> bool:
        """Whether filters left cases out."""
        return self.wanted.filters != Filters()

    @property
    def in_part(self) -> bool:
        """Whether it was a search with a part of the query, so that its place is of interest."""
        return self.wanted.select.slices is not None or self.wanted.select.structure is not None

    def example(self, hit: Hit, match: Match) -> str:
        """The key of a hit as an example of what is wanted: a slice, or a case."""
        if self.result.mode == "slice" and not self.whole:
            return f"{hit.volume_id}:{match.slice_index}"
        return hit.volume_id

    def reusable(self, query: Query, index: str, wanted: Wanted) -> bool:
        """Whether its embeddings are those that another search needs."""
        same = self.wanted.orientation == wanted.orientation
        # How an image lies is found by what may be found.
        if wanted.orientation == ANY_ORIENTATION:
            same = same and self.wanted.filters == wanted.filters
        return same and self.fits(query, index)

    def fits(self, query: Query, index: str) -> bool:
        """Whether this was a search for the same image in the same index."""
        return (self.query, self.index) == (query.token, index)

    def pair(self, key: str) -> tuple[Hit, Match]:
        """The hit and the pair of slices that a card stands for.

        Args:
            key: "<rank>:<slice_index>:<query_slice>", as `content.hit_cards` makes it.

        Raises:
            UsageError: no hit of this search shows that slice.
        """
        for hit in self.result.hits:
            for match in hit.matches:
                if key == f"{hit.rank}:{match.slice_index}:{match.query_slice}":
                    return hit, match
        raise UsageError("that case is not among the results any more; search again")

    def pairs(self, shown: int | None) -> list[tuple[Hit, Match]]:
        """For every hit the database slice that met slice `shown` of the query.

        A hit that was not found by that slice is shown by its best pair.
        """
        return [
            (hit, next((m for m in hit.matches if m.query_slice == shown), hit.matches[0]))
            for hit in self.result.hits
        ]


@dataclass(frozen=True, eq=False, kw_only=True)
class CartItem:
    """An annotated slice in the support set.

    Attributes:
        key: "<index>/<row>" for a slice of an index, "own/<hash>" for an uploaded one.
        row_id: row of the index; None for an uploaded pair.
    """

    key: str
    support: Support
    title: str
    row_id: int | None = None


Cart = tuple[CartItem, ...]


def add_to_cart(cart: Cart, items: Iterable[CartItem]) -> Cart:
    """The cart with further items at its end; what is in it already stays where it is."""
    merged = {item.key: item for item in cart}
    for item in items:
        merged.setdefault(item.key, item)
    return tuple(merged.values())


def remove_from_cart(cart: Cart, key: str) -> Cart:
    """The cart without the item `key` (unchanged if it holds none)."""
    return tuple(item for item in cart if item.key != key)


def own_pair(volume: Volume, labels: LabelVolume, policy: SlicePolicy) -> list[CartItem]:
    """Supports from the visitor's own annotated image: its labelled slices, at most 8, spread out.

    Raises:
        InputError: nothing is labelled.
    """
    from medretrieval.segmentation.supports import supports_from_labels

    pair = _token()[:8]
    supports = supports_from_labels(
        volume, labels, policy=policy, source=f"own-{pair}", at_most=PAIR_SLICES
    )
    numbers = [support.key.rpartition(":")[2] for support in supports]
    return [
        CartItem(key=f"own/{pair}/{n}", support=support, title=f"own pair · slice {n}")
        for n, support in zip(numbers, supports, strict=True)
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """A finished segmentation, and what it was made from."""

    segmentation: Segmentation
    query: str  # token
    index: str
    scope: str  # "slice" or "volume"
    slice_index: int | None
    cart: tuple[str, ...]  # keys; empty where the supports were retrieved for each slice
    support_k: int
    orientation: str = AS_STORED  # in which the slices were segmented

    def fits(self, query: Query, index: str) -> bool:
        """Whether this was made of the same image with the same index."""
        return (self.query, self.index) == (query.token, index)

    def mask(self, policy: SlicePolicy, index: int) -> np.typing.NDArray[Any]:
        """(H, W) label map of one slice at its full size, in display convention."""
        from medretrieval.imaging import extract

        grid = self.segmentation.labels.grid
        axis = slice_axis(grid, policy.axis)
        return extract(self.segmentation.labels.voxels, grid, axis, index)


class Props(dict[str, Any]):
    """Properties of a part of the page, such as its value, choices or visibility."""


@dataclass(frozen=True)
class Download:
    """A file to offer, as bytes; None takes the former one away."""

    name: str
    content: bytes | None
    visible: bool = True


Updates = dict[str, Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Session:
    """What one visitor has chosen and found so far; every part may be missing."""

    query: Query | None = None
    found: Found | None = None
    cart: Cart = ()
    outcome: Outcome | None = None
    feedback: Feedback = field(default_factory=Feedback)
    index: str
