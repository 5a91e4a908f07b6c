"""What happens on which event of the page: components to actions, and their updates back."""

from __future__ import annotations

import dataclasses
import functools
import html
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from medretrieval.errors import MedRetrievalError
from medretrieval.retrieval.feedback import Feedback
from medretrieval.types import Progress
from medretrieval.ui import panel, text
from medretrieval.ui.actions import Actions
from medretrieval.ui.components import Components
from medretrieval.ui.session import Download, Props, Session

logger = logging.getLogger(__name__)

INTERNAL = "Internal error: the page failed at this, which is not the fault of your image."
PROGRESS = gr.Progress()

OPACITY_SCRIPT = "v => document.documentElement.style.setProperty('--mr-opacity', v / 100)"
REVEAL_SCRIPT = """() => {
  const shown = document.querySelector('#mr-why .mr-why');
  if (shown) shown.scrollIntoView({ block: 'nearest' });
}"""
WIPE_SCRIPT = "v => document.documentElement.style.setProperty('--mr-wipe', v + '%')"

# Names of parts that change together.
FILES = "mask_file picture_file hits_file settings_file"
ABOUT = "about embedders"
UNSEGMENTED = "outcome result result_tools segment_status"
SLIDERS = "viewer slice result_slice window"
EXAMPLES = "feedback chips chips_panel"
CARTS = "cart cart_view hits segment_status structures settings_file"
IMAGE_OPTIONS = "opt_slices opt_first opt_last opt_sample opt_structure opt_map"
INDEX_OPTIONS = (
    "opt_modality opt_region opt_labels opt_column opt_value opt_patient opt_without opt_also"
)
SHOWN_OPTIONS = (
    "mode opt_part opt_range opt_map_group opt_sample opt_seed opt_orientation opt_sigma "
    "opt_candidates opt_top opt_in_use"
)


def reporting(progress: gr.Progress) -> Progress:
    """The page's progress bar as the library's progress callback."""

    def report(done: int, total: int, message: str) -> None:
        progress((done, total), desc=message)

    return report


SIZE = len(dataclasses.fields(Session))  # how many components make up a session


def from_values(values: Sequence[Any]) -> Session:
    """The visitor's session from the values of `Components.session`."""
    query, found, cart, outcome, feedback, index = values
    return Session(
        query=query,
        found=found,
        cart=cart or (),
        outcome=outcome,
        feedback=feedback or Feedback(),
        index=index or "",
    )


def with_session(action: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """An action on a session, called with the values that make one up, then its others."""
    return lambda *values, **extra: action(from_values(values[:SIZE]), *values[SIZE:], **extra)


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
        page = self._parts
        self._session = page.session()
        self._image(load)
        self._options()
        self._search()
        self._support()
        self._mask()
        for control, script in ((page.opacity, OPACITY_SCRIPT), (page.wipe, WIPE_SCRIPT)):
            control.input(None, control, None, js=script, api_visibility="private")
        page.why.change(None, None, None, js=REVEAL_SCRIPT, api_visibility="private")

    def _image(self, load: Callable[..., Any]) -> None:
        act, page = self._actions, self._parts
        loaded = (
            "query found upload examples_panel mode hits why maps search_status segment_slice "
            f"segment_volume {EXAMPLES} {SLIDERS} {FILES} {IMAGE_OPTIONS} {UNSEGMENTED}"
        )
        started = self.on(
            load, act.prepare, [], f"examples {ABOUT} {INDEX_OPTIONS}", "image_status",
            shown=page.examples, progress=True,
        )  # fmt: skip
        inputs = [page.upload, page.channel, page.index]
        uploaded = self.on(
            page.upload.upload, act.load_upload, inputs, loaded, "image_status",
            shown=page.viewer, spent=["upload"],
        )  # fmt: skip
        opened = self.on(
            page.examples.click, lambda event, index: act.load_example(event.key, index),
            [page.index], loaded, "image_status", shown=page.viewer, event=True,
        )  # fmt: skip
        for moved, follower in (("slice", "result_slice"), ("result_slice", "slice")):
            slider = getattr(page, moved)
            self.on(
                slider.input, with_session(functools.partial(act.show, follower=follower)),
                [*self._session, page.window, slider], f"viewer result hits {follower}",
                "image_status", trigger_mode="always_last",
            )  # fmt: skip
        self.on(
            page.window.input, with_session(act.show), [*self._session, page.window, page.slice],
            "viewer result hits", "image_status",
        )  # fmt: skip
        chosen = self.on(
            page.index.input, act.choose_index, [page.index, page.query],
            f"mode found hits why maps search_status structures {ABOUT} {EXAMPLES} {SLIDERS} "
            f"{FILES} {IMAGE_OPTIONS} {INDEX_OPTIONS} {UNSEGMENTED}",
            "search_status", shown=page.hits, progress=True,
        )  # fmt: skip
        for done in (started, uploaded, opened, chosen):
            self._adapt(done.then)

    def _adapt(self, trigger: Callable[..., Any]) -> None:
        """Show the options that matter now."""
        page = self._parts
        self.on(
            trigger, with_session(self._actions.shown),
            [*self._session, page.mode, *page.options()], SHOWN_OPTIONS, "search_status",
            trigger_mode="always_last",
        )  # fmt: skip

    def _options(self) -> None:
        act, page = self._actions, self._parts
        options = page.options()
        self.on(
            page.mode.input, with_session(act.choose_mode),
            [*self._session, page.slice, page.mode, *options],
            f"{SHOWN_OPTIONS} opt_slices opt_first opt_last opt_panel", "search_status",
        )  # fmt: skip
        column = page.opt_column
        self.on(
            column.input, with_session(act.choose_column), [*self._session, column],
            "opt_value", "search_status",
        )  # fmt: skip
        for name in ("first", "last"):
            self.on(
                getattr(page, f"opt_{name}_here").click,
                with_session(functools.partial(act.edge, name=name)),
                [*self._session, page.slice], f"opt_{name}", "search_status",
            )  # fmt: skip
        self.on(
            page.opt_map.upload, with_session(act.load_map),
            [*self._session, page.opt_map, page.opt_names],
            "query opt_structure opt_map opt_slices", "search_status", spent=["opt_map"],
        )  # fmt: skip
        self.on(
            page.opt_reset.click, with_session(act.reset), [*self._session, page.mode],
            " ".join([SHOWN_OPTIONS, *panel.fresh()]), "search_status",
        )  # fmt: skip
        for control in options:
            self._adapt(control.change)

    def _search(self) -> None:
        act, page = self._actions, self._parts
        for button in (page.search, page.again):
            searched = self.on(
                button.click, with_session(act.find),
                [*self._session, page.mode, page.k, page.slice, *page.options()],
                "new_found", "search_status", shown=page.hits, progress=True, heavy=True,
            )  # fmt: skip
            self.on(
                searched.then, with_session(act.show_found),
                [*self._session, page.slice, page.new_found],
                f"new_found found hits why maps hits_file settings_file {ABOUT}", "search_status",
            )  # fmt: skip

        def hit(event: gr.EventData, *values: Any) -> dict[str, Any]:
            session, number = from_values(values[:SIZE]), values[SIZE]
            if event.action == "why":
                return act.why(session, event.key)
            if event.action == "add":
                return act.add_hit(session, number, event.key)
            return act.judge(session, number, event.key, like=event.action == "like")

        def unjudged(event: gr.EventData, *values: Any) -> dict[str, Any]:
            return act.unjudge(from_values(values[:SIZE]), values[SIZE], event.key)

        shown = [*self._session, page.slice]
        clicked = self.on(
            page.hits.click, hit, shown, f"{CARTS} {EXAMPLES} why maps explaining",
            "search_status", event=True,
        )  # fmt: skip
        self.on(
            clicked.then, with_session(act.maps), [*self._session, page.explaining],
            "maps explaining", "search_status", shown=page.maps, progress=True, heavy=True,
        )  # fmt: skip
        self.on(page.chips.click, unjudged, shown, f"hits {EXAMPLES}", "search_status", event=True)

    def _support(self) -> None:
        act, page = self._actions, self._parts
        shown = [*self._session, page.slice]

        def taken_out(event: gr.EventData, *values: Any) -> dict[str, Any]:
            return act.remove(from_values(values[:SIZE]), values[SIZE], event.key)

        self.on(page.add_all.click, with_session(act.add_hits), shown, CARTS, "segment_status")
        self.on(page.clear.click, with_session(act.empty), shown, CARTS, "segment_status")
        self.on(page.cart_view.click, taken_out, shown, CARTS, "segment_status", event=True)
        self.on(
            page.own_add.click, with_session(act.add_own),
            [*shown, page.own_image, page.own_mask, page.own_names],
            f"{CARTS} own_image own_mask", "segment_status", shown=page.cart_view,
            spent=["own_image", "own_mask"],
        )  # fmt: skip

    def _mask(self) -> None:
        act, page = self._actions, self._parts
        options = [page.slice, page.segmenter, page.support_k, page.structures]
        for scope, button in (("slice", page.segment_slice), ("volume", page.segment_volume)):
            segmented = self.on(
                button.click, with_session(functools.partial(act.segment, scope=scope)),
                [*self._session, *options], "new_outcome", "segment_status", shown=page.result,
                progress=True, heavy=True,
            )  # fmt: skip
            self.on(
                segmented.then, with_session(act.show_outcome),
                [*self._session, page.window, page.slice, page.new_outcome],
                f"new_outcome outcome result result_tools result_slice legend {FILES}",
                "segment_status",
            )  # fmt: skip

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
