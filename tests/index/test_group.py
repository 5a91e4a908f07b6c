"""Indexes opened together: the same as one index of all their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_fakes import DIM, POLICY, FakeEmbedder, FakeVolumeEmbedder, make_case

from medretrieval.errors import EmbedderMismatchError, IndexFormatError, UsageError
from medretrieval.index import Case, IndexGroup, build, merge, open_group, open_store, pseudonym
from medretrieval.index.group import StackedRows
from medretrieval.index.manifest import manifest_from_json
from medretrieval.retrieval.engine import Index, open_index
from medretrieval.retrieval.modes import MODES
from medretrieval.retrieval.selection import Selection

# What a mode cannot do without.
OPTIONS = {
    "sampled": {"select": Selection(sample="step:2")},
    "region": {"select": Selection(slices=(1, 3))},
    "localized": {"select": Selection(slices=(1, 3), structure="RV")},
}


def run(cases: list[Case], out: Path, **options: Any) -> Path:
    options = {"embedder": FakeEmbedder(), "slices": POLICY, "name": "test", **options}
    return build(cases, out, **options)


def shards(folder: Path, shapes: list[list[tuple[int, bool]]], **options: Any) -> list[Path]:
    """An index for each list of (depth, annotated); two cases in a row share their voxels."""
    paths = []
    number = 0
    for place, cases in enumerate(shapes):
        made = []
        for depth, annotated in cases:
            # Unnamed values differ, so that the shards disagree about what a value means.
            values = (1, 2, 70_000 + number % 3)
            case = make_case(number, depth=depth, annotated=annotated, values=values)
            twin = make_case(number // 2, depth=depth, annotated=annotated, values=values)
            made.append(Case(**{**vars(case), "load": twin.load}))
            number += 1
        paths.append(run(made, folder / f"shard{place}", **options))
    return paths


def assert_same(group: IndexGroup, paths: list[Path], folder: Path, *, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with open_store(merge(paths, folder / "merged")) as one:
        assert len(group) == len(one)
        assert group.volume_ids == one.volume_ids
        assert group.vocabulary == one.vocabulary
        for name in ("volume", "slice_index", "position_mm", "spacing", "annotated"):
            ours, theirs = getattr(group, name), getattr(one, name)
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype
        for name in ("patient", "modality", "region"):
            assert list(getattr(group, name).text()) == list(getattr(one, name).text())
        assert list(group.labels) == list(one.labels)
        ours, theirs = group.manifest.to_json(), one.manifest.to_json()
        for name in ("counts", "vocabulary", "label_counts", "modalities", "regions", "name"):
            assert ours[name] == theirs[name], name
        for row in range(len(one)):
            np.testing.assert_array_equal(group.image(row), one.image(row))
            assert group.has_mask(row) == one.has_mask(row)
            mask = one.mask(row)
            if mask is None:
                assert group.mask(row) is None
                continue
            np.testing.assert_array_equal(group.mask(row), mask)
            a, b = group.support(row, 0.5), one.support(row, 0.5)
            np.testing.assert_array_equal(a.mask, b.mask)
            assert a.mask.dtype == b.mask.dtype
            assert (a.key, a.names, a.score) == (b.key, b.names, b.score)
            assert group.row(a.key.partition(":")[0], int(one.slice_index[row])) == row
        # Rows of the index among the queries, so that scores are equal.
        queries = np.concatenate([rng.standard_normal((3, DIM)), one.embeddings[::2]])
        for rows in (None, rng.random(len(one)) < 0.4, rng.permutation(len(one))[:5]):
            for a, b in zip(
                group.neighbours(queries, k, rows), one.neighbours(queries, k, rows), strict=True
            ):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shapes=st.lists(
        st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=3),
        min_size=1,
        max_size=4,
    ),
    float16=st.booleans(),
    k=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_a_group_is_the_merged_index(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[list[tuple[int, bool]]],
    float16: bool,
    k: int,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("x")
    paths = shards(folder, shapes, float16=float16)
    with open_group(paths) as group:
        assert_same(group, paths, folder, k=k, seed=seed)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    """Three indexes, and all their rows in one."""
    folder = tmp_path_factory.mktemp("three")
    shapes = [[(5, True), (4, True)], [(4, True), (3, False), (2, True)], [(5, True)]]
    paths = shards(folder, shapes)
    return paths, merge(paths, folder / "merged")


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 999), k=st.integers(1, 8), near=st.booleans())
@pytest.mark.parametrize("mode", sorted(MODES))
def test_every_mode_finds_the_same(
    three: tuple[list[Path], Path], mode: str, seed: int, k: int, near: bool
) -> None:
    paths, merged = three
    rng = np.random.default_rng(seed)
    with open_group(paths) as group, open_store(merged) as one:
        vectors = rng.standard_normal((5, DIM))
        if near:
            vectors = group.embeddings[rng.integers(0, len(group), 5)]
        query = (vectors, np.arange(5), np.arange(5) * 4.0)
        found = [
            Index(store).search(query, mode=mode, k=k, **OPTIONS.get(mode, {})).to_json()
            for store in (group, one)
        ]
    assert found[0] == found[1]
    assert found[0]["hits"]


def test_supports_and_localization_are_the_same(three: tuple[list[Path], Path]) -> None:
    paths, merged = three
    with open_group(paths) as group, open_store(merged) as one:
        query = one.embeddings[[3, 9, 14]]
        ours, theirs = Index(group), Index(one)
        for a, b in zip(
            ours.supports_each(query, 4, labels=["RV"]),
            theirs.supports_each(query, 4, labels=["RV"]),
            strict=True,
        ):
            np.testing.assert_array_equal(a[0], b[0])
            np.testing.assert_array_equal(a[1], b[1])
        name = one.volume_ids[4]
        assert ours.localize(query, name) == theirs.localize(query, name)


def test_patients_of_indexes_with_different_names(tmp_path: Path) -> None:
    a = run([make_case(0)], tmp_path / "a", name="first")
    b = run([make_case(1)], tmp_path / "b", name="second")
    patient = "Mueller^Anna-0"
    with open_group([a, b]) as group:
        assert group.pseudonyms(patient) == (
            pseudonym(patient, "first"),
            pseudonym(patient, "second"),
        )
        assert set(group.pseudonyms(patient)) == set(group.patient.names)
        assert group.manifest.name == "first; second"
        assert group.manifest.counts.patients == 2
        query = (np.asarray(group.embeddings[:2]), np.arange(2), np.arange(2.0))
        assert Index(group).search(query).hits
    with open_group([a]) as group:
        assert group.pseudonyms(patient) == (pseudonym(patient, "first"),)


def test_info_and_manifest_of_a_group(three: tuple[list[Path], Path]) -> None:
    paths, merged = three
    with open_group(paths) as group, open_store(merged) as one:
        info, whole = group.info(), one.info()
        assert json.loads(json.dumps(info)) == info
        assert info["path"] == [str(path) for path in paths]
        assert info["counts"] == whole["counts"]
        assert info["bytes"] == sum(store.info()["bytes"] for store in group.stores)
        assert [i["counts"]["volumes"] for i in info["indexes"]] == [2, 3, 1]
        assert repr(group).count("IndexStore") == 3
        data = group.manifest.to_json()
        with pytest.raises(IndexFormatError, match=r"README\.md"):
            manifest_from_json(data)  # it is of no folder


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"embedder": FakeVolumeEmbedder()}, EmbedderMismatchError, "different embedders"),
        ({"float16": True}, UsageError, "precision"),
    ],
)
def test_indexes_that_do_not_go_together_are_refused(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    a = run([make_case(0)], tmp_path / "a")
    b = run([make_case(1)], tmp_path / "b", **options)
    with pytest.raises(error, match=message):
        open_group([a, b])
    with pytest.raises(UsageError, match="1 volumes of"):
        open_group([a, a])
    with pytest.raises(UsageError, match="no index to open"):
        open_group([])


def test_rows_and_filters_that_do_not_exist(three: tuple[list[Path], Path]) -> None:
    with open_group(three[0]) as group:
        query = np.ones((1, DIM))
        for row in (-1, len(group)):
            with pytest.raises(UsageError, match="does not exist"):
                group.image(row)
        with pytest.raises(UsageError, match="no slice 99"):
            group.row("volume-000", 99)
        with pytest.raises(UsageError, match="shape"):
            group.neighbours(query, 1, np.ones(3, dtype=bool))
        with pytest.raises(UsageError, match="outside"):
            group.neighbours(query, 1, np.array([len(group)]))
        scores, ids = group.neighbours(query, 2, np.zeros(len(group), dtype=bool))
        assert ids.tolist() == [[-1, -1]]
        assert np.isneginf(scores).all()


def test_opened_by_a_list_of_paths_or_their_names(three: tuple[list[Path], Path]) -> None:
    paths, _ = three
    for source in (paths, ",".join(map(str, paths)), ", ".join(map(str, paths))):
        index = open_index(source)
        assert isinstance(index.store, IndexGroup)
        assert index.store.paths == tuple(paths)
    with pytest.raises(IndexFormatError, match="does not exist"):
        open_index(f"{paths[0]},/nowhere")


def test_a_folder_with_a_comma_in_its_name_is_one_index(tmp_path: Path) -> None:
    out = run([make_case(0)], tmp_path / "a,b")
    assert open_index(str(out)).store.path == out  # type: ignore[attr-defined]


@st.composite
def stacked(draw: st.DrawFn) -> tuple[StackedRows, np.ndarray[Any, Any]]:
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    parts = [rng.standard_normal((n, 3)).astype(np.float32) for n in lengths]
    return StackedRows(parts), np.concatenate(parts)


@settings(deadline=None)
@given(pair=stacked(), data=st.data())
def test_stacked_rows_act_like_an_array(pair: Any, data: st.DataObject) -> None:
    rows, array = pair
    assert (len(rows), rows.shape, rows.dtype) == (len(array), array.shape, array.dtype)
    assert (rows.nbytes, rows.ndim) == (array.nbytes, 2)
    np.testing.assert_array_equal(np.asarray(rows), array)
    bound = st.one_of(st.none(), st.integers(-25, 25))
    chosen = slice(data.draw(bound), data.draw(bound), data.draw(st.sampled_from([None, 1, 2, -1])))
    np.testing.assert_array_equal(rows[chosen], array[chosen])
    mask = np.array([data.draw(st.booleans()) for _ in array], dtype=bool)
    np.testing.assert_array_equal(rows[mask], array[mask])
    np.testing.assert_array_equal(rows[[]], array[[]])
    if len(array):
        ids = st.integers(-len(array), len(array) - 1)
        index = np.array(data.draw(st.lists(ids, max_size=8)), dtype=int)
        np.testing.assert_array_equal(rows[index], array[index])
        pairs = np.array([index, index[::-1]])
        np.testing.assert_array_equal(rows[pairs], array[pairs])
        row = data.draw(ids)
        np.testing.assert_array_equal(rows[row], array[row])
    for wrong in (len(array), -len(array) - 1, [0.5], np.ones(len(array) + 1, dtype=bool)):
        with pytest.raises(IndexError):
            rows[wrong]


def test_a_case_of_indexes_with_different_names_warns_of_its_patient(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cases = [make_case(number) for number in range(2)]
    same = [run([case], tmp_path / f"same{i}", name="lab") for i, case in enumerate(cases)]
    other = [run([case], tmp_path / f"other{i}", name=f"lab{i}") for i, case in enumerate(cases)]
    for paths, warned in ((same, False), (other, True)):
        index = open_index(paths, embedder=FakeEmbedder())
        index.search(f"case:{index.store.volume_ids[0]}")
        assert ("different pseudonyms" in caplog.text) == warned
