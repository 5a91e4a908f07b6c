"""The Hub of the tests, through huggingface_hub: what is read of a repository."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import (
    HfApi,
    HfFileSystem,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFolder

from hub.client import LocalHub
from hub.using import FILES, PARQUET, REPO, commit


def test_metadata_of_files(hub: LocalHub, api: HfApi) -> None:
    head = commit(api, FILES)
    url = huggingface_hub.hf_hub_url(REPO, "data/a.parquet", repo_type="dataset")
    large = huggingface_hub.get_hf_file_metadata(url)
    assert (large.commit_hash, large.size) == (head, len(PARQUET))
    assert large.etag == hashlib.sha256(PARQUET).hexdigest()
    assert large.location.startswith(hub.cdn_url)
    assert large.xet_file_data is None
    url = huggingface_hub.hf_hub_url(REPO, "manifest.json", repo_type="dataset")
    small = huggingface_hub.get_hf_file_metadata(url)
    assert (small.location, small.size) == (url, 2)
    assert small.etag == hashlib.sha1(b"blob 2\0{}").hexdigest()


def test_info(hub: LocalHub, api: HfApi) -> None:
    head = commit(api, FILES)
    info = api.dataset_info(REPO)
    assert (info.id, info.author, info.sha) == (REPO, "lab", head)
    assert (info.private, info.gated) == (False, False)
    assert info.tags == ["license:mit", "medical", "region:us"]
    assert info.card_data is not None
    assert info.card_data.to_dict() == {"license": "mit", "tags": ["medical"]}
    assert info.siblings is not None
    assert [s.rfilename for s in info.siblings] == hub.repo(REPO).paths()
    assert info.siblings[0].size is None
    whole = api.dataset_info(REPO, files_metadata=True).siblings
    assert whole is not None
    (large,) = [sibling for sibling in whole if sibling.lfs]
    assert (large.rfilename, large.size) == ("data/a.parquet", len(PARQUET))
    assert large.lfs is not None
    assert large.lfs.sha256 == hashlib.sha256(PARQUET).hexdigest()
    some = api.dataset_info(REPO, expand=["gated", "private", "lastModified"])
    assert (some.gated, some.private, some.sha, some.siblings) == (False, False, None, None)
    assert info.last_modified == some.last_modified
    api.update_repo_settings(REPO, repo_type="dataset", gated="manual", private=True)
    info = api.dataset_info(REPO)
    assert (info.gated, info.private) == ("manual", True)


def test_models_are_kept_apart(hub: LocalHub) -> None:
    hub.add_repo("lab/net", {"config.json": b"{}", "model.safetensors": b"w"}, type_="model")
    assert Path(hf_hub_download("lab/net", "model.safetensors")).read_bytes() == b"w"
    assert HfApi().model_info("lab/net").id == "lab/net"
    with pytest.raises(RepositoryNotFoundError):
        HfApi().dataset_info("lab/net")


@pytest.mark.parametrize("page_size", [2, 1000])
def test_tree(page_size: int, hub: LocalHub, api: HfApi) -> None:
    hub.page_size = page_size
    first = commit(api, {"a/b/c.json": b"c", "a/d.json": b"d", "e.json": b"e"})
    commit(api, {"a/d.json": b"D"})

    def listed(path: str | None = None, **options: Any) -> list[str]:
        found = api.list_repo_tree(REPO, path, repo_type="dataset", **options)
        return [f"{f.path}/" if isinstance(f, RepoFolder) else f.path for f in found]

    assert listed() == [".gitattributes", "a/", "e.json"]
    assert listed("a") == ["a/b/", "a/d.json"]
    everything = [".gitattributes", "a/", "a/b/", "a/b/c.json", "a/d.json", "e.json"]
    assert listed(recursive=True) == everything
    assert listed("a/d.json") == ["a/d.json"]
    with pytest.raises(RemoteEntryNotFoundError):
        listed("nowhere")
    with pytest.raises(RevisionNotFoundError):
        listed(revision="nowhere")
    expanded = list(api.list_repo_tree(REPO, "a", repo_type="dataset", expand=True))
    titles = [f.last_commit.oid == first for f in expanded if f.last_commit]
    assert titles == [True, False]


def test_paths_info(api: HfApi) -> None:
    commit(api, FILES)
    asked = ["data", "data/a.parquet", "nowhere", "README.md"]
    found = api.get_paths_info(REPO, asked, repo_type="dataset", expand=True)
    assert [f.path for f in found] == ["data", "data/a.parquet", "README.md"]
    with pytest.raises(HfHubHTTPError) as caught:
        api.get_paths_info(REPO, ["x"] * 1001, repo_type="dataset")
    assert caught.value.response.status_code == 413


@pytest.mark.parametrize("path", ["data/a.parquet", "manifest.json"])
def test_ranges(path: str, hub: LocalHub) -> None:
    content = bytes(range(200)) if path.endswith("parquet") else b"0123456789" * 20
    hub.add_repo(REPO, {path: content})
    session = huggingface_hub.get_session()
    url = huggingface_hub.hf_hub_url(REPO, path, repo_type="dataset")
    whole = session.get(url)
    assert (whole.status_code, whole.headers["Accept-Ranges"]) == (200, "bytes")
    asked = {
        "0-9": content[:10],
        "190-300": content[190:],
        "150-": content[150:],
        "-5": content[195:],
    }
    for range_, expected in asked.items():
        part = session.get(url, headers={"Range": f"bytes={range_}"})
        assert (part.status_code, part.content) == (206, expected)
        assert part.headers["Content-Range"].endswith("/200")
    hub.reset_log()
    beyond = session.get(url, headers={"Range": "bytes=200-"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */200")


def test_a_signed_address_is_for_one_file(hub: LocalHub) -> None:
    hub.add_repo(REPO, {"a.parquet": b"a", "b.parquet": b"b"})
    url = huggingface_hub.hf_hub_url(REPO, "a.parquet", repo_type="dataset")
    signed = huggingface_hub.get_hf_file_metadata(url).location
    session = huggingface_hub.get_session()
    assert session.get(signed).content == b"a"
    a, b = (hub.repo(REPO).entry(f"{name}.parquet").key for name in "ab")
    assert session.get(signed.replace(a, b)).status_code == 403
    assert session.put(signed, content=b"b").status_code == 501
    hub.errors.clear()


def test_snapshot(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    head = commit(api, FILES)
    folder = Path(snapshot_download(REPO, repo_type="dataset", revision="main"))
    assert folder.name == head
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES
    assert folder.is_relative_to(hub.home / "hub")
    hub.reset_log()
    snapshot_download(REPO, repo_type="dataset", revision=head)
    assert hub.requests() == []
    snapshot_download(REPO, repo_type="dataset", local_dir=tmp_path, allow_patterns="data/*")
    assert (tmp_path / "data" / "a.parquet").read_bytes() == PARQUET


def test_file_system(hub: LocalHub) -> None:
    hub.add_repo(REPO, FILES)
    fs = HfFileSystem()
    names = {str(f).rpartition("/")[2] for f in fs.ls(f"datasets/{REPO}", detail=False)}
    assert names == {".gitattributes", "README.md", "manifest.json", "data"}
    hub.reset_log()
    with fs.open(f"datasets/{REPO}/data/a.parquet", "rb", block_size=64) as file:
        file.seek(1000)
        assert file.read(100) == PARQUET[1000:1100]
    assert hub.bytes_sent("a.parquet") < len(PARQUET) / 2
    with fs.open(f"datasets/{REPO}/new.json", "w") as file:
        file.write("{}")
    assert hub.repo(REPO).content("new.json") == b"{}"
