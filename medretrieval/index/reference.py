"""How an index is named: a folder or a data set of the Hub, and one of its embedders.

path/to/index          ORG/NAME          ORG/NAME@REVISION          ...#EMBEDDER
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# hf://datasets/ORG/NAME, or the address of a page, which may be that of a revision.
_PAGE = re.compile(r"(?:hf://|https?://[^/]+/)datasets/([^/]+/[^/]+?)(?:/tree/(.+?))?/?")
_NAME = r"\w(?:[\w.-]{0,94}\w)?"
_REPO = re.compile(f"{_NAME}/{_NAME}", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a text names.

    Attributes:
        folder: the index folder; None for a data set of the Hub.
        repo, revision: the data set ORG/NAME, and its branch, tag or commit if one is named.
        embedder: by whose embeddings it is to be searched, None for its first.
    """

    folder: Path | None = None
    repo: str | None = None
    revision: str | None = None
    embedder: str | None = None

    def __str__(self) -> str:
        place = str(self.folder) if self.repo is None else self.repo
        revision = f"@{self.revision}" if self.revision else ""
        return f"{place}{revision}{f'#{self.embedder}' if self.embedder else ''}"


def is_repo(name: str) -> bool:
    """Whether `name` can be that of a data set of the Hub, ORG/NAME.

    >>> is_repo("lab/liver-ct"), is_repo("lab/liver--ct"), is_repo("liver")
    (True, False, False)
    """
    allowed = _REPO.fullmatch(name) and not re.search(r"--|\.\.|\.git$", name)
    return bool(allowed)


def parse_reference(text: str | Path) -> Reference:
    """Return what a text names; whether it exists is not asked of the Hub.

    A folder that exists is meant, whatever its name looks like. Otherwise ORG/NAME is a data set of
    the Hub, also as hf://datasets/ORG/NAME and as the address of its page.

    >>> parse_reference("lab/liver@v2#dinov2-base")
    Reference(folder=None, repo='lab/liver', revision='v2', embedder='dinov2-base')
    >>> parse_reference("./lab/liver").repo is None
    True
    """
    if isinstance(text, Path):
        return Reference(folder=text)
    here = _here(text)
    if here is not None:
        return here
    place, _, embedder = text.partition("#")
    page = _PAGE.fullmatch(place)
    bare = place if page is None else page[1] + (f"@{page[2]}" if page[2] else "")
    repo, at, revision = bare.partition("@")
    if is_repo(repo) and (not at or _is_revision(revision)):
        return Reference(repo=repo, revision=revision or None, embedder=embedder or None)
    return Reference(folder=Path(place), embedder=embedder or None)


def _here(text: str) -> Reference | None:
    """A folder that exists, with an embedder behind its name or not; the longest name counts."""
    if exists(text):
        return Reference(folder=Path(text))
    place, mark, embedder = text.rpartition("#")
    while mark:
        if exists(place):
            return Reference(folder=Path(place), embedder=embedder or None)
        place, mark, more = place.rpartition("#")
        embedder = f"{more}#{embedder}"
    return None


def _is_revision(name: str) -> bool:
    # Git allows no "..", and the cache has files of these names.
    return _REVISION.fullmatch(name) is not None and ".." not in name


def split_references(source: str | Path | Sequence[str | Path]) -> list[str | Path]:
    """Return the indexes that are named with commas between them, unless it is one folder's name.

    >>> split_references("a, b,c")
    ['a', 'b', 'c']
    """
    if not isinstance(source, str):
        return [source] if isinstance(source, Path) else list(source)
    here = _here(source)
    if "," not in source or (here is not None and "," not in (here.embedder or "")):
        return [source]
    return [name.strip() for name in source.split(",") if name.strip()]


def exists(name: str) -> bool:
    """Whether there is a file or folder of this name."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # a name that no folder can have
        return False
