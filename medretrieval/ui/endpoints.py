"""The page for programs: its endpoints, which are MCP tools as well."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

import gradio as gr

from medretrieval.errors import MedRetrievalError
from medretrieval.pipeline import DEFAULT_SUPPORT_K
from medretrieval.segmentation.registry import DEFAULT_SEGMENTER
from medretrieval.ui import exports
from medretrieval.ui.actions import Actions
from medretrieval.ui.backend import DEMO
from medretrieval.ui.wiring import INTERNAL, stored

logger = logging.getLogger(__name__)


class Endpoints:
    """The endpoints; made inside of a `gr.Blocks`.

    Args:
        cache: the server's folder for uploads and downloads.
    """

    def __init__(self, actions: Actions, *, cache: str) -> None:
        self._actions = actions
        self._backend = actions.backend
        self._cache = cache
        self._connect()

    def _connect(self) -> None:
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
        button.click(self.indexes, None, answer, api_name="indexes")
        button.click(
            self.search, [file, index, mode, k, number], answer, api_name="search", **heavy
        )
        button.click(
            self.segment,
            [file, index, labels, number, support_k, segmenter],
            [mask, answer],
            api_name="segment",
            **heavy,
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
            volume = self._actions.read_upload(file)
            opened = self._backend.open(index)
            answer: dict[str, Any] = opened.index.search(
                volume, mode=mode, k=int(k), slice_index=slice_index, query_name="query"
            ).to_json()
        return answer

    def segment(
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
            volume = self._actions.read_upload(file)
            self._backend.open(index)
            made = self._actions.run_segmenter(
                index,
                volume,
                segmenter=segmenter,
                support_k=int(support_k),
                supports=None,
                labels=labels or None,
                indices=None if slice_index is None else [int(slice_index)],
            )
            data = exports.nifti_bytes(made.labels)
        return stored(exports.MASK_FILE, data, self._cache), made.to_json()


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
