"""Checkpoints from the Hugging Face Hub: the cache first, then the Hub."""

from __future__ import annotations

import logging
from pathlib import Path

from medretrieval import hub
from medretrieval.errors import UnavailableError
from medretrieval.segmentation.registry import SegmenterSpec, cached_file

logger = logging.getLogger(__name__)


def fetch(spec: SegmenterSpec) -> Path:
    """Return the checkpoint of `spec` from the local cache, or download it.

    Raises:
        UnavailableError: it is not cached, and offline mode is on or the Hub does not answer
            within a few seconds or refuses; the message says what to do instead.
    """
    cached = cached_file(spec)
    if cached is not None:
        return cached
    if hub.offline():
        raise _unavailable(spec, "offline mode is on (HF_HUB_OFFLINE)")
    from huggingface_hub import hf_hub_download

    try:
        # hf_hub_download alone would ask a silent Hub again and again, for minutes.
        filename, commit = hub.resolve(spec.weights, (spec.filename,), spec.revision)
        logger.info("downloading %s (%d MB) from %s", filename, spec.megabytes, spec.weights)
        path = hf_hub_download(
            spec.weights,
            filename,
            revision=spec.revision,
            etag_timeout=hub.REQUEST_TIMEOUT_S,
        )
    except Exception as error:  # the client raises its own, its transport's and OSError
        raise _unavailable(spec, hub.reason(error)) from error
    if commit not in Path(path).parts:
        raise _unavailable(spec, "the repository changed during the download; try again")
    return Path(path)


def _unavailable(spec: SegmenterSpec, problem: str) -> UnavailableError:
    return UnavailableError(
        f"the weights of {spec.name} are not on this machine and cannot be downloaded from "
        f"{spec.weights}: {problem}. Connect to the Hub once, or give the file {spec.filename} as "
        "a local checkpoint, or use sam2-micro, which needs no download"
    )
