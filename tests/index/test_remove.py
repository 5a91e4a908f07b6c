"""Removing a patient: nothing of them stays anywhere, and nothing else changes."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_fakes import POLICY, FakeEmbedder, FakeVolumeEmbedder, contents, edit_manifest, make_case
from safetensors.numpy import save_file

from medretrieval import folders
from medretrieval.errors import MedRetrievalError, UsageError
from medretrieval.index import (
    Case,
    append,
    build,
    open_store,
    pseudonym,
    remove_patient,
    removing,
    table,
)
from medretrieval.index.changes import Change
from medretrieval.index.leftovers import clear_leftovers, leftovers
from medretrieval.index.manifest import read_manifest
from medretrieval.index.memory_files import add_memories
from medretrieval.index.tensors import stored_embeddings
from medretrieval.retrieval.engine import Index

DAY = "2026-11-27"
WHO = "Mueller^Anna-1"  # the patient of the cases 2 and 3


def run(cases: list[Case], out: Path, **options: Any) -> Path:
    options = {"embedder": FakeEmbedder(), "slices": POLICY, "name": "test", **options}
    return build(cases, out, **options)


def some_cases(count: int = 6) -> list[Case]:
    """Cases with extra columns, each with structures and a label that no other has."""
    return [
        replace(
            make_case(n, names={1: "RV", 2: f"only {n}"}, labels=(f"finding {n}", "seen")),
            attributes={"site": f"site-of-{n}"},
        )
        for n in range(count)
    ]


def remove(index: Path, out: Path | None, **options: Any) -> Path:
    return remove_patient(index, out, **{"day": DAY, **options})


def traces(index: Path, volumes: list[str]) -> Iterator[Any]:
    """What could tell of some volumes of an index: names, PNG files, embeddings as stored."""
    with open_store(index) as store:
        m = store.manifest
        vectors = stored_embeddings(
            index / m.embeddings_file, rows=len(store), dim=m.dim, dtype=m.dtype
        )
        rows = [row for row in range(len(store)) if store.volume_ids[store.volume[row]] in volumes]
        kept = sorted({*range(len(store))} - {*rows})
        others = {name for row in kept for name in store.labels[row]}
        for row in rows:
            for name in (store.volume_ids[store.volume[row]], store.attributes["site"][row]):
                yield name.encode()
            yield from (name.encode() for name in store.labels[row] if name not in others)
            if store.patient[row] not in {store.patient[other] for other in kept}:
                yield store.patient[row].encode()
            for column in ("image", "mask"):
                picture = store._table.picture(row, column)
                # A mask with nothing in it looks the same for everyone.
                if picture not in (None, *(store._table.picture(r, column) for r in kept)):
                    yield picture
            yield vectors[row].tobytes()


def assert_no_trace(folder: Path, secrets: list[bytes]) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        for secret in secrets:
            assert secret not in content, (path, secret[:40])
            assert secret not in str(path).encode()


def rows_of(index: Path) -> list[dict[str, Any]]:
    """Every row of an index with its stored bytes."""
    with open_store(index) as store:
        m = store.manifest
        vectors = stored_embeddings(
            index / m.embeddings_file, rows=len(store), dim=m.dim, dtype=m.dtype
        )
        return [
            {
                "volume": store.volume_ids[store.volume[row]],
                "patient": store.patient[row],
                "slice": int(store.slice_index[row]),
                "where": (store.position_mm[row], *store.spacing[row]),
                "region": (store.region[row], store.modality[row]),
                "labels": store.labels[row],
                "site": store.attributes["site"][row],
                "image": store._table.picture(row, "image"),
                "mask": store._table.picture(row, "mask"),
                "embedding": vectors[row].tobytes(),
            }
            for row in range(len(store))
        ]


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("float16", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_no_trace_stays_and_all_else_does(
    tmp_path: Path, kind: str, float16: bool, in_place: bool
) -> None:
    work = tmp_path / "work"
    old = run(
        some_cases(), work / "old", index_kind=kind, float16=float16, source=f"all, also {WHO}"
    )
    before, rows = contents(old), rows_of(old)
    secrets = [WHO.encode(), *traces(old, ["volume-002", "volume-003"])]
    assert len(secrets) > 20
    with pytest.raises(AssertionError):
        assert_no_trace(work, secrets[1:])
    new = remove(old, None if in_place else tmp_path / "out" / "new", patient_id=WHO, note="asked")
    assert_no_trace(new.parent, secrets)
    assert [path.name for path in new.parent.iterdir()] == [new.name]
    kept = [row for row in rows if row["volume"] not in ("volume-002", "volume-003")]
    assert rows_of(new) == kept
    assert in_place or contents(old) == before
    manifest = read_manifest(new)
    assert manifest.counts.volumes == 4
    assert manifest.counts.patients == 2
    assert manifest.vocabulary == {1: "RV", 2: "only 0", 3: "only 1", 6: "only 4", 7: "only 5"}
    assert "only 2" not in manifest.label_counts
    assert manifest.version == 2
    assert manifest.changes == (Change(version=2, date=DAY, removed=2, note="asked"),)
    assert f"- version 2 of {DAY}: 2 volumes removed; asked\n" in (new / "README.md").read_text()
    assert manifest.source == "all, also *"


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_what_stays_is_found_as_before(tmp_path: Path, kind: str) -> None:
    old = run(some_cases(), tmp_path / "old", index_kind=kind)
    new = remove(old, tmp_path / "new", patient_id=WHO)
    with open_store(old) as a, open_store(new) as b:
        queries = np.asarray(a.embeddings[:5])
        before = Index(a, embedder=FakeEmbedder()).search(queries, mode="slice", k=18)
        after = Index(b, embedder=FakeEmbedder()).search(queries, mode="slice", k=12)

        def found(result: Any) -> list[Any]:
            return [
                (hit.matches[0].query_slice, hit.volume_id, hit.slice_index, hit.score, hit.labels)
                for hit in result.hits
                if hit.volume_id not in ("volume-002", "volume-003")
            ]

        assert found(after) == found(before)
        assert len(found(after)) == 5 * 12


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), annotated=st.lists(st.booleans(), min_size=2, max_size=6))
def test_any_volumes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, annotated: list[bool]
) -> None:
    work = tmp_path_factory.mktemp("x")
    cases = [
        replace(make_case(n, annotated=a, names={1: f"only {n}"}), attributes={"site": f"site-{n}"})
        for n, a in enumerate(annotated)
    ]
    index = run(cases, work / "index")
    names = [case.volume_id for case in cases]
    gone = data.draw(
        st.lists(st.sampled_from(names), min_size=1, max_size=len(names) - 1, unique=True)
    )
    secrets, rows = [*traces(index, gone)], rows_of(index)
    remove(index, None, volumes=gone)
    assert rows_of(index) == [row for row in rows if row["volume"] not in gone]
    assert_no_trace(work, secrets)
    # As the same rows merged in any other way, but for the values of the structures.
    with open_store(index, verify="full") as store:
        for row in range(len(store)):
            mask = store.mask(row)
            shown = set() if mask is None else {store.vocabulary[v] for v in np.unique(mask) if v}
            assert shown == {*store.labels[row]}


def test_by_pseudonym_and_by_volume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = run(some_cases(), tmp_path / "old")
    by_id = remove(old, tmp_path / "a", patient_id=WHO)
    by_pseudonym = remove(old, tmp_path / "b", pseudonym=pseudonym(WHO, "test").upper())
    assert contents(by_id) == contents(by_pseudonym)
    assert not caplog.records
    some = remove(old, tmp_path / "c", volumes=["volume-002"])
    assert "1 other volumes of the same patients stay" in caplog.text
    with open_store(some) as store:
        assert "volume-003" in store.volume_ids
        assert pseudonym(WHO, "test") in store.patient.names


def test_versions_count_on_and_older_notes_are_cleaned(tmp_path: Path) -> None:
    first = run(some_cases(2), tmp_path / "1")
    more = [replace(case, attributes={"site": "A"}) for case in some_cases(4)[2:]]
    second = append(
        *(first, tmp_path / "2", more),
        embedder=FakeEmbedder(),
        day=DAY,
        note=f"scans of {WHO.upper()}, volume-002 too",
    )
    third = remove(second, tmp_path / "3", patient_id=WHO)
    assert read_manifest(third).version == 3
    assert [change.words() for change in read_manifest(third).changes] == [
        f"version 2 of {DAY}: 2 volumes (6 slices) added; scans of *, * too",
        f"version 3 of {DAY}: 2 volumes removed",
    ]
    assert_no_trace(third, [WHO.encode(), WHO.upper().encode(), b"volume-002"])


def test_short_names_are_not_found_inside_words(tmp_path: Path) -> None:
    cases = [replace(case, patient_id=f"P{n}") for n, case in enumerate(some_cases(3))]
    old = run(cases, tmp_path / "old", source="P1, P11 and STEP1")
    new = remove(old, tmp_path / "new", patient_id="P1", note="not of P11")
    assert read_manifest(new).source == "*, P11 and STEP1"
    with pytest.raises(UsageError, match="names what is removed"):
        remove(old, tmp_path / "x", patient_id="P1", note="of p1.")


def test_an_index_of_whole_volumes(tmp_path: Path) -> None:
    old = run(some_cases(), tmp_path / "old", embedder=FakeVolumeEmbedder())
    rows = rows_of(old)
    new = remove(old, tmp_path / "new", patient_id=WHO)
    assert rows_of(new) == rows[:2] + rows[4:]


def test_many_files_and_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "GROUP_ROWS", 2)
    old = run(some_cases(), tmp_path / "old", shard_bytes=600)
    assert len(list((old / "slices").iterdir())) > 2
    rows = rows_of(old)
    secrets = [WHO.encode(), *traces(old, ["volume-002", "volume-003"])]
    remove(old, None, patient_id=WHO)
    assert_no_trace(tmp_path, secrets)
    assert rows_of(old) == rows[:6] + rows[12:]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "in one way"),
        ({"patient_id": WHO, "pseudonym": "0" * 16}, "in one way"),
        ({"volumes": []}, "in one way"),
        ({"volumes": "volume-001"}, "a list of names"),
        ({"patient_id": "nobody"}, "none of its 3 patients"),
        ({"pseudonym": "0" * 16}, "it has 3 of other ones"),
        ({"volumes": ["volume-001", "v9"]}, "no volume 'v9'; it has 6 others"),
        ({"volumes": [f"volume-{n:03d}" for n in range(6)]}, "delete the folder"),
        ({"patient_id": WHO, "note": f"of {WHO.lower()}"}, "names what is removed"),
        ({"patient_id": WHO, "note": "volume-003 too"}, "names what is removed"),
        ({"patient_id": WHO, "note": pseudonym(WHO, "test")}, "names what is removed"),
        ({"patient_id": WHO, "note": "a\nb"}, "one line"),
        ({"patient_id": WHO, "day": "today"}, "expected one such as"),
    ],
)
def test_what_is_refused(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    old = run(some_cases(), tmp_path / "old")
    before = contents(tmp_path)
    for out in (tmp_path / "new", None):
        with pytest.raises(UsageError, match=message) as caught:
            remove(old, out, **how)
        # Nobody else is named, and an id goes into no log.
        assert "volume-00" not in str(caught.value).replace("'volume-001'", "")
        assert WHO not in str(caught.value)
        assert "nobody" not in str(caught.value)
    assert contents(tmp_path) == before


def test_outputs_that_must_not_be_written(tmp_path: Path) -> None:
    old = run(some_cases(), tmp_path / "old")
    other = run(some_cases(2), tmp_path / "other")
    for out in (old, other):
        with pytest.raises(UsageError, match="exists already"):
            remove(old, out, patient_id=WHO)
    assert remove(old, other, patient_id=WHO, force=True) == other
    assert read_manifest(other).counts.volumes == 4
    assert remove(old, old, patient_id=WHO, force=True) == old
    assert contents(old) == contents(other)


def test_what_killed_commands_left_beside_it_goes(tmp_path: Path) -> None:
    old = run(some_cases(), tmp_path / "old")
    known = [".old.old", ".old.partial", ".old.added", "..old.added.partial", "..old.added.old"]
    known += [".old.x1_y2z3a", ".old.push", ".old.pull"]
    others = [".old.12345", ".older.partial", "..old.x1_y2z3a", ".old.abcdefgh", "old-2"]
    for name in [*known, *others]:
        (tmp_path / name / "parts").mkdir(parents=True)
        (tmp_path / name / "parts" / "a").write_bytes(WHO.encode())
    (tmp_path / ".old.x1_y2z3a" / "parts").rename(tmp_path / ".old.x1_y2z3a" / "added")
    assert {path.name for path in leftovers(old)} == {*known}
    remove(old, None, patient_id=WHO)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["old", *others])


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    old = run(some_cases(), tmp_path / "old")
    script = (
        "import sys, pathlib; from medretrieval.index.workspace import lock_folder\n"
        "with lock_folder(pathlib.Path(sys.argv[1]), pathlib.Path('x')):\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    for name in (".old.partial", "..old.added.partial", ".old.push", "old/.memories"):
        holder = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        with holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            with pytest.raises(UsageError, match="another process"):
                remove(old, None, patient_id=WHO)
            assert (tmp_path / name / "lock").exists()
    assert read_manifest(old).counts.volumes == 6
    remove(old, None, patient_id=WHO)


def test_what_cannot_be_deleted_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = run(some_cases(), tmp_path / "old")
    (tmp_path / ".old.added").write_text("a file where a folder was expected")
    with pytest.raises(MedRetrievalError, match=r"\.old\.added cannot be deleted"):
        remove(old, None, patient_id=WHO)
    (tmp_path / ".old.added").unlink()

    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", "the record")

    monkeypatch.setattr(removing, "forget", fail)
    with pytest.raises(MedRetrievalError, match="the record cannot be deleted"):
        remove(old, None, patient_id=WHO)
    assert read_manifest(old).counts.volumes == 6


def test_memories_go(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = run(some_cases(), tmp_path / "old")
    staged = tmp_path / "staged"
    save_file({f"{'0' * 64}.pointer": np.arange(999, dtype=np.float32)}, staged)
    secret = staged.read_bytes()
    add_memories(old, staged, "memories/net-0123456789ab-")
    cached = folders.memories_dir()
    cached.mkdir()
    for name in (f"{'1' * 64}.safetensors", ".memory-abc.tmp"):
        (cached / name).write_bytes(secret)
    with caplog.at_level(logging.WARNING):
        remove(old, None, patient_id=WHO)
    assert "stored memories of the index were dropped" in caplog.text
    assert f"2 memories of segmentations in {cached} were deleted" in caplog.text
    assert not [name for name in read_manifest(old).files if name.startswith("memories")]
    assert_no_trace(tmp_path, [secret])
    assert not [path for path in folders.cache_dir().rglob("*") if path.is_file()]


def test_other_names_of_its_files_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = run(some_cases(), tmp_path / "old")
    os.link(old / "README.md", tmp_path / "elsewhere")
    remove(old, None, patient_id=WHO)
    assert "1 files of the index are also elsewhere" in caplog.text


def test_hidden_files_of_the_old_folder_go(tmp_path: Path) -> None:
    old = run(some_cases(), tmp_path / "old")
    (old / ".cache").mkdir()
    (old / ".cache" / "x").write_bytes(WHO.encode())
    remove(old, None, patient_id=WHO)
    assert_no_trace(tmp_path, [WHO.encode()])


def test_by_a_link_the_folder_itself_is_replaced(tmp_path: Path) -> None:
    old = run(some_cases(), tmp_path / "old")
    link = tmp_path / "link"
    link.symlink_to(old)
    assert remove(link, None, patient_id=WHO) == old
    assert link.is_symlink()
    assert read_manifest(old).counts.volumes == 4
    assert_no_trace(tmp_path, [WHO.encode(), b"volume-002"])


def killed(index: Path, at: str) -> None:
    """Remove in place in a process that is killed at a point of it."""
    script = (
        "import os, signal, sys\n"
        "from medretrieval.index import remove_patient, publish\n"
        "def kill(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        "def progress(done, total, message):\n"
        "    if sys.argv[2] == 'copying' and done: kill()\n"
        "    if sys.argv[2] == 'done' and message == 'done': kill()\n"
        "rmtree = publish.shutil.rmtree\n"
        "def rm(path, *args, **how):\n"
        "    if path.name == '.old.old' and path.exists(): kill()\n"
        "    rmtree(path, *args, **how)\n"
        "if sys.argv[2] == 'deleting': publish.shutil.rmtree = rm\n"
        "rename, renamed = os.rename, []\n"
        "def once(*paths):\n"
        "    if renamed: kill()\n"
        "    renamed.append(rename(*paths))\n"
        "if sys.argv[2] == 'renaming': publish.os.rename = once\n"
        f"remove_patient(sys.argv[1], patient_id={WHO!r}, progress=progress)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(index), at],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.returncode == -signal.SIGKILL, run.stderr


@pytest.mark.parametrize("at", ["copying", "renaming", "deleting", "done"])
def test_killed_in_the_middle(tmp_path: Path, at: str) -> None:
    old = run(some_cases(), tmp_path / "old")
    before = contents(old)
    secrets = [WHO.encode(), *traces(old, ["volume-002", "volume-003"])]
    killed(old, at)
    if at == "copying":
        assert contents(old) == before
    elif at == "renaming":
        assert contents(tmp_path / ".old.old") == before
    else:
        assert read_manifest(old).counts.volumes == 4
    if at in ("deleting", "done"):
        with pytest.raises(UsageError, match="nothing is left to do"):
            remove(old, None, patient_id=WHO)
    else:
        remove(old, None, patient_id=WHO)
    assert_no_trace(tmp_path, secrets)
    clear_leftovers(old)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert read_manifest(old).counts.volumes == 4
    assert json.loads((old / "manifest.json").read_text())["changes"][0]["removed"] == 2


def test_patients_of_one_volume(tmp_path: Path) -> None:
    """As another program may write it: two patients share a volume."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from index_fakes import rehash

    old = run(some_cases(2), tmp_path / "old")
    path = old / "slices" / "slices-00000.parquet"
    table = pq.read_table(path)
    names = pa.array(["a" * 16] * 2 + ["b" * 16] * 4)
    column = table.schema.get_field_index("patient_id")
    pq.write_table(table.set_column(column, table.schema.field("patient_id"), names), path)
    edit_manifest(old, lambda data: data["counts"].update(patients=2))
    rehash(old)
    new = remove(old, tmp_path / "new", pseudonym="a" * 16)
    manifest = read_manifest(new)
    assert manifest.changes[0].removed == 1
    assert (manifest.counts.volumes, manifest.counts.slices) == (2, 4)
    assert_no_trace(new, [b"a" * 16])
