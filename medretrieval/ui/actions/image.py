"""The image: loading one, and looking at its slices."""

from __future__ import annotations

from medretrieval.errors import UsageError
from medretrieval.imaging import read_volume
from medretrieval.types import Progress, Volume, no_progress
from medretrieval.ui import content, exports, panel, results, text, words
from medretrieval.ui.actions.base import NO_IMAGE, READY, Acting, examples_cleared, unsegmented
from medretrieval.ui.backend import DEMO
from medretrieval.ui.session import Download, Props, Query, Session, Updates
from medretrieval.ui.uploads import taken


class ImageActions(Acting):
    """What is done with the image of the visitor."""

    def prepare(self, progress: Progress = no_progress) -> Updates:
        """Open the demo, which is built on first use, and show its examples."""
        return {"examples": content.example_cards(self.backend.examples(progress))}

    def introduce(self, index: str) -> Updates:
        """Show what is in the demo, unless another index was chosen while it was built."""
        if index != DEMO:
            return {}
        opened = self.backend.open(DEMO)
        return {**self.about(opened), **panel.for_index(opened, self.backend)}

    def read_upload(self, upload: str | None, *, channel: int = 0) -> Volume:
        """Read an uploaded image and delete it from disk, whether it can be read or not.

        Raises:
            UsageError: there is none.
            InputError: it cannot be read.
        """
        if not upload:
            raise UsageError(NO_IMAGE)
        with taken(upload, self.uploads) as path:
            return read_volume(path, channel=channel, allow_one_slice=True)

    def load_upload(self, upload: str | None, channel: float | None, index: str) -> Updates:
        """Read an uploaded image."""
        volume = self.read_upload(upload, channel=int(channel or 0))
        return self._loaded(Query(volume=volume, title="Your image"), index)

    def load_example(self, key: str, index: str) -> Updates:
        """Read one of the examples."""
        items = self.backend.examples()
        if not key.isdecimal() or int(key) >= len(items):
            raise UsageError("there is no such example; click one of the pictures")
        chosen = items[int(key)].query
        volume = read_volume(chosen.path, allow_one_slice=True)
        query = Query(volume=volume, title=chosen.title, synthetic=chosen.synthetic)
        return self._loaded(query, index)

    def _loaded(self, query: Query, index: str) -> Updates:
        policy, opened = self.policy(index), self.backend.opened(index)
        count = query.slices(policy)
        return {
            "query": query,
            "found": None,
            "upload": None,
            "image_status": text.status("ok", f"{query.title}: {words.size_line(query.volume)}"),
            "viewer": content.view(query, policy, "", count // 2),
            **content.sliders(count),
            "examples_panel": Props(open=False),
            "window": Props(value="", visible=True),
            "mode": "slice" if count == 1 or (opened and opened.whole) else "rerank",
            "hits": text.placeholder(*READY),
            "why": "",
            "maps": "",
            **examples_cleared(),
            **panel.for_image(query, count),
            "search_status": "",
            "segment_slice": Props(value=f"Segment this {'slice' if count > 1 else 'image'}"),
            "segment_volume": Props(visible=count > 1),
            "hits_file": Download(exports.HITS_FILE, None),
            "settings_file": Download(exports.SETTINGS_FILE, None),
            **unsegmented(),
        }

    def show(
        self, session: Session, window: str, number: float, *, follower: str | None = None
    ) -> Updates:
        """Show another slice, or another window, of the image and of the result.

        `follower` names the other slider. The one that the visitor moves is left alone: it may
        be further on by the time of the answer, and would be drawn back.
        """
        query, outcome = session.query, session.outcome
        if query is None:
            raise UsageError(NO_IMAGE)
        opened = self.backend.opened(session.index)
        policy = self.policy(session.index)
        number = max(0, min(int(number), query.slices(policy) - 1))
        updates: Updates = {
            "viewer": content.view(query, policy, window, number),
            **({follower: number} if follower else {}),
        }
        if outcome is not None and outcome.fits(query, session.index):
            colours = content.palette(opened)
            updates["result"] = results.stage(query, outcome, policy, window, number, colours)
        found = session.found
        if found is not None and opened is not None and found.slice_index is None:
            updates["hits"] = self.hit_cards(session, number)
        return updates
