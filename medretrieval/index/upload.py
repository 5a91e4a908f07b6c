"""One version of an index on its way to the Hub.

Large files are sent first, so that an interrupted upload goes on where it stopped: the Hub says
which of them it has. The commit comes last, and is all or nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from medretrieval import hub
from medretrieval.errors import IndexFormatError, MedRetrievalError, UnavailableError, UsageError
from medretrieval.index.files import MANIFEST, FileEntry, is_derived
from medretrieval.index.gate import Gate
from medretrieval.index.in_place import file_entry
from medretrieval.index.manifest import Manifest, read_manifest
from medretrieval.index.release import Release
from medretrieval.index.remote import HubFiles
from medretrieval.types import Progress

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CALL_DEADLINE_S = (
    60.0  # of one answer of the Hub; a commit of thousands of files takes some seconds
)
_SLOWEST = 50_000  # bytes a second; an upload that is slower is given up
_BATCH_FILES = 16
_BATCH_BYTES = 64 << 20
_OWN = frozenset({".gitattributes"})  # of the Hub itself
_SMALL = 10 << 20  # the Hub stores larger files by their sha256, whatever they are
_DATASET = "dataset"

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What was published.

    Attributes:
        repo: ORG/NAME.
        commit: 40 hexadecimal digits.
        tag: of the version of the index, such as "v2".
        url: of the page of the data set.
        created: whether the data set is new.
        sent: bytes of the files that the Hub did not have.
        withheld: why images and masks were left out, None if they were not.
    """

    repo: str
    commit: str
    tag: str
    url: str
    created: bool
    sent: int
    withheld: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Upload:
    """One push."""

    def __init__(self, repo: str, release: Release, progress: Progress) -> None:
        from huggingface_hub import HfApi

        self._api: HfApi = HfApi(library_name="medretrieval")
        self._repo = repo
        self._release = release
        self._manifest = release.manifest
        self._progress = progress
        self._tag = f"v{release.manifest.version}"

    def run(self, *, private: bool | None, gate: Gate | None, squash: bool, message: str) -> Pushed:
        self._progress(0, 1, f"asking for {self._repo}")
        created = self._prepare(private=private, gate=gate)
        head, tags = self._state()
        self._check_version(head, tags)
        there = self._files(head)
        changed = self._changed(there)
        stale = [name for name in there if name not in self._all() and name not in _OWN]
        sent = self._send(changed)
        commit = head
        if changed or stale:
            commit = self._commit(changed, stale, head, message or f"Version {self._tag}")
        if squash:
            commit = self._squash(tags, commit)
        if squash or self._tag not in tags:
            self._ask(
                lambda: self._api.create_tag(
                    self._repo,
                    tag=self._tag,
                    revision=commit,
                    repo_type=_DATASET,
                    tag_message=f"Version {self._manifest.version} of the index",
                )
            )
        return Pushed(
            repo=self._repo,
            commit=commit,
            tag=self._tag,
            url=f"{self._api.endpoint}/datasets/{self._repo}",
            created=created,
            sent=sent,
            withheld=self._release.withheld,
        )

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        """One call of the Hub, within a time and with its refusals in words."""
        try:
            return hub.within(CALL_DEADLINE_S, call)
        except MedRetrievalError:
            raise
        except Exception as error:  # the client, and what it stands on, has many kinds
            raise UnavailableError(
                f"{self._repo} cannot be published: {hub.reason(error)}. What was sent is kept "
                "there for the same push again"
            ) from error

    def _prepare(self, *, private: bool | None, gate: Gate | None) -> bool:
        """Make the data set if it is not there, with the wanted settings; whether it was made."""
        from huggingface_hub.errors import RepositoryNotFoundError

        api, repo = self._api, self._repo

        def make() -> bool:
            try:
                api.repo_info(repo, repo_type=_DATASET, timeout=hub.REQUEST_TIMEOUT_S)
            except RepositoryNotFoundError:
                api.create_repo(repo, repo_type=_DATASET, private=private is not False)
                return True
            return False

        created = self._ask(make)
        change = None if created else private
        if gate is not None or change is not None:
            self._ask(
                lambda: api.update_repo_settings(
                    repo, gated=gate, private=change, repo_type=_DATASET
                )
            )
        return created

    def _state(self) -> tuple[str, dict[str, str]]:
        """The commit of the main branch, and tag -> commit."""
        refs = self._ask(lambda: self._api.list_repo_refs(self._repo, repo_type=_DATASET))
        heads = {branch.name: branch.target_commit for branch in refs.branches}
        return heads["main"], {tag.name: tag.target_commit for tag in refs.tags}

    def _check_version(self, head: str, tags: Mapping[str, str]) -> None:
        """Refuse to publish over a version that is another, or later."""
        if self._tag in tags:
            there = self._manifest_at(tags[self._tag])
            if there is not None and _content(there) != _content(self._manifest):
                raise UsageError(
                    f"{self._repo} has a version {self._manifest.version} already, and it is not "
                    "this index. A version is published once: make a new one (append, remove, "
                    "add-embedder), or pull that one and merge"
                )
        latest = self._manifest_at(head)
        if latest is not None and latest.version > self._manifest.version:
            raise UsageError(
                f"{self._repo} is at version {latest.version}, this index is version "
                f"{self._manifest.version}: `medretrieval pull {self._repo} FOLDER` gives the "
                "later one to go on from"
            )

    def _manifest_at(self, commit: str) -> Manifest | None:
        """The manifest at a commit; None where there is none, or one that is damaged."""
        try:
            files = HubFiles(self._repo, commit)
            return read_manifest(files.folder, blobs=files.blobs)
        except IndexFormatError:
            return None

    def _files(self, commit: str) -> dict[str, str]:
        """Path -> sha256 of a large file or Git's hash of a small one, at a commit."""

        def listed() -> dict[str, str]:
            from huggingface_hub.hf_api import RepoFile

            tree = self._api.list_repo_tree(
                self._repo, recursive=True, revision=commit, repo_type=_DATASET
            )
            files = [entry for entry in tree if isinstance(entry, RepoFile)]
            return {f.path: f.lfs.sha256 if f.lfs else f.blob_id for f in files}

        return self._ask(listed)

    def _all(self) -> dict[str, FileEntry]:
        """Every file to be published, with the manifest."""
        entry = file_entry(self._release.folder / MANIFEST)
        return {**self._manifest.files, MANIFEST: entry}

    def _changed(self, there: Mapping[str, str]) -> dict[str, FileEntry]:
        """The files that the main branch does not have like this."""
        return {
            name: entry
            for name, entry in self._all().items()
            if name not in there
            or there[name] not in (entry.sha256, _git_hash(self._release.folder / name, entry))
        }

    def _send(self, changed: Mapping[str, FileEntry]) -> int:
        """Send the large files, some at a time."""
        from huggingface_hub import CommitOperationAdd

        total = sum(entry.bytes for entry in changed.values())
        sent = 0
        self._operations: list[CommitOperationAdd] = []
        for names in _batches(changed):
            size = sum(changed[name].bytes for name in names)
            additions = [
                CommitOperationAdd(path_in_repo=n, path_or_fileobj=self._release.folder / n)
                for n in names
            ]
            self._progress(sent, total, f"sending {names[0]}")
            self._transfer(additions, size, sent, total)
            self._operations += additions
            sent += size
        self._progress(total, total, "sent")
        return total

    def _transfer(self, additions: Sequence[Any], size: int, sent: int, total: int) -> None:
        def transfer(meter: hub.Meter) -> None:
            self._api.preupload_lfs_files(
                self._repo, additions, repo_type=_DATASET, num_threads=2, free_memory=False
            )

        what = f"sending {additions[0].path_in_repo}"
        try:
            hub.steadily(
                transfer,
                stalled_s=hub.STALL_S + size / _SLOWEST,
                report=lambda _: self._progress(sent, total, what),
            )
        except MedRetrievalError:
            raise
        except Exception as error:
            raise UnavailableError(
                f"{self._repo} was not published: {additions[0].path_in_repo} or a file after it "
                f"could not be sent ({hub.reason(_cause(error))}). {sent} of {total} bytes are "
                "there and are not sent again: run the same push again"
            ) from error

    def _commit(
        self, changed: Mapping[str, FileEntry], stale: Sequence[str], head: str, message: str
    ) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *self._operations,
            *(CommitOperationDelete(name) for name in stale),
        ]
        self._progress(1, 1, "committing")
        info = self._ask(
            lambda: self._api.create_commit(
                self._repo,
                operations,
                commit_message=message,
                parent_commit=head,
                repo_type=_DATASET,
            )
        )
        return str(info.oid)

    def _squash(self, tags: Mapping[str, str], commit: str) -> str:
        """Leave one commit, without tags, and no large file that it does not have."""
        api, repo = self._api, self._repo
        self._progress(1, 1, "forgetting earlier versions")
        for tag in tags:
            self._ask(partial(api.delete_tag, repo, tag=tag, repo_type=_DATASET))
        self._ask(
            lambda: api.super_squash_history(
                repo, commit_message=f"Version {self._tag}", repo_type=_DATASET
            )
        )
        kept = {entry.sha256 for entry in self._all().values()}

        def delete() -> None:
            listed = api.list_lfs_files(repo, repo_type=_DATASET)
            gone = [file for file in listed if file.file_oid not in kept]
            if gone:
                api.permanently_delete_lfs_files(
                    repo, gone, rewrite_history=True, repo_type=_DATASET
                )

        self._ask(delete)
        return self._state()[0]


def _cause(error: Exception) -> Exception:
    """What the client met, where it says only that an upload failed."""
    if type(error) is RuntimeError and isinstance(error.__cause__, Exception):
        return error.__cause__
    return error


def _content(manifest: Manifest) -> dict[str, str]:
    """What a version consists of: the hashes of the files that cannot be made again."""
    return {name: e.sha256 for name, e in manifest.files.items() if not is_derived(name)}


def _git_hash(path: Path, entry: FileEntry) -> str | None:
    """Git's hash of a small file; None of a large one, which has its sha256 on the Hub."""
    if entry.bytes >= _SMALL:
        return None
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _batches(files: Mapping[str, FileEntry]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for name, entry in files.items():
        if batch and (len(batch) == _BATCH_FILES or size + entry.bytes > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(name)
        size += entry.bytes
    if batch:
        yield batch
