"""A published index as users of plain datasets and huggingface_hub meet it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import datasets
import faiss
import numpy as np
import pytest
import yaml
from hub.client import LocalHub
from huggingface_hub import hf_hub_download
from index_fakes import DIM, POLICY, FakeEmbedder, make_case
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from medretrieval.index import add_embedder, build, open_store, tables
from medretrieval.index.files import CARD
from medretrieval.index.opening import open_named
from medretrieval.index.pull import pull
from medretrieval.index.push import push
from medretrieval.index.release import make_release

REPO = "lab/hearts"
EMBEDDINGS = "embeddings/embeddings.safetensors"


def make_index(folder: Path, *, depth: int = 4, **options: Any) -> Path:
    """Annotated, not annotated, with large values in the mask, and in colour; an extra column."""
    cases = [make_case(number, depth=depth) for number in range(4)]
    cases.append(make_case(4, depth=depth, annotated=False))
    cases.append(make_case(5, depth=depth, values=(1, 300), labels=("benign",)))
    cases.append(make_case(6, depth=depth, color=True))
    cases[0] = dataclasses.replace(cases[0], attributes={"scanner": "A"})
    options = {"license": "cc-by-4.0", "source": "our own", **options}
    return build(
        cases, folder / "index", embedder=FakeEmbedder(), slices=POLICY, name="hearts", **options
    )


def vectors_of(table: Any) -> NDArray[np.float32]:
    """(n, dim) numbers of a table of embeddings."""
    return np.asarray(table.with_format("numpy")["embedding"][:])


def nearest(vectors: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """(n, k) rows most similar to each row, best first."""
    found: NDArray[np.int64] = np.argsort(-(vectors @ vectors.T), axis=1, kind="stable")[:, :k]
    return found


@pytest.mark.parametrize("streaming", [False, True])
def test_slices(hub: LocalHub, tmp_path: Path, streaming: bool) -> None:
    index = make_index(tmp_path)
    push(index, REPO)
    loaded = datasets.load_dataset(REPO, revision="v1", split="train", streaming=streaming)
    with open_store(index) as store:
        rows = list(loaded)
        assert len(rows) == len(store) == 28
        for number, row in enumerate(rows):
            assert row["row_id"] == number
            assert row["volume_id"] == store.volume_ids[store.volume[number]]
            assert row["slice_index"] == store.slice_index[number]
            assert row["position_mm"] == store.position_mm[number]
            assert tuple(row["labels"]) == store.labels[number]
            assert row["scanner"] == store.attributes["scanner"][number]
            assert isinstance(row["image"], Image.Image)
            np.testing.assert_array_equal(np.asarray(row["image"]), store.image(number))
            assert (row["mask"] is not None) == store.has_mask(number)
            if row["mask"] is not None:
                np.testing.assert_array_equal(np.asarray(row["mask"]), store.mask(number))
    assert sum(row["mask"] is None for row in rows) == 4
    assert max(np.max(row["mask"]) for row in rows if row["mask"] is not None) == 300


def test_configs_and_features_are_those_of_the_card(hub: LocalHub, tmp_path: Path) -> None:
    push(make_index(tmp_path), REPO)
    text = Path(hf_hub_download(REPO, CARD, repo_type="dataset")).read_text()
    card = yaml.safe_load(text.split("---\n")[1])
    assert datasets.get_dataset_config_names(REPO) == ["default", "fake"]
    assert [config["config_name"] for config in card["configs"]] == ["default", "fake"]
    names = ("row_id", "slice_index", "volume_id", "patient_id", "modality", "region", "scanner")
    value = datasets.Value
    assert datasets.load_dataset(REPO, split="train").features == {
        **{name: value("int64" if name in names[:2] else "string") for name in names},
        "position_mm": value("float64"),
        "spacing": datasets.List(value("float64")),
        "labels": datasets.List(value("string")),
        "image": datasets.Image(),
        "mask": datasets.Image(),
    }
    assert datasets.load_dataset(REPO, "fake", split="train").features == {
        "row_id": value("int64"),
        "embedding": datasets.List(value("float32"), length=DIM),
    }


@pytest.mark.parametrize("float16", [False, True])
def test_embeddings(hub: LocalHub, tmp_path: Path, float16: bool) -> None:
    push(make_index(tmp_path, float16=float16), REPO)
    table = datasets.load_dataset(REPO, "fake", revision="v1", split="train")
    stored = load_file(hf_hub_download(REPO, EMBEDDINGS, repo_type="dataset"))["embeddings"]
    assert table["row_id"] == list(range(28))
    assert vectors_of(table).dtype == np.float32
    if float16:
        # Rounding moved the norms; in the table they are 1 again, as a product needs them.
        assert stored.dtype == np.float16
        stored = stored.astype(np.float32)
        stored /= np.linalg.norm(stored, axis=1, keepdims=True)
        np.testing.assert_allclose(vectors_of(table), stored, atol=1e-7)
    else:
        np.testing.assert_array_equal(vectors_of(table), stored)
    with open_named(REPO) as store:
        np.testing.assert_array_equal(vectors_of(table), store.embeddings)


def test_several_embedders(hub: LocalHub, tmp_path: Path) -> None:
    index = make_index(tmp_path, float16=True)
    add_embedder(index, embedder=FakeEmbedder(name="other", seed=8, dim=5))
    with open_store(index, embedder="other") as store:
        numbers = np.array(store.embeddings)
    push(index, REPO)
    assert datasets.get_dataset_config_names(REPO) == ["default", "fake", "other"]
    table = datasets.load_dataset(REPO, "other", split="train")
    np.testing.assert_array_equal(vectors_of(table), numbers)
    table.load_faiss_index("embedding", f"hf://datasets/{REPO}@v2/index-other.faiss")
    np.testing.assert_array_equal(
        table.search_batch("embedding", numbers, k=5)[1], nearest(numbers, 5)
    )
    assert datasets.load_dataset(REPO, "fake", split="train").features["embedding"].length == DIM


# Of the ten nearest of every row, those that the stored structure alone finds; medretrieval takes
# more candidates from it and compares them exactly. By chance it would be 10 of 280.
@pytest.mark.parametrize(
    ("kind", "least"), [("flat", 1), ("flat-l2", 1), ("hnsw", 0.98), ("lsh", 0.75), ("ivf-pq", 0.4)]
)
def test_the_published_faiss_index(hub: LocalHub, tmp_path: Path, kind: str, least: float) -> None:
    push(make_index(tmp_path, depth=40, index_kind=kind), REPO)
    table = datasets.load_dataset(REPO, "fake", revision="v1", split="train")
    vectors = vectors_of(table)
    address = f"hf://datasets/{REPO}@v1/index.faiss"
    path = hf_hub_download(REPO, "index.faiss", repo_type="dataset", revision="v1")
    found = []
    for file in (address, path):
        table.load_faiss_index("embedding", file)
        found.append(table.search_batch("embedding", vectors, k=10)[1])
    np.testing.assert_array_equal(*found)
    exact = nearest(vectors, 10)
    same = [len({*a} & {*b}) / 10 for a, b in zip(found[0], exact, strict=True)]
    assert np.mean(same) >= least
    query = np.asarray(table[7]["embedding"], np.float32)
    scores, examples = table.get_nearest_examples("embedding", query, k=10)
    assert examples["row_id"] == found[0][7].tolist()
    if kind.startswith("flat"):
        np.testing.assert_allclose(scores, vectors[exact[7]] @ query, atol=1e-6)


def test_without_pictures(hub: LocalHub, tmp_path: Path) -> None:
    done = push(make_index(tmp_path), REPO, images=False)
    assert done.withheld
    for streaming in (False, True):
        loaded = datasets.load_dataset(REPO, split="train", streaming=streaming)
        assert loaded.features["image"] == loaded.features["mask"] == datasets.Image()
        rows = list(loaded)
        assert [row["row_id"] for row in rows] == list(range(28))
        assert {(row["image"], row["mask"]) for row in rows} == {(None, None)}
        assert rows[0]["scanner"] == "A"
    assert datasets.load_dataset(REPO, "fake", split="train").num_rows == 28


def test_without_tables(hub: LocalHub, tmp_path: Path) -> None:
    push(make_index(tmp_path), REPO, tables=False)
    assert datasets.get_dataset_config_names(REPO) == ["default"]
    assert datasets.load_dataset(REPO, split="train").num_rows == 28


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("pictures", [False, True])
def test_the_examples_of_the_card_run(
    hub: LocalHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stored: bool,
    pictures: bool,
) -> None:
    if not stored:  # as of an index that is too large for it
        monkeypatch.setattr(tables, "_MAX_FAISS_BYTES", 0)
    push(make_index(tmp_path), REPO, images=pictures)
    assert ("index.faiss" in hub.repo(REPO).paths()) == stored
    card = Path(hf_hub_download(REPO, CARD, repo_type="dataset", revision="v1")).read_text()
    examples = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    mine = [text for text in examples if "medretrieval" not in text]
    assert len(mine) == 2
    for text in mine:
        exec(compile(text, CARD, "exec"), {})
    slices, found = capsys.readouterr().out.strip().splitlines()
    assert slices.startswith("<PIL" if pictures else "volume-000 0")
    assert ("load_faiss_index" in mine[1]) == stored
    with open_store(tmp_path / "index") as store:
        assert found.endswith(str(nearest(store.embeddings, 5)[0].tolist()))


def test_folders(hub: LocalHub, tmp_path: Path) -> None:
    index = make_index(tmp_path)
    staged = tmp_path / "staged"
    staged.mkdir()
    make_release(index, staged, repo=REPO)
    push(index, REPO)
    pulled = pull(REPO, tmp_path / "pulled")
    for folder in (index, staged, pulled):
        loaded = datasets.load_dataset(str(folder), split="train")
        with open_store(folder) as store:
            assert loaded["volume_id"] == [store.volume_ids[code] for code in store.volume]
            np.testing.assert_array_equal(np.asarray(loaded[9]["image"]), store.image(9))
    table = datasets.load_dataset(str(staged), "fake", split="train")
    vectors = vectors_of(table)
    table.load_faiss_index("embedding", str(staged / "index.faiss"))
    np.testing.assert_array_equal(
        table.search_batch("embedding", vectors, k=5)[1], nearest(vectors, 5)
    )
    # What is derived stays on the Hub; the numbers are here.
    assert not (pulled / "embeddings" / "embeddings.parquet").exists()
    np.testing.assert_array_equal(load_file(pulled / EMBEDDINGS)["embeddings"], vectors)


def test_one_embedder_is_loaded_without_pictures(hub: LocalHub, tmp_path: Path) -> None:
    push(make_index(tmp_path), REPO)
    hub.reset_log()
    datasets.load_dataset(REPO, "fake", revision="v1", split="train")
    assert hub.requests("GET", r"embeddings\.parquet")
    assert not hub.requests("GET", r"resolve/.*slices-\d+\.parquet")


def test_a_written_flat_index_is_the_exact_one(tmp_path: Path) -> None:
    vectors = np.eye(6, 4, dtype=np.float32)[:4]
    assert tables.write_flat_faiss(tmp_path / "index.faiss", vectors)
    found = faiss.read_index(str(tmp_path / "index.faiss"))
    assert (type(found).__name__, found.metric_type) == ("IndexFlatIP", 0)
    np.testing.assert_array_equal(found.reconstruct_n(0, 4), vectors)
