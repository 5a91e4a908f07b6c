"""The search: another index, a search, examples of what is wanted."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from medretrieval.errors import UsageError
from medretrieval.imaging.orientation import AS_STORED
from medretrieval.retrieval.chosen import chosen_slices
from medretrieval.retrieval.feedback import Feedback
from medretrieval.types import Progress, SearchResult, Volume, no_progress
from medretrieval.ui import content, exports, panel, text, words
from medretrieval.ui.actions.base import (
    CHANGED,
    NO_IMAGE,
    NO_RESULTS,
    READY,
    examples_cleared,
    structure_names,
    unsegmented,
)
from medretrieval.ui.actions.options import OptionActions
from medretrieval.ui.opened import Opened
from medretrieval.ui.options import Wanted, with_example, without_example
from medretrieval.ui.session import Download, Found, Props, Query, Session, Updates


class SearchActions(OptionActions):
    """What is done to find similar cases."""

    def choose_index(
        self, index: str, query: Query | None, progress: Progress = no_progress
    ) -> Updates:
        """Open another index. Results of the former one go, as its slices may be other ones."""
        opened = self.backend.open(index, progress)
        updates: Updates = {
            "found": None,
            "hits": text.placeholder(*READY),
            "why": "",
            "maps": "",
            **examples_cleared(),
            **panel.for_index(opened, self.backend),
            "hits_file": Download(exports.HITS_FILE, None),
            "settings_file": Download(exports.SETTINGS_FILE, None),
            **self.about(opened),
            **unsegmented(),
            "search_status": text.status("ok", content.opened_line(opened)),
            "index": Props(choices=self.backend.choices(index)),
            "mode": content.modes(opened),
            "structures": Props(choices=structure_names(opened), value=[]),
        }
        if query is not None:
            count = query.slices(opened.policy)
            updates |= content.sliders(count) | panel.for_image(query, count)
            updates["viewer"] = content.view(query, opened.policy, "", count // 2)
            updates["window"] = ""
        return updates

    def unopened(self) -> Updates:
        """The parts that speak of an index, where it could not be opened."""
        return {"about": text.placeholder("Not open", "The index that was named did not open.")}

    def find(
        self,
        session: Session,
        mode: str,
        k: float,
        number: float,
        *values: Any,
        progress: Progress = no_progress,
    ) -> Updates:
        """Search; the embeddings of an image are kept, so that another mode answers at once.

        `values` are those of the controls under "Search options".
        """
        query, found = session.query, session.found
        if query is None:
            raise UsageError(NO_IMAGE)
        started = time.perf_counter()
        opened = self.backend.open(session.index, progress)
        wanted = self.wanted(session, mode, panel.named(values) if values else {})
        count = query.slices(opened.policy)
        one = min(int(number), count - 1) if mode == "slice" and not opened.whole else None
        chosen = _chosen(query, opened, mode, wanted) if one is None else (one,)
        embedded = (
            found.embedded if found and found.reusable(query, session.index, wanted) else None
        )
        if embedded is None and (opened.whole or len(chosen) == count > 1):
            embedded = opened.index.query_embeddings(
                query.volume,
                orientation=wanted.orientation,
                filters=wanted.filters,
                progress=progress,
            )
        result = self.search_with(
            opened,
            query.volume,
            wanted,
            mode=mode,
            k=int(k),
            slice_index=one,
            embedded=embedded,
            progress=progress,
        )
        found = Found(
            result=result,
            query=query.token,
            index=session.index,
            k=int(k),
            slice_index=one,
            chosen=chosen,
            seconds=time.perf_counter() - started,
            wanted=wanted,
            embedded=embedded,
            whole=opened.whole,
            also=tuple(self.backend.open(key).index.manifest.name for key in wanted.also),
        )
        return {"new_found": found}

    def unfound(self) -> Updates:
        """The parts that show results, without those of a former search."""
        return {
            "found": None,
            "hits": text.placeholder("No results", "The search did not work, see above."),
            "why": "",
            "maps": "",
            "hits_file": Download(exports.HITS_FILE, None),
        }

    def search_with(
        self,
        opened: Opened,
        volume: Volume,
        wanted: Wanted,
        *,
        embedded: Any = None,
        progress: Progress = no_progress,
        **options: Any,
    ) -> SearchResult:
        """Search an index, or several and fuse their rankings.

        Args:
            embedded: the image as embedded for this index, if it is.
            options: mode, k and slice_index, as for `Index.search`.
        """
        options |= {**wanted.keywords(), "query_name": "query", "progress": progress}
        also = [self.backend.open(key, progress) for key in wanted.also]
        if also:
            return self.backend.search_fused(
                [opened, *also], volume, orientation=wanted.orientation, **options
            )
        if embedded is not None:  # in the orientation that is wanted
            volume, wanted = embedded, replace(wanted, orientation=AS_STORED)
        result: SearchResult = opened.index.search(
            volume, orientation=wanted.orientation, **options
        )
        return result

    def show_found(self, session: Session, number: float, new: Found | None) -> Updates:
        """Show a finished search, unless the visitor has gone on to another image or index."""
        if new is None:
            return {}
        query = session.query
        if query is None or not new.fits(query, session.index):
            return {"new_found": None, "search_status": text.status("warning", CHANGED)}
        opened = self.backend.open(session.index)
        hits = new.result.hits
        meaningless = opened.synthetic and not query.synthetic
        line = words.found_line(new, query.slices(opened.policy), meaningless=meaningless)
        odd = (
            "" if meaningless else words.unsuitable(query.volume, opened.index.store.modality.names)
        )
        warned = meaningless or odd or not hits
        return {
            "new_found": None,
            "found": new,
            "hits": content.hit_cards(new, opened, session.cart, session.feedback, int(number)),
            "why": "",
            "maps": "",
            "search_status": text.status(
                "warning" if warned else "ok", " ".join(filter(None, (odd, line)))
            ),
            **self.about(opened),
            "hits_file": Download(exports.HITS_FILE, exports.hits_csv(new).encode()),
            "settings_file": self.settings(query, opened, new, session.cart, session.outcome),
        }

    # Relevance feedback

    def judge(self, session: Session, number: float, key: str, *, like: bool) -> Updates:
        """Take a hit as an example of what is wanted, or of what is not; again takes it back.

        `key` as for `Found.pair`.
        """
        if session.found is None:
            raise UsageError(NO_RESULTS)
        example = session.found.example(*session.found.pair(key))
        return self._judged(session, number, with_example(session.feedback, example, like=like))

    def unjudge(self, session: Session, number: float, key: str) -> Updates:
        """Take one example back."""
        return self._judged(session, number, without_example(session.feedback, key))

    def _judged(self, session: Session, number: float, feedback: Feedback) -> Updates:
        session = replace(session, feedback=feedback)
        updates: Updates = {
            "feedback": feedback,
            "chips": content.examples_chosen(feedback),
            "chips_panel": Props(visible=bool(feedback)),
        }
        if session.found is not None:
            updates["hits"] = self.hit_cards(session, number)
        return updates


def _chosen(query: Query, opened: Opened, mode: str, wanted: Wanted) -> tuple[int, ...]:
    """The slices of the image that are searched with; refuses a selection that has none."""
    if opened.whole:
        return tuple(range(query.slices(opened.policy)))
    chosen = chosen_slices(query.volume, wanted.select, mode=mode, policy=opened.policy)
    return tuple(chosen.slices.tolist())
