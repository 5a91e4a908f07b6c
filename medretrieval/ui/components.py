"""The components of the page and where they stand. What they do is connected in `wiring`."""

from __future__ import annotations

import dataclasses
from typing import Any

import gradio as gr

from medretrieval.retrieval.feedback import Feedback
from medretrieval.retrieval.modes import MODES
from medretrieval.types import RESEARCH_ONLY
from medretrieval.ui import content, text, words
from medretrieval.ui.backend import DEMO, Backend
from medretrieval.ui.options_panel import SearchOptions
from medretrieval.ui.segment_panel import SegmentColumn, cards
from medretrieval.ui.session import Session

KEPT_SECONDS = 3600  # of a visitor's images and files after their last use

# A native dialog holds the focus and closes on Escape by itself.
ENLARGE_SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-enlarge]');
  if (button) button.nextElementSibling.showModal();
  else if (event.target.matches('dialog, dialog img')) event.target.closest('dialog').close();
});
"""


class Components(SearchOptions, SegmentColumn):
    """The components of the page, each an attribute by its name; made inside of a `gr.Blocks`.

    State that belongs to a visitor is in `gr.State`; `backend` is shared and read-only.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.query = gr.State(None, time_to_live=KEPT_SECONDS)
        self.found = gr.State(None, time_to_live=KEPT_SECONDS)
        self.cart = gr.State((), time_to_live=KEPT_SECONDS)
        self.outcome = gr.State(None, time_to_live=KEPT_SECONDS)
        self.feedback = gr.State(Feedback(), time_to_live=KEPT_SECONDS)
        # What was just made, until it is known to belong to what the visitor looks at now.
        self.new_found = gr.State(None, time_to_live=KEPT_SECONDS)
        self.new_outcome = gr.State(None, time_to_live=KEPT_SECONDS)
        self.new_correction = gr.State(None, time_to_live=KEPT_SECONDS)
        self.run = gr.State(None, time_to_live=KEPT_SECONDS)  # what can be cancelled
        self.corner = gr.State(None, time_to_live=KEPT_SECONDS)  # of a box that is being drawn
        self.explaining = gr.State(None, time_to_live=KEPT_SECONDS)  # the hit that is explained
        gr.HTML(text.header(RESEARCH_ONLY))
        with gr.Row(elem_id="mr-columns"):
            with gr.Column(min_width=320):
                self._image_column()
            with gr.Column(min_width=320):
                self._search_column()
            with gr.Column(min_width=320):
                self._segment_column(backend)
        gr.HTML(text.footer(RESEARCH_ONLY))

    def session(self) -> list[Any]:
        """The components that make up a `Session`, in its order."""
        return [getattr(self, field.name) for field in dataclasses.fields(Session)]

    def _own_indexes(self) -> bool:
        return self._backend.allow_paths

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
            self.examples = cards(
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
        own = self._backend.allow_paths
        self.index = gr.Dropdown(
            self._backend.choices(),
            value=DEMO,
            label="Index",
            info="Choose one, or type an index folder or ORG/NAME of the Hub; several with commas."
            if own
            else None,
            allow_custom_value=own,
            elem_id="mr-index",
        )
        with gr.Accordion("About this index, and its limits", open=False):
            self.about = gr.HTML(text.placeholder("Not open yet", "It opens on first use."))
        with gr.Accordion("Indexes you can build", open=False):
            gr.HTML(content.buildable(), elem_id="mr-buildable")
        with gr.Accordion("Embedders on this machine", open=False):
            self.embedders = gr.HTML("")
        with gr.Row():
            self.mode = gr.Dropdown(
                words.mode_choices(MODES),
                value="rerank",
                label="Search for",
                info=words.HINTS["rerank"],
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
        self._search_options()
        self.search = gr.Button("Find similar cases", variant="primary", elem_id="mr-search")
        with gr.Row(visible=False, elem_id="mr-chips-panel") as self.chips_panel:
            self.chips = cards("chips", "")
            self.again = gr.Button(
                "Search again", variant="primary", size="sm", min_width=110, elem_id="mr-again"
            )
        self.search_status = gr.HTML("", elem_id="mr-search-status")
        self.hits = cards(
            "hits", text.placeholder("No results yet", "Similar annotated cases are listed here.")
        )
        self.why = gr.HTML("", elem_id="mr-why")
        self.maps = gr.HTML("", js_on_load=ENLARGE_SCRIPT, elem_id="mr-maps")
