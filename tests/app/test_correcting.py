"""Corrections of masks, and what is done with corrected slices; a tiny index and no networks."""

from __future__ import annotations

import copy
import gzip
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medretrieval.errors import UsageError
from medretrieval.imaging import extract, read_volume
from medretrieval.index import add_embedder, open_store
from medretrieval.retrieval import loading
from medretrieval.retrieval.engine import open_index
from medretrieval.segmentation.prompts import Edit
from medretrieval.types import Grid, LabelVolume
from medretrieval.ui import corrections, results
from medretrieval.ui.asked import DEFAULTS as ASKED
from medretrieval.ui.corrections import Corner
from medretrieval.ui.pictures import Palette
from medretrieval.ui.runs import Run

SIDES = st.integers(1, 400)
masks = hnp.arrays(np.uint8, (4, 5), elements=st.integers(0, 3))


# From clicks to pixels


@given(SIDES, SIDES, st.data())
def test_a_click_on_a_pixel_is_that_pixel(height: int, width: int, data: st.DataObject) -> None:
    # Wherever within the pixel, and however large the picture is shown.
    x = data.draw(st.integers(0, width - 1))
    y = data.draw(st.integers(0, height - 1))
    within = st.floats(0.01, 0.99)
    place = ((x + data.draw(within)) / width, (y + data.draw(within)) / height)
    found = corrections.pixel(place, (height, width))
    assert (round(found[0]), round(found[1])) == (x, y)
    back = corrections.share(found, (height, width))
    assert back == pytest.approx(place, abs=0.0051)  # rounded to 0.01


@pytest.mark.parametrize(
    ("share", "pixel"),
    [((0, 0), (-0.5, -0.5)), ((1, 1), (9.5, 3.5)), ((-3, 0.5), (-0.5, 1.5)), ((2, 0), (9.5, -0.5))],
)
def test_a_click_beyond_the_edge_is_on_it(
    share: tuple[float, float], pixel: tuple[float, float]
) -> None:
    assert corrections.pixel(share, (4, 10)) == pixel


def test_a_box_has_its_corners_in_any_order() -> None:
    assert corrections.box((7, 2), (3, 9)) == (3, 2, 7, 9)


def test_marks_are_where_the_pixels_are() -> None:
    edits = [
        Edit(label="a", kind="positive", at=(4.5, 0.5)),
        Edit(label="b", kind="box", at=(-0.5, 0.5, 4.5, 3.5)),
    ]
    drawn = results.marks(edits, (4, 10), Palette.of(["a", "b"]))
    assert "mr-positive" in drawn
    assert "left:50.00%;top:25.00%" in drawn
    assert "left:0.00%;top:25.00%;width:50.00%;height:75.00%" in drawn


# What a correction changes


@given(masks, masks, st.sets(st.integers(1, 3)))
def test_only_the_corrected_labels_change(
    before: np.ndarray, made: np.ndarray, values: set[int]
) -> None:
    mask = corrections.changed(before, made, values)
    for value in values:
        assert np.array_equal(mask == value, made == value)
    # A label that was not corrected gains nothing but what a corrected one lost.
    others = ~np.isin(before, list(values)) & ~np.isin(made, list(values))
    assert np.array_equal(mask[others], before[others])


def test_new_labels_leave_the_values_of_old_ones() -> None:
    names = corrections.with_names({2: "LV", 3: "RV"}, ["RV", "Myo", "LV"])
    assert names == {1: "Myo", 2: "LV", 3: "RV"}
    mask = np.array([[0, 1], [2, 0]], np.uint8)
    assert corrections.named_as(mask, {1: "RV", 2: "Myo"}, names).tolist() == [[0, 3], [1, 0]]


def test_a_slice_goes_where_it_is_displayed() -> None:
    grid = Grid(shape=(4, 3, 2), affine=np.diag([-1.0, -1.0, 1.0, 1.0]))
    labels = LabelVolume(voxels=np.zeros(grid.shape, np.uint8), grid=grid, names={1: "a"})
    mask = np.arange(12).reshape(3, 4) % 2
    new = corrections.with_slice(labels, 2, 1, mask, {1: "a", 300: "b"})
    assert new.voxels.dtype == np.uint16
    assert np.array_equal(extract(new.voxels, grid, 2, 1), mask)
    assert not new.voxels[..., 0].any()
    assert not labels.voxels.any()


# The actions


def downloaded(visitor: Any) -> np.ndarray:
    image = nib.Nifti1Image.from_bytes(gzip.decompress(visitor.shown["mask_file"].content))
    return np.asarray(image.dataobj)


def test_a_point_segments_its_slice_again_and_the_rest_stays(visitor: Any, backend: Any) -> None:
    visitor.example()
    visitor.segment("volume")
    before = downloaded(visitor)
    used = visitor.session.outcome.segmentation.supports
    passes = len(backend.model.supports)
    shown = visitor.point(20, 3)
    (supports,) = backend.model.supports[passes:]
    assert {s.key for s in supports} == {use.key for use in used if use.query_slice == 2}
    (prompts,) = backend.model.prompts[-1]
    assert prompts["liver"].positive == ((20, 3),)
    after = downloaded(visitor)
    assert sorted({int(z) for z in np.argwhere(after != before)[:, 2]}) == [2]
    assert "mr-positive" in shown["result"]
    assert "corrected (1)" in shown["result"]
    assert "Corrected by you: slice 2" in shown["segment_status"]
    (made,) = visitor.settings()["segmentation"]["corrections"]
    assert made == {"slice": 2, "edits": [{"label": "liver", "kind": "positive", "at": [20, 3]}]}


def test_undo_takes_back_step_by_step(visitor: Any) -> None:
    visitor.example()
    visitor.segment("volume")
    before = downloaded(visitor)
    visitor.point(20, 3)
    one = downloaded(visitor)
    visitor.point(3, 15)
    assert (downloaded(visitor) != one).any()
    visitor.shows(visitor.actions.undo(visitor.session, 2))
    assert np.array_equal(downloaded(visitor), one)
    visitor.point(4, 4, tool="negative")
    visitor.shows(visitor.actions.uncorrect(visitor.session, 2))
    assert np.array_equal(downloaded(visitor), before)
    assert visitor.settings()["segmentation"]["corrections"] == []
    for undo in (visitor.actions.undo, visitor.actions.uncorrect):
        with pytest.raises(UsageError, match="no corrections"):
            undo(visitor.session, 2)


def test_a_box_is_two_clicks_or_drawn(visitor: Any, backend: Any) -> None:
    visitor.example()
    visitor.segment()
    shown = visitor.point(9, 8, tool="box")
    assert "opposite corner" in shown["segment_status"]
    assert "mr-corner" in shown["result"]
    assert len(backend.model.supports) == 1
    visitor.point(2, 3, tool="box")
    assert backend.model.prompts[-1][0]["liver"].box == (2, 3, 9, 8)
    assert visitor.shown["corner"] is None
    visitor.point(12, 15, tool="box", start=(10, 10))
    assert backend.model.prompts[-1][0]["liver"].box == (10, 10, 12, 15)


def test_the_corner_of_another_slice_or_structure_does_not_count(visitor: Any) -> None:
    visitor.example()
    visitor.segment("volume")
    visitor.point(9, 8, tool="box", number=1)
    visitor.point(2, 3, tool="box", number=2)
    assert visitor.shown["corner"] == Corner(slice_index=2, label="liver", at=(2, 3))


def test_without_a_tool_a_click_does_nothing(visitor: Any) -> None:
    visitor.example()
    visitor.segment()
    assert visitor.point(9, 8, tool="off") == {}
    with pytest.raises(UsageError, match="choose the structure"):
        visitor.point(9, 8, label="")


def test_corrections_need_a_mask(visitor: Any) -> None:
    visitor.example()
    for act in (visitor.actions.undo, visitor.actions.add_slice):
        with pytest.raises(UsageError, match="no mask yet"):
            act(visitor.session, 2)


def test_corrected_slices_outlive_another_segmentation(visitor: Any) -> None:
    visitor.example()
    visitor.segment("volume")
    visitor.point(20, 3)
    corrected = downloaded(visitor)[..., 2]
    visitor.segment("volume")
    assert np.array_equal(downloaded(visitor)[..., 2], corrected)
    assert visitor.session.outcome.edits(2)
    visitor.shows(visitor.actions.undo(visitor.session, 2))
    assert not np.array_equal(downloaded(visitor)[..., 2], corrected)
    # Unless it is that slice that is segmented.
    visitor.point(20, 3)
    visitor.segment("slice", number=2)
    assert not visitor.session.outcome.corrected


# What ends while something else goes on


def test_a_volume_that_ends_before_a_correction_is_not_lost(visitor: Any) -> None:
    visitor.example()
    visitor.segment("slice", number=3)
    click = visitor.pointed(20, 3)
    visitor.segment("volume")
    volume = downloaded(visitor)
    assert volume[..., 1].any()
    visitor.shows(click)
    changed = downloaded(visitor) != volume
    assert sorted({int(z) for z in np.argwhere(changed)[:, 2]}) == [2]
    assert visitor.session.outcome.scope == "volume"
    visitor.shows(visitor.actions.undo(visitor.session, 2))
    assert np.array_equal(downloaded(visitor), volume)


def test_a_correction_that_ends_before_a_volume_is_not_lost(visitor: Any) -> None:
    visitor.example()
    visitor.segment("slice", number=2)
    values = {**ASKED, "segmenter": "toy", "support_k": 2}.values()
    volume = visitor.actions.segment(visitor.session, 2, Run(), *values, scope="volume")
    visitor.point(20, 3)
    corrected = downloaded(visitor)[..., 2]
    visitor.shows(volume)
    assert np.array_equal(downloaded(visitor)[..., 2], corrected)
    assert visitor.session.outcome.edits(2)
    assert downloaded(visitor)[..., 1].any()


def test_corrections_of_two_slices_at_once_both_count(visitor: Any) -> None:
    visitor.example()
    visitor.segment("volume")
    clicks = [visitor.pointed(20, 3, number=number) for number in (1, 2)]
    for click in clicks:
        visitor.shows(click)
    assert list(visitor.session.outcome.corrected) == [1, 2]


def test_of_two_corrections_of_a_slice_at_once_the_second_is_refused(visitor: Any) -> None:
    visitor.example()
    visitor.segment("volume")
    visitor.point(20, 3)
    click = visitor.pointed(3, 15)
    undone = visitor.actions.undo(visitor.session, 2)
    visitor.shows(click)
    kept = visitor.session.outcome
    shown = visitor.shows(undone)
    assert "correction was dropped" in shown["segment_status"]
    assert visitor.session.outcome is kept
    assert len(kept.edits(2)) == 2


def test_a_slice_segmented_by_itself_is_newer_than_a_correction_of_it(visitor: Any) -> None:
    visitor.example()
    visitor.segment("volume")
    click = visitor.pointed(20, 3)
    visitor.segment("slice", number=2)
    assert "correction was dropped" in visitor.shows(click)["segment_status"]
    assert not visitor.session.outcome.corrected


def test_a_correction_of_a_former_image_is_dropped(visitor: Any) -> None:
    visitor.example()
    visitor.segment("volume")
    click = visitor.pointed(20, 3)
    visitor.example()
    assert "changed meanwhile" in visitor.shows(click)["segment_status"]
    visitor.segment("volume")
    assert "changed meanwhile" in visitor.shows(click)["segment_status"]
    assert not visitor.session.outcome.corrected
    assert visitor.actions.show_correction(visitor.session, "", 2, None, None) == {}


# What is done with it


def test_a_corrected_slice_joins_the_support_set_once(visitor: Any, backend: Any) -> None:
    visitor.example()
    visitor.segment("volume")
    visitor.point(20, 3)
    visitor.do(visitor.actions.add_slice(visitor.session, 2))
    (item,) = visitor.session.cart
    assert item.row_id is None
    former = item.support.mask
    assert np.array_equal(former != 0, visitor.session.outcome.mask(backend.open("demo").policy, 2))
    visitor.point(3, 15)
    visitor.do(visitor.actions.add_slice(visitor.session, 2))
    (item,) = visitor.session.cart
    assert (item.support.mask != former).any()
    visitor.segment("slice", number=3)
    assert [s.key for s in backend.model.supports[-1]] == [item.support.key]


def test_corrected_slices_become_a_new_version_of_the_index(
    visitor: Any, backend: Any, uploads: Path, tmp_path: Path
) -> None:
    visitor.example()
    visitor.segment("volume")
    with pytest.raises(UsageError, match="was corrected"):
        visitor.actions.save_version(visitor.session, 2, str(tmp_path / "new"), "mine")
    visitor.point(20, 3)
    visitor.point(3, 15, number=1)
    with pytest.raises(UsageError, match="own machine"):
        visitor.actions.save_version(visitor.session, 2, str(tmp_path / "new"), "mine")
    backend.allow_paths = True
    with pytest.raises(UsageError, match="needs a folder"):
        visitor.actions.save_version(visitor.session, 2, " ", "mine")
    shown = visitor.actions.save_version(visitor.session, 2, str(tmp_path / "new"), "mine")
    assert "2 more annotated slices" in shown["segment_status"]
    store = open_index(tmp_path / "new", embedder=backend.embedder).store
    rows = [store.row("mine", number) for number in (1, 2)]
    assert all(store.has_mask(row) for row in rows)
    assert len(store) == len(backend.open("demo").index.store) + 2


def test_a_new_version_has_the_embeddings_of_every_embedder(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = copy.copy(backend.embedder)
    twin.identity = replace(twin.identity, name="twin", weights_sha256="1" * 64)
    index = shutil.copytree(backend.demo().index, tmp_path / "index")
    add_embedder(index, embedder=twin)
    asked = []

    def load(wanted: Any, **_: Any) -> Any:
        asked.append(wanted.name)
        return twin

    monkeypatch.setattr(loading, "load_again", load)
    backend.allow_paths = True
    volume = read_volume(backend.queries[0].path)
    mask = np.zeros(volume.grid.shape, np.uint8)
    mask[2:8, 2:8] = 1
    labels = LabelVolume(voxels=mask, grid=volume.grid, names={1: "liver"})
    new = backend.append(str(index), tmp_path / "new", volume, labels, [1, 2], volume_id="mine")
    assert asked == ["twin"]
    for name in ("toy", "twin"):
        with open_store(new, embedder=name) as store:
            assert store.row("mine", 2) == len(store) - 1


def test_slices_lie_in_the_set_as_they_are_segmented(visitor: Any) -> None:
    visitor.example()
    visitor.segment("volume")
    turned = replace(visitor.session.outcome, orientation="rotated left")
    visitor.do({"outcome": turned})
    visitor.do(visitor.actions.add_slice(visitor.session, 2))
    (item,) = visitor.session.cart
    assert item.support.image.shape == item.support.mask.shape == (24, 20)


def test_a_point_that_the_mask_does_not_follow_is_said(visitor: Any, backend: Any) -> None:
    visitor.example()
    visitor.segment("volume")
    shown = visitor.point(20, 3)
    policy = backend.open("demo").policy
    outcome = visitor.session.outcome
    inside = outcome.mask(policy, 2)[3, 20] != 0
    assert outcome.missed(policy) == (0 if inside else 1)
    assert ("not followed" in shown["segment_status"]) is not inside
    both = visitor.point(20, 3, tool="negative")
    assert visitor.session.outcome.missed(policy) == 1, "one of two that contradict each other"
    assert "1 point is not followed" in both["segment_status"]
