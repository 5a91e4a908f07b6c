"""The Hub of the tests, through the clients that it is made for."""

from __future__ import annotations

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download

from hub.client import LocalHub

REPO = "lab/index"


def test_create_commit_and_download(hub: LocalHub) -> None:
    api = HfApi()
    url = api.create_repo(REPO, repo_type="dataset")
    assert (url.repo_id, url.repo_type) == (REPO, "dataset")
    files = {"README.md": b"---\nlicense: mit\n---\n# Cases\n", "data/a.parquet": b"PAR1" * 1000}
    done = api.create_commit(
        REPO,
        [CommitOperationAdd(path, content) for path, content in files.items()],
        commit_message="First",
        repo_type="dataset",
    )
    for path, content in files.items():
        local = hf_hub_download(REPO, path, repo_type="dataset")
        with open(local, "rb") as file:
            assert file.read() == content
        assert done.oid in local
