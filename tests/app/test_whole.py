"""The page over an index of whole volumes: it searches, and says what it cannot do and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medretrieval.errors import EmbedderMismatchError, InputError, UsageError
from medretrieval.index import Case, build
from medretrieval.types import EmbedderIdentity, Grid, LabelVolume, SlicePolicy, Volume
from medretrieval.ui import text
from medretrieval.ui.actions import Actions
from medretrieval.ui.backend import DEMO

AFFINE = np.diag([-2.0, -2.5, 5.0, 1.0])


class ToyVolumeEmbedder:
    """Mean and spread of the eighths of a volume; takes no pictures."""

    def __init__(self, revision: str = "1") -> None:
        self.seen = 0
        self.identity = EmbedderIdentity(
            name="toy-volumes",
            weights="none",
            revision=revision,
            weights_sha256=revision * 64,
            preprocessing={"unit": "volume"},
            pooling="eighths",
            dim=17,
        )

    def embed_volume(self, volume: Volume) -> NDArray[np.float32]:
        if not volume.grid.spacing_known:
            raise InputError(f"{volume.name} is a picture; toy-volumes embeds volumes")
        self.seen += 1
        parts = [
            part
            for third in np.array_split(volume.voxels, 2, 0)
            for half in np.array_split(third, 2, 1)
            for part in np.array_split(half, 2, 2)
        ]
        vector = np.array([1.0, *(f(p) for p in parts for f in (np.mean, np.std))])
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def case(number: int) -> Case:
    rng = np.random.default_rng(number)
    voxels = rng.integers(0, 40, (24, 20, 6)).astype(np.int16)
    mask = np.zeros(voxels.shape, np.uint8)
    mask[3 * number : 3 * number + 8, 2:9, 4:] = 1
    voxels[mask == 1] += 150

    def load() -> tuple[Volume, LabelVolume]:
        grid = Grid(shape=voxels.shape, affine=AFFINE)
        return (
            Volume(voxels=voxels, grid=grid, modality="CT", name=f"case-{number}"),
            LabelVolume(voxels=mask, grid=grid, names={1: "liver"}),
        )

    return Case(
        volume_id=f"case-{number}",
        patient_id=f"case-{number}",
        modality="CT",
        label_names={1: "liver"},
        load=load,
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(
        [case(number) for number in range(4)],
        tmp_path_factory.mktemp("whole") / "index",
        embedder=ToyVolumeEmbedder(),
        slices=SlicePolicy(axis="axial", window="percentile", max_side=64),
        name="whole volumes",
    )


@pytest.fixture
def own(backend: Any, visitor: Any, path: Path, queries: Any, uploads: Path) -> Any:
    """A visitor of a page whose only index is of whole volumes, open."""
    mine = type(backend)(path, queries)
    mine.embedder = ToyVolumeEmbedder()
    mine.open(DEMO)
    return type(visitor)(Actions(mine, uploads=uploads))


def test_an_index_of_whole_volumes_says_so_when_it_is_chosen(own: Any) -> None:
    shown = own.do(own.actions.choose_index(DEMO, None))
    assert "compares whole volumes" in shown["search_status"]
    assert "compares whole volumes" in shown["about"]
    assert "17 numbers a volume" in shown["about"]
    assert "4 volumes" in shown["about"]
    assert shown["mode"]["value"] == "slice"
    assert ("Volumes like this one", "slice") in shown["mode"]["choices"]


def test_another_index_brings_the_usual_ways_of_searching_back(visitor: Any) -> None:
    shown = visitor.do(visitor.actions.choose_index(DEMO, None))
    assert "whole volumes" not in shown["search_status"] + shown["about"]
    assert ("Slices like this one", "slice") in shown["mode"]["choices"]
    assert "value" not in shown["mode"]  # the visitor's choice stays


@pytest.mark.parametrize("number", [0, 3])
def test_a_volume_is_searched_as_a_whole_whatever_slice_is_shown(own: Any, number: int) -> None:
    assert own.example()["mode"] == "slice"
    shown = own.find("slice", k=3, number=number)
    found = own.session.found
    assert found.whole
    assert found.slice_index is None
    assert len(found.result.hits) == 3
    assert shown["hits"].count("whole volume, shown by slice") == 3
    assert "3 similar cases" in shown["search_status"]
    hit = found.result.hits[0]
    match = hit.matches[0]
    assert f"similarity {match.score:.3f}" in shown["hits"]
    own.do(own.actions.why(own.session, f"1:{match.slice_index}:{match.query_slice}"))
    assert "each compared as a whole" in own.shown["why"]
    assert "<table>" not in own.shown["why"]
    assert "hits" in own.do(own.actions.show(own.session, "", 1))


def test_other_modes_find_one_volume_and_say_how_to_see_more(own: Any) -> None:
    own.example()
    own.find("slice")
    for mode in ("rerank", "count", "weighted"):
        shown = own.find(mode)
        assert len(own.session.found.result.hits) == 1
        assert "“Volumes like this one”" in shown["search_status"]
        assert "similarity" in shown["hits"]
    assert own.actions.backend.embedder.seen == 1  # kept for all of them


def test_a_picture_is_refused_in_words(own: Any) -> None:
    own.example(1)
    with pytest.raises(InputError, match="is a picture"):
        own.find("slice")


def test_segmenting_needs_slices_chosen_by_hand(own: Any) -> None:
    own.example()
    with pytest.raises(UsageError, match="add them to the support set"):
        own.segment()
    own.find("slice", k=2)
    own.do(own.actions.add_hits(own.session, 0))
    assert len(own.session.cart) == 2
    shown = own.segment("volume")
    assert "from the support set" in shown["segment_status"]


def test_two_embedders_side_by_side_keep_their_columns(own: Any) -> None:
    own.actions.backend.embedder = ToyVolumeEmbedder("2")
    with pytest.raises(EmbedderMismatchError) as caught:
        own.actions.backend._open("x", [str(own.actions.backend.path)], synthetic=False)
    shown = text.status("error", str(caught.value))
    assert '<span class="mr-lines">' in shown
    assert "222222222222  (differs)" in shown
    assert "mr-lines" not in text.status("error", "one line")
