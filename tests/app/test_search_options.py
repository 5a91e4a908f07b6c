"""The search options of the page, with a tiny index and no networks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medretrieval.errors import InputError, MedRetrievalError, UsageError
from medretrieval.retrieval.feedback import Feedback
from medretrieval.retrieval.modes import MODES
from medretrieval.retrieval.selection import Selection
from medretrieval.ui import options, panel, words
from medretrieval.ui.backend import DEMO
from medretrieval.ui.options import DEFAULTS, Wanted
from medretrieval.ui.session import Props

AFFINE = np.array([[-2.0, 0, 0, 30], [0, -2.5, 0, 30], [0, 0, 5, -10], [0, 0, 0, 1]])


def ids(visitor: Any) -> list[str]:
    return [hit.volume_id for hit in visitor.session.found.result.hits]


def query_slices(visitor: Any) -> set[int]:
    hits = visitor.session.found.result.hits
    return {match.query_slice for hit in hits for match in hit.matches}


# Which slices


def test_a_range_of_slices(visitor: Any, backend: Any) -> None:
    visitor.example()
    shown = visitor.find("count", slices=options.RANGE, first=1, last=2)
    assert query_slices(visitor) <= {1, 2}
    assert visitor.session.found.slices == 2
    assert backend.embedder.seen == 2
    assert "of 2 slices" in shown["hits"]
    made = visitor.settings()["search"]
    assert (made["options"]["slices"], made["query_slices"]) == ([1, 2], 2)


@pytest.mark.parametrize(("first", "last", "message"), [
    (3, 1, "lower number first"), (0, 5, "no slice 5"), (-1, 2, "expected a whole number from 0"),
    (0.5, 2, "expected a whole number from 0"), ("x", 2, "expected a number"),
])  # fmt: skip
def test_a_range_that_does_not_exist(visitor: Any, first: Any, last: Any, message: str) -> None:
    visitor.example()
    with pytest.raises(UsageError, match=message):
        visitor.find("count", slices=options.RANGE, first=first, last=last)


@pytest.mark.parametrize(("sample", "chosen"), [
    ("step:2", (0, 2, 4)), ("mm:10", (0, 2, 4)), ("random:9", (0, 1, 2, 3, 4)),
])  # fmt: skip
def test_a_sample_of_slices(visitor: Any, sample: str, chosen: tuple[int, ...]) -> None:
    visitor.example()
    visitor.find("rerank", sample=sample)
    assert visitor.session.found.chosen == chosen
    assert visitor.settings()["search"]["options"]["sample"] == sample


@pytest.mark.parametrize("sample", ["mm", "every", "step:0", "random:-2", "mm:inf"])
def test_a_sample_that_cannot_be_understood(visitor: Any, sample: str) -> None:
    visitor.example()
    with pytest.raises(UsageError, match="random:N"):
        visitor.find("rerank", sample=sample)


def test_a_picture_has_no_mm(visitor: Any) -> None:
    visitor.example(1)
    visitor.find("sampled")  # a single slice is its own sample
    assert visitor.session.found.slices == 1


def label_map(folder: Path, values: dict[int, slice], shape: Sequence[int] = (24, 20, 5)) -> str:
    mask = np.zeros(tuple(shape), np.uint8)
    for value, where in values.items():
        mask[2:6, 2:6, where] = value
    path = folder / "Doe_mask.nii.gz"
    nib.Nifti1Image(mask, AFFINE).to_filename(path)
    return str(path)


def load_map(visitor: Any, path: str, names: str = "") -> dict[str, Any]:
    shown: dict[str, Any] = visitor.do(visitor.actions.load_map(visitor.session, path, names))
    return shown


def test_the_slices_of_a_structure(visitor: Any, uploads: Path) -> None:
    visitor.example()
    path = label_map(uploads, {1: slice(1, 2), 2: slice(2, 4)})
    shown = load_map(visitor, path)
    assert not Path(path).exists()
    assert "Doe" not in repr(shown)
    # Names are those of the index; what it does not name has a number.
    assert shown["opt_structure"]["choices"] == [
        ("liver (value 1)", "liver"), ("spleen (value 2)", "spleen"),
    ]  # fmt: skip
    assert shown["opt_slices"] == options.STRUCTURE
    visitor.find("localized", slices=options.STRUCTURE, structure="spleen")
    assert visitor.session.found.chosen == (2, 3)
    (hit, *_) = visitor.session.found.result.hits
    assert hit.localization.structure == "spleen"
    assert "spleen on 0 % of them (LR)" in visitor.shown["hits"]
    assert visitor.settings()["search"]["hits"][0]["localization"]["ratio"] == 0
    assert [row["localization_ratio"] for row in visitor.rows()] == ["0"] * len(visitor.rows())
    # Another image has no label map.
    visitor.example()
    with pytest.raises(UsageError, match="no label map of your image"):
        visitor.find("localized", slices=options.STRUCTURE, structure="spleen")


def test_own_names_of_a_label_map(visitor: Any, uploads: Path) -> None:
    visitor.example()
    shown = load_map(visitor, label_map(uploads, {7: slice(1, 2), 9: slice(3, 4)}), "7=cyst")
    assert [name for _, name in shown["opt_structure"]["choices"]] == ["cyst", "label_9"]
    visitor.find("region", slices=options.STRUCTURE, structure="cyst")
    assert visitor.session.found.chosen == (1,)
    with pytest.raises(UsageError, match="no structure is chosen"):
        visitor.find("region", slices=options.STRUCTURE, structure=None)
    with pytest.raises(UsageError, match="'liver'; there is cyst"):
        visitor.find("region", slices=options.STRUCTURE, structure="liver")


@pytest.mark.parametrize(("values", "shape", "names", "message"), [
    ({}, (24, 20, 5), "", "every voxel is 0"),
    ({1: slice(1, 2)}, (24, 20, 4), "", "grid"),
    ({1: slice(1, 2)}, (24, 20, 5), "one=liver", "does not name a mask value"),
])  # fmt: skip
def test_a_label_map_that_is_no_use(
    visitor: Any, uploads: Path, values: Any, shape: Any, names: str, message: str
) -> None:
    visitor.example()
    with pytest.raises(MedRetrievalError, match=message) as caught:
        load_map(visitor, label_map(uploads, values, shape), names)
    assert "Doe" not in str(caught.value)


def test_a_label_map_without_an_image_is_deleted_too(visitor: Any, uploads: Path) -> None:
    path = label_map(uploads, {1: slice(1, 2)})
    with pytest.raises(UsageError, match="load an image first"):
        load_map(visitor, path)
    assert not Path(path).exists()
    with pytest.raises(UsageError, match="upload a label map"):
        load_map(visitor, "")


def test_a_part_is_needed_for_searching_with_a_part(visitor: Any) -> None:
    visitor.example()
    for mode in options.PART_MODES:
        with pytest.raises(UsageError, match="choose a range of slices"):
            visitor.find(mode)


# Filters


def test_filters_come_from_the_index_and_act_inside_the_search(visitor: Any) -> None:
    assert visitor.shown["opt_labels"]["choices"] == ["liver", "spleen"]
    assert visitor.shown["opt_modality"]["choices"] == [("Any modality", ""), ("CT", "CT")]
    assert visitor.shown["opt_region"]["choices"][1:] == [("abdomen", "abdomen")]
    visitor.example()
    shown = visitor.find("mean-pool", labels=["spleen"], modality="CT", region="abdomen")
    assert ids(visitor) == ["lower-1"]
    assert "No other passes." in shown["search_status"]
    made = visitor.settings()["search"]["options"]
    assert (made["labels"], made["modality"], made["region"]) == (["spleen"], "CT", "abdomen")


def test_any_stored_column(visitor: Any) -> None:
    visitor.example()
    assert ("case", "volume_id") in visitor.shown["opt_column"]["choices"]
    shown = visitor.actions.choose_column(visitor.session, "volume_id")["opt_value"]
    assert shown["visible"]
    assert shown["choices"] == ["lower-1", "plain-1", "upper-1", "upper-2"]
    assert not visitor.actions.choose_column(visitor.session, "")["opt_value"]["visible"]
    with pytest.raises(UsageError, match="no value of the column"):
        visitor.find("rerank", column="volume_id")
    visitor.find("rerank", column="volume_id", value="upper-2")
    assert ids(visitor) == ["upper-2"]
    with pytest.raises(UsageError, match="'nobody'; it has"):
        visitor.find("rerank", column="volume_id", value="nobody")


def test_a_patient_is_left_out_and_written_down_under_the_name_in_the_index(visitor: Any) -> None:
    visitor.example()
    visitor.find("rerank")
    assert ids(visitor)[0] == "upper-1"
    visitor.find("rerank", without=" upper-1 ")
    assert "upper-1" not in ids(visitor)
    written = visitor.settings()["search"]["options"]["exclude_patient"]
    store = visitor.actions.backend.open(DEMO).index.store
    assert written in store.pseudonyms("upper-1")


def test_one_patient_alone_is_searched(visitor: Any) -> None:
    visitor.example()
    visitor.find("rerank", patient=" upper-2 ")
    assert ids(visitor) == ["upper-2"]
    options = visitor.settings()["search"]["options"]
    store = visitor.actions.backend.open(DEMO).index.store
    assert options["patient"] in store.pseudonyms("upper-2")
    assert options["exclude_patient"] is None
    assert "only one patient" in shown_for(visitor, "rerank", patient="upper-2")["opt_in_use"]
    assert (
        panel.for_index(visitor.actions.backend.open(DEMO), visitor.actions.backend)["opt_patient"]
        == ""
    )
    with pytest.raises(UsageError, match="of the patient 'nobody'"):
        visitor.find("rerank", patient="nobody")


def test_no_case_passes(visitor: Any) -> None:
    visitor.example()
    filters = {"column": "volume_id", "value": "upper-1", "without": "upper-1"}
    shown = visitor.find("rerank", **filters)
    assert "No case passes the filters" in shown["search_status"]
    assert "mr-warning" in shown["search_status"]
    assert ids(visitor) == []
    assert visitor.rows() == []


# How the image lies, and other numbers


def test_the_orientation_is_found_said_and_used_for_the_mask(visitor: Any, backend: Any) -> None:
    visitor.example()
    query = visitor.session.query
    turned = np.ascontiguousarray(query.volume.voxels[::-1])
    visitor.session = replace(
        visitor.session, query=replace(
            query, volume=replace(query.volume, voxels=turned), token="other"
        ),
    )  # fmt: skip
    # (Turned by half, it would be like the other cases.)
    asked = {"orientation": options.ANY_ORIENTATION, "labels": ["liver"]}
    shown = visitor.find("rerank", **asked)
    # The toy does not tell the diagonal of a block from the other one.
    found = visitor.session.found.result.orientation
    assert found in ("flipped left-right", "rotated left")
    assert f"after {words.ORIENTATIONS[found]}" in shown["search_status"]
    assert ids(visitor)[0].startswith("upper")
    assert {row["orientation"] for row in visitor.rows()} == {found}
    before = backend.embedder.seen
    visitor.find("count", **asked)  # not embedded again
    assert backend.embedder.seen == before
    shown = visitor.segment("slice", number=2)
    assert "turned for that as for the search" in shown["segment_status"]
    assert visitor.settings()["segmentation"]["orientation"] == found
    mask = visitor.session.outcome.segmentation.labels.voxels[:, :, 2] != 0
    assert mask[turned[:, :, 2] > 150].mean() > 0.9
    assert mask.mean() < 0.5


def test_numbers_of_the_ranking(visitor: Any) -> None:
    visitor.example()
    visitor.find("rerank", candidates=1)
    assert len(ids(visitor)) == 1
    visitor.find("rerank", candidates=0, top=2)
    assert len(visitor.session.found.result.hits[0].localization.slices) == 2
    visitor.find("weighted", sigma=0.05)
    assert visitor.settings()["search"]["options"]["sigma"] == 0.05
    with pytest.raises(UsageError, match="expected a whole number"):
        visitor.find("rerank", top=1.5)


# What is shown


def shown_for(visitor: Any, mode: str, **values: Any) -> dict[str, Any]:
    everything = {**DEFAULTS, **values}.values()
    shown: dict[str, Any] = visitor.actions.shown(visitor.session, mode, *everything)
    return shown


def test_only_what_matters_is_shown(visitor: Any) -> None:
    assert all(update is not None for update in shown_for(visitor, "rerank").values())
    visitor.example()
    for mode in MODES:
        shown = shown_for(visitor, mode)
        assert shown["opt_part"]["visible"] == (mode != "slice")
        assert shown["opt_sigma"]["visible"] == (mode == "weighted")
        assert shown["opt_candidates"]["visible"] == (mode == "rerank")
        assert shown["mode"]["info"]
    assert not shown_for(visitor, "rerank")["opt_range"]["visible"]
    assert shown_for(visitor, "rerank", slices=options.RANGE)["opt_range"]["visible"]
    assert shown_for(visitor, "rerank", slices=options.STRUCTURE)["opt_map_group"]["visible"]
    assert shown_for(visitor, "rerank", sample="random:3")["opt_seed"]["visible"]
    visitor.example(1)
    assert not shown_for(visitor, "rerank")["opt_part"]["visible"]


def test_what_is_in_use_is_said(visitor: Any) -> None:
    visitor.example()
    assert shown_for(visitor, "rerank")["opt_in_use"] == ""
    line = shown_for(
        visitor, "rerank", slices=options.RANGE, first=1, last=3, sample="mm:7", modality="CT",
        labels=["liver", "spleen"], orientation="any", without="someone", candidates=3,
        column="volume_id", value="upper-1",
    )["opt_in_use"]  # fmt: skip
    for said in (
        "slices 1 to 3", "a slice every 7 mm", "CT", "showing liver or spleen",
        "in all eight orientations", "without one patient", "3 candidates", "volume_id upper-1",
    ):  # fmt: skip
        assert said in line
    assert "someone" not in line
    assert shown_for(visitor, "rerank", slices=options.RANGE, first=9)["opt_in_use"] == ""


def test_a_way_of_searching_brings_what_it_needs(visitor: Any) -> None:
    visitor.example()
    changed = visitor.actions.choose_mode(visitor.session, 2, "region", *DEFAULTS.values())
    assert changed["opt_slices"]["value"] == options.RANGE
    assert (changed["opt_first"]["value"], changed["opt_last"]["value"]) == (1, 3)
    assert changed["opt_panel"] == Props(open=True)
    assert "slices 1 to 3" in changed["opt_in_use"]
    changed = visitor.actions.choose_mode(visitor.session, 2, "sampled", *DEFAULTS.values())
    assert changed["opt_sample"]["value"] == "mm:7"
    sampled = {**DEFAULTS, "sample": "mm:7"}.values()
    changed = visitor.actions.choose_mode(visitor.session, 2, "count", *sampled)
    assert changed["opt_sample"]["value"] == ""
    changed = visitor.actions.reset(visitor.session, "sampled")
    assert changed["opt_sample"]["value"] == "mm:7"
    assert changed["opt_top"]["value"] == DEFAULTS["top"]
    assert set(panel.fresh()) <= set(changed)
    changed = visitor.actions.reset(visitor.session, "region")
    assert (changed["opt_slices"], changed["opt_range"]) == (options.RANGE, Props(visible=True))
    assert changed["opt_first"] <= changed["opt_last"]


def test_the_slice_shown_becomes_an_end_of_the_range(visitor: Any) -> None:
    with pytest.raises(UsageError, match="load an image first"):
        visitor.actions.edge(visitor.session, 2, "first")
    visitor.example()
    assert visitor.actions.edge(visitor.session, 2, "first") == {"opt_first": 2}
    assert visitor.actions.edge(visitor.session, 3.0, "last") == {"opt_last": 3}


def test_what_a_mode_does_not_show_it_does_not_use() -> None:
    values = {"slices": options.RANGE, "first": 1, "last": 2, "sigma": 0.1, "candidates": 3}
    asked: dict[str, Any] = {"feedback": Feedback(), "labels": None, "count": 5}
    for changes in ({"mode": "slice"}, {"mode": "rerank", "whole": True}):
        made = options.wanted(values, **asked, **changes)
        assert made.select == Selection()
    assert options.wanted(values, mode="count", **asked).sigma == Wanted().sigma
    assert options.wanted(values, mode="count", **asked).candidates is None


def test_an_upload_in_place_of_a_label_map(visitor: Any, uploads: Path, nifti: Path) -> None:
    visitor.example()
    path = shutil.copy(nifti, uploads / "Doe.nii.gz")
    (uploads / "Doe.txt").write_text("no picture")
    load_map(visitor, str(path))  # every value of an image is a label: it is taken as one
    with pytest.raises(InputError, match=r"your label map\.txt"):
        load_map(visitor, str(uploads / "Doe.txt"))
