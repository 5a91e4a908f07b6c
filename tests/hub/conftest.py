"""A client and an empty repository."""

from __future__ import annotations

import pytest
from huggingface_hub import HfApi

from hub.client import LocalHub
from hub.using import REPO


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    """A client of a Hub that has the repository, without files."""
    api = HfApi()
    api.create_repo(REPO, repo_type="dataset")
    return api
