"""The components under "Search options"; what they offer is decided in `panel`."""

from __future__ import annotations

from typing import Any

import gradio as gr

from medretrieval.ui.options import ALL, DEFAULTS
from medretrieval.ui.panel import EVERY, ORIENTATIONS, PARTS, PREFIX, SAMPLES

# For a list that another image or index changes: an event that was on its way still sends a value
# of the old list, which the server would refuse before any of our code could say why.
CHANGING: dict[str, Any] = {"allow_custom_value": True}


class SearchOptions:
    """The accordion, each component an attribute by its name; made inside of a `gr.Blocks`."""

    def _search_options(self) -> None:
        with gr.Accordion("Search options", open=False, elem_id="mr-options") as self.opt_panel:
            with gr.Column(visible=False, elem_classes="mr-group-box") as self.opt_part:
                self._part()
            with gr.Column(elem_classes="mr-group-box"):
                self._filters()
            with gr.Column(elem_classes="mr-group-box"):
                self._ranking()
            self.opt_reset = gr.Button(
                "Back to the usual options", size="sm", elem_id="mr-opt-reset"
            )
        self.opt_in_use = gr.HTML("", elem_id="mr-in-use")

    def options(self) -> list[Any]:
        """The controls in the order of `options.DEFAULTS`."""
        return [getattr(self, PREFIX + name) for name in DEFAULTS]

    def _part(self) -> None:
        self.opt_slices = gr.Radio(
            PARTS,
            value=ALL,
            label="Search with these slices of your image",
            elem_id="mr-opt-slices",
        )
        with gr.Row(visible=False) as self.opt_range:
            for name, title in (("first", "First slice"), ("last", "Last slice")):
                with gr.Column(min_width=110):
                    number = gr.Number(0, label=title, precision=0, elem_id=f"mr-opt-{name}")
                    button = gr.Button(
                        "The one shown", size="sm", min_width=80, elem_id=f"mr-opt-{name}-here"
                    )
                setattr(self, PREFIX + name, number)
                setattr(self, f"{PREFIX}{name}_here", button)
        with gr.Column(visible=False) as self.opt_map_group:
            self.opt_map = gr.File(label="Label map of your image", height=96, elem_id="mr-opt-map")
            self.opt_names = gr.Textbox(
                label="Names of its values",
                info="Empty: the names of the index. Set them before you upload.",
                placeholder="1=liver, 2=spleen",
                elem_id="mr-opt-names",
            )
            self.opt_structure = gr.Dropdown(
                [],
                label="Structure",
                value=None,
                elem_id="mr-opt-structure",
                **CHANGING,
            )
        with gr.Row():
            self.opt_sample = gr.Dropdown(
                [EVERY, *SAMPLES],
                value="",
                label="Of these take",
                info="Or type mm:X, step:N or random:N.",
                allow_custom_value=True,
                scale=3,
                min_width=150,
                elem_id="mr-opt-sample",
            )
            self.opt_seed = gr.Number(
                0, label="Seed", precision=0, visible=False, scale=1, min_width=80
            )

    def _filters(self) -> None:
        with gr.Row():
            self.opt_modality = gr.Dropdown(
                [("Any modality", "")],
                value="",
                label="Modality",
                min_width=120,
                **CHANGING,
                elem_id="mr-opt-modality",
            )
            self.opt_region = gr.Dropdown(
                [("Any region", "")],
                value="",
                label="Body region",
                min_width=120,
                **CHANGING,
                elem_id="mr-opt-region",
            )
        self.opt_labels = gr.Dropdown(
            [],
            value=[],
            multiselect=True,
            label="Showing any of these structures",
            **CHANGING,
            elem_id="mr-opt-labels",
        )
        with gr.Row():
            self.opt_column = gr.Dropdown(
                [("None", "")],
                value="",
                label="Other property",
                min_width=120,
                **CHANGING,
                elem_id="mr-opt-column",
            )
            self.opt_value = gr.Dropdown(
                [],
                value=None,
                label="Its value",
                allow_custom_value=True,
                visible=False,
                min_width=120,
                elem_id="mr-opt-value",
            )
        with gr.Row():
            for name, title in (
                ("patient", "Only this patient"),
                ("without", "Leave out this patient"),
            ):
                box = gr.Textbox(
                    label=title,
                    placeholder="patient id",
                    min_width=120,
                    elem_id=f"mr-opt-{name}",
                )
                setattr(self, PREFIX + name, box)

    def _ranking(self) -> None:
        self.opt_orientation = gr.Radio(
            ORIENTATIONS,
            value=DEFAULTS["orientation"],
            label="How your image lies",
            elem_id="mr-opt-orientation",
        )
        self.opt_sigma = gr.Slider(
            0.05,
            1,
            DEFAULTS["sigma"],
            step=0.05,
            label="Width of the weights",
            info="As a share of your slices; smaller: the middle counts more.",
            visible=False,
            buttons=[],
            elem_id="mr-opt-sigma",
        )
        with gr.Row():
            self.opt_candidates = gr.Number(
                0,
                label="Cases to compare closely",
                info="0: all with a match.",
                precision=0,
                min_width=120,
                elem_id="mr-opt-candidates",
            )
            self.opt_top = gr.Number(
                DEFAULTS["top"],
                label="Slices that locate it",
                info="Of each case.",
                precision=0,
                min_width=120,
                elem_id="mr-opt-top",
            )
        self.opt_also = gr.Dropdown(
            [],
            value=[],
            multiselect=True,
            label="Also search these indexes and fuse the rankings",
            info="Indexes of the same cases, made with other embedders.",
            allow_custom_value=self._own_indexes(),
            visible=False,
            elem_id="mr-opt-also",
        )

    def _own_indexes(self) -> bool:
        """Whether visitors may name indexes that are not offered."""
        raise NotImplementedError
