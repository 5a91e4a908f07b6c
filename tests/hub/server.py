"""A Hub on this machine, modelled on what huggingface_hub 2.4.0 and datasets 5.2.0 ask for.

It was written from the source of these clients and from the answers that they expect. Two servers
listen on 127.0.0.1: the Hub, and the store of large files (`cdn`), which has another port because
the client treats a redirection within one server differently from one to a store: it sends the
token to the first and not to the second.

Endpoints, by what calls them in huggingface_hub 2.4.0 (`R` is /api/datasets/OWNER/NAME; models and
spaces work alike):

| request | for |
|---|---|
| GET /api/whoami-v2 | `whoami` |
| POST /api/repos/create, DELETE /api/repos/delete | `create_repo`: 409 with `url` where it exists |
| GET R, R/revision/REV | `repo_info`, `?expand=`, `?blobs=True`; of gated ones without access too |
| GET R/auth-check, R/auth-check/write | `auth_check` |
| PUT R/settings | `update_repo_settings`: gated, visibility |
| POST R/user-access-request/grant | `grant_access` |
| GET R/refs, R/commits/REV | `list_repo_refs`, `list_repo_commits` (pages) |
| POST, DELETE R/tag/REV, R/branch/NAME | tags (409 where it exists) and branches |
| POST R/super-squash/BRANCH | `super_squash_history`; commits without a reference are gone then |
| GET R/tree/REV[/PATH] | `list_repo_tree`: recursive, expand, pages by the Link header |
| POST R/paths-info/REV | `get_paths_info`, at most 1000 paths |
| POST /api/validate-yaml | a card, before it is committed: a few types are checked |
| POST R/preupload/REV | regular or large: `.gitattributes`, 10 MB and more, or NUL in the sample |
| POST /datasets/OWNER/NAME.git/info/lfs/objects/batch | where to put objects that are not stored |
| PUT (store) .../upload/OID/N[/PART] | basic and multipart; the content has to have its SHA-256 |
| POST .../complete/OID/N, ...git/info/lfs/objects/verify | the end of an upload |
| GET R/lfs-files, POST R/lfs-files/batch | `list_lfs_files`, `permanently_delete_lfs_files` |
| POST R/commit/REV | header, file, lfsFile, deletedFile, deletedFolder; 412 by parentCommit |
| GET, HEAD /datasets/OWNER/NAME/resolve/REV/PATH | downloads; large files are redirected (302) |
| GET, HEAD (store) /datasets/OWNER/NAME/KEY/PATH | large files, signed; ranges (206, 416) |
| GET /api/agent-harnesses | asked once by some clients; answered with nothing |

datasets 5.2.0 needs of these: resolve (README.md and others), revision, tree, paths-info and, by
hf:// paths, ranges of resolve.

Errors carry X-Error-Code and X-Error-Message: RepoNotFound (401 without a token, 404 with one),
GatedRepo (401, 403), RevisionNotFound, EntryNotFound (404 both). The real Hub does not need the
code for 401, because the client knows it by the address; it only does so with https.

Not modelled:
- Xet. Client 2.4.0 uploads by Xet wherever hf_xet is installed and asks no server whether to, so
  that HF_HUB_DISABLE_XET has to be set; the fixture does. Answers name no Xet hash, so downloads
  never use it. `upload_folder` makes one commit then; its stream of several is part of Xet.
- Pull requests and discussions, `.gitignore` (`shouldIgnore` is always false), quotas and rate
  limits, moving of repositories, settings of organisations, fine-grained tokens, requests for
  access (only `grant_access`), counts of downloads.
- The redirection of small files to /api/resolve-cache, compression, HTTP/2, https.
- The dataset viewer and its Parquet export: their address is another host.
- Whether the real Hub hides the list of files of a gated repository is not known: it is shown here.
- Ids of commits and folders are digests of their own; ids of files are those of Git.

A request that is not modelled is answered with 501, and the fixture fails the test for it.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Self

from . import api, files
from .accounts import Storage, Token, User
from .listener import Listener
from .repository import Commit, Entry, HubError, Repo
from .traffic import (
    Answer,
    Call,
    Fault,
    Faults,
    Interruption,
    Log,
    NotModelled,
    Request,
    error_answer,
    find_route,
    json_answer,
)

MULTIPART_OVER = 20_000_000
PART_BYTES = 10_000_000
PAGE = 1000
DRIP_S = 0.05
WAIT_S = 60.0
HOME = "lab"
WRITE_TOKEN = "hf_local_ada"


class Hub:
    """A running Hub, with the means to look into it and to disturb it; see `stop`.

    At the start there is one user, "ada" of the organisation "lab", whose token is `WRITE_TOKEN`.

    Attributes:
        url, cdn_url: of the Hub, and of its store of large files.
        page_size: entries of one page of a listing.
        multipart_over: objects larger than this are uploaded in parts of `part_size` bytes.
        errors: what went wrong in the server itself, and requests that are not modelled.
    """

    def __init__(self) -> None:
        self.storage = Storage()
        self.page_size = PAGE
        self.multipart_over = MULTIPART_OVER
        self.part_size = PART_BYTES
        self.errors: list[str] = []
        self.secret = secrets.token_bytes()
        self.parts: dict[tuple[str, str], dict[int, tuple[str, bytes]]] = {}
        self.log = Log()
        self.faults = Faults()
        self._lock = threading.RLock()
        self.add_user("ada", organisations=(HOME,), token=WRITE_TOKEN)
        self._listeners = [Listener(self, "hub"), Listener(self, "cdn")]
        self.url, self.cdn_url = (listener.url for listener in self._listeners)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close everything; whoever still waits for an answer loses the connection."""
        for listener in self._listeners:
            listener.refuse()
        self.release()
        for listener in self._listeners:
            listener.close()

    # Users

    def add_user(
        self,
        name: str,
        *,
        organisations: Iterable[str] = (),
        role: str = "write",
        token: str | None = None,
    ) -> str:
        """A user with a token, which is returned; `role` is "write" or "read"."""
        if role not in ("write", "read"):
            raise ValueError(f"the role of a token is 'write' or 'read', not {role!r}")
        token = token or f"hf_local_{name}_{role}"
        self.storage.tokens[token] = Token(User(name, tuple(organisations)), role)
        return token

    # Repositories, without HTTP

    def add_repo(
        self,
        id_: str,
        content: Mapping[str, bytes] | None = None,
        *,
        type_: str = "dataset",
        private: bool = False,
        gated: str | bool = False,
    ) -> Repo:
        """A new repository, with a commit of files if any are given."""
        repo = Repo(type_, id_, self.storage.clock, private=private, gated=gated)
        self.storage.repos[type_, id_] = repo
        if content:
            self.commit(id_, content, type_=type_)
        return repo

    def repo(self, id_: str, type_: str = "dataset") -> Repo:
        return self.storage.repos[type_, id_]

    def commit(
        self,
        id_: str,
        content: Mapping[str, bytes],
        *,
        delete: Iterable[str] = (),
        message: str = "Somebody else's commit",
        branch: str = "main",
        type_: str = "dataset",
    ) -> Commit:
        """What somebody else commits to a repository."""
        with self._lock:
            repo = self.repo(id_, type_)

            def change(tree: dict[str, Entry]) -> None:
                for path in delete:
                    del tree[path]
                for path, body in content.items():
                    large = repo.is_large(path, len(body), body[:512]) and body
                    tree[path] = repo.large(repo.store(body)) if large else repo.regular(body)

            return repo.add_commit(change, branch=branch, title=message, author="somebody")

    # Damage that no id and no announced size tells of

    def flip_byte(self, id_: str, path: str, offset: int, revision: str = "main") -> None:
        """Change one byte of what is served for a file of one commit."""
        with self._lock:
            repo = self.repo(id_)
            content = bytearray(repo.content(path, revision))
            content[offset] ^= 0xFF
            repo.replace_content(path, bytes(content), revision)

    def swap(self, id_: str, path_a: str, path_b: str, revision: str = "main") -> None:
        """Serve the content of either file for the other, in one commit."""
        with self._lock:
            repo = self.repo(id_)
            a, b = repo.content(path_a, revision), repo.content(path_b, revision)
            repo.replace_content(path_a, b, revision)
            repo.replace_content(path_b, a, revision)

    # Disturbances; regular expressions are searched for in "hub/path?query" and "cdn/path?query"

    def hang(
        self, path_regex: str, *, method: str | None = None, times: int | None = None
    ) -> Fault:
        """Take requests and do not answer before the fault is released."""
        return self.faults.add(Fault(path_regex, method, times, hangs=True))

    def drip(self, path_regex: str, *, method: str | None = None, pause_s: float = DRIP_S) -> Fault:
        """Answer a byte at a time, headers included, with a pause after each."""
        return self.faults.add(Fault(path_regex, method, drips=pause_s))

    def cut(
        self,
        path_regex: str,
        *,
        after_bytes: int,
        method: str | None = None,
        times: int | None = 1,
    ) -> Fault:
        """Close the connection in the middle of an answer, after bytes of its body."""
        return self.faults.add(Fault(path_regex, method, times, cut_after=after_bytes))

    def fail(
        self,
        path_regex: str,
        status: int = 500,
        *,
        times: int | None = None,
        method: str | None = None,
        message: str = "Internal Error",
        headers: Mapping[str, str] | None = None,
        carried_out: bool = False,
    ) -> Fault:
        """Answer with an error, `times` times or until the release.

        Args:
            carried_out: what was asked is done nevertheless, as where a machine between the Hub
                and the client loses an answer.
        """
        answer = error_answer(HubError(status, message, headers=headers))
        fault = Fault(path_regex, method, times, answer=answer, carried_out=carried_out)
        return self.faults.add(fault)

    def before(
        self,
        path_regex: str,
        action: Callable[[], object],
        *,
        method: str | None = None,
        times: int | None = 1,
    ) -> Fault:
        """Do something when a request comes, before it is looked at."""
        return self.faults.add(Fault(path_regex, method, times, action=action))

    def interrupt_upload(
        self, *, after_bytes: int | None = None, after_objects: int | None = None
    ) -> Interruption:
        """Break the upload of large files off, until the release.

        Args:
            after_bytes: the connection is closed once as many bytes came, of all objects together.
            after_objects: as many objects are taken; all others are answered with status 500.
        """
        self.faults.interruption = Interruption(after_bytes, after_objects)
        return self.faults.interruption

    def release(self) -> None:
        """Switch every disturbance off."""
        self.faults.release()

    # The log

    def requests(self, method: str | None = None, path_regex: str = "") -> list[Request]:
        """The requests so far, of both servers."""
        return self.log.find(method, path_regex)

    def bytes_sent(self, path_regex: str = "") -> int:
        """Bytes in the bodies of answers; a byte is counted when it is handed to the network."""
        return sum(request.sent for request in self.requests(None, path_regex))

    def bytes_received(self, path_regex: str = "") -> int:
        """Bytes in the bodies of requests."""
        return sum(request.received for request in self.requests(None, path_regex))

    def wait_for(
        self, path_regex: str, *, method: str | None = None, timeout_s: float = WAIT_S
    ) -> Request:
        """The first such request in the log, once it has come; for what runs beside the test."""
        return self.log.wait_for(path_regex, method, timeout_s)

    def reset_log(self) -> None:
        self.log.clear()

    # Called by the listeners

    def answer(self, request: Request, body: bytes) -> Answer:
        """The undisturbed answer."""
        routes = api.ROUTES + files.ROUTES if request.host == "hub" else files.CDN_ROUTES
        with self._lock:
            try:
                endpoint, parts = find_route(routes, request.method, request.path)
                token = self.storage.token(request.headers.get("authorization"))
                return endpoint(self, Call(request, body, token, parts))
            except HubError as error:
                return error_answer(error)
            except NotModelled as error:
                self.errors.append(str(error))
                return json_answer({"error": str(error)}, 501)

    def fault_in_server(self, request: Request, error: Exception) -> Answer:
        self.errors.append(f"{request.method} {request.path}: {error!r}")
        return json_answer({"error": repr(error)}, 500)
