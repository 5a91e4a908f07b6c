"""Indexes with the embeddings of several embedders: opening, merging, appending, searching."""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_fakes import (
    POLICY,
    FakeEmbedder,
    FakeVolumeEmbedder,
    contents,
    edit_manifest,
    make_case,
)

from medretrieval import building, pipeline
from medretrieval.errors import (
    EmbedderMismatchError,
    IndexFormatError,
    UnavailableError,
    UsageError,
)
from medretrieval.index import (
    Case,
    add_embedder,
    append,
    append_slices,
    build,
    drop_embedder,
    merge,
    open_group,
    open_store,
    open_stores,
)
from medretrieval.index.card import dataset_card
from medretrieval.index.embedding_sets import files_of
from medretrieval.index.manifest import Manifest, manifest_from_json, read_manifest
from medretrieval.index.removing import remove_patient
from medretrieval.retrieval import loading
from medretrieval.retrieval.engine import Index
from medretrieval.retrieval.fusion import search_fused

DAY = "2026-11-28"


def other(**options: Any) -> FakeEmbedder:
    return FakeEmbedder(**{"name": "hf:other/one", "seed": 8, "dim": 7, **options})


def third(**options: Any) -> FakeEmbedder:
    return FakeEmbedder(**{"name": "third", "seed": 9, "dim": 5, **options})


def run(cases: list[Case], out: Path, *more: FakeEmbedder, **options: Any) -> Path:
    """An index of `embedder` (default FakeEmbedder) and of those in `more`."""
    half = options.get("float16", False)
    options = {"embedder": FakeEmbedder(), "slices": POLICY, "name": "test", **options}
    build(cases, out, **options)
    for embedder in more:
        add_embedder(out, embedder=embedder, float16=half, day=DAY)
    return out


def named(number: int, **options: Any) -> Case:
    return make_case(number, names={1: "RV", 2: "LV"}, **options)


def but_versions(manifest: Manifest) -> Manifest:
    return replace(manifest, version=1, changes=(), files={})


# What the manifest says


def test_files_of_embedders_differ() -> None:
    taken: list[str] = []
    for name in ("a:b", "a-b", "A b", "embeddings", "x" * 300, "../../etc"):
        taken += files_of(name, [*taken, "embeddings/embeddings.safetensors"])
    assert len({name.lower() for name in taken}) == len(taken) == 12
    assert all(len(name) < 200 and ".." not in name.replace("..-..-etc", "") for name in taken)


def tampered(data: dict[str, Any], how: str) -> None:
    (name, entry), *_ = data["embedders"].items()
    own = "embeddings/hf-other-one.safetensors"
    if how == "another name":
        data["embedders"]["somebody"] = data["embedders"].pop(name)
    elif how == "the file of the first":
        entry.update(embeddings="embeddings/embeddings.safetensors")
    elif how == "the file of another":
        data["embedders"]["third"]["embeddings"] = own
    elif how == "the structure of the first":
        entry.update(faiss="index.faiss")
    elif how == "the embedder of the first":
        data["embedders"][data["embedder"]["name"]] = {
            **copy.deepcopy(entry),
            **{
                "embedder": data["embedder"],
                "dim": data["dim"],
                "embeddings": "embeddings/x.safetensors",
                "faiss": "index-x.faiss",
            },
        }
    elif how == "outside":
        entry.update(embeddings="embeddings/../../secret.safetensors")
    elif how == "absolute":
        entry.update(embeddings="/etc/secret.safetensors")
    elif how == "a structure outside":
        entry.update(faiss="../index-x.faiss")
    elif how == "not listed":
        del data["files"][own]
    elif how == "too many":
        for number in range(65):
            more = copy.deepcopy(entry)
            more["embedder"]["name"] = f"e{number}"
            more.update(
                embeddings=f"embeddings/e{number}.safetensors", faiss=f"index-e{number}.faiss"
            )
            data["embedders"][f"e{number}"] = more
    elif how == "no object":
        data["embedders"] = [entry]
    elif how == "another dimension":
        entry["dim"] = 8
    elif how == "a file to read":
        entry["embedder"]["name"] = "file:/etc/passwd"
        data["embedders"] = {"file:/etc/passwd": entry}
    else:
        raise AssertionError(how)


@pytest.mark.parametrize(
    "how",
    [
        *("another name", "the file of the first", "the file of another"),
        *("the structure of the first", "the embedder of the first", "outside", "absolute"),
        *("a structure outside", "not listed", "too many", "no object", "another dimension"),
        "a file to read",
    ],
)
def test_a_manifest_with_impossible_embedders_is_refused(tmp_path: Path, how: str) -> None:
    index = run([named(0)], tmp_path / "i", other(), third())
    edit_manifest(index, lambda data: tampered(data, how))
    for embedder in (None, "hf:other/one"):
        with pytest.raises(IndexFormatError, match=r"manifest\.json"):
            open_store(index, embedder=embedder)


def test_the_manifest_survives_json(tmp_path: Path) -> None:
    index = run([named(0)], tmp_path / "i", other(), third())
    manifest = read_manifest(index)
    assert list(manifest.sets) == ["fake", "hf:other/one", "third"]
    assert manifest_from_json(manifest.to_json()) == manifest
    chosen = manifest.choose("third")
    assert list(chosen.sets) == ["third", "fake", "hf:other/one"]
    assert manifest_from_json(json.loads(chosen.dumps())) == chosen


# Opening


def test_every_embedder_finds_by_its_own_embeddings(tmp_path: Path) -> None:
    cases = [named(n, depth=4) for n in range(4)]
    index = run(cases, tmp_path / "i", other(), index_kind="hnsw")
    alone = run(cases, tmp_path / "alone", embedder=other(), index_kind="hnsw")
    with open_store(index, embedder="hf:other/one") as store, open_store(alone) as single:
        np.testing.assert_array_equal(store.embeddings, single.embeddings)
        assert store.manifest.embedder == single.manifest.embedder
        for a, b in zip(
            store.neighbours(store.embeddings, 5),
            single.neighbours(single.embeddings, 5),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
        assert store.info()["embedders_here"] == ["hf:other/one", "fake"]
    with open_store(index, verify="full") as store:
        info = json.loads(json.dumps(store.info()))
        assert info["embedder"]["name"] == "fake"
        assert info["embedders"]["hf:other/one"]["dim"] == 7
    with pytest.raises(UsageError, match="hf:other/one"):
        open_store(index, embedder="hf:other/on")


@pytest.mark.parametrize("name", ["fake", "hf:other/one"])
def test_embeddings_of_one_embedder_may_be_missing(tmp_path: Path, name: str) -> None:
    embedders = {"fake": FakeEmbedder(), "hf:other/one": other()}
    index = run([named(0)], tmp_path / "i", other())
    before = contents(index)
    file = read_manifest(index).sets[name].embeddings_file
    (index / file).unlink()
    (there,) = set(embedders) - {name}
    with open_store(index, embedder=there, verify="full") as store:
        assert store.info()["embedders_here"] == [there]
    with pytest.raises(IndexFormatError, match=f"{file} is missing.*add-embedder.*{there}"):
        open_store(index, embedder=name)
    with pytest.raises(IndexFormatError, match=f"{file} is missing.*add-embedder"):
        merge([index], tmp_path / "m")
    add_embedder(index, embedder=embedders[name], day=DAY)
    assert contents(index) == before


def test_changed_embeddings_of_another_embedder_are_refused(tmp_path: Path) -> None:
    index = run([named(0)], tmp_path / "i", other())
    path = index / "embeddings" / "hf-other-one.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for embedder in (None, "hf:other/one"):
        with pytest.raises(IndexFormatError, match="sha256"):
            open_store(index, embedder=embedder)


def test_a_group_is_opened_by_one_embedder(tmp_path: Path) -> None:
    a = run([named(0), named(1)], tmp_path / "a", other(), third())
    b = run([named(2)], tmp_path / "b", FakeEmbedder(), embedder=other())
    merged = merge([a, b], tmp_path / "m")
    for name in ("fake", "hf:other/one"):
        with (
            open_stores(f"{a},{b}", embedder=name) as group,
            open_store(merged, embedder=name) as one,
        ):
            assert group.manifest.embedder.name == name
            np.testing.assert_array_equal(np.asarray(group.embeddings), one.embeddings)
            assert set(group.manifest.sets) == {"fake", "hf:other/one"}
            assert group.info()["indexes"][1]["embedders_here"][0] == name
    # Without a choice by the first one of the first index.
    with open_group([b, a]) as group:
        assert group.manifest.embedder.name == "hf:other/one"
    with pytest.raises(UsageError, match="third"):
        open_group([a, b], embedder="third")
    c = run([named(3)], tmp_path / "c", embedder=third())
    with pytest.raises(EmbedderMismatchError):
        open_group([b, c])


# Searching by two of them


@pytest.mark.parametrize("mode", ["count", "slice"])
def test_two_embedders_of_one_index_are_fused(tmp_path: Path, mode: str) -> None:
    cases = [named(n, depth=4) for n in range(5)]
    index = run(cases, tmp_path / "i", other())
    alone = [
        run(cases, tmp_path / str(number), embedder=embedder)
        for number, embedder in enumerate((FakeEmbedder(), other()))
    ]
    volume, _ = named(7, depth=3).load()
    used = [FakeEmbedder(), other()]

    def opened(paths: list[Path], names: list[str | None]) -> list[Index]:
        return [
            Index(
                open_store(path, embedder=name),
                load=lambda identity: next(
                    embedder for embedder in used if embedder.identity.space == identity.space
                ),
            )
            for path, name in zip(paths, names, strict=True)
        ]

    both = opened([index, index], ["fake", "hf:other/one"])
    for query in (volume, "case:volume-002"):
        found = search_fused(both, query, mode=mode, k=4)
        expected = search_fused(opened(alone, [None, None]), query, mode=mode, k=4)
        assert found.hits == expected.hits
        turned = search_fused(both[::-1], query, mode=mode, k=4)
        assert [(h.rank, h.volume_id, h.score) for h in turned.hits] == [
            (h.rank, h.volume_id, h.score) for h in found.hits
        ]
    assert all(embedder.batches for embedder in used)


def test_a_query_is_embedded_by_the_chosen_embedder_only(tmp_path: Path) -> None:
    index = run([named(0)], tmp_path / "i", other())
    store = open_store(index, embedder="hf:other/one")
    with pytest.raises(EmbedderMismatchError, match="hf:other/one"):
        Index(store, embedder=FakeEmbedder())
    asked = []

    def load(identity: Any) -> Any:
        asked.append(identity.name)
        return other()

    Index(store, load=load).search(named(3).load()[0], mode="count", k=1)
    assert asked == ["hf:other/one"]


# Merging


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("float16", [False, True])
def test_merged_parts_have_the_embeddings_of_all(tmp_path: Path, kind: str, float16: bool) -> None:
    cases = [named(n, depth=1 + n % 4) for n in range(6)]
    options: dict[str, Any] = {"index_kind": kind, "float16": float16}
    parts = [
        run(cases, tmp_path / f"part{n}", other(), third(), part=(n, 3), **options)
        for n in (1, 2, 3)
    ]
    merged = merge(parts, tmp_path / "merged")
    whole = run(cases, tmp_path / "whole", other(), third(), **options)
    ours, theirs = contents(merged), contents(whole)
    assert ours.keys() == theirs.keys()
    # The merge is a first version, the additions were further ones.
    assert {name for name in ours if ours[name] != theirs[name]} <= {"manifest.json", "README.md"}
    assert but_versions(read_manifest(merged)) == but_versions(read_manifest(whole))
    again = merge([merged], tmp_path / "again", index_kind="flat")
    assert {e.index_kind for e in read_manifest(again).sets.values()} == {"flat"}


def test_embedders_that_not_all_have_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a = run([named(0)], tmp_path / "a", other(), third())
    b = run([named(1)], tmp_path / "b", other(), embedder=third())
    with caplog.at_level(logging.WARNING):
        merged = merge([a, b], tmp_path / "m")
    assert "by fake are left out" in caplog.text
    manifest = read_manifest(merged)
    assert list(manifest.sets) == ["hf:other/one", "third"]
    assert "embeddings/third.safetensors" in manifest.files
    expected = [run([named(0), named(1)], tmp_path / "x", embedder=other())]
    with open_store(merged) as store, open_store(expected[0]) as single:
        np.testing.assert_array_equal(store.embeddings, single.embeddings)
    # The same name, another network.
    c = run([named(2)], tmp_path / "c", third(), embedder=other(seed=11))
    assert list(read_manifest(merge([a, c], tmp_path / "ac")).sets) == ["third"]
    d = run([named(3)], tmp_path / "d")
    with pytest.raises(EmbedderMismatchError, match="add-embedder"):
        merge([b, d], tmp_path / "bd")
    e = run([named(4)], tmp_path / "e")
    add_embedder(e, embedder=other(), float16=True)
    with pytest.raises(UsageError, match=r"hf:other/one .float32, float16."):
        merge([a, e], tmp_path / "ae")


def test_settings_of_the_search_are_those_of_each_embedder(tmp_path: Path) -> None:
    cases = [named(n, depth=4) for n in range(2)]
    parts = []
    for n in (1, 2):
        part = run(cases, tmp_path / f"part{n}", part=(n, 2))
        add_embedder(part, embedder=other(), index_kind="hnsw", index_parameters={"M": 8})
        parts.append(part)
    own, further = read_manifest(merge(parts, tmp_path / "m")).sets.values()
    assert (own.index_kind, further.index_kind) == ("flat", "hnsw")
    assert further.index_parameters["M"] == 8
    assert further.recall is not None
    chosen = {"index_kind": "hnsw", "index_parameters": {"M": 4}}
    both = read_manifest(merge(parts, tmp_path / "n", **chosen)).sets.values()
    assert [entry.index_parameters["M"] for entry in both] == [4, 4]


# Appending


def test_append_embeds_by_every_embedder(tmp_path: Path) -> None:
    cases = [named(n) for n in range(4)]
    old = run(cases[:2], tmp_path / "old", other(), index_kind="hnsw")
    before = contents(old)
    embedders = [FakeEmbedder(), other()]
    new = append(old, tmp_path / "new", cases[2:], embedder=embedders[::-1], day=DAY)
    assert [sum(embedder.batches) for embedder in embedders] == [6, 6]
    whole = run(cases, tmp_path / "whole", other(), index_kind="hnsw")
    ours, theirs = contents(new), contents(whole)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == {"manifest.json", "README.md"}
    manifest = read_manifest(new)
    assert but_versions(manifest) == but_versions(read_manifest(whole))
    assert [(c.version, c.embedder, c.volumes) for c in manifest.changes] == [
        (2, "hf:other/one", 0),
        (3, None, 2),
    ]
    assert contents(old) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "whole"]


def test_append_without_an_embedder(tmp_path: Path) -> None:
    old = run([named(0)], tmp_path / "old", other(), third())
    more = [named(1)]
    for given in (FakeEmbedder(), [FakeEmbedder(), third()]):
        with pytest.raises(EmbedderMismatchError, match="--without-embedder hf:other/one"):
            append(old, tmp_path / "new", more, embedder=given)
    new = append(
        *(old, tmp_path / "new", more),
        embedder=[FakeEmbedder(), third()],
        without_embedders=["hf:other/one"],
    )
    assert list(read_manifest(new).sets) == ["fake", "third"]
    assert not (new / "embeddings" / "hf-other-one.safetensors").exists()
    last = append(
        *(old, tmp_path / "last", more),
        embedder=third(),
        without_embedders=["fake", "hf:other/one"],
    )
    assert list(read_manifest(last).sets) == ["third"]
    with open_store(last) as store, open_store(new, embedder="third") as other_store:
        np.testing.assert_array_equal(store.embeddings, other_store.embeddings)
    with pytest.raises(UsageError, match="no other embedders"):
        append(
            *(old, tmp_path / "x", more),
            embedder=FakeEmbedder(),
            without_embedders=["fake", "third", "hf:other/one"],
        )
    with pytest.raises(UsageError, match="unknown embedder"):
        append(old, tmp_path / "x", more, embedder=FakeEmbedder(), without_embedders=["thrid"])
    assert not (tmp_path / "x").exists()


def test_slices_are_added_by_every_embedder(tmp_path: Path) -> None:
    old = run([named(0)], tmp_path / "old", other())
    volume, labels = named(7, depth=6).load()
    assert labels is not None
    new = append_slices(
        *(old, tmp_path / "new", volume, labels, [2, 4]),
        volume_id="mine",
        embedder=[FakeEmbedder(), other()],
    )
    for name in ("fake", "hf:other/one"):
        with open_store(new, embedder=name) as store:
            assert len(store) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    with pytest.raises(UsageError, match="whole volumes"):
        append_slices(
            *(old, tmp_path / "x", volume, labels, [2]),
            volume_id="mine",
            embedder=[FakeEmbedder(), FakeVolumeEmbedder()],
        )


def test_an_append_that_was_interrupted_at_the_second_embedder_goes_on(tmp_path: Path) -> None:
    old = run([named(0)], tmp_path / "old", other())
    cases = [named(n, depth=4) for n in range(1, 5)]

    def fail(batch: int) -> None:
        if batch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        append(old, tmp_path / "new", cases, embedder=[FakeEmbedder(), other(before=fail)])
    assert not (tmp_path / "new").exists()
    embedders = [FakeEmbedder(), other()]
    append(old, tmp_path / "new", cases, embedder=embedders, day=DAY)
    assert [sum(embedder.batches) for embedder in embedders] == [0, 8]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    again = append(*(old, tmp_path / "again", cases), embedder=[FakeEmbedder(), other()], day=DAY)
    assert contents(again) == contents(tmp_path / "new")
    # Other cases do not go on with what is left.
    with pytest.raises(KeyboardInterrupt):
        append(old, tmp_path / "x", cases[1:], embedder=[FakeEmbedder(), other(before=fail)])
    append(old, tmp_path / "x", cases, embedder=[FakeEmbedder(), other()], day=DAY)
    assert contents(again) == contents(tmp_path / "x")


def test_all_embedders_are_loaded_to_append(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run([named(0)], tmp_path / "old", other())
    known = {"fake": FakeEmbedder(), "hf:other/one": other()}
    asked: list[tuple[str, Any]] = []

    def load(wanted: Any, *, weights: Any, **_: Any) -> Any:
        asked.append((wanted.name, weights))
        if wanted.name not in known:
            raise UnavailableError("its weights are not here")
        return known[wanted.name]

    monkeypatch.setattr(loading, "load_again", load)
    monkeypatch.setattr(building, "_cases", lambda *_, **__: ([named(1)], tmp_path))
    given = tmp_path / "weights"
    pipeline.append_index(tmp_path / "old", tmp_path / "new", "source", weights=given)
    assert asked == [("fake", given), ("hf:other/one", None)]
    assert list(read_manifest(tmp_path / "new").sets) == ["fake", "hf:other/one"]
    del known["hf:other/one"]
    with pytest.raises(UnavailableError, match=r"not here.*--without-embedder hf:other/one"):
        pipeline.append_index(tmp_path / "old", tmp_path / "x", "source")
    more = {"without_embedders": ["hf:other/one"]}
    pipeline.append_index(tmp_path / "old", tmp_path / "x", "source", **more)
    assert list(read_manifest(tmp_path / "x").sets) == ["fake"]
    drop_embedder(tmp_path / "old", "hf:other/one")
    known.clear()
    with pytest.raises(UnavailableError, match=r"^its weights are not here$"):
        pipeline.append_index(tmp_path / "old", tmp_path / "y", "source")


# What others do with them


def test_removal_keeps_the_embeddings_that_are_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cases = [named(n) for n in range(4)]
    index = run(cases, tmp_path / "i", other(), third())
    whole = run(cases[:2], tmp_path / "whole", other(), third())
    (index / read_manifest(index).sets["third"].embeddings_file).unlink()
    remove_patient(index, patient_id=cases[2].patient_id)
    assert "third" in caplog.text
    assert list(read_manifest(index).sets) == ["fake", "hf:other/one"]
    for name in ("fake", "hf:other/one"):
        with open_store(index, embedder=name) as store, open_store(whole, embedder=name) as rest:
            np.testing.assert_array_equal(store.embeddings, rest.embeddings)


def test_the_card_names_every_embedder_and_change(tmp_path: Path) -> None:
    index = run([named(0)], tmp_path / "i", other(), third())
    drop_embedder(index, "third", day=DAY)
    card = (index / "README.md").read_text()
    assert "hf:other/one" in card
    assert "embeddings of third taken out" in card
    assert card == dataset_card(read_manifest(index))


def test_an_index_by_its_name_and_embedder(tmp_path: Path) -> None:
    a = run([named(0), named(1)], tmp_path / "a", other())
    b = run([named(2)], tmp_path / "b", FakeEmbedder(), embedder=other())
    with open_stores(f"{a}#hf:other/one") as store:
        assert store.manifest.embedder.name == "hf:other/one"
    # The others follow the first where they do not say it themselves.
    for source in (f"{a}#hf:other/one,{b}", f"{b},{a}", f"{b}#hf:other/one,{a}#hf:other/one"):
        with open_stores(source) as group:
            assert group.manifest.embedder.name == "hf:other/one"
    with open_stores(f"{a},{b}") as group:
        assert group.manifest.embedder.name == "fake"
    with pytest.raises(EmbedderMismatchError):
        open_stores(f"{a}#hf:other/one,{b}#fake")
