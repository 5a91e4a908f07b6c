"""Copies that were saved again are flagged, similar pictures are not."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from medretrieval.imaging import make_slices, read_volume
from medretrieval.retrieval.duplicates import EQUAL, SAME, SIDE, correlation, mark, thumbnail
from medretrieval.retrieval.engine import Index
from medretrieval.retrieval.query import from_arrays
from medretrieval.types import SlicePolicy

SHARED = (Path(__file__).parents[2] / "../shared/data").resolve()
Picture = NDArray[np.uint8]


def scene(seed: int, side: int = 160) -> Picture:
    """Blobs of some sizes: a picture like no other."""
    noise = np.random.default_rng(seed).normal(size=(side, side))
    layers = [ndimage.gaussian_filter(noise, s) * s for s in (4, 9, 20)]
    grey = np.sum(layers, axis=0)
    return (255 * (grey - grey.min()) / np.ptp(grey)).astype(np.uint8)


def jpeg(picture: Picture, quality: int) -> Picture:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


CHANGES = {
    "nothing": lambda p: p,
    "jpeg 90": lambda p: jpeg(p, 90),
    "jpeg 75": lambda p: jpeg(p, 75),
    "shifted": lambda p: np.roll(p, 1, axis=1),
    "smaller": lambda p: np.asarray(Image.fromarray(p).resize((120, 120))),
    "brighter": lambda p: np.clip(p * 1.05, 0, 255).astype(np.uint8),
    "darker": lambda p: (p * 0.95).astype(np.uint8),
    "colour": lambda p: np.stack([p] * 3, axis=2),
}
thumbs = hnp.arrays(np.uint8, (SIDE, SIDE))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seed", range(3))
def test_changed_copies_are_the_same_picture(change: str, seed: int) -> None:
    picture = scene(seed)
    assert correlation(thumbnail(picture), thumbnail(CHANGES[change](picture))) >= SAME


@pytest.mark.parametrize("seed", range(10))
def test_other_pictures_are_not(seed: int) -> None:
    assert correlation(thumbnail(scene(seed)), thumbnail(scene(seed + 100))) < 0.6


@given(thumbs, thumbs)
def test_correlation_is_symmetric_and_in_range(a: Picture, b: Picture) -> None:
    value = correlation(a, b)
    assert -1 <= value <= 1 + 1e-12
    own = correlation(a, a)
    assert own == pytest.approx(1) or (own == 0 and not np.ptp(a[1:-1, 1:-1]))


def test_an_even_picture_is_like_nothing() -> None:
    even = np.full((SIDE, SIDE), 7, np.uint8)
    assert correlation(even, even) == 0
    assert correlation(even, thumbnail(scene(0))) == 0


def store_of(make_store, pictures: dict[str, list[Picture]]):
    """An index whose embeddings are all alike, so that pictures alone decide."""
    store = make_store(
        {name: [[1.0, 0.1 * i] for i in range(len(p))] for name, p in pictures.items()}
    )
    flat = [picture for own in pictures.values() for picture in own]
    store.image = lambda row: flat[row]
    return store


def query_of(pictures: list[Picture]):
    query = from_arrays([[1.0, 0.1 * i] for i in range(len(pictures))])
    return replace(query, thumbnails=np.stack([thumbnail(p) for p in pictures]))


def test_the_slice_that_is_a_copy_is_flagged_and_no_other(make_store) -> None:
    pictures = {"copy": [jpeg(scene(1), 75)], "other": [scene(2)]}
    found = Index(store_of(make_store, pictures)).search(query_of([scene(1)]), k=2)
    flags = {hit.volume_id: hit.near_duplicate for hit in found.hits}
    assert flags == {"copy": True, "other": False}
    assert found.to_json()["hits"][0]["near_duplicate"] in (True, False)


@pytest.mark.parametrize("mode", ["rerank", "mean-pool"])
def test_a_volume_is_one_if_half_of_its_slices_are(make_store, mode: str) -> None:
    slices = [scene(i) for i in range(4)]
    copies = [jpeg(picture, 90) for picture in slices]
    others = [scene(i + 50) for i in range(4)]
    pictures = {
        "all": copies,
        "half": [*copies[:2], *others[2:]],
        "quarter": [copies[0], *others[1:]],
        "none": others,
    }
    index = Index(store_of(make_store, pictures))
    # All embeddings are matched slice by slice, as those of slice i are the same everywhere.
    hits = index.search(query_of(slices), mode=mode, k=4).hits
    flags = {hit.volume_id: hit.near_duplicate for hit in hits}
    expected = {"all": True, "half": True, "quarter": False, "none": False}
    assert flags == {name: expected[name] for name in flags}
    assert "all" in flags


def test_empty_slices_neither_make_nor_prevent_a_copy(make_store) -> None:
    empty = np.zeros((50, 50), np.uint8)
    query = query_of([empty, empty, empty, scene(1)])
    pictures = {"copy": [empty, empty, empty, scene(1)], "other": [empty, empty, empty, scene(2)]}
    index = Index(store_of(make_store, pictures))
    for name, expected in (("copy", True), ("other", False)):
        hits = index.search(query, mode="mean-pool", k=2).hits
        assert {hit.volume_id: hit.near_duplicate for hit in hits}[name] is expected


def test_a_query_without_pictures_is_compared_by_embeddings(make_store) -> None:
    near = [1.0, float(np.tan(np.arccos(EQUAL))) * 0.9]
    store = make_store({"equal": [near], "like": [[1.0, 0.1]]})
    hits = Index(store).search(np.array([[1.0, 0.0]]), k=2).hits
    assert {hit.volume_id: hit.near_duplicate for hit in hits} == {"equal": True, "like": False}


def test_a_case_of_the_index_has_its_pictures_there(make_store) -> None:
    pictures = {"case": [scene(1)], "copy": [jpeg(scene(1), 75)], "other": [scene(2)]}
    hits = Index(store_of(make_store, pictures)).search("case:case", k=3).hits
    assert {hit.volume_id: hit.near_duplicate for hit in hits} == {"copy": True, "other": False}


def test_nothing_is_flagged_for_whole_volumes(make_store, make_identity) -> None:
    store = store_of(make_store, {"copy": [scene(1)]})
    whole = make_identity(2, preprocessing={"unit": "volume"})
    query = replace(query_of([scene(1)]), identity=whole)
    hits = Index(store).search(query_of([scene(1)])).hits
    assert hits[0].near_duplicate
    assert not mark([replace(hits[0], near_duplicate=False)], query, store, finds="slices")[
        0
    ].near_duplicate


@pytest.mark.data
@pytest.mark.skipif(
    not SHARED.exists(), reason="the annotated images beside the project are absent"
)
@pytest.mark.parametrize("organ", ["heart", "hippocampus", "abdomen"])
def test_real_slices_are_told_from_those_of_other_patients(organ: str) -> None:
    with (SHARED / "volumes.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["organ"] == organ]
    patients = list({row["patient_id"]: row for row in rows}.values())[:3]
    slices = []
    for row in patients:
        volume = read_volume(SHARED / row["path"])
        pieces = list(make_slices(volume, SlicePolicy()))
        slices.append([piece.image for piece in pieces[:: max(1, len(pieces) // 5)]])
    own = [thumbnail(picture) for picture in slices[0]]
    for picture, thumb in zip(slices[0], own, strict=True):
        assert correlation(thumb, thumbnail(jpeg(picture, 75))) >= SAME
    strangers = [thumbnail(picture) for others in slices[1:] for picture in others]
    assert max(correlation(a, b) for a in own for b in strangers) < SAME
