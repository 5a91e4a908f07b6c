"""The page: upload an image, find similar annotated cases, segment yours from them.

Run it with `python app.py [--port 7860] [--host 127.0.0.1]`, or as a Space. What the page does is
in `medretrieval.ui`; this file has its components and connects them.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import html
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

# Nothing is reported to anyone. The libraries read this when they are imported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr

from medretrieval.errors import MedRetrievalError
from medretrieval.pipeline import DEFAULT_SEGMENTER, DEFAULT_SUPPORT_K, Segmentation
from medretrieval.retrieval.modes import MODES
from medretrieval.types import RESEARCH_ONLY, Progress, Support, Volume
from medretrieval.ui import content, exports, text
from medretrieval.ui.actions import Actions
from medretrieval.ui.backend import DEMO, INDEXES_VARIABLE, Backend, listed_indexes
from medretrieval.ui.pictures import Palette
from medretrieval.ui.session import Download, Props, Session

try:
    import spaces
except ImportError:  # anywhere but on a Space with ZeroGPU
    spaces = None

logger = logging.getLogger("medretrieval.app")

KEPT_SECONDS = 3600  # of a visitor's images and files after their last use
MAX_UPLOAD = os.environ.get("MEDRETRIEVAL_MAX_UPLOAD", "600mb")
SESSIONS = 40  # whose state is held in memory at the same time
INTERNAL = "Internal error: the page failed at this, which is not the fault of your image."
PROGRESS = gr.Progress()

# One listener on the root of a list of cards, as the cards inside are drawn again on each change.
CARDS_SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (button && !button.disabled)
    trigger('click', { action: button.dataset.action, key: button.dataset.key });
});
"""
OPACITY_SCRIPT = "v => document.documentElement.style.setProperty('--mr-opacity', v / 100)"
WIPE_SCRIPT = "v => document.documentElement.style.setProperty('--mr-wipe', v + '%')"


def reporting(progress: gr.Progress) -> Progress:
    """The page's progress bar as the library's progress callback."""

    def report(done: int, total: int, message: str) -> None:
        progress((done, total), desc=message)

    return report


def segmenting(backend: Backend) -> Callable[..., Segmentation]:
    """`backend.segment`, on ZeroGPU in the process that has the GPU.

    What goes there and comes back can be pickled; the progress bar is found again there.
    """

    def duration(_key: str, volume: Volume, *options: Any) -> int:
        indices = options[-1]
        slices = max(volume.grid.shape) if indices is None else len(indices)
        return min(20 + slices, 240)

    def work(
        key: str,
        volume: Volume,
        segmenter: str,
        support_k: int,
        supports: Sequence[Support] | None,
        labels: Sequence[str] | None,
        indices: Sequence[int] | None,
    ) -> Segmentation:
        return backend.segment(
            key,
            volume,
            segmenter=segmenter,
            support_k=support_k,
            supports=supports,
            labels=labels,
            indices=indices,
            progress=reporting(gr.Progress()),
        )

    if spaces is not None:
        work = spaces.GPU(duration=duration)(work)

    def segment(key: str, volume: Volume, **options: Any) -> Segmentation:
        names = ("segmenter", "support_k", "supports", "labels", "indices")
        return work(key, volume, *(options[name] for name in names))

    return segment


class Page:
    """The components of the page, each an attribute by its name, and their connections.

    State that belongs to a visitor is in `gr.State`; `backend` is shared and read-only.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.actions = Actions(
            backend, uploads=gr.utils.get_upload_folder(), segment=segmenting(backend)
        )
        with gr.Blocks(
            title="medretrieval",
            analytics_enabled=False,
            delete_cache=(600, KEPT_SECONDS),
            fill_width=True,
        ) as self.blocks:
            self.query = gr.State(None, time_to_live=KEPT_SECONDS)
            self.found = gr.State(None, time_to_live=KEPT_SECONDS)
            self.cart = gr.State((), time_to_live=KEPT_SECONDS)
            self.outcome = gr.State(None, time_to_live=KEPT_SECONDS)
            # What was just made, until it is known to belong to what the visitor looks at now.
            self.new_found = gr.State(None, time_to_live=KEPT_SECONDS)
            self.new_outcome = gr.State(None, time_to_live=KEPT_SECONDS)
            gr.HTML(text.header(RESEARCH_ONLY))
            with gr.Row(elem_id="mr-columns"):
                with gr.Column(min_width=320):
                    self._image_column()
                with gr.Column(min_width=320):
                    self._search_column()
                with gr.Column(min_width=320):
                    self._segment_column()
            gr.HTML(text.footer(RESEARCH_ONLY))
            self._connect()
            self._endpoints()

    # Components

    def _cards(self, name: str, value: str) -> gr.HTML:
        return gr.HTML(value, js_on_load=CARDS_SCRIPT, elem_id=f"mr-{name}")

    def _image_column(self) -> None:
        gr.HTML(text.step(1, "Your image"))
        self.upload = gr.File(
            label="Image or volume",
            height=124,
            elem_id="mr-upload",
        )
        with gr.Accordion(
            "Examples", open=True, elem_id="mr-examples-panel"
        ) as self.examples_panel:
            self.examples = self._cards(
                "examples",
                text.placeholder("Being prepared", "The first start takes a minute or two."),
            )
        self.image_status = gr.HTML(
            text.status(
                "idle",
                "Upload a PNG, JPEG, TIFF, NIfTI or DICOM file, or a zip of a DICOM series. "
                "Or click an example.",
            ),
            elem_id="mr-image-status",
        )
        self.viewer = gr.HTML(
            text.placeholder("No image yet", "It is shown here, slice by slice."),
            elem_id="mr-viewer",
        )
        self.slice = gr.Slider(
            0, 1, 0, step=1, label="Slice", visible=False, buttons=[], elem_id="mr-slice"
        )
        self.window = gr.Dropdown(
            list(content.WINDOWS.items()),
            value="",
            label="Window",
            info="For display only; a search uses the window of the index.",
            visible=False,
            elem_id="mr-window",
        )
        with gr.Accordion("More options", open=False):
            self.channel = gr.Number(
                0,
                label="Channel or frame",
                info="Of a 4-D NIfTI or a cine. Set it before you upload.",
                precision=0,
                minimum=0,
                elem_id="mr-channel",
            )

    def _search_column(self) -> None:
        gr.HTML(text.step(2, "Find similar cases"))
        own = self.backend.allow_paths
        self.index = gr.Dropdown(
            self.backend.choices(),
            value=DEMO,
            label="Index",
            info="Choose one, or type the path of an index folder." if own else None,
            allow_custom_value=own,
            elem_id="mr-index",
        )
        with gr.Accordion("About this index, and its limits", open=False):
            self.about = gr.HTML(text.placeholder("Not open yet", "It opens on first use."))
        with gr.Accordion("Embedders on this machine", open=False):
            self.embedders = gr.HTML("")
        with gr.Row():
            self.mode = gr.Dropdown(
                [(text.MODES.get(name, name), name) for name in MODES],
                value="rerank",
                label="Search for",
                scale=3,
                min_width=180,
                elem_id="mr-mode",
            )
            self.k = gr.Slider(
                1,
                24,
                6,
                step=1,
                label="Results",
                scale=2,
                min_width=120,
                buttons=[],
                elem_id="mr-k",
            )
        self.search = gr.Button("Find similar cases", variant="primary", elem_id="mr-search")
        self.search_status = gr.HTML("", elem_id="mr-search-status")
        self.hits = self._cards(
            "hits", text.placeholder("No results yet", "Similar annotated cases are listed here.")
        )
        self.why = gr.HTML("", elem_id="mr-why")

    def _segment_column(self) -> None:
        gr.HTML(text.step(3, "Segment from annotated slices"))
        self.cart_view = self._cards("cart", content.cart_cards((), Palette({})))
        with gr.Row():
            self.add_all = gr.Button(
                "Add all results", size="sm", min_width=100, elem_id="mr-add-all"
            )
            self.clear = gr.Button("Empty the set", size="sm", min_width=100, elem_id="mr-clear")
        with gr.Accordion("Add your own annotated image", open=False):
            with gr.Row():
                self.own_image = gr.File(
                    label="Image", height=96, min_width=120, elem_id="mr-own-image"
                )
                self.own_mask = gr.File(
                    label="Mask (NIfTI, PNG)", height=96, min_width=120, elem_id="mr-own-mask"
                )
            self.own_names = gr.Textbox(
                label="Names of the mask values",
                placeholder="1=liver, 2=spleen",
                elem_id="mr-own-names",
            )
            self.own_add = gr.Button("Add to the support set", size="sm", elem_id="mr-own-add")
        with gr.Accordion("More options", open=False):
            self.structures = gr.Dropdown(
                [],
                multiselect=True,
                label="Structures",
                info="Empty: all that the annotated slices show.",
                elem_id="mr-structures",
            )
            self.support_k = gr.Slider(
                1,
                16,
                DEFAULT_SUPPORT_K,
                step=1,
                label="Annotated slices to find for each slice",
                info="While the support set is empty.",
                buttons=[],
            )
            self.segmenter = gr.Dropdown(
                [(f"{row['name']} ({row['status']})", row["name"])
                 for row in self.backend.segmenters()],
                value=DEFAULT_SEGMENTER,
                label="Segmenter",
                info="sam2-micro is small and trained on synthetic images only.",
                elem_id="mr-segmenter",
            )  # fmt: skip
        with gr.Row():
            self.segment_slice = gr.Button(
                "Segment this slice", variant="primary", min_width=140, elem_id="mr-segment-slice"
            )
            self.segment_volume = gr.Button(
                "Segment all slices", min_width=140, elem_id="mr-segment-volume"
            )
        self.segment_status = gr.HTML("", elem_id="mr-segment-status")
        self.result = gr.HTML(
            text.placeholder("No segmentation yet", "The mask is shown over your image."),
            elem_id="mr-result",
        )
        with gr.Column(visible=False) as self.result_tools:
            self.result_slice = gr.Slider(
                0, 1, 0, step=1, label="Slice", buttons=[], elem_id="mr-result-slice"
            )
            with gr.Row():
                self.opacity = gr.Slider(
                    0,
                    100,
                    70,
                    step=5,
                    label="Opacity, %",
                    min_width=100,
                    buttons=[],
                    elem_id="mr-opacity",
                )
                self.wipe = gr.Slider(
                    0,
                    100,
                    0,
                    step=1,
                    label="Wipe, %",
                    min_width=100,
                    buttons=[],
                    elem_id="mr-wipe",
                )
            self.side = gr.Checkbox(
                False, label="Show the plain image beside it", elem_id="mr-side-by-side"
            )
            self.legend = gr.HTML("", elem_id="mr-legend")
        with gr.Row():
            small: dict[str, Any] = {"size": "sm", "interactive": False, "min_width": 100}
            self.mask_file = gr.DownloadButton("Mask (NIfTI)", elem_id="mr-mask-file", **small)
            self.picture_file = gr.DownloadButton(
                "Mask (PNG)", visible=False, elem_id="mr-picture-file", **small
            )
            self.hits_file = gr.DownloadButton("Results (CSV)", elem_id="mr-hits-file", **small)
            self.settings_file = gr.DownloadButton(
                "Settings (JSON)", elem_id="mr-settings-file", **small
            )

    # Connections

    def _connect(self) -> None:
        act = self.actions
        session = [self.query, self.found, self.cart, self.outcome, self.index]
        files = "mask_file picture_file hits_file settings_file"
        about = "about embedders"
        unsegmented = "outcome result result_tools segment_status"
        sliders = "viewer slice result_slice window"
        carts = "cart cart_view hits segment_status structures settings_file"
        loaded = (
            f"query found upload mode hits why search_status segment_volume {sliders} {files} "
            "examples_panel"
        )
        choosing = f"found hits why search_status structures {about} {sliders} {files}"

        self._on(
            self.blocks.load, act.prepare, [], f"examples {about}", "image_status",
            shown=self.examples, progress=True,
        )  # fmt: skip
        inputs = [self.upload, self.channel, self.index]
        self._on(
            self.upload.upload, act.load_upload, inputs, f"{loaded} {unsegmented}", "image_status",
            shown=self.viewer, spent=["upload"],
        )  # fmt: skip
        self._on(
            self.examples.click, lambda event, index: act.load_example(event.key, index),
            [self.index], f"{loaded} {unsegmented}", "image_status", shown=self.viewer, event=True,
        )  # fmt: skip
        for slider in (self.slice, self.result_slice):
            self._on(
                slider.input, with_session(act.show), [*session, self.window, slider],
                "viewer result slice result_slice hits", "image_status", trigger_mode="always_last",
            )  # fmt: skip
        self._on(
            self.window.input, with_session(act.show), [*session, self.window, self.slice],
            "viewer result slice result_slice hits", "image_status",
        )  # fmt: skip
        self._on(
            self.index.input, act.choose_index, [self.index, self.query],
            f"{choosing} {unsegmented}", "search_status", shown=self.hits, progress=True,
        )  # fmt: skip
        searched = self._on(
            self.search.click, with_session(act.find), [*session, self.mode, self.k, self.slice],
            "new_found", "search_status", shown=self.hits, progress=True, heavy=True,
        )  # fmt: skip
        self._on(
            searched.then, with_session(act.show_found), [*session, self.slice, self.new_found],
            f"new_found found hits why hits_file settings_file {about}", "search_status",
        )  # fmt: skip

        def hit(event: gr.EventData, *values: Any) -> dict[str, Any]:
            if event.action == "why":
                return act.why(from_values(values[:5]), event.key)
            return act.add_hit(from_values(values[:5]), values[5], event.key)

        def taken_out(event: gr.EventData, *values: Any) -> dict[str, Any]:
            return act.remove(from_values(values[:5]), values[5], event.key)

        shown = [*session, self.slice]
        self._on(self.hits.click, hit, shown, f"{carts} why", "search_status", event=True)
        self._on(self.add_all.click, with_session(act.add_hits), shown, carts, "segment_status")
        self._on(self.clear.click, with_session(act.empty), shown, carts, "segment_status")
        self._on(self.cart_view.click, taken_out, shown, carts, "segment_status", event=True)
        self._on(
            self.own_add.click, with_session(act.add_own),
            [*shown, self.own_image, self.own_mask, self.own_names],
            f"{carts} own_image own_mask", "segment_status", shown=self.cart_view,
            spent=["own_image", "own_mask"],
        )  # fmt: skip
        options = [self.slice, self.segmenter, self.support_k, self.structures]
        for scope, button in (("slice", self.segment_slice), ("volume", self.segment_volume)):
            segmented = self._on(
                button.click, with_session(functools.partial(act.segment, scope)),
                [*session, *options], "new_outcome", "segment_status", shown=self.result,
                progress=True, heavy=True,
            )  # fmt: skip
            self._on(
                segmented.then, with_session(act.show_outcome),
                [*session, self.window, self.slice, self.new_outcome],
                f"new_outcome outcome result result_tools result_slice legend {files}",
                "segment_status",
            )  # fmt: skip
        for control, script in ((self.opacity, OPACITY_SCRIPT), (self.wipe, WIPE_SCRIPT)):
            control.input(None, control, None, js=script, api_visibility="private")

    def _on(
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
                return self._updates(action(*values, **extra)) or gr.skip()
            except MedRetrievalError as error:
                message = str(error)
            except Exception:
                logger.exception("an action of the page failed")
                message = INTERNAL
            message = message[:1].upper() + message[1:]
            # The page takes this message as HTML.
            gr.Warning(html.escape(message), title="This did not work")
            failed = {getattr(self, status): text.status("error", message)}
            return failed | {getattr(self, name): None for name in spent}

        def plain(*values: Any) -> Any:
            return run(*values)

        def with_event(event: gr.EventData, *values: Any) -> Any:
            return run(event, *values)

        def with_progress(*values: Any, progress: gr.Progress = PROGRESS) -> Any:
            return run(*values, progress=reporting(progress))

        return trigger(
            with_event if event else with_progress if progress else plain,
            list(inputs),
            [getattr(self, name) for name in dict.fromkeys([*outputs.split(), status])],
            show_progress="hidden" if shown is None else "full",
            show_progress_on=shown,
            concurrency_id="models" if heavy else None,
            concurrency_limit=2 if heavy else 8,
            api_visibility="private",
            **options,
        )

    def _updates(self, updates: Mapping[str, Any]) -> dict[Any, Any]:
        return {getattr(self, name): self._update(value) for name, value in updates.items()}

    def _update(self, value: Any) -> Any:
        if isinstance(value, Props):
            return gr.update(**value)
        if isinstance(value, Download):
            offered = value.content is not None
            path = self._stored(value.name, value.content) if value.content is not None else None
            return gr.update(value=path, interactive=offered, visible=value.visible)
        return value

    def _stored(self, name: str, data: bytes) -> str:
        # Files for download lie only in the server's cache, which it cleans after a while.
        return str(gr.processing_utils.save_bytes_to_cache(data, name, self.mask_file.GRADIO_CACHE))

    # Endpoints for programs

    def _endpoints(self) -> None:
        with gr.Column(visible=False):
            file = gr.File(label="file")
            index = gr.Textbox(DEMO, label="index")
            mode = gr.Textbox("rerank", label="mode")
            k = gr.Number(5, precision=0, label="k")
            number = gr.Number(None, precision=0, label="slice_index")
            labels = gr.JSON([], label="labels")
            support_k = gr.Number(DEFAULT_SUPPORT_K, precision=0, label="support_k")
            segmenter = gr.Textbox(DEFAULT_SEGMENTER, label="segmenter")
            answer, mask, button = gr.JSON(label="result"), gr.File(label="mask"), gr.Button()
        heavy: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 2}
        button.click(self.api_indexes, None, answer, api_name="indexes")
        button.click(
            self.api_search, [file, index, mode, k, number], answer, api_name="search", **heavy
        )
        button.click(
            self.api_segment,
            [file, index, labels, number, support_k, segmenter],
            [mask, answer],
            api_name="segment",
            **heavy,
        )

    def api_indexes(self) -> list[dict[str, str]]:
        """List the indexes of this page.

        Returns:
            The key of each, for `index` of the other endpoints, and its title.
        """
        return [{"index": key, "title": title} for title, key in self.backend.choices()]

    def api_search(
        self,
        file: str,
        index: str = DEMO,
        mode: str = "rerank",
        k: int = 5,
        slice_index: int | None = None,
    ) -> dict[str, Any]:
        """Find the annotated slices or cases most similar to an image.

        Args:
            file: PNG, JPEG, TIFF, NIfTI, DICOM file, or zip of a DICOM series.
            index: key of an index, as listed by /indexes.
            mode: "slice", "count", "weighted" or "rerank".
            k: number of hits.
            slice_index: search with this slice alone, counted from 0; default all.

        Returns:
            {"query", "mode", "hits": [...]}, as `medretrieval search --json` prints it.
        """
        with Answering():
            volume = self.actions.read_upload(file)
            opened = self.backend.open(index)
            answer: dict[str, Any] = opened.index.search(
                volume, mode=mode, k=int(k), slice_index=slice_index, query_name="query"
            ).to_json()
        return answer

    def api_segment(
        self,
        file: str,
        index: str = DEMO,
        labels: list[str] | None = None,
        slice_index: int | None = None,
        support_k: int = DEFAULT_SUPPORT_K,
        segmenter: str = DEFAULT_SEGMENTER,
    ) -> tuple[str, dict[str, Any]]:
        """Segment an image from the most similar annotated slices of an index.

        Args:
            file: PNG, JPEG, TIFF, NIfTI, DICOM file, or zip of a DICOM series.
            index: key of an index, as listed by /indexes.
            labels: names of the structures wanted; default all that the slices found show.
            slice_index: segment this slice alone, counted from 0; default all.
            support_k: annotated slices found for each slice of the image.
            segmenter: name of the segmenter.

        Returns:
            The label map as NIfTI on the grid of the image, and what was found.
        """
        with Answering():
            volume = self.actions.read_upload(file)
            self.backend.open(index)
            made = self.actions.run_segmenter(
                index,
                volume,
                segmenter=segmenter,
                support_k=int(support_k),
                supports=None,
                labels=labels or None,
                indices=None if slice_index is None else [int(slice_index)],
            )
            data = exports.nifti_bytes(made.labels)
        return self._stored(exports.MASK_FILE, data), made.to_json()


def from_values(values: Sequence[Any]) -> Session:
    """The visitor's session from the values of its five components."""
    query, found, cart, outcome, index = values
    return Session(query=query, found=found, cart=cart or (), outcome=outcome, index=index or "")


def with_session(action: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """An action on a session, called with the five values that make one up, then its others."""
    return lambda *values, **extra: action(from_values(values[:5]), *values[5:], **extra)


def _scoped(
    action: Callable[..., Any], scope: str, session: Session, *values: Any, **extra: Any
) -> Any:
    return action(session, scope, *values, **extra)


class Answering:
    """Errors of an endpoint as messages for its caller, never as tracebacks."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, MedRetrievalError):
            raise gr.Error(str(error), print_exception=False) from None
        if isinstance(error, Exception):
            logger.error("an endpoint failed", exc_info=error)
            raise gr.Error(INTERNAL, print_exception=False) from None


class Headers:
    """Adds headers to every answer: the page loads nothing from anywhere else."""

    POLICY = (
        "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'"
    )

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        async def sending(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", self.POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self._app(scope, receive, sending)


def theme() -> gr.themes.Base:
    """Calm colours, and fonts of the visitor's own system."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
        spacing_size=gr.themes.sizes.spacing_sm,
    ).set(
        # Enough contrast for small text (WCAG AA) on both grounds.
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        button_secondary_text_color="*neutral_800",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )


def launch(page: Page, *, host: str, port: int | None) -> str:
    """Begin to serve the page; return its address."""
    from starlette.middleware import Middleware

    page.blocks.queue(max_size=32, default_concurrency_limit=8)
    _, address, _ = page.blocks.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        show_error=False,
        quiet=True,
        share=False,
        ssr_mode=False,
        run_history=False,
        max_file_size=MAX_UPLOAD,
        state_session_capacity=SESSIONS,
        footer_links=["api"],
        app_kwargs={"middleware": [Middleware(Headers)]},
        theme=theme(),
        css_paths=[Path(text.__file__).with_name("page.css")],
    )
    return str(address)


def main(args: Sequence[str] | None = None) -> None:
    """Serve the page until it is stopped."""
    space = "SPACE_ID" in os.environ
    parser = argparse.ArgumentParser(description="Serve the page.")
    parser.add_argument(
        "--host",
        default=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if space else "127.0.0.1"),
        help="address to listen at (default: this machine only)",
    )
    parser.add_argument(
        "--port", type=int, help="default: GRADIO_SERVER_PORT, else the first free one from 7860"
    )
    options = parser.parse_args(args)
    if "GRADIO_TEMP_DIR" not in os.environ:
        # Files of visitors lie in a folder of this process, which goes when it does.
        os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="medretrieval-page-")
        atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # A terminated server deletes the files of its visitors, as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    backend = Backend(
        indexes=listed_indexes(os.environ.get(INDEXES_VARIABLE)),
        allow_paths=not space and options.host in ("127.0.0.1", "localhost", "::1"),
        device=os.environ.get("MEDRETRIEVAL_DEVICE", "cpu" if spaces is None else "cuda"),
    )
    page = Page(backend)
    print(f"medretrieval is at {launch(page, host=options.host, port=options.port)}", flush=True)
    page.blocks.block_thread()


if __name__ == "__main__":
    main()
