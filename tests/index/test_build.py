"""Building: what is stored, what is refused, and what a failure leaves behind."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_fakes import DIM, POLICY, FakeEmbedder, contents, killed_cases, make_case

from medretrieval.errors import InputError, MedRetrievalError, UsageError
from medretrieval.imaging import make_slices
from medretrieval.index import Case, build, open_store, pseudonym, table
from medretrieval.index import workspace as workspace_module
from medretrieval.index.workspace import Workspace
from medretrieval.types import SlicePolicy


def run(cases: list[Case], out: Path, **options: Any) -> Path:
    options = {"embedder": FakeEmbedder(), "slices": POLICY, "name": "test", **options}
    return build(cases, out, **options)


def partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 5), st.booleans(), st.booleans()), min_size=1, max_size=5
    ),
    batch=st.integers(1, 9),
    float16=st.booleans(),
)
def test_what_is_built_is_what_is_opened(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[tuple[int, bool, bool]],
    batch: int,
    float16: bool,
) -> None:
    cases = [
        make_case(n, depth=depth, annotated=annotated, color=color)
        for n, (depth, annotated, color) in enumerate(shapes)
    ]
    embedder = FakeEmbedder(batch_size=batch)
    out = run(cases, tmp_path_factory.mktemp("x") / "i", embedder=embedder, float16=float16)
    total = sum(depth for depth, _, _ in shapes)
    assert sum(embedder.batches) == total
    assert all(size == batch for size in embedder.batches[:-1])  # full across borders of cases
    with open_store(out) as store:
        row = 0
        for case in cases:
            volume, labels = case.load()
            for piece in make_slices(volume, POLICY, labels=labels):
                assert store.volume_ids[store.volume[row]] == case.volume_id
                assert store.slice_index[row] == piece.index
                assert store.position_mm[row] == piece.position_mm
                assert tuple(store.spacing[row]) == piece.spacing
                np.testing.assert_array_equal(store.image(row), piece.image)
                mask = store.mask(row)
                if piece.mask is None:
                    assert mask is None
                    assert not store.has_mask(row)
                else:
                    assert store.has_mask(row)
                    assert mask is not None
                    assert mask.dtype == np.uint8
                    np.testing.assert_array_equal(mask, piece.mask)
                expected = FakeEmbedder().embed_batch([piece.image])[0]
                np.testing.assert_allclose(
                    store.embeddings[row], expected, atol=1e-3 if float16 else 0
                )
                assert store.modality[row] == "MR"
                assert store.region[row] == case.region
                assert store.patient[row] == pseudonym(case.patient_id, "test")
                row += 1
        assert len(store) == row == total
        assert store.embeddings.dtype == np.float32
        assert isinstance(store.embeddings, np.memmap) is not float16
        np.testing.assert_allclose(np.linalg.norm(store.embeddings, axis=1), 1, atol=1e-6)
        assert store.manifest.embedder.space == embedder.identity.space
        assert store.manifest.slices == POLICY


def test_slice_without_structure_has_a_mask_of_zeros(flat_index: Path) -> None:
    with open_store(flat_index) as store:
        first = store.mask(0)
        assert first is not None
        assert not first.any()
        assert store.labels[0] == ()
        assert store.support(0).names == {}
        unannotated = len(store) - 1
        assert store.mask(unannotated) is None
        with pytest.raises(UsageError, match="volume-004:1 has no annotation"):
            store.support(unannotated)


def test_one_vocabulary_for_cases_with_different_values(tmp_path: Path) -> None:
    cases = [
        make_case(0, names={1: "liver"}, values=(1,), labels=("benign",)),
        make_case(1, names={1: "spleen", 2: "liver"}, values=(1, 2)),
        make_case(2, names={}, values=(1, 9)),
        make_case(3, names={}, values=(70_000, 300)),
    ]
    with open_store(run(cases, tmp_path / "i")) as store:
        # "spleen" finds 1 taken and gets the lowest free value, as "label_1" does after it.
        assert store.vocabulary == {
            1: "liver", 2: "spleen", 3: "label_1", 9: "label_9", 300: "label_300", 4: "label_70000",
        }  # fmt: skip
        assert store.labels[1] == ("benign", "liver")
        for row in range(len(store)):
            mask = store.mask(row)
            assert mask is not None
            _, labels = cases[row // 3].load()
            assert labels is not None
            names = {**labels.names, **cases[row // 3].label_names}
            volume, _ = cases[row // 3].load()
            original = next(make_slices(volume, POLICY, labels=labels, indices=[row % 3])).mask
            assert original is not None
            lookup = np.array(["", *(store.vocabulary.get(v, "?") for v in range(1, 301))])
            wanted = np.vectorize(lambda v, n=names: n.get(v, ""))(original)
            np.testing.assert_array_equal(lookup[mask], wanted)
            assert store.support(row).names == {
                v: store.vocabulary[v] for v in np.unique(mask).tolist() if v
            }
        assert store.mask(10).dtype == np.uint16  # type: ignore[union-attr]
        counts = store.manifest.label_counts
        assert counts["benign"] == 3
        assert counts["liver"] == 4


def test_names_that_occur_nowhere_are_not_in_the_vocabulary(tmp_path: Path) -> None:
    out = run([make_case(0, names={1: "a", 2: "b", 50: "never"})], tmp_path / "i")
    assert open_store(out).vocabulary == {1: "a", 2: "b"}


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    cases = [make_case(n) for n in range(4)]
    a = run(cases, tmp_path / "a", index_kind="hnsw")
    b = run(cases, tmp_path / "b", index_kind="hnsw", embedder=FakeEmbedder(batch_size=7))
    assert contents(a) == contents(b)


def test_order_of_cases_is_order_of_rows(tmp_path: Path) -> None:
    cases = [make_case(n) for n in (2, 0, 1)]
    with open_store(run(cases, tmp_path / "i")) as store:
        assert store.volume_ids == ["volume-002", "volume-000", "volume-001"]
        assert store.volume.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_many_shards_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "GROUP_ROWS", 100)
    cases = [make_case(n, depth=40) for n in range(3)]
    whole = open_store(run(cases, tmp_path / "a"))
    parts = open_store(run(cases, tmp_path / "b", shard_bytes=1))
    assert len(list((tmp_path / "b" / "slices").iterdir())) == 2  # a shard per group of 100 rows
    for row in (0, 99, 100, 119):
        np.testing.assert_array_equal(whole.image(row), parts.image(row))
    assert list(whole.labels) == list(parts.labels)


def test_no_patient_identifier_in_any_file(tmp_path: Path) -> None:
    out = run([make_case(n) for n in range(4)], tmp_path / "i", index_kind="hnsw")
    for name, content in contents(out).items():
        assert b"Mueller" not in content, name
        assert b"Anna" not in content, name
    store = open_store(out)
    assert store.manifest.counts.patients == 2
    assert store.pseudonyms("Mueller^Anna-0") == (store.patient[0],)
    assert pseudonym("Mueller^Anna-0", "other index") != store.patient[0]


def test_no_patient_identifier_in_an_unfinished_build(tmp_path: Path) -> None:
    cases = [*killed_cases(), make_case(99, load_error=InputError("damaged"))]
    with pytest.raises(InputError):
        run(cases, tmp_path / "i")
    files = contents(partial(tmp_path / "i"))
    assert any(name.startswith("parts/") for name in files)
    assert not any(b"Mueller" in content for content in files.values())


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_killed_build_resumes_without_embedding_again(tmp_path: Path, batch: int) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from index_fakes import *;"
        "from medretrieval.index import build;"
        "build(killed_cases(), sys.argv[2], slices=POLICY, name='killed', index_kind='hnsw',"
        "embedder=FakeEmbedder(before=kill_at(int(sys.argv[3]))))"
    )
    out = tmp_path / "index"
    here = str(Path(__file__).parent)
    killed = subprocess.run(
        [sys.executable, "-c", script, here, str(out), str(batch)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    assert not out.exists()
    stored = [pq.read_metadata(p) for p in (partial(out) / "parts").glob("*.parquet")]
    rows_stored = sum(meta.num_rows for meta in stored)
    cases = killed_cases()
    ends = np.cumsum([len(list(make_slices(c.load()[0], POLICY))) for c in cases])
    # Writing is at most one batch behind: what was complete two batches ago is on the disk.
    safe = ends[ends <= 4 * (batch - 1)]
    assert rows_stored >= (safe[-1] if len(safe) else 0)

    embedder = FakeEmbedder()
    build(cases, out, slices=POLICY, name="killed", index_kind="hnsw", embedder=embedder)
    assert sum(embedder.batches) == ends[-1] - rows_stored
    assert not partial(out).exists()

    whole = tmp_path / "whole"
    build(cases, whole, slices=POLICY, name="killed", index_kind="hnsw", embedder=FakeEmbedder())
    assert contents(out) == contents(whole)


def test_failure_of_the_embedder_leaves_nothing_at_out_and_resumes(tmp_path: Path) -> None:
    def fail(number: int) -> None:
        if number == 2:
            raise RuntimeError("out of memory")

    cases = [make_case(n) for n in range(4)]
    out = tmp_path / "i"
    with pytest.raises(RuntimeError, match="out of memory"):
        run(cases, out, embedder=FakeEmbedder(before=fail))
    assert not out.exists()
    embedder = FakeEmbedder()
    run(cases, out, embedder=embedder)
    assert sum(embedder.batches) == 6  # two cases of three slices were done in two batches of four
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i"]


@pytest.mark.parametrize(
    "other",
    [
        {"embedder": FakeEmbedder(revision="2")},
        {"slices": SlicePolicy(axis="axial", window="percentile", max_side=8)},
    ],
)
def test_other_settings_do_not_resume(
    tmp_path: Path, other: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "i"
    bad = make_case(9, load_error=InputError("damaged"))
    with pytest.raises(InputError):
        run([make_case(0), make_case(1), bad], out)
    counter = FakeEmbedder(
        revision=other["embedder"].identity.revision if "embedder" in other else "1"
    )
    with caplog.at_level(logging.WARNING):
        run([make_case(0), make_case(1)], out, **{**other, "embedder": counter})
    assert sum(counter.batches) == 6
    assert "other settings" in caplog.text
    fresh = run([make_case(0), make_case(1)], tmp_path / "fresh", **other)
    assert contents(out) == contents(fresh)


def test_changed_files_are_read_again_on_resuming(tmp_path: Path) -> None:
    import dataclasses

    out = tmp_path / "i"
    bad = make_case(9, load_error=InputError("damaged"))
    with pytest.raises(InputError):
        run([make_case(0), make_case(1), bad], out)
    embedder = FakeEmbedder()
    run(
        [make_case(0), dataclasses.replace(make_case(1), fingerprint="new")], out, embedder=embedder
    )
    assert sum(embedder.batches) == 3


def test_bad_cases_are_reported_together_and_the_rest_is_kept(tmp_path: Path) -> None:
    cases = [
        make_case(0),
        make_case(1, load_error=InputError("voxels are NaN")),
        make_case(2),
        make_case(3, load_error=ValueError("no parser")),
    ]
    out = tmp_path / "i"
    with pytest.raises(InputError) as caught:
        run(cases, out)
    text = str(caught.value)
    assert "2 of 4 cases" in text
    assert "volume-001: voxels are NaN" in text
    assert "volume-003: ValueError: no parser" in text
    assert "--skip-bad" in text
    assert not out.exists()
    embedder = FakeEmbedder()
    with open_store(run(cases, out, embedder=embedder, skip_bad=True)) as store:
        assert embedder.batches == []
        assert store.volume_ids == ["volume-000", "volume-002"]
        assert store.manifest.counts.skipped == 2
        assert "2 volumes of the source could not be read" in (out / "README.md").read_text()


def test_only_bad_cases_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 of 1 cases"):
        run([make_case(0, load_error=InputError("empty"))], tmp_path / "i", skip_bad=True)
    assert list(tmp_path.iterdir()) == []


def test_case_that_fails_midway_is_dropped_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medretrieval.index import stream

    def broken(volume: Any, policy: Any, **options: Any) -> Any:
        for number, piece in enumerate(make_slices(volume, policy, **options)):
            if volume.name == "v1" and number == 2:
                raise InputError("slice 2 is damaged")
            yield piece

    monkeypatch.setattr(stream, "make_slices", broken)
    cases = [make_case(n, depth=5) for n in range(3)]
    with open_store(run(cases, tmp_path / "i", skip_bad=True)) as store:
        assert store.volume_ids == ["volume-000", "volume-002"]
        assert len(store) == 10
        for row in range(10):
            expected = FakeEmbedder().embed_batch([store.image(row)])[0]
            np.testing.assert_array_equal(store.embeddings[row], expected)


def _nan_row(vectors: np.ndarray) -> np.ndarray:
    vectors[1] = np.nan
    return vectors


def test_case_without_a_usable_embedding_is_bad(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"volume-000: slice 1 has no embedding of length 1 \(nan"):
        run([make_case(0)], tmp_path / "i", embedder=FakeEmbedder(change=_nan_row))


@pytest.mark.parametrize("change", [lambda v: v[:, :-1], lambda v: v.astype(int), lambda v: v[0]])
def test_embedder_that_breaks_its_promise(tmp_path: Path, change: Any) -> None:
    with pytest.raises(MedRetrievalError, match="embedder fake gave an array"):
        run([make_case(0)], tmp_path / "i", embedder=FakeEmbedder(change=change))
    assert not (tmp_path / "i").exists()


def test_existing_output_is_refused_and_forced(tmp_path: Path) -> None:
    out = run([make_case(0)], tmp_path / "i")
    before = contents(out)
    embedder = FakeEmbedder()
    with pytest.raises(UsageError, match="--force"):
        run([make_case(1)], out, embedder=embedder)
    assert embedder.batches == []
    assert contents(out) == before
    run([make_case(1)], out, force=True)
    assert open_store(out).volume_ids == ["volume-001"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["i"]


def test_forced_build_that_fails_keeps_the_old_index(tmp_path: Path) -> None:
    out = run([make_case(0)], tmp_path / "i")
    before = contents(out)
    with pytest.raises(InputError):
        run([make_case(1, load_error=InputError("empty"))], out, force=True)
    assert contents(out) == before


def test_force_does_not_delete_what_is_no_index(tmp_path: Path) -> None:
    precious = tmp_path / "scans"
    precious.mkdir()
    (precious / "a.txt").write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(precious)
    for out in (precious, link):
        with pytest.raises(UsageError, match="not an index"):
            run([make_case(0)], out, force=True)
    assert (precious / "a.txt").read_text() == "mine"


def test_old_index_comes_back_after_a_kill_between_the_renames(tmp_path: Path) -> None:
    out = run([make_case(0)], tmp_path / "i")
    before = contents(out)
    out.rename(tmp_path / ".i.old")
    with pytest.raises(InputError):
        run([make_case(1, load_error=InputError("empty"))], out, force=True)
    assert contents(out) == before


def test_two_builds_of_one_output_do_not_mix(tmp_path: Path) -> None:
    out = tmp_path / "i"
    with Workspace(out, {}), pytest.raises(UsageError, match="another process is building"):
        run([make_case(0)], out)
    run([make_case(0)], out)


def test_full_disk_is_told_and_leaves_nothing_at_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        if path.name.endswith(".parquet.tmp"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(workspace_module, "sync", full)
    with pytest.raises(MedRetrievalError, match="no space left"):
        run([make_case(0), make_case(1)], tmp_path / "i")
    assert list(tmp_path.iterdir()) == []


def test_damaged_part_is_embedded_again(tmp_path: Path) -> None:
    out = tmp_path / "i"
    bad = make_case(9, load_error=InputError("damaged"))
    with pytest.raises(InputError):
        run([make_case(0), make_case(1), bad], out, embedder=FakeEmbedder(batch_size=3))
    parts = sorted((partial(out) / "parts").iterdir())
    parts[0].write_bytes(parts[0].read_bytes()[:100])
    embedder = FakeEmbedder()
    run([make_case(0), make_case(1)], out, embedder=embedder)
    assert sum(embedder.batches) == 3
    assert len(open_store(out)) == 6


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ([], "no cases"),
        ([make_case(0), make_case(0)], "'volume-000' occurs twice"),
        ([make_case(0, names={0: "background"})], "0 is background"),
        ([make_case(0, labels=("a\nb",))], "printable"),
    ],
)
def test_cases_that_cannot_be_an_index(tmp_path: Path, cases: list[Case], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(cases, tmp_path / "i")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index_kind": "hnws"}, "did you mean hnsw"),
        ({"index_parameters": {"M": 8}}, "no parameter 'M'"),
        ({"index_kind": "hnsw", "index_parameters": {"M": 1}}, "2..256"),
        ({"name": ""}, "name is ''"),
        ({"source": "a\nb"}, "one line"),
        ({"slices": SlicePolicy(window="no-such")}, "no-such"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run([make_case(0)], tmp_path / "i", **options)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_cases(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    cases = [make_case(n) for n in range(5)]
    cases[2] = make_case(2, load_error=InputError("empty"))
    run(
        cases, tmp_path / "i", skip_bad=True,
        progress=lambda done, total, message: seen.append((done, total)),
    )  # fmt: skip
    assert seen[0] == (0, 5)
    assert seen[-1] == (5, 5)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_parents_of_the_output_are_made(tmp_path: Path) -> None:
    out = run([make_case(0)], tmp_path / "a" / "b" / "i")
    data = json.loads((out / "manifest.json").read_text())
    assert data["dim"] == DIM
    assert data["embedder"]["preprocessing"] == {"mean": [0.5, 0.5], "size": 8}
