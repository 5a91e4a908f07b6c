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


def memories_dir() -> Path:
    """Folder where segmentations of the command line keep memories of annotated slices."""
    return cache_dir() / "memories"


def weights_dir() -> Path:
    """Folder where users put weights that no program can fetch, under the embedder's name.

    `MEDRETRIEVAL_WEIGHTS` moves it; otherwise it is `weights` in the folder of `cache_dir`.
    """
    named = os.environ.get("MEDRETRIEVAL_WEIGHTS")
    return Path(named) if named else cache_dir() / "weights"


def trust_file() -> Path:
    """File that lists the organisations whose data sets are trusted, see `index.trust`.

    `MEDRETRIEVAL_TRUSTED` names it; otherwise it is `medretrieval/trusted.txt` in the user's folder
    of settings.
    """
    named = os.environ.get("MEDRETRIEVAL_TRUSTED")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "medretrieval" / "trusted.txt"
