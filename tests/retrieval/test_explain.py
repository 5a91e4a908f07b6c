"""Why a hit was found: the matrix of similarities, heat maps, and their pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from medretrieval.cli import main
from medretrieval.embedders import REGISTRY, load_embedder
from medretrieval.embedders.medclip import MedClip
from medretrieval.errors import InputError, UnavailableError, UsageError
from medretrieval.imaging import embedded_part, write_volume
from medretrieval.index import Case, build
from medretrieval.retrieval import explain, figures
from medretrieval.retrieval.engine import Index, open_index
from medretrieval.retrieval.explanation import write_explanation
from medretrieval.retrieval.filters import Filters
from medretrieval.retrieval.heat import best_matches, contributions, heat_maps, spread
from medretrieval.retrieval.query import from_arrays
from medretrieval.types import Grid, PatchFeatures, SlicePolicy, Volume


def make_volume(name: str, slices: int, seed: int) -> Volume:
    """A bright ellipse that grows from slice to slice, off the middle of a dark picture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:90, :70]
    inside = ((y - 40) / 25) ** 2 + ((x - 40) / 18) ** 2
    grown = [inside < 0.3 + 0.7 * i / slices for i in range(slices)]
    voxels = np.stack([120 * g + 60 * g * rng.random(g.shape) for g in grown], axis=2)
    grid = Grid(shape=voxels.shape, affine=np.diag([-1.0, -1.0, 4.0, 1.0]))
    return Volume(voxels=voxels.astype(np.uint8), grid=grid, name=name, modality="CT")


def loaded(name: str, slices: int, seed: int) -> tuple[Volume, None]:
    return make_volume(name, slices, seed), None


def make_index(folder: Path, embedder: Any, crop: str = "none") -> Path:
    cases = [
        Case(
            volume_id=name,
            patient_id=f"patient of {name}",
            modality="CT",
            region="chest",
            load=partial(loaded, name, slices, seed),
        )
        for seed, (name, slices) in enumerate({"one": 5, "two": 8, "single": 1}.items())
    ]
    policy = SlicePolicy(axis="axial", window="identity", crop=crop)
    return build(cases, folder, embedder=embedder, slices=policy, name="toy")


@pytest.fixture(scope="module")
def embedder() -> Any:
    return load_embedder("efficientnet-lite0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, embedder: Any) -> Path:
    return make_index(tmp_path_factory.mktemp("plain") / "index", embedder)


@pytest.fixture(scope="module")
def index(folder: Path, embedder: Any) -> Index:
    return open_index(folder, embedder=embedder)


@pytest.fixture(scope="module")
def query() -> Volume:
    return make_volume("query", 6, 9)


def swin() -> Any:
    """MedCLIP with random weights: the mean of the tokens of a Swin transformer."""
    torch.manual_seed(0)
    config = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    network = torch.nn.ModuleDict({"backbone": transformers.SwinModel(config)})
    row = REGISTRY["medclip"]
    spec = type(row)(**{**vars(row), "dim": 16, "input_size": 64, "resize_to": 64})
    return MedClip(spec, network, identity=load_embedder("efficientnet-lite0").identity)


class Mosaic:
    """Quarters of a picture by their mean grey value; embeds by the largest of each."""

    def __init__(self, identity: Any) -> None:
        self.identity = identity

    def patches(self, images: Sequence[np.ndarray]) -> PatchFeatures:
        found = []
        for image in images:
            grey = [[half.mean() for half in np.hsplit(rows, 2)] for rows in np.vsplit(image, 2)]
            found.append(np.stack([np.array(grey), 255 - np.array(grey)], axis=-1))
        boxes = np.array([(0, 0, *image.shape) for image in images], dtype=float)
        features = np.stack(found).astype(np.float32)
        return PatchFeatures(features=features, boxes=boxes, mean_pooled=False)

    def embed_batch(self, images: Sequence[np.ndarray]) -> np.ndarray:
        rows = self.patches(images).features.max(axis=(1, 2))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# heat maps


@pytest.mark.parametrize("make", [lambda: load_embedder("efficientnet-lite0"), swin])
def test_contributions_add_up_to_the_cosine(make: Callable[[], Any], query: Volume) -> None:
    embedder = make()
    a, b = query.voxels[:, :, 2], np.ascontiguousarray(query.voxels[:60, ::-1, 5])
    unit = embedder.embed_batch([a, b]).astype(np.float64)
    maps = heat_maps(embedder, a, b)
    assert maps.kind == "contribution"
    for heat in (maps.a, maps.b):
        assert heat.grid.mean() == pytest.approx(unit[0] @ unit[1], abs=1e-5)
        assert heat.grid.std() > 1e-3  # parts differ
    assert maps.cosine == pytest.approx(unit[0] @ unit[1], abs=1e-5)
    assert maps.a.pixels.shape == a.shape
    assert maps.b.pixels.shape == b.shape


def test_matches_are_of_the_most_similar_part(embedder: Any) -> None:
    mosaic = Mosaic(embedder.identity)
    a, b = np.zeros((8, 8), np.uint8), np.zeros((6, 4), np.uint8)
    a[:4, :4], b[3:, 2:] = 200, 200
    maps = heat_maps(mosaic, a, b)
    assert maps.kind == "match"
    np.testing.assert_allclose(maps.a.grid, 1, atol=1e-6)  # everything of each is in the other
    b[3:, 2:] = 0
    maps = heat_maps(mosaic, a, b)
    angle = np.arctan2(200, 55)  # (200, 55) against (0, 255)
    np.testing.assert_allclose(maps.a.grid, [[np.cos(angle), 1], [1, 1]], atol=1e-6)
    np.testing.assert_allclose(maps.b.grid, 1, atol=1e-6)
    both = mosaic.embed_batch([a, b])
    assert maps.cosine == pytest.approx(float(both[0] @ both[1]), abs=1e-6)
    with pytest.raises(UsageError, match="does not take the mean"):
        heat_maps(mosaic, a, b, kind="contribution")
    with pytest.raises(UsageError, match="expected auto, contribution or match"):
        heat_maps(mosaic, a, b, kind="all")  # type: ignore[arg-type]


@given(npst.arrays(np.float64, (2, 3, 4, 5), elements=st.floats(0.01, 9)))
def test_formulas(parts: np.ndarray) -> None:
    a, b, cosine = contributions(*parts)
    mean = parts.mean(axis=(1, 2))
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    assert cosine == pytest.approx(unit[0] @ unit[1])
    assert a.mean() == pytest.approx(cosine)
    assert b.mean() == pytest.approx(cosine)
    a, b = best_matches(*parts)
    assert a.shape == b.shape == (3, 4)
    assert a.max() == pytest.approx(b.max())  # the best pair is in both
    assert min(a.min(), b.min()) >= 0
    assert max(a.max(), b.max()) <= 1
    with pytest.raises(InputError, match="zero on average"):
        contributions(parts[0] * 0, parts[1])
    assert not best_matches(parts[0] * 0, parts[1])[0].any()


def test_maps_lie_on_the_picture() -> None:
    grid = np.array([[0.0, 2.0], [4.0, 6.0]])
    pixels = spread(grid, (2, 0, 10, 8), (12, 8))
    assert pixels.dtype == np.float32
    assert np.isnan(pixels[:2]).all()
    assert np.isnan(pixels[10:]).all()
    inside = pixels[2:10]
    # Centres of the parts are at 2 and 6 pixels of 8, so between two pixels each.
    assert inside[0, 0] == 0
    assert inside[7, 7] == 6
    assert inside[2, 2] == pytest.approx(2 / 8 + 4 / 8)  # an eighth of the way to both
    assert inside[1, 1] == 0
    np.testing.assert_allclose(np.diff(inside[:, 4])[2:5], 1, atol=1e-6)
    np.testing.assert_allclose(inside.mean(), grid.mean(), atol=1e-6)
    padded = spread(grid, (0, 0, 24, 16), (12, 8))  # the picture is the top left part
    np.testing.assert_allclose(padded[0, 0], 0)
    assert padded[-1, -1] == pytest.approx(spread(grid, (0, 0, 24, 16), (24, 16))[11, 7])
    assert np.isfinite(padded).all()


def test_what_has_no_parts_says_what_has(make_embedder: Callable[..., Any]) -> None:
    picture = np.zeros((4, 4), np.uint8)
    with pytest.raises(UnavailableError, match=r"toy gives no features.*efficientnet-lite0"):
        heat_maps(make_embedder(), picture, picture)


# of an index


def test_matrix_is_the_similarity_of_all_slices(index: Index, query: Volume) -> None:
    matrix = explain.similarity_matrix(index, query, "two")
    embedded = index.query_embeddings(query)
    assert matrix.values.shape == (6, 8)
    assert matrix.query_slices.tolist() == list(range(6))
    assert matrix.slices.tolist() == list(range(8))
    assert matrix.slices_mm.tolist() == [4.0 * i for i in range(8)]
    assert matrix.query_mm.tolist() == [4.0 * i for i in range(6)]
    for place in (0, 3):
        stored = index.store.embeddings[matrix.rows[place]]
        np.testing.assert_allclose(matrix.values[:, place], embedded.embeddings @ stored, atol=2e-6)
    hits = {
        h.slice_index: h for h in index.search(embedded.only(4), k=30).hits if h.volume_id == "two"
    }
    assert {i: h.score for i, h in hits.items()} == dict(enumerate(matrix.values[4].tolist()))
    assert matrix.matches[4].slice_index == int(matrix.values[4].argmax())
    rows = list(csv.reader(matrix.csv().splitlines()))
    assert rows[0] == ["query slice", *map(str, range(8))]
    assert [float(v) for v in rows[5][1:]] == matrix.values[4].tolist()
    # Embedded slices in another order are put in order.
    mixed = from_arrays(embedded.embeddings[[3, 1]], [3, 1], identity=embedded.identity)
    some = explain.similarity_matrix(index, mixed, "two")
    np.testing.assert_array_equal(some.values, matrix.values[[1, 3]])
    assert some.query_slices.tolist() == [1, 3]
    with pytest.raises(UsageError, match="did you mean two"):
        explain.similarity_matrix(index, query, "too")


def test_pair_of_an_index(index: Index, query: Volume) -> None:
    embedded = explain.embedded_query(index, query)
    matrix = explain.similarity_matrix(index, embedded, "one")
    row = int(matrix.rows[matrix.best[2]])
    picture = explain.picture_of(index, embedded, 2)
    maps = explain.explain_pair(index, picture, row)
    assert maps.cosine == pytest.approx(matrix.values[2].max(), abs=1e-5)
    with pytest.raises(UsageError, match="without pictures"):
        explain.picture_of(index, index.query_embeddings(query), 2)


def test_a_case_of_the_index_brings_its_pictures(index: Index) -> None:
    case = explain.embedded_query(index, "case:two")
    stored = index.store.image(index.store.row("two", 6))
    np.testing.assert_array_equal(explain.picture_of(index, case, 6), stored)
    matrix = explain.similarity_matrix(index, case, "two")
    np.testing.assert_allclose(np.diag(matrix.values), 1)


def test_a_crop_is_undone(tmp_path: Path, embedder: Any, query: Volume) -> None:
    index = open_index(make_index(tmp_path / "index", embedder, "body"), embedder=embedder)
    embedded = explain.embedded_query(index, query)
    picture = explain.picture_of(index, embedded, 5)
    part = embedded_part(picture, "body")
    assert part.size < 0.8 * picture.size
    maps = explain.explain_pair(index, picture, index.store.row("two", 7))
    seen = np.isfinite(maps.a.pixels)
    assert maps.a.pixels.shape == picture.shape
    assert seen.any(axis=1).sum() <= part.shape[0]
    assert seen.any(axis=0).sum() <= part.shape[1]
    assert seen[40, 40]
    expected = heat_maps(
        embedder, part, embedded_part(index.store.image(index.store.row("two", 7)), "body")
    )
    assert maps.cosine == pytest.approx(expected.cosine)
    np.testing.assert_array_equal(
        maps.a.pixels[seen], expected.a.pixels[np.isfinite(expected.a.pixels)]
    )
    matrix = explain.similarity_matrix(index, embedded, "two")
    assert maps.cosine == pytest.approx(matrix.values[5, 7], abs=1e-5)


# pictures


@pytest.mark.parametrize("shape", [(8, 12), (300, 240), (1, 1), (1, 300), (700, 1500)])
def test_matrix_pictures(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random(shape)
    best = values.argmax(axis=1)
    picture = figures.matrix_figure(
        values, range(shape[0]), range(shape[1]), best=best, down="query slice", across="slice of x"
    )
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert 200 <= picture.shape[0] <= 1500
    assert 300 <= picture.shape[1] <= 1700
    assert (picture == figures._MARK).all(axis=2).any()
    assert (picture == figures._INK).all(axis=2).any()


def test_colours_are_viridis() -> None:
    # matplotlib 3.10, cm.viridis([0, 128, 255], bytes=True)
    found = figures.colours(np.array([-5.0, 0.5, 9.0]), 0.0, 1.0).astype(int)
    np.testing.assert_allclose(found, [(68, 1, 84), (33, 145, 140), (253, 231, 37)], atol=2)
    brightness = figures.colours(np.linspace(0, 1, 99), 0, 1) @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(brightness) > 0).all()
    assert (figures.colours(np.full(3, 7.0), 7, 7) == figures.colours(np.array(0.5), 0, 1)).all()


def test_overlay_keeps_what_is_not_seen_grey() -> None:
    picture = np.full((4, 6), 100, np.uint8)
    heat = np.full((4, 6), np.nan, np.float32)
    heat[1:3, 1:5] = np.linspace(0, 1, 4)
    shown = explain.overlay(picture, heat)
    assert shown.shape == (4, 6, 3)
    assert (shown[0] == 40).all()
    assert (shown[1, 1] != shown[1, 4]).any()
    assert explain.limits(heat, heat + 2) == (0.0, 3.0)
    other = explain.overlay(picture, heat, explain.limits(heat, heat + 2))
    assert (other[1, 1] == shown[1, 1]).all()
    assert (other[1, 4] != shown[1, 4]).any()
    assert (explain.overlay(picture, heat * np.nan) == 40).all()


# files


def test_files(tmp_path: Path, index: Index, query: Volume) -> None:
    found = write_explanation(index, query, tmp_path / "out", volume_id="one", slice_index=3)
    assert [path.name for path in found.files] == ["matrix.png", "matrix.csv", "pair.png"]
    assert found.pair.query_slice == 3
    for name in ("matrix.png", "pair.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert image.mode == "RGB"
    with pytest.raises(UsageError, match=r"matrix\.png, matrix\.csv, pair\.png already"):
        write_explanation(index, query, tmp_path / "out")
    again = write_explanation(index, "case:one", tmp_path / "out", force=True)
    assert again.matrix.volume_id == "two"  # its own patient is left out
    assert again.to_json()["pair"]["score"] == again.matrix.values.max()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("matrix.csv", "matrix.png", "pair.png"),
    ]
    with pytest.raises(UsageError, match="slice 77"):
        write_explanation(index, query, tmp_path / "other", slice_index=77)
    nobody = Filters(patient="patient of one", exclude_patient="patient of one")
    with pytest.raises(UsageError, match="no volume"):
        write_explanation(index, query, tmp_path / "other", filters=nobody)


def test_without_heat_maps_the_matrix_is_written(
    tmp_path: Path, make_embedder: Callable[..., Any], query: Volume
) -> None:
    toy = make_embedder()
    index = open_index(make_index(tmp_path / "index", toy), embedder=toy)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pair.png").write_bytes(b"of an earlier run")
    found = write_explanation(index, query, tmp_path / "out", force=True)
    assert [path.name for path in found.files] == ["matrix.png", "matrix.csv"]
    assert isinstance(found.problem, UnavailableError)
    assert found.to_json()["pair"]["kind"] is None
    assert not (tmp_path / "out" / "pair.png").exists()


def test_command(
    tmp_path: Path, folder: Path, query: Volume, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = tmp_path / "query.nii.gz", tmp_path / "out"
    write_volume(query, image)
    arguments = ["explain", str(folder), str(image), "--out", str(out), "--quiet"]
    assert main([*arguments, "--slice", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [
        *("query", "volume_id", "query_slices", "slices", "matches", "orientation"),
        *("pair", "files"),
    ]
    assert [match["query_slice"] for match in found["matches"]] == list(range(6))
    assert found["pair"]["query_slice"] == 4
    assert found["pair"]["kind"] == "contribution"
    assert [Path(path).name for path in found["files"]] == ["matrix.png", "matrix.csv", "pair.png"]
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force", "--volume", "single"]) == 0
    assert capsys.readouterr().out.splitlines() == found["files"]
    assert main([*arguments, "--force", "--volume", "singel"]) == 2
    assert "did you mean single" in capsys.readouterr().err
