"""The components of the third column: support set, mask, corrections, downloads."""

from __future__ import annotations

from typing import Any, get_args

import gradio as gr

from medretrieval.segmentation.options import CropPolicy, MemoryTokens
from medretrieval.ui import content, text
from medretrieval.ui.actions.correcting import OFF
from medretrieval.ui.asked import DEFAULTS
from medretrieval.ui.backend import Backend
from medretrieval.ui.options_panel import CHANGING
from medretrieval.ui.pictures import Palette

# One listener on the root of a list of cards, as the cards inside are drawn again on each change.
CARDS_SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (button && !button.disabled)
    trigger('click', { action: button.dataset.action, key: button.dataset.key });
});
"""

# Where the pointer goes down and up on the picture, in shares of its width and height, while a tool
# is chosen. The mark is drawn at once; the answer draws it again where it belongs.
POINT_SCRIPT = """
let start = null;
const place = (event) => {
  const tool = document.querySelector('#mr-tool input:checked');
  const picture = event.target.closest('.mr-fit');
  if (!picture || !tool || tool.value === 'off') return null;
  const box = picture.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
};
element.addEventListener('dragstart', (event) => event.preventDefault());
element.addEventListener('pointerdown', (event) => {
  start = event.button === 0 ? place(event) : null;
});
element.addEventListener('pointerup', (event) => {
  const end = start && place(event);
  if (end) {
    const mark = document.createElement('i');
    mark.className = 'mr-mark mr-point mr-new';
    mark.style.left = `${end[0] * 100}%`;
    mark.style.top = `${end[1] * 100}%`;
    event.target.closest('.mr-fit').append(mark);
    trigger('click', { places: [start, end] });
  }
  start = null;
});
"""

TOOLS = [
    ("Off", OFF),
    ("+ Point", "positive"),
    ("\u2212 Point", "negative"),
    ("Box", "box"),
]
LEFT_TO_IT = ("Its own choice", "")
CROPS = {
    "none": "The whole picture",
    "body": "The body",
    "supports": "Around the structures",
    "body+supports": "Around them in the body",
}
MEMORIES = {
    "all": "All of it (exact)",
    "pooled": "Coarser, faster",
    "foreground": "Near the structures, faster",
}
_CONTROLS: dict[str, Any] = {"size": "sm", "min_width": 100}


def cards(name: str, value: str) -> gr.HTML:
    """A list of cards, or of other things with buttons."""
    return gr.HTML(value, js_on_load=CARDS_SCRIPT, elem_id=f"mr-{name}")


class SegmentColumn:
    """The column, each component an attribute by its name; made inside of a `gr.Blocks`."""

    def _segment_column(self, backend: Backend) -> None:
        gr.HTML(text.step(3, "Segment from annotated slices"))
        self.cart_view = cards("cart", content.cart_cards((), Palette({})))
        self._support_set()
        with gr.Accordion("More options", open=False, elem_id="mr-segment-options"):
            self._options(backend)
        with gr.Row():
            self.segment_slice = gr.Button(
                "Segment this slice", variant="primary", min_width=140, elem_id="mr-segment-slice"
            )
            self.segment_volume = gr.Button(
                "Segment all slices", min_width=140, elem_id="mr-segment-volume"
            )
        self.cancel = gr.Button(
            "Cancel", visible=False, elem_id="mr-cancel", variant="stop", size="sm"
        )
        self.segment_status = gr.HTML("", elem_id="mr-segment-status")
        self.result = gr.HTML(
            text.placeholder("No segmentation yet", "The mask is shown over your image."),
            js_on_load=POINT_SCRIPT,
            elem_id="mr-result",
        )
        with gr.Column(visible=False) as self.result_tools:
            self._corrections()
            self._appearance()
            self._judgement(backend)
        self._downloads()

    def asked(self) -> list[Any]:
        """The controls in the order of `asked.DEFAULTS`."""
        return [getattr(self, name) for name in DEFAULTS]

    def _support_set(self) -> None:
        with gr.Row():
            self.add_all = gr.Button("Add all results", elem_id="mr-add-all", **_CONTROLS)
            self.clear = gr.Button("Empty the set", elem_id="mr-clear", **_CONTROLS)
        with gr.Accordion("Your own annotated images, saved sets", open=False, elem_id="mr-own"):
            with gr.Row():
                self.own_image = gr.File(
                    label="Image", height=96, min_width=120, elem_id="mr-own-image"
                )
                self.own_mask = gr.File(
                    label="Mask", height=96, min_width=120, elem_id="mr-own-mask"
                )
            self.own_names = gr.Textbox(
                label="Names of the mask values",
                placeholder="1=liver, 2=spleen; else as in the index",
                elem_id="mr-own-names",
            )
            self.own_add = gr.Button("Add to the support set", size="sm", elem_id="mr-own-add")
            with gr.Row():
                self.set_save = gr.Button("Save the set", elem_id="mr-set-save", **_CONTROLS)
                self.set_upload = gr.UploadButton(
                    "Load a saved set", file_types=[".zip"], elem_id="mr-set-upload", **_CONTROLS
                )
            self.set_file = gr.DownloadButton(
                "Support set (.zip)", elem_id="mr-set-file", elem_classes="mr-hidden"
            )

    def _options(self, backend: Backend) -> None:
        self.structures = gr.Dropdown(
            [],
            multiselect=True,
            label="Structures",
            info="Empty: all that the annotated slices show.",
            elem_id="mr-structures",
        )
        self.support_k = gr.Slider(
            1,
            32,
            DEFAULTS["support_k"],
            step=1,
            label="Annotated slices to find for each slice",
            info="While the support set is empty.",
            buttons=[],
        )
        self.one_set = gr.Checkbox(
            DEFAULTS["one_set"],
            label="Find one set for the whole volume",
            info="Instead of one for each slice; while the support set is empty.",
            elem_id="mr-one-set",
        )
        self.negatives = gr.Checkbox(
            DEFAULTS["negatives"],
            label="Use slices without a structure as negative examples",
            elem_id="mr-negatives",
        )
        self.propagate = gr.Checkbox(
            DEFAULTS["propagate"],
            label="Carry the mask from slice to slice",
            info="Of a volume: from the surest slice in both directions.",
            elem_id="mr-propagate",
        )
        self.largest = gr.Checkbox(
            DEFAULTS["largest"],
            label="Keep only the largest piece of each structure",
            elem_id="mr-largest",
        )
        self.best_axis = gr.Checkbox(
            DEFAULTS["best_axis"],
            label="Slice the volume where its pixels are finest",
            elem_id="mr-best-axis",
        )
        self.segmenter = gr.Dropdown(
            [(f"{row['name']} ({row['status']})", row["name"]) for row in backend.segmenters()],
            value=DEFAULTS["segmenter"],
            label="Segmenter",
            info="sam2-micro is small and trained on synthetic images only.",
            elem_id="mr-segmenter",
        )
        with gr.Row():
            self.crop = gr.Dropdown(
                [LEFT_TO_IT, *((CROPS[name], name) for name in get_args(CropPolicy))],
                value="",
                label="What it sees",
                min_width=140,
                elem_id="mr-crop",
            )
            self.memory = gr.Dropdown(
                [LEFT_TO_IT, *((MEMORIES[name], name) for name in get_args(MemoryTokens))],
                value="",
                label="What it compares with",
                min_width=140,
                elem_id="mr-memory",
            )

    def _corrections(self) -> None:
        self.result_slice = gr.Slider(
            0, 1, 0, step=1, label="Slice", buttons=[], elem_id="mr-result-slice"
        )
        self.tool = gr.Radio(
            TOOLS,
            value=OFF,
            label="Correct this slice",
            info="Choose a tool, then click on the picture: + belongs to the structure, "
            "\u2212 does not. Of a box click two corners, or draw it.",
            elem_id="mr-tool",
        )
        self.label = gr.Dropdown(
            [], label="Structure to correct", value=None, elem_id="mr-label", **CHANGING
        )
        with gr.Row():
            self.undo = gr.Button("Undo", elem_id="mr-undo", **_CONTROLS)
            self.uncorrect = gr.Button("Undo all", elem_id="mr-uncorrect", **_CONTROLS)
            self.add_slice = gr.Button("Add slice to set", elem_id="mr-add-slice", **_CONTROLS)

    def _appearance(self) -> None:
        self.legend = gr.HTML("", elem_id="mr-legend")
        with gr.Row():
            shown: dict[str, Any] = {"min_width": 100, "buttons": []}
            self.opacity = gr.Slider(
                0, 100, 70, step=5, label="Opacity, %", elem_id="mr-opacity", **shown
            )
            self.wipe = gr.Slider(0, 100, 0, step=1, label="Wipe, %", elem_id="mr-wipe", **shown)
        self.side = gr.Checkbox(
            False, label="Show the plain image beside it", elem_id="mr-side-by-side"
        )

    def _judgement(self, backend: Backend) -> None:
        self.check = gr.Button("How sure is this mask?", size="sm", elem_id="mr-check")
        self.agreement_view = gr.HTML("", elem_id="mr-agreement")
        with gr.Accordion(
            "Save as a new version of the index",
            open=False,
            visible=backend.allow_paths,
            elem_id="mr-version",
        ):
            self.version_folder = gr.Textbox(
                label="Folder of the new version",
                info="It must not exist yet; the index in use stays as it is.",
                elem_id="mr-version-folder",
            )
            self.version_name = gr.Textbox(
                label="Name of your image in the index",
                info="Stored in clear: not a patient's name.",
                elem_id="mr-version-name",
            )
            self.version_save = gr.Button(
                "Save the corrected slices", size="sm", elem_id="mr-version-save"
            )

    def _downloads(self) -> None:
        with gr.Row():
            small: dict[str, Any] = {**_CONTROLS, "interactive": False}
            self.mask_file = gr.DownloadButton("Mask (NIfTI)", elem_id="mr-mask-file", **small)
            self.picture_file = gr.DownloadButton(
                "Mask (PNG)", visible=False, elem_id="mr-picture-file", **small
            )
            self.hits_file = gr.DownloadButton("Results (CSV)", elem_id="mr-hits-file", **small)
            self.settings_file = gr.DownloadButton(
                "Settings (JSON)", elem_id="mr-settings-file", **small
            )
