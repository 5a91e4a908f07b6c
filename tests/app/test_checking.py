"""Cancelling, how sure a mask is, saved support sets, warnings; a tiny index and no networks."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medretrieval.errors import Cancelled, InputError, UsageError
from medretrieval.segmentation.labels import SliceSegmentation
from medretrieval.segmentation.options import VolumeOptions
from medretrieval.segmentation.uncertainty import Agreement
from medretrieval.types import Grid, Volume
from medretrieval.ui import asked, results, words
from medretrieval.ui.asked import DEFAULTS
from medretrieval.ui.runs import Run
from medretrieval.ui.session import Props

# Cancelling


def values(**options: Any) -> Any:
    return {**DEFAULTS, "segmenter": "toy", "support_k": 2, **options}.values()


def test_cancelled_work_stops_and_the_former_mask_stays(visitor: Any, backend: Any) -> None:
    visitor.example()
    visitor.segment("slice")
    former = visitor.session.outcome
    begun = visitor.actions.begin(None)
    run = begun["run"]
    assert begun["cancel"] == Props(visible=True)

    def watching(done: int, total: int, message: str) -> None:
        if message.startswith("segmenting") and done == 2:
            assert "cancelled" in visitor.actions.cancel(run)["segment_status"]

    with pytest.raises(Cancelled, match="still shown"):
        visitor.actions.segment(
            visitor.session, 2, run, *values(), scope="volume", progress=watching
        )
    assert visitor.session.outcome is former
    assert visitor.actions.end(run) == {"cancel": Props(visible=False)}
    assert visitor.actions.cancel(run) == {}
    assert "Segmented" in visitor.segment("volume")["segment_status"]


def test_work_is_cancelled_before_it_begins(visitor: Any, backend: Any) -> None:
    visitor.example()
    run = visitor.actions.begin(None)["run"]
    newer = visitor.actions.begin(run)["run"]
    with pytest.raises(Cancelled):
        visitor.actions.segment(visitor.session, 2, run, *values(), scope="volume")
    assert backend.model.supports == []
    # The button belongs to the newer work now.
    assert visitor.actions.end(newer) == {}


def test_a_failure_ends_the_run(visitor: Any) -> None:
    run = Run()
    with pytest.raises(UsageError, match="load an image"):
        visitor.actions.segment(visitor.session, 2, run, *values(), scope="slice")
    assert run.over


# Options


def test_the_controls_say_how_to_segment() -> None:
    assert asked.asked({}) == asked.Asked()
    made = asked.asked(
        {
            "structures": ["liver"],
            "one_set": True,
            "negatives": False,
            "propagate": False,
            "largest": True,
            "best_axis": True,
            "crop": "body",
            "memory": "pooled",
        }
    )
    assert made.keywords() == {
        "segmenter": DEFAULTS["segmenter"],
        "support_k": DEFAULTS["support_k"],
        "labels": ["liver"],
        "sets": "volume",
        "how": VolumeOptions(propagation="none", keep="largest", axis="best"),
        "options": {"crop": "body", "memory": "pooled", "negatives": False},
    }
    assert made.of_one_slice().how == VolumeOptions()


def test_options_reach_the_segmenter_and_the_settings(visitor: Any, backend: Any) -> None:
    visitor.example()
    visitor.segment("volume", one_set=True, largest=True, negatives=False, propagate=False)
    keys = [{s.key for s in supports} for supports in backend.model.supports]
    assert all(own == keys[0] for own in keys)
    options = visitor.settings()["segmentation"]["options"]
    assert options["sets"] == "volume"
    assert options["volume"]["keep"] == "largest"
    assert options["options"] == {"negatives": False}


# How sure a mask is


def test_the_agreement_of_a_slice(visitor: Any, backend: Any) -> None:
    visitor.example()
    visitor.segment("volume")
    before = len(backend.model.supports)
    shown = visitor.actions.check(visitor.session, 3, Run())
    # All supports, and all but each of two.
    assert [len(s) for s in backend.model.supports[before:]] == [2, 1, 1]
    view = shown["agreement_view"]
    assert "How sure is slice 3?" in view
    assert "without your corrections" not in view
    assert "<td>liver</td><td>1.00</td>" in view
    assert "linear-gradient" in view


def test_checking_can_be_cancelled(visitor: Any) -> None:
    visitor.example()
    visitor.segment("volume")
    run = Run()
    run.cancel()
    with pytest.raises(Cancelled):
        visitor.actions.check(visitor.session, 3, run)
    assert run.over


@pytest.mark.parametrize(("score", "said"), [
    (1.0, "the same"), (0.9, "the same"), (0.8, "its edge"), (0.2, "do not rely"),
    (float("nan"), "not found"),
])  # fmt: skip
def test_agreement_in_words(score: float, said: str) -> None:
    assert said in results.meaning(score)


def test_the_map_shows_where_masks_differ(visitor: Any, backend: Any) -> None:
    visitor.example()
    maps = np.ones((1, 20, 24), np.float32)
    maps[0, 3, 4] = 0.5
    result = SliceSegmentation(mask=np.zeros((20, 24), np.uint8), logits=maps, names={1: "<b>"})
    found = Agreement(result=result, names={1: "<b>"}, maps=maps, scores={"<b>": float("nan")})
    view = results.agreement(
        found, visitor.session.query, backend.open("demo").policy, 2, corrected=True
    )
    assert "without your corrections" in view
    assert "&lt;b&gt;" in view
    assert "<b>" not in view


# Saved support sets


def test_a_support_set_is_saved_and_loaded(visitor: Any, uploads: Path) -> None:
    visitor.example()
    with pytest.raises(UsageError, match="is empty"):
        visitor.actions.save_set(visitor.session)
    visitor.find()
    visitor.do(visitor.actions.add_hits(visitor.session, 2))
    visitor.segment("volume")
    visitor.do(visitor.actions.add_slice(visitor.session, 2))
    cart = visitor.session.cart
    saved = visitor.actions.save_set(visitor.session)["set_file"]
    assert saved.name == "medretrieval-support-set.zip"
    visitor.do(visitor.actions.empty(visitor.session, 2))
    path = uploads / "set.zip"
    path.write_bytes(saved.content)
    visitor.do(visitor.actions.load_set(visitor.session, 2, str(path)))
    assert not path.exists()
    loaded = visitor.session.cart
    # Slices of the index are recognised, so that they are marked among the results.
    assert [item.key for item in loaded[:-1]] == [item.key for item in cart[:-1]]
    assert loaded[-1].key.startswith("set/")
    assert all(
        np.array_equal(a.support.mask, b.support.mask) for a, b in zip(loaded, cart, strict=True)
    )
    path.write_bytes(saved.content)
    visitor.do(visitor.actions.load_set(visitor.session, 2, str(path)))
    assert visitor.session.cart == loaded or len(visitor.session.cart) == len(loaded)


def test_a_file_that_is_no_support_set_is_explained_and_deleted(
    visitor: Any, uploads: Path
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    path = uploads / "Doe.zip"
    for content in (buffer.getvalue(), b"no zip"):
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            visitor.actions.load_set(visitor.session, 2, str(path))
        assert "Doe" not in str(caught.value)
        assert not path.exists()
    with pytest.raises(UsageError, match="choose a support set"):
        visitor.actions.load_set(visitor.session, 2, None)


# Warnings


def test_a_support_set_of_another_kind_is_told(visitor: Any) -> None:
    visitor.example()
    visitor.find()
    visitor.do(visitor.actions.add_hits(visitor.session, 2))
    assert "mr-warning" not in visitor.shown["segment_status"]
    item = replace(visitor.session.cart[0], modality="MR", region="head")
    said = words.odd_supports([item, *visitor.session.cart[1:]], visitor.session.found)
    assert "a slice of another kind (MR head)" in said
    assert words.odd_supports([item], None) == ""


def test_an_index_without_the_modality_of_the_image_is_told() -> None:
    grid = Grid(shape=(2, 2, 1), affine=np.eye(4))
    volume = Volume(voxels=np.zeros(grid.shape), grid=grid, modality="MR")
    assert "has only CT" in words.unsuitable(volume, ["CT", "unknown"])
    assert words.unsuitable(volume, ["CT", "MR"]) == ""
    assert words.unsuitable(volume, ["unknown"]) == ""
    assert words.unsuitable(replace(volume, modality="unknown"), ["CT"]) == ""
