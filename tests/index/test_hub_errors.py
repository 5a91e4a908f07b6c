"""What can go wrong on the way from the Hub ends soon, in plain words, with nothing half-written.

The API that it meets is modelled on huggingface_hub 2.4.0, see `tests/hub/server.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.client import LocalHub
from sharing import MANIFEST, REPO, hits, make_index, pushed, stranger

from medretrieval import hub as hub_client
from medretrieval.errors import IndexFormatError, NewerSchemaError, UnavailableError, UsageError
from medretrieval.index import remote
from medretrieval.index.opening import open_named
from medretrieval.index.pull import pull

Fetch = Callable[[str], object]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return make_index(tmp_path / "hearts")


@pytest.fixture(params=["open", "pull"])
def fetch(request: pytest.FixtureRequest, tmp_path: Path) -> Fetch:
    """Opens or pulls an index by its name; a failed pull leaves nothing."""
    if request.param == "open":
        return lambda source: open_named(source).close()

    def fetch_all(source: str) -> object:
        folder = tmp_path / "lab-b"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            return pull(source, folder / "out")
        except Exception:
            assert not folder.exists() or not list(folder.iterdir())
            raise

    return fetch_all


def soon(patch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for longer than a moment."""
    for name in ("REQUEST_TIMEOUT_S", "ANSWER_DEADLINE_S", "STALL_S"):
        patch.setattr(hub_client, name, 0.4)


def message(fetch: Fetch, source: str, error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        fetch(source)
    text = str(caught.value)
    assert REPO in text
    assert "Traceback" not in text
    assert "\n" not in text
    return text


# There is no answer


def test_no_network(hub: LocalHub, fetch: Fetch) -> None:
    hub.stop()
    text = message(fetch, REPO, UnavailableError)
    assert hub.url in text
    assert "ConnectError" in text


def test_offline_and_never_fetched(
    hub: LocalHub, index: Path, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(hub, index)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        for source in (f"{REPO}@v1", f"{REPO}@{'0' * 40}"):
            assert "HF_HUB_OFFLINE" in message(fetch, source, UnavailableError)
    assert hub.requests() == []


@pytest.mark.parametrize("method", ["HEAD", None])
@pytest.mark.parametrize("how", ["hang", "drip"])
def test_a_hub_that_does_not_end_its_answer(
    hub: LocalHub,
    index: Path,
    fetch: Fetch,
    monkeypatch: pytest.MonkeyPatch,
    method: str | None,
    how: str,
) -> None:
    pushed(hub, index)
    with monkeypatch.context() as patch:
        soon(patch)
        if how == "hang":
            hub.hang(MANIFEST, method=method)
        else:
            hub.drip(MANIFEST, method=method, pause_s=3600.0)
        message(fetch, REPO, UnavailableError)
    hub.release()
    fetch(REPO)


@pytest.mark.parametrize("name", ["embeddings.safetensors", "columns.parquet"])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("how", ["hang", "drip"])
def test_a_transfer_that_stalls(
    hub: LocalHub,
    index: Path,
    fetch: Fetch,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    method: str,
    how: str,
) -> None:
    pushed(hub, index)
    with monkeypatch.context() as patch:
        soon(patch)
        if how == "hang":
            hub.hang(name, method=method)
        else:
            hub.drip(name, method=method, pause_s=3600.0)
        text = message(fetch, REPO, UnavailableError)
    assert "nothing came for 0.4 s" in text or "no answer" in text or "timed out" in text
    hub.release()
    fetch(REPO)


@pytest.mark.parametrize("status", [500, 502, 503, 429])
@pytest.mark.parametrize("where", ["^hub/.*manifest", "^cdn/.*columns"])
def test_a_hub_in_trouble(
    hub: LocalHub, index: Path, fetch: Fetch, status: int, where: str
) -> None:
    pushed(hub, index)
    hub.limit_retries()
    hub.fail(where, status)
    assert f"status {status}" in message(fetch, REPO, UnavailableError)
    hub.release()
    fetch(REPO)


# The answer is no


@pytest.mark.parametrize("login", ["ada", "eve", None])
def test_no_such_repository(hub: LocalHub, fetch: Fetch, login: str | None) -> None:
    if login == "eve":
        stranger(hub)
    elif login is None:
        hub.log_in(None)
    text = message(fetch, REPO, UnavailableError)
    assert "no such public repository" in text
    assert "hf auth login" in text


@pytest.mark.parametrize("login", ["eve", None])
def test_private(hub: LocalHub, index: Path, fetch: Fetch, login: str | None) -> None:
    pushed(hub, index)
    if login is None:
        hub.log_in(None)
    else:
        stranger(hub)
    assert "hf auth login" in message(fetch, REPO, UnavailableError)


@pytest.mark.parametrize("login", ["eve", None])
def test_gated(hub: LocalHub, index: Path, fetch: Fetch, login: str | None) -> None:
    pushed(hub, index, private=False, gate="manual")
    if login is None:
        hub.log_in(None)
    else:
        stranger(hub)
    text = message(fetch, REPO, UnavailableError)
    assert f"gated: accept its terms on its page ({hub.url}/datasets/{REPO})" in text
    assert ("hf auth login" in text) == (login is None)
    if login is not None:
        assert "wait until you are let in" in text
        hub.repo(REPO).access.add("eve")
        fetch(REPO)


def test_what_was_fetched_is_not_given_to_whom_the_hub_refuses(
    hub: LocalHub, index: Path, fetch: Fetch
) -> None:
    pushed(hub, index)
    fetch(REPO)
    stranger(hub)
    message(fetch, REPO, UnavailableError)


@pytest.mark.parametrize("revision", ["v7", "a/b", "0" * 40])
def test_wrong_revision(hub: LocalHub, index: Path, fetch: Fetch, revision: str) -> None:
    pushed(hub, index)
    text = message(fetch, f"{REPO}@{revision}", UnavailableError)
    assert "does not have that revision" in text
    assert f"@{revision}" in text


def test_a_revision_cannot_lead_out_of_the_cache(hub: LocalHub, fetch: Fetch) -> None:
    with pytest.raises((IndexFormatError, UsageError)):
        fetch(f"{REPO}@a/../../../../../etc/passwd")
    assert hub.requests() == []


@pytest.mark.parametrize("name", ["a..b/c", "a--b/c", "lab/x.git"])
def test_names_that_no_repository_can_have(hub: LocalHub, fetch: Fetch, name: str) -> None:
    with pytest.raises(
        (IndexFormatError, UsageError), match=r"does not exist|is a folder; give ORG"
    ):
        fetch(name)
    assert hub.requests() == []


# It is no index


def test_another_data_set(hub: LocalHub, fetch: Fetch) -> None:
    hub.add_repo(REPO, {"data/a.csv": b"a,b\n", "README.md": b"# A table\n"})
    assert "is no index: it has no manifest.json" in message(fetch, REPO, IndexFormatError)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b"1"])
def test_no_manifest(hub: LocalHub, fetch: Fetch, content: bytes) -> None:
    hub.add_repo(REPO, {MANIFEST: content})
    with pytest.raises(IndexFormatError, match=MANIFEST):
        fetch(REPO)


def test_a_huge_manifest(
    hub: LocalHub, index: Path, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(hub, index)
    monkeypatch.setattr(remote, "MAX_MANIFEST_BYTES", 100)
    text = message(fetch, REPO, IndexFormatError)
    assert "manifest.json" in text
    assert "more than the 100 bytes" in text
    monkeypatch.undo()
    fetch(REPO)


def edited(hub: LocalHub, change: Callable[[dict[str, Any]], None]) -> None:
    """Commit another manifest."""
    data = json.loads(hub.repo(REPO).content(MANIFEST))
    change(data)
    hub.commit(REPO, {MANIFEST: json.dumps(data).encode()})


def test_a_later_schema(hub: LocalHub, index: Path, fetch: Fetch) -> None:
    pushed(hub, index)
    edited(hub, lambda data: data.update(schema_version=99))
    with pytest.raises(NewerSchemaError, match="upgrade medretrieval"):
        fetch(REPO)
    fetch(f"{REPO}@v1")


@pytest.mark.parametrize(
    "name", ["../x", "slices/../../x.parquet", "/etc/passwd", "x.pkl", "C:\\x"]
)
def test_a_manifest_that_points_elsewhere(
    hub: LocalHub, index: Path, fetch: Fetch, name: str
) -> None:
    pushed(hub, index)
    edited(hub, lambda data: data["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
    hub.reset_log()
    with pytest.raises(IndexFormatError, match="is not a file of an index"):
        fetch(REPO)
    assert not hub.requests("GET", "^cdn/")


def test_a_manifest_that_lies_about_its_rows(hub: LocalHub, index: Path, fetch: Fetch) -> None:
    pushed(hub, index)
    edited(hub, lambda data: data["counts"].update(slices=13))
    with pytest.raises(IndexFormatError, match=r"expected F32 \(13, 12\)"):
        fetch(REPO)


def test_all_is_well_after_all(hub: LocalHub, index: Path) -> None:
    """The tests above fail for their reason alone."""
    pushed(hub, index)
    assert hits(REPO) == hits(index)
