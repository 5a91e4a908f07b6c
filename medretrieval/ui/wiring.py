"""What happens on which event of the page: components to actions, and their updates back."""

from __future__ import annotations

import functools
import html
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from medretrieval.errors import MedRetrievalError
from medretrieval.types import Progress
from medretrieval.ui import text
from medretrieval.ui.actions import Actions
from medretrieval.ui.components import Components
from medretrieval.ui.session import Download, Props, Session

logger = logging.getLogger(__name__)

INTERNAL = "Internal error: the page failed at this, which is not the fault of your image."
PROGRESS = gr.Progress()

OPACITY_SCRIPT = "v => document.documentElement.style.setProperty('--mr-opacity', v / 100)"
WIPE_SCRIPT = "v => document.documentElement.style.setProperty('--mr-wipe', v + '%')"


def reporting(progress: gr.Progress) -> Progress:
    """The page's progress bar as the library's progress callback."""

    def report(done: int, total: int, message: str) -> None:
        progress((done, total), desc=message)

    return report


def from_values(values: Sequence[Any]) -> Session:
    """The visitor's session from the values of its five components."""
    query, found, cart, outcome, index = values
    return Session(query=query, found=found, cart=cart or (), outcome=outcome, index=index or "")


def with_session(action: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """An action on a session, called with the five values that make one up, then its others."""
    return lambda *values, **extra: action(from_values(values[:5]), *values[5:], **extra)


def stored(name: str, data: bytes, folder: str) -> str:
    """Write a file for download; `folder` is the server's cache, which it cleans after a while."""
    return str(gr.processing_utils.save_bytes_to_cache(data, name, folder))


class Wiring:
    """Connects the components with the actions.

    Args:
        cache: the server's folder for uploads and downloads.
    """

    def __init__(self, parts: Components, actions: Actions, *, cache: str) -> None:
        self._parts = parts
        self._actions = actions
        self._cache = cache

    def connect(self, load: Callable[..., Any]) -> None:
        """Connect everything; `load` is the event of a visitor's arrival."""
        act, page = self._actions, self._parts
        session = [page.query, page.found, page.cart, page.outcome, page.index]
        files = "mask_file picture_file hits_file settings_file"
        about = "about embedders"
        unsegmented = "outcome result result_tools segment_status"
        sliders = "viewer slice result_slice window"
        carts = "cart cart_view hits segment_status structures settings_file"
        loaded = (
            "query found upload examples_panel mode hits why search_status "
            f"segment_slice segment_volume {sliders} {files}"
        )
        choosing = f"mode found hits why search_status structures {about} {sliders} {files}"

        self.on(
            load, act.prepare, [], f"examples {about}", "image_status",
            shown=page.examples, progress=True,
        )  # fmt: skip
        inputs = [page.upload, page.channel, page.index]
        self.on(
            page.upload.upload, act.load_upload, inputs, f"{loaded} {unsegmented}", "image_status",
            shown=page.viewer, spent=["upload"],
        )  # fmt: skip
        self.on(
            page.examples.click, lambda event, index: act.load_example(event.key, index),
            [page.index], f"{loaded} {unsegmented}", "image_status", shown=page.viewer, event=True,
        )  # fmt: skip
        for moved, follower in (("slice", "result_slice"), ("result_slice", "slice")):
            slider = getattr(page, moved)
            self.on(
                slider.input, with_session(functools.partial(act.show, follower=follower)),
                [*session, page.window, slider], f"viewer result hits {follower}", "image_status",
                trigger_mode="always_last",
            )  # fmt: skip
        self.on(
            page.window.input, with_session(act.show), [*session, page.window, page.slice],
            "viewer result hits", "image_status",
        )  # fmt: skip
        self.on(
            page.index.input, act.choose_index, [page.index, page.query],
            f"{choosing} {unsegmented}", "search_status", shown=page.hits, progress=True,
        )  # fmt: skip
        searched = self.on(
            page.search.click, with_session(act.find), [*session, page.mode, page.k, page.slice],
            "new_found", "search_status", shown=page.hits, progress=True, heavy=True,
        )  # fmt: skip
        self.on(
            searched.then, with_session(act.show_found), [*session, page.slice, page.new_found],
            f"new_found found hits why hits_file settings_file {about}", "search_status",
        )  # fmt: skip

        def hit(event: gr.EventData, *values: Any) -> dict[str, Any]:
            if event.action == "why":
                return act.why(from_values(values[:5]), event.key)
            return act.add_hit(from_values(values[:5]), values[5], event.key)

        def taken_out(event: gr.EventData, *values: Any) -> dict[str, Any]:
            return act.remove(from_values(values[:5]), values[5], event.key)

        shown = [*session, page.slice]
        self.on(page.hits.click, hit, shown, f"{carts} why", "search_status", event=True)
        self.on(page.add_all.click, with_session(act.add_hits), shown, carts, "segment_status")
        self.on(page.clear.click, with_session(act.empty), shown, carts, "segment_status")
        self.on(page.cart_view.click, taken_out, shown, carts, "segment_status", event=True)
        self.on(
            page.own_add.click, with_session(act.add_own),
            [*shown, page.own_image, page.own_mask, page.own_names],
            f"{carts} own_image own_mask", "segment_status", shown=page.cart_view,
            spent=["own_image", "own_mask"],
        )  # fmt: skip
        options = [page.slice, page.segmenter, page.support_k, page.structures]
        for scope, button in (("slice", page.segment_slice), ("volume", page.segment_volume)):
            segmented = self.on(
                button.click, with_session(functools.partial(act.segment, scope)),
                [*session, *options], "new_outcome", "segment_status", shown=page.result,
                progress=True, heavy=True,
            )  # fmt: skip
            self.on(
                segmented.then, with_session(act.show_outcome),
                [*session, page.window, page.slice, page.new_outcome],
                f"new_outcome outcome result result_tools result_slice legend {files}",
                "segment_status",
            )  # fmt: skip
        for control, script in ((page.opacity, OPACITY_SCRIPT), (page.wipe, WIPE_SCRIPT)):
            control.input(None, control, None, js=script, api_visibility="private")

    def on(
        self,
        trigger: Callable[..., Any],
        action: Callable[..., dict[str, Any]],
        inputs: Sequence[Any],
        outputs: str,
        status: str,
        *,
        shown: Any = None,
        event: bool = False,
        progress: bool = False,
        heavy: bool = False,
        spent: Sequence[str] = (),
        **options: Any,
    ) -> Any:
        """Run `action` on `trigger`; errors go to the status line, never as a traceback.

        Args:
            outputs: names of the parts that the action may change, besides `status`.
            shown: the part over which a progress bar or spinner is drawn; none by default.
            event, progress: whether the action wants the event first, the progress callback last.
            heavy: it runs a network; few of these run at the same time.
            spent: uploads to take away when the action fails, as their files are deleted.
        """

        def run(*values: Any, **extra: Any) -> Any:
            try:
                return self.updates(action(*values, **extra)) or gr.skip()
            except MedRetrievalError as error:
                message = str(error)
            except Exception:
                logger.exception("an action of the page failed")
                message = INTERNAL
            message = message[:1].upper() + message[1:]
            # The page takes this message as HTML.
            # Of a table only the sentence before it, as its columns need the width of the page.
            gr.Warning(html.escape(message.partition("\n")[0]), title="This did not work")
            failed = {getattr(self._parts, status): text.status("error", message)}
            return failed | {getattr(self._parts, name): None for name in spent}

        def plain(*values: Any) -> Any:
            return run(*values)

        def with_event(event: gr.EventData, *values: Any) -> Any:
            return run(event, *values)

        def with_progress(*values: Any, progress: gr.Progress = PROGRESS) -> Any:
            return run(*values, progress=reporting(progress))

        return trigger(
            with_event if event else with_progress if progress else plain,
            list(inputs),
            [getattr(self._parts, name) for name in dict.fromkeys([*outputs.split(), status])],
            show_progress="hidden" if shown is None else "full",
            show_progress_on=shown,
            concurrency_id="models" if heavy else None,
            concurrency_limit=2 if heavy else 8,
            api_visibility="private",
            **options,
        )

    def updates(self, updates: Mapping[str, Any]) -> dict[Any, Any]:
        """What an action says by the names of the parts, as the server wants it."""
        return {getattr(self._parts, name): self._update(value) for name, value in updates.items()}

    def _update(self, value: Any) -> Any:
        if isinstance(value, Props):
            return gr.update(**value)
        if isinstance(value, Download):
            offered = value.content is not None
            path = (
                stored(value.name, value.content, self._cache)
                if value.content is not None
                else None
            )
            return gr.update(value=path, interactive=offered, visible=value.visible)
        return value
