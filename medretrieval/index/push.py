"""Publishing an index as a data set of the Hub: one commit and one tag a version."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medretrieval import hub
from medretrieval.errors import MedRetrievalError, UnavailableError, UsageError
from medretrieval.index.data_set import DataSet
from medretrieval.index.files import SLICES
from medretrieval.index.gate import Gate, check_gate
from medretrieval.index.manifest import Manifest, read_manifest
from medretrieval.index.reference import is_repo
from medretrieval.index.release import make_release
from medretrieval.index.upload import Pushed, Upload
from medretrieval.index.workspace import lock_folder, writing
from medretrieval.types import Progress, no_progress

logger = logging.getLogger(__name__)

_MAX_FOLDER = 10_000  # files of a folder, as the Hub asks for


def push(
    index: str | Path,
    repo: str,
    *,
    private: bool | None = None,
    gate: str | None = None,
    images: bool | None = None,
    tables: bool = True,
    squash_history: bool = False,
    message: str = "",
    progress: Progress = no_progress,
) -> Pushed:
    """Publish an index, or a new version of it.

    Args:
        index: an index folder; it stays as it is.
        repo: ORG/NAME; made if it is not there.
        private: whether only its owners see it. None: a new one yes, an existing one as it is.
        gate: "auto" or "manual": whoever wants it has to answer questions, and is let in at once or
            by its owners. None leaves it as it is.
        images, tables: see `release.make_release`.
        squash_history: forget all earlier commits and versions, and delete files that only they
            had, as it must be where a patient was removed.
        message: of the commit.
        progress: called with sent bytes, of how many, and what is going on.

    Raises:
        UsageError: no name of a data set; images or identifiers that may not be published; another
            index has this version there, or a later one is there.
        IndexFormatError: the index is damaged or has files that its manifest does not list.
        UnavailableError: the Hub does not answer, or does not allow it.
    """
    gate_kind = check_gate(gate)
    check_repo(repo)
    if hub.offline():
        raise UnavailableError(
            f"{repo} cannot be published: HF_HUB_OFFLINE is set, so the Hub is not asked"
        )
    _check_folders(read_manifest(Path(index)))  # nothing is made beside what is no index

    def asked() -> Gate | None:
        """The gate that there will be; the questions of one that is there stay on the card."""
        return DataSet(repo).seen()[1] if gate_kind is None else gate_kind

    with _staging(Path(index)) as folder, hub.quiet():
        release = make_release(
            Path(index),
            folder,
            repo=repo,
            images=images,
            tables=tables,
            gate=asked,
            progress=progress,
        )
        return Upload(repo, release, progress).run(
            private=private, gate=gate_kind, squash=squash_history, message=message
        )


def check_repo(repo: str) -> None:
    """Refuse what cannot be the name of a data set.

    Raises:
        UsageError: it is not ORG/NAME.
    """
    if not is_repo(repo):
        raise UsageError(
            f"{repo!r} cannot be the name of a data set; expected ORG/NAME of letters, digits, "
            "dots and dashes, as lab/liver-ct"
        )


def _check_folders(manifest: Manifest) -> None:
    shards = sum(name.startswith(SLICES) for name in manifest.files)
    if shards > _MAX_FOLDER:
        raise UsageError(
            f"the index has {shards} files in slices/, the Hub takes {_MAX_FOLDER} in a folder; "
            "publish it in parts, which can be opened together"
        )


@contextmanager
def _staging(index: Path) -> Iterator[Path]:
    """A folder for what is published: beside the index, so that files can be links.

    Raises:
        UsageError: another process publishes this index.
    """
    index = index.resolve()
    work = index.with_name(f".{index.name}.push")
    try:
        with writing(work):
            lock = lock_folder(work, index)
    except UsageError:
        raise UsageError(f"another process publishes {index} now; wait for it") from None
    except MedRetrievalError as error:  # such as an index on a disk that is only read
        logger.info("%s; copying into a temporary folder instead", error)
        with tempfile.TemporaryDirectory(prefix="medretrieval-push-") as temporary:
            yield Path(temporary)
        return
    with lock:
        try:
            folder = work / "release"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(work, ignore_errors=True)
