"""Where a query is found, candidates of re-ranking, and cases of the index as queries."""

from __future__ import annotations

import math
from typing import Any

import pytest

from medretrieval.errors import UsageError
from medretrieval.retrieval.engine import Index
from medretrieval.retrieval.filters import Filters
from medretrieval.retrieval.modes import MODES
from medretrieval.retrieval.selection import Selection


def at(degrees: float) -> list[float]:
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def cosine(degrees: float) -> float:
    return round(math.cos(math.radians(degrees)), 6)


VOLUMES = {"v1": [at(0), at(10), at(20), at(60)], "v2": [at(31), at(90)]}
LABELS = {
    ("v1", 1): ("pancreas",),
    ("v1", 2): ("Pancreas", "liver"),
    ("v2", 0): ("liver",),
}
QUERY: Any = ([at(1), at(9), at(11), at(30)], [4, 5, 6, 7], [None] * 4)
PART = Selection(slices=(4, 7))


@pytest.fixture
def store(make_store) -> Any:
    return make_store(VOLUMES, labels=LABELS, patient={"v1": "ann", "v2": "bob"})


def found_on(hit: Any) -> list[tuple[int, int, float]]:
    return [(m.query_slice, m.slice_index, m.score) for m in hit.localization.slices]


def test_localized_names_the_slices_that_were_hit_as_often_as_they_were(store) -> None:
    """TS-CBIR, 2.4.3 and eq. 2: of three hits in v1 two are on a slice that shows the pancreas."""
    select = Selection(slices=(4, 7), structure="pancreas")
    first, second = Index(store).search(QUERY, mode="localized", select=select).hits
    assert (first.volume_id, first.score) == ("v1", 3.0)
    assert found_on(first) == [(4, 0, cosine(1)), (5, 1, cosine(1)), (6, 1, cosine(1))]
    assert first.localization.structure == "pancreas"
    assert first.localization.ratio == pytest.approx(2 / 3)
    assert first.localization.slices == first.matches
    assert (second.volume_id, found_on(second)) == ("v2", [(7, 0, cosine(1))])
    assert second.localization.ratio == 0.0


def test_a_structure_in_other_case_means_all_of_its_spellings(store) -> None:
    query: Any = ([at(10), at(20), at(0)], [0, 1, 2], [None] * 3)
    for name, ratio in (("pancreas", 1 / 3), ("Pancreas", 1 / 3), ("PANCREAS", 2 / 3)):
        select = Selection(slices=(0, 2), structure=name)
        (hit,) = Index(store).search(query, mode="localized", select=select).hits
        assert hit.localization.ratio == pytest.approx(ratio)


@pytest.mark.parametrize("mode", ["localized", "rerank"])
def test_without_a_label_of_that_name_there_is_no_ratio(store, mode: str) -> None:
    for structure in (None, "spleen"):
        select = Selection(slices=(4, 7), structure=structure)
        for hit in Index(store).search(QUERY, mode=mode, select=select).hits:
            assert hit.localization.structure == structure
            assert hit.localization.ratio is None
            assert hit.localization.slices
            assert "ratio" in hit.to_json()["localization"]


@pytest.mark.parametrize("mode", [m for m in MODES if not MODES[m].localizes])
def test_other_modes_do_not_localize(store, mode: str) -> None:
    hits = Index(store).search(QUERY, mode=mode, select=Selection(slices=(4, 7), sample="step:1"))
    assert hits.hits
    assert all(hit.localization is None for hit in hits.hits)
    assert "localization" not in hits.to_json()["hits"][0]


def test_rerank_localizes_by_the_most_similar_columns(store) -> None:
    """TS-CBIR, eq. 6 and 7, by hand: column maxima of v1 are 1, 1, 9 and 30 degrees away."""
    index = Index(store)
    select = Selection(structure="pancreas")
    (hit,) = index.search(QUERY, mode="rerank", k=1, top=3, select=select).hits
    assert hit.volume_id == "v1"
    assert found_on(hit) == [(4, 0, cosine(1)), (5, 1, cosine(1)), (6, 2, cosine(9))]
    assert hit.localization.ratio == pytest.approx(1 / 3)
    assert hit.localization.slices == index.localize(QUERY, "v1", top=3)
    (hit,) = index.search(QUERY, mode="rerank", k=1, select=select).hits
    assert len(hit.localization.slices) == 4  # L is 15, the volume has 4 slices
    assert found_on(hit)[3] == (7, 3, cosine(30))
    assert hit.localization.ratio == 0.25


def test_rerank_localizes_among_allowed_slices(store) -> None:
    filters = Filters(labels=["liver"])
    for hit in Index(store).search(QUERY, mode="rerank", filters=filters).hits:
        assert len(hit.localization.slices) == 1
        assert "liver" in hit.labels


def test_candidates_are_the_volumes_with_the_most_hits(make_store) -> None:
    """Without a limit `best` wins by its sum; it has fewer hits than `often`."""
    volumes = {
        "often": [[1.0, 0.0, 0.0]],
        "best": [[0.999, 0.04, 0.0], [0.0, 0.0, 1.0]],
        "also": [[0.0, 1.0, 0.0], [0.9, 0.4, 0.0]],
    }
    query: Any = [[1.0, 0.0, 0.0]] * 2 + [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    index = Index(make_store(volumes))

    def found(candidates: int | None) -> list[str]:
        hits = index.search(query, mode="rerank", k=9, candidates=candidates).hits
        return [h.volume_id for h in hits]

    counted = [h.volume_id for h in index.search(query, mode="count", k=9).hits]
    assert counted == ["often", "also", "best"]  # one hit each of 1.0: ties by volume id
    assert found(None) == ["best", "also", "often"]
    assert found(3) == found(99) == found(None)
    assert found(2) == ["also", "often"]
    assert found(1) == ["often"]


def test_a_case_of_the_index_as_a_query(store, make_embedder) -> None:
    embedder = make_embedder()
    index = Index(store)
    query = index.case_query("v1")
    assert query.slice_index.tolist() == [0, 1, 2, 3]
    assert query.embeddings.tolist() == store.embeddings[:4].tolist()
    assert (query.name, query.patient, query.through_mm) == ("v1", "hash-of-ann", 2.5)
    assert query.position_mm == (0.0, 2.5, 5.0, 7.5)
    assert query.labels == ((), ("pancreas",), ("Pancreas", "liver"), ())
    assert embedder.batches == []
    result = index.search("case:v1", mode="count")
    assert result == index.search(query, mode="count")
    assert result.query == "v1"
    with pytest.raises(UsageError, match=r"unknown volume 'v9'; did you mean v[12]"):
        index.search("case:v9")


def test_a_case_does_not_find_its_own_patient_unless_named(store, make_store) -> None:
    index = Index(make_store({**VOLUMES, "v3": [at(0)]}, patient={"v1": "ann", "v3": "ann"}))

    def found(**filters: Any) -> set[str]:
        return {h.volume_id for h in index.search("case:v1", k=9, filters=Filters(**filters)).hits}

    assert found() == {"v2"}
    assert found(exclude_patient="v2") == set()
    assert found(patient="ann") == {"v1", "v3"}
    assert found(patient="hash-of-ann") == {"v1", "v3"}
    assert found(patient="v2") == {"v2"}
    assert {h.volume_id for h in index.search(index.case_query("v3")).hits} == {"v2"}


def test_a_case_brings_its_labels_and_its_spacing(store) -> None:
    index = Index(store)

    def searched(mode: str, **choice: Any) -> list[int]:
        hits = index.search("case:v1", mode=mode, select=Selection(**choice)).hits
        return sorted(m.query_slice for h in hits for m in h.matches)

    assert searched("region", structure="PANCREAS") == [1, 2]
    assert searched("localized", structure="liver") == [2]
    assert searched("sampled") == [0, 3]
    (hit,) = index.search("case:v1", mode="localized", select=Selection(structure="liver")).hits
    assert (hit.volume_id, hit.slice_index, hit.localization.ratio) == ("v2", 0, 1.0)
    with pytest.raises(UsageError, match="v1 shows 'colon'; there is Pancreas, liver, pancreas"):
        searched("count", structure="colon")
    assert index.localize("case:v1", "v2", top=1)[0].slice_index == 0


def test_a_structure_that_the_index_does_not_know_is_said(
    store, caplog: pytest.LogCaptureFixture
) -> None:
    select = Selection(slices=(0, 1), structure="livre")
    (hit,) = (
        Index(store)
        .search(
            [at(0), at(10)],
            mode="localized",
            select=select,
            k=1,
            filters=Filters(where={"volume_id": "v1"}),
        )
        .hits
    )
    assert hit.localization.ratio is None
    assert "no slice of the index has the label 'livre'" in caplog.text
