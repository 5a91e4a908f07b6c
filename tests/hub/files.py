"""The endpoints that move files: resolve, and the store of large files with Git LFS before it."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import math
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from .accounts import TYPES
from .repository import HubError, Repo, no_file
from .traffic import Answer, Call, Route, json_answer

if TYPE_CHECKING:
    from .server import Hub

SHA256_DIGITS = 64
_uploads = itertools.count(1)


# Downloads


def resolve(hub: Hub, call: Call) -> Answer:
    repo = hub.storage.readable(*call.repo, call.token)
    commit = repo.commit(call.parts["rev"])
    path = call.parts["path"]
    if path not in commit.tree:
        raise no_file(commit=commit.id)
    entry = commit.tree[path]
    headers = {
        "X-Repo-Commit": commit.id,
        "Accept-Ranges": "bytes",
        "Content-Disposition": _disposition(path),
    }
    if entry.sha256 is None:
        headers["ETag"] = f'"{entry.oid}"'
        return _ranged(repo.contents[entry.key], call, headers)
    headers |= {
        "X-Linked-Etag": f'"{entry.sha256}"',
        "X-Linked-Size": str(entry.size),
        "Location": _signed(hub, "GET", f"/{call.repo[0]}s/{repo.id}/{entry.key}/{quote(path)}"),
    }
    return Answer(302, b"Found. Redirecting to the store of large files", headers)


def download(hub: Hub, call: Call) -> Answer:
    _require_signature(hub, call, "GET")
    repo = _repo(hub, call)
    content = repo.contents.get(call.parts["key"])
    if content is None:
        raise HubError(404, "NoSuchKey")
    headers = {
        "ETag": f'"{hashlib.md5(content).hexdigest()}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": _disposition(call.parts["path"]),
    }
    return _ranged(content, call, headers)


def _disposition(path: str) -> str:
    name = path.rpartition("/")[2]
    return f"inline; filename*=UTF-8''{quote(name)}; filename=\"{quote(name)}\";"


def _ranged(content: bytes, call: Call, headers: dict[str, str]) -> Answer:
    """The content, or of it the one range that was asked for."""
    headers["Content-Type"] = "application/octet-stream"
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", call.request.headers.get("range", ""))
    if asked is None or not any(asked.groups()):
        return Answer(200, content, headers)
    first, last = asked.groups()
    if first:
        start, end = int(first), min(int(last) + 1 if last else len(content), len(content))
    else:
        start, end = max(len(content) - int(last), 0), len(content)
    if start >= end:
        return Answer(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
    return Answer(206, content[start:end], headers)


# Addresses of the store, which whoever has them may use


def _signature(hub: Hub, method: str, path: str) -> str:
    said = f"{method} {path}".encode()
    return hmac.new(hub.secret, said, hashlib.sha256).hexdigest()[:32]


def _signed(hub: Hub, method: str, path: str) -> str:
    return f"{hub.cdn_url}{path}?Expires=1767225600&Signature={_signature(hub, method, path)}"


def _require_signature(hub: Hub, call: Call, method: str) -> None:
    expected = _signature(hub, method, urlsplit(call.request.path).path)
    if call.query.get("Signature") != [expected]:
        raise HubError(403, "SignatureDoesNotMatch")


def _repo(hub: Hub, call: Call) -> Repo:
    repo = hub.storage.repos.get(call.repo)
    if repo is None:
        raise HubError(404, "NoSuchKey")
    return repo


# Uploads: the client asks where to put objects, puts them there, and has them verified


def batch(hub: Hub, call: Call) -> Answer:
    repo, _ = hub.storage.writable(*call.repo, call.token)
    asked = call.json()
    if asked["operation"] != "upload" or asked.get("hash_algo", "sha256") != "sha256":
        raise HubError(422, "Only uploads of sha256 objects are modelled")
    if name := asked.get("ref", {}).get("name"):
        repo.commit(name)
    multipart = "multipart" in asked.get("transfers", [])
    objects = [_actions(hub, repo, object_, multipart) for object_ in asked["objects"]]
    return json_answer({"objects": objects}, headers={"Content-Type": _LFS})


def _actions(hub: Hub, repo: Repo, object_: dict[str, Any], multipart: bool) -> dict[str, Any]:
    oid, size = object_["oid"], object_["size"]
    said: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
    if oid in repo.contents:
        return said
    upload = f"/{repo.type}s/{repo.id}/upload/{oid}/{next(_uploads)}"
    if multipart and size > hub.multipart_over:
        parts = range(1, math.ceil(size / hub.part_size) + 1)
        urls = {str(part): _signed(hub, "PUT", f"{upload}/{part}") for part in parts}
        path = upload.replace("/upload/", "/complete/")
        href = f"{hub.url}{path}?Signature={_signature(hub, 'POST', path)}"
        action = {"href": href, "header": {"chunk_size": str(hub.part_size), **urls}}
    else:
        action = {"href": _signed(hub, "PUT", upload)}
    verify = f"{hub.url}/{repo.prefix}{repo.id}.git/info/lfs/objects/verify"
    return said | {"actions": {"upload": action, "verify": {"href": verify}}}


def put(hub: Hub, call: Call) -> Answer:
    """An object, or a part of one."""
    _require_signature(hub, call, "PUT")
    repo = _repo(hub, call)
    etag = hashlib.md5(call.body).hexdigest()
    if "part" in call.parts:
        parts = hub.parts.setdefault((repo.id, call.parts["upload"]), {})
        parts[int(call.parts["part"])] = (etag, call.body)
    else:
        _store(repo, call.parts["oid"], call.body)
    return Answer(200, b"", {"ETag": f'"{etag}"'})


def complete(hub: Hub, call: Call) -> Answer:
    _require_signature(hub, call, "POST")
    repo = _repo(hub, call)
    kept = hub.parts.get((repo.id, call.parts["upload"]), {})
    asked = {part["partNumber"]: part["etag"].strip('"') for part in call.json()["parts"]}
    if asked != {number: etag for number, (etag, _) in kept.items()}:
        raise HubError(400, "InvalidPart")
    _store(repo, call.parts["oid"], b"".join(kept[number][1] for number in sorted(kept)))
    del hub.parts[repo.id, call.parts["upload"]]
    return json_answer({})


def _store(repo: Repo, oid: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != oid:
        raise HubError(400, "The SHA256 you specified did not match the calculated checksum")
    repo.store(content)


def verify(hub: Hub, call: Call) -> Answer:
    repo, _ = hub.storage.writable(*call.repo, call.token)
    asked = call.json()
    content = repo.contents.get(asked["oid"])
    if content is None or len(content) != asked["size"]:
        raise HubError(404, "The object was not uploaded, or has another size")
    return json_answer({})


def large_objects(hub: Hub, call: Call) -> Answer:
    """What is stored, whether or not a commit still has it."""
    repo, _ = hub.storage.writable(*call.repo, call.token)
    names: dict[str, str] = {}
    for commit in repo.commits.values():
        names |= {entry.sha256: path for path, entry in commit.tree.items() if entry.sha256}
    stored = [
        {
            "fileOid": oid,
            "oid": oid,
            "filename": names.get(oid, ""),
            "size": len(content),
            "pushedAt": repo.created,
            "ref": "main",
        }
        for oid, content in repo.contents.items()
        if len(oid) == SHA256_DIGITS
    ]
    return json_answer(stored)


def delete_large_objects(hub: Hub, call: Call) -> Answer:
    repo, _ = hub.storage.writable(*call.repo, call.token)
    asked = call.json()["deletions"]
    for oid in asked["sha"]:
        if repo.contents.pop(oid, None) is None:
            raise HubError(404, f"There is no object {oid}")
    if asked["rewriteHistory"]:
        repo.remove_from_history(set(asked["sha"]))
    return json_answer({})


_LFS = "application/vnd.git-lfs+json"
_REPO = "/(?:(?P<kind>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)"
_STORE = "/(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
_API = f"/api/(?P<kind>{'|'.join(TYPES)})/(?P<id>[^/]+/[^/]+)"
_UPLOAD = "(?P<oid>[0-9a-f]{64})/(?P<upload>[0-9]+)"

ROUTES: tuple[Route, ...] = (
    ("GET|HEAD", f"{_REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", resolve),
    ("POST", rf"{_REPO}\.git/info/lfs/objects/batch", batch),
    ("POST", rf"{_REPO}\.git/info/lfs/objects/verify", verify),
    ("POST", f"{_STORE}/complete/{_UPLOAD}", complete),
    ("GET", f"{_API}/lfs-files", large_objects),
    ("POST", f"{_API}/lfs-files/batch", delete_large_objects),
)
CDN_ROUTES: tuple[Route, ...] = (
    ("PUT", f"{_STORE}/upload/{_UPLOAD}(?:/(?P<part>[0-9]+))?", put),
    ("GET|HEAD", f"{_STORE}/(?P<key>[^/]+)/(?P<path>.+)", download),
)
