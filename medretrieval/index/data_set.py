"""A data set of the Hub as a push meets it: made, asked what it holds, and who may see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from medretrieval import hub
from medretrieval.errors import (
    IndexFormatError,
    MedRetrievalError,
    NewerSchemaError,
    UnavailableError,
    UsageError,
)
from medretrieval.index.gate import Gate, check_gate
from medretrieval.index.manifest import Manifest, read_manifest
from medretrieval.index.remote import MAIN, HubFiles

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CALL_DEADLINE_S = 60.0  # of one answer; a commit of thousands of files takes some seconds
DATASET = "dataset"
_CONFLICT = 409  # status: it exists already

Answer = TypeVar("Answer")


class DataSet:
    """A data set of the Hub.

    Attributes:
        repo: ORG/NAME.

    Raises (all methods):
        UnavailableError: the Hub does not answer, or refuses.
    """

    def __init__(self, repo: str) -> None:
        from huggingface_hub import HfApi

        self.api: HfApi = HfApi(library_name="medretrieval")
        self.repo = repo

    def ask(self, call: Callable[[], Answer]) -> Answer:
        """One call of the Hub, within a time and with its refusals in words."""
        try:
            return hub.within(CALL_DEADLINE_S, call)
        except MedRetrievalError:
            raise
        except Exception as error:  # the client, and what it stands on, has many kinds
            raise UnavailableError(
                f"{self.repo} cannot be published: {hub.reason(error)}"
            ) from error

    def create(self, *, private: bool) -> bool:
        """Make the data set if it is not there; whether it was made."""
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

        api, repo = self.api, self.repo

        def there() -> bool:
            try:
                api.repo_info(repo, repo_type=DATASET, timeout=hub.REQUEST_TIMEOUT_S)
            except RepositoryNotFoundError:
                return False
            return True

        def make() -> bool:
            if there():
                return False
            try:
                api.create_repo(repo, repo_type=DATASET, private=private)
            except HfHubHTTPError as error:
                code = error.response.status_code
                if code == _CONFLICT and there():  # somebody else was faster
                    return False
                raise _refusal(repo, code) or error from error
            return True

        return self.ask(make)

    def set(self, *, private: bool | None, gate: Gate | None) -> None:
        """Change who sees the data set; None leaves a setting as it is."""
        if private is not None or gate is not None:
            self.ask(
                lambda: self.api.update_repo_settings(
                    self.repo, gated=gate, private=private, repo_type=DATASET
                )
            )

    def seen(self) -> tuple[bool, Gate | None]:
        """Whether only its owners see it, and its gate; (True, None) where it is not there yet."""
        from huggingface_hub.errors import RepositoryNotFoundError

        def look() -> tuple[bool, Gate | None]:
            try:
                info = self.api.dataset_info(self.repo, timeout=hub.REQUEST_TIMEOUT_S)
            except RepositoryNotFoundError:
                return True, None
            return bool(info.private), check_gate(info.gated or None)

        return self.ask(look)

    def state(self, *, alone: bool) -> tuple[str, dict[str, str]]:
        """The commit of the main branch, and tag -> commit.

        Args:
            alone: there must not be another branch.
        """
        refs = self.ask(lambda: self.api.list_repo_refs(self.repo, repo_type=DATASET))
        heads = {branch.name: branch.target_commit for branch in refs.branches}
        others = sorted(set(heads) - {MAIN})
        if alone and others:
            raise UsageError(
                f"{self.repo} has more branches than {MAIN}, and they keep earlier versions: "
                f"{', '.join(others)}; delete them first (`hf repos branch delete`)"
            )
        return heads[MAIN], {tag.name: tag.target_commit for tag in refs.tags}

    def manifest_at(self, commit: str) -> Manifest | None:
        """The manifest at a commit; None where there is none, or one that is damaged.

        Raises:
            NewerSchemaError: this version of medretrieval cannot read it.
        """
        try:
            files = HubFiles(self.repo, commit)
            return read_manifest(files.folder, blobs=files.blobs)
        except NewerSchemaError:
            raise
        except IndexFormatError:
            return None

    def files(self, commit: str) -> dict[str, str]:
        """Path -> sha256 of a large file or Git's hash of a small one, at a commit."""

        def listed() -> dict[str, str]:
            from huggingface_hub.hf_api import RepoFile

            tree = self.api.list_repo_tree(
                self.repo, recursive=True, revision=commit, repo_type=DATASET
            )
            files = [entry for entry in tree if isinstance(entry, RepoFile)]
            return {f.path: f.lfs.sha256 if f.lfs else f.blob_id for f in files}

        return self.ask(listed)


def _refusal(repo: str, code: int) -> UnavailableError | None:
    """The error for a data set that cannot be made; None where the status says no more."""
    if code in (401, 403):
        return UnavailableError(
            f"{repo} cannot be made: log in with `hf auth login`, or set HF_TOKEN, with a token "
            "that may write there"
        )
    if code == _CONFLICT:
        return UnavailableError(
            f"{repo} is there, but this login does not see it; choose another name, or ask its "
            "owners"
        )
    return None
