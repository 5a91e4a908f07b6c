"""The endpoints under /api: what a repository is, its history, and every change of it."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from .accounts import TYPES
from .cards import card_tags, front_matter, problems
from .repository import (
    MAIN,
    Commit,
    Entry,
    HubError,
    Repo,
    Tag,
    folder_id,
    last_change,
    listing,
    no_file,
    pointer,
)
from .traffic import Answer, Call, Route, json_answer

if TYPE_CHECKING:
    from .server import Hub

MAX_PATHS = 1000
DEFAULT_INFO = (
    "author sha lastModified private gated disabled tags downloads likes cardData siblings "
    "createdAt usedStorage"
).split()


# Accounts and whole repositories


def whoami(hub: Hub, call: Call) -> Answer:
    if call.token is None:
        raise HubError(401, "Invalid username or password.")
    user = call.token.user
    roles = [{"type": "org", "name": name, "roleInOrg": "write"} for name in user.organisations]
    access = {"displayName": "tests", "role": call.token.role}
    auth = {"type": "access_token", "accessToken": access}
    return json_answer({"type": "user", "name": user.name, "orgs": roles, "auth": auth})


def create_repo(hub: Hub, call: Call) -> Answer:
    if call.token is None:
        raise HubError(401, "Invalid username or password.")
    asked = call.json()
    namespace = asked.get("organization") or call.token.user.name
    hub.storage.require_write(namespace, call.token)
    type_, id_ = asked.get("type") or "model", f"{namespace}/{asked['name']}"
    if (type_, id_) in hub.storage.repos:
        error = HubError(409, f"You already created this {type_} repo: {id_}")
        error.body["url"] = _url(hub, hub.storage.repos[type_, id_])
        raise error
    private = asked.get("visibility") == "private"
    repo = hub.storage.repos[type_, id_] = Repo(type_, id_, hub.storage.clock, private=private)
    return json_answer({"url": _url(hub, repo), "name": id_})


def delete_repo(hub: Hub, call: Call) -> Answer:
    asked = call.json()
    namespace = asked.get("organization") or (call.token.user.name if call.token else "")
    type_, id_ = asked.get("type") or "model", f"{namespace}/{asked['name']}"
    hub.storage.writable(type_, id_, call.token)
    del hub.storage.repos[type_, id_]
    return json_answer({})


def settings(hub: Hub, call: Call) -> Answer:
    repo, _ = hub.storage.writable(*call.repo, call.token)
    asked = call.json()
    if "visibility" in asked:
        repo.private = asked["visibility"] == "private"
    if "gated" in asked:
        if asked["gated"] not in ("auto", "manual", False):
            raise HubError(400, "gated must be auto, manual or false")
        repo.gated = asked["gated"]
    return json_answer({"private": repo.private, "gated": repo.gated})


def grant_access(hub: Hub, call: Call) -> Answer:
    repo, _ = hub.storage.writable(*call.repo, call.token)
    if not repo.gated:
        raise HubError(400, "The repository is not gated")
    repo.access.add(call.json()["user"])
    return json_answer({})


def auth_check(hub: Hub, call: Call) -> Answer:
    if "write" in call.parts:
        hub.storage.writable(*call.repo, call.token)
    hub.storage.readable(*call.repo, call.token)
    return json_answer({})


def _url(hub: Hub, repo: Repo) -> str:
    return f"{hub.url}/{repo.prefix}{repo.id}"


# What a repository is


def repo_info(hub: Hub, call: Call) -> Answer:
    repo = hub.storage.repo(*call.repo, call.token)
    commit = repo.commit(call.parts.get("rev", MAIN))
    expand = call.query.get("expand", []) + call.query.get("expand[]", [])
    card = front_matter(_readme(repo, commit))
    everything = {
        "author": repo.owner,
        "sha": commit.id,
        "lastModified": repo.branches[MAIN].date,
        "createdAt": repo.created,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card_tags(card),
        "cardData": card or None,
        "usedStorage": sum(map(len, repo.contents.values())),
        "siblings": [_sibling(commit, path, call.flag("blobs")) for path in sorted(commit.tree)],
    }
    known = {name: everything[name] for name in expand or DEFAULT_INFO if name in everything}
    return json_answer({"_id": f"{len(repo.id):024x}", "id": repo.id, **known})


def _readme(repo: Repo, commit: Commit) -> str:
    entry = commit.tree.get("README.md")
    return repo.contents[entry.key].decode(errors="replace") if entry else ""


def _sibling(commit: Commit, path: str, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    entry = commit.tree[path]
    found: dict[str, Any] = {"rfilename": path, "size": entry.size, "blobId": entry.oid}
    if entry.sha256:
        found["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": _pointer(entry)}
    return found


def _pointer(entry: Entry) -> int:
    return len(pointer(entry.sha256 or "", entry.size))


def validate_yaml(hub: Hub, call: Call) -> Answer:
    errors, warnings = problems(call.json()["content"])
    said = {
        "errors": [{"message": message} for message in errors],
        "warnings": [{"message": message} for message in warnings],
    }
    return json_answer(said, 400 if errors else 200)


# Files of a revision


def tree(hub: Hub, call: Call) -> Answer:
    repo = hub.storage.repo(*call.repo, call.token)
    commit = repo.commit(call.parts["rev"])
    folder = call.parts.get("path", "").strip("/")
    if folder in commit.tree:
        found = [(folder, True)]
    else:
        found = listing(commit.tree, folder, call.flag("recursive"))
    if folder and not found:
        raise no_file(f"{folder} does not exist on {call.parts['rev']!r}", commit.id)
    return _page(hub, call, [_shown(commit, *item, call.flag("expand")) for item in found])


def _shown(commit: Commit, path: str, is_file: bool, expand: bool) -> dict[str, Any]:
    shown: dict[str, Any]
    if is_file:
        entry = commit.tree[path]
        shown = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
        if entry.sha256:
            size = _pointer(entry)
            shown["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": size}
    else:
        oid = folder_id(commit.tree, path)
        shown = {"type": "directory", "oid": oid, "size": 0, "path": path}
    if expand:
        last = last_change(commit, path)
        shown["lastCommit"] = {"id": last.id, "title": last.title, "date": last.date}
        if is_file:
            shown["securityFileStatus"] = {
                "status": "safe",
                "avScan": None,
                "pickleImportScan": None,
            }
    return shown


def _page(hub: Hub, call: Call, items: list[Any]) -> Answer:
    """One page of a listing; the Link header leads to the next."""
    start = int(call.query.get("cursor", ["0"])[0])
    end = start + hub.page_size
    if end >= len(items):
        return json_answer(items[start:])
    path, _, query = call.request.path.partition("?")
    kept = [part for part in query.split("&") if part and not part.startswith("cursor=")]
    link = f'<{hub.url}{path}?{"&".join([*kept, f"cursor={end}"])}>; rel="next"'
    return json_answer(items[start:end], headers={"Link": link})


def paths_info(hub: Hub, call: Call) -> Answer:
    repo = hub.storage.repo(*call.repo, call.token)
    commit = repo.commit(call.parts["rev"])
    form = call.form()
    asked = [path.strip("/") for path in form.get("paths", [])]
    if len(asked) > MAX_PATHS:
        raise HubError(413, "too many parameters")
    expand = form.get("expand", [""])[0].lower() == "true"
    shown = []
    for path in asked:
        is_file = path in commit.tree
        if is_file or listing(commit.tree, path, recursive=False):
            shown.append(_shown(commit, path, is_file, expand))
    return json_answer(shown)


def commits(hub: Hub, call: Call) -> Answer:
    repo = hub.storage.repo(*call.repo, call.token)
    found = []
    for commit in repo.commit(call.parts["rev"]).history():
        said: dict[str, Any] = {
            "id": commit.id,
            "title": commit.title,
            "message": commit.message,
            "date": commit.date,
            "authors": [{"user": commit.author}],
        }
        if "formatted" in call.query.get("expand[]", []):
            said["formatted"] = {"title": commit.title, "message": commit.message}
        found.append(said)
    return _page(hub, call, found)


# References


def refs(hub: Hub, call: Call) -> Answer:
    repo = hub.storage.repo(*call.repo, call.token)
    heads = {name: commit.id for name, commit in repo.branches.items()}
    tags = {name: tag.commit.id for name, tag in repo.tags.items()}
    said = {"branches": _refs("heads", heads), "converts": [], "tags": _refs("tags", tags)}
    if call.flag("include_prs"):
        said["pullRequests"] = []
    return json_answer(said)


def _refs(kind: str, targets: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": target}
        for name, target in targets.items()
    ]


def create_tag(hub: Hub, call: Call) -> Answer:
    repo, _ = hub.storage.writable(*call.repo, call.token)
    asked = call.json()
    commit = repo.commit(call.parts["rev"])
    if asked["tag"] in repo.tags:
        raise HubError(409, f"Tag reference exists already: {asked['tag']}")
    repo.tags[asked["tag"]] = Tag(commit, asked.get("message"))
    return json_answer({})


def delete_tag(hub: Hub, call: Call) -> Answer:
    repo, _ = hub.storage.writable(*call.repo, call.token)
    if repo.tags.pop(call.parts["rev"], None) is None:
        raise HubError(404, f"Invalid rev id: {call.parts['rev']}", "RevisionNotFound")
    repo.forget_unreachable()
    return json_answer({})


def create_branch(hub: Hub, call: Call) -> Answer:
    repo, _ = hub.storage.writable(*call.repo, call.token)
    if call.parts["rev"] in repo.branches:
        raise HubError(409, f"Reference already exists: {call.parts['rev']}")
    repo.branches[call.parts["rev"]] = repo.commit(call.json().get("startingPoint", MAIN))
    return json_answer({})


def delete_branch(hub: Hub, call: Call) -> Answer:
    repo, _ = hub.storage.writable(*call.repo, call.token)
    if call.parts["rev"] == MAIN:
        raise HubError(403, "The main branch cannot be deleted")
    if repo.branches.pop(call.parts["rev"], None) is None:
        raise HubError(404, f"Invalid rev id: {call.parts['rev']}", "RevisionNotFound")
    repo.forget_unreachable()
    return json_answer({})


def squash(hub: Hub, call: Call) -> Answer:
    repo, user = hub.storage.writable(*call.repo, call.token)
    commit = repo.squash(call.parts["rev"], call.json()["message"], user)
    return json_answer({"commitId": commit.id})


# Commits


def preupload(hub: Hub, call: Call) -> Answer:
    repo, _ = hub.storage.writable(*call.repo, call.token)
    files = repo.commit(call.parts["rev"]).tree
    said = []
    for file in call.json()["files"]:
        path, sample = file["path"], base64.b64decode(file["sample"])
        mode = "lfs" if repo.is_large(path, file["size"], sample) else "regular"
        answer = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        if path in files:
            answer["oid"] = files[path].etag
        said.append(answer)
    return json_answer({"files": said})


def commit(hub: Hub, call: Call) -> Answer:
    repo, user = hub.storage.writable(*call.repo, call.token)
    if call.flag("create_pr"):
        raise HubError(400, "Pull requests are not modelled by the Hub of the tests")
    header, *operations = [json.loads(line) for line in call.body.splitlines() if line.strip()]
    if header["key"] != "header":
        raise HubError(400, "The first line of a commit is its header")

    def change(files: dict[str, Entry]) -> None:
        for operation in operations:
            _apply(repo, files, operation["key"], operation["value"])

    made = repo.add_commit(
        change,
        branch=call.parts["rev"].removeprefix("refs/heads/"),
        title=header["value"]["summary"],
        message=header["value"].get("description", ""),
        author=user,
        parent=header["value"].get("parentCommit"),
    )
    url = f"{_url(hub, repo)}/commit/{made.id}"
    return json_answer({"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""})


def _apply(repo: Repo, files: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
    path = value["path"]
    if key == "file":
        content = base64.b64decode(value["content"])
        if path == "README.md" and (errors := problems(content.decode())[0]):
            raise HubError(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
        files[path] = repo.regular(content)
    elif key == "lfsFile":
        files[path] = repo.large(value["oid"])
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise no_file("A file with this name doesn't exist")
    elif key == "deletedFolder":
        inside = [name for name in files if name.startswith(f"{path.rstrip('/')}/")]
        if not inside:
            raise no_file("A file with this name doesn't exist")
        for name in inside:
            del files[name]
    else:
        raise HubError(400, f"Unknown operation {key!r} in a commit")


_REPO = rf"/api/(?P<kind>{'|'.join(TYPES)})/(?P<id>[^/]+/[^/]+)"
_REV = "/(?P<rev>[^/]+)"

ROUTES: tuple[Route, ...] = (
    ("GET", "/api/whoami-v2", whoami),
    ("GET", "/api/agent-harnesses", lambda hub, call: json_answer({})),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("POST", "/api/repos/create", create_repo),
    ("DELETE", "/api/repos/delete", delete_repo),
    ("GET", _REPO, repo_info),
    ("GET", f"{_REPO}/revision{_REV}", repo_info),
    ("GET", f"{_REPO}/auth-check(?P<write>/write)?", auth_check),
    ("PUT", f"{_REPO}/settings", settings),
    ("POST", f"{_REPO}/user-access-request/grant", grant_access),
    ("GET", f"{_REPO}/refs", refs),
    ("GET", f"{_REPO}/tree{_REV}(?P<path>/.*)?", tree),
    ("POST", f"{_REPO}/paths-info{_REV}", paths_info),
    ("GET", f"{_REPO}/commits{_REV}", commits),
    ("POST", f"{_REPO}/tag{_REV}", create_tag),
    ("DELETE", f"{_REPO}/tag{_REV}", delete_tag),
    ("POST", f"{_REPO}/branch{_REV}", create_branch),
    ("DELETE", f"{_REPO}/branch{_REV}", delete_branch),
    ("POST", f"{_REPO}/super-squash{_REV}", squash),
    ("POST", f"{_REPO}/preupload{_REV}", preupload),
    ("POST", f"{_REPO}/commit{_REV}", commit),
)
