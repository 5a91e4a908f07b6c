"""The exceptions of medretrieval.

Every message says what was wrong, what was expected and what to do. The command line prints the
message alone and exits with `exit_code`; the page shows it as a warning. Anything that is not a
`MedRetrievalError` is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MedRetrievalError(Exception):
    """Base of all errors that a user can meet."""

    exit_code: int = 1


class UsageError(MedRetrievalError):
    """The request itself is wrong: an unknown name, an option out of range, an existing output."""

    exit_code = 2


class InputError(MedRetrievalError):
    """An image, volume, mask or table cannot be used: truncated, empty, NaN, wrong shape, huge."""


class UnavailableError(MedRetrievalError):
    """Weights, an optional package or a Hub repository cannot be had on this machine now."""


class IndexFormatError(MedRetrievalError):
    """An index folder is incomplete, tampered with, newer than this version, or not an index."""


class NewerSchemaError(IndexFormatError):
    """An index was made by a later version of medretrieval than this one."""


class Cancelled(MedRetrievalError):
    """The work is not wanted any more.

    Any progress callback may raise it; it then ends the call that the callback was given to, which
    leaves nothing half written.
    """


class EmbedderMismatchError(IndexFormatError):
    """An index is searched with embeddings of another embedder than its own."""


def unknown_name(
    kind: str, name: str, known: Iterable[str], list_command: str | None
) -> UsageError:
    """Return (not raise) the error for an unknown `name`, with close matches and how to list all.

    Args:
        list_command: the command that lists all names, None where none does.

    >>> print(unknown_name("embedder", "dinov2-bas", ["dinov2-base"], "medretrieval embedders"))
    unknown embedder 'dinov2-bas'; did you mean dinov2-base? `medretrieval embedders` lists all
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(sorted(known))}"
    lists_all = f"{' ' if close else '; '}`{list_command}` lists all" if list_command else ""
    return UsageError(f"unknown {kind} {name!r}; {hint}{lists_all}")
