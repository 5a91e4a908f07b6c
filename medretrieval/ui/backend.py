"""Indexes, segmenters and the demo, each opened once and shared by all visitors.

Everything here is read-only for visitors: what they choose lives in their own session.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medretrieval import pipeline
from medretrieval.demo import Demo, DemoQuery, open_demo
from medretrieval.errors import UsageError
from medretrieval.imaging import make_slices, read_volume, slice_axis
from medretrieval.index.offered import published
from medretrieval.segmentation.registry import DEFAULT_SEGMENTER
from medretrieval.segmentation.uncertainty import Agreement
from medretrieval.types import (
    Hit,
    Match,
    Progress,
    SearchResult,
    SlicePolicy,
    Support,
    Volume,
    no_progress,
)
from medretrieval.ui.session import CartItem, Outcome
from medretrieval.ui.text import aspect

DEMO = "demo"
DEMO_TITLE = "Built-in demo (synthetic phantoms)"
INDEXES_VARIABLE = "MEDRETRIEVAL_INDEXES"

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
    def policy(self) -> SlicePolicy:
        policy: SlicePolicy = self.index.manifest.slices
        return policy

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

    def describe(self) -> dict[str, Any]:
        """Name, content and embedder of the index, JSON-able; not the path on this machine."""
        m = self.index.manifest
        return {
            "name": m.name,
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


@dataclass(frozen=True, eq=False)
class Example:
    """A query that the page offers, with the picture of its middle slice.

    Attributes:
        image: (H, W) or (H, W, 3) uint8.
        aspect: width divided by height as it should look.
    """

    query: DemoQuery
    image: NDArray[np.uint8]
    aspect: float


def examples(queries: Iterable[DemoQuery]) -> list[Example]:
    """Read the example queries and take a picture of each.

    Raises:
        InputError: one of the files cannot be read.
    """
    made = []
    for query in queries:
        volume = read_volume(query.path, allow_one_slice=True)
        policy = SlicePolicy()
        axis = slice_axis(volume.grid, policy.axis)
        middle = volume.grid.shape[axis] // 2
        image = next(iter(make_slices(volume, policy, indices=[middle]))).image
        made.append(Example(query, image, aspect(volume.grid, axis)))
    return made


def listed_indexes(text: str | None) -> dict[str, str]:
    """Index folders of the variable MEDRETRIEVAL_INDEXES: title -> path.

    Entries are separated as in PATH; each is a folder, or TITLE=FOLDER.

    >>> listed_indexes("/data/acdc:Liver CT=/data/liver")
    {'acdc': '/data/acdc', 'Liver CT': '/data/liver'}
    """
    found: dict[str, str] = {}
    for entry in (text or "").split(os.pathsep):
        title, equals, path = entry.strip().partition("=")
        if not equals:
            title, path = Path(title).name, title
        if path:
            found[title.strip()] = path.strip()
    return found


class Backend:
    """The library as the page uses it.

    Args:
        allow_paths: visitors may open any index folder of this machine by its path; for a page
            that only its owner can reach.
        device: where segmenters run, "cpu" or "cuda".
    """

    def __init__(
        self,
        *,
        indexes: Mapping[str, str] | None = None,
        allow_paths: bool = False,
        device: str = "cpu",
    ) -> None:
        self._listed = dict(indexes or {})
        self.allow_paths = allow_paths
        self._device = device
        self._once = Once()

    def choices(self) -> list[tuple[str, str]]:
        """(title, key) of every index that the page offers; a published one's key is its Hub id."""
        return [
            (DEMO_TITLE, DEMO),
            *((title, title) for title in self._listed),
            *((offered.title, offered.hub_id) for offered in published()),
        ]

    def demo(self, progress: Progress = no_progress) -> Demo:
        """The built-in demo, built on first use."""

        def make(report: Progress) -> Demo:
            return open_demo(
                progress=lambda done, total, message: report(
                    done, total, f"building the demo, only once: {message}"
                )
            )

        return self._once.get("demo", make, progress)

    def examples(self, progress: Progress = no_progress) -> list[Example]:
        """The demo's queries with their pictures."""
        demo = self.demo(progress)
        return self._once.get("examples", lambda _: examples(demo.queries), progress)

    def opened(self, key: str) -> Opened | None:
        """The index if it is open already; never waits."""
        return self._once.ready(f"index {key}")

    def open(self, key: str | None, progress: Progress = no_progress) -> Opened:
        """The index that `key` names: one of `choices`, or a folder of this machine.

        Several that are separated by commas are opened together and searched as one.

        Raises:
            UsageError: no such index, or folders may not be named on this page.
            IndexFormatError: the folder is not a sound index.
        """
        key = (key or "").strip()
        if not key:
            raise UsageError("no index is chosen; choose one from the list")
        parts = self._parts(key)
        offered = {known for _, known in self.choices()}
        for part in parts:
            if part not in offered and not self.allow_paths:
                raise UsageError(
                    "this page opens only the indexes of its list; choose one of them, or run the "
                    "page on your own machine to search your own index"
                )
        # Build the demo outside of the lock of its index, so that both show their progress.
        paths = [self._folder(part, progress) for part in parts]
        return self._once.get(
            f"index {key}",
            lambda _: self._open(key, paths, synthetic=set(parts) == {DEMO}),
            progress,
        )

    def _folder(self, part: str, progress: Progress = no_progress) -> Path:
        if part == DEMO:
            return self.demo(progress).index
        return Path(self._listed.get(part, part)).expanduser()

    def _parts(self, key: str) -> list[str]:
        """The indexes that are opened together under `key`, which separates them by commas."""
        if key == DEMO or key in self._listed or (self.allow_paths and Path(key).exists()):
            return [key]
        return [part.strip() for part in key.split(",") if part.strip()]

    def _open(self, key: str, paths: Sequence[Path], *, synthetic: bool) -> Opened:
        from medretrieval.retrieval.engine import open_index

        title = DEMO_TITLE if key == DEMO else key
        index = open_index(paths[0] if len(paths) == 1 else paths)
        return Opened(key=key, title=title, index=index, synthetic=synthetic)

    def search_fused(
        self, indexes: Sequence[Opened], query: Volume, **options: Any
    ) -> SearchResult:
        """Search several indexes of the same cases; arguments as for `pipeline.search_fused`."""
        return pipeline.search_fused([opened.index for opened in indexes], query, **options)

    def from_phantoms(self, outcome: Outcome) -> bool:
        """Whether any annotated slice that a mask was made from is synthetic."""
        sources = {key.rpartition("/")[0] for key in outcome.cart} or {outcome.index}
        return any(opened.synthetic for opened in map(self.opened, sources) if opened)

    def segmenters(self) -> list[dict[str, Any]]:
        """The segmenters and what works on this machine (`medretrieval segmenters`)."""
        from medretrieval.segmentation import list_segmenters

        return list_segmenters()

    def embedders(self) -> list[dict[str, Any]]:
        """The embedders and what works on this machine (`medretrieval embedders`)."""
        from medretrieval.embedders import list_embedders

        return list_embedders()

    def segment(
        self,
        key: str,
        volume: Volume,
        *,
        segmenter: str = DEFAULT_SEGMENTER,
        progress: Progress = no_progress,
        **options: Any,
    ) -> pipeline.Segmentation:
        """Segment with a shared segmenter; arguments as for `pipeline.segment`."""
        model = self._segmenter(segmenter)
        return pipeline.segment(
            self.open(key).index, volume, segmenter=model, progress=progress, **options
        )

    def agreement(
        self,
        key: str,
        volume: Volume,
        *,
        segmenter: str = DEFAULT_SEGMENTER,
        progress: Progress = no_progress,
        **options: Any,
    ) -> Agreement:
        """Leave supports out with a shared segmenter; arguments as for `pipeline.agreement`."""
        model = self._segmenter(segmenter)
        return pipeline.agreement(
            self.open(key).index, volume, segmenter=model, progress=progress, **options
        )

    def append(self, key: str, out: Path, *options: Any, **more: Any) -> Path:
        """Write a new version of an index; arguments as for `index.append_slices`.

        Raises:
            UsageError: this page may not write folders, or the index is not a single folder.
        """
        from medretrieval.index import append_slices

        parts = self._parts(key)
        if not self.allow_paths or len(parts) != 1:
            raise UsageError(
                "only a page on your own machine writes a new version, and of a single index; "
                "download the support set instead"
            )
        opened = self.open(key)
        return append_slices(
            self._folder(parts[0]), out, *options, embedder=opened.index.embedder, **more
        )

    def _segmenter(self, name: str) -> Any:
        from medretrieval.segmentation import load_segmenter

        return self._once.get(
            f"segmenter {name}", lambda _: load_segmenter(name, device=self._device)
        )
