"""What must not change a result: how an index is stored, and how the work is divided.

Every mode, on small indexes full of ties: vectors are drawn from few, so that slices of different
volumes are equal, opposite, or as similar as others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medretrieval.index.columns import Coded, LabelColumn
from medretrieval.index.faiss_files import build_faiss
from medretrieval.index.kinds import KINDS, resolve_parameters
from medretrieval.index.searcher import Searcher
from medretrieval.retrieval.engine import Index
from medretrieval.retrieval.filters import Filters
from medretrieval.retrieval.modes import MODES
from medretrieval.retrieval.selection import Selection
from medretrieval.similarity import normalise
from medretrieval.types import Grid, SlicePolicy, Volume

# The same cases every time, and few enough of them for every mode.
fixed = settings(derandomize=True, deadline=None, max_examples=25, database=None)
every_mode = pytest.mark.parametrize("mode", list(MODES))
volume_modes = pytest.mark.parametrize("mode", [m for m in MODES if MODES[m].finds == "volumes"])
POOL = [
    [1.0, 0.0, 0.0],
    [0.0, 1.0, 0.0],
    [0.0, 0.0, 1.0],
    [-1.0, 0.0, 0.0],
    [1.0, 1.0, 0.0],
    [1.0, 0.0, 1.0],
    [0.6, 0.8, 0.0],
    [0.3, 0.2, 0.9],
]
vectors = st.lists(st.sampled_from(POOL), min_size=1, max_size=4)
NAMES = ["b", "a", "B", "a-10", "a-2", "ä"]


@st.composite
def databases(draw: st.DrawFn) -> dict[str, list[list[float]]]:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    return {name: draw(vectors) for name in names}


def selection(mode: str, slices: int) -> Selection:
    """What a mode cannot do without, leaving all slices but those that its sample leaves out."""
    needs = {
        "sample": Selection(sample="step:2"),
        "part": Selection(slices=(0, slices - 1)),
        "": Selection(),
    }
    return needs[MODES[mode].needs]


def search(store: Any, query: Any, mode: str, k: int = 3, **options: Any) -> list[dict[str, Any]]:
    """The hits as they are shown; everything but the number of the row."""
    result = Index(store).search(
        query, mode=mode, k=k, select=selection(mode, len(query)), **options
    )
    return [hit.to_json() for hit in result.hits]


def subset(store: Any, kept: np.ndarray) -> Any:
    """The same index without some of its rows."""
    rows = np.flatnonzero(kept)
    coded = {
        name: Coded.of(getattr(store, name)[row] for row in rows)
        for name in ("patient", "modality", "region")
    }
    arrays = ("embeddings", "slice_index", "annotated", "position_mm", "spacing")
    ids = [name for i, name in enumerate(store.volume_ids) if i in set(store.volume[rows])]
    owners = [ids.index(store.volume_ids[v]) for v in store.volume[rows].tolist()]
    return replace(
        store,
        **coded,
        **{name: getattr(store, name)[rows] for name in arrays},
        volume_ids=ids,
        volume=np.array(owners, dtype=np.int64),
        labels=LabelColumn.of(store.labels[row] for row in rows),
        attributes={n: Coded.of(c[row] for row in rows) for n, c in store.attributes.items()},
    )


@every_mode
@fixed
@given(databases(), vectors, st.data())
def test_the_order_of_rows_and_of_volumes(make_store, mode: str, volumes, query, data) -> None:
    rows = data.draw(st.permutations(range(sum(map(len, volumes.values())))))
    listed = data.draw(st.permutations(range(len(volumes))))
    shuffled = make_store(volumes, order=rows, volume_order=listed)
    assert search(shuffled, query, mode) == search(make_store(volumes), query, mode)


@every_mode
@fixed
@given(databases(), vectors)
def test_names_count_by_their_order_alone(make_store, mode: str, volumes, query) -> None:
    new = {name: f"case {place:03d}" for place, name in enumerate(sorted(volumes))}
    renamed = make_store({new[name]: rows for name, rows in volumes.items()})
    expected = search(make_store(volumes), query, mode)
    assert search(renamed, query, mode) == [
        {**hit, "volume_id": new[hit["volume_id"]]} for hit in expected
    ]


@every_mode
@fixed
@given(st.integers(0, 1000), st.permutations(NAMES[:5]))
def test_without_ties_names_do_not_count(make_store, mode: str, seed: int, names) -> None:
    rng = np.random.default_rng(seed)
    volumes = {name: rng.normal(size=(3, 6)) for name in NAMES[:5]}
    query = rng.normal(size=(4, 6))
    new = dict(zip(volumes, names, strict=True))
    options = {"sigma": 0.37, "k": 9}
    expected = search(make_store(volumes), query, mode, **options)
    renamed = make_store({new[name]: rows for name, rows in volumes.items()})
    assert search(renamed, query, mode, **options) == [
        {**hit, "volume_id": new[hit["volume_id"]]} for hit in expected
    ]


@every_mode
@fixed
@given(databases(), vectors, st.data())
def test_filtered_is_as_if_removed(make_store, mode: str, volumes, query, data) -> None:
    """Volumes are left out by patient, modality, region or column, slices by their labels."""
    some = st.dictionaries(st.sampled_from(list(volumes)), st.sampled_from(["x", "y"]))
    cells = [(name, i) for name, rows in volumes.items() for i in range(len(rows))]
    labelled = data.draw(st.sets(st.sampled_from(cells)))
    store = make_store(
        volumes,
        patient=data.draw(some),
        modality=data.draw(some),
        region=data.draw(some),
        attributes={"scanner": data.draw(some)},
        labels={cell: ("liver",) for cell in labelled},
    )
    patient, column = store.patient.text(), store.attributes["scanner"].text()
    choices: list[tuple[Filters, np.ndarray]] = [
        (Filters(exclude_patient="x"), patient != "hash-of-x"),
        (Filters(modality="x"), store.modality.text() == "x"),
        (Filters(region="y"), store.region.text() == "y"),
        (Filters(where={"scanner": "x"}), column == "x"),
        (Filters(labels=["liver"]), np.array(["liver" in names for names in store.labels])),
        (
            Filters(modality="x", where={"scanner": "y"}, exclude_patient="y"),
            (store.modality.text() == "x") & (column == "y") & (patient != "hash-of-y"),
        ),
    ]
    filters, kept = data.draw(st.sampled_from(choices))
    known = filters.where.get("scanner") in (None, *column) and (
        filters.modality in (None, *store.modality.names)
        and filters.region in (None, *store.region.names)
        and (filters.labels is None or labelled)
    )
    assume(known)
    found = search(store, query, mode, filters=filters)
    assert found == (search(subset(store, kept), query, mode) if kept.any() else [])


@every_mode
def test_a_filter_that_leaves_nothing_finds_nothing(make_store, mode: str) -> None:
    store = make_store({"a": POOL[:3], "b": POOL[3:5]}, patient={"a": "ann", "b": "ann"})
    assert search(store, POOL[:2], mode, filters=Filters(exclude_patient="ann")) == []
    assert search(store, POOL[:2], mode, filters=Filters(where={"volume_id": "a"})) != []


@volume_modes
@fixed
@given(databases(), vectors, st.integers(1, 4), st.integers(1, 4))
def test_more_results_are_the_same_results_and_some_more(
    make_store, mode: str, volumes, query, k: int, more: int
) -> None:
    store = make_store(volumes)
    everything = search(store, query, mode, k=100)
    assert search(store, query, mode, k=k + more)[:k] == search(store, query, mode, k=k)
    assert search(store, query, mode, k=k) == everything[:k]
    assert len(everything) <= len(volumes)
    assert len({hit["volume_id"] for hit in everything}) == len(everything)
    assert [hit["rank"] for hit in everything] == list(range(1, len(everything) + 1))
    assert [hit["score"] for hit in everything] == sorted(
        (hit["score"] for hit in everything), reverse=True
    )


@fixed
@given(databases(), vectors, st.integers(1, 4))
def test_slices_are_found_for_each_query_slice_alone(make_store, volumes, query, k: int) -> None:
    store = make_store(volumes)
    total = sum(map(len, volumes.values()))
    together = search(store, query, "slice", k=k)
    alone = []
    for i, vector in enumerate(query):
        one = ([vector], [i], [None])
        hits = Index(store).search(one, mode="slice", k=100).hits
        assert [hit.rank for hit in hits] == list(range(1, total + 1))
        alone += [hit.to_json() for hit in hits[:k]]
    assert together == alone


@volume_modes
def test_ties_are_in_the_order_of_the_volume_ids(make_store, mode: str) -> None:
    """Five volumes, all alike but their names, listed in another order than that of the names."""
    store = make_store({name: POOL[:3] for name in NAMES[:5]})
    found = search(store, POOL[:3], mode, k=10)
    everything = MODES[mode].rank.__name__ if hasattr(MODES[mode].rank, "__name__") else "pooled"
    if everything == "pooled":
        assert [hit["volume_id"] for hit in found] == sorted(NAMES[:5])
    else:  # every query slice meets the first of its equals
        assert [hit["volume_id"] for hit in found] == sorted(NAMES[:5])[:1]


@pytest.mark.parametrize("mode", ["count", "weighted", "max", "sum", "rerank"])
def test_volumes_that_are_hit_alike_are_in_the_order_of_their_ids(make_store, mode: str) -> None:
    """Each of four volumes has the one slice that its query slice meets."""
    units = np.eye(4)
    store = make_store({"d": units[:1], "b": units[1:2], "c": units[2:3], "a": units[3:]})
    # Symmetric about the middle, so that the weights of the slices are alike in pairs.
    found = [hit["volume_id"] for hit in search(store, units, mode, k=10)]
    assert found == (["b", "c", "a", "d"] if mode == "weighted" else ["a", "b", "c", "d"])


@every_mode
@fixed
@given(st.integers(0, 1000), st.integers(1, 3))
def test_volumes_and_queries_of_one_slice(make_store, mode: str, seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    volumes = {name: rng.normal(size=(1, 5)) for name in NAMES[:4]}
    query = rng.normal(size=(1, 5))
    similar = {
        name: float(np.round(normalise(rows)[0] @ normalise(query)[0].astype(float), 6))
        for name, rows in volumes.items()
    }
    best = sorted(similar, key=lambda name: -similar[name])
    found = search(make_store(volumes), query, mode, k=k)
    every = MODES[mode].finds == "slices" or mode.endswith("-pool")
    assert [hit["volume_id"] for hit in found] == best[: k if every else 1]
    votes = mode in ("count", "weighted", "sampled", "region", "localized")
    for hit in found:
        expected = 1.0 if votes else similar[hit["volume_id"]]
        assert hit["score"] == pytest.approx(expected, abs=2e-6)


@every_mode
def test_a_memory_map_is_as_good_as_an_array(make_store, mode: str, tmp_path) -> None:
    rng = np.random.default_rng(5)
    store = make_store({name: rng.normal(size=(7, 9)) for name in NAMES})
    np.save(tmp_path / "rows.npy", store.embeddings)
    mapped = replace(store, embeddings=np.load(tmp_path / "rows.npy", mmap_mode="r"))
    query = rng.normal(size=(5, 9))
    assert search(mapped, query, mode) == search(store, query, mode)


@dataclass
class Grey:
    """Embeds a picture as its corner, in batches of a given size."""

    identity: Any
    batch_size: int

    def embed_batch(self, images: Any) -> np.ndarray:
        assert 1 <= len(images) <= self.batch_size
        return normalise([1.0 + image[:2, :2].astype(float).ravel() for image in images])


@every_mode
@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 7])
def test_batches_of_the_embedder(
    make_store, make_identity: Callable[..., Any], mode: str, batch_size: int
) -> None:
    rng = np.random.default_rng(2)
    store = make_store({name: rng.uniform(0, 255, size=(4, 4)) for name in NAMES})
    affine = np.diag([-1.0, -1.0, 3.0, 1.0])
    grid = Grid(shape=(4, 4, 7), affine=affine)
    voxels = rng.integers(0, 255, (4, 4, 7)).astype(np.uint8)
    volume = Volume(voxels=voxels, grid=grid, name="case")
    found = []
    for size in (batch_size, 100):
        index = Index(store, embedder=Grey(make_identity(4), size))
        result = index.search(volume, mode=mode, k=4, select=selection(mode, 7))
        found.append([hit.to_json() for hit in result.hits])
    assert found[0] == found[1] != []


@dataclass
class Searched:
    """A store of the tests whose search is the one of an index folder."""

    store: Any
    searcher: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def neighbours(self, queries: Any, k: int, rows: Any = None) -> Any:
        return self.searcher.neighbours(queries, k, rows)


def searched(store: Any, kind: str) -> Searched:
    rows, dim = store.embeddings.shape
    parameters = resolve_parameters(kind, None, rows=rows, dim=dim)
    index = build_faiss(store.embeddings, kind, parameters)
    searcher = Searcher(embeddings=store.embeddings, kind=kind, parameters=parameters, index=index)
    return Searched(store, searcher)


@every_mode
@fixed
@given(databases(), vectors, st.data())
def test_the_search_of_an_index_folder(make_store, mode: str, volumes, query, data) -> None:
    """Exact by FAISS, in any order of the rows, is what the plain search of the tests is."""
    rows = data.draw(st.permutations(range(sum(map(len, volumes.values())))))
    kind = data.draw(st.sampled_from([k for k in KINDS if k.startswith("flat")]))
    shuffled = searched(make_store(volumes, order=rows), kind)
    assert search(shuffled, query, mode) == search(make_store(volumes), query, mode)


@every_mode
@pytest.mark.parametrize("kind", [k for k in KINDS if not k.startswith("flat")])
def test_approximate_kinds_are_exact_where_a_filter_leaves_few_rows(
    make_store, mode: str, kind: str
) -> None:
    rng = np.random.default_rng(4)
    names = [f"v{i:02d}" for i in range(20)]
    volumes = {name: rng.normal(size=(30, 16)) for name in names}
    store = make_store(volumes, region=dict.fromkeys(names[:7], "head"))
    query, filters = rng.normal(size=(6, 16)), Filters(region="head")
    expected = search(store, query, mode, filters=filters)
    assert search(searched(store, kind), query, mode, filters=filters) == expected


def test_the_policy_of_the_tests_is_plain(make_store) -> None:
    """The pictures above reach the embedder as they are."""
    assert make_store({"a": POOL[:1]}).manifest.slices == SlicePolicy(
        axis="axial", window="identity"
    )
