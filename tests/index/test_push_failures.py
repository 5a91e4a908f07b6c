"""A push that does not get through: it says why, and the same push again goes on.

The API that it meets is modelled on huggingface_hub 2.4.0, see `tests/hub/server.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hub.client import ROOT, LocalHub
from index_fakes import edit_manifest
from sharing import (
    ATTRIBUTES,
    CARD,
    MANIFEST,
    REPO,
    assert_same,
    hits,
    make_index,
    next_version,
    nothing_left,
    recorder,
    stranger,
    uploads,
)

from medretrieval import hub as hub_client
from medretrieval.errors import Cancelled, IndexFormatError, UnavailableError, UsageError
from medretrieval.index import data_set, upload
from medretrieval.index.leftovers import leftovers
from medretrieval.index.opening import open_named
from medretrieval.index.push import push
from medretrieval.index.store import open_store


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return make_index(tmp_path / "lab-a" / "hearts", shard_rows=3)


# Interruptions


@pytest.mark.parametrize("how", ["objects", "bytes"])
def test_an_interrupted_upload_goes_on(hub: LocalHub, index: Path, how: str) -> None:
    hub.limit_retries()
    if how == "objects":
        hub.interrupt_upload(after_objects=3)
    else:
        hub.interrupt_upload(after_bytes=20_000)
    with pytest.raises(UnavailableError, match=r"was not published.*not sent again"):
        push(index, REPO)
    assert set(hub.repo(REPO).paths()) == {ATTRIBUTES}
    assert hub.repo(REPO).tags == {}
    nothing_left(index)
    there = {key for key in hub.repo(REPO).contents if len(key) == 64}
    assert there
    hub.release()
    hub.reset_log()
    push(index, REPO)
    assert uploads(hub)
    assert not there & set(uploads(hub))
    assert hits(REPO) == hits(index)


def test_an_answer_that_is_lost(hub: LocalHub, index: Path) -> None:
    hub.limit_retries()
    hub.fail("/commit/main", 504, times=1, carried_out=True)
    with pytest.raises(UnavailableError, match="status 504"):
        push(index, REPO)
    hub.fail("/tag/", 503, times=1)
    with pytest.raises(UnavailableError, match="status 503"):
        push(index, REPO)
    done = push(index, REPO)
    assert done.sent == 0
    assert list(hub.repo(REPO).tags) == ["v1"]


@pytest.mark.parametrize(
    "where",
    ["/api/datasets/lab/hearts", "/refs", "/tree/", "/preupload/", "objects/batch", "^cdn/",
     "objects/verify", "/validate-yaml", "/commit/", "/tag/"],
)  # fmt: skip
def test_a_hub_that_does_not_answer(
    hub: LocalHub, index: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    hub.add_repo(REPO)
    with monkeypatch.context() as patch:
        for module, name in (
            (hub_client, "STALL_S"),
            (hub_client, "REQUEST_TIMEOUT_S"),
            (data_set, "CALL_DEADLINE_S"),
        ):
            patch.setattr(module, name, 0.4)
        hub.hang(where)
        with pytest.raises(UnavailableError, match=REPO) as caught:
            push(index, REPO)
    text = str(caught.value)
    assert "no answer within" in text or "nothing came for" in text or "Timeout" in text
    nothing_left(index)
    hub.release()
    push(index, REPO)
    assert hits(REPO) == hits(index)


def test_the_wish_to_stop(hub: LocalHub, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, note = recorder()
    push(index, REPO, progress=note)
    messages = list(dict.fromkeys(message for _, _, message in calls))
    assert messages[0] == "checking what is published"
    assert messages[1] == f"asking for {REPO}"
    assert any(message.startswith("sending ") for message in messages)
    assert messages[-1] == "committing"
    assert all(done <= total for done, total, _ in calls)
    commit = hub.repo(REPO).branches["main"].id
    new = next_version(index, index.parent.parent / "lab-b" / "new")
    for stop_at in messages[:3]:

        def stop(done: int, total: int, message: str, at: str = stop_at) -> None:
            if message.split()[0] == at.split()[0]:
                raise Cancelled("not wanted any more")

        with pytest.raises(Cancelled, match="not wanted any more"):
            push(new, REPO, progress=stop)
        assert hub.repo(REPO).branches["main"].id == commit
        nothing_left(new)
    push(new, REPO)


def test_a_push_that_was_killed(hub: LocalHub, index: Path) -> None:
    code = (
        "import os, signal\n"
        "from medretrieval.index import push, upload\n"
        "def kill(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "upload.Upload._commit = kill\n"
        f"push.push({str(index)!r}, {REPO!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], env=dict(hub.environ), cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert leftovers(index) == [index.with_name(".hearts.push")]
    assert (index.with_name(".hearts.push") / "release" / MANIFEST).exists()
    with open_store(index):
        pass
    hub.reset_log()
    push(index, REPO)
    assert uploads(hub) == []
    nothing_left(index)


# Who may not


def test_no_write_right(hub: LocalHub, index: Path) -> None:
    push(index, REPO, private=False)
    new = next_version(index, index.parent.parent / "new")
    hub.log_in(hub.add_user("ada", organisations=("lab",), role="read"))
    with pytest.raises(UnavailableError, match=r"status 403.*HF_TOKEN"):
        push(new, REPO)
    stranger(hub)
    with pytest.raises(UnavailableError, match=r"status 403.*HF_TOKEN"):
        push(new, REPO)
    assert list(hub.repo(REPO).tags) == ["v1"]


@pytest.mark.parametrize("login", ["read", "eve", None])
def test_who_may_not_make_one(hub: LocalHub, index: Path, login: str | None) -> None:
    if login == "read":
        hub.log_in(hub.add_user("ada", organisations=("lab",), role="read"))
    elif login == "eve":
        stranger(hub)
    else:
        hub.log_in(None)
    with pytest.raises(UnavailableError, match=r"lab/hearts cannot be made.*hf auth login"):
        push(index, REPO)
    assert ("dataset", REPO) not in hub.storage.repos
    nothing_left(index)


@pytest.mark.parametrize("login", ["eve", None])
def test_somebody_elses_private_one(hub: LocalHub, index: Path, login: str | None) -> None:
    push(index, REPO)
    if login is None:
        hub.log_in(None)
    else:
        stranger(hub)
    with pytest.raises(UnavailableError, match=r"cannot be made|is there, but this login"):
        push(index, REPO)


@pytest.mark.parametrize(
    "name",
    ["hearts", "", "lab/", "/hearts", "a/b/c", "lab/a b", "lab/..", "lab/a--b", "lab/-a", "lab/a.",
     "lab/x.git", "lab/ü", "datasets/lab/x", "lab/x@v1", "lab/x#fake", "lab/" + "x" * 97,
     "https://huggingface.co/datasets/lab/x"],
)  # fmt: skip
def test_names_that_no_data_set_can_have(hub: LocalHub, index: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a data set"):
        push(index, name)
    assert hub.requests() == []


def test_no_network(hub: LocalHub, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(UnavailableError, match="HF_HUB_OFFLINE is set"):
            push(index, REPO)
    assert hub.requests() == []
    hub.stop()
    with pytest.raises(UnavailableError, match="ConnectError"):
        push(index, REPO)
    nothing_left(index)


# Where there is no index, or no room beside it


@pytest.mark.parametrize("name", ["nothing/here", "lab/hearts"])
def test_no_index(hub: LocalHub, tmp_path: Path, name: str) -> None:
    with pytest.raises(IndexFormatError, match="does not exist"):
        push(tmp_path / name, REPO)
    assert list(tmp_path.iterdir()) == []
    assert hub.requests() == []


@pytest.mark.parametrize("how", ["rights", "refused"])
def test_a_folder_that_is_only_read(
    hub: LocalHub, index: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "rights":
        if os.geteuid() == 0:
            pytest.skip("root writes everywhere")
        index.parent.chmod(0o555)
    else:
        from medretrieval.index import push as module

        def refuse(folder: Path, out: Path) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(module, "lock_folder", refuse)
    try:
        push(index, REPO)
    finally:
        index.parent.chmod(0o755)
    nothing_left(index)
    with open_named(REPO) as remote, open_store(index) as local:
        assert_same(remote, local)


def test_too_many_files(hub: LocalHub, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medretrieval.index.push._MAX_FOLDER", 3)
    with pytest.raises(UsageError, match="4 files in slices/, the Hub takes 3"):
        push(index, REPO)
    assert hub.requests() == []


def test_a_link_to_an_index(hub: LocalHub, index: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(index)
    push(tmp_path / "link", REPO)
    assert hits(REPO) == hits(index)
    nothing_left(index)


def test_batches(monkeypatch: pytest.MonkeyPatch, hub: LocalHub, index: Path) -> None:
    monkeypatch.setattr(upload, "_BATCH_FILES", 2)
    monkeypatch.setattr(upload, "_BATCH_BYTES", 3000)
    push(index, REPO)
    assert hits(REPO) == hits(index)
    edit_manifest(index, lambda data: data.update(license="mit"))
    done = push(index, REPO)
    assert done.sent == sum(len(hub.repo(REPO).content(name)) for name in (CARD, MANIFEST))
