"""Indexes, segmenters and the demo, each opened once and shared by all visitors.

Everything here is read-only for visitors: what they choose lives in their own session.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    Progress,
    SearchResult,
    SlicePolicy,
    Volume,
    no_progress,
)
from medretrieval.ui.opened import Once, Opened
from medretrieval.ui.session import Outcome
from medretrieval.ui.text import aspect

DEMO = "demo"
DEMO_TITLE = "Built-in demo (synthetic phantoms)"
INDEXES_VARIABLE = "MEDRETRIEVAL_INDEXES"


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

    def choices(self, also: str = "") -> list[tuple[str, str]]:
        """(title, key) of every index that the page offers; a published one's key is its Hub id.

        An open index with several embedders stands there once for each of them.

        Args:
            also: the key of an open index that the visitor named, which need not be of the list.
        """
        offered = {
            DEMO: DEMO_TITLE,
            **{title: title for title in self._listed},
            **{one.hub_id: one.title for one in published()},
        }
        own = also.partition("#")[0]
        keys = [*offered, *([own] if own and own not in offered and self._several(own) else [])]
        found = []
        for key in keys:
            title = offered.get(key, key)
            found.append((title, key))
            found += [(f"{title} \u00b7 {name}", f"{key}#{name}") for name in self._several(key)]
        return found

    def _several(self, key: str) -> list[str]:
        """The embedders of an index, if it is open and has several."""
        opened = self.opened(key)
        found = [opened] if opened else self._once.started_with(f"index {key}#")
        return found[0].embedders if found else []

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
        """The index that `key` names: one of `choices`, a folder here, or one of the Hub.

        Several that are separated by commas are opened together and searched as one; #EMBEDDER
        behind one chooses among its embedders.

        Raises:
            UsageError: no such index, or it may not be named on this page.
            IndexFormatError: it is not a sound index.
            UnavailableError: the Hub does not give it.
        """
        key = (key or "").strip()
        if not key:
            raise UsageError("no index is chosen; choose one from the list")
        parts = self._parts(key)
        for part in parts:
            if not (self.allow_paths or self._allowed(part)):
                raise UsageError(
                    "this page opens only the indexes of its list; choose one of them, or run the "
                    "page on your own machine to search your own index"
                )
        # Build the demo outside of the lock of its index, so that both show their progress.
        sources = [self._source(part, progress) for part in parts]
        synthetic = {self._named(part)[0] for part in parts} == {DEMO}

        def make(report: Progress) -> Opened:
            return self._open(key, sources, synthetic=synthetic, progress=report)

        return self._once.get(f"index {key}", make, progress)

    def _allowed(self, part: str) -> bool:
        """Whether any visitor may open an index: offered here, or of an organisation that is."""
        from medretrieval.index.reference import parse_reference
        from medretrieval.index.trust import allowed

        if self._named(part)[0] in {key for _, key in self.choices()}:
            return True
        repo = parse_reference(part).repo
        return repo is not None and bool({repo, repo.partition("/")[0]} & allowed())

    def _named(self, part: str) -> tuple[str, str]:
        """The key of an index, and the embedder behind it with its mark, if there is one."""
        if part == DEMO or part in self._listed or (self.allow_paths and Path(part).exists()):
            return part, ""
        key, mark, embedder = part.partition("#")
        return key, f"{mark}{embedder}"

    def _source(self, part: str, progress: Progress = no_progress) -> str:
        """The index as the library names it."""
        key, embedder = self._named(part)
        if key == DEMO:
            return f"{self.demo(progress).index}{embedder}"
        return f"{os.path.expanduser(self._listed.get(key, key))}{embedder}"

    def _parts(self, key: str) -> list[str]:
        """The indexes that are opened together under `key`, which separates them by commas."""
        if key == DEMO or key in self._listed or (self.allow_paths and Path(key).exists()):
            return [key]
        return [part.strip() for part in key.split(",") if part.strip()]

    def _open(
        self, key: str, sources: Sequence[str], *, synthetic: bool, progress: Progress
    ) -> Opened:
        from medretrieval.retrieval.engine import open_index

        title = DEMO_TITLE if key == DEMO else key
        index = open_index(sources[0] if len(sources) == 1 else sources, progress=progress)
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
        from medretrieval.index.manifest import read_manifest
        from medretrieval.index.reference import parse_reference
        from medretrieval.retrieval.loading import load_every

        parts = self._parts(key)
        if not self.allow_paths or len(parts) != 1:
            raise UsageError(
                "only a page on your own machine writes a new version, and of a single index; "
                "download the support set instead"
            )
        source = parse_reference(self._source(parts[0]))
        if source.folder is None:
            raise UsageError(
                f"{source.repo} lies on the Hub; `medretrieval pull {source.repo} FOLDER` gives "
                "you a folder of your own, of which a new version can be made"
            )
        own = self.open(key).index.embedder
        wanted = [entry.embedder for entry in read_manifest(source.folder).sets.values()]
        embedders = load_every(wanted, loaded=[own], device=self._device)
        return append_slices(source.folder, out, *options, embedder=embedders, **more)

    def _segmenter(self, name: str) -> Any:
        from medretrieval.segmentation import load_segmenter

        return self._once.get(
            f"segmenter {name}", lambda _: load_segmenter(name, device=self._device)
        )
