"""The Hub of the tests, through huggingface_hub: repositories, commits, references."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import (
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from hub.client import LocalHub, running_hub
from hub.using import FILES, PARQUET, REPO, commit, read


def test_create_commit_and_download(hub: LocalHub, api: HfApi) -> None:
    head = commit(api, FILES)
    assert len(head) == 40
    assert {path: read(path) for path in FILES} == FILES
    assert {path: read(path, revision=head) for path in FILES} == FILES
    assert hub.repo(REPO).paths() == [".gitattributes", *sorted(FILES)]
    assert hub.repo(REPO).content("data/a.parquet") == PARQUET


def test_large_files_go_to_the_store_and_come_from_it_without_a_token(
    hub: LocalHub, api: HfApi
) -> None:
    commit(api, FILES)
    read("data/a.parquet")
    read("manifest.json")
    (put,) = hub.requests("PUT")
    (get,) = hub.requests("GET", "^cdn/")
    assert (put.host, put.received, put.status) == ("cdn", len(PARQUET), 200)
    assert (get.sent, get.status) == (len(PARQUET), 200)
    assert "authorization" not in put.headers | get.headers
    assert [r.status for r in hub.requests("HEAD", "a.parquet")] == [302]
    assert [r.status for r in hub.requests("GET", "manifest.json")] == [200]


@pytest.mark.parametrize(
    ("path", "content", "large"),
    [
        ("a.parquet", b"text", True),
        ("a.safetensors", b"text", True),
        ("a.faiss", b"IxF2\0\0", True),
        ("a.json", b"{}", False),
        ("big.txt", b"x" * 10_000_000, True),
        ("empty.parquet", b"", False),
    ],
)
def test_what_is_a_large_file(
    path: str, content: bytes, large: bool, hub: LocalHub, api: HfApi
) -> None:
    commit(api, {path: content})
    (info,) = api.get_paths_info(REPO, path, repo_type="dataset")
    assert isinstance(info, RepoFile)
    assert info.size == len(content)
    assert (info.lfs is not None) == large
    if info.lfs is not None:
        assert info.lfs.sha256 == hashlib.sha256(content).hexdigest()
    named = f"{path} filter=lfs".encode() in hub.repo(REPO).content(".gitattributes")
    assert named == (path in ("a.faiss", "big.txt"))


def test_an_object_that_is_stored_is_not_sent_again(hub: LocalHub, api: HfApi) -> None:
    commit(api, FILES)
    hub.reset_log()
    commit(api, {"copy.parquet": PARQUET})
    assert hub.requests("PUT") == []
    head = commit(api, FILES)  # nothing has changed: no commit
    assert head == hub.repo(REPO).branches["main"].id
    assert len(hub.requests("POST", "/commit/")) == 1


@pytest.mark.parametrize("size", [2001, 3000])
def test_multipart(size: int, hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    hub.multipart_over, hub.part_size = 2000, 1000
    content = bytes(i % 251 for i in range(size))
    (tmp_path / "a.bin").write_bytes(content)
    commit_info = api.upload_file(
        path_or_fileobj=tmp_path / "a.bin", path_in_repo="a.bin", repo_id=REPO, repo_type="dataset"
    )
    assert commit_info.oid == hub.repo(REPO).branches["main"].id
    assert [r.received for r in hub.requests("PUT")] == [1000, 1000, size - 2000]
    assert read("a.bin") == content


def test_upload_folder(hub: LocalHub, api: HfApi, tmp_path: Path) -> None:
    for path, content in FILES.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    commit(api, {"old.json": b"old"})
    api.upload_folder(
        repo_id=REPO, folder_path=tmp_path, repo_type="dataset", delete_patterns="*.json"
    )
    assert hub.repo(REPO).paths() == [".gitattributes", *sorted(FILES)]


def test_delete_and_copy(hub: LocalHub, api: HfApi) -> None:
    commit(api, {**FILES, "data/b.json": b"b"})
    operations: list[Any] = [
        CommitOperationCopy("data/a.parquet", "kept.parquet"),
        CommitOperationCopy("data/b.json", "kept.json"),
        CommitOperationDelete("data/"),
        CommitOperationDelete("manifest.json"),
    ]
    api.create_commit(REPO, operations, commit_message="Move", repo_type="dataset")
    kept = [".gitattributes", "README.md", "kept.json", "kept.parquet"]
    assert hub.repo(REPO).paths() == kept
    assert read("kept.parquet") == PARQUET
    with pytest.raises(RemoteEntryNotFoundError, match="differentiate file and folder"):
        api.delete_file("manifest.json", REPO, repo_type="dataset")


def test_a_commit_since(hub: LocalHub, api: HfApi) -> None:
    first = commit(api, FILES)
    second = commit(api, {"manifest.json": b"[]"}, parent_commit=first)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        commit(api, {"manifest.json": b"[1]"}, parent_commit=first)
    assert caught.value.response.status_code == 412
    assert hub.repo(REPO).branches["main"].id == second
    assert read("manifest.json", revision=first) == b"{}"
    assert read("manifest.json") == b"[]"


def test_history(api: HfApi) -> None:
    first = commit(api, FILES, commit_message="First", commit_description="Why")
    second = commit(api, {"manifest.json": b"[]"}, commit_message="Second")
    history = api.list_repo_commits(REPO, repo_type="dataset", formatted=True)
    assert [c.title for c in history] == ["Second", "First", "initial commit"]
    assert [c.commit_id for c in history[:2]] == [second, first]
    assert [c.authors for c in history] == [["ada"], ["ada"], ["system"]]
    assert history[1].message == "Why"
    assert history[0].created_at > history[1].created_at
    api.super_squash_history(REPO, repo_type="dataset", commit_message="All")
    assert [c.title for c in api.list_repo_commits(REPO, repo_type="dataset")] == ["All"]
    assert read("manifest.json") == b"[]"
    with pytest.raises(RevisionNotFoundError):
        api.repo_info(REPO, repo_type="dataset", revision=second)


def test_tags_and_branches(api: HfApi) -> None:
    first = commit(api, FILES)
    api.create_tag(REPO, tag="v1", tag_message="The first", repo_type="dataset")
    second = commit(api, {"manifest.json": b"[]"})
    api.create_tag(REPO, tag="v2", revision=second, repo_type="dataset")
    api.create_branch(REPO, branch="more/work", revision="v1", repo_type="dataset")
    third = commit(api, {"manifest.json": b"[3]"}, revision="more/work")
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_tag(REPO, tag="v1", repo_type="dataset")
    assert caught.value.response.status_code == 409
    api.create_tag(REPO, tag="v1", repo_type="dataset", exist_ok=True)
    with pytest.raises(HfHubHTTPError):
        api.create_branch(REPO, branch="more/work", repo_type="dataset")
    refs = api.list_repo_refs(REPO, repo_type="dataset", include_pull_requests=True)
    branches = {ref.name: ref.target_commit for ref in refs.branches}
    assert branches == {"main": second, "more/work": third}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first, "v2": second}
    assert refs.tags[0].ref == "refs/tags/v1"
    assert refs.pull_requests == []
    for revision, content in {"v1": b"{}", "v2": b"[]", "more/work": b"[3]"}.items():
        assert read("manifest.json", revision=revision) == content
    assert api.dataset_info(REPO, revision=first[:8]).sha == first
    api.delete_tag(REPO, tag="v1", repo_type="dataset")
    api.delete_branch(REPO, branch="more/work", repo_type="dataset")
    for missing in ("v1", "more/work"):
        with pytest.raises(RevisionNotFoundError):
            read("manifest.json", revision=missing)
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(REPO, tag="v1", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        api.create_tag(REPO, tag="v3", revision="nowhere", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        commit(api, {"a.json": b""}, revision="v2")


def test_create_and_delete_repository(hub: LocalHub) -> None:
    huggingface_hub.create_repo(REPO, repo_type="dataset", private=True)
    assert hub.repo(REPO).private
    with pytest.raises(HfHubHTTPError) as caught:
        huggingface_hub.create_repo(REPO, repo_type="dataset")
    assert caught.value.response.status_code == 409
    url = huggingface_hub.create_repo(REPO, repo_type="dataset", exist_ok=True)
    assert (url, url.repo_id) == (f"{hub.url}/datasets/{REPO}", REPO)
    own = huggingface_hub.create_repo("own", repo_type="dataset")
    assert own.repo_id == "ada/own"
    huggingface_hub.delete_repo(REPO, repo_type="dataset")
    with pytest.raises(RepositoryNotFoundError):
        huggingface_hub.delete_repo(REPO, repo_type="dataset")
    huggingface_hub.delete_repo(REPO, repo_type="dataset", missing_ok=True)
    assert not huggingface_hub.repo_exists(REPO, repo_type="dataset")


@pytest.mark.parametrize("rewrite", [True, False])
def test_large_objects_are_deleted_for_good(rewrite: bool, hub: LocalHub, api: HfApi) -> None:
    first = commit(api, {**FILES, "data/b.parquet": b"b"})
    api.create_tag(REPO, tag="v1", repo_type="dataset")
    api.delete_file("data/a.parquet", REPO, repo_type="dataset")
    stored = {f.filename: f for f in api.list_lfs_files(REPO, repo_type="dataset")}
    assert {name: f.size for name, f in stored.items()} == {
        "data/a.parquet": len(PARQUET),
        "data/b.parquet": 1,
    }
    api.permanently_delete_lfs_files(
        REPO, [stored["data/a.parquet"]], rewrite_history=rewrite, repo_type="dataset"
    )
    left = [f.filename for f in api.list_lfs_files(REPO, repo_type="dataset")]
    assert left == ["data/b.parquet"]
    assert read("data/b.parquet", revision="v1") == b"b"
    if rewrite:
        assert "data/a.parquet" not in hub.repo(REPO).paths("v1")
        assert not api.revision_exists(REPO, first, repo_type="dataset")
    else:
        assert hub.repo(REPO).commit("v1").id == first
        with pytest.raises(HfHubHTTPError, match="NoSuchKey"):
            read("data/a.parquet", revision="v1")


@pytest.mark.parametrize(
    ("card", "says"),
    [
        (b"---\nlicense: [mit\n---\n", "YAML Metadata Error"),
        (b"---\ntags: medical\n---\n", '"tags" must be list'),
    ],
)
def test_a_card_that_is_wrong(card: bytes, says: str, hub: LocalHub, api: HfApi) -> None:
    with pytest.raises(ValueError, match=says):
        commit(api, {"README.md": card, "a.parquet": PARQUET})
    assert hub.requests("PUT") == []


def test_a_card_without_metadata(hub: LocalHub, api: HfApi) -> None:
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        commit(api, {"README.md": b"# Cases\n"})
    assert hub.repo(REPO).content("README.md") == b"# Cases\n"


def test_another_process(hub: LocalHub) -> None:
    hub.add_repo(REPO, FILES, private=True)
    script = (
        "from huggingface_hub import hf_hub_download\n"
        f"print(hf_hub_download({REPO!r}, 'data/a.parquet', repo_type='dataset'))"
    )
    done = hub.run("-c", script)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.read_bytes() == PARQUET
    assert path.is_relative_to(hub.home)


def test_the_client_is_left_as_it_was(tmp_path: Path) -> None:
    from datasets import config
    from huggingface_hub import constants, hf_api

    def state() -> list[Any]:
        at_import = [constants.ENDPOINT, constants.HF_HUB_CACHE, hf_api.api.endpoint]
        token = os.environ.get("HF_TOKEN")
        return [*at_import, config.HF_ENDPOINT, config.HF_DATASETS_CACHE, token]

    before = state()
    with running_hub(tmp_path) as hub:
        cache = [str(tmp_path / "hub"), tmp_path / "datasets"]
        assert state() == [hub.url, cache[0], hub.url, hub.url, cache[1], hub.token]
        HfApi().create_repo(REPO, repo_type="dataset")
    assert state() == before
    assert not [t for t in threading.enumerate() if t.name.startswith("local-hub")]
    with pytest.raises(httpx2.ConnectError):
        HfApi(endpoint=hub.url).repo_info(REPO, repo_type="dataset")
