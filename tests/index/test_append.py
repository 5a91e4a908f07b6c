"""New versions of an index: what stays, what is added, what is said of it, what is refused."""

from __future__ import annotations

import json
import shutil
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

from medretrieval.errors import EmbedderMismatchError, IndexFormatError, InputError, UsageError
from medretrieval.index import Case, append, append_slices, appending, build, builder, open_store
from medretrieval.index.changes import Change
from medretrieval.index.manifest import read_manifest
from medretrieval.retrieval.engine import Index
from medretrieval.types import UNKNOWN

DAY = "2026-11-27"
NOTHING = {"version": 2, "date": DAY, "volumes": 0, "slices": 0, "replaced": 0, "note": ""}


def run(cases: list[Case], out: Path, **options: Any) -> Path:
    options = {"embedder": FakeEmbedder(), "slices": POLICY, "name": "test", **options}
    return build(cases, out, **options)


def add(index: Path, out: Path, cases: list[Case], **options: Any) -> Path:
    return append(index, out, cases, **{"embedder": FakeEmbedder(), "day": DAY, **options})


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("float16", [False, True])
def test_old_rows_stay_and_new_ones_are_as_in_one_build(
    tmp_path: Path, kind: str, float16: bool
) -> None:
    cases = [make_case(n, values=(1, 2)) for n in range(4)]
    options = {"index_kind": kind, "float16": float16, "license": "mit", "split": "train"}
    old = run(cases[:2], tmp_path / "old", **options)
    before = contents(old)
    embedder = FakeEmbedder()
    new = add(old, tmp_path / "new", cases[2:], embedder=embedder)
    assert sum(embedder.batches) == 6  # only the new slices
    whole = run(cases, tmp_path / "whole", **options)
    ours, theirs = contents(new), contents(whole)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == {"manifest.json", "README.md"}
    manifest = read_manifest(new)
    assert manifest.version == 2
    assert manifest.changes == (Change(version=2, date=DAY, volumes=2, slices=6),)
    plain = replace(manifest, version=1, changes=(), files={})
    assert plain == replace(read_manifest(whole), files={})
    assert contents(old) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "whole"]
    card = (new / "README.md").read_text()
    assert f"## Changes\n\n- version 2 of {DAY}: 2 volumes (6 slices) added\n" in card


def test_old_rows_are_found_as_before(tmp_path: Path) -> None:
    old = run([make_case(n, depth=4) for n in range(3)], tmp_path / "old")
    new = add(old, tmp_path / "new", [make_case(n, depth=4) for n in (7, 8)])
    with open_store(old) as a, open_store(new) as b:
        queries = a.embeddings[:5]
        expected = Index(a, embedder=FakeEmbedder()).search(queries, mode="slice", k=12)
        found = Index(b, embedder=FakeEmbedder()).search(queries, mode="slice", k=20)
        assert b.patient.names[: len(a.patient.names)] == a.patient.names

    def of_old(result: Any) -> list[tuple[Any, ...]]:
        hits = [hit for hit in result.hits if hit.volume_id not in ("volume-007", "volume-008")]
        return [(h.matches, h.volume_id, h.row_id, h.slice_index, h.score, h.labels) for h in hits]

    assert of_old(found) == of_old(expected)


def test_labels_are_united_by_name(tmp_path: Path) -> None:
    old = run([make_case(0, names={1: "RV", 2: "LV"})], tmp_path / "old")
    swapped = make_case(1, names={1: "LV", 2: "RV", 5: "Myo"}, values=(1, 2, 5))
    new = add(old, tmp_path / "new", [swapped])
    assert read_manifest(new).vocabulary == {1: "RV", 2: "LV", 5: "Myo"}
    _, labels = swapped.load()
    assert labels is not None
    with open_store(new) as store:
        mask = store.mask(store.row("volume-001", 2))
    shown = labels.voxels[:, :, 2].T
    assert mask is not None
    assert (mask == 2).sum() == (shown == 1).sum()
    assert (mask == 5).sum() == (shown == 5).sum()


def test_it_warns_of_cases_that_a_filter_would_leave_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = run([make_case(0)], tmp_path / "old")
    add(old, tmp_path / "well", [make_case(1)])
    assert not caplog.records
    new = add(old, tmp_path / "new", [replace(make_case(2), region=UNKNOWN)])
    (record,) = caplog.records
    assert "the region of 3 new slices is unknown" in record.getMessage()
    caplog.clear()
    add(new, tmp_path / "more", [replace(make_case(3), region=UNKNOWN)])
    assert not caplog.records  # they are not all known any more


def test_versions_count_on(tmp_path: Path) -> None:
    first = run([make_case(0)], tmp_path / "1")
    second = add(first, tmp_path / "2", [make_case(1)], note="from the night shift")
    third = add(second, tmp_path / "3", [make_case(2), make_case(3)], day="2026-11-28")
    assert [(c.version, c.date, c.volumes, c.note) for c in read_manifest(third).changes] == [
        (2, DAY, 1, "from the night shift"),
        (3, "2026-11-28", 2, ""),
    ]
    assert json.loads((third / "manifest.json").read_text())["version"] == 3
    assert "version" not in json.loads((first / "manifest.json").read_text())


def test_a_volume_twice_is_refused_or_replaced(tmp_path: Path) -> None:
    cases = [make_case(n, names={1: "RV", 2: f"only {n}"}) for n in range(3)]
    old = run(cases, tmp_path / "old")
    corrected = replace(make_case(9, depth=5), volume_id="volume-001")
    with pytest.raises(UsageError, match="--replace"):
        add(old, tmp_path / "new", [corrected])
    new = add(old, tmp_path / "new", [corrected], replace=True)
    with open_store(new) as store:
        assert store.volume_ids == ["volume-000", "volume-002", "volume-001"]
        assert len(store) == 3 + 3 + 5
        assert set(store.vocabulary.values()) == {"RV", "only 0", "only 2", "LV"}
        with open_store(old) as before:
            np.testing.assert_array_equal(store.embeddings[:3], before.embeddings[:3])
            np.testing.assert_array_equal(store.embeddings[3:6], before.embeddings[6:])
    assert read_manifest(new).changes[0].replaced == 1


def test_a_bad_case_takes_nobodys_place(tmp_path: Path) -> None:
    old = run([make_case(0)], tmp_path / "old")
    bad = replace(make_case(5, load_error=ValueError("damaged")), volume_id="volume-000")
    with pytest.raises(InputError, match="damaged"):
        add(old, tmp_path / "new", [bad], replace=True)
    new = add(old, tmp_path / "new", [bad, make_case(1)], replace=True, skip_bad=True)
    assert read_manifest(new).counts.volumes == 2
    assert read_manifest(new).counts.skipped == 1


def test_slices_of_one_volume(tmp_path: Path) -> None:
    old = run([make_case(n) for n in range(2)], tmp_path / "old")
    volume, labels = make_case(7, depth=6).load()
    assert labels is not None
    labels = replace(labels, names={1: "LV", 2: "scar"})

    def save(index: Path, out: Path, slices: list[int], **options: Any) -> Path:
        return append_slices(
            *(index, out, volume, labels, slices),
            volume_id="mine",
            patient_id="Mueller^Anna-0",
            embedder=FakeEmbedder(),
            **options,
        )

    new = save(old, tmp_path / "new", [4, 2, 4])
    with open_store(new) as store:
        rows = [store.row("mine", n) for n in (2, 4)]
        assert rows == [6, 7]
        assert len(store) == 8
        # The same patient has one pseudonym in both versions.
        assert store.patient[6] == store.patient[0]
        assert {1: "RV", 2: "LV"}.items() <= store.vocabulary.items()
        assert "scar" in store.vocabulary.values()
        assert set(store.support(6).names.values()) == {"LV", "scar"}
        with pytest.raises(UsageError):
            store.row("mine", 3)
    more = save(new, tmp_path / "more", [2, 3, 4], replace=True)
    with open_store(more) as store:
        assert store.slice_index[-3:].tolist() == [2, 3, 4]
        assert len(store) == 9
    with pytest.raises(UsageError, match="no slice"):
        save(old, tmp_path / "x", [])
    with pytest.raises(UsageError, match="slice 6"):
        save(old, tmp_path / "x", [6])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("stage", ["embedding", "writing", "merging"])
def test_nothing_of_a_volume_stays_when_its_slices_cannot_be_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    old = run([make_case(0)], tmp_path / "old")
    volume, labels = make_case(7).load()
    assert labels is not None

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    embedder = FakeEmbedder(before=fail if stage == "embedding" else None)
    if stage == "writing":
        monkeypatch.setattr(builder, "write_index", fail)
    if stage == "merging":
        monkeypatch.setattr(appending, "write_merged", fail)
    with pytest.raises(KeyboardInterrupt):
        append_slices(*(old, tmp_path / "x", volume, labels, [0]), volume_id="v", embedder=embedder)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    if stage == "merging":
        with pytest.raises(KeyboardInterrupt):
            add(old, tmp_path / "x", [make_case(1)])
        assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_an_index_of_whole_volumes(tmp_path: Path) -> None:
    embedder = FakeVolumeEmbedder()
    old = run([make_case(0)], tmp_path / "old", embedder=embedder)
    new = add(old, tmp_path / "new", [make_case(1)], embedder=embedder)
    assert read_manifest(new).counts.slices == 2
    volume, labels = make_case(2).load()
    assert labels is not None
    with pytest.raises(UsageError, match="whole volumes"):
        append_slices(old, tmp_path / "x", volume, labels, [0], volume_id="v", embedder=embedder)


def test_extra_columns_are_those_of_the_index(tmp_path: Path) -> None:
    old = run([replace(make_case(0), attributes={"site": "A"})], tmp_path / "old")
    new = add(old, tmp_path / "new", [make_case(1)])
    with open_store(new) as store:
        assert list(store.attributes["site"].text()) == ["A"] * 3 + [""] * 3
    with pytest.raises(UsageError, match="scanner"):
        add(old, tmp_path / "x", [replace(make_case(2), attributes={"scanner": "X"})])


def test_what_is_refused(tmp_path: Path) -> None:
    old = run([make_case(0)], tmp_path / "old")
    with pytest.raises(UsageError, match="itself"):
        add(old, old, [make_case(1)], force=True)
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        add(old, tmp_path / "there", [make_case(1)])
    with pytest.raises(EmbedderMismatchError, match="cannot be compared"):
        add(old, tmp_path / "x", [make_case(1)], embedder=FakeVolumeEmbedder())
    with pytest.raises(UsageError, match="note"):
        add(old, tmp_path / "x", [make_case(1)], note="a\nb")
    with pytest.raises(InputError, match="no cases"):
        add(old, tmp_path / "x", [])
    (old / "slices" / "slices-00000.parquet").write_bytes(b"x")
    with pytest.raises(IndexFormatError, match="bytes"):
        add(old, tmp_path / "x", [make_case(1)])
    assert not (tmp_path / "x").exists()


def test_an_interrupted_call_goes_on(tmp_path: Path) -> None:
    old = run([make_case(0)], tmp_path / "old")
    cases = [make_case(n, depth=4) for n in range(1, 5)]

    def fail(batch: int) -> None:
        if batch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(old, tmp_path / "new", cases, embedder=FakeEmbedder(before=fail))
    assert not (tmp_path / "new").exists()
    embedder = FakeEmbedder()
    add(old, tmp_path / "new", cases, embedder=embedder)
    assert sum(embedder.batches) < 16
    shutil.rmtree(tmp_path / "old")
    assert read_manifest(tmp_path / "new").counts.slices == 19
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"version": "2"},
        {"changes": {}},
        {"changes": [1]},
        {"changes": [{"version": 2, "date": DAY, "volumes": 1}]},
        {
            "changes": [
                {"version": 2, "date": "today", "volumes": 1, "slices": 1}
                | {"replaced": 0, "note": ""}
            ]
        },
        {
            "changes": [
                {"version": 2, "date": DAY, "volumes": 1, "slices": 1}
                | {"replaced": -1, "note": ""}
            ]
        },
        {"changes": [NOTHING]},
        {"changes": [NOTHING | {"removed": -1}]},
        {"changes": [NOTHING | {"removed": "1"}]},
        {"changes": [NOTHING | {"embedder": ""}]},
        {"changes": [NOTHING | {"embedder": "x" * 201}]},
        {"changes": [NOTHING | {"removed": 1, "note": "x" * 501}]},
    ],
)
def test_a_manifest_with_impossible_changes_is_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    out = run([make_case(0)], tmp_path / "i")
    edit_manifest(out, lambda data: data.update(change))
    with pytest.raises(IndexFormatError, match=r"version|change"):
        open_store(out)
