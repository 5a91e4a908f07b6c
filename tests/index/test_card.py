"""The card as the Hub reads it, and the index as `datasets` reads it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from index_fakes import POLICY, FakeEmbedder, make_case

from medretrieval.index import build, open_store
from medretrieval.index.card import dataset_card
from medretrieval.index.manifest import read_manifest


def front_matter(text: str) -> dict[str, object]:
    start, yaml_text, _ = text.split("---\n", 2)
    assert start == ""
    loaded: dict[str, object] = yaml.safe_load(yaml_text)
    return loaded


def test_front_matter_points_at_the_slices(flat_index: Path) -> None:
    data = front_matter((flat_index / "README.md").read_text())
    assert data["configs"] == [
        {
            "config_name": "default",
            "data_files": [{"split": "train", "path": "slices/*.parquet"}],
        }
    ]
    assert data["license"] == "unknown"
    assert data["size_categories"] == ["n<1K"]
    assert "medical" in data["tags"]  # type: ignore[operator]


def test_card_says_what_it_must(flat_index: Path) -> None:
    text = (flat_index / "README.md").read_text()
    manifest = read_manifest(flat_index)
    for words in (
        "Research use only. Not for diagnosis.",
        "pseudonym, not an anonymisation",
        "open_index",
        "load_dataset",
        manifest.embedder.weights_sha256,
        "`percentile`",
        f"| slices | {manifest.counts.slices} |",
        f"| RV | 1 | {manifest.label_counts['RV']} |",
    ):
        assert words in text


@given(
    name=st.text(min_size=1).filter(str.isprintable), license=st.sampled_from(["cc-by-4.0", "a: b"])
)
def test_any_name_makes_valid_front_matter(flat_index: Path, name: str, license: str) -> None:
    manifest = dataclasses.replace(read_manifest(flat_index), name=name, license=license)
    data = front_matter(dataset_card(manifest))
    assert data["pretty_name"] == name
    if license == "a: b":
        assert (data["license"], data["license_name"]) == ("other", license)
    else:
        assert data["license"] == license


def test_datasets_reads_images_and_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets

    cases = [
        make_case(0, color=True),
        make_case(1, annotated=False),
        make_case(2, values=(1, 300), labels=("benign",)),
    ]
    cases[1] = dataclasses.replace(cases[1], attributes={"scanner": "A"})
    out = build(cases, tmp_path / "i", embedder=FakeEmbedder(), slices=POLICY, name="n")
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert isinstance(loaded.features["mask"], datasets.Image)
    assert loaded.column_names == [
        "row_id", "volume_id", "patient_id", "modality", "region", "slice_index", "position_mm",
        "spacing", "labels", "image", "mask", "scanner",
    ]  # fmt: skip
    with open_store(out) as store:
        assert len(loaded) == len(store) == 9
        for row, data in enumerate(loaded):
            assert data["row_id"] == row
            assert data["volume_id"] == store.volume_ids[store.volume[row]]
            assert tuple(data["labels"]) == store.labels[row]
            assert (
                data["scanner"] == store.attributes["scanner"][row] == ("A" if 3 <= row < 6 else "")
            )
            assert data["spacing"] == store.spacing[row].tolist()
            np.testing.assert_array_equal(np.asarray(data["image"]), store.image(row))
            mask = store.mask(row)
            if mask is None:
                assert data["mask"] is None
            else:
                np.testing.assert_array_equal(np.asarray(data["mask"]), mask)
