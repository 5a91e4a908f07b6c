"""Asking the Hugging Face Hub for a file, with an answer within seconds.

The Hub is asked once, with a deadline of its own that also covers name resolution and servers
that answer a byte at a time; only after that answer is anything downloaded, at the commit that it
named. Transfers may take as long as they need while bytes come. Nothing is retried here: a person
can.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

REQUEST_TIMEOUT_S = 3.0
ANSWER_DEADLINE_S = 5.0
STALL_S = 30.0  # a transfer of which nothing came for so long is given up
_POLL_S = 0.1
# The client hands on what comes in pieces of 10 MB: on a slow line it would seem to have stalled,
# and of a transfer that breaks off only whole pieces are kept.
_PIECE_BYTES = 256 << 10
_GRACE_S = 1.0  # what goes on beside a request that failed may end in peace
_THREAD = "hub-request"

Answer = TypeVar("Answer")
Item = TypeVar("Item")


def offline() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids asking the Hub."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def resolve(
    repo: str, filenames: Sequence[str], revision: str, *, repo_type: str = "model"
) -> tuple[str, str]:
    """Ask the Hub which of some files a repository has, and at which commit.

    Args:
        filenames: in order of preference; the first that exists is returned.
        revision: branch, tag or commit.
        repo_type: "model" or "dataset".

    Raises:
        TimeoutError: no answer within `ANSWER_DEADLINE_S`.
        OSError: the repository has none of the files, or this is not a Hub.
        Exception: whatever the client raises; `reason` puts it in words.
    """
    return within(ANSWER_DEADLINE_S, lambda: _resolve(repo, filenames, revision, repo_type))


def _resolve(repo: str, filenames: Sequence[str], revision: str, repo_type: str) -> tuple[str, str]:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import RemoteEntryNotFoundError

    for filename in filenames:
        url = hf_hub_url(repo, filename, revision=revision, repo_type=repo_type)
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
    asking = _Asking(ask)
    asking.thread.join(seconds)
    if asking.thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    return asking.answer()


class Meter:
    """Counts the bytes of a transfer; `count` is called by whoever transfers, from any thread."""

    def __init__(self) -> None:
        self.bytes = 0
        self.last = time.monotonic()
        self.stopped = False
        self._lock = threading.Lock()

    def count(self, number: int) -> None:
        """Note that so many bytes more went over the line; also that something happened, with 0.

        Raises:
            TimeoutError: nobody waits for the transfer any more.
        """
        with self._lock:
            self.bytes += number
            self.last = time.monotonic()
        if self.stopped:
            raise TimeoutError("the transfer was given up")

    def bar(self, limit: int) -> Any:
        """A stand-in for tqdm's class that counts here and shows nothing.

        Args:
            limit: more bytes than these are refused, by OversizeError from within the transfer.
        """
        from tqdm.auto import tqdm

        meter = self

        class Bar(tqdm):  # type: ignore[misc]
            seen = 0

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **{**kwargs, "disable": True})

            def update(self, n: float | None = 1) -> bool | None:
                number = int(n or 0)
                self.seen += number
                if self.seen > limit:
                    raise OversizeError(f"more than the {limit} bytes that it should have came")
                meter.count(number)
                return None

        return Bar


class OversizeError(Exception):
    """A file is larger than it was said to be."""


def small_pieces() -> None:
    """Let the client of this process report downloads often."""
    from huggingface_hub import constants

    constants.DOWNLOAD_CHUNK_SIZE = min(constants.DOWNLOAD_CHUNK_SIZE, _PIECE_BYTES)


def steadily(
    transfer: Callable[[Meter], Answer],
    *,
    stalled_s: float | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> Answer:
    """`transfer(meter)`, or TimeoutError if its meter counts nothing for a while.

    Args:
        stalled_s: for how long, default `STALL_S`.
        report: called again and again, in the thread of the caller, with the bytes so far; whatever
            it raises ends the transfer.
    """
    limit = STALL_S if stalled_s is None else stalled_s
    meter = Meter()
    asking = _Asking(lambda: transfer(meter))
    try:
        while True:
            asking.thread.join(_POLL_S)
            report(meter.bytes)
            if not asking.thread.is_alive():
                return asking.answer()
            if time.monotonic() - meter.last > limit:
                raise TimeoutError(f"nothing came for {limit:g} s")
    finally:
        meter.stopped = True


class _Asking(Generic[Answer]):
    """A call in a daemon thread, which is left behind if it hangs."""

    def __init__(self, ask: Callable[[], Answer]) -> None:
        self._answers: list[Answer] = []
        self._errors: list[Exception] = []

        def run() -> None:
            try:
                self._answers.append(ask())
            except Exception as error:  # handed over to the waiting thread
                self._errors.append(error)

        self.thread = threading.Thread(target=run, name=_THREAD, daemon=True)
        self.thread.start()

    def answer(self) -> Answer:
        """What it returned; what it raised is raised."""
        if self._errors:
            raise self._errors[0]
        return self._answers[0]


def each(do: Callable[[Item], Answer], items: Iterable[Item], *, at_once: int) -> list[Answer]:
    """`[do(item) for item in items]`, some at a time; after an error nothing more is begun.

    What hangs then is left behind. Threads of an executor would keep the process from ending as
    long as one of them hangs.
    """
    left = list(enumerate(items))[::-1]
    number = len(left)
    done: queue.SimpleQueue[tuple[int, Answer] | Exception] = queue.SimpleQueue()
    lock, failed = threading.Lock(), threading.Event()

    def work() -> None:
        while not failed.is_set():
            with lock:
                if not left:
                    return
                place, item = left.pop()
            try:
                done.put((place, do(item)))
            except Exception as error:  # handed over to the waiting thread
                done.put(error)
                return

    threads = [
        threading.Thread(target=work, name=_THREAD, daemon=True)
        for _ in range(min(at_once, number))
    ]
    for thread in threads:
        thread.start()
    answers: dict[int, Answer] = {}
    for _ in range(number):
        result = done.get()
        if isinstance(result, Exception):
            failed.set()
            deadline = time.monotonic() + _GRACE_S
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            raise result
        answers[result[0]] = result[1]
    return [answers[place] for place in range(number)]


def left_behind() -> bool:
    """Whether a request goes on that nobody waits for; the client may not let the process end."""
    return any(t.name == _THREAD and t.is_alive() for t in threading.enumerate())


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars that the client draws; the caller reports its progress itself."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    drawn = not are_progress_bars_disabled()
    if drawn:
        disable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            enable_progress_bars()


def reason(error: Exception) -> str:
    """Why the Hub did not give a file, in words for a person who can do something about it."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = constants.ENDPOINT
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client wraps what it met
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, so {hub} is not asked"
    if isinstance(error, GatedRepoError):
        address, resolved, _ = str(error.response.url).partition("/resolve/")
        page = f" ({address})" if resolved else ""
        then = "log in with `hf auth login` or set HF_TOKEN"
        if get_token() is not None:
            then = "wait until you are let in if its owners decide that (or log in as who was)"
        return f"the repository at {hub} is gated: accept its terms on its page{page}, then {then}"
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
    said = "could not be reached" if type(error).__name__ == "ConnectError" else "did not give them"
    return f"{hub} {said} ({type(error).__name__}{': ' + text[0] if text else ''})"
