"""Every row of the table says what its weights were published with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from published import FACTS, PREPROCESSORS

from medretrieval.embedders import REGISTRY, EmbedderSpec
from medretrieval.embedders.preprocessor_config import described_preprocessing
from medretrieval.embedders.spec import CONFIG_FILE

FIELDS = ("resize", "resize_to", "input_size", "interpolation", "mean", "std", "crop_rounding")
SLICES = [spec for spec in REGISTRY.values() if spec.unit == "slice"]
# Those in the layout of transformers, whose repositories say how pictures are prepared.
FOLDERS = [spec for spec in SLICES if spec.source == "hub" and CONFIG_FILE in spec.config_files]


def _published(spec: EmbedderSpec, folder: Path) -> dict[str, Any]:
    if spec.name in FACTS:
        return dict(zip(FIELDS, FACTS[spec.name], strict=True))
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(PREPROCESSORS[spec.weights]))
    # Half a pixel of a margin is rounded as transformers does.
    return {**described_preprocessing(path), "crop_rounding": "down"}


def test_every_embedder_of_slices_has_an_entry_and_every_entry_an_embedder() -> None:
    assert {spec.weights for spec in FOLDERS} == set(PREPROCESSORS)
    assert {spec.name for spec in SLICES if spec not in FOLDERS} == set(FACTS)


@pytest.mark.parametrize("spec", SLICES, ids=lambda spec: spec.name)
def test_the_row_is_what_was_published(spec: EmbedderSpec, tmp_path: Path) -> None:
    assert {field: getattr(spec, field) for field in FIELDS} == _published(spec, tmp_path)
