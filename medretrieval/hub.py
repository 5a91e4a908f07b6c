"""Asking the Hugging Face Hub for a file, with an answer within seconds.

The Hub is asked once, with a deadline of its own that also covers name resolution and servers
that answer a byte at a time; only after that answer is anything downloaded, at the commit that it
named. Nothing is retried: a person can.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

REQUEST_TIMEOUT_S = 3.0
ANSWER_DEADLINE_S = 5.0

Answer = TypeVar("Answer")


def offline() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids asking the Hub."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def resolve(repo: str, filenames: Sequence[str], revision: str) -> tuple[str, str]:
    """Ask the Hub which of some files a repository has, and at which commit.

    Args:
        filenames: in order of preference; the first that exists is returned.
        revision: branch, tag or commit.

    Raises:
        TimeoutError: no answer within `ANSWER_DEADLINE_S`.
        OSError: the repository has none of the files, or this is not a Hub.
        Exception: whatever the client raises; `reason` puts it in words.
    """
    return within(ANSWER_DEADLINE_S, lambda: _resolve(repo, filenames, revision))


def _resolve(repo: str, filenames: Sequence[str], revision: str) -> tuple[str, str]:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError

    for filename in filenames:
        url = hf_hub_url(repo, filename, revision=revision)
        try:
            metadata = get_hf_file_metadata(url, timeout=REQUEST_TIMEOUT_S)
        except RemoteEntryNotFoundError:
            continue
        if metadata.commit_hash is None:
            raise OSError("the server does not name a commit, so it is not a Hugging Face Hub")
        return filename, metadata.commit_hash
    raise FileNotFoundError(f"the repository has no {' or '.join(filenames)}")


def within(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """`ask()`, or TimeoutError after `seconds`; what hangs is left behind in a daemon thread."""
    answers: list[Answer] = []
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


def reason(error: Exception) -> str:
    """Why the Hub did not give a file, in words for a person who can do something about it."""
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
