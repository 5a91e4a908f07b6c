"""The Hub of the tests: who sees what, and who may change it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from hub.client import LocalHub
from hub.using import REPO

FILES = {"README.md": b"# Cases\n", "a.parquet": b"PAR1"}

Ask = Callable[[], Any]


def ask(api: HfApi) -> dict[str, Ask]:
    """Ways to read something of the repository, by what they read."""
    options: dict[str, Any] = {"repo_type": "dataset"}
    return {
        "info": lambda: api.repo_info(REPO, **options),
        "tree": lambda: list(api.list_repo_tree(REPO, **options)),
        "paths": lambda: api.get_paths_info(REPO, "a.parquet", **options),
        "refs": lambda: api.list_repo_refs(REPO, **options),
        "commits": lambda: api.list_repo_commits(REPO, **options),
        "auth": lambda: api.auth_check(REPO, **options),
        "file": lambda: hf_hub_download(REPO, "a.parquet", **options),
        "snapshot": lambda: snapshot_download(REPO, **options),
    }


def change(api: HfApi) -> dict[str, Ask]:
    """Ways to change the repository."""
    options: dict[str, Any] = {"repo_type": "dataset"}
    return {
        "commit": lambda: api.upload_file(
            path_or_fileobj=b"x", path_in_repo="x.json", repo_id=REPO, **options
        ),
        "tag": lambda: api.create_tag(REPO, tag="v1", **options),
        "settings": lambda: api.update_repo_settings(REPO, private=False, **options),
        "squash": lambda: api.super_squash_history(REPO, **options),
        "auth": lambda: api.auth_check(REPO, write=True, **options),
        "delete": lambda: api.delete_repo(REPO, **options),
    }


def status(ask: Ask) -> int:
    with pytest.raises(HfHubHTTPError) as caught:
        ask()
    return caught.value.response.status_code


def test_whoami(hub: LocalHub) -> None:
    said = HfApi().whoami()
    assert (said["name"], [org["name"] for org in said["orgs"]]) == ("ada", ["lab"])
    assert said["auth"]["accessToken"]["role"] == "write"
    hub.log_in(hub.add_user("bob", role="read"))
    assert HfApi().whoami()["auth"]["accessToken"]["role"] == "read"
    hub.log_in("hf_unknown")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi().whoami()


@pytest.mark.parametrize("logged_in", [True, False])
def test_private(logged_in: bool, hub: LocalHub) -> None:
    hub.add_repo(REPO, FILES, private=True)
    hub.log_in(hub.add_user("bob") if logged_in else None)
    for act in [*ask(HfApi()).values(), *change(HfApi()).values()]:
        with pytest.raises(RepositoryNotFoundError) as caught:
            act()
        assert caught.value.response.status_code == (404 if logged_in else 401)
    hub.log_in("hf_local_ada")
    for read in ask(HfApi()).values():
        read()


@pytest.mark.parametrize("logged_in", [True, False])
def test_gated(logged_in: bool, hub: LocalHub) -> None:
    hub.add_repo(REPO, FILES, gated="manual")
    token = hub.add_user("bob") if logged_in else None
    hub.log_in(token)
    for name, read in ask(HfApi()).items():
        if name in ("auth", "file", "snapshot"):
            with pytest.raises(GatedRepoError, match="restricted") as caught:
                read()
            assert caught.value.response.status_code == (403 if logged_in else 401)
        else:
            read()
    hub.log_in("hf_local_ada")
    HfApi().grant_access(REPO, "bob", repo_type="dataset")
    hub.log_in(token)
    if logged_in:
        for read in ask(HfApi()).values():
            read()
    else:
        assert status(ask(HfApi())["auth"]) == 401


@pytest.mark.parametrize("user", ["reader", "stranger", "nobody", "mistyped"])
def test_changes_need_the_right(user: str, hub: LocalHub) -> None:
    repo = hub.add_repo(REPO, FILES)
    head = repo.branches["main"]
    tokens = {
        "reader": hub.add_user("ada", organisations=["lab"], role="read"),
        "stranger": hub.add_user("bob"),
        "nobody": None,
        "mistyped": "hf_mistyped",
    }
    hub.log_in(tokens[user])
    expected = 401 if user in ("nobody", "mistyped") else 403
    for act in change(HfApi()).values():
        assert status(act) == expected
    assert status(lambda: HfApi().create_repo("lab/new", repo_type="dataset")) == expected
    assert repo.branches["main"] is head
    assert hub.requests("PUT", "/upload/") == []


def test_the_token_of_a_call_counts_first(hub: LocalHub) -> None:
    hub.add_repo(REPO, FILES, private=True)
    token = hub.add_user("bob", organisations=["lab"])
    hub.log_in(None)
    HfApi(token=token).auth_check(REPO, repo_type="dataset", write=True)
    assert hf_hub_download(REPO, "a.parquet", repo_type="dataset", token=token)
