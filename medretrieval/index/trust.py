"""Which data sets of the Hub are trusted: those of an allow-list, at a commit that is named.

Of any other nothing is read but tables and tensors, whose hashes were checked; what could harm the
process when it is read, `index.faiss`, is made again.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
from pathlib import Path

from medretrieval.errors import UsageError
from medretrieval.folders import trust_file
from medretrieval.index.reference import COMMIT

logger = logging.getLogger(__name__)

_ENTRY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_MAX_BYTES = 1 << 20


def is_trusted(repo: str, revision: str | None) -> bool:
    """Whether `index.faiss` of a data set may be read.

    Args:
        repo: ORG/NAME.
        revision: as the user named it. Only a full commit is pinned: what a branch or a tag means
            can change.

    Raises:
        UsageError: the allow-list cannot be read.
    """
    if revision is None or not COMMIT.fullmatch(revision):
        return False
    return bool({repo, repo.partition("/")[0]} & allowed())


def allowed() -> set[str]:
    """Return the entries of the allow-list, organisations or ORG/NAME; none if there is no file.

    A line each; what follows # is a remark. A file that others could have written is not used.

    Raises:
        UsageError: it cannot be read, or a line is no name.
    """
    path = trust_file()
    try:
        with open(path, "rb") as file:
            if not _own(os.fstat(file.fileno())):
                logger.warning(
                    "the allow-list %s can be written by others and is not used; take their "
                    "permission to write away (chmod go-w)",
                    path,
                )
                return set()
            text = file.read(_MAX_BYTES).decode()
    except FileNotFoundError:
        return set()
    except (OSError, ValueError) as error:
        raise UsageError(f"the allow-list {path} cannot be read ({error})") from None
    return _entries(text, path)


def _entries(text: str, path: Path) -> set[str]:
    entries = set()
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.partition("#")[0].strip()
        if name and not _ENTRY.fullmatch(name):
            raise UsageError(
                f"{path}, line {number}: {name!r} is no organisation and no ORG/NAME of the Hub"
            )
        entries |= {name} if name else set()
    return entries


def _own(status: os.stat_result) -> bool:
    if sys.platform == "win32":
        return True
    own = status.st_uid in (os.getuid(), 0)
    return own and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
