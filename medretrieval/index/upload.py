"""One version of an index on its way to the Hub.

Large files are sent first, so that an interrupted upload goes on where it stopped: the Hub says
which of them it has. The commit comes last, and is all or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from medretrieval import hub
from medretrieval.errors import MedRetrievalError, UnavailableError, UsageError
from medretrieval.index.data_set import DATASET, DataSet
from medretrieval.index.files import (
    CARD,
    MANIFEST,
    FileEntry,
    check_file_name,
    file_entry,
    git_hash,
    is_derived,
)
from medretrieval.index.gate import Gate
from medretrieval.index.manifest import Manifest
from medretrieval.index.release import Release
from medretrieval.types import Progress

_SLOWEST = 50_000  # bytes a second; an upload that is slower is given up
_BATCH_FILES = 16
_BATCH_BYTES = 64 << 20
_OWN = frozenset({".gitattributes"})  # of the Hub itself
_MOVED = 412  # status: another commit came first


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
        private: whether only its owners see it.
        gate: "auto" or "manual" if whoever wants it has to ask, None if not.
        before_removal: tags that are still there of versions before something was removed.
    """

    repo: str
    commit: str
    tag: str
    url: str
    created: bool
    sent: int
    withheld: str | None
    private: bool
    gate: Gate | None
    before_removal: tuple[str, ...] = ()

    def audience(self) -> str:
        """Who can have it now, in words."""
        owners = self.repo.partition("/")[0]
        if self.private:
            hidden = f"private: only {owners} sees it"
            return hidden + (", so nobody can ask at its gate yet (--public)" if self.gate else "")
        if self.gate is None:
            return "public: everyone can fetch it"
        let_in = "at once" if self.gate == "auto" else f"by {owners}, on its page"
        return f"gated: everyone sees its card; who answers the questions is let in {let_in}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Upload:
    """One push."""

    def __init__(self, repo: str, release: Release, progress: Progress) -> None:
        self._data_set = DataSet(repo)
        self._api = self._data_set.api
        self._repo = repo
        self._release = release
        self._manifest = release.manifest
        self._progress = progress
        self._tag = f"v{release.manifest.version}"

    def run(self, *, private: bool | None, gate: Gate | None, squash: bool, message: str) -> Pushed:
        self._progress(0, 1, f"asking for {self._repo}")
        created = self._data_set.create(private=private is not False)
        head, tags = self._data_set.state(alone=squash)
        there = self._data_set.files(head)
        tagged = self._check_version(head, tags, there, replace=squash)
        self._data_set.set(private=None if created else private, gate=gate)
        ours = self._all()
        changed = self._changed(ours, there)
        # What else its owners put there is left alone, such as a file of their own for the card.
        stale = [name for name in there if name not in ours and check_file_name(name)]
        sent = self._send(changed)
        commit = head
        if changed or stale:
            commit = self._commit(stale, head, message or f"Version {self._tag}")
        if squash:
            commit = self._squash(tags)
        elif self._tag in tags and not tagged:
            self._data_set.ask(
                partial(self._api.delete_tag, self._repo, tag=self._tag, repo_type=DATASET)
            )
        if squash or not tagged:
            self._data_set.ask(
                lambda: self._api.create_tag(
                    self._repo,
                    tag=self._tag,
                    revision=commit,
                    repo_type=DATASET,
                    tag_message=f"Version {self._manifest.version} of the index",
                    exist_ok=True,  # the same push from another machine
                )
            )
        seen = self._data_set.seen()
        return Pushed(
            repo=self._repo,
            commit=commit,
            tag=self._tag,
            url=f"{self._api.endpoint}/datasets/{self._repo}",
            created=created,
            sent=sent,
            withheld=self._release.withheld,
            private=seen[0],
            gate=seen[1],
            before_removal=() if squash else _before_removal(self._manifest, tags),
        )

    def _check_version(
        self, head: str, tags: Mapping[str, str], there: Mapping[str, str], *, replace: bool
    ) -> bool:
        """Refuse to publish over another data set, or a version that is another or later.

        Args:
            replace: an equal version that is another is as if it was not there.

        Returns:
            Whether the tag of this version is there.
        """
        foreign = sorted(name for name in there if name not in (*_OWN, CARD))
        if foreign and MANIFEST not in there:
            raise UsageError(
                f"{self._repo} is another data set: it has files ({', '.join(foreign[:3])}"
                f"{', ...' if len(foreign) > 3 else ''}) and no {MANIFEST}; choose another name, "
                "or delete them there"
            )
        latest = self._data_set.manifest_at(head)
        if latest is not None and latest.name != self._manifest.name:
            raise UsageError(
                f"{self._repo} is another index, {latest.name!r}; this one is "
                f"{self._manifest.name!r}. Choose another name for it on the Hub"
            )
        if latest is not None and latest.version > self._manifest.version:
            raise UsageError(
                f"{self._repo} is at version {latest.version}, this index is version "
                f"{self._manifest.version}: `medretrieval pull {self._repo} FOLDER` gives the "
                "later one to go on from"
            )
        tagged = self._data_set.manifest_at(tags[self._tag]) if self._tag in tags else None
        for found in (latest, tagged):
            if found is None or found.version != self._manifest.version or replace:
                continue
            if _content(found) != _content(self._manifest):
                raise UsageError(
                    f"{self._repo} has a version {self._manifest.version} already, and it is not "
                    "this index. A version is published once: make a new one (append, remove, "
                    "add-embedder), or pull that one, and append to it or merge into it"
                )
        return tagged is not None

    def _all(self) -> dict[str, FileEntry]:
        """Every file to be published, with the manifest."""
        entry = file_entry(self._release.folder / MANIFEST)
        return {**self._manifest.files, MANIFEST: entry}

    def _changed(
        self, ours: Mapping[str, FileEntry], there: Mapping[str, str]
    ) -> dict[str, FileEntry]:
        """The files that the main branch does not have like this."""
        folder = self._release.folder
        return {
            name: entry
            for name, entry in ours.items()
            if name not in there or not _is(there[name], entry, folder / name)
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
                self._repo, additions, repo_type=DATASET, num_threads=2, free_memory=False
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

    def _commit(self, stale: Sequence[str], head: str, message: str) -> str:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete
        from huggingface_hub.errors import HfHubHTTPError

        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *self._operations,
            *(CommitOperationDelete(name) for name in stale),
        ]
        self._progress(1, 1, "committing")

        def make() -> str:
            try:
                info = self._api.create_commit(
                    self._repo,
                    operations,
                    commit_message=message,
                    parent_commit=head,
                    repo_type=DATASET,
                )
            except HfHubHTTPError as error:
                if error.response.status_code != _MOVED:
                    raise
                raise UnavailableError(
                    f"{self._repo} was changed by somebody else while this version was sent, so "
                    "that it was not published. Look at what is there now, then run the same push "
                    "again: what was sent is not sent again"
                ) from error
            return str(info.oid)

        return self._data_set.ask(make)

    def _squash(self, tags: Mapping[str, str]) -> str:
        """Leave one commit, without tags, and no large file that it does not have."""
        api, repo = self._api, self._repo
        self._progress(1, 1, "forgetting earlier versions")
        for tag in tags:
            self._data_set.ask(partial(api.delete_tag, repo, tag=tag, repo_type=DATASET))
        self._data_set.ask(
            lambda: api.super_squash_history(
                repo, commit_message=f"Version {self._tag}", repo_type=DATASET
            )
        )
        head, _ = self._data_set.state(alone=True)
        kept = set(self._data_set.files(head).values())

        def delete() -> None:
            listed = api.list_lfs_files(repo, repo_type=DATASET)
            gone = [file for file in listed if file.file_oid not in kept]
            if gone:
                api.permanently_delete_lfs_files(
                    repo, gone, rewrite_history=True, repo_type=DATASET
                )

        self._data_set.ask(delete)
        return self._data_set.state(alone=True)[0]


def _before_removal(manifest: Manifest, tags: Iterable[str]) -> tuple[str, ...]:
    """The tags of versions that have what a later one removed."""
    last = max((change.version for change in manifest.changes if change.removed), default=0)
    numbers = sorted(int(tag[1:]) for tag in tags if re.fullmatch(r"v[1-9]\d{0,8}", tag))
    return tuple(f"v{number}" for number in numbers if number < last)


def _cause(error: Exception) -> Exception:
    """What the client met, where it says only that an upload failed."""
    if type(error) is RuntimeError and isinstance(error.__cause__, Exception):
        return error.__cause__
    return error


def _content(manifest: Manifest) -> dict[str, str]:
    """What a version consists of: the hashes of the files that cannot be made again."""
    return {name: e.sha256 for name, e in manifest.files.items() if not is_derived(name)}


def _is(hashed: str, entry: FileEntry, path: Path) -> bool:
    """Whether a file is one of the Hub, of which this is the sha256, or Git's hash if small."""
    return hashed == (entry.sha256 if len(hashed) == 64 else git_hash(path.read_bytes()))


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
