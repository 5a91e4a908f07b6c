"""What a Hub keeps: repositories with their commits, references, files and large objects.

Nothing here knows HTTP. Ids of files are those of Git and Git LFS, because the client compares
them with what it has; ids of folders and commits are stable digests with Git's length. Time is a
counter, one second for each thing that happens, so that no test depends on a clock.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

MAIN = "main"
LARGE_BYTES = 10_000_000  # the Hub keeps every file from here on as a large one
SHORTEST_COMMIT = 7
FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)

# As in the `.gitattributes` with which the Hub starts a dataset.
LARGE_PATTERNS = (
    *"*.7z *.arrow *.avro *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lz4 *.mds".split(),
    *"*.mlmodel *.model *.msgpack *.npy *.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl".split(),
    *"*.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz".split(),
    *"*.wasm *.xz *.zip *.zst *tfevents* *.pcm *.sam *.raw *.aac *.flac *.mp3 *.ogg".split(),
    *"*.wav *.bmp *.gif *.png *.tiff *.jpg *.jpeg *.webp *.mp4 *.webm".split(),
)
ATTRIBUTES = ".gitattributes"
ATTRIBUTE = "{} filter=lfs diff=lfs merge=lfs -text\n"


class HubError(Exception):
    """An answer other than success: status, message, X-Error-Code and what else is answered."""

    def __init__(
        self, status: int, message: str, code: str = "", *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers = dict(headers or {})
        self.body: dict[str, Any] = {"error": message}


def no_file(message: str = "Entry not found", commit: str | None = None) -> HubError:
    headers = {"X-Repo-Commit": commit} if commit else {}
    return HubError(404, message, "EntryNotFound", headers=headers)


def git_id(content: bytes) -> str:
    """The id that Git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """What Git holds of a large file."""
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return text.encode()


class Clock:
    """Gives a later time at every call."""

    def __init__(self) -> None:
        self._ticks = itertools.count()

    def now(self) -> str:
        moment = FIRST_DAY + timedelta(seconds=next(self._ticks))
        return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")


@dataclass(frozen=True)
class Entry:
    """A file of one commit.

    Attributes:
        oid: what Git calls it; of a large file, the id of its pointer.
        size: as announced, in bytes.
        sha256: of a large file, None of a regular one.
        key: where its content is in `Repo.contents`; another than its hash once it was tampered
            with.
    """

    oid: str
    size: int
    sha256: str | None
    key: str

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    id: str
    parent: Commit | None = field(repr=False)
    title: str
    message: str
    author: str
    date: str
    tree: dict[str, Entry] = field(repr=False)

    def history(self) -> Iterator[Commit]:
        """From this commit back to the first."""
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent


@dataclass(frozen=True)
class Tag:
    commit: Commit
    message: str | None


@dataclass
class Repo:
    """A repository; `type` is "model", "dataset" or "space", `id` is "owner/name"."""

    type: str
    id: str
    clock: Clock
    private: bool = False
    gated: str | bool = False
    access: set[str] = field(default_factory=set)
    contents: dict[str, bytes] = field(default_factory=dict, repr=False)
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Tag] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict, repr=False)
    created: str = ""

    def __post_init__(self) -> None:
        self.created = self.clock.now()
        attributes = "".join(map(ATTRIBUTE.format, LARGE_PATTERNS)).encode()
        tree = {ATTRIBUTES: self.regular(attributes)}
        self.branches[MAIN] = self._new_commit(None, tree, "initial commit", "", "system")

    @property
    def owner(self) -> str:
        return self.id.partition("/")[0]

    @property
    def prefix(self) -> str:
        """What stands before the id in addresses."""
        return "" if self.type == "model" else f"{self.type}s/"

    # Reading

    def commit(self, revision: str) -> Commit:
        """The commit of a branch, a tag, or a (shortened) commit id.

        Raises:
            HubError: RevisionNotFound.
        """
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        if name in self.branches:
            return self.branches[name]
        if name in self.tags:
            return self.tags[name].commit
        if len(revision) >= SHORTEST_COMMIT:
            found = [commit for id_, commit in self.commits.items() if id_.startswith(revision)]
            if len(found) == 1:
                return found[0]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def entry(self, path: str, revision: str = MAIN) -> Entry:
        """
        Raises:
            HubError: RevisionNotFound or EntryNotFound.
        """
        commit = self.commit(revision)
        if path not in commit.tree:
            raise no_file(commit=commit.id)
        return commit.tree[path]

    def content(self, path: str, revision: str = MAIN) -> bytes:
        """What a download gives."""
        return self.contents[self.entry(path, revision).key]

    def paths(self, revision: str = MAIN) -> list[str]:
        return sorted(self.commit(revision).tree)

    def is_large(self, path: str, size: int, sample: bytes) -> bool:
        """Whether the Hub wants a file as a large one: by its name, its size, or as binary."""
        named = self._is_named(path, self.branches[MAIN].tree)
        return named or size >= LARGE_BYTES or b"\0" in sample

    def _is_named(self, path: str, tree: Mapping[str, Entry]) -> bool:
        """Whether `.gitattributes` has a pattern for a file."""
        entry = tree.get(ATTRIBUTES)
        lines = self.contents[entry.key].decode().splitlines() if entry else []
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        name = path.rpartition("/")[2]
        return any(fnmatch.fnmatchcase(path if "/" in p else name, p) for p in patterns)

    # Writing

    def regular(self, content: bytes) -> Entry:
        """Store the content of a regular file."""
        oid = git_id(content)
        self.contents[oid] = content
        return Entry(oid, len(content), None, oid)

    def store(self, content: bytes) -> str:
        """Store a large object; its SHA-256."""
        sha256 = hashlib.sha256(content).hexdigest()
        self.contents[sha256] = content
        return sha256

    def large(self, sha256: str) -> Entry:
        """A file whose object was stored before.

        Raises:
            HubError: it was not.
        """
        if sha256 not in self.contents:
            raise HubError(
                400,
                "Your push was rejected because an LFS pointer pointed to a file that does not "
                f"exist. Object {sha256} was not found",
            )
        size = len(self.contents[sha256])
        return Entry(git_id(pointer(sha256, size)), size, sha256, sha256)

    def add_commit(
        self,
        change: Callable[[dict[str, Entry]], None],
        *,
        branch: str = MAIN,
        title: str,
        message: str = "",
        author: str,
        parent: str | None = None,
    ) -> Commit:
        """Commit what `change` makes of the files of a branch.

        Args:
            parent: the commit that has to be the last one of the branch, if any.

        Raises:
            HubError: no such branch, another commit was made since `parent`, or `change` raised it.
        """
        if branch not in self.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = self.branches[branch]
        if parent is not None and not head.id.startswith(parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(head.tree)
        change(tree)
        self._note_large(tree)
        commit = self._new_commit(head, tree, title, message, author)
        self.branches[branch] = commit
        return commit

    def _note_large(self, tree: dict[str, Entry]) -> None:
        """Name in `.gitattributes` the large files that no pattern covers, as the Hub does."""
        new = [
            path
            for path, entry in sorted(tree.items())
            if entry.sha256 and not self._is_named(path, tree)
        ]
        if new:
            old = self.contents[tree[ATTRIBUTES].key] if ATTRIBUTES in tree else b""
            tree[ATTRIBUTES] = self.regular(old + "".join(map(ATTRIBUTE.format, new)).encode())

    def squash(self, branch: str, title: str, author: str) -> Commit:
        """Make the last commit of a branch its only one; what no reference names is gone."""
        if branch not in self.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        tree = dict(self.branches[branch].tree)
        self.branches[branch] = self._new_commit(None, tree, title, "", author)
        self.forget_unreachable()
        return self.branches[branch]

    def remove_from_history(self, objects: set[str]) -> None:
        """Make every commit anew without some large objects, all under new ids."""
        made: dict[str, Commit] = {}

        def again(commit: Commit) -> Commit:
            if commit.id not in made:
                parent = again(commit.parent) if commit.parent else None
                tree = {p: e for p, e in commit.tree.items() if e.sha256 not in objects}
                said = (commit.title, commit.message, commit.author)
                made[commit.id] = self._new_commit(parent, tree, *said)
            return made[commit.id]

        self.branches = {name: again(commit) for name, commit in self.branches.items()}
        self.tags = {name: Tag(again(tag.commit), tag.message) for name, tag in self.tags.items()}
        self.forget_unreachable()

    def forget_unreachable(self) -> None:
        heads = [*self.branches.values(), *(tag.commit for tag in self.tags.values())]
        kept = itertools.chain.from_iterable(head.history() for head in heads)
        self.commits = {commit.id: commit for commit in kept}

    def _new_commit(
        self,
        parent: Commit | None,
        tree: dict[str, Entry],
        title: str,
        message: str,
        author: str,
    ) -> Commit:
        date = self.clock.now()
        files = sorted((path, entry.oid) for path, entry in tree.items())
        said = [self.id, parent.id if parent else None, files, title, message, author, date]
        id_ = hashlib.sha1(json.dumps(said).encode()).hexdigest()
        commit = Commit(id_, parent, title, message, author, date, tree)
        self.commits[id_] = commit
        return commit

    # Tampering: what is announced of the files stays

    def replace_content(self, path: str, content: bytes, revision: str = MAIN) -> None:
        """Serve other content for a file; its ids and announced size stay."""
        tree = self.commit(revision).tree
        entry = self.entry(path, revision)
        key = f"tampered-{len(self.contents)}"
        self.contents[key] = content
        tree[path] = dataclasses.replace(entry, key=key)


def folder_id(tree: Mapping[str, Entry], folder: str) -> str:
    """A digest of all that lies in a folder ("" is the top)."""
    inside = sorted((p, e.oid) for p, e in tree.items() if not folder or p.startswith(f"{folder}/"))
    return hashlib.sha1(json.dumps(inside).encode()).hexdigest()


def listing(paths: Iterable[str], folder: str, recursive: bool) -> list[tuple[str, bool]]:
    """What lies in a folder, as sorted (path, whether it is a file); "" is the top."""
    start = f"{folder}/" if folder else ""
    found: dict[str, bool] = {}
    for path in paths:
        if not path.startswith(start):
            continue
        parts = path[len(start) :].split("/")
        for depth in range(1, len(parts) + 1 if recursive else 2):
            found[start + "/".join(parts[:depth])] = depth == len(parts)
    return sorted(found.items())


def last_change(commit: Commit, path: str) -> Commit:
    """The last commit that changed a file or anything in a folder."""

    def state(at: Commit) -> list[tuple[str, str]]:
        inside = f"{path}/"
        return sorted((p, e.oid) for p, e in at.tree.items() if p == path or p.startswith(inside))

    for at in commit.history():
        if at.parent is None or state(at.parent) != state(at):
            return at
    raise AssertionError("a history ends with a commit that has no parent")
