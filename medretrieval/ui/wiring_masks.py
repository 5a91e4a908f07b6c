"""What happens in the third column: support set, mask, corrections."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr

from medretrieval.ui.connecting import SIZE, Connecting, from_values, with_session

# Names of parts that change together.
FILES = "mask_file picture_file hits_file settings_file"
UNSEGMENTED = "outcome result result_tools segment_status corner agreement_view"
CARTS = "cart cart_view hits segment_status structures settings_file"

# The file is made when it is asked for, as the pictures of a visitor are not written before.
FETCH_SCRIPT = "() => document.querySelector('#mr-set-file')?.click()"
# Of a click that came to nothing the mark would stay otherwise.
UNMARK_SCRIPT = "() => document.querySelectorAll('#mr-result .mr-new').forEach((m) => m.remove())"


class MaskWiring(Connecting):
    """Connects the components of the third column."""

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
        self.on(
            page.set_upload.upload, with_session(act.load_set), [*shown, page.set_upload],
            f"{CARTS} set_upload", "segment_status", shown=page.cart_view, spent=["set_upload"],
        )  # fmt: skip
        saved = self.on(
            page.set_save.click, with_session(act.save_set), self._session, "set_file",
            "segment_status",
        )  # fmt: skip
        saved.success(None, None, None, js=FETCH_SCRIPT, api_visibility="private")

    def _mask(self) -> None:
        act, page = self._actions, self._parts
        for scope, button in (("slice", page.segment_slice), ("volume", page.segment_volume)):
            segmented = self._cancellable(
                button.click, functools.partial(act.segment, scope=scope),
                [*self._session, page.slice, page.run, *page.asked()], "new_outcome",
            )  # fmt: skip
            self._show(segmented.then, act.show_outcome, "new_outcome")
        self.on(page.cancel.click, act.cancel, [page.run], "", "segment_status")

    def _cancellable(
        self, trigger: Callable[..., Any], action: Callable[..., Any], inputs: Any, outputs: str
    ) -> Any:
        """Run a network on `trigger`, with a button that cancels it for as long as it runs."""
        act, page = self._actions, self._parts
        begun = self.on(trigger, act.begin, [page.run], "run cancel", "segment_status")
        done = self.on(
            begun.then, with_session(action), inputs, outputs, "segment_status",
            shown=page.result, progress=True, heavy=True,
        )  # fmt: skip
        self.on(done.then, act.end, [page.run], "cancel", "segment_status")
        return done

    def _show(
        self, trigger: Callable[..., Any], action: Callable[..., dict[str, Any]], made: str
    ) -> None:
        """Show the mask with what was made, which is in the state `made`."""
        page = self._parts
        self.on(
            trigger, with_session(action),
            [*self._session, page.window, page.slice, page.label, getattr(page, made)],
            f"{made} outcome result result_tools result_slice legend label corner agreement_view "
            f"{FILES}",
            "segment_status", alone=True,
        )  # fmt: skip

    def _correct(self) -> None:
        act, page = self._actions, self._parts

        def pointed(event: gr.EventData, *values: Any) -> dict[str, Any]:
            return act.point(from_values(values[:SIZE]), event.places, *values[SIZE:])

        shown = [*self._session, page.slice]
        pointing = self.on(
            page.result.click, pointed,
            [*self._session, page.window, page.slice, page.label, page.tool, page.corner],
            "new_correction corner result", "segment_status", event=True, heavy=True,
        )  # fmt: skip
        pointing.then(None, None, None, js=UNMARK_SCRIPT, api_visibility="private")
        undone = self.on(
            page.undo.click, with_session(act.undo), shown, "new_correction", "segment_status",
            heavy=True,
        )  # fmt: skip
        cleared = self.on(
            page.uncorrect.click, with_session(act.uncorrect), shown, "new_correction",
            "segment_status",
        )  # fmt: skip
        for changed in (pointing, undone, cleared):
            self._show(changed.then, act.show_correction, "new_correction")
        self.on(page.add_slice.click, with_session(act.add_slice), shown, CARTS, "segment_status")
        self._cancellable(page.check.click, act.check, [*shown, page.run], "agreement_view")
        self.on(
            page.version_save.click, with_session(act.save_version),
            [*shown, page.version_folder, page.version_name], "", "segment_status",
            shown=page.segment_status, progress=True, heavy=True,
        )  # fmt: skip
