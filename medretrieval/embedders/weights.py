"""Where weights are: a folder of the user's, the Hugging Face cache, then the Hub at one commit."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from medretrieval import hub
from medretrieval.embedders.spec import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    EmbedderSpec,
)
from medretrieval.errors import UnavailableError
from medretrieval.folders import weights_dir

_LOG = logging.getLogger(__name__)

SUFFIXES = ("", ".safetensors", ".pth", ".pt", ".bin", ".pth.tar", ".pyth", ".zip")


def local(names: Iterable[str]) -> Path | None:
    """The user's own weights under one of `names`: a folder or a file called so, or None."""
    # A colon or a slash in a name may be written as a hyphen: not all systems store a colon.
    written = dict.fromkeys(w for name in names for w in (name, re.sub("[:/]", "-", name)))
    candidates = (weights_dir() / f"{name}{suffix}" for name in written for suffix in SUFFIXES)
    return next((path for path in candidates if path.exists()), None)


def not_public(spec: EmbedderSpec) -> UnavailableError:
    """The error (to raise) for weights that the user must bring."""
    # Not Path.suffix: that of a .pth.tar is .tar, which `local` does not look for.
    suffix = next((known for known in SUFFIXES[1:] if spec.filenames[0].endswith(known)), "")
    return UnavailableError(
        f"the weights of {_described(spec)} cannot be fetched by a program. Get them from their "
        "authors and give them as weights=FILE (--embedder-weights FILE), or store them as "
        f"{weights_dir() / spec.name}{suffix}. "
        "`medretrieval embedders` lists what works now"
    )


def cached(spec: EmbedderSpec) -> tuple[Path, str] | None:
    """Folder and commit of a complete snapshot in the Hub cache, or None. No network.

    Unpinned weights are taken at the commit that "main" was when they were fetched.
    """
    from huggingface_hub import try_to_load_from_cache

    for filename in spec.filenames:
        path = try_to_load_from_cache(spec.weights, filename, revision=spec.revision)
        if isinstance(path, str):
            folder = _snapshot(Path(path), filename)
            if all((folder / name).is_file() for name in spec.config_files):
                return folder, folder.name
    return None


def fetch(spec: EmbedderSpec) -> tuple[Path, str]:
    """Folder and commit of the weights of `spec`, downloaded into the Hub cache where needed.

    Raises:
        UnavailableError: offline and not cached, no answer, gated, not found, or a broken
            download; the message says how to get the weights.
    """
    found = cached(spec)
    if found is not None:
        return found
    if hub.offline():
        raise _unavailable(
            spec, "they are not in the cache of this machine, and HF_HUB_OFFLINE is set"
        )
    _LOG.info("fetching %s", _described(spec))
    try:
        filename, commit = hub.resolve(spec.weights, spec.filenames, spec.revision)
        if CONFIG_FILE in spec.config_files:
            optional(spec.weights, PREPROCESSOR_FILE, commit)
        # The weights come before what configures them, so that a snapshot with all is a complete
        # one; asking for the revision by its name makes the client note in the cache which commit
        # it is.
        *first, last = (filename, *spec.config_files)
        folders = {download(spec.weights, name, commit) for name in first}
        folder = download(spec.weights, last, spec.revision)
        if folders | {folder} != {folder} or folder.name != commit:
            raise OSError("the repository changed during the download; try again")
    except Exception as error:  # the client raises its own, httpx's, OS and validation errors
        raise _unavailable(spec, hub.reason(error)) from error
    return folder, commit


def fetch_config(repo: str, revision: str, filename: str) -> tuple[Path, str]:
    """Folder and commit of the configuration of a repository, the cache first.

    Also fetches preprocessor_config.json where there is one.

    Raises:
        UnavailableError: it cannot be had; the message says why.
    """
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, filename, revision=revision)
    if isinstance(path, str):
        folder = _snapshot(Path(path), filename)
        return folder, folder.name
    try:
        if hub.offline():
            raise OSError("it is not in the cache of this machine, and HF_HUB_OFFLINE is set")
        _, commit = hub.resolve(repo, [filename], revision)
        optional(repo, PREPROCESSOR_FILE, commit)
        return download(repo, filename, revision), commit
    except Exception as error:  # as above
        raise UnavailableError(
            f"{filename} of {repo} (revision {revision}) cannot be had here: {hub.reason(error)}. "
            "Give a local folder as weights=FOLDER (--embedder-weights FOLDER), or fetch it where "
            f"there is a network with `hf download {repo} --revision {revision}`"
        ) from error


def download(repo: str, filename: str, revision: str) -> Path:
    """Fetch one file into the Hub cache; the folder of its snapshot."""
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(repo, filename, revision=revision, etag_timeout=hub.REQUEST_TIMEOUT_S)
    return _snapshot(Path(path), filename)


def optional(repo: str, filename: str, revision: str) -> None:
    """Fetch one file that a repository may do without."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        download(repo, filename, revision)
    except RemoteEntryNotFoundError:
        _LOG.info("%s has no %s", repo, filename)


def _snapshot(path: Path, filename: str) -> Path:
    # <cache>/models--<repo>/snapshots/<commit>/<filename>, and a filename may hold folders.
    return path.parents[len(PurePosixPath(filename).parts) - 1]


def _described(spec: EmbedderSpec) -> str:
    size = f", {spec.size_mb} MB" if spec.size_mb else ""
    return f"{spec.name} ({spec.weights}{size})"


def _unavailable(spec: EmbedderSpec, reason: str) -> UnavailableError:
    revision = f" --revision {spec.revision}" if spec.pinned else ""
    files = " and ".join([*spec.config_files, spec.filenames[0]])
    return UnavailableError(
        f"the weights of {_described(spec)} cannot be had here: {reason}. Fetch them where there "
        f"is a network with `hf download {spec.weights}{revision}` and copy the cache, or give "
        f"a folder with {files} as weights=FOLDER "
        "(--embedder-weights FOLDER). `medretrieval embedders` lists what works now"
    )
