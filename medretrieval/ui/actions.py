"""What happens when the page is used: parse, call the library, say what to show.

An action returns updates by the name of the part of the page: a value, or `Props` to change more
than the value, or a `Download`. It knows nothing of the web server, so it can be tested alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from medretrieval.errors import UsageError
from medretrieval.imaging import read_labels, read_volume
from medretrieval.pipeline import Segmentation
from medretrieval.types import Progress, SlicePolicy, Volume, no_progress
from medretrieval.ui import content, exports, text
from medretrieval.ui.backend import DEMO, Backend, Opened
from medretrieval.ui.session import (
    Cart,
    CartItem,
    Download,
    Found,
    Outcome,
    Props,
    Query,
    Session,
    Updates,
    add_to_cart,
    own_pair,
    remove_from_cart,
)
from medretrieval.ui.uploads import taken

NO_IMAGE = "load an image first: upload one or click an example"
NO_RESULTS = "there are no results to choose from; find similar cases first"
CHANGED = "The image or the index was changed meanwhile; this result was dropped."
NO_MASK = "The mask will be shown over your image."


class Actions:
    """The actions of the page.

    Args:
        backend: indexes and models, shared by all visitors.
        uploads: folder in which the server stores uploads.
        segment: runs `backend.segment`; replaced where that needs another process or device.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        uploads: str | Path,
        segment: Callable[..., Segmentation] | None = None,
    ) -> None:
        self.backend = backend
        self._uploads = Path(uploads)
        self.run_segmenter = segment or backend.segment

    # The image

    def prepare(self, progress: Progress = no_progress) -> Updates:
        """Open the demo (built on first use) and show its examples and its card."""
        items = self.backend.examples(progress)
        return {"examples": content.example_cards(items), **self._about(self.backend.open(DEMO))}

    def read_upload(self, upload: str | None, *, channel: int = 0) -> Volume:
        """Read an uploaded image and delete it from disk, whether it can be read or not.

        Raises:
            UsageError: there is none.
            InputError: it cannot be read.
        """
        if not upload:
            raise UsageError(NO_IMAGE)
        with taken(upload, self._uploads) as path:
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

    def _policy(self, index: str) -> SlicePolicy:
        # An image can be looked at before the index is open.
        opened = self.backend.opened(index)
        return opened.policy if opened else SlicePolicy()

    def _loaded(self, query: Query, index: str) -> Updates:
        policy, opened = self._policy(index), self.backend.opened(index)
        count = query.slices(policy)
        return {
            "query": query,
            "found": None,
            "upload": None,
            "image_status": text.status("ok", f"{query.title}: {text.size_line(query.volume)}"),
            "viewer": content.view(query, policy, "", count // 2),
            **content.sliders(count),
            "examples_panel": Props(open=False),
            "window": Props(value="", visible=True),
            "mode": "slice" if count == 1 or (opened and opened.whole) else "rerank",
            "hits": text.placeholder("Ready to search", "Press the button above."),
            "why": "",
            "search_status": "",
            "segment_slice": Props(value=f"Segment this {'slice' if count > 1 else 'image'}"),
            "segment_volume": Props(visible=count > 1),
            "hits_file": Download(exports.HITS_FILE, None),
            "settings_file": Download(exports.SETTINGS_FILE, None),
            **self._unsegmented(),
        }

    def _unsegmented(self) -> Updates:
        return {
            "outcome": None,
            "result": text.placeholder("No segmentation yet", NO_MASK),
            "result_tools": Props(visible=False),
            "segment_status": "",
            "mask_file": Download(exports.MASK_FILE, None),
            "picture_file": Download(exports.PICTURE_MASK_FILE, None, visible=False),
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
        policy = self._policy(session.index)
        number = max(0, min(int(number), query.slices(policy) - 1))
        updates: Updates = {
            "viewer": content.view(query, policy, window, number),
            **({follower: number} if follower else {}),
        }
        if outcome is not None and outcome.fits(query, session.index):
            colours = content.palette(opened)
            updates["result"] = content.result(query, outcome, policy, window, number, colours)
        found = session.found
        if found is not None and opened is not None and found.slice_index is None:
            updates["hits"] = content.hit_cards(found, opened, session.cart, number)
        return updates

    # The search

    def _about(self, opened: Opened) -> Updates:
        own = opened.index.manifest.embedder.name
        return {
            "about": content.about(opened),
            "embedders": content.embedders(self.backend.embedders(), own),
        }

    def choose_index(
        self, index: str, query: Query | None, progress: Progress = no_progress
    ) -> Updates:
        """Open another index. Results of the former one go, as its slices may be other ones."""
        opened = self.backend.open(index, progress)
        updates: Updates = {
            "found": None,
            "hits": text.placeholder("Ready to search", "Press the button above."),
            "why": "",
            "hits_file": Download(exports.HITS_FILE, None),
            "settings_file": Download(exports.SETTINGS_FILE, None),
            **self._about(opened),
            **self._unsegmented(),
            "search_status": text.status("ok", content.opened_line(opened)),
            "mode": content.modes(opened),
            "structures": Props(choices=_names(opened), value=[]),
        }
        if query is not None:
            count = query.slices(opened.policy)
            updates |= content.sliders(count)
            updates["viewer"] = content.view(query, opened.policy, "", count // 2)
            updates["window"] = ""
        return updates

    def find(
        self,
        session: Session,
        mode: str,
        k: float,
        number: float,
        progress: Progress = no_progress,
    ) -> Updates:
        """Search; the embeddings of an image are kept, so that another mode answers at once."""
        query, found = session.query, session.found
        if query is None:
            raise UsageError(NO_IMAGE)
        started = time.perf_counter()
        opened = self.backend.open(session.index, progress)
        embedded = found.embedded if found and found.fits(query, session.index) else None
        count = query.slices(opened.policy)
        one = min(int(number), count - 1) if mode == "slice" and not opened.whole else None
        if embedded is None and one is None:
            embedded = opened.index.query_embeddings(query.volume, progress=progress)
        result = opened.index.search(
            query.volume if embedded is None else embedded,
            mode=mode,
            k=int(k),
            slice_index=one,
            query_name="query",
            progress=progress,
        )
        found = Found(
            result=result,
            query=query.token,
            index=session.index,
            k=int(k),
            slice_index=one,
            slices=1 if opened.whole or one is not None else count,
            seconds=time.perf_counter() - started,
            embedded=embedded,
            whole=opened.whole,
        )
        return {"new_found": found}

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
        line = text.found_line(new, query.slices(opened.policy), meaningless=meaningless)
        return {
            "new_found": None,
            "found": new,
            "hits": content.hit_cards(new, opened, session.cart, int(number)),
            "why": "",
            "search_status": text.status("warning" if meaningless or not hits else "ok", line),
            **self._about(opened),
            "hits_file": Download(exports.HITS_FILE, exports.hits_csv(new.result).encode()),
            "settings_file": self._settings(query, opened, new, session.cart, session.outcome),
        }

    def why(self, session: Session, key: str) -> Updates:
        """Explain a hit; `key` as for `Found.pair`."""
        query, found = session.query, session.found
        if query is None or found is None:
            raise UsageError(NO_RESULTS)
        opened = self.backend.open(found.index)
        return {"why": content.why(found, *found.pair(key), query, opened)}

    # The support set

    def add_hit(self, session: Session, number: float, key: str) -> Updates:
        """Add the database slice of a card to the support set; `key` as for `Found.pair`."""
        if session.found is None:
            raise UsageError(NO_RESULTS)
        item = self.backend.open(session.found.index).cart_item(*session.found.pair(key))
        if item is None:
            raise UsageError("that slice is not annotated; choose another one")
        return self._carted(session, number, add_to_cart(session.cart, [item]))

    def add_hits(self, session: Session, number: float) -> Updates:
        """Add the annotated slice that every hit shows to the support set."""
        found = session.found
        if found is None:
            raise UsageError(NO_RESULTS)
        opened = self.backend.open(found.index)
        shown = [opened.cart_item(*pair) for pair in found.pairs(int(number))]
        items = [item for item in shown if item is not None]
        without = len(shown) - len(items)
        note = f" {without} without annotation left out." if without else ""
        return self._carted(session, number, add_to_cart(session.cart, items), note)

    def add_own(
        self,
        session: Session,
        number: float,
        image: str | None,
        mask: str | None,
        names: str | None,
    ) -> Updates:
        """Add the visitor's own annotated image to the support set."""
        if not image or not mask:
            raise UsageError("your own pair needs an image and its mask; upload both")
        items: list[CartItem]
        with (
            taken(image, self._uploads, name="your image") as image_path,
            taken(mask, self._uploads, name="your mask") as mask_path,
        ):
            named = text.label_names(names)
            volume = read_volume(image_path, allow_one_slice=True)
            labels = read_labels(mask_path, reference=volume.grid, names=named)
            items = own_pair(volume, labels, self._policy(session.index))
        return {
            **self._carted(session, number, add_to_cart(session.cart, items)),
            "own_image": None,
            "own_mask": None,
        }

    def remove(self, session: Session, number: float, key: str) -> Updates:
        """Take one slice out of the support set."""
        return self._carted(session, number, remove_from_cart(session.cart, key))

    def empty(self, session: Session, number: float) -> Updates:
        """Take everything out of the support set."""
        return self._carted(session, number, ())

    def _carted(self, session: Session, number: float, cart: Cart, note: str = "") -> Updates:
        found = session.found
        opened = self.backend.opened(found.index if found else session.index)
        names = sorted({name for item in cart for name in item.support.names.values()})
        size = f"{len(cart)} slice{'' if len(cart) == 1 else 's'} in the support set."
        updates: Updates = {
            "cart": cart,
            "cart_view": content.cart_cards(cart, content.palette(opened)),
            "segment_status": text.status("idle", size + note) if cart or note else "",
            "structures": Props(choices=names if cart or not opened else _names(opened), value=[]),
        }
        if found is not None and opened is not None:
            updates["hits"] = content.hit_cards(found, opened, cart, int(number))
            if session.query is not None:
                updates["settings_file"] = self._settings(
                    session.query, opened, found, cart, session.outcome
                )
        return updates

    # The mask

    def segment(
        self,
        scope: str,
        session: Session,
        number: float,
        segmenter: str,
        support_k: float,
        structures: Sequence[str] | None,
        progress: Progress = no_progress,
    ) -> Updates:
        """Segment the shown slice (scope "slice") or every slice ("volume")."""
        query, cart = session.query, session.cart
        if query is None:
            raise UsageError(NO_IMAGE)
        opened = self.backend.open(session.index, progress)
        shown = max(0, min(int(number), query.slices(opened.policy) - 1))
        made = self.run_segmenter(
            session.index,
            query.volume,
            segmenter=segmenter,
            support_k=int(support_k),
            supports=[item.support for item in cart] or None,
            labels=list(structures) if structures else None,
            indices=[shown] if scope == "slice" else None,
            progress=progress,
        )
        outcome = Outcome(
            segmentation=made,
            query=query.token,
            index=session.index,
            scope=scope,
            slice_index=shown if scope == "slice" else None,
            cart=tuple(item.key for item in cart),
            support_k=int(support_k),
        )
        return {"new_outcome": outcome}

    def show_outcome(
        self, session: Session, window: str, number: float, new: Outcome | None
    ) -> Updates:
        """Show a finished mask, unless the visitor has gone on to another image or index."""
        if new is None:
            return {}
        query = session.query
        if query is None or not new.fits(query, session.index):
            return {"new_outcome": None, "segment_status": text.status("warning", CHANGED)}
        opened = self.backend.open(session.index)
        made = new.segmentation
        colours = content.palette(opened).with_names(made.labels.names.values())
        shown = max(0, min(int(number), query.slices(opened.policy) - 1))
        png = exports.png_bytes(made.labels)
        meaningless = not query.synthetic and self.backend.from_phantoms(new)
        line = text.segmented_line(new, query.slices(opened.policy), meaningless=meaningless)
        return {
            "new_outcome": None,
            "outcome": new,
            "result": content.result(query, new, opened.policy, window, shown, colours),
            "result_tools": Props(visible=True),
            "result_slice": shown,
            "legend": text.legend(made.structures(), colours),
            "segment_status": text.status("warning" if meaningless else "ok", line),
            "mask_file": Download(exports.MASK_FILE, exports.nifti_bytes(made.labels)),
            "picture_file": Download(exports.PICTURE_MASK_FILE, png, visible=png is not None),
            "settings_file": self._settings(query, opened, session.found, session.cart, new),
        }

    def _settings(
        self, query: Query, opened: Opened, found: Found | None, cart: Cart, outcome: Outcome | None
    ) -> Download:
        written = exports.settings_json(
            query=query,
            index=opened.describe(),
            found=found if found and found.fits(query, opened.key) else None,
            cart=cart,
            outcome=outcome if outcome and outcome.fits(query, opened.key) else None,
        )
        return Download(exports.SETTINGS_FILE, written.encode())


def _names(opened: Opened) -> list[str]:
    return sorted(opened.index.manifest.vocabulary.values())
