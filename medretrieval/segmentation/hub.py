"""Checkpoints from the Hugging Face Hub, with an answer within seconds when there is no Hub."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from medretrieval.errors import UnavailableError
from medretrieval.segmentation.registry import SegmenterSpec, cached_file

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 4.0


def fetch(spec: SegmenterSpec) -> Path:
    """Return the checkpoint of `spec` from the local cache, or download it.

    Raises:
        UnavailableError: it is not cached, and offline mode is on or the Hub does not answer
            within a few seconds or refuses; the message says what to do instead.
    """
    cached = cached_file(spec)
    if cached is not None:
        return cached
    from huggingface_hub import constants, hf_hub_download

    if constants.HF_HUB_OFFLINE:
        raise _unavailable(spec, "offline mode is on (HF_HUB_OFFLINE)")
    # hf_hub_download alone would ask a silent Hub again and again, for minutes.
    problem = _ask(spec)
    if problem is not None:
        raise _unavailable(spec, problem)
    logger.info("downloading %s (%d MB) from %s", spec.filename, spec.megabytes, spec.weights)
    try:
        return Path(hf_hub_download(spec.weights, spec.filename, revision=spec.revision))
    except Exception as error:  # the client raises its own, its transport's and OSError
        raise _unavailable(spec, f"the download failed: {_short(error)}") from error


def _ask(spec: SegmenterSpec) -> str | None:
    """Ask the Hub for the file once. Returns what is wrong, None if the file can be had."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    answers: list[str | None] = []

    def ask() -> None:
        try:
            url = hf_hub_url(spec.weights, spec.filename, revision=spec.revision)
            get_hf_file_metadata(url, timeout=ANSWER_SECONDS / 2)
            answers.append(None)
        except Exception as error:  # see fetch
            answers.append(_short(error))

    # In a thread of its own, because looking up a name has no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answers[0] if answers else f"the Hub did not answer within {ANSWER_SECONDS:.0f} s"


def _short(error: Any) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _unavailable(spec: SegmenterSpec, problem: str) -> UnavailableError:
    return UnavailableError(
        f"the weights of {spec.name} are not on this machine and cannot be downloaded from "
        f"{spec.weights}: {problem}. Connect to the Hub once, or give the file {spec.filename} as "
        "a local checkpoint, or use sam2-micro, which needs no download"
    )
