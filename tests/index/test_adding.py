"""Embedders that come to an index and leave it: what is written, and what a kill leaves behind."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
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

from medretrieval.errors import Cancelled, IndexFormatError, MedRetrievalError, UsageError
from medretrieval.index import (
    Case,
    add_embedder,
    build,
    drop_embedder,
    open_store,
    reembedding,
)
from medretrieval.index import store as store_module
from medretrieval.index.changes import Change
from medretrieval.index.in_place import changing
from medretrieval.index.manifest import read_manifest

DAY = "2026-11-28"
FILE = "embeddings/second.safetensors"


def second(**options: Any) -> FakeEmbedder:
    return FakeEmbedder(**{"name": "second", "seed": 8, "dim": 7, **options})


def cases_of(count: int, **options: Any) -> list[Case]:
    return [make_case(n, depth=1 + n % 5, color=n % 3 == 1, **options) for n in range(count)]


def run(cases: list[Case], out: Path, **options: Any) -> Path:
    options = {"embedder": FakeEmbedder(), "slices": POLICY, "name": "test", **options}
    return build(cases, out, **options)


def add(index: Path, **options: Any) -> Path:
    return add_embedder(index, **{"embedder": second(), "day": DAY, **options})


def shown(folder: Path) -> dict[str, bytes]:
    """All files of a folder but hidden ones."""
    return {
        name: data
        for name, data in contents(folder).items()
        if not any(part.startswith(".") for part in name.split("/"))
    }


# What is written


@pytest.mark.parametrize("crop", ["none", "body"])
@pytest.mark.parametrize(("kind", "float16", "batch"), [("flat", False, 4), ("hnsw", True, 7)])
def test_embeddings_are_those_of_a_build(
    tmp_path: Path, crop: str, kind: str, float16: bool, batch: int
) -> None:
    cases = cases_of(8)
    options: dict[str, Any] = {"slices": replace(POLICY, crop=crop), "index_kind": kind}
    builder, adder = second(batch_size=batch), second(batch_size=batch)
    expected = run(cases, tmp_path / "b", embedder=builder, float16=float16, **options)
    index = run(cases, tmp_path / "a", **options)
    before = shown(index)
    assert add(index, embedder=adder, float16=float16) == index
    assert adder.batches == builder.batches
    for ours, theirs in zip(adder.pictures, builder.pictures, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = contents(index), contents(expected)
    assert ours[FILE] == theirs["embeddings/embeddings.safetensors"]
    assert ours.get("index-second.faiss") == theirs.get("index.faiss")
    own, alone = read_manifest(index).sets["second"], read_manifest(expected)
    assert own.recall == alone.recall
    assert own.index_parameters == alone.index_parameters
    assert own.dtype == alone.dtype == ("float16" if float16 else "float32")
    # Nothing else changed, and nothing is left over.
    changed = {"manifest.json", "README.md", FILE, "index-second.faiss"} & ours.keys()
    assert {name for name in ours if ours[name] != before.get(name)} == changed


def test_the_bundled_embedder_gives_the_same_bits(tmp_path: Path) -> None:
    from medretrieval.embedders import load_embedder

    cases = [make_case(n, depth=3, color=n == 1) for n in range(3)]
    embedder = load_embedder("efficientnet-lite0")
    expected = run(cases, tmp_path / "b", embedder=embedder)
    index = add_embedder(run(cases, tmp_path / "a"), embedder=embedder)
    with open_store(index, embedder="efficientnet-lite0") as a, open_store(expected) as b:
        np.testing.assert_array_equal(a.embeddings, b.embeddings)


def test_the_addition_is_a_new_version(tmp_path: Path) -> None:
    index = run(cases_of(2), tmp_path / "i")
    add(index, note="for comparison")
    add(index, embedder=FakeEmbedder(name="third", seed=9))
    manifest = read_manifest(index)
    assert manifest.version == 3
    first, last = manifest.changes
    assert first == Change(
        version=2, date=DAY, volumes=0, slices=0, embedder="second", note="for comparison"
    )
    data = json.loads((index / "manifest.json").read_text())
    assert data["changes"][1] == last.to_json()
    assert "removed" not in data["changes"][1]
    assert list(manifest.sets) == ["fake", "second", "third"]
    with open_store(index, verify="full") as store:
        assert store.manifest == manifest


@pytest.mark.parametrize("change", [{"volumes": -1}, {"dropped": 3}, {"dropped": ""}])
def test_impossible_changes_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    index = add(run(cases_of(1), tmp_path / "i"))
    edit_manifest(index, lambda data: data["changes"][0].update(change))
    with pytest.raises(IndexFormatError, match=next(iter(change))):
        read_manifest(index)


def test_names_that_make_one_file_name(tmp_path: Path) -> None:
    index = run(cases_of(2), tmp_path / "i", index_kind="hnsw")
    for number, name in enumerate(("a:b", "a/b", "A-B", "embeddings")):
        add(index, embedder=second(name=name, seed=20 + number))
    sets = read_manifest(index).sets
    assert [entry.embeddings_file for entry in sets.values()][1:] == [
        "embeddings/a-b.safetensors",
        "embeddings/a-b-2.safetensors",
        "embeddings/A-B-3.safetensors",
        "embeddings/embeddings-2.safetensors",
    ]
    for name, entry in sets.items():
        with open_store(index, embedder=name) as store:
            assert store.manifest.embedder == entry.embedder
            store.neighbours(store.embeddings[:1], 1)


def test_the_kind_of_search_is_that_of_the_first_or_as_asked(tmp_path: Path) -> None:
    index = run(cases_of(3), tmp_path / "i", index_kind="auto")
    add(index)
    add(index, embedder=FakeEmbedder(name="third", seed=9), index_kind="hnsw")
    sets = read_manifest(index).sets
    assert sets["second"].index_reason is not None
    assert sets["second"].index_request == sets["fake"].index_request
    assert sets["third"].index_kind == "hnsw"
    with pytest.raises(UsageError, match="efSerch"):
        add(index, embedder=second(name="x"), index_kind="hnsw", index_parameters={"efSerch": 3})
    assert list(read_manifest(index).sets) == ["fake", "second", "third"]


def test_pictures_are_read_group_by_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medretrieval.index.table.GROUP_ROWS", 2)
    index = run(cases_of(5), tmp_path / "i", shard_bytes=1)
    assert len(list((index / "slices").iterdir())) > 2
    embedder = second(batch_size=3)
    add(index, embedder=embedder)
    with open_store(index) as store:
        assert sum(embedder.batches) == len(store)
        for row, picture in enumerate(embedder.pictures):
            np.testing.assert_array_equal(picture, store.image(row))


# What is refused


def test_what_is_refused(tmp_path: Path) -> None:
    index = add(run(cases_of(1), tmp_path / "i"))
    before = contents(index)
    volumes = run(cases_of(1), tmp_path / "v", embedder=FakeVolumeEmbedder())
    refused: list[tuple[Path, Any, str]] = [
        (index, second(), "second already.*drop-embedder"),
        (index, FakeEmbedder(), "fake already"),
        (index, FakeVolumeEmbedder(), "whole volumes"),
        (volumes, second(), "whole volumes"),
        (index, FakeVolumeEmbedder(unit=None), "no embed_batch"),
    ]
    for path, embedder, message in refused:
        with pytest.raises(UsageError, match=message):
            add(path, embedder=embedder)
    with pytest.raises(UsageError, match="note"):
        add(index, embedder=second(name="x"), note="a\nb")
    with pytest.raises(UsageError, match="another process"), changing(index):
        add(index, embedder=second(name="x"))
    assert contents(index) == before
    edit_manifest(index, lambda data: data.update(withheld="no copies"))
    with pytest.raises(UsageError, match="no pictures"):
        add(index, embedder=second(name="x"))
    with pytest.raises(IndexFormatError, match="does not exist"):
        add(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_an_index_has_at_most_so_many_embedders(tmp_path: Path) -> None:
    index = run(cases_of(1), tmp_path / "i")

    def fill(data: dict[str, Any]) -> None:
        for number in range(64):
            entry = {key: data[key] for key in ("dim", "dtype", "metric", "normalised", "index")}
            name = f"e{number}"
            data.setdefault("embedders", {})[name] = {
                **entry,
                "embedder": {**data["embedder"], "name": name},
                "embeddings": f"embeddings/{name}.safetensors",
                "faiss": f"index-{name}.faiss",
            }
            data["files"][f"embeddings/{name}.safetensors"] = {"bytes": 1, "sha256": "0" * 64}

    edit_manifest(index, fill)
    with pytest.raises(UsageError, match="65 embedders"):
        add(index)


def test_an_embedder_that_gives_no_unit_vector_cannot_be_added(tmp_path: Path) -> None:
    index = run(cases_of(4), tmp_path / "i")
    before = contents(index)

    def half(vectors: Any) -> Any:
        return vectors * np.where(np.arange(len(vectors)) == 2, 0.5, 1)[:, None]

    for change, message in (
        (half, r"second gives no .*0\.5.* slice 1 of volume-001"),
        (lambda vectors: vectors[:, 1:], "shape"),
        (lambda vectors: vectors * np.nan, "nan"),
    ):
        with pytest.raises(MedRetrievalError, match=message):
            add(index, embedder=second(change=change))
    assert contents(index) == before


def test_a_damaged_index_is_not_added_to(tmp_path: Path) -> None:
    index = run(cases_of(2), tmp_path / "i")
    path = next((index / "slices").iterdir())
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 9] ^= 1
    path.write_bytes(data)
    before = contents(index)
    with pytest.raises(IndexFormatError, match="sha256"):
        add(index)
    assert contents(index) == before


def test_the_card_may_be_missing(tmp_path: Path) -> None:
    index = run(cases_of(1), tmp_path / "i")
    (index / "README.md").unlink()
    open_store(index, verify="full").close()
    add(index)
    assert (index / "README.md").exists()
    (index / "README.md").write_text("something else")
    with pytest.raises(IndexFormatError, match=r"README\.md"):
        open_store(index)


# Interruptions


def test_an_interrupted_call_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases = cases_of(8)
    index, whole = (run(cases, tmp_path / name) for name in ("a", "b"))
    before = shown(index)

    def fail(batch: int) -> None:
        if batch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(index, embedder=second(before=fail))
    assert shown(index) == before
    open_store(index).close()
    # Another one in between neither uses what is done nor takes it away.
    add(index, embedder=FakeEmbedder(name="third", seed=9))
    embedder = second()
    add(index, embedder=embedder)
    add(whole, embedder=FakeEmbedder(name="third", seed=9))
    add(whole)
    assert sum(embedder.batches) == read_manifest(index).counts.slices - 12
    assert contents(index) == contents(whole)


def test_cancelling_keeps_what_is_done(tmp_path: Path) -> None:
    index, whole = (run(cases_of(4), tmp_path / name) for name in ("a", "b"))

    def stop(done: int, total: int, message: str) -> None:
        if done >= 4:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        add(index, progress=stop)
    embedder = second()
    add(index, embedder=embedder)
    with open_store(index) as store:
        assert sum(embedder.batches) == len(store) - 4
    assert contents(index) == contents(add(whole))


@pytest.mark.parametrize("what", ["revision", "dtype", "pictures"])
def test_other_settings_begin_anew(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    cases = cases_of(5)
    index = run(cases, tmp_path / "i")

    def fail(batch: int) -> None:
        if batch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(index, embedder=second(before=fail))
    rest: dict[str, Any] = {}
    if what == "revision":
        rest["embedder"] = second(revision="2", seed=12)
    elif what == "dtype":
        rest["float16"] = True
    else:
        kept = {p.name: p for p in index.iterdir() if p.name.startswith(".adding")}
        aside = tmp_path / "aside"
        aside.mkdir()
        for name, path in kept.items():
            path.rename(aside / name)
        shutil.rmtree(index)
        run([make_case(50 + n, depth=1 + n % 5) for n in range(5)], index)
        for name in kept:
            (aside / name).rename(index / name)
    embedder = rest.pop("embedder", second())
    with caplog.at_level(logging.WARNING):
        add(index, embedder=embedder, **rest)
    assert "starting anew" in caplog.text
    with open_store(index, embedder="second") as store:
        assert sum(embedder.batches) == len(store)


def test_rows_of_other_settings_are_never_taken_for_those_of_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, whole = (run(cases_of(5), tmp_path / name) for name in ("a", "b"))

    def fail(batch: int) -> None:
        if batch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add(index, embedder=second(before=fail))
    with monkeypatch.context() as killed:
        # As after a kill of a run with other weights that has noted nothing yet.
        killed.setattr(reembedding.PartialEmbeddings, "save", lambda *_: None)
        killed.setattr(reembedding.PartialEmbeddings, "close", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            add(index, embedder=second(seed=12, before=fail))
    add(index)
    assert contents(index) == contents(add(whole))


def test_a_cut_or_foreign_file_of_unfinished_embeddings_begins_anew(tmp_path: Path) -> None:
    indexes = [run(cases_of(5), tmp_path / str(n)) for n in range(3)]

    def fail(batch: int) -> None:
        if batch == 2:
            raise KeyboardInterrupt

    for index in indexes[:2]:
        with pytest.raises(KeyboardInterrupt):
            add(index, embedder=second(before=fail))
    cut = indexes[0] / ".adding-second" / "embeddings.safetensors"
    cut.write_bytes(cut.read_bytes()[:200])
    (indexes[1] / ".adding-second" / "done.json").write_text("[")
    assert (
        len({json.dumps(sorted(map(str, contents(add(index)).items()))) for index in indexes}) == 1
    )


KILLER = """
import os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from index_fakes import *
from medretrieval.index import add_embedder, drop_embedder, reembedding
reembedding._SAVE_SECONDS = 0
source, folder, what = map(Path, sys.argv[2:5])

def change(index):
    if what.name == "add":
        second = FakeEmbedder(name="second", seed=8, dim=7)
        add_embedder(index, embedder=second, day="2026-11-28")
    else:
        drop_embedder(index, what.name, day="2026-11-28")

def kill_at(step):
    def wrapped(call):
        def counted(*args, **kwargs):
            global left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return call(*args, **kwargs)
        return counted
    global left
    left = step
    for name in ("replace", "unlink", "fsync", "mkdir", "rmdir"):
        setattr(os, name, wrapped(getattr(os, name)))

step = 0
while True:
    index = shutil.copytree(source, folder / str(step))
    child = os.fork()
    if child == 0:
        kill_at(step)
        change(index)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    step += 1
print(step)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("what", ["add", "fake", "second"])
def test_a_kill_at_any_moment_leaves_a_valid_index(tmp_path: Path, what: str) -> None:
    """Killed before each of the calls that change the folder, then opened, then called again."""
    source = run(cases_of(4), tmp_path / "source", index_kind="hnsw")
    if what != "add":
        add(source)
    before = read_manifest(source)
    folder = tmp_path / "killed"
    folder.mkdir()
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", KILLER, here, str(source), str(folder), what],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    steps = int(done.stdout)
    assert steps > 10
    expected = contents(folder / str(steps))
    rows = before.counts.slices
    versions = []
    for step in range(steps):
        index = folder / str(step)
        with open_store(index, verify="full") as store:
            manifest = store.manifest
            assert len(store) == rows
            store.neighbours(store.embeddings[:1], 1)
        versions.append(manifest.version)
        finished = manifest.version == before.version + 1 and (
            what != "add" or (index / FILE).exists()
        )
        try:
            if what == "add":
                embedder = second()
                add(index, embedder=embedder)
                assert sum(embedder.batches) <= rows
            else:
                drop_embedder(index, what, day=DAY)
        except UsageError:
            assert finished
        else:
            assert not finished
        files = contents(index) if not finished else shown(index)
        if what != "add" and finished:
            # Only the card can be missing.
            files.setdefault("README.md", expected["README.md"])
        assert files == expected
    assert set(versions) == {before.version, before.version + 1}


@pytest.mark.parametrize("batch", [1, 3])
def test_a_killed_run_loses_no_more_than_a_batch(tmp_path: Path, batch: int) -> None:
    index, whole = (run(cases_of(6), tmp_path / name) for name in ("a", "b"))
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from index_fakes import *;"
        "from medretrieval.index import add_embedder, reembedding;"
        "reembedding._SAVE_SECONDS = 0;"
        "add_embedder(sys.argv[2], embedder=FakeEmbedder("
        "name='second', seed=8, dim=7, before=kill_at(int(sys.argv[3]))))"
    )
    here = str(Path(__file__).parent)
    killed = subprocess.run(
        [sys.executable, "-c", script, here, str(index), str(batch)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    embedder = second()
    add(index, embedder=embedder)
    assert sum(embedder.batches) == read_manifest(index).counts.slices - 4 * batch
    assert contents(index) == contents(add(whole))


def test_opening_while_an_embedder_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = run(cases_of(2), tmp_path / "i")
    check, calls = store_module.check_files, []

    def late(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            with monkeypatch.context() as inside:
                inside.setattr(store_module, "check_files", check)
                add(index)  # after the manifest was read
        return check(*arguments, **more)

    monkeypatch.setattr(store_module, "check_files", late)
    with open_store(index) as store:
        assert list(store.manifest.sets) == ["fake", "second"]
    assert len(calls) == 2


# Leaving


@pytest.mark.parametrize("name", ["fake", "second"])
def test_an_embedder_is_taken_out(tmp_path: Path, name: str) -> None:
    cases = cases_of(4)
    index = add(run(cases, tmp_path / "i", index_kind="hnsw"))
    (left,) = {"fake", "second"} - {name}
    with open_store(index, embedder=left) as store:
        expected = np.array(store.embeddings)
    assert drop_embedder(index, name, day=DAY) == index
    with open_store(index, verify="full") as store:
        np.testing.assert_array_equal(store.embeddings, expected)
        assert store.manifest.embedder.name == left
        assert not store.manifest.others
        assert store.info()["stored_faiss_index"]
        change = store.manifest.changes[-1]
        assert change == Change(version=3, date=DAY, dropped=name)
    assert len(list((index / "embeddings").iterdir())) == 1
    assert len(list(index.glob("*.faiss"))) == 1
    with pytest.raises(UsageError, match="no other embeddings"):
        drop_embedder(index, left)
    with pytest.raises(UsageError, match="unknown embedder"):
        drop_embedder(index, "nobody")
    with pytest.raises(UsageError, match="another process"), changing(index):
        drop_embedder(index, left)
    # It can come back, and cases can be added by what is left.
    back = FakeEmbedder() if name == "fake" else second()
    add(index, embedder=back)
    assert list(read_manifest(index).sets) == [left, name]


def test_the_only_embeddings_that_are_here_stay(tmp_path: Path) -> None:
    index = add(run(cases_of(2), tmp_path / "i"))
    (index / FILE).unlink()
    with pytest.raises(UsageError, match="no other embeddings"):
        drop_embedder(index, "fake")
    drop_embedder(index, "second")
    assert list(read_manifest(index).sets) == ["fake"]


def test_missing_embeddings_are_not_made_by_another_network_of_that_name(tmp_path: Path) -> None:
    index = add(run(cases_of(2), tmp_path / "i"), float16=True)
    (index / FILE).unlink()
    with pytest.raises(UsageError, match="another second"):
        add(index, embedder=second(seed=12))
    before = read_manifest(index)
    add(index)  # as they were: at half precision, and no further version
    assert read_manifest(index) == before
