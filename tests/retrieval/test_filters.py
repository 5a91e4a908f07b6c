"""What may be found."""

from __future__ import annotations

from typing import Any

import pytest

from medretrieval.errors import UsageError
from medretrieval.retrieval.engine import Index
from medretrieval.retrieval.filters import Filters
from medretrieval.retrieval.modes import MODES as ALL_MODES

CHEST = [[1.0, 0.1, 0.0, 0.0], [1.0, 0.0, 0.1, 0.0]]
ABDOMEN = [[0.0, 1.0, 0.1, 0.0], [0.0, 1.0, 0.0, 0.2], [0.0, 1.0, 0.3, 0.0]]
BRAIN = [[0.0, 0.0, 1.0, 0.1], [0.1, 0.0, 1.0, 0.0]]
MODES = [name for name, mode in ALL_MODES.items() if not mode.needs]
QUERY = ([*CHEST, *BRAIN], [0, 1, 2, 3], [0.0, 5.0, 10.0, 15.0])


@pytest.fixture
def store(make_store):
    return make_store(
        {"chest-1": CHEST, "abdomen-1": ABDOMEN, "brain-1": BRAIN, "nowhere": [[0.0, 0, 0, 1]]},
        modality={"brain-1": "MR"},
        region={"abdomen-1": "abdomen", "brain-1": "head", "nowhere": "Head"},
        patient={"chest-1": "ann", "abdomen-1": "ann", "brain-1": "bob", "nowhere": "cy"},
        labels={("abdomen-1", 1): ("liver", "spleen"), ("chest-1", 0): ("lung",)},
        attributes={
            "scanner": {"chest-1": "One", "abdomen-1": "Two", "brain-1": "two"},
            "sex": {"chest-1": "F", "brain-1": "M"},
        },
        unannotated=["nowhere"],
    )


def ids(result: Any) -> list[str]:
    return [hit.volume_id for hit in result.hits]


def search(store: Any, **filters: Any) -> set[str]:
    everything = Index(store).search(QUERY, mode="slice", k=50, filters=Filters(**filters))
    return set(ids(everything))


@pytest.mark.parametrize("mode", MODES)
def test_filters_leave_only_what_they_name(store, mode: str) -> None:
    index = Index(store)

    def found(**filters: Any) -> set[str]:
        return set(ids(index.search(QUERY, mode=mode, k=50, filters=Filters(**filters))))

    assert found(modality="MR") == {"brain-1"}
    assert found(modality="mr") == {"brain-1"}
    assert found(region="abdomen") == {"abdomen-1"}
    assert found(labels=["lung"]) == {"chest-1"}
    assert found(labels=["liver", "lung"]) <= {"abdomen-1", "chest-1"}
    assert found(modality="CT", region="chest") == {"chest-1"}
    assert "chest-1" in found()


def test_a_region_in_either_case_means_both_unless_it_is_there_exactly(store) -> None:
    assert search(store, region="HEAD") == {"brain-1", "nowhere"}
    assert search(store, region="Head") == {"nowhere"}


def test_the_labels_filter_finds_only_slices_that_show_one(store) -> None:
    hits = Index(store).search(QUERY, mode="slice", k=50, filters=Filters(labels=["spleen"])).hits
    assert {(h.volume_id, h.slice_index) for h in hits} == {("abdomen-1", 1)}
    (hit,) = Index(store).search(QUERY, mode="rerank", filters=Filters(labels="spleen")).hits
    assert {m.slice_index for m in hit.matches} == {1}


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"modality": "PET"}, "the modality 'PET'; it has CT, MR"),
        ({"region": "knee"}, "the region 'knee'; it has Head, abdomen, chest, head"),
        ({"labels": ["kidney"]}, "the label 'kidney'; it has liver, lung, spleen"),
        ({"labels": []}, "names none"),
    ],
)
def test_an_unknown_filter_value_lists_the_known_ones(store, filters, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Index(store).search(QUERY, filters=Filters(**filters))
    with pytest.raises(UsageError, match=message):
        Index(store).supports(CHEST[0], 3, filters=Filters(**filters))


def test_an_index_without_labels_says_so(make_store) -> None:
    with pytest.raises(UsageError, match="the label 'liver'; none has any"):
        Index(make_store({"a": CHEST})).search(QUERY, filters=Filters(labels=["liver"]))


@pytest.mark.parametrize("mode", MODES)
def test_filters_that_leave_nothing_give_no_hits(store, mode: str) -> None:
    index = Index(store)
    result = index.search(QUERY, mode=mode, filters=Filters(modality="MR", region="chest"))
    assert result.to_json() == {
        "query": "query",
        "mode": mode,
        "orientation": "as stored",
        "hits": [],
    }
    nothing = Filters(modality="MR", exclude_patient="bob")
    assert index.search(QUERY, mode=mode, filters=nothing).hits == ()
    rows, scores = index.supports(CHEST[0], 3, filters=Filters(modality="MR", region="chest"))
    assert rows.tolist() == scores.tolist() == []


@pytest.mark.parametrize("mode", MODES)
def test_a_patient_can_be_left_out_by_given_or_stored_id(
    store, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    index = Index(store)
    for patient in ("ann", "hash-of-ann"):
        found = ids(index.search(QUERY, mode=mode, k=50, filters=Filters(exclude_patient=patient)))
        assert "brain-1" in found
        assert not {"chest-1", "abdomen-1"} & set(found)
    everyone = index.search(QUERY, mode=mode, k=50)
    assert not caplog.records
    stranger = Filters(exclude_patient="nobody")
    assert index.search(QUERY, mode=mode, k=50, filters=stranger) == everyone
    assert "nothing is left out" in caplog.text
    assert "nobody" not in caplog.text


def test_supports_leave_out_a_patient(store) -> None:
    rows, _ = Index(store).supports(CHEST[0], 50, filters=Filters(exclude_patient="ann"))
    assert {store.volume_ids[v] for v in store.volume[rows]} == {"brain-1"}


def test_a_patient_can_be_chosen_by_given_or_stored_id(store) -> None:
    assert search(store, patient="ann") == search(store, patient="hash-of-ann")
    assert search(store, patient="ann") == {"chest-1", "abdomen-1"}
    assert search(store, patient="ann", region="chest") == {"chest-1"}
    assert search(store, patient="ann", exclude_patient="ann") == set()
    with pytest.raises(UsageError, match=r"of the patient 'dan'; expected an id of the table"):
        search(store, patient="dan")


def test_any_stored_column_can_be_asked_for(store) -> None:
    assert search(store, where={"scanner": "One"}) == {"chest-1"}
    assert search(store, where={"scanner": "Two"}) == {"abdomen-1"}
    assert search(store, where={"scanner": "TWO"}) == {"abdomen-1", "brain-1"}
    assert search(store, where={"sex": "M", "scanner": "two"}) == {"brain-1"}
    assert search(store, where={"sex": "F", "scanner": "two"}) == set()
    assert search(store, where={"volume_id": "nowhere"}) == {"nowhere"}
    assert search(store, where={"modality": "mr"}, region="head") == {"brain-1"}
    assert search(store, where={"region": "abdomen"}, modality="CT") == {"abdomen-1"}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"scaner": "One"}, "unknown column 'scaner'; did you mean scanner"),
        ({"patient": "ann"}, "unknown column 'patient'"),
        ({"scanner": "Three"}, "the scanner 'Three'; it has One, Two, two"),
        ({"sex": "X"}, "the sex 'X'; it has F, M$"),
        ({"volume_id": "chest-2"}, "the volume_id 'chest-2'; it has abdomen-1, brain-1"),
    ],
)
def test_an_unknown_column_or_value_is_refused(store, where, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        search(store, where=where)


def test_of_many_values_some_are_listed(make_store) -> None:
    store = make_store({f"case-{i:03}": [[1.0, 0.0]] for i in range(50)})
    with pytest.raises(UsageError, match=r"it has case-000, .*, case-019 and 30 others"):
        Index(store).search([[1.0, 0.0]], filters=Filters(where={"volume_id": "x"}))


def test_supports_take_every_filter_and_structures_of_their_own(store) -> None:
    index = Index(store)

    def found(structures: list[str] | None = None, **filters: Any) -> set[tuple[str, int]]:
        rows, _ = index.supports(CHEST[0], 50, labels=structures, filters=Filters(**filters))
        return {(store.volume_ids[store.volume[r]], int(store.slice_index[r])) for r in rows}

    assert {name for name, _ in found(where={"sex": "M"})} == {"brain-1"}
    assert {name for name, _ in found(patient="ann")} == {"chest-1", "abdomen-1"}
    assert found(["liver"]) == {("abdomen-1", i) for i in range(3)}
    assert found(labels=["liver"]) == {("abdomen-1", 1)}
    assert found(["lung"], labels=["liver"]) == set()


def test_a_search_without_filters_hands_no_mask_to_the_index(store) -> None:
    masks = []
    neighbours = store.neighbours

    def seen(queries, k, rows=None):
        masks.append(rows)
        return neighbours(queries, k, rows)

    store.neighbours = seen
    Index(store).search(QUERY, mode="count")
    Index(store).search(QUERY, mode="count", filters=Filters(exclude_patient="nobody"))
    Index(store).search(QUERY, mode="count", filters=Filters(labels=["liver"]))
    assert masks[0] is None
    assert masks[1] is None
    assert masks[-1].tolist() == store.labels.showing(["liver"]).tolist()
