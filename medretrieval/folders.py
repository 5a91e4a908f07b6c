"""Folders of this user on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder for what can be made again: the demo index and stored memories.

    `MEDRETRIEVAL_CACHE` moves it; otherwise it is `medretrieval` in the user's cache folder.
    """
    named = os.environ.get("MEDRETRIEVAL_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medretrieval"


def weights_dir() -> Path:
    """Folder where users put weights that no program can fetch, under the embedder's name.

    `MEDRETRIEVAL_WEIGHTS` moves it; otherwise it is `weights` in the folder of `cache_dir`.
    """
    named = os.environ.get("MEDRETRIEVAL_WEIGHTS")
    return Path(named) if named else cache_dir() / "weights"
