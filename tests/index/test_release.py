"""What of an index is published, and what is not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hub.client import LocalHub
from index_fakes import FakeEmbedder, contents, edit_manifest, make_case, rehash
from sharing import (
    CARD,
    COLUMNS,
    EMBEDDINGS,
    MANIFEST,
    PNG,
    REPO,
    SHARD,
    OtherEmbedder,
    assert_same,
    hits,
    make_index,
)

from medretrieval.errors import IndexFormatError, UsageError
from medretrieval.index import add_embedder, append
from medretrieval.index.opening import open_named
from medretrieval.index.pull import pull
from medretrieval.index.push import push
from medretrieval.index.release import Release, make_release
from medretrieval.index.sources import SOURCES
from medretrieval.index.store import open_store

FORBIDDEN = next(s.title for s in SOURCES.values() if s.images == "forbidden")
UNCLEAR = next(s.title for s in SOURCES.values() if s.images == "unknown")
TABLE = "embeddings/embeddings.parquet"
FAISS = "index.faiss"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return make_index(tmp_path / "hearts", shard_rows=5)


def release(index: Path, folder: Path, **options: Any) -> Release:
    folder.mkdir()
    return make_release(index, folder, repo=REPO, **options)


def test_a_release_is_the_index_and_what_others_need(index: Path, tmp_path: Path) -> None:
    before = contents(index)
    done = release(index, tmp_path / "release")
    assert contents(index) == before
    found = contents(done.folder)
    assert set(found) == {*before, COLUMNS, TABLE, FAISS}
    kept = set(before) - {CARD, MANIFEST}
    assert {name: found[name] for name in kept} == {name: before[name] for name in kept}
    assert set(done.manifest.files) == set(found) - {MANIFEST}
    assert done.withheld is None
    with open_store(done.folder, verify="full") as theirs, open_store(index) as ours:
        assert_same(theirs, ours)
    assert hits(done.folder) == hits(index)


def test_a_release_is_the_same_every_time(index: Path, tmp_path: Path) -> None:
    a = contents(release(index, tmp_path / "a").folder)
    b = contents(release(tmp_path / "a", tmp_path / "b").folder)
    assert a == b
    without = release(tmp_path / "a", tmp_path / "c", tables=False)
    assert set(a) - set(contents(without.folder)) == {TABLE}


def test_tables_are_the_embeddings(index: Path, tmp_path: Path) -> None:
    import faiss

    add_embedder(index, embedder=OtherEmbedder(), float16=True)
    folder = release(index, tmp_path / "release").folder
    for name, table, file in (
        ("fake", TABLE, FAISS),
        ("other", "embeddings/other.parquet", "index-other.faiss"),
    ):
        with open_store(index, embedder=name) as store:
            vectors = np.array(store.embeddings)
        read = pq.read_table(folder / table)
        assert read.column("row_id").to_pylist() == list(range(12))
        np.testing.assert_array_equal(np.stack(read.column("embedding").to_numpy()), vectors)
        found = faiss.read_index(str(folder / file))
        assert (found.ntotal, found.metric_type) == (12, faiss.METRIC_INNER_PRODUCT)
        np.testing.assert_array_equal(found.reconstruct_n(0, 12), vectors)


def test_an_approximate_index_keeps_its_structure(tmp_path: Path) -> None:
    index = make_index(tmp_path / "index", index_kind="hnsw")
    assert contents(release(index, tmp_path / "a").folder)[FAISS] == contents(index)[FAISS]
    (index / FAISS).unlink()  # as somebody has it who pulled the index
    folder = release(index, tmp_path / "b").folder
    with open_store(folder) as store:
        assert store.info()["stored_faiss_index"] is True
        store.searcher()
    assert not contents(release(index, tmp_path / "c", tables=False).folder).keys() & {FAISS}


# Whether pictures go along


def without_pictures(folder: Path, index: Path) -> None:
    """No picture is in any file, and all else is as it was."""
    assert not [name for name, content in contents(folder).items() if PNG in content]
    assert not [name for name in contents(folder) if name.startswith("memories")]
    with open_store(folder, verify="full") as theirs, open_store(index) as ours:
        assert theirs.manifest.pictures is False
        assert theirs.manifest.counts.annotated_slices == 0
        assert not theirs.annotated.any()
        np.testing.assert_array_equal(theirs.embeddings, ours.embeddings)
        np.testing.assert_array_equal(theirs.position_mm, ours.position_mm)
        np.testing.assert_array_equal(theirs.spacing, ours.spacing)
        np.testing.assert_array_equal(theirs.slice_index, ours.slice_index)
        assert theirs.volume_ids == ours.volume_ids
        assert list(theirs.labels) == list(ours.labels)
        assert theirs.patient.names == ours.patient.names
        for row in range(len(ours)):
            assert not theirs.has_mask(row)
            assert not theirs.has_image(row)
            assert theirs.mask(row) is None
            with pytest.raises(UsageError, match="has no pictures"):
                theirs.image(row)
    assert hits(folder, pictures=False) == hits(index, pictures=False)


def add_memories(index: Path) -> None:
    from safetensors.numpy import save_file

    name = "memories/sam-0123456789ab-00000.safetensors"
    (index / "memories").mkdir()
    save_file({"x": np.zeros(3, np.float16)}, index / name, metadata={"memories": "1"})
    edit_manifest(index, lambda data: data["files"].update({name: {}}))
    rehash(index)


@pytest.mark.parametrize("source", [f"{FORBIDDEN} and our own", FORBIDDEN])
@pytest.mark.parametrize("license", ["cc-by-4.0", "unknown"])
def test_pictures_of_a_forbidden_source(tmp_path: Path, source: str, license: str) -> None:
    index = make_index(tmp_path / "index", shard_rows=5, source=source, license=license)
    add_memories(index)
    done = release(index, tmp_path / "release")
    assert done.withheld is not None
    assert FORBIDDEN in done.withheld
    without_pictures(done.folder, index)
    with pytest.raises(UsageError, match=r"cannot be published.*--no-images"):
        release(index, tmp_path / "b", images=True)
    assert contents(tmp_path / "b") == {}


def test_pictures_that_are_not_wanted(index: Path, tmp_path: Path) -> None:
    add_memories(index)
    done = release(index, tmp_path / "release", images=False)
    assert done.withheld == "its publisher chose so"
    without_pictures(done.folder, index)
    again = release(done.folder, tmp_path / "again")
    assert again.withheld == "its publisher chose so"
    assert contents(again.folder) == contents(done.folder)
    with pytest.raises(UsageError, match="no images that could be published"):
        release(done.folder, tmp_path / "x", images=True)


def test_memories_go_along_with_the_pictures(index: Path, tmp_path: Path) -> None:
    add_memories(index)
    done = release(index, tmp_path / "release")
    assert [name for name in done.manifest.files if name.startswith("memories")]


@pytest.mark.parametrize(
    ("source", "license"),
    [("our own", "unknown"), (UNCLEAR, "cc-by-4.0"), ("our own", "cc-by-nd-4.0"), ("x", "custom")],
)
def test_unclear_terms_are_asked_for(tmp_path: Path, source: str, license: str) -> None:
    index = make_index(tmp_path / "index", source=source, license=license)
    with pytest.raises(UsageError, match=r"is not known.*--images if you.*--no-images"):
        release(index, tmp_path / "a")
    assert release(index, tmp_path / "b", images=True).withheld is None
    assert release(index, tmp_path / "c", images=False).withheld is not None


def test_forbidden_pictures_never_reach_the_hub(hub: LocalHub, tmp_path: Path) -> None:
    index = make_index(tmp_path / "index", source=FORBIDDEN)
    done = push(index, REPO)
    assert done.withheld is not None
    assert not [key for key, data in hub.repo(REPO).contents.items() if PNG in data]
    without_pictures(pull(REPO, tmp_path / "out"), index)
    assert hits(REPO) == hits(REPO, pictures=True)
    with open_named(REPO) as store, pytest.raises(UsageError, match="has no pictures"):
        store.image(0)
    hub.reset_log()
    with pytest.raises(UsageError, match="cannot be published"):
        push(index, "lab/other", images=True)
    assert hub.requests() == []


# What is no index to publish


@pytest.mark.parametrize("name", ["notes.txt", "slices/more.parquet", "patients.csv"])
def test_a_file_that_is_not_listed(index: Path, tmp_path: Path, name: str) -> None:
    (index / name).write_bytes(b"Anna Mueller")
    with pytest.raises(IndexFormatError, match=f"{name} is not listed"):
        release(index, tmp_path / "release")


def test_hidden_files_stay_here(index: Path, tmp_path: Path) -> None:
    (index / ".notes").write_text("Anna Mueller")
    (index / ".git").mkdir()
    (index / ".git" / "config").write_text("secret")
    (index / "other.faiss").write_bytes(b"x")
    found = contents(release(index, tmp_path / "release").folder)
    assert not [name for name in found if "." in name.split("/")[0][:1]]
    assert "other.faiss" not in found


@pytest.mark.parametrize("name", [EMBEDDINGS, SHARD, CARD, FAISS])
def test_a_damaged_index(tmp_path: Path, name: str) -> None:
    index = make_index(tmp_path / "index", index_kind="hnsw")
    with open_store(index):
        pass  # what was found right before is looked at again
    content = bytearray((index / name).read_bytes())
    content[len(content) // 2] ^= 1
    state = os.stat(index / name)
    (index / name).write_bytes(bytes(content))
    os.utime(index / name, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(IndexFormatError, match=name):
        release(index, tmp_path / "release")


def test_embeddings_of_another_embedder_that_are_no_directions(index: Path, tmp_path: Path) -> None:
    add_embedder(index, embedder=OtherEmbedder())
    path = index / "embeddings/other.safetensors"
    content = bytearray(path.read_bytes())
    content[-4 * 12 :] = bytes(4 * 12)
    path.write_bytes(bytes(content))
    rehash(index)
    with pytest.raises(IndexFormatError, match="not a unit vector"):
        release(index, tmp_path / "release")


# The card


@pytest.mark.parametrize("gate", [None, "auto", "manual"])
def test_the_card_asks_at_the_gate(index: Path, tmp_path: Path, gate: Any) -> None:
    folder = release(index, tmp_path / "release", gate=lambda: gate).folder
    _, head, text = (folder / CARD).read_text().split("---\n", 2)
    front = yaml.safe_load(head)
    assert front["license"] == "cc-by-4.0"
    assert text.strip()
    asked = front.get("extra_gated_fields")
    if gate is None:
        assert not [key for key in front if key.startswith("extra_gated")]
    else:
        assert len(asked) == 8
        assert {"text", "country", "checkbox"} == set(asked.values())
        assert "research only" in front["extra_gated_prompt"]
        assert front["extra_gated_heading"]


def test_columns_of_a_release_are_those_of_its_shards(index: Path, tmp_path: Path) -> None:
    new = append(index, tmp_path / "new", [make_case(8)], embedder=FakeEmbedder())
    folder = release(new, tmp_path / "release").folder
    shards = sorted((folder / "slices").iterdir())
    read = pq.read_table(folder / COLUMNS)
    assert read.column("shard").to_pylist() == [
        number for number, path in enumerate(shards) for _ in range(pq.read_metadata(path).num_rows)
    ]
    assert json.loads((folder / MANIFEST).read_text())["schema_version"] == 2
    assert "image" not in read.column_names
