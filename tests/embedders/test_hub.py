"""The real Hub client against servers on this machine: answers, refusals, silence, downloads."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medretrieval import hub
from medretrieval.embedders import REGISTRY, EmbedderSpec, load_embedder

Run = Callable[..., subprocess.CompletedProcess[str]]

FETCH = """
import sys
from medretrieval import hub
from medretrieval.embedders import load_embedder
from medretrieval.errors import UnavailableError
hub.REQUEST_TIMEOUT_S = 0.5
try:
    load_embedder("dinov2-base")
except UnavailableError as error:
    print(error)
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""

# {action} leaves a JSON-able `found`.
WITH_SPEC = """
import dataclasses, json
from medretrieval.embedders import EmbedderSpec, load_embedder, status
from medretrieval.embedders.weights import fetch
from medretrieval.errors import MedRetrievalError
spec = EmbedderSpec(**json.loads({fields!r}))
try:
    {action}
except MedRetrievalError as error:
    found = str(error)
print(json.dumps(found))
"""
FETCHED = "found = [str(fetch(spec)[0]), fetch(spec)[1], status(spec)]"
IDENTITY = "found = dataclasses.asdict(load_embedder(spec).identity)"


def _script(spec: EmbedderSpec, action: str = FETCHED) -> str:
    return WITH_SPEC.format(fields=json.dumps(dataclasses.asdict(spec)), action=action)


def _found(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one message, given without loading torch."""
    assert done.returncode == 0, done.stderr
    message, modules = done.stdout.splitlines()
    assert modules == "[]"
    assert "Traceback" not in done.stderr
    spec = REGISTRY["dinov2-base"]
    assert f"hf download facebook/dinov2-base --revision {spec.revision}" in message
    assert "weights=FOLDER" in message
    return message


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted: list[socket.socket] = []

        def accept() -> None:
            try:
                while True:
                    accepted.append(server.accept()[0])
            except OSError:  # the server was closed
                return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for connection in accepted:
            connection.close()


def test_offline(run_python: Run) -> None:
    message = _refusal(run_python(FETCH, HF_HUB_OFFLINE="1"))
    assert "HF_HUB_OFFLINE is set" in message


def test_a_hub_that_never_answers(run_python: Run, silent_port: int) -> None:
    message = _refusal(run_python(FETCH, HF_ENDPOINT=f"http://127.0.0.1:{silent_port}"))
    assert f"http://127.0.0.1:{silent_port} did not give them (ReadTimeout" in message


def test_a_hub_that_is_not_there(run_python: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    message = _refusal(run_python(FETCH, HF_ENDPOINT=f"http://127.0.0.1:{port}"))
    assert "could not be reached (ConnectError" in message


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (404, "RepoNotFound", "no such public repository"),
        (404, "RevisionNotFound", "does not have that revision"),
        (404, "EntryNotFound", "has no model.safetensors or pytorch_model.bin"),
        (403, "GatedRepo", "gated: accept its terms"),
        (401, "", "refuses access"),
        (500, "", "answered with status 500"),
        (503, "", "answered with status 503"),
    ],
)
def test_a_hub_that_refuses(
    status: int, code: str, says: str, run_python: Run, local_hub: Any
) -> None:
    local_hub.error = (status, code)
    message = _refusal(run_python(FETCH, HF_ENDPOINT=local_hub.url))
    assert says in message
    asked = [request for request in local_hub.requests if "/facebook/dinov2-base/" in request]
    assert len(asked) == len(set(asked)) <= 2  # one for each weights file: nothing is tried again


def test_a_server_that_is_no_hub(run_python: Run, local_hub: Any) -> None:
    local_hub.error = (200, "")
    message = _refusal(run_python(FETCH, HF_ENDPOINT=local_hub.url))
    assert "not a Hugging Face Hub" in message


@pytest.fixture
def served(local_hub: Any, tiny_folder: Callable[[str], Path]) -> Any:
    """A Hub that has the tiny network under the name of the published one."""
    folder = tiny_folder("dinov2-base")
    local_hub.repo = "facebook/dinov2-base"
    local_hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return local_hub


@pytest.mark.parametrize("pinned", [True, False])
def test_download_then_offline(
    pinned: bool, run_python: Run, served: Any, tiny_spec: Callable[..., EmbedderSpec]
) -> None:
    spec = tiny_spec("dinov2-base", revision=served.commit if pinned else "main")
    first = _found(run_python(_script(spec), HF_ENDPOINT=served.url))
    folder, commit, state = first
    assert (commit, state) == (served.commit, "cached")
    assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == served.files
    asked = served.requests.copy()
    offline = run_python(_script(spec), HF_ENDPOINT=served.url, HF_HUB_OFFLINE="1")
    assert _found(offline) == first
    assert _found(run_python(_script(spec), HF_ENDPOINT=served.url)) == first
    # What is cached is used without asking for it.
    assert not [request for request in served.requests[len(asked) :] if "dinov2" in request]


@pytest.mark.slow
def test_the_resolved_commit_is_in_the_identity(
    run_python: Run,
    served: Any,
    tiny_spec: Callable[..., EmbedderSpec],
    tiny_folder: Callable[[str], Path],
) -> None:
    spec = tiny_spec("dinov2-base", revision="main")
    identity = _found(run_python(_script(spec, IDENTITY), HF_ENDPOINT=served.url))
    local = load_embedder(spec, weights=tiny_folder("dinov2-base")).identity
    assert identity == {
        **dataclasses.asdict(local),
        "weights": "facebook/dinov2-base",
        "revision": served.commit,
    }


@pytest.mark.slow
def test_an_unpinned_embedder_is_found_again_at_its_commit(
    run_python: Run, served: Any, tiny_spec: Callable[..., EmbedderSpec], tmp_path: Path
) -> None:
    """As an index needs it, after the repository has moved on, on a machine with an empty cache."""
    spec = tiny_spec("dinov2-base", revision="main")
    served.moves_to = "beef" + 36 * "0"
    served.requests.append("GET /earlier.safetensors")  # so that "main" has moved already
    again = f"found = load_embedder(spec, revision={served.commit!r}).identity.revision"
    assert _found(run_python(_script(spec, again), HF_ENDPOINT=served.url)) == served.commit
    now = "found = load_embedder(spec, revision='local file').identity.revision"
    moved = _found(run_python(_script(spec, now), HF_ENDPOINT=served.url, HF_HOME=str(tmp_path)))
    assert moved == served.moves_to


def test_only_the_other_weights_file(
    run_python: Run, served: Any, tiny_spec: Callable[..., EmbedderSpec]
) -> None:
    served.files.pop("preprocessor_config.json")
    spec = tiny_spec(
        "dinov2-base", revision="main", filenames=("absent.safetensors", "model.safetensors")
    )
    folder, _, state = _found(run_python(_script(spec), HF_ENDPOINT=served.url))
    assert state == "cached"
    assert {path.name for path in Path(folder).iterdir()} == {"config.json", "model.safetensors"}


def test_a_repository_that_changes_during_the_download(
    run_python: Run, served: Any, tiny_spec: Callable[..., EmbedderSpec]
) -> None:
    served.moves_to = "beef" + 36 * "0"
    spec = tiny_spec("dinov2-base", revision="main")
    found = _found(run_python(_script(spec), HF_ENDPOINT=served.url))
    assert "changed during the download" in found


def test_a_download_that_breaks_off(
    run_python: Run, served: Any, tiny_spec: Callable[..., EmbedderSpec]
) -> None:
    served.missing_on_get = "config.json"
    spec = tiny_spec("dinov2-base", revision=served.commit)
    assert "cannot be had here" in _found(run_python(_script(spec), HF_ENDPOINT=served.url))
    state = run_python(_script(spec, "found = status(spec)"), HF_ENDPOINT=served.url)
    assert _found(state) == "downloadable"
    served.missing_on_get = None
    assert _found(run_python(_script(spec), HF_ENDPOINT=served.url))[2] == "cached"


def test_deadline_of_the_whole_answer() -> None:
    never = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s"):
        hub.within(0.01, never.wait)
    never.set()  # nothing of it stays behind in this process
    assert hub.within(60, lambda: "answer") == "answer"

    def fail() -> str:
        raise ValueError("its own error")

    with pytest.raises(ValueError, match="its own error"):
        hub.within(60, fail)
