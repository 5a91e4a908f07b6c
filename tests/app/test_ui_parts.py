"""Pictures, words, exports and shared objects of the page."""

from __future__ import annotations

import base64
import csv
import io
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from medretrieval.errors import InputError, UsageError
from medretrieval.imaging import extract, slice_axis
from medretrieval.imaging.orientation import AS_STORED, ORIENTATIONS
from medretrieval.retrieval.filters import Filters
from medretrieval.retrieval.modes import MODES
from medretrieval.types import Grid, Hit, Localization, Match, SearchResult
from medretrieval.ui import content, explained, exports, panel, pictures, text, words
from medretrieval.ui.backend import listed_indexes
from medretrieval.ui.opened import Once
from medretrieval.ui.options import Wanted
from medretrieval.ui.pictures import Palette
from medretrieval.ui.session import Found, add_to_cart, remove_from_cart
from medretrieval.ui.uploads import taken

HOSTILE = "<img src=x onerror=alert(1)>\"'{{value}}${value}"


def hit(**changes: object) -> Hit:
    values: dict[str, object] = {
        "rank": 1, "volume_id": "case-1", "score": 0.5, "row_id": 3, "slice_index": 7,
        "position_mm": None, "labels": ("liver",), "modality": "CT", "region": "abdomen",
        "matches": (Match(query_slice=2, slice_index=7, score=0.5),),
    }  # fmt: skip
    return Hit(**{**values, **changes})  # type: ignore[arg-type]


def search(*hits: Hit, **changes: object) -> Found:
    result = SearchResult(query="q", mode=str(changes.pop("mode", "rerank")), hits=hits)
    values: dict[str, object] = {
        "result": result, "query": "token", "index": "demo", "k": 5, "slice_index": None,
        "chosen": (2, 3), "seconds": 1.0,
    }  # fmt: skip
    return Found(**{**values, **changes})  # type: ignore[arg-type]


# Pictures


@given(
    hnp.arrays(
        np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)
    )
)
def test_an_outline_lies_inside_the_labels_and_beside_another_one(mask: np.ndarray) -> None:
    edge = pictures.outline(mask)
    padded = np.pad(mask, 1, mode="edge")
    neighbours = [padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]]
    differs = np.any([n != mask for n in neighbours], axis=0)
    assert np.array_equal(edge, differs & (mask != 0))


def test_an_overlay_covers_exactly_the_labels() -> None:
    mask = np.zeros((10, 20), np.uint8)
    mask[2:5, 3:9] = 2
    over = pictures.overlay(mask, {2: "liver"}, Palette.of(["liver"]))
    factor = over.shape[0] // 10
    assert over.shape == (10 * factor, 20 * factor, 4)
    assert max(over.shape) >= pictures.DISPLAY_SIDE
    shown = over[::factor, ::factor, 3] > 0
    assert np.array_equal(shown, mask > 0)
    assert {tuple(c) for c in over[over[..., 3] > 0][:, :3].tolist()} == {
        Palette.of(["liver"])["liver"]
    }


def test_neighbouring_labels_have_different_colours() -> None:
    palette = Palette.of(f"label {i}" for i in range(20))
    colours = [palette[f"label {i}"] for i in range(20)]
    assert len(set(colours)) == 20
    assert palette.with_names(["label 4", "new"])["label 4"] == colours[4]


@pytest.mark.parametrize("shape", [(30, 60), (60, 30), (1, 500), (16, 16, 3)])
def test_a_thumbnail_is_square_and_keeps_the_proportions(shape: tuple[int, ...]) -> None:
    image = np.full(shape, 255, np.uint8)
    small = pictures.thumbnail(image, np.ones(shape[:2], np.uint8), {1: "a"}, side=48)
    assert small.shape == (48, 48, 3)
    rows, columns = (np.flatnonzero(small.any(axis=(2, a))) for a in (1, 0))
    wanted = [max(1, round(48 * min(1, shape[a] / shape[1 - a]))) for a in (0, 1)]
    assert [len(rows), len(columns)] == wanted


def test_a_data_uri_is_the_picture() -> None:
    picture = np.arange(64, dtype=np.uint8).reshape(8, 8)
    head, _, data = pictures.data_uri(picture).partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), picture)


# Words


@pytest.mark.parametrize(("plane", "top", "left"), [
    ("axial", 1, 0), ("coronal", 2, 0), ("sagittal", 2, 1),
])  # fmt: skip
def test_the_letters_at_the_edges_are_those_of_the_picture(plane: str, top: int, left: int) -> None:
    grid = Grid(shape=(4, 5, 6), affine=np.diag([1.0, 1, 1, 1]))
    axis = slice_axis(grid, plane)
    world = [
        extract(c, grid, axis, 1) for c in np.meshgrid(range(4), range(5), range(6), indexing="ij")
    ]
    letters = {0: "LR", 1: "PA", 2: "IS"}
    first = letters[top][int(world[top][0, 0] > world[top][-1, 0])]
    second = letters[left][int(world[left][0, 0] > world[left][0, -1])]
    assert text.EDGES[plane] == f"{first} {second}"
    assert text.plane(grid, axis) == plane


def test_what_comes_from_outside_is_escaped() -> None:
    card = text.Card(
        key=HOSTILE, image=np.zeros((4, 4), np.uint8), alt=HOSTILE, lines=[HOSTILE],
        actions=[text.Action("add", HOSTILE, HOSTILE)], opens="why", badge=HOSTILE,
        flag=(HOSTILE, HOSTILE),
    )  # fmt: skip
    structures = [{"name": HOSTILE, "voxels": n, "ml": 1.0} for n in (0, 5)]
    shown = [
        text.cards([card], kind="hits"),
        text.status("error", HOSTILE),
        text.placeholder(HOSTILE, HOSTILE),
        text.legend(structures, Palette.of([])),
        text.chips([(HOSTILE, [HOSTILE])]),
        text.figures([(np.zeros((4, 4), np.uint8), HOSTILE)]),
        text.figure(np.zeros((4, 4), np.uint8), HOSTILE, HOSTILE),
        explained.unavailable(HOSTILE),
        panel.in_use(Wanted(filters=Filters(modality=HOSTILE)), "rerank", {}),
    ]
    for part in shown:
        assert "<img src=x" not in part
        assert "&lt;img src=x" in part


def test_every_way_of_searching_has_words() -> None:
    assert set(words.MODES) == set(words.HINTS) == set(words.SCORES) == set(MODES)
    assert set(words.WHOLE_MODES) <= set(MODES)
    assert [name for _, name in words.mode_choices(MODES)] == list(words.MODES)
    assert set(words.COUNTS + words.COSINES) <= set(MODES)
    assert {*words.ORIENTATIONS, AS_STORED} == set(ORIENTATIONS)


def test_where_a_part_was_found() -> None:
    pairs = tuple(Match(query_slice=0, slice_index=n, score=0.5) for n in (4, 3, 3, 9))
    assert words.located(Localization(slices=pairs)) == "on its slices 3\u20134, 9"
    named = Localization(slices=pairs[:1], structure="liver", ratio=0.75)
    assert words.located(named) == "on its slice 4; liver on 75 % of them (LR)"
    assert words.located(Localization(slices=())) == "on none of its slices"


def test_a_near_duplicate_says_what_that_means() -> None:
    card = text.Card(
        key="1", image=np.zeros((4, 4), np.uint8), alt="", lines=[],
        flag=("near duplicate", words.NEAR_DUPLICATE),
    )  # fmt: skip
    shown = text.cards([card], kind="hits")
    assert f'title="{words.NEAR_DUPLICATE}"' in shown
    assert ">near duplicate<" in shown


@pytest.mark.parametrize(("orientation", "asked", "said"), [
    ("rotated left", "any", "after a quarter turn to the left"),
    ("as stored", "any", "Your image lies as those of the index do."),
    ("as stored", "as stored", ""),
])  # fmt: skip
def test_the_orientation_is_proposed_in_words(orientation: str, asked: str, said: str) -> None:
    result = SearchResult(query="q", mode="rerank", hits=(hit(),), orientation=orientation)
    line = words.found_line(search(result=result, wanted=Wanted(orientation=asked), k=1), 3)
    assert said in line
    assert ("lies" in line) == bool(said)


def test_names_of_mask_values() -> None:
    assert words.label_names(" 1=liver, 2 = left kidney ,") == {1: "liver", 2: "left kidney"}
    assert words.label_names(None) is words.label_names("") is None
    for wrong in ("liver", "0=air", "1=", "=liver", "a=b", "-1=x"):
        with pytest.raises(UsageError, match="1=liver, 2=spleen"):
            words.label_names(wrong)


@pytest.mark.parametrize(("mode", "score", "said"), [
    ("slice", 0.91234, "similarity 0.912"), ("count", 7.0, "7 of 24 slices"),
    ("weighted", 3.456, "score 3.46"), ("rerank", 22.3, "score 22.30 of 24"),
    ("mean-pool", 0.5, "similarity 0.500"), ("sum", 3.5, "score 3.50 of 24"),
])  # fmt: skip
def test_scores_say_what_they_are(mode: str, score: float, said: str) -> None:
    assert words.score(hit(score=score), mode, 24) == said


# Exports


def test_hits_as_csv_are_safe_for_spreadsheets() -> None:
    near = Localization(
        slices=(Match(query_slice=2, slice_index=7, score=0.5),), structure="liver", ratio=0.5
    )
    found = (
        hit(near_duplicate=True, localization=near),
        hit(rank=2, volume_id="=1+1", labels=("a", "b"), position_mm=12.5, matches=()),
    )
    first, second = csv.DictReader(io.StringIO(exports.hits_csv(search(*found))))
    assert (first["rank"], first["query_slice"], first["match_score"]) == ("1", "2", "0.5")
    assert first["position_mm"] == ""
    assert second["volume_id"] == "'=1+1"
    assert second["labels"] == "a;b"
    assert second["query_slice"] == ""
    assert (first["near_duplicate"], second["near_duplicate"]) == ("yes", "no")
    assert (first["localized_slices"], first["localization_ratio"]) == ("7", "0.5")
    assert (second["localized_slices"], second["localization_ratio"]) == ("", "")
    assert first["orientation"] == "as stored"


# The support set


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))
def test_a_cart_holds_each_item_once_in_order_of_arrival(first: list[int], then: list[int]) -> None:
    class Item:
        def __init__(self, key: int) -> None:
            self.key = str(key)

    cart = add_to_cart((), map(Item, first))  # type: ignore[arg-type]
    grown = add_to_cart(cart, map(Item, then))  # type: ignore[arg-type]
    assert grown[: len(cart)] == cart
    assert [item.key for item in grown] == list(dict.fromkeys(map(str, first + then)))
    assert [i.key for i in remove_from_cart(grown, "3")] == [i.key for i in grown if i.key != "3"]


# Shared objects


def test_many_who_ask_at_once_get_one_object_and_see_its_progress() -> None:
    once, made, started, go = Once(), [], threading.Event(), threading.Event()

    def make(progress: object) -> object:
        made.append(1)
        progress(3, 7, "building")  # type: ignore[operator]
        started.set()
        assert go.wait(30)
        return object()

    results: list[object] = []
    seen: list[tuple[int, int, str]] = []

    def waits(done: int, total: int, message: str) -> None:
        seen.append((done, total, message))
        go.set()

    first = threading.Thread(target=lambda: results.append(once.get("x", make)))
    first.start()
    assert started.wait(30)
    results.append(once.get("x", make, waits))
    first.join(30)
    assert made == [1]
    assert results[0] is results[1] is once.ready("x")
    assert seen[0] == (3, 7, "building")
    assert once.ready("y") is None


def test_what_failed_is_tried_again() -> None:
    once = Once()

    def fails(_: object) -> int:
        raise InputError("not now")

    with pytest.raises(InputError):
        once.get("x", fails)
    assert once.get("x", lambda _: 5) == 5


def test_listed_indexes() -> None:
    assert listed_indexes(None) == {}
    assert listed_indexes("/a/acdc: Liver = /b c :") == {"acdc": "/a/acdc", "Liver": "/b c"}


# Uploads


@pytest.mark.parametrize(("name", "private"), [
    ("Doe.nii.gz", "your file.nii.gz"), ("IM0001", "your file"), ("a.PNG", "your file.png"),
    ("x.$(rm)", "your file"),
])  # fmt: skip
def test_an_upload_is_read_under_a_neutral_name(uploads: Path, name: str, private: str) -> None:
    (uploads / name).write_bytes(b"data")
    with taken(uploads / name, uploads) as path:
        assert path.name == private
        assert path.read_bytes() == b"data"
        assert not (uploads / name).exists()
    assert not path.exists()


def test_an_upload_that_is_gone(uploads: Path) -> None:
    with pytest.raises(InputError, match="upload the file again"), taken(uploads / "x", uploads):
        pass


def test_the_embedder_of_the_index_is_listed_though_it_is_in_no_table() -> None:
    rows = [{"name": "toy", "status": "bundled"}]
    assert "file:ours.json" in content.embedders(rows, "file:ours.json")
    assert "used by this index" in content.embedders(rows, "file:ours.json")
    assert "not in the table" not in content.embedders(rows, "toy")


def test_names_in_messages_are_written_as_they_are() -> None:
    assert text.sentence("no such index; choose one") == "No such index; choose one"
    for message in ("lab/hearts cannot be fetched", "slices-0.parquet is damaged", ""):
        assert text.sentence(message) == message
