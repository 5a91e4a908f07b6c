"""The report of an approximate index: its measures by hand, and where it is stored and shown."""

from __future__ import annotations

import doctest
from pathlib import Path

import numpy as np
import pytest
from index_fakes import POLICY, FakeEmbedder, contents, edit_manifest, make_case

from medretrieval.errors import IndexFormatError
from medretrieval.index import build, merge, open_store, recall, searching
from medretrieval.index.choice import choose
from medretrieval.index.faiss_files import build_faiss
from medretrieval.index.kinds import KINDS, resolve_parameters
from medretrieval.index.manifest import read_manifest
from medretrieval.index.recall import agreement, measure_recall, unseen_queries
from medretrieval.index.search_entry import EXACT_KINDS
from medretrieval.index.searcher import Searcher


def unit(array: np.ndarray) -> np.ndarray:
    return (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)


def volumes(n: int, each: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((n, 24)).repeat(each, axis=0)
    rows = unit(centres + 0.4 * rng.standard_normal((n * each, 24)))
    return rows, np.arange(n, dtype=np.int32).repeat(each)


def searcher(embeddings: np.ndarray, kind: str, **given: int) -> Searcher:
    rows, dim = embeddings.shape
    parameters = resolve_parameters(kind, given, rows=rows, dim=dim)
    index = build_faiss(embeddings, kind, parameters)
    return Searcher(embeddings=embeddings, kind=kind, parameters=parameters, index=index)


def test_a_good_index_has_a_good_report_and_always_the_same() -> None:
    embeddings, volume = volumes(40)
    steps: list[tuple[int, int]] = []
    found = searcher(embeddings, "hnsw")
    report = measure_recall(
        found, volume, progress=lambda done, total, _: steps.append((done, total))
    )
    assert report.recall_at_1 > 0.98
    assert report.recall_at_10 > 0.98
    assert report.first_volume == 1
    assert report.first_5_volumes is not None
    assert report.first_5_volumes > 0.95
    assert (report.queries, report.volumes) == (200, 10)
    assert steps[0] == (0, 11)
    assert steps[-1] == (11, 11)
    assert measure_recall(found, volume) == report


def test_a_bad_index_has_a_bad_report() -> None:
    embeddings, volume = volumes(40)
    settings = {"nbits": 8, "candidates": 1}
    report = measure_recall(searcher(embeddings, "lsh", **settings), volume)
    assert report.recall_at_10 < 0.7
    assert report.first_volume is not None


@pytest.mark.parametrize(("n", "each"), [(1, 1), (1, 9), (30, 1), (2, 1)])
def test_indexes_of_few_volumes_or_slices(n: int, each: int) -> None:
    embeddings, volume = volumes(n, each)
    report = measure_recall(searcher(embeddings, "hnsw"), volume)
    assert report.recall_at_1 == report.recall_at_10 == 1
    assert report.first_volume == (None if n == 1 else 1)
    assert report.volumes == (0 if n == 1 else min(n, 10))


def test_queries_are_no_rows_but_means_of_neighbours() -> None:
    embeddings, volume = volumes(10)
    queries = unseen_queries(embeddings, volume, 300, np.random.default_rng(1))
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-6)
    cosines = queries @ embeddings.T
    assert cosines.max() < 1 - 1e-4
    inside = (np.diff(volume) == 0).nonzero()[0]
    means = unit(embeddings[inside] + embeddings[inside + 1])
    np.testing.assert_allclose((queries @ means.T).max(axis=1), 1, atol=1e-6)
    alone = unseen_queries(embeddings, np.arange(200, dtype=np.int32), 50, np.random.default_rng(1))
    assert len(alone) == 50


def test_agreement_tolerates_ties() -> None:
    for found, truth, expected in (
        ([3, 2, 0], [3, 2, 0], (1.0, 1.0)),
        ([2, 3, 0], [3, 2, 0], (0.0, 1.0)),
        ([0, 3, 2], [0, 3, 2], (1.0, 1.0)),
        ([2, 0, 3], [2, 2, 1], (0.0, 0.5)),
        ([0, 5, 0], [3, 2, 0], (0.0, 0.5)),
        ([0, 0, 0], [3, 2, 0], (0.0, 0.0)),
        ([0, 0, 0], [0, 0, 0], (1.0, 1.0)),
    ):
        assert agreement(np.array(found), np.array(truth), 2) == expected
    assert doctest.testmod(recall).failed == 0


def test_exact_kinds_are_those_of_the_table() -> None:
    assert tuple(name for name, kind in KINDS.items() if kind.exact) == EXACT_KINDS


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_is_built_reported_and_opened(kind: str, tmp_path: Path) -> None:
    cases = [make_case(n, depth=4) for n in range(5)]
    out = tmp_path / "index"
    build(cases, out, embedder=FakeEmbedder(), slices=POLICY, name="kinds", index_kind=kind)
    card = (out / "README.md").read_text()
    with open_store(out) as store:
        info = store.info()
        assert info["exact"] == KINDS[kind].exact
        assert info["stored_faiss_index"] != KINDS[kind].exact
        assert read_manifest(out).index_reason is None
        if KINDS[kind].exact:
            assert "recall" not in info
            assert "there is no recall to report" in card
        else:
            assert store.manifest.recall is not None
            assert info["recall"]["recall@10"] == store.manifest.recall.recall_at_10 == 1
            assert "finds 100.0% of the most similar slices" in card
        flat = Searcher(embeddings=store.embeddings, kind="flat", parameters={})
        queries = np.asarray(store.embeddings[:3])
        for found, exact in zip(
            store.neighbours(queries, 30), flat.neighbours(queries, 30), strict=True
        ):
            np.testing.assert_array_equal(found, exact)


def test_auto_says_why_and_parts_are_merged_as_if_built_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part alone is small enough for exact search, all together are not."""

    def small_machine(rows: int, dim: int) -> tuple[str, str]:
        return ("hnsw", f"{rows} are many") if rows > 12 else choose(rows, dim)

    monkeypatch.setattr(searching, "choose", small_machine)
    cases = [make_case(n, depth=4) for n in range(6)]
    heard: list[str] = []
    parts = [tmp_path / "a", tmp_path / "b"]
    for number, part in enumerate(parts, start=1):
        build(
            *(cases, part),
            embedder=FakeEmbedder(),
            slices=POLICY,
            name="auto",
            index_kind="auto",
            part=(number, 2),
            progress=lambda done, total, message: heard.append(message),
        )
        manifest = read_manifest(part)
        assert (manifest.index_kind, manifest.recall) == ("flat", None)
        assert manifest.index_reason is not None
        assert manifest.index_reason.startswith("12 rows of 12 numbers: exact search")
        assert any("so every row is compared" in message for message in heard)
        assert "Chosen by size: 12 rows" in (part / "README.md").read_text()
    merge(parts, tmp_path / "merged")
    manifest = read_manifest(tmp_path / "merged")
    assert (manifest.index_kind, manifest.index_reason) == ("hnsw", "24 are many")
    build(
        *(cases, tmp_path / "whole"),
        embedder=FakeEmbedder(),
        slices=POLICY,
        name="auto",
        index_kind="auto",
    )
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("recall@1", 1.5),
        ("recall@10", -0.1),
        ("recall@10", True),
        ("recall@10", None),
        ("recall@10", "1"),
        ("first_volume", float("nan")),
        ("queries", -1),
        ("queries", 2.0),
        ("how", 3),
    ],
)
def test_a_damaged_report_is_refused(own_index: Path, field: str, value: object) -> None:
    edit_manifest(own_index, lambda data: data["recall"].update({field: value}))
    with pytest.raises(IndexFormatError, match=field.partition("@")[0]):
        open_store(own_index)


def test_an_index_without_a_report_opens(own_index: Path) -> None:
    """Older ones have none."""
    edit_manifest(own_index, lambda data: data.pop("recall"))
    with open_store(own_index) as store:
        assert store.manifest.recall is None
