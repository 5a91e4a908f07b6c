"""The Hub of the tests, through datasets: tables of a repository, whole and streamed."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi, HfFileSystem

from hub.client import LocalHub
from hub.using import REPO

CARD = b"""---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---
# Cases
"""


def table(start: int, rows: int = 1000) -> bytes:
    """A Parquet file of several row groups with a narrow and a wide column."""
    numbers = range(start, start + rows)
    wide = [bytes([n % 251]) * 512 for n in numbers]
    out = io.BytesIO()
    columns = pa.table({"id": list(numbers), "wide": wide})
    pq.write_table(columns, out, row_group_size=100, compression="none", use_dictionary=False)
    return out.getvalue()


FILES = {"README.md": CARD, "data/0.parquet": table(0), "data/1.parquet": table(1000)}
IDS = list(range(2000))


def test_load(hub: LocalHub) -> None:
    hub.add_repo(REPO, FILES)
    loaded = datasets.load_dataset(REPO)
    assert loaded["train"]["id"] == IDS
    assert all(Path(f["filename"]).is_relative_to(hub.home) for f in loaded["train"].cache_files)


@pytest.mark.parametrize("revision", ["v1", None])
def test_load_a_revision(revision: str | None, hub: LocalHub) -> None:
    hub.add_repo(REPO, FILES)
    HfApi().create_tag(REPO, tag="v1", repo_type="dataset")
    hub.commit(REPO, {}, delete=["data/1.parquet"])
    loaded = datasets.load_dataset(REPO, revision=revision, split="train")
    assert loaded.num_rows == (2000 if revision else 1000)


def test_stream(hub: LocalHub) -> None:
    hub.add_repo(REPO, FILES)
    streamed = datasets.load_dataset(REPO, split="train", streaming=True)
    assert [row["id"] for row in streamed.take(5)] == IDS[:5]
    assert not hub.requests("GET", r"1\.parquet")


def test_paths(hub: LocalHub) -> None:
    hub.add_repo(REPO, FILES)
    pattern = f"hf://datasets/{REPO}/data/*.parquet"
    loaded = datasets.load_dataset("parquet", data_files=pattern, split="train")
    assert loaded["id"] == IDS


def test_columns_by_ranges(hub: LocalHub) -> None:
    hub.add_repo(REPO, FILES)
    with HfFileSystem().open(f"datasets/{REPO}/data/0.parquet", block_size=2**14) as file:
        assert pq.read_table(file, columns=["id"])["id"].to_pylist() == IDS[:1000]
    assert 0 < hub.bytes_sent(r"0\.parquet") < len(FILES["data/0.parquet"]) / 2


def test_no_configurations(hub: LocalHub) -> None:
    files = {"train.csv": b"id\n1\n2\n", "test.csv": b"id\n3\n"}
    hub.add_repo(REPO, files)
    loaded = datasets.load_dataset(REPO)
    assert {name: split["id"] for name, split in loaded.items()} == {"train": [1, 2], "test": [3]}


def test_push_to_hub(hub: LocalHub) -> None:
    made = datasets.Dataset.from_dict({"id": IDS})
    made.push_to_hub(REPO, private=True)
    repo = hub.repo(REPO)
    assert repo.private
    assert [p for p in repo.paths() if p.endswith(".parquet")] == [
        "data/train-00000-of-00001.parquet"
    ]
    assert datasets.load_dataset(REPO, split="train")["id"] == IDS


@pytest.mark.parametrize("case", ["missing", "private", "gated", "revision"])
def test_refusals(case: str, hub: LocalHub) -> None:
    if case != "missing":
        hub.add_repo(REPO, FILES, private=case == "private", gated=case == "gated" and "auto")
    hub.log_in(hub.add_user("bob"))
    says = {
        "missing": "doesn't exist on the Hub or cannot be accessed",
        "private": "doesn't exist on the Hub or cannot be accessed",
        "gated": "is a gated dataset on the Hub. Visit the dataset page",
        "revision": "Revision 'nowhere' doesn't exist",
    }[case]
    with pytest.raises(datasets.exceptions.DatasetNotFoundError, match=says):
        datasets.load_dataset(REPO, revision="nowhere" if case == "revision" else None)


def test_another_process(hub: LocalHub) -> None:
    hub.add_repo(REPO, FILES, private=True)
    script = (
        f"import datasets\nfound = datasets.load_dataset({REPO!r}, split='train')\n"
        "print(found.num_rows, found.cache_files[0]['filename'])"
    )
    done = hub.run("-c", script)
    assert done.returncode == 0, done.stderr
    rows, path = done.stdout.split(maxsplit=1)
    assert rows == "2000"
    assert Path(path).is_relative_to(hub.home)
