"""Memories in the index: computed once, used by themselves, never trusted."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

from medretrieval.errors import IndexFormatError, UsageError
from medretrieval.index import Case, append, build, memory_files, merge, open_store, open_stores
from medretrieval.index.manifest import MANIFEST, read_manifest
from medretrieval.pipeline import segment
from medretrieval.retrieval.engine import Index
from medretrieval.segmentation import memories
from medretrieval.segmentation.encodings import RecentEncodings
from medretrieval.segmentation.memories import remember_index
from medretrieval.segmentation.segmenter import Segmenter
from medretrieval.segmentation.stored import StoredMemories, use_stored
from medretrieval.types import EmbedderIdentity, Grid, LabelVolume, SlicePolicy, Volume

GRID = Grid(shape=(64, 64, 3), affine=np.diag([-1.0, -1.0, 5.0, 1.0]))
PLAIN: Any = {"crop": "none", "closer": False, "flips": False}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRETRIEVAL_CACHE", str(tmp_path_factory.mktemp("cache")))


class Embedder:
    """The mean of each quarter of a picture."""

    identity = EmbedderIdentity(
        name="quarters",
        weights="none",
        revision="1",
        weights_sha256="0" * 64,
        preprocessing={},
        pooling="mean",
        dim=4,
    )

    def embed_batch(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        quarters = np.stack([i.reshape(2, 32, 2, 32).mean(axis=(1, 3)).ravel() for i in images])
        return (quarters / np.linalg.norm(quarters, axis=1, keepdims=True)).astype(np.float32)


def make_case(toys: Any, number: int) -> Case:
    """Three slices: with all labels, without any, and with all but the third."""
    pictures = [toys.picture(10 * number + n) for n in range(3)]
    images = np.stack([image for image, _ in pictures], axis=-1).swapaxes(0, 1)
    masks = np.stack([mask for _, mask in pictures], axis=-1).swapaxes(0, 1)
    masks[:, :, 1] = 0
    masks[:, :, 2][masks[:, :, 2] == 3] = 0
    names = {value: f"label {value}" for value in (1, 2, 3)}

    def load() -> tuple[Volume, LabelVolume]:
        labels = LabelVolume(voxels=masks, grid=GRID, names=names)
        return Volume(voxels=images, grid=GRID), labels

    return Case(volume_id=f"v{number}", patient_id=f"p{number}", label_names=names, load=load)


def replace_names(case: Case, names: dict[int, str]) -> Case:
    volume, labels = case.load()
    assert labels is not None
    labels = dataclasses.replace(labels, names=names)
    return dataclasses.replace(case, label_names=names, load=lambda: (volume, labels))


POLICY = SlicePolicy(axis="axial", window="identity")
# Of a case: three memories and none of absence, only absence, two and absence.
MEMORIES = 3 + 1 + 3


@pytest.fixture
def index(toys: Any, tmp_path: Path) -> Path:
    cases = [make_case(toys, n) for n in range(2)]
    options: dict[str, Any] = {"embedder": Embedder(), "slices": POLICY, "name": "toy"}
    return build(cases, tmp_path / "index", **options)


@pytest.fixture
def encoded(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures went through the image encoder, call by call."""
    calls: list[int] = []
    forward = segmenter.network.model.forward_image

    def count(batch: Any) -> Any:
        calls.append(len(batch))
        return forward(batch)

    monkeypatch.setattr(segmenter.network.model, "forward_image", count)
    return calls


def fresh(segmenter: Segmenter) -> Segmenter:
    """The same network with an empty cache."""
    return Segmenter(segmenter.network, segmenter.spec, options=segmenter.options)


def query(toys: Any) -> Volume:
    image = toys.picture(99)[0]
    return Volume(voxels=image.T[:, :, None], grid=dataclasses.replace(GRID, shape=(64, 64, 1)))


def segmented(path: Path, volume: Volume, segmenter: Segmenter, **options: Any) -> Any:
    with open_store(path) as store:
        index = Index(store, embedder=Embedder())
        return segment(
            index,
            volume,
            segmenter=segmenter,
            support_k=6,
            options={**PLAIN, **options},
        ).labels.voxels


def test_a_query_costs_one_encoding(
    toys: Any, index: Path, segmenter: Segmenter, encoded: list[int]
) -> None:
    expected = segmented(index, query(toys), fresh(segmenter))
    assert expected.any()
    encoded.clear()
    done = remember_index(index, segmenter)
    assert sum(encoded) == 6
    assert (done.slices, done.memories, done.computed) == (6, 2 * MEMORIES, 2 * MEMORIES)
    encoded.clear()
    found = segmented(index, query(toys), fresh(segmenter))
    assert sum(encoded) == 1
    # float16 moves few pixels, if any.
    assert (found != expected).mean() < 0.01


def test_what_was_computed_is_not_computed_again(
    index: Path, segmenter: Segmenter, encoded: list[int]
) -> None:
    first = remember_index(index, segmenter, labels=["label 1"])
    # Of the slices with label 1 one memory each, of the others one of absence.
    assert (first.memories, sum(encoded)) == (6, 6)
    second = remember_index(index, fresh(segmenter))
    assert second.computed == second.memories - 6
    encoded.clear()
    assert remember_index(index, fresh(segmenter)).computed == 0
    assert sum(encoded) == 0
    assert len(list((index / "memories").iterdir())) == 2
    assert not (index / ".memories").exists()


def test_an_interrupted_run_goes_on(
    index: Path, segmenter: Segmenter, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(segmenter.network), "pictures_at_once", 2)

    def stop(done: int, total: int, message: str) -> None:
        open_store(index).close()  # valid at any time
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remember_index(index, segmenter, progress=stop)
    assert sum(encoded) == 4
    open_store(index, verify="full").close()
    assert shard(index).stat().st_mode == (index / "manifest.json").stat().st_mode
    done = remember_index(index, fresh(segmenter))
    assert sum(encoded) == 6
    assert 0 < done.computed < done.memories == 2 * MEMORIES


def test_a_run_killed_before_its_file_appeared_leaves_a_whole_index(
    index: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = memory_files.os.replace

    def killed(source: Path, target: Path) -> None:
        if target.suffix == ".safetensors":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(memory_files.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            remember_index(index, segmenter)
    listed = [name for name in read_manifest(index).files if name.startswith("memories/")]
    assert len(listed) == 1
    with open_store(index, verify="full") as store:
        assert not len(StoredMemories(store, segmenter))
    assert remember_index(index, fresh(segmenter)).computed == 2 * MEMORIES
    assert [name for name in read_manifest(index).files if name.startswith("memories/")] == listed


def test_indexes_opened_together_use_their_own(
    toys: Any, index: Path, segmenter: Segmenter, encoded: list[int], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"embedder": Embedder(), "slices": POLICY, "name": "toy"}
    # The same values mean other structures here, so that masks are translated.
    renamed = replace_names(make_case(toys, 3), {1: "label 3", 2: "label 1", 3: "label 2"})
    other = build([renamed], tmp_path / "other", **options)
    for path in (index, other):
        remember_index(path, segmenter)
    encoded.clear()
    with open_stores([index, other]) as group:
        segment(
            Index(group, embedder=Embedder()),
            query(toys),
            segmenter=fresh(segmenter),
            support_k=9,
            options=PLAIN,
        )
    assert sum(encoded) == 1


def test_files_are_bounded(
    index: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(segmenter.network), "pictures_at_once", 1)
    monkeypatch.setattr(memories, "_FILE_SLICES", 2)
    remember_index(index, segmenter)
    with open_store(index) as store:
        names = sorted(StoredMemories(store, segmenter).files)
        (info,) = store.info()["memories"]
    assert [name.rpartition("-")[2] for name in names] == [f"{n:05d}.safetensors" for n in range(3)]
    assert info["memories"] == 2 * MEMORIES
    assert info["files"] == 3
    assert info["segmenter"] == "sam2-micro"
    with safe_open(index / names[0], framework="pt") as file:
        types = {file.get_slice(name).get_dtype() for name in file.keys()}
    assert types == {"F16", "BOOL"}


@pytest.mark.parametrize("crop", ["none", "body"])
@pytest.mark.parametrize("flips", [False, True])
def test_they_serve_the_crop_and_views_they_were_made_for(
    toys: Any, index: Path, segmenter: Segmenter, encoded: list[int], crop: Any, flips: bool
) -> None:
    remember_index(index, segmenter, crop=crop, flips=flips)
    encoded.clear()
    segmented(index, query(toys), fresh(segmenter), crop=crop, flips=flips)
    assert sum(encoded) == 1 + flips
    with pytest.raises(UsageError, match="beforehand"):
        remember_index(index, segmenter, crop="supports")  # type: ignore[arg-type]


def test_another_network_has_its_own(
    index: Path, segmenter: Segmenter, pointer_segmenter: Segmenter
) -> None:
    remember_index(index, segmenter)
    with open_store(index) as store:
        assert not StoredMemories(store, pointer_segmenter).files
        use_stored(store, pointer_segmenter)
        assert not pointer_segmenter.cache.sources
        use_stored(store, segmenter)
        (source,) = segmenter.cache.sources.values()
    with open_store(index) as store:
        use_stored(store, segmenter)
        assert list(segmenter.cache.sources.values()) == [source]
        use_stored(store, object())
    remember_index(index, pointer_segmenter)
    with open_store(index) as store:
        assert len(store.info()["memories"]) == 2
        use_stored(store, pointer_segmenter)
        assert len(pointer_segmenter.cache.sources) == 1


def test_only_the_index_in_use_is_asked(
    toys: Any, index: Path, segmenter: Segmenter, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"embedder": Embedder(), "slices": POLICY, "name": "toy"}
    other = build([make_case(toys, 3)], tmp_path / "other", **options)
    for path in (index, other):
        remember_index(path, segmenter)
        with open_store(path) as store:
            use_stored(store, segmenter)
        (name,) = segmenter.cache.sources
        assert name.startswith(f"{path} ")
    (other / MANIFEST).unlink()  # an open index goes on as it was
    use_stored(store, segmenter)
    assert list(segmenter.cache.sources) == [name]


def test_memories_that_are_added_while_an_index_is_open_are_used(
    toys: Any, index: Path, segmenter: Segmenter, encoded: list[int]
) -> None:
    with open_store(index) as store:
        use_stored(store, segmenter)
        assert not segmenter.cache.sources
        remember_index(index, fresh(segmenter))
        encoded.clear()
        found = Index(store, embedder=Embedder())
        options: dict[str, Any] = {"support_k": 6, "options": PLAIN}
        segment(found, query(toys), segmenter=fresh(segmenter), **options)
    assert sum(encoded) == 1


def test_memories_in_bfloat16_serve_in_bfloat16_alone(
    toys: Any, index: Path, segmenter: Segmenter, encoded: list[int]
) -> None:
    rough = fresh(segmenter)
    rough.network = copy.copy(segmenter.network)
    rough.network.precision = "bfloat16"
    rough._encode = RecentEncodings(rough.network.encode)
    remember_index(index, rough)
    for other, pictures in ((fresh(rough), 1), (fresh(segmenter), 7)):
        encoded.clear()
        segmented(index, query(toys), other)
        assert sum(encoded) == pictures
    # In float32 they are made anew, and then serve both.
    assert remember_index(index, fresh(segmenter)).computed == 2 * MEMORIES
    assert remember_index(index, fresh(rough)).computed == 0


def shard(index: Path) -> Path:
    (path,) = (index / "memories").iterdir()
    return path


def test_a_changed_file_is_refused_or_computed_again(
    toys: Any,
    index: Path,
    segmenter: Segmenter,
    encoded: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    remember_index(index, segmenter)
    path = shard(index)
    good = path.read_bytes()
    bad = bytearray(good)
    bad[-1] ^= 1
    store = open_store(index)
    path.write_bytes(bytes(bad))
    with pytest.raises(IndexFormatError, match="sha256"):
        open_store(index)
    # It was changed while the index was open.
    encoded.clear()
    with caplog.at_level(logging.WARNING):
        result = segment(
            Index(store, embedder=Embedder()),
            query(toys),
            segmenter=fresh(segmenter),
            support_k=6,
            options=PLAIN,
        )
    assert result.labels.voxels.any()
    assert "computed again" in caplog.text
    assert sum(encoded) == 7
    path.unlink()
    with open_store(index, verify="full") as without:
        assert "memories" not in without.info()
    assert remember_index(index, fresh(segmenter)).computed == 2 * MEMORIES
    (index / "memories" / "stray.safetensors").write_bytes(good)
    with pytest.raises(IndexFormatError, match="not listed"):
        open_store(index)


def test_a_memory_of_another_size_is_not_read(
    index: Path, segmenter: Segmenter, caplog: pytest.LogCaptureFixture
) -> None:
    remember_index(index, segmenter)
    with open_store(index) as store:
        stored = StoredMemories(store, segmenter)
        with safe_open(shard(index), framework="pt") as file:
            key = next(iter(file.keys())).partition(".")[0]
        assert key in stored
        assert stored.get(key) is not None
        assert stored.get("0" * 64) is None
        stored = StoredMemories(store, segmenter)
        stored._shapes = {name: (*shape, 1) for name, shape in stored._shapes.items()}
        with caplog.at_level(logging.WARNING):
            assert stored.get(key) is None
        assert "the network makes" in caplog.text


def test_they_go_along_into_new_versions_and_merges(
    toys: Any, index: Path, segmenter: Segmenter, encoded: list[int], tmp_path: Path
) -> None:
    remember_index(index, segmenter)
    new = append(index, tmp_path / "new", [make_case(toys, 5)], embedder=Embedder())
    encoded.clear()
    assert remember_index(new, fresh(segmenter)).computed == MEMORIES
    assert sum(encoded) == 3
    merged = merge([new], tmp_path / "merged")
    with open_store(merged) as store:
        assert store.info()["memories"][0]["memories"] == 3 * MEMORIES
    assert remember_index(merged, fresh(segmenter)).computed == 0
    again = [dataclasses.replace(make_case(toys, 7), volume_id="v5")]
    newer = append(new, tmp_path / "newer", again, embedder=Embedder(), replace=True)
    assert not (newer / "memories").exists()


def test_what_is_refused(toys: Any, index: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="label"):
        remember_index(index, segmenter, labels=["liver"])

    def again(done: int, total: int, message: str) -> None:
        remember_index(index, segmenter)

    with pytest.raises(UsageError, match="another process"):
        remember_index(index, segmenter, progress=again)
    case = make_case(toys, 0)
    bare = dataclasses.replace(case, load=lambda: (case.load()[0], None), label_names={})
    empty = build([bare], tmp_path / "e", embedder=Embedder(), slices=POLICY, name="e")
    with pytest.raises(UsageError, match="no annotated slices"):
        remember_index(empty, segmenter)
    assert json.loads((empty / "manifest.json").read_text())["files"].keys() == set(
        read_manifest(empty).files
    )
