"""The page for programs: its endpoints of segmenting, which are MCP tools as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from medretrieval.errors import UsageError
from medretrieval.imaging.orientation import AS_STORED
from medretrieval.pipeline import DEFAULT_SUPPORT_K
from medretrieval.segmentation.options import VOLUME_DEFAULTS, VolumeOptions, read_options
from medretrieval.segmentation.prompts import Edit, Prompts, prompts_of
from medretrieval.segmentation.registry import DEFAULT_SEGMENTER
from medretrieval.types import Support
from medretrieval.ui import exports
from medretrieval.ui.answering import HEAVY, Answering, Answers, named, number_input, text_input
from medretrieval.ui.backend import DEMO
from medretrieval.ui.connecting import stored

PROMPT = (
    '{"slice": 12, "label": "liver", "kind": "positive", "at": [140, 96]}, its kind "positive", '
    '"negative" (at: x, y) or "box" (at: left, top, right, bottom)'
)


class MaskEndpoints(Answers):
    """The endpoints of segmenting; made inside of a `gr.Blocks`."""

    def _connect(self) -> None:
        with gr.Column(visible=False):
            file, supports = gr.File(label="file"), gr.File(label="supports")
            image, mask = gr.File(label="image"), gr.File(label="mask")
            index, number = text_input(DEMO, "index"), number_input(None, "slice_index")
            chosen = number_input(0, "slice_index")
            labels, names = gr.JSON([], label="labels"), gr.JSON({}, label="names")
            # In the order of the arguments that `segment` and `agreement` share.
            common = [
                labels,
                number_input(DEFAULT_SUPPORT_K, "support_k"),
                text_input(DEFAULT_SEGMENTER, "segmenter"),
                text_input(AS_STORED, "orientation"),
                supports,
                gr.JSON({}, label="options"),
            ]
            volume = [
                gr.JSON([], label="prompts"),
                text_input("slice", "sets"),
                text_input(VOLUME_DEFAULTS.propagation, "propagation"),
                text_input(VOLUME_DEFAULTS.keep, "keep"),
                text_input(VOLUME_DEFAULTS.axis, "axis"),
            ]
            made, answer = gr.File(label="made"), gr.JSON(label="result")
            button = gr.Button()
        button.click(
            self.segment, [file, index, number, *common, *volume], [made, answer],
            api_name="segment", **HEAVY,
        )  # fmt: skip
        button.click(
            self.agreement, [file, chosen, index, *common], [made, answer],
            api_name="agreement", **HEAVY,
        )  # fmt: skip
        button.click(
            self.support_set, [image, mask, names, index], made, api_name="support_set", **HEAVY
        )

    def segment(
        self,
        file: str,
        index: str = DEMO,
        slice_index: int | None = None,
        labels: list[str] | None = None,
        support_k: int = DEFAULT_SUPPORT_K,
        segmenter: str = DEFAULT_SEGMENTER,
        orientation: str = AS_STORED,
        supports: str | None = None,
        options: dict[str, Any] | None = None,
        prompts: list[dict[str, Any]] | None = None,
        sets: str = "slice",
        propagation: str = VOLUME_DEFAULTS.propagation,
        keep: str = VOLUME_DEFAULTS.keep,
        axis: str = VOLUME_DEFAULTS.axis,
    ) -> tuple[str, dict[str, Any]]:
        """Segment an image from annotated slices: the most similar ones of an index, or given ones.

        Args:
            file: PNG, JPEG, TIFF, NIfTI, DICOM file, or zip of a DICOM series.
            index: key of an index, as listed by /indexes.
            slice_index: segment this slice alone, counted from 0; default all.
            labels: names of the structures wanted; default all that the annotated slices show.
            support_k: annotated slices found for each slice of the image.
            segmenter: name of the segmenter.
            orientation: how slices are turned before, as for /search; the mask is turned back.
            supports: a support set (.zip), as /support_set or the page makes it, to segment from
                instead of what is found in the index.
            options: of the segmenter, where they differ from its own: "crop" ("none", "body",
                "supports", "body+supports"), "crop_margin" (0 or more), "memory" ("all", "pooled",
                "foreground"), "negatives", "flips", "closer" (true or false), "tiles" ("auto", or
                1 to 16), "threshold" (between 0 and 1).
            prompts: points and boxes on single slices, in pixels of the slice as displayed, each
                as {"slice": 12, "label": "liver", "kind": "positive", "at": [140, 96]}; kind is
                "positive" or "negative" (x, y), or "box" (left, top, right, bottom). "slice" may
                be left out with slice_index.
            sets: "slice" finds annotated slices for each slice, "volume" one set for all.
            propagation: "both" carries masks from slice to slice of a volume, "none" does not.
            keep: "all", or "largest" for only the largest piece of each structure.
            axis: "index" for slices as in the index, "best" where the pixels are finest.

        Returns:
            The label map as NIfTI on the grid of the image, and what was found.
        """
        how: Any = {"propagation": propagation, "keep": keep, "axis": axis}
        with Answering():
            given = self._supports(supports, index)
            volume = self._actions.read_upload(file)
            self._backend.open(index)
            made = self._actions.run_segmenter(
                index,
                volume,
                segmenter=segmenter,
                support_k=int(support_k),
                supports=given,
                labels=labels or None,
                indices=None if slice_index is None else [int(slice_index)],
                orientation=orientation or AS_STORED,
                prompts=read_prompts(prompts or [], slice_index),
                sets=sets,
                how=VolumeOptions(**how),
                options=read_options(options or {}),
            )
            data = exports.nifti_bytes(made.labels)
        return stored(exports.MASK_FILE, data, self._cache), made.to_json()

    def agreement(
        self,
        file: str,
        slice_index: int = 0,
        index: str = DEMO,
        labels: list[str] | None = None,
        support_k: int = DEFAULT_SUPPORT_K,
        segmenter: str = DEFAULT_SEGMENTER,
        orientation: str = AS_STORED,
        supports: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[str, dict[str, float | None]]:
        """Tell how far the mask of a slice depends on single annotated slices.

        It is segmented again with each of them left out.

        Args:
            file: PNG, JPEG, TIFF, NIfTI, DICOM file, or zip of a DICOM series.
            slice_index: the slice, counted from 0.
            index: key of an index, as listed by /indexes.
            labels: names of the structures wanted; default all that the annotated slices show.
            support_k: annotated slices found for it, at least 2.
            segmenter: name of the segmenter.
            orientation: how the slice is turned before, as for /search.
            supports: a support set (.zip) of at least 2 slices instead of what is found.
            options: of the segmenter, as for /segment.

        Returns:
            A PNG of the slice as displayed, brighter where more of the masks agree (255: all),
            and for each structure the mean Dice with the mask of all annotated slices, from 0 to
            1; null where no mask shows it.
        """
        with Answering():
            given = self._supports(supports, index)
            volume = self._actions.read_upload(file)
            self._backend.open(index)
            found = self._actions.run_agreement(
                index,
                volume,
                slice_index=int(slice_index),
                segmenter=segmenter,
                support_k=int(support_k),
                supports=given,
                labels=labels or None,
                orientation=orientation or AS_STORED,
                options=read_options(options or {}),
            )
            data = exports.grey_bytes(found.overall())
        return stored(exports.AGREEMENT_FILE, data, self._cache), found.to_json()

    def support_set(
        self, image: str, mask: str, names: dict[str, str] | None = None, index: str = DEMO
    ) -> str:
        """Make a support set of an annotated image, to segment others from it.

        Args:
            image: PNG, JPEG, TIFF, NIfTI or DICOM file.
            mask: its label map on the same grid, as PNG or NIfTI; 0 is background.
            names: of its values, such as {"1": "liver"}; default those of the index.
            index: key of the index that images are segmented with; slices are made as for it.

        Returns:
            The support set as .zip, for /segment and /agreement. Of a volume it has at most 8 of
            the annotated slices, spread out evenly.
        """
        from medretrieval.segmentation.supports import pack_supports

        with Answering():
            data = pack_supports(self._actions.read_pair(image, mask, index, named(names)))
        return stored(exports.SUPPORTS_FILE, data, self._cache)

    def _supports(self, upload: str | None, index: str) -> list[Support] | None:
        if not upload:
            return None
        return [item.support for item in self._actions.read_set(upload, index)]


def read_prompts(
    entries: Sequence[Mapping[str, Any]], slice_index: int | None
) -> dict[int, dict[str, Prompts]] | None:
    """Prompts by slice and label.

    Raises:
        UsageError: one is not of the form that `segment` describes.
    """
    edits: dict[int, list[Edit]] = {}
    for entry in entries:
        try:
            number = int(entry.get("slice", slice_index))
            at = tuple(float(part) for part in entry["at"])
            edit = Edit(label=str(entry["label"]), kind=entry["kind"], at=at)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UsageError(f"{entry!r} is no prompt; expected for example {PROMPT}") from None
        edits.setdefault(number, []).append(edit)
    return {number: prompts_of(steps) for number, steps in edits.items()} or None
