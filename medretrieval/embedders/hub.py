"""Weights on the Hugging Face Hub: the cache first, then the Hub, and an answer within seconds.

The Hub is asked once, with a deadline of its own that also covers name resolution and servers
that answer a byte at a time; only after that answer are files downloaded, all at the one commit
that it named. Nothing is retried: a person can.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from medretrieval.embedders.spec import CONFIG_FILE, PREPROCESSOR_FILE, EmbedderSpec
from medretrieval.errors import UnavailableError

REQUEST_TIMEOUT_S = 4.0
ANSWER_DEADLINE_S = 8.0

_LOG = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


def offline() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids asking the Hub."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def cached(spec: EmbedderSpec) -> tuple[Path, str] | None:
    """Folder and commit of a complete snapshot in the Hub cache, or None. No network.

    Unpinned weights are taken at the commit that "main" was when they were fetched.
    """
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(spec.weights, CONFIG_FILE, revision=spec.revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent  # <cache>/models--<repo>/snapshots/<commit>
    if any((folder / name).is_file() for name in spec.filenames):
        return folder, folder.name
    return None


def fetch(spec: EmbedderSpec) -> tuple[Path, str]:
    """Folder and commit of the weights of `spec`, downloaded into the Hub cache where needed.

    Raises:
        UnavailableError: offline and not cached, no answer, gated, not found, or a broken
            download; the message says how to get the weights.
    """
    found = cached(spec)
    if found is not None:
        return found
    if offline():
        raise _unavailable(
            spec, "they are not in the cache of this machine, and HF_HUB_OFFLINE is set"
        )
    _LOG.info("fetching %s (%d MB) from %s", spec.name, spec.size_mb, spec.weights)
    try:
        filename, commit = _within(ANSWER_DEADLINE_S, lambda: _resolve(spec))
        folder = _download(spec, filename, commit)
    except Exception as error:  # the client raises its own, httpx's, OS and validation errors
        raise _unavailable(spec, _reason(error)) from error
    return folder, commit


def _resolve(spec: EmbedderSpec) -> tuple[str, str]:
    """Ask the Hub which of the weight files there is, and at which commit."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError

    for filename in spec.filenames:
        url = hf_hub_url(spec.weights, filename, revision=spec.revision)
        try:
            metadata = get_hf_file_metadata(url, timeout=REQUEST_TIMEOUT_S)
        except RemoteEntryNotFoundError:
            continue
        if metadata.commit_hash is None:
            raise OSError("the server does not name a commit, so it is not a Hugging Face Hub")
        return filename, metadata.commit_hash
    raise FileNotFoundError(f"the repository has no {' or '.join(spec.filenames)}")


def _download(spec: EmbedderSpec, filename: str, commit: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    def get(name: str, revision: str) -> Path:
        path = hf_hub_download(
            spec.weights, name, revision=revision, etag_timeout=REQUEST_TIMEOUT_S
        )
        return Path(path).parent

    try:
        get(PREPROCESSOR_FILE, commit)
    except RemoteEntryNotFoundError:
        _LOG.info("%s has no %s", spec.weights, PREPROCESSOR_FILE)
    # The weights come before config.json, so that a snapshot with both is a complete one; asking
    # for the revision by its name makes the client note in the cache which commit it is.
    folder = get(filename, commit)
    if get(CONFIG_FILE, spec.revision) != folder:
        raise OSError("the repository changed during the download; try again")
    return folder


def _within(seconds: float, ask: Callable[[], _Answer]) -> _Answer:
    """`ask()`, or TimeoutError after `seconds`; what hangs is left behind in a daemon thread."""
    answers: list[_Answer] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # handed over to the waiting thread
            errors.append(error)

    thread = threading.Thread(target=run, name="hub-request", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return answers[0]


def _reason(error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return (
            f"the repository at {hub} is gated: accept its terms on its page, "
            "then log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{hub} does not have that revision of the repository"
    if isinstance(error, RepositoryNotFoundError):
        return f"{hub} has no such public repository (or asks for a login: `hf auth login`)"
    if isinstance(error, HfHubHTTPError):
        code = error.response.status_code
        if code in (401, 403):
            return f"{hub} refuses access (status {code}): run `hf auth login` or set HF_TOKEN"
        return f"{hub} answered with status {code}"
    text = str(error).strip().splitlines()
    return f"{hub} did not give them ({type(error).__name__}{': ' + text[0] if text else ''})"


def _unavailable(spec: EmbedderSpec, reason: str) -> UnavailableError:
    revision = f" --revision {spec.revision}" if spec.pinned else ""
    return UnavailableError(
        f"the weights of {spec.name} ({spec.weights}, {spec.size_mb} MB) cannot be had here: "
        f"{reason}. Fetch them where there is a network with `hf download {spec.weights}"
        f"{revision}` and copy the cache, or give a folder with {CONFIG_FILE} and "
        f"{spec.filenames[0]} as weights=FOLDER. `medretrieval embedders` lists what works now"
    )
