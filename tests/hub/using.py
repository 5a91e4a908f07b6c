"""What the tests of the Hub do again and again, with huggingface_hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download

REPO = "lab/index"
PARQUET = b"PAR1" + bytes(range(256)) * 8
CARD = b"---\nlicense: mit\ntags:\n- medical\n---\n# Cases\n"
FILES = {"README.md": CARD, "manifest.json": b"{}", "data/a.parquet": PARQUET}


def commit(api: HfApi, files: dict[str, bytes], **options: Any) -> str:
    """Commit files; the id of the commit."""
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    options = {"commit_message": "A commit", "repo_type": "dataset", **options}
    return str(api.create_commit(REPO, operations, **options).oid)


def read(path: str, **options: Any) -> bytes:
    """Download a file to the cache and read it."""
    return Path(hf_hub_download(REPO, path, repo_type="dataset", **options)).read_bytes()
