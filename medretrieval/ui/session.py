"""What one visitor has on the page. Frozen, so that concurrent actions never share a change."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from medretrieval.errors import UsageError
from medretrieval.imaging import make_slices, slice_axis
from medretrieval.imaging.orientation import AS_STORED
from medretrieval.pipeline import Segmentation
from medretrieval.retrieval.feedback import Feedback
from medretrieval.retrieval.filters import Filters
from medretrieval.segmentation.prompts import Edit
from medretrieval.types import (
    UNKNOWN,
    Hit,
    LabelVolume,
    Match,
    SearchResult,
    Slice,
    SlicePolicy,
    Support,
    Volume,
)
from medretrieval.ui.asked import Asked
from medretrieval.ui.corrections import (
    Corrected,
    changed,
    named_as,
    slice_of,
    with_names,
    with_slice,
)
from medretrieval.ui.options import ANY_ORIENTATION, Wanted


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
        key: "<index>/<row>" for a slice of an index; "own/...", "set/..." or "corrected/..." for
            one of an uploaded pair, of an uploaded support set, and of the image itself.
        row_id: row of the index; None for any other.
        modality, region: of the case, where they are known.
    """

    key: str
    support: Support
    title: str
    row_id: int | None = None
    modality: str = UNKNOWN
    region: str = UNKNOWN


Cart = tuple[CartItem, ...]
MOST_SUPPORTS = 256  # in a support set: each is a card on the page and a memory of the network


def set_item(support: Support) -> CartItem:
    """A slice of an uploaded support set as an item; the same content has the same key."""
    digest = hashlib.sha256(support.image.tobytes() + support.mask.tobytes()).hexdigest()[:16]
    return CartItem(key=f"set/{digest}", support=support, title=support.key)


def limited(items: Iterable[CartItem]) -> Cart:
    """The items as a cart.

    Raises:
        UsageError: they are more than `MOST_SUPPORTS`.
    """
    cart = tuple(items)
    if len(cart) > MOST_SUPPORTS:
        raise UsageError(
            f"that would be {len(cart)} slices; a support set holds at most {MOST_SUPPORTS} here. "
            "Take some out, or add fewer"
        )
    return cart


def add_to_cart(cart: Cart, items: Iterable[CartItem]) -> Cart:
    """The cart with further items at its end; what is in it already stays where it is.

    Raises:
        UsageError: as `limited`.
    """
    merged = {item.key: item for item in cart}
    for item in items:
        merged.setdefault(item.key, item)
    return limited(merged.values())


def replace_in_cart(cart: Cart, item: CartItem) -> Cart:
    """The cart with an item, in the place of the one of the same key if there is one.

    Raises:
        UsageError: as `limited`.
    """
    merged = {held.key: held for held in cart}
    return limited({**merged, item.key: item}.values())


def remove_from_cart(cart: Cart, key: str) -> Cart:
    """The cart without the item `key` (unchanged if it holds none)."""
    return tuple(item for item in cart if item.key != key)


def own_items(supports: Iterable[Support]) -> list[CartItem]:
    """Slices of the visitor's own annotated image as items of the support set."""
    return [
        CartItem(
            key=f"own/{support.key}",
            support=support,
            title=f"own pair \u00b7 slice {support.key.rpartition(':')[2]}",
        )
        for support in supports
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """A finished segmentation, what it was made from, and what was corrected since.

    Attributes:
        query: token of the query.
        scope: "slice" or "volume".
        supports: the support set, None where the supports were retrieved.
        cart: keys of the support set; empty where there was none.
        corrected: what was changed, by slice.
        token: different for every segmentation; corrections leave it as it is.
    """

    segmentation: Segmentation
    query: str
    index: str
    scope: str
    slice_index: int | None
    cart: tuple[str, ...]
    asked: Asked = field(default_factory=Asked)
    supports: tuple[Support, ...] | None = None
    orientation: str = AS_STORED  # in which the slices were segmented
    corrected: Mapping[int, Corrected] = field(default_factory=dict)
    token: str = field(default_factory=_token)

    def fits(self, query: Query, index: str) -> bool:
        """Whether this was made of the same image with the same index."""
        return (self.query, self.index) == (query.token, index)

    def mask(self, policy: SlicePolicy, index: int) -> np.typing.NDArray[Any]:
        """(H, W) label map of one slice at its full size, in display convention."""
        labels = self.segmentation.labels
        return slice_of(labels, slice_axis(labels.grid, policy.axis), index)

    def edits(self, index: int) -> tuple[Edit, ...]:
        """The corrections of one slice."""
        return self.corrected[index].edits if index in self.corrected else ()

    def missed(self, policy: SlicePolicy) -> int:
        """How many points the mask does not follow: positive ones outside, negative ones inside."""
        value_of = {name: value for value, name in self.segmentation.labels.names.items()}
        missed = 0
        for index in self.corrected:
            mask = self.mask(policy, index)
            for edit in self.edits(index):
                if edit.kind != "box":
                    x, y = (round(place) for place in edit.at)
                    inside = mask[y, x] == value_of.get(edit.label, -1)
                    missed += inside != (edit.kind == "positive")
        return missed

    def with_edits(
        self,
        policy: SlicePolicy,
        index: int,
        edits: tuple[Edit, ...],
        made: LabelVolume | None = None,
    ) -> Outcome:
        """The same with other corrections of one slice.

        Args:
            edits: all corrections of the slice; none takes them back.
            made: the slice segmented with them, on the same grid. The labels of the corrections
                are taken from it, other labels stay as they were.
        """
        labels = self.segmentation.labels
        axis = slice_axis(labels.grid, policy.axis)
        held = self.corrected.get(index)
        before = slice_of(labels, axis, index) if held is None else held.before
        names, mask = dict(labels.names), before
        if made is not None:
            names = with_names(names, made.names.values())
            found = named_as(slice_of(made, axis, index), made.names, names)
            prompted = {edit.label for edit in edits}
            mask = changed(before, found, [v for v, name in names.items() if name in prompted])
        corrected = Corrected(before=before, edits=edits) if edits else None
        return self._with(axis, index, mask, names, corrected)

    def applied(self, correction: Correction, policy: SlicePolicy) -> Outcome | None:
        """The same with a correction that may have been made of it before other changes.

        Returns:
            None if the slice has other corrections by now, or was segmented by itself since.
        """
        index, of = correction.slice_index, correction.of
        by_itself = self.token != of.token and self.slice_index == index
        if by_itself or self.edits(index) != of.edits(index):
            return None
        return self.with_edits(policy, index, correction.edits, correction.made)

    def keeping(self, former: Outcome, policy: SlicePolicy) -> Outcome:
        """The same with the slices that were corrected in a former mask of the same image.

        A slice that was now segmented by itself is not one of them.
        """
        kept = self
        for index, held in former.corrected.items():
            if index == self.slice_index:
                continue
            labels, old = kept.segmentation.labels, former.segmentation.labels
            axis = slice_axis(labels.grid, policy.axis)
            names = with_names(labels.names, old.names.values())
            mask = named_as(slice_of(old, axis, index), old.names, names)
            corrected = Corrected(before=slice_of(labels, axis, index), edits=held.edits)
            kept = kept._with(axis, index, mask, names, corrected)
        return kept

    def _with(
        self,
        axis: int,
        index: int,
        mask: np.typing.NDArray[Any],
        names: Mapping[int, str],
        corrected: Corrected | None,
    ) -> Outcome:
        labels = with_slice(self.segmentation.labels, axis, index, mask, names)
        rest = {k: v for k, v in self.corrected.items() if k != index}
        if corrected is not None:
            rest[index] = corrected
        return replace(
            self,
            segmentation=replace(self.segmentation, labels=labels),
            corrected=dict(sorted(rest.items())),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Correction:
    """A finished correction of one slice, not yet part of the mask, which may change meanwhile.

    Attributes:
        of: the mask that it was made of.
        edits, made: as for `Outcome.with_edits`.
    """

    of: Outcome
    slice_index: int
    edits: tuple[Edit, ...]
    made: LabelVolume | None = None


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
