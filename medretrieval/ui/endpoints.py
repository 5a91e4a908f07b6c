"""The page for programs: its endpoints of searching, which are MCP tools as well."""

from __future__ import annotations

from typing import Any

import gradio as gr

from medretrieval.errors import UsageError
from medretrieval.imaging.orientation import AS_STORED
from medretrieval.retrieval.aggregation import DEFAULT_SIGMA
from medretrieval.retrieval.feedback import Feedback
from medretrieval.retrieval.filters import Filters
from medretrieval.retrieval.rerank import LOCALIZED_SLICES
from medretrieval.retrieval.selection import Selection
from medretrieval.ui.answering import HEAVY, Answering, Answers, named, number_input, text_input
from medretrieval.ui.backend import DEMO
from medretrieval.ui.options import Wanted


class Endpoints(Answers):
    """The endpoints of searching; made inside of a `gr.Blocks`."""

    def _connect(self) -> None:
        with gr.Column(visible=False):
            file, label_map = gr.File(label="file"), gr.File(label="label_map")
            index, number = text_input(DEMO, "index"), number_input(None, "slice_index")
            labels, names = gr.JSON([], label="labels"), gr.JSON({}, label="label_names")
            mode, k = text_input("rerank", "mode"), number_input(5, "k")
            # In the order of the arguments of `search`.
            options = [
                gr.JSON([], label="slices"),
                text_input("", "structure"),
                label_map,
                names,
                text_input("", "sample"),
                number_input(0, "seed"),
                text_input("", "modality"),
                text_input("", "region"),
                labels,
                gr.JSON({}, label="where"),
                text_input("", "patient"),
                text_input("", "exclude_patient"),
                gr.JSON([], label="like"),
                gr.JSON([], label="unlike"),
                text_input(AS_STORED, "orientation"),
                gr.Number(DEFAULT_SIGMA, label="sigma"),
                number_input(None, "candidates"),
                number_input(LOCALIZED_SLICES, "top"),
                gr.JSON([], label="also"),
            ]
            answer, button = gr.JSON(label="result"), gr.Button()
        button.click(self.indexes, None, answer, api_name="indexes")
        button.click(
            self.search,
            [file, index, mode, k, number, *options],
            answer,
            api_name="search",
            **HEAVY,
        )

    def indexes(self) -> list[dict[str, str]]:
        """List the indexes of this page.

        Returns:
            The key of each, for `index` of the other endpoints, and its title.
        """
        return [{"index": key, "title": title} for title, key in self._backend.choices()]

    def search(
        self,
        file: str,
        index: str = DEMO,
        mode: str = "rerank",
        k: int = 5,
        slice_index: int | None = None,
        slices: list[int] | None = None,
        structure: str = "",
        label_map: str | None = None,
        label_names: dict[str, str] | None = None,
        sample: str = "",
        seed: int = 0,
        modality: str = "",
        region: str = "",
        labels: list[str] | None = None,
        where: dict[str, str] | None = None,
        patient: str = "",
        exclude_patient: str = "",
        like: list[str] | None = None,
        unlike: list[str] | None = None,
        orientation: str = AS_STORED,
        sigma: float = DEFAULT_SIGMA,
        candidates: int | None = None,
        top: int = LOCALIZED_SLICES,
        also: list[str] | None = None,
    ) -> dict[str, Any]:
        """Find the annotated slices or cases most similar to an image.

        Args:
            file: PNG, JPEG, TIFF, NIfTI, DICOM file, or zip of a DICOM series.
            index: key of an index, as listed by /indexes; several, separated by commas, are
                searched as one.
            mode: "slice", "count", "weighted", "sampled", "max", "sum", "mean-pool",
                "median-pool", "region", "localized" or "rerank".
            k: number of hits.
            slice_index: search with this slice alone, counted from 0; default all.
            slices: search with the slices from the first to the last of these two numbers.
            structure: search with the slices of this structure of the label map; where a mode
                localizes, also what is looked for.
            label_map: label map of the image, on its grid.
            label_names: names of its values, such as {"1": "liver"}; default those of the index.
            sample: search with a sample of slices: "random:N", "mm:X" or "step:N".
            seed: of a random sample.
            modality: only cases of this modality.
            region: only cases of this body region.
            labels: only slices that show one of these structures.
            where: only slices with these values of stored columns, such as {"scanner": "B"}.
            patient: only cases of this patient.
            exclude_patient: leave out this patient.
            like: examples of what is wanted, "VOLUME_ID" or "VOLUME_ID:SLICE".
            unlike: examples of what is not.
            orientation: how slices are turned before, such as "rotated left"; "any" finds it out.
            sigma: of mode "weighted": width of the weights as a share of the slices.
            candidates: of mode "rerank": compare only so many cases closely; default all.
            top: of mode "rerank": how many slices of a case say where the image is in it.
            also: keys of further indexes of the same cases, whose rankings are fused.

        Returns:
            {"query", "mode", "orientation", "hits": [...]}, as `medretrieval search --json` prints
            it.
        """
        with Answering():
            volume = self._actions.read_upload(file)
            opened = self._backend.open(index)
            given = named(label_names)
            read = self._actions.read_map(label_map, volume, given, opened) if label_map else None
            result = self._actions.search_with(
                opened,
                volume,
                Wanted(
                    select=Selection(
                        slices=_first_and_last(slices),
                        structure=structure or None,
                        labels=read,
                        sample=sample or None,
                        seed=int(seed or 0),
                    ),
                    filters=Filters(
                        modality=modality or None,
                        region=region or None,
                        labels=labels or None,
                        where=where or {},
                        patient=patient or None,
                        exclude_patient=exclude_patient or None,
                    ),
                    feedback=Feedback(like=tuple(like or ()), unlike=tuple(unlike or ())),
                    orientation=orientation or AS_STORED,
                    sigma=sigma,
                    candidates=int(candidates) if candidates else None,
                    top=int(top),
                    also=tuple(also or ()),
                ),
                mode=mode,
                k=int(k),
                slice_index=slice_index,
            )
        return result.to_json()


def _first_and_last(slices: list[int] | None) -> tuple[int, int] | None:
    if not slices:
        return None
    if len(slices) != 2 or not all(isinstance(number, int) for number in slices):
        raise UsageError(f"slices is {slices}; expected the first and the last, such as [20, 45]")
    return slices[0], slices[1]
