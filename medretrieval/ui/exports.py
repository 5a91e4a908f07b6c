"""What the visitor takes home: hits as CSV, settings as JSON, the mask as a file.

File names and contents are neutral: nothing of the upload's name or header is in them.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medretrieval import __version__
from medretrieval.imaging import write_labels
from medretrieval.types import RESEARCH_ONLY, LabelVolume
from medretrieval.ui.session import Cart, Found, Outcome, Query

HITS_FILE = "medretrieval-hits.csv"
SETTINGS_FILE = "medretrieval-settings.json"
AGREEMENT_FILE = "medretrieval-agreement.png"
SUPPORTS_FILE = "medretrieval-support-set.zip"
MASK_FILE = "medretrieval-mask.nii.gz"
PICTURE_MASK_FILE = "medretrieval-mask.png"

COLUMNS = (
    "rank",
    "volume_id",
    "score",
    "slice_index",
    "position_mm",
    "labels",
    "modality",
    "region",
    "row_id",
    "query_slice",
    "match_score",
    "near_duplicate",
    "orientation",
    "localized_slices",
    "localization_ratio",
)


def hits_csv(found: Found) -> str:
    """One line per hit, with its best match; lists separated by ";", slices counted from 0."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for hit in found.result.hits:
        where = hit.localization
        best = hit.matches[0] if hit.matches else None
        writer.writerow(
            {
                "rank": hit.rank,
                "volume_id": _safe(hit.volume_id),
                "score": f"{hit.score:.6g}",
                "slice_index": hit.slice_index,
                "position_mm": "" if hit.position_mm is None else f"{hit.position_mm:.6g}",
                "labels": _safe(";".join(hit.labels)),
                "modality": _safe(hit.modality),
                "region": _safe(hit.region),
                "row_id": hit.row_id,
                "query_slice": "" if best is None else best.query_slice,
                "match_score": "" if best is None else f"{best.score:.6g}",
                "near_duplicate": "yes" if hit.near_duplicate else "no",
                "orientation": found.result.orientation,
                "localized_slices": ";".join(
                    str(match.slice_index) for match in (where.slices if where else ())
                ),
                "localization_ratio": ""
                if where is None or where.ratio is None
                else f"{where.ratio:.6g}",
            }
        )
    return out.getvalue()


def _safe(text: str) -> str:
    # Spreadsheets run cells that start so as formulas, and an index may come from anywhere.
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def settings_json(
    *,
    query: Query,
    index: Mapping[str, Any],
    patient: Callable[[str], str] = str,
    found: Found | None,
    cart: Cart,
    outcome: Outcome | None,
) -> str:
    """All choices that lead to the results again, as JSON text.

    Args:
        index: name and embedder of the index, JSON-able.
        patient: gives the name of a patient under which to write it down.
    """
    grid = query.volume.grid
    data: dict[str, Any] = {
        "medretrieval": __version__,
        "note": RESEARCH_ONLY,
        "query": {
            "kind": "synthetic example" if query.synthetic else "image",
            "modality": query.volume.modality,
            "shape": list(grid.shape),
            "spacing_mm": [round(s, 6) for s in grid.spacing] if grid.spacing_known else None,
        },
        "index": dict(index),
        "search": None,
        "support_set": [{"key": item.key, "title": item.title} for item in cart],
        "segmentation": None,
    }
    if found is not None:
        data["search"] = {
            "mode": found.result.mode,
            "k": found.k,
            "query_slice": found.slice_index,
            "query_slices": found.slices,
            "options": found.wanted.to_json(patient=patient),
            "fused_with": list(found.also),
            "orientation": found.result.orientation,
            "hits": found.result.to_json()["hits"],
        }
    if outcome is not None:
        data["segmentation"] = {
            "scope": outcome.scope,
            "query_slice": outcome.slice_index,
            "supports_from": "support set" if outcome.cart else "retrieval for each slice",
            "support_k": None if outcome.cart else outcome.asked.support_k,
            "orientation": outcome.orientation,
            "options": outcome.asked.to_json(),
            "corrections": corrections(outcome),
            **outcome.segmentation.to_json(),
        }
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def corrections(outcome: Outcome) -> list[dict[str, Any]]:
    """The edits of every corrected slice, in pixels of the slice as displayed."""
    return [
        {"slice": index, "edits": [dataclasses.asdict(edit) for edit in held.edits]}
        for index, held in outcome.corrected.items()
    ]


def nifti_bytes(labels: LabelVolume) -> bytes:
    """The mask as a NIfTI file with exactly the grid of the image."""
    return _written(labels, MASK_FILE)


def png_bytes(labels: LabelVolume) -> bytes | None:
    """The mask of a picture as PNG, label numbers as grey values; None for anything else."""
    return None if labels.grid.spacing_known else _written(labels, PICTURE_MASK_FILE)


def grey_bytes(values: NDArray[np.floating[Any]]) -> bytes:
    """A map of numbers from 0 to 1, (H, W), as a grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(values * 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _written(labels: LabelVolume, name: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="medretrieval-") as folder:
        write_labels(labels, Path(folder) / name)
        return (Path(folder) / name).read_bytes()
