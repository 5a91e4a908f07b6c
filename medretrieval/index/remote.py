"""An index that is a data set of the Hub: found, pinned to a commit, and fetched file by file.

Files lie in the cache of the Hub's client, where other revisions and other programs find them
again. What was fetched once is there without network too. Nothing is believed: every file is
compared with the manifest at the commit, in size while it comes and by its sha256 before it is
used, the manifest with the hash that the Hub announced; one that is not right is deleted from the
cache.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

from medretrieval import hub
from medretrieval.errors import IndexFormatError, MedRetrievalError, UnavailableError
from medretrieval.index.files import MANIFEST, FileEntry, git_hash, sha256_file
from medretrieval.index.manifest import MAX_MANIFEST_BYTES
from medretrieval.index.reference import COMMIT
from medretrieval.types import Progress, no_progress

logger = logging.getLogger(__name__)

_AT_ONCE = 4
_ANSWERS_S = 10.0  # a Hub that answered so short a time ago is taken to be there still
MAIN = "main"


class HubFiles:
    """The files of a data set at one commit.

    Attributes:
        repo: ORG/NAME.
        commit: 40 hexadecimal digits.
        folder: where they lie, with the manifest in it already.
        progress: called with fetched bytes, of how many, and what for.

    Args:
        revision: the branch or tag that `commit` is; noted once the manifest is here, so that
            `locate` knows it without network.

    Raises:
        UnavailableError: the manifest is not here and cannot be fetched.
        IndexFormatError: the data set is no index, or its manifest is damaged.
    """

    def __init__(
        self,
        repo: str,
        commit: str,
        *,
        revision: str | None = None,
        progress: Progress = no_progress,
    ) -> None:
        self.repo = repo
        self.commit = commit
        self.progress = progress
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._answered = time.monotonic()  # by the Hub, or from the cache
        self.folder = self._fetched({MANIFEST: MAX_MANIFEST_BYTES})[0].parent
        self._answered = -math.inf
        if not _intact(self.folder / MANIFEST):
            self._delete(MANIFEST)
            raise IndexFormatError(
                f"{MANIFEST} of {repo} at {commit[:12]} was refused and deleted: it was damaged on "
                "its way or on this disk. Fetch it again: the same call does"
            )
        if revision is not None:
            self._note(revision)

    @property
    def name(self) -> str:
        """What opens it again, at this very commit."""
        return f"{self.repo}@{self.commit}"

    @property
    def blobs(self) -> Path:
        """The folder that the cache's links lead into."""
        return (self.folder.parent.parent / "blobs").resolve()

    def fetch(self, files: Mapping[str, FileEntry]) -> None:
        """Bring files of the index into the folder that are not there; those that are, stay.

        Raises:
            UnavailableError: one cannot be fetched.
            IndexFormatError: one is larger than the manifest says, or not there.
        """
        with ExitStack() as stack:
            # Whoever wants a file that another thread is fetching waits for that one.
            for name in sorted(name for name in files if not self._here(name)):
                stack.enter_context(self._locks[name])
            missing = {name: e.bytes for name, e in files.items() if not self._here(name)}
            if missing:
                self._fetched(missing)

    def refuse(self, name: str, error: IndexFormatError) -> IndexFormatError:
        """Delete a file that is not what the manifest says; return the error to raise."""
        self._delete(name)
        return IndexFormatError(
            f"{name} of {self.repo} at {self.commit[:12]} was refused and deleted: it is not the "
            f"file that {MANIFEST} lists ({error}). Fetch it again, the same call does; if that "
            "is the same, the data set was changed or damaged, tell its owners and do not use it"
        )

    def _delete(self, name: str) -> None:
        """Delete a file from the cache."""
        link = self.folder / name
        target = link.resolve()
        for path in (target, link):
            if path == link or target.parent == self.blobs:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _note(self, revision: str) -> None:
        """Write down which commit a branch or tag is, where the Hub's client does."""
        if COMMIT.fullmatch(revision):
            return
        path = self.folder.parent.parent / "refs" / revision
        staged = path.with_name(f".{uuid4().hex}.tmp")
        with contextlib.suppress(OSError):  # such as a cache that is only read
            path.parent.mkdir(parents=True, exist_ok=True)
            staged.write_text(self.commit)
            os.replace(staged, path)

    def _here(self, name: str) -> bool:
        return (self.folder / name).exists()

    def _fetched(self, limits: Mapping[str, int]) -> list[Path]:
        """Return the paths of files, fetched if need be, each of at most so many bytes."""
        total = sum(limits.values())
        what = f"fetching {self.repo}"
        known = MANIFEST not in limits

        def transfer(meter: hub.Meter) -> list[Path]:
            def one(name: str) -> Path:
                try:
                    return self._one(name, limits[name], meter)
                except BaseException:
                    meter.stopped = True  # the others are of no use any more
                    raise

            return hub.each(one, limits, at_once=_AT_ONCE)

        hub.small_pieces()
        try:
            self._ask_first(next(iter(limits)))
            paths = hub.steadily(
                transfer,
                report=lambda done: self.progress(min(done, total), total, what) if known else None,
            )
            self._answered = time.monotonic()
            return paths
        except MedRetrievalError:
            raise
        except Exception as error:  # the client, and what it stands on, has many kinds
            names = ", ".join(list(limits)[:3]) + (", ..." if len(limits) > 3 else "")
            raise cannot_fetch(f"{names} of {self.repo} at {self.commit[:12]}", error) from error

    def _ask_first(self, name: str) -> None:
        """Find out whether the Hub answers: its client tries a download for half a minute."""
        if hub.offline() or time.monotonic() - self._answered < _ANSWERS_S:
            return
        try:
            hub.resolve(self.repo, [name], self.commit, repo_type="dataset")
        except FileNotFoundError:
            raise self._lacks(name) from None

    def _one(self, name: str, limit: int, meter: hub.Meter) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

        meter.count(0)  # nothing is begun for whoever waits no more
        try:
            path = hf_hub_download(
                self.repo,
                name,
                repo_type="dataset",
                revision=self.commit,
                etag_timeout=hub.REQUEST_TIMEOUT_S,
                local_files_only=hub.offline(),
                tqdm_class=meter.bar(limit),
            )
        except RemoteEntryNotFoundError:
            raise self._lacks(name) from None
        except hub.OversizeError as error:
            raise IndexFormatError(
                f"{name} of {self.repo} at {self.commit[:12]} was refused: {error}. The data set "
                "was changed or damaged; tell its owners and do not use it"
            ) from None
        except LocalEntryNotFoundError as error:
            if hub.offline():
                raise UnavailableError(
                    f"{name} of {self.repo} at {self.commit[:12]} was not fetched yet, and "
                    "HF_HUB_OFFLINE is set. Open it once with network, or fetch all of it with "
                    f"`medretrieval pull {self.repo}@{self.commit} FOLDER`"
                ) from error
            raise
        meter.count(0)
        return Path(path)

    def _lacks(self, name: str) -> IndexFormatError:
        if name == MANIFEST:
            return _no_index(self.repo)
        return IndexFormatError(
            f"{self.repo} at {self.commit[:12]} lacks {name}, which its {MANIFEST} lists; the data "
            "set is incomplete, tell its owners or take another revision"
        )


def locate(repo: str, revision: str | None) -> str:
    """Return the commit that a revision of a data set is now, or was when it was last asked for.

    Args:
        revision: branch, tag or commit; None for the main branch.

    Raises:
        UnavailableError: there is no such data set or revision, it cannot be read with the present
            login, or the Hub does not answer and nothing was fetched before.
        IndexFormatError: the data set is no index.
    """
    wanted = revision or MAIN
    known = _known_commit(repo, wanted)
    if COMMIT.fullmatch(wanted) and known is not None:
        return wanted
    if hub.offline():
        if known is None:
            raise UnavailableError(
                f"{repo}{f'@{revision}' if revision else ''} was not fetched yet, and "
                "HF_HUB_OFFLINE is set, so the Hub is not asked; open it once with network"
            )
        return known
    try:
        return hub.resolve(repo, [MANIFEST], wanted, repo_type="dataset")[1]
    except FileNotFoundError:
        raise _no_index(repo) from None
    except Exception as error:
        if known is not None and not _refused(error):
            logger.warning(
                "%s: the state that was fetched last is used, %s (%s)",
                repo,
                known[:12],
                hub.reason(error),
            )
            return known
        raise cannot_fetch(f"{repo}{f'@{revision}' if revision else ''}", error) from error


def _intact(path: Path) -> bool:
    """Whether a file of the cache is what the Hub announced, by which the cache names it."""
    name = path.resolve().name
    if COMMIT.fullmatch(name):
        return git_hash(path.read_bytes()) == name
    return len(name) != 64 or sha256_file(path) == name


def cannot_fetch(what: str, error: Exception) -> UnavailableError:
    """The error for what the Hub does not give."""
    return UnavailableError(f"{what} cannot be fetched: {hub.reason(error)}")


def _no_index(repo: str) -> IndexFormatError:
    return IndexFormatError(
        f"the data set {repo} is no index: it has no {MANIFEST}; give one that "
        "`medretrieval push` made"
    )


def _refused(error: Exception) -> bool:
    """Whether the Hub answered, and the answer is no."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, HfHubHTTPError) and error.response.status_code < 500


def _known_commit(repo: str, revision: str) -> str | None:
    """The commit of a revision whose manifest is in the cache; no network is used."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, MANIFEST, revision=revision, repo_type="dataset")
    return Path(found).parent.name if isinstance(found, str) else None
