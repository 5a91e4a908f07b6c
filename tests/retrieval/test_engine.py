from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medretrieval.errors import EmbedderMismatchError, InputError, UsageError
from medretrieval.retrieval.engine import Index
from medretrieval.retrieval.filters import Filters
from medretrieval.retrieval.modes import MODES as ALL_MODES
from medretrieval.retrieval.selection import Selection
from medretrieval.types import EmbedderIdentity, Grid, Match, Volume

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
        unannotated=["nowhere"],
    )


def volume(slices: int = 4, name: str = "case") -> Volume:
    """Axial slices, each with another grey corner in its 2 x 2 picture."""
    voxels = np.zeros((2, 2, slices), dtype=np.uint8)
    for i in range(slices):
        voxels[i % 2, i // 2 % 2, i] = 200
    grid = Grid(shape=(2, 2, slices), affine=np.diag([1.0, 1.0, 3.0, 1.0]))
    return Volume(voxels=voxels, grid=grid, name=name)


def ids(result: Any) -> list[str]:
    return [hit.volume_id for hit in result.hits]


def test_json_is_exactly_the_documented_shape(store) -> None:
    # By hand, from the vectors above.
    chest, brain = round(0.1 / math.sqrt(1.01 * 1.04), 6), round(0.02 / math.sqrt(1.01 * 1.04), 6)
    liver = Filters(labels=["liver"])
    result = Index(store).search(QUERY, mode="count", k=1, filters=liver, query_name="me.nii")
    assert json.dumps(result.to_json()) == json.dumps(
        {
            "query": "me.nii",
            "mode": "count",
            "orientation": "as stored",
            "hits": [
                {
                    "rank": 1,
                    "volume_id": "abdomen-1",
                    "score": 4.0,
                    "slice_index": 1,
                    "position_mm": 2.5,
                    "labels": ["liver", "spleen"],
                    "modality": "CT",
                    "region": "abdomen",
                    "near_duplicate": False,
                    "matches": [
                        {"query_slice": 0, "slice_index": 1, "score": chest},
                        {"query_slice": 2, "slice_index": 1, "score": brain},
                        {"query_slice": 1, "slice_index": 1, "score": 0.0},
                        {"query_slice": 3, "slice_index": 1, "score": 0.0},
                    ],
                }
            ],
        }
    )


@pytest.mark.parametrize("mode", MODES)
def test_results_hold_python_numbers(store, mode: str) -> None:
    for hit in Index(store).search(QUERY, mode=mode).hits:
        assert type(hit.score) is float
        assert type(hit.row_id) is type(hit.slice_index) is type(hit.rank) is int
        assert type(hit.position_mm) in (float, type(None))
        assert type(hit.modality) is type(hit.region) is str
        for match in hit.matches:
            assert type(match.score) is float
            assert type(match.query_slice) is type(match.slice_index) is int


def test_a_hit_shows_the_row_it_names(store) -> None:
    for hit in Index(store).search(QUERY, mode="rerank", k=9).hits:
        assert store.volume_ids[store.volume[hit.row_id]] == hit.volume_id
        assert store.slice_index[hit.row_id] == hit.slice_index
        assert store.labels[hit.row_id] == hit.labels


def test_an_unknown_position_is_null(store) -> None:
    (hit,) = Index(store).search(([[0, 0, 0, 1]], [0], [None]), k=1).hits
    assert hit.volume_id == "nowhere"
    assert hit.to_json()["position_mm"] is None


def test_an_unknown_mode_is_named_with_close_ones(store) -> None:
    with pytest.raises(UsageError, match="unknown mode 'rerank2'; did you mean rerank"):
        Index(store).search(QUERY, mode="rerank2")


@pytest.mark.parametrize("k", [0, -3, 2.5, True])
def test_k_is_a_number_of_at_least_one(store, k: Any) -> None:
    with pytest.raises(UsageError, match=rf"k is {k}; expected a whole number of at least 1"):
        Index(store).search(QUERY, k=k)
    with pytest.raises(UsageError, match="at least 1"):
        Index(store).supports(CHEST[0], k)


def test_supports_are_annotated_slices_best_first(store) -> None:
    rows, scores = Index(store).supports([0.0, 0.0, 0.2, 1.0], 3)
    assert rows.dtype == np.int64
    assert [store.volume_ids[v] for v in store.volume[rows]] == ["brain-1", "brain-1", "abdomen-1"]
    assert scores == pytest.approx(
        [0.3 / math.sqrt(1.04 * 1.01), 0.2 / math.sqrt(1.04 * 1.01), 0.2 / math.sqrt(1.04 * 1.04)],
        abs=1e-6,
    )
    assert store.support(int(rows[0]), score=float(scores[0])).score == scores[0]


def test_supports_for_a_label_keep_slices_of_its_volumes_that_do_not_show_it(store) -> None:
    rows, _ = Index(store).supports(CHEST[0], 50, labels=["liver"])
    assert {store.volume_ids[v] for v in store.volume[rows]} == {"abdomen-1"}
    assert sorted(store.slice_index[rows].tolist()) == [0, 1, 2]


def test_supports_of_many_slices_equal_those_of_each(store) -> None:
    index = Index(store)
    together = index.supports_each(QUERY[0], 3, labels=["lung", "liver"])
    assert len(together) == len(QUERY[0])
    for query, (rows, scores) in zip(QUERY[0], together, strict=True):
        own_rows, own_scores = index.supports(query, 3, labels=["lung", "liver"])
        assert rows.tolist() == own_rows.tolist()
        assert scores.tolist() == own_scores.tolist()


@pytest.mark.parametrize("bad", [[0.0] * 4, [math.nan, 0, 0, 1]])
def test_supports_refuse_an_embedding_without_direction(store, bad) -> None:
    with pytest.raises(InputError, match="zero or not finite"):
        Index(store).supports(bad, 3)


def test_embeddings_of_another_length_are_refused(store) -> None:
    with pytest.raises(EmbedderMismatchError, match=r"3 components, those of the index 4.*toy"):
        Index(store).search(([[1, 0, 0]], [0], [None]))
    with pytest.raises(EmbedderMismatchError, match="3 components"):
        Index(store).supports([1, 0, 0], 2)


def test_another_embedder_is_refused_with_both_side_by_side(store, make_embedder) -> None:
    other = make_embedder(name="dinov2-small-reg", weights_sha256="f" * 64)
    with pytest.raises(EmbedderMismatchError) as caught:
        Index(store, embedder=other)
    message = str(caught.value)
    assert "the index" in message
    assert "the embedder given" in message
    assert "dinov2-small-reg  (differs)" in message
    assert "ffffffffffff  (differs)" in message
    assert "Search with the embedder of the index (toy)" in message


def test_embeddings_made_by_another_embedder_are_refused(store, make_store, make_embedder) -> None:
    changed = {"preprocessing": {"size": 5, "mean": [0.5]}}
    other = make_store({"a": CHEST})
    other.manifest = type(other.manifest)(make_embedder(**changed).identity, other.manifest.slices)
    query = Index(other, embedder=make_embedder(**changed)).query_embeddings(volume())
    with pytest.raises(EmbedderMismatchError, match=r"preprocessing .*\(differs\)"):
        Index(store).search(query)


def test_an_identity_that_went_through_json_is_the_same(store, make_embedder) -> None:
    tuples = make_embedder(preprocessing={"mean": (0.5,), "size": 4})
    assert Index(store, embedder=tuples).embedder is tuples


def test_the_embedder_is_loaded_when_first_needed_and_checked(store, make_embedder) -> None:
    calls = []

    def load(wanted: EmbedderIdentity) -> Any:
        calls.append(wanted.name)
        return make_embedder() if len(calls) > 1 else make_embedder(pooling="class token")

    index = Index(store, load=load)
    index.search(QUERY)
    assert calls == []
    with pytest.raises(EmbedderMismatchError, match=r"loaded here[^$]*class token  \(differs\)"):
        index.search(volume())
    index.search(volume())
    index.search(volume())
    assert calls == ["toy", "toy"]


def test_the_same_weights_from_another_place_are_the_same_embedder(store, make_embedder) -> None:
    local = make_embedder(name="mine", weights="local file", revision="unknown")
    assert Index(store, embedder=local).search(volume()).hits


def test_a_volume_is_embedded_in_batches_with_the_policy_of_the_index(store, make_embedder) -> None:
    embedder, steps = make_embedder(), []
    index = Index(store, embedder=embedder)
    query = index.query_embeddings(
        volume(7), keep_images=True, progress=lambda *step: steps.append(step)
    )
    assert embedder.batches == [3, 3, 1]
    assert query.embeddings.shape == (7, 4)
    assert query.slice_index.tolist() == list(range(7))
    assert query.slice_count == 7
    assert query.position_mm == tuple(3.0 * i for i in range(7))
    assert query.name == "case"
    assert query.images is not None
    assert [image.shape for image in query.images] == [(2, 2)] * 7
    assert embedder.embed_batch(query.images) == pytest.approx(query.embeddings)
    assert steps == [(n, 7, "embedding case") for n in (0, 3, 6, 7)]


def test_searching_once_embedded_equals_searching_the_volume(store, make_embedder) -> None:
    index = Index(store, embedder=make_embedder())
    query = index.query_embeddings(volume())
    for mode in MODES:
        for slice_index in (None, 2):
            assert index.search(query, mode=mode, slice_index=slice_index) == index.search(
                volume(), mode=mode, slice_index=slice_index
            )


def test_one_slice_of_the_query_is_embedded_alone(store, make_embedder) -> None:
    embedder = make_embedder()
    hits = Index(store, embedder=embedder).search(volume(), slice_index=2, k=2).hits
    assert embedder.batches == [1]
    assert [(h.rank, h.matches[0].query_slice) for h in hits] == [(1, 2), (2, 2)]


def test_the_weighted_mode_counts_from_the_middle_of_the_part(store, make_embedder) -> None:
    index = Index(store, embedder=make_embedder())
    (hit,) = index.search(volume(5), mode="weighted", slice_index=0).hits
    assert hit.score == 1
    for sample in (None, "step:2"):
        part = Selection(slices=(0, 2), sample=sample)
        hits = index.search(volume(9), mode="weighted", select=part, k=9).hits
        weights = {m.query_slice: m for hit in hits for m in hit.matches}
        border = math.exp(-0.5 * (1 / (0.25 * 3)) ** 2)
        middle = 0 if sample else 1
        assert sum(hit.score for hit in hits) == pytest.approx(2 * border + middle)
        assert sorted(weights) == ([0, 2] if sample else [0, 1, 2])


def test_a_slice_that_does_not_exist_is_refused(store, make_embedder) -> None:
    index = Index(store, embedder=make_embedder())
    with pytest.raises(UsageError, match=r"slice 9 of case .* 0\.\.3"):
        index.search(volume(), slice_index=9)
    with pytest.raises(UsageError, match=r"slice 4 of query .* one of 0\.\.1, 5"):
        index.search((CHEST + BRAIN[:1], [0, 1, 5], [None] * 3), slice_index=4)
    with pytest.raises(UsageError, match="no slices of case"):
        index.query_embeddings(volume(), indices=[])


def test_a_path_is_read(store, make_embedder, tmp_path: Path) -> None:
    file = tmp_path / "picture.png"
    Image.fromarray(np.array([[200, 0], [0, 0]], dtype=np.uint8)).save(file)
    index = Index(store, embedder=make_embedder())
    for path in (file, str(file)):
        result = index.search(path, k=1)
        assert "picture" in result.query
        assert ids(result) == ["chest-1"]
    assert index.search(file, query_name="mine").query == "mine"


def test_options_of_a_path_reach_the_reader(store, make_embedder, monkeypatch) -> None:
    import medretrieval.imaging as imaging

    seen = {}

    def read(path: Any, **options: Any) -> Volume:
        seen.update(options)
        return volume()

    monkeypatch.setattr(imaging, "read_volume", read)
    Index(store, embedder=make_embedder()).search("x.nii", channel=2, allow_one_slice=True)
    assert seen == {"channel": 2, "allow_one_slice": True}


def test_a_bare_array_is_all_slices_of_a_volume(store) -> None:
    index = Index(store)
    for mode in MODES:
        assert index.search(np.array(QUERY[0]), mode=mode) == index.search(QUERY, mode=mode)


def test_wrong_requests_are_refused_before_anything_is_read(store) -> None:
    for wrong in (
        {"mode": "best"},
        {"k": 0},
        {"top": 0},
        {"candidates": 0},
        {"orientation": "upside down"},
        {"filters": Filters(modality="PET")},
    ):
        with pytest.raises(UsageError):
            Index(store).search("/does/not/exist.nii", **wrong)


def test_localize_names_the_slices_where_the_query_is_found(store) -> None:
    index = Index(store)
    # The column maxima of equation 6, by hand from the vectors above.
    expected = (
        Match(query_slice=2, slice_index=2, score=round(0.3 / math.sqrt(1.01 * 1.09), 6)),
        Match(query_slice=0, slice_index=0, score=round(0.1 / 1.01, 6)),
        Match(query_slice=0, slice_index=1, score=round(0.1 / math.sqrt(1.01 * 1.04), 6)),
    )
    assert index.localize(QUERY, "abdomen-1") == expected
    assert index.localize(QUERY, "abdomen-1", top=2) == expected[:2]
    with pytest.raises(UsageError, match="unknown volume 'abdomen-2'; did you mean abdomen-1"):
        index.localize(QUERY, "abdomen-2")
    with pytest.raises(UsageError, match="top is 0; expected a whole number of at least 1"):
        index.localize(QUERY, "abdomen-1", top=0)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ((np.empty((0, 4)), [], []), "the query has no slices"),
        (([1.0, 0, 0, 0], [0], [None]), r"expected \(n, dim\)"),
        ((CHEST, [0], [None]), "2 embeddings, 1 slice indices and 1 positions"),
        ((CHEST, [3, 3], [None] * 2), "all different"),
        ((CHEST, [-1, 3], [None] * 2), ">= 0"),
        (([[0.0] * 4], [0], [None]), "zero or not finite"),
    ],
)
def test_embeddings_that_cannot_be_used_are_refused(store, query, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Index(store).search(query)
