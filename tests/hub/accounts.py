"""Who may do what: users with tokens, their organisations, and the repositories they see."""

from __future__ import annotations

from dataclasses import dataclass

from .repository import Clock, HubError, Repo

TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}


@dataclass(frozen=True)
class User:
    """Somebody who may write in their own namespace and in those of `organisations`."""

    name: str
    organisations: tuple[str, ...] = ()

    def belongs_to(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.organisations


@dataclass(frozen=True)
class Token:
    """What a request is signed with; `role` is "read" or "write"."""

    user: User
    role: str


class Storage:
    """All repositories of a Hub, and who may see and change them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.tokens: dict[str, Token] = {}

    def token(self, authorization: str | None) -> Token | None:
        """The token of an Authorization header; None for somebody who is not logged in."""
        if not authorization:
            return None
        token = self.tokens.get(authorization.removeprefix("Bearer "))
        if token is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return token

    def repo(self, type_: str, id_: str, token: Token | None) -> Repo:
        """A repository that the caller may know of.

        Raises:
            HubError: RepoNotFound, whether it does not exist or is somebody else's private one.
        """
        repo = self.repos.get((type_, id_))
        if repo is None or (repo.private and not _is_member(repo, token)):
            raise self._no_repo(token)
        return repo

    @staticmethod
    def _no_repo(token: Token | None) -> HubError:
        if token is None:
            return HubError(401, "Invalid username or password.", "RepoNotFound")
        return HubError(404, "Repository not found", "RepoNotFound")

    def readable(self, type_: str, id_: str, token: Token | None) -> Repo:
        """A repository of which the caller may read the files.

        Raises:
            HubError: RepoNotFound or GatedRepo.
        """
        repo = self.repo(type_, id_, token)
        if not repo.gated or _is_member(repo, token):
            return repo
        restricted = f"Access to {repo.type} {repo.id} is restricted"
        if token is None:
            message = (
                f"{restricted}. You must have access to it and be authenticated to access it. "
                "Please log in."
            )
            raise HubError(401, message, "GatedRepo")
        if token.user.name not in repo.access:
            message = (
                f"{restricted} and you are not in the authorized list. "
                f"Visit https://huggingface.co/{repo.prefix}{repo.id} to ask for access."
            )
            raise HubError(403, message, "GatedRepo")
        return repo

    def writable(self, type_: str, id_: str, token: Token | None) -> tuple[Repo, str]:
        """A repository that the caller may change, and the caller's name.

        Raises:
            HubError: RepoNotFound, no token (401), or a token without the right (403).
        """
        repo = self.repo(type_, id_, token)
        if token is None:
            raise self._no_repo(token)
        self.require_write(repo.owner, token)
        return repo, token.user.name

    @staticmethod
    def require_write(namespace: str, token: Token) -> None:
        if token.role != "write":
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
        if not token.user.belongs_to(namespace):
            message = f"You don't have the rights to write under the namespace {namespace!r}"
            raise HubError(403, f"Forbidden: {message}")


def _is_member(repo: Repo, token: Token | None) -> bool:
    return token is not None and token.user.belongs_to(repo.owner)
