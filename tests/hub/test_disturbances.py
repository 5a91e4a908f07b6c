"""The Hub of the tests: silence, errors, uploads that break off, damage, and the log."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError

from hub.client import LocalHub, running_hub
from hub.using import REPO, read

OBJECTS = {f"{name}.parquet": name.encode() * 100_000 for name in "abcd"}


def push(**options: Any) -> None:
    operations = [CommitOperationAdd(path, content) for path, content in OBJECTS.items()]
    HfApi().create_commit(
        REPO, operations, commit_message="Push", repo_type="dataset", num_threads=1, **options
    )


class Beside:
    """A call in another thread, and what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: Exception | None = None

        def run() -> None:
            try:
                self.result = call()
            except Exception as error:
                self.error = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


def test_hang_until_released(hub: LocalHub) -> None:
    hub.add_repo(REPO)
    fault = hub.hang("/api/datasets/")
    with pytest.raises(httpx2.ReadTimeout):
        HfApi().dataset_info(REPO, timeout=0.2)
    (request,) = hub.requests("GET", REPO)
    assert (request.status, request.sent) == (None, 0)
    beside = Beside(lambda: HfApi().dataset_info(REPO).id)
    HfApi().whoami()  # others are answered
    fault.release()
    beside.end()
    assert beside.result == REPO


def test_what_hangs_does_not_outlive_the_hub(tmp_path: Path) -> None:
    with running_hub(tmp_path) as hub:
        hub.add_repo(REPO)
        hub.hang("refs")
        beside = Beside(lambda: HfApi().list_repo_refs(REPO, repo_type="dataset"))
        hub.wait_for("refs", method="GET")
    beside.end()
    assert isinstance(beside.error, httpx2.HTTPError)
    assert not [t for t in threading.enumerate() if t.name.startswith("local-")]


@pytest.mark.parametrize("path", ["a.parquet", "b.json"])
def test_drip(path: str, hub: LocalHub) -> None:
    hub.add_repo(REPO, {path: b"content"})
    url = hf_hub_url(REPO, path, repo_type="dataset")
    hub.drip(path, pause_s=0.0)
    assert get_session().get(url).content == b"content"
    hub.release()
    hub.drip(path, pause_s=3600.0)
    beside = Beside(lambda: get_session().get(url).content)
    hub.wait_for(path)
    with pytest.raises(httpx2.ReadTimeout):
        get_session().get(url, timeout=0.2)
    hub.release()
    beside.end()
    assert beside.result == b"content"


def test_fail(hub: LocalHub) -> None:
    hub.add_repo(REPO)
    hub.fail("/api/datasets/", 500, times=2, message="Out of order")
    for _ in range(2):
        with pytest.raises(HfHubHTTPError, match="Out of order") as caught:
            HfApi().dataset_info(REPO)
        assert caught.value.response.status_code == 500
    assert HfApi().dataset_info(REPO).id == REPO
    fault = hub.fail("/refs", 429, headers={"Retry-After": "1"})
    for _ in range(3):
        with pytest.raises(HfHubHTTPError, match="429"):
            HfApi().list_repo_refs(REPO, repo_type="dataset")
    fault.release()
    HfApi().list_repo_refs(REPO, repo_type="dataset")


def test_an_answer_is_lost(hub: LocalHub) -> None:
    repo = hub.add_repo(REPO)
    hub.fail("/commit/", 504, times=1, carried_out=True)
    with pytest.raises(HfHubHTTPError, match="504"):
        push()
    assert repo.branches["main"].title == "Push"


def test_a_download_that_breaks_off_is_resumed(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of what came, the client keeps whole chunks only; of 10 MB, if left alone.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    content = bytes(range(256)) * 1000
    hub.add_repo(REPO, {"a.parquet": content})
    hub.limit_retries()
    hub.cut(r"^cdn/.*a\.parquet", after_bytes=100_000)
    assert read("a.parquet") == content
    first, second = hub.requests("GET", "^cdn/")
    assert (first.sent, second.headers["range"]) == (100_000, "bytes=100000-")
    assert second.sent == len(content) - 100_000


def test_a_hub_that_is_gone(hub: LocalHub) -> None:
    hub.add_repo(REPO, {"a.parquet": b"a"})
    read("a.parquet")
    hub.stop()
    with pytest.raises(httpx2.ConnectError):
        HfApi().dataset_info(REPO)
    assert read("a.parquet") == b"a"  # from the cache


def test_retries_without_waiting(hub: LocalHub) -> None:
    hub.add_repo(REPO)
    hub.limit_retries(2)
    hub.fail("objects/batch", 503)
    with pytest.raises(HfHubHTTPError, match="503"):
        push()
    assert len(hub.requests("POST", "objects/batch")) == 3


@pytest.mark.parametrize("paths", ["on disk", "bytes"])
def test_an_upload_that_the_store_refuses_goes_on(
    paths: str, hub: LocalHub, tmp_path: Path
) -> None:
    repo = hub.add_repo(REPO)
    hub.limit_retries()
    interruption = hub.interrupt_upload(after_objects=2)
    with pytest.raises(RuntimeError, match=r"Error while uploading 'c\.parquet'"):
        push()
    assert [r.status for r in hub.requests("PUT")][:3] == [200, 200, 500]
    assert repo.paths() == [".gitattributes"]
    interruption.release()
    hub.reset_log()
    push()
    assert [r.status for r in hub.requests("PUT")] == [200, 200]
    assert {path: repo.content(path) for path in OBJECTS} == OBJECTS


@pytest.mark.parametrize("multipart_over", [10**9, 40_000])
def test_an_upload_that_breaks_off_goes_on(multipart_over: int, hub: LocalHub) -> None:
    repo = hub.add_repo(REPO)
    hub.multipart_over = hub.part_size = multipart_over
    hub.limit_retries()
    interruption = hub.interrupt_upload(after_bytes=150_000)
    with pytest.raises(RuntimeError, match=r"Error while uploading 'b\.parquet'"):
        push()
    stored = {path for path, c in OBJECTS.items() if hashlib.sha256(c).hexdigest() in repo.contents}
    assert stored == {"a.parquet"}
    interruption.release()
    hub.reset_log()
    push()
    assert hub.bytes_received("/upload/") == 300_000
    assert {path: read(path) for path in OBJECTS} == OBJECTS


def test_a_commit_in_between(hub: LocalHub) -> None:
    repo = hub.add_repo(REPO, {"a.json": b"1"})
    parent = repo.branches["main"].id
    hub.before("/commit/", lambda: hub.commit(REPO, {"a.json": b"2"}))
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        push(parent_commit=parent)
    assert repo.paths() == [".gitattributes", "a.json"]
    push(parent_commit=repo.branches["main"].id)


@pytest.mark.parametrize("path", ["a.parquet", "b.json"])
def test_flip_byte(path: str, hub: LocalHub) -> None:
    hub.add_repo(REPO, {path: b"content"})
    (before,) = HfApi().get_paths_info(REPO, path, repo_type="dataset")
    first = hub.repo(REPO).branches["main"].id
    hub.commit(REPO, {"other.json": b""})
    hub.flip_byte(REPO, path, 2)
    assert read(path) == b"co\x91tent"
    assert HfApi().get_paths_info(REPO, path, repo_type="dataset") == [before]
    assert hub.repo(REPO).content(path, first) == b"content"


def test_swap(hub: LocalHub) -> None:
    hub.add_repo(REPO, {"a.parquet": b"aaa", "b.parquet": b"bbb"})
    before = HfApi().get_paths_info(REPO, ["a.parquet", "b.parquet"], repo_type="dataset")
    hub.swap(REPO, "a.parquet", "b.parquet")
    after = HfApi().get_paths_info(REPO, ["a.parquet", "b.parquet"], repo_type="dataset")
    assert before == after
    assert (read("a.parquet"), read("b.parquet")) == (b"bbb", b"aaa")


def test_a_download_of_another_size_is_noticed(hub: LocalHub) -> None:
    hub.add_repo(REPO, {"a.parquet": b"aaa", "b.parquet": b"bb"})
    hub.swap(REPO, "a.parquet", "b.parquet")
    with pytest.raises(OSError, match="Consistency check failed"):
        read("a.parquet")


def test_log(hub: LocalHub) -> None:
    hub.add_repo(REPO, {"a.parquet": bytes(1000)})
    hub.reset_log()
    assert hub.requests() == []
    url = hf_hub_url(REPO, "a.parquet", repo_type="dataset")
    get_session().get(url, headers={"Range": "bytes=0-99"})
    hub_request, cdn_request = hub.requests("GET")
    assert (hub_request.host, hub_request.status) == ("hub", 302)
    assert (cdn_request.host, cdn_request.status, cdn_request.sent) == ("cdn", 206, 100)
    assert cdn_request.headers["range"] == "bytes=0-99"
    assert hub.bytes_sent("a.parquet") == 100 + hub_request.sent
    HfApi().get_paths_info(REPO, "a.parquet", repo_type="dataset")
    (posted,) = hub.requests("POST", "paths-info")
    assert posted.received == hub.bytes_received() > 0
    assert len(hub.requests(path_regex="a.parquet")) == 2


def test_what_is_not_modelled_is_noticed(tmp_path: Path) -> None:
    def ask() -> None:
        with running_hub(tmp_path) as hub:
            hub.add_repo(REPO)
            with pytest.raises(HfHubHTTPError, match="is not modelled"):
                next(iter(HfApi().get_repo_discussions(REPO, repo_type="dataset")))

    with pytest.raises(AssertionError, match="/api/datasets/lab/index/discussions"):
        ask()


def test_an_error_of_an_action_is_noticed(tmp_path: Path) -> None:
    def ask() -> None:
        with running_hub(tmp_path) as hub:
            hub.before("whoami", lambda: 1 / 0)
            with pytest.raises(httpx2.RemoteProtocolError):
                HfApi().whoami()

    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        ask()


def test_an_error_of_the_server_is_noticed(tmp_path: Path) -> None:
    def ask() -> None:
        with running_hub(tmp_path) as hub:
            response = get_session().post(f"{hub.url}/api/validate-yaml", json={})
            assert response.status_code == 500

    with pytest.raises(AssertionError, match="KeyError"):
        ask()
