"""What is opened once and shared by all visitors, and an index as the page knows it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from medretrieval.errors import UsageError
from medretrieval.index.group import IndexGroup
from medretrieval.index.manifest import Manifest
from medretrieval.types import Hit, Match, Progress, SlicePolicy, Support, no_progress
from medretrieval.ui.session import CartItem

T = TypeVar("T")


class Once:
    """Values made once per key; who asks while one is being made waits and sees its progress."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._last: dict[str, tuple[int, int, str]] = {}
        self._guard = threading.Lock()

    def ready(self, key: str) -> Any | None:
        """The value if it is there already, else None; never waits."""
        return self._values.get(key)

    def started_with(self, start: str) -> list[Any]:
        """The values that are there already whose keys start so; never waits."""
        return [value for key, value in list(self._values.items()) if key.startswith(start)]

    def get(self, key: str, make: Callable[[Progress], T], progress: Progress = no_progress) -> T:
        """The value of `key`, made by `make` if this is the first time it is asked for.

        An exception of `make` goes to the caller that ran it; the next caller tries again.
        """
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())

        def shared(done: int, total: int, message: str) -> None:
            self._last[key] = (done, total, message)
            progress(done, total, message)

        while not lock.acquire(timeout=0.5):
            if key in self._last:
                progress(*self._last[key])
        try:
            if key not in self._values:
                self._values[key] = make(shared)
            value: T = self._values[key]
            return value
        finally:
            lock.release()


@dataclass(frozen=True, eq=False, kw_only=True)
class Opened:
    """An open index under the key that the page knows it by."""

    key: str
    title: str
    index: Any  # medretrieval.retrieval.engine.Index
    synthetic: bool

    @property
    def origin(self) -> str | None:
        """Where on the Hub it lies, at which commit; several with commas between them."""
        stores = getattr(self.index.store, "stores", (self.index.store,))
        return ", ".join(store.origin for store in stores if store.origin) or None

    @property
    def policy(self) -> SlicePolicy:
        policy: SlicePolicy = self.index.manifest.slices
        return policy

    @property
    def embedders(self) -> list[str]:
        """The names of its embedders, if it has several."""
        names = sorted(self.index.manifest.sets)
        return names if len(names) > 1 else []

    @property
    def whole(self) -> bool:
        """Whether its embedder embeds whole volumes, and not slices."""
        return bool(self.index.manifest.embedder.unit == "volume")

    def cart_item(self, hit: Hit, match: Match) -> CartItem | None:
        """The annotated slice of a pair for the support set; None if it is not annotated."""
        row = self.index.store.row(hit.volume_id, match.slice_index)
        if not self.index.store.has_mask(row):
            return None
        return self._item(row, self.index.store.support(row, score=match.score))

    def _item(self, row: int, support: Support) -> CartItem:
        volume_id, _, number = support.key.rpartition(":")
        store = self.index.store
        return CartItem(
            key=self.cart_key(row),
            row_id=row,
            support=support,
            title=f"{volume_id} \u00b7 slice {number}",
            modality=store.modality[row],
            region=store.region[row],
        )

    def recognised(self, support: Support) -> CartItem | None:
        """An annotated slice from elsewhere, as the one of this index that it is; None if none."""
        volume_id, _, number = support.key.rpartition(":")
        try:
            row = self.index.store.row(volume_id, int(number))
            own = self.index.store.support(row, score=support.score)
        except (ValueError, UsageError):  # no number, no such slice, or not annotated
            return None
        return self._item(row, own) if same_content(own, support) else None

    def cart_key(self, row: int) -> str:
        """The key in the support set of a row of this index."""
        return f"{self.key}/{row}"

    def pseudonym(self, patient: str) -> str:
        """The name under which the index knows a patient; as it is if it does not."""
        known = self.index.store.patient.names
        return next(
            (name for name in self.index.store.pseudonyms(patient) if name in known), patient
        )

    def manifests(self) -> list[Manifest]:
        """What the index says of itself; of several that are opened together, one each."""
        store = self.index.store
        return [
            one.manifest for one in (store.stores if isinstance(store, IndexGroup) else [store])
        ]

    def describe(self) -> dict[str, Any]:
        """Name, content and embedder of the index, JSON-able; not the path on this machine."""
        m = self.index.manifest
        return {
            "name": m.name,
            "version": m.version,
            **({"origin": self.origin} if self.origin else {}),
            "synthetic": self.synthetic,
            "slices": m.counts.slices,
            "embedder": dataclasses.asdict(m.embedder),
            "policy": dataclasses.asdict(m.slices),
        }


def same_content(one: Support, other: Support) -> bool:
    """Whether two supports show the same picture, with the same labels on it."""
    return (
        np.array_equal(one.image, other.image)
        and np.array_equal(one.mask, other.mask)
        and dict(one.names) == dict(other.names)
    )
