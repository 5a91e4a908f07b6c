"""Search in an index that was built, stored and opened, of both kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medretrieval.errors import EmbedderMismatchError, IndexFormatError
from medretrieval.index import Case, build
from medretrieval.retrieval.engine import Index, open_index
from medretrieval.retrieval.filters import Filters
from medretrieval.retrieval.modes import MODES as ALL_MODES
from medretrieval.types import Grid, LabelVolume, SlicePolicy, Volume

MODES = [name for name, mode in ALL_MODES.items() if mode.needs != "part"]
SIZES = {"case-a": 5, "case-b": 1, "case-c": 9, "case-d": 7}
POLICY = SlicePolicy(axis="axial", window="identity")


def make_volume(name: str, slices: int, seed: int) -> Volume:
    voxels = np.random.default_rng(seed).integers(0, 256, (6, 6, slices), dtype=np.uint8)
    grid = Grid(shape=(6, 6, slices), affine=np.diag([1.0, 1.0, 4.0, 1.0]))
    return Volume(voxels=voxels, grid=grid, name=name, modality="CT")


def make_case(number: int, name: str) -> Case:
    volume = make_volume(name, SIZES[name], number)
    mask = np.zeros(volume.grid.shape, dtype=np.uint8)
    mask[2:4, 2:4, 0] = 1 + number % 2

    def load() -> tuple[Volume, LabelVolume | None]:
        labels = LabelVolume(voxels=mask, grid=volume.grid, names={1: "liver", 2: "spleen"})
        return volume, None if name == "case-d" else labels

    return Case(
        volume_id=name,
        patient_id=f"patient-{name}",
        modality="CT",
        region="head" if name == "case-c" else "abdomen",
        label_names={1: "liver", 2: "spleen"},
        load=load,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, make_embedder) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("indexes")
    orders = {"flat": list(SIZES), "hnsw": list(SIZES), "backwards": list(SIZES)[::-1]}
    return {
        kind: build(
            [make_case(list(SIZES).index(name), name) for name in names],
            base / kind,
            embedder=make_embedder(),
            slices=POLICY,
            index_kind="hnsw" if kind == "hnsw" else "flat",
            name="toy",
        )
        for kind, names in orders.items()
    }


@pytest.fixture(scope="module")
def opened(folders, make_embedder) -> Callable[[str], Index]:
    indexes = {kind: open_index(path, embedder=make_embedder()) for kind, path in folders.items()}
    return indexes.__getitem__


@pytest.mark.parametrize("mode", MODES)
def test_hnsw_agrees_with_flat_on_a_small_index(opened, mode: str) -> None:
    query = make_volume("query", 8, 99)
    flat = opened("flat").search(query, mode=mode, k=4)
    assert flat.hits
    assert opened("hnsw").search(query, mode=mode, k=4) == flat


@pytest.mark.parametrize("mode", MODES)
def test_building_in_another_order_gives_the_same_results(opened, mode: str) -> None:
    query = make_volume("query", 8, 99)
    expected = opened("flat").search(query, mode=mode, k=4).to_json()
    assert opened("backwards").search(query, mode=mode, k=4).to_json() == expected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_case_of_the_index_finds_itself(opened, mode: str, kind: str) -> None:
    query = make_volume("query", SIZES["case-c"], list(SIZES).index("case-c"))
    hits = opened(kind).search(query, mode=mode, k=1).hits
    assert {h.volume_id for h in hits} == {"case-c"}
    assert all(m.query_slice == m.slice_index for h in hits for m in h.matches)
    assert all(m.score == 1.0 for h in hits for m in h.matches)
    assert hits[0].position_mm == 4.0 * hits[0].slice_index


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_filters_and_patients_of_a_stored_index(opened, mode: str, kind: str) -> None:
    index = opened(kind)
    query = make_volume("query", SIZES["case-c"], list(SIZES).index("case-c"))

    def found(**filters: Any) -> set[str]:
        result = index.search(query, mode=mode, k=99, filters=Filters(**filters))
        return {h.volume_id for h in result.hits}

    assert "case-c" in found()
    assert "case-c" not in found(exclude_patient="patient-case-c")
    assert found(region="head") == {"case-c"}
    assert found(region="head", exclude_patient="patient-case-c") == set()
    assert found(labels=["spleen"]) == {"case-b"}


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_supports_come_with_picture_and_mask(opened, kind: str) -> None:
    index = opened(kind)
    query = index.query_embeddings(make_volume("query", 3, 5))
    rows, scores = index.supports(query.embeddings[1], 100)
    assert {index.store.volume_ids[v] for v in index.store.volume[rows]} == set(SIZES) - {"case-d"}
    assert len(rows) == 15
    assert (np.diff(scores) <= 0).all()
    rows, scores = index.supports(query.embeddings[1], 100, labels=["liver"])
    assert len(rows) == SIZES["case-a"] + SIZES["case-c"]
    support = index.store.support(int(rows[0]), score=float(scores[0]))
    assert support.image.shape == support.mask.shape == (6, 6)
    assert support.score == scores[0]


def test_open_index_checks_the_embedder_and_the_folder(folders, make_embedder, tmp_path) -> None:
    with pytest.raises(EmbedderMismatchError, match="toy-2"):
        open_index(folders["flat"], embedder=make_embedder(name="toy-2", weights_sha256="2" * 64))
    with pytest.raises(IndexFormatError, match="does not exist"):
        open_index(tmp_path / "nothing")
    assert open_index(folders["flat"], verify="sizes").manifest.slices == POLICY
