"""What happens on which event of the page: components to actions, and their updates back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr

from medretrieval.ui import panel
from medretrieval.ui.connecting import SIZE, from_values, with_session
from medretrieval.ui.wiring_masks import CARTS, FILES, UNSEGMENTED, MaskWiring

OPACITY_SCRIPT = "v => document.documentElement.style.setProperty('--mr-opacity', v / 100)"
REVEAL_SCRIPT = """() => {
  const shown = document.querySelector('#mr-why .mr-why');
  if (shown) shown.scrollIntoView({ block: 'nearest' });
}"""
WIPE_SCRIPT = "v => document.documentElement.style.setProperty('--mr-wipe', v + '%')"

# Names of parts that change together.
ABOUT = "about embedders"
SLIDERS = "viewer slice result_slice window"
EXAMPLES = "feedback chips chips_panel"
IMAGE_OPTIONS = "opt_slices opt_first opt_last opt_sample opt_structure opt_map"
INDEX_OPTIONS = (
    "opt_modality opt_region opt_labels opt_column opt_value opt_patient opt_without opt_also"
)
SHOWN_OPTIONS = (
    "mode opt_part opt_range opt_map_group opt_sample opt_seed opt_orientation opt_sigma "
    "opt_candidates opt_top opt_in_use"
)


class Wiring(MaskWiring):
    """Connects all components with the actions."""

    def connect(self, load: Callable[..., Any]) -> None:
        """Connect everything; `load` is the event of a visitor's arrival."""
        page = self._parts
        self._image(load)
        self._options()
        self._search()
        self._support()
        self._mask()
        self._correct()
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
            load, act.prepare, [], "examples", "image_status",
            shown=page.examples, progress=True,
        )  # fmt: skip
        started = self.on(
            started.then, act.introduce, [page.index], f"{ABOUT} {INDEX_OPTIONS}", "search_status",
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
            f"index mode found hits why maps search_status structures {ABOUT} {EXAMPLES} {SLIDERS} "
            f"{FILES} {IMAGE_OPTIONS} {INDEX_OPTIONS} {UNSEGMENTED}",
            "search_status", shown=page.hits, progress=True, failed=act.unopened(),
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
                "new_found found hits why maps hits_file", "search_status", shown=page.hits,
                progress=True, heavy=True, failed=act.unfound(),
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
