"""Optional packages: which are missing, and the command that installs them."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable

from medretrieval.errors import UnavailableError


def missing(requirements: Iterable[str]) -> list[str]:
    """Those of `requirements` ("timm==1.0.31", "transformers") whose package is not installed.

    Another version than the required one counts as installed: it mostly works, and replacing it
    is the user's decision.
    """
    return [requirement for requirement in requirements if not _installed(requirement)]


def pip_command(requirements: Iterable[str]) -> str:
    """The exact command that installs `requirements`."""
    return f"pip install {' '.join(requirements)}"


def require(what: str, requirements: Iterable[str]) -> None:
    """Raise UnavailableError with the pip command if a package that `what` needs is missing."""
    absent = missing(requirements)
    if absent:
        raise UnavailableError(
            f"embedder {what} needs packages that are not installed: {', '.join(absent)}; "
            f"run `{pip_command(absent)}`"
        )


def _installed(requirement: str) -> bool:
    name = re.split(r"[=<>!~\[; ]", requirement, maxsplit=1)[0]
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
