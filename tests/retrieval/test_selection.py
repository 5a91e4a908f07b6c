"""With which slices of a query to search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medretrieval.errors import InputError, UsageError
from medretrieval.retrieval.engine import Index
from medretrieval.retrieval.selection import DEFAULT_SAMPLE, Selection, Slices, choose, sample
from medretrieval.types import Grid, LabelVolume, Volume

FORMS = r"random:N \(N slices by chance\), mm:X \(a slice every X mm\) or step:N"


def slices(count: int = 10, **facts: Any) -> Slices:
    return Slices(name="case", index=np.arange(count), count=count, **facts)


def chosen(select: Selection, there: Slices, axis: int = 2, **options: Any) -> list[int]:
    return choose(select, there, axis=lambda grid: axis, **options).tolist()


def label_map(shape: tuple[int, int, int], names: dict[int, str], **where: Any) -> LabelVolume:
    voxels = np.zeros(shape, dtype=np.uint8)
    for value, place in where.items():
        voxels[place] = int(value.removeprefix("v"))
    return LabelVolume(voxels=voxels, grid=Grid(shape=shape, affine=np.eye(4)), names=names)


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 300), st.integers(0, 5))
def test_random_samples_are_seeded_and_without_replacement(n: int, wanted: int, seed: int) -> None:
    index = np.arange(3, 3 + n)
    found = sample(index, f"random:{wanted}", seed=seed).tolist()
    assert found == sample(index, f"random:{wanted}", seed=seed).tolist()
    assert found == sorted(set(found))
    assert len(found) == min(n, wanted)
    assert set(found) <= set(index.tolist())


def test_other_seeds_give_other_samples() -> None:
    samples = {tuple(sample(np.arange(100), "random:5", seed=seed)) for seed in range(20)}
    assert len(samples) == 20


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 50))
def test_fixed_steps(n: int, step: int) -> None:
    assert sample(np.arange(n), f"step:{step}").tolist() == [i for i in range(n) if i % step == 0]


@settings(deadline=None)
@given(
    st.integers(1, 120),
    st.sampled_from([0.7, 1.0, 1.25, 2.5, 3.0, 5.0]),
    st.sampled_from([0.5, 1.0, 3.0, 5.0, 7.0, 12.0, 15.0, 1000.0]),
)
def test_equidistant_slices_are_the_nearest_ones(n: int, spacing: float, gap: float) -> None:
    found = sample(np.arange(n), f"mm:{gap}", through_mm=spacing).tolist()
    expected, target = [], 0.0
    for number in range(10_000):
        target = number * gap
        if target > (n - 1) * spacing + 1e-6:
            break
        # The lower of two that are equally near.
        expected.append(min(range(n), key=lambda i: (round(abs(i * spacing - target), 6), i)))
    assert found == sorted(set(expected))


def test_the_samples_of_the_paper() -> None:
    """MSD-CBIR, II-D c: a gap of 7 mm in slices of 2.5 mm: 0, 7, 14, 21 mm; every 3rd slice."""
    index = np.arange(10)
    assert DEFAULT_SAMPLE == "mm:7"
    assert sample(index, "mm:7", through_mm=2.5).tolist() == [0, 3, 6, 8]
    assert sample(index, "mm:1", through_mm=2.5).tolist() == index.tolist()
    assert sample(index, "step:3").tolist() == [0, 3, 6, 9]
    assert sample(np.arange(20, 30), "mm:5", through_mm=2.5).tolist() == [20, 22, 24, 26, 28]


@pytest.mark.parametrize(
    "spec",
    [
        *("", "7", "mm", "mm:", "mm:0", "mm:-3", "mm:nan", "mm:inf", "mm:x", "step:0", "step:1.5"),
        *("random", "random:-1", "random:many", "every:3", "MM:7"),
    ],
)
def test_a_bad_sample_shows_the_forms(spec: str) -> None:
    with pytest.raises(UsageError, match=FORMS):
        sample(np.arange(9), spec, through_mm=1.0)


def test_millimetres_need_a_spacing_unless_there_is_one_slice() -> None:
    with pytest.raises(UsageError, match=r"spacing of the query is unknown; take step:N"):
        sample(np.arange(9), "mm:7")
    for spec in ("mm:7", "step:3", "random:2"):
        assert sample(np.array([4]), spec).tolist() == [4]
    assert chosen(Selection(), slices(1), sampled=True) == [0]
    with pytest.raises(UsageError, match=r"mode sampled takes a slice every 7 mm.*step:5"):
        chosen(Selection(), slices(), sampled=True)
    assert chosen(Selection(), slices(through_mm=3.5), sampled=True) == [0, 2, 4, 6, 8]
    assert chosen(Selection(sample="step:5"), slices(), sampled=True) == [0, 5]


def test_a_range_includes_both_ends() -> None:
    assert chosen(Selection(slices=(2, 4)), slices()) == [2, 3, 4]
    assert chosen(Selection(slices=(9, 9)), slices()) == [9]
    assert chosen(Selection(slices=(1, 8), sample="step:3"), slices()) == [1, 4, 7]
    some = Slices(name="case", index=np.array([0, 1, 5]), count=9)
    assert chosen(Selection(slices=(1, 8)), some) == [1, 5]
    with pytest.raises(UsageError, match=r"slice 6\.\.8 of case is not among .* 0\.\.1, 5"):
        chosen(Selection(slices=(6, 8)), some)


@pytest.mark.parametrize("wanted", [(-1, 3), (4, 2), (3, 10), (10, 10)])
def test_a_range_that_does_not_exist_is_refused(wanted: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"of case do(es)? not exist"):
        chosen(Selection(slices=wanted), slices())


def test_one_slice_is_a_range() -> None:
    assert Selection(sample="step:2").at(3) == Selection(sample="step:2", slices=(3, 3))
    assert Selection(seed=4).at(None) == Selection(seed=4)
    with pytest.raises(UsageError, match=r"slice 3 and the slices 1:2 were asked for"):
        Selection(slices=(1, 2)).at(3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_smallest_run_that_contains_the_structure(axis: int) -> None:
    shape = tuple(10 if i == axis else 3 for i in range(3))
    place = [tuple(z if i == axis else 1 for i in range(3)) for z in (3, 6, 8)]
    labels = label_map(shape, {1: "liver", 2: "Spleen"}, v1=place[0])  # type: ignore[arg-type]
    labels.voxels[place[1]] = 1
    labels.voxels[place[2]] = 2

    def run(name: str, **more: Any) -> list[int]:
        return chosen(Selection(structure=name, labels=labels, **more), slices(), axis)

    assert run("liver") == [3, 4, 5, 6]
    assert run("spleen") == [8]
    assert run("liver", sample="step:2") == [3, 5]
    assert run("liver", slices=(4, 9)) == [6]
    with pytest.raises(UsageError, match=r"liver is on none of the slices 7\.\.9.* it is on 3, 6"):
        run("liver", slices=(7, 9))


def test_a_structure_that_is_not_there_names_those_that_are() -> None:
    labels = label_map((2, 2, 4), {1: "liver", 2: "spleen", 3: "colon"}, v1=(0, 0, 1), v7=(1, 1, 3))
    with pytest.raises(UsageError, match="case shows 'colon'; there is label_7, liver"):
        chosen(Selection(structure="colon", labels=labels), slices(4))
    assert chosen(Selection(structure="label_7", labels=labels), slices(4)) == [3]
    empty = label_map((2, 2, 4), {1: "liver"})
    with pytest.raises(UsageError, match="'liver'; there is nothing labelled"):
        chosen(Selection(structure="liver", labels=empty), slices(4))


def test_a_label_map_of_another_volume_is_refused() -> None:
    labels = label_map((2, 2, 5), {1: "liver"}, v1=(0, 0, 1))
    with pytest.raises(InputError, match="has 5 slices, case 4"):
        chosen(Selection(structure="liver", labels=labels), slices(4))


def test_a_label_map_without_a_structure_is_refused() -> None:
    labels = label_map((2, 2, 4), {1: "liver", 2: "spleen"}, v1=(0, 0, 1))
    with pytest.raises(UsageError, match=r"no structure; name one of liver, spleen"):
        chosen(Selection(labels=labels), slices(4))


def test_names_of_slices_do_as_a_label_map() -> None:
    there = slices(4, labels=[("lung",), ("liver",), (), ("Liver", "lung")])
    assert chosen(Selection(structure="liver"), there) == [1]
    assert chosen(Selection(structure="LIVER"), there) == [1, 2, 3]
    with pytest.raises(UsageError, match="'colon'; there is Liver, liver, lung"):
        chosen(Selection(structure="colon"), there)


def volume(count: int, spacing: float = 3.5, *, known: bool = True) -> Volume:
    voxels = np.zeros((2, 2, count), dtype=np.uint8)
    voxels[0, 0] = np.arange(count)
    grid = Grid(shape=voxels.shape, affine=np.diag([1.0, 1.0, spacing, 1.0]), spacing_known=known)
    return Volume(voxels=voxels, grid=grid, name="case")


@pytest.fixture
def index(make_store, make_embedder) -> Index:
    store = make_store({"a": [[1.0, 1, 1, 1]], "b": [[9.0, 1, 1, 1]], "c": [[0.0, 0, 1, 0]]})
    return Index(store, embedder=make_embedder())


def searched_slices(index: Index, query: Any, **options: Any) -> list[int]:
    hits = index.search(query, k=9, **options).hits
    return sorted({match.query_slice for hit in hits for match in hit.matches})


def test_only_the_chosen_slices_are_embedded(index: Index) -> None:
    select = Selection(slices=(2, 9), sample="mm:7")
    assert searched_slices(index, volume(12), mode="count", select=select) == [2, 4, 6, 8]
    assert sum(index.embedder.batches) == 4  # type: ignore[union-attr]


def test_embedded_slices_are_chosen_from_as_a_volume(index: Index) -> None:
    embedded = index.query_embeddings(volume(12))
    labels = label_map((2, 2, 12), {1: "liver"}, v1=(0, 0, slice(3, 6)))
    for select in (
        Selection(slices=(2, 9), sample="mm:7"),
        Selection(structure="liver", labels=labels),
        Selection(sample="random:4", seed=3),
    ):
        assert index.search(embedded, mode="count", select=select) == index.search(
            volume(12), mode="count", select=select
        )


def test_sampled_is_count_of_a_sample(index: Index) -> None:
    sampled = index.search(volume(12), mode="sampled", k=9)
    counted = index.search(volume(12), mode="count", k=9, select=Selection(sample="mm:7"))
    assert sampled.hits == counted.hits
    assert searched_slices(index, volume(12), mode="sampled") == [0, 2, 4, 6, 8, 10]
    chosen = Selection(sample="step:5")
    assert searched_slices(index, volume(12), mode="sampled", select=chosen) == [0, 5, 10]
    with pytest.raises(UsageError, match=r"spacing of case is unknown.*step:5"):
        index.search(volume(12, known=False), mode="sampled")
    assert searched_slices(index, volume(1, known=False), mode="sampled") == [0]


@pytest.mark.parametrize("mode", ["region", "localized"])
def test_a_part_must_be_chosen_for_region(index: Index, mode: str) -> None:
    with pytest.raises(UsageError, match=rf"mode {mode} searches with a part.*--slices 20:45"):
        index.search(volume(4), mode=mode)
    with pytest.raises(UsageError, match="a part of the query"):
        index.search(volume(4), mode=mode, select=Selection(structure="liver"))
    assert searched_slices(index, volume(4), mode=mode, slice_index=2) == [2]
    assert searched_slices(index, volume(4), mode=mode, select=Selection(slices=(1, 2))) == [1, 2]
    labels = label_map((2, 2, 4), {1: "liver"}, v1=(0, 0, slice(1, 4)))
    select = Selection(structure="liver", labels=labels)
    found = index.search(volume(4), mode=mode, select=select)
    counted = index.search(volume(4), mode="count", select=select)
    assert [(h.volume_id, h.score, h.matches) for h in found.hits] == [
        (h.volume_id, h.score, h.matches) for h in counted.hits
    ]
    assert searched_slices(index, volume(4), mode=mode, select=select) == [1, 2, 3]


def test_a_structure_that_nobody_has_drawn_is_refused_where_it_would_do_nothing(
    index: Index,
) -> None:
    with pytest.raises(UsageError, match="where liver is in case is not known; give a label map"):
        index.search(volume(4), mode="count", select=Selection(structure="liver"))
    assert index.search(volume(4), mode="rerank", select=Selection(structure="liver")).hits


def test_samples_that_cannot_be_taken_are_refused_or_are_all_slices() -> None:
    with pytest.raises(UsageError, match="seed is -4; expected a whole number of at least 0"):
        sample(np.arange(10), "random:5", seed=-4)
    for spec in ("mm:1e-8", "mm:1e-300", "mm:2.5"):
        assert sample(np.arange(10), spec, through_mm=2.5).tolist() == list(range(10))
