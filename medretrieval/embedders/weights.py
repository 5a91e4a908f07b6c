"""Weights on the Hugging Face Hub: the cache first, then the Hub; all files of one commit."""

from __future__ import annotations

import logging
from pathlib import Path

from medretrieval import hub
from medretrieval.embedders.spec import CONFIG_FILE, PREPROCESSOR_FILE, EmbedderSpec
from medretrieval.errors import UnavailableError

_LOG = logging.getLogger(__name__)


def cached(spec: EmbedderSpec) -> tuple[Path, str] | None:
    """Folder and commit of a complete snapshot in the Hub cache, or None. No network.

    Unpinned weights are taken at the commit that "main" was when they were fetched.
    """
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(spec.weights, CONFIG_FILE, revision=spec.revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent  # <cache>/models--<repo>/snapshots/<commit>
    if any((folder / name).is_file() for name in spec.filenames):
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
    _LOG.info("fetching %s (%d MB) from %s", spec.name, spec.size_mb, spec.weights)
    try:
        filename, commit = hub.resolve(spec.weights, spec.filenames, spec.revision)
        folder = _download(spec, filename, commit)
    except Exception as error:  # the client raises its own, httpx's, OS and validation errors
        raise _unavailable(spec, hub.reason(error)) from error
    return folder, commit


def _download(spec: EmbedderSpec, filename: str, commit: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    def get(name: str, revision: str) -> Path:
        path = hf_hub_download(
            spec.weights, name, revision=revision, etag_timeout=hub.REQUEST_TIMEOUT_S
        )
        return Path(path).parent

    try:
        get(PREPROCESSOR_FILE, commit)
    except RemoteEntryNotFoundError:
        _LOG.info("%s has no %s", spec.weights, PREPROCESSOR_FILE)
    # The weights come before config.json, so that a snapshot with both is a complete one; asking
    # for the revision by its name makes the client note in the cache which commit it is.
    folder = get(filename, commit)
    if get(CONFIG_FILE, spec.revision) != folder:
        raise OSError("the repository changed during the download; try again")
    return folder


def _unavailable(spec: EmbedderSpec, reason: str) -> UnavailableError:
    revision = f" --revision {spec.revision}" if spec.pinned else ""
    return UnavailableError(
        f"the weights of {spec.name} ({spec.weights}, {spec.size_mb} MB) cannot be had here: "
        f"{reason}. Fetch them where there is a network with `hf download {spec.weights}"
        f"{revision}` and copy the cache, or give a folder with {CONFIG_FILE} and "
        f"{spec.filenames[0]} as weights=FOLDER "
        "(--embedder-weights FOLDER). `medretrieval embedders` lists what works now"
    )
