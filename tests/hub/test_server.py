"""The Hub of the tests, through huggingface_hub: repositories, commits, references, files."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
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
from huggingface_hub.hf_api import RepoFile, RepoFolder

from hub.client import LocalHub, running_hub

REPO = "lab/index"
PARQUET = b"PAR1" + bytes(range(256)) * 8
CARD = b"---\nlicense: mit\ntags:\n- medical\n---\n# Cases\n"
FILES = {"README.md": CARD, "manifest.json": b"{}", "data/a.parquet": PARQUET}


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    """A client of a Hub that has the repository, without files."""
    api = HfApi()
    api.create_repo(REPO, repo_type="dataset")
    return api


def commit(api: HfApi, files: dict[str, bytes], **options: Any) -> str:
    """Commit files; the id of the commit."""
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    options = {"commit_message": "A commit", "repo_type": "dataset", **options}
    return str(api.create_commit(REPO, operations, **options).oid)


def read(path: str, **options: Any) -> bytes:
    return Path(hf_hub_download(REPO, path, repo_type="dataset", **options)).read_bytes()


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
    (get,) = [r for r in hub.requests("GET") if r.host == "cdn"]
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
    operations = [
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
    names = {f.rpartition("/")[2] for f in fs.ls(f"datasets/{REPO}", detail=False)}
    assert names == {".gitattributes", "README.md", "manifest.json", "data"}
    hub.reset_log()
    with fs.open(f"datasets/{REPO}/data/a.parquet", "rb", block_size=64) as file:
        file.seek(1000)
        assert file.read(100) == PARQUET[1000:1100]
    assert hub.bytes_sent("a.parquet") < len(PARQUET) / 2
    with fs.open(f"datasets/{REPO}/new.json", "w") as file:
        file.write("{}")
    assert hub.repo(REPO).content("new.json") == b"{}"


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
    done = subprocess.run(
        [sys.executable, "-c", script], env=hub.environ, capture_output=True, text=True, timeout=60
    )
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
