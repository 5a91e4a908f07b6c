"""Commands as a manifest keeps them: what was done, without where on whose machine.

An index is given to others, and paths on the command line name people, projects and servers.
"""

from __future__ import annotations

import getpass
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from medretrieval.index.manifest import MAX_COMMAND

_HIDDEN = "FOLDER"  # in place of a name that is that of the user or of the home folder
_SPOKEN = {"--quiet", "--json", "--debug"}  # what a command says, not what it does
_PLACES = {"--ray-address": "HOST:PORT"}  # options that say where something ran, not what
# A path that does not start in the current folder, at the start of a word or after a sign that
# separates. A link (https://...) is none, but a file:// one is.
_OUTSIDE = re.compile(
    r"""(?:^|(?<=[\s=,;:@'"(]))
    (?: file:// | ~ (?=[\w.-]*(?:[\\/]|$)) | \.\.(?=[\\/]|$) | [A-Za-z]:[\\/](?!/)
      | (?<!:)//?(?=[^\s/]) | (?<=:)/(?=[^\s/]) | \\ (?=\S) )""",
    re.VERBOSE,
)
_BETWEEN = re.compile(r"[\\/]+")


def shareable(command: str) -> str:
    """Return a command without the parts of paths that are of one machine and one person.

    Of a path that starts elsewhere than in the current folder only the last component stays.

    >>> shareable("medretrieval build /home/anna/hearts hearts-index --table=../lists/a.csv")
    'medretrieval build hearts hearts-index --table=a.csv'
    """
    try:
        words = shlex.split(command)
    except ValueError:  # quotes that do not end: not a command line
        words = command.split()
    words = [word for word in words if word not in _SPOKEN]
    told = [_told(word, before) for word, before in zip(words, ["", *words], strict=False)]
    text = "".join(c if c.isprintable() else " " for c in shlex.join(told))
    return text if len(text) <= MAX_COMMAND else f"{text[: MAX_COMMAND - 4]} ..."


def joined(commands: Sequence[str | None], own: str | None) -> str | None:
    """Return the commands that made several indexes and the one that merged them, a line each.

    Args:
        commands: of the indexes, None where it is not known.
        own: the one that merged them, None where it is not known.

    Returns:
        None where nothing is known. What is too long for a manifest is cut in the middle.
    """
    known = list(dict.fromkeys(line for c in commands if c is not None for line in c.splitlines()))
    if own is None and (not known or len(commands) == 1):
        return commands[0] if commands else None
    last = f"# merged from {len(commands)} indexes" if own is None else own
    lines: list[str] = []
    room = MAX_COMMAND - len(last) - 40
    for line in known:
        room -= len(line) + 1
        if room < 0:
            lines.append(f"# and {len(known) - len(lines)} more commands")
            break
        lines.append(line)
    text = "\n".join([*lines, last])
    return text if len(text) <= MAX_COMMAND else last


def _told(word: str, before: str) -> str:
    """A word of a command; `before` is the one before it."""
    option, equals, _ = word.partition("=")
    if before in _PLACES:
        return _PLACES[before]
    if equals and option in _PLACES:
        return f"{option}={_PLACES[option]}"
    start = _OUTSIDE.search(word)
    if start is not None:
        return word[: start.start()] + _last(word[start.start() :])
    parts = _BETWEEN.split(word)
    if len(parts) > 1 and not _people().isdisjoint(parts):
        return _last(word)
    return word


def _last(path: str) -> str:
    """The last component of a path."""
    parts = [part for part in _BETWEEN.split(path) if part not in ("", "file:")]
    name = parts[-1] if parts else ""
    hidden = name in ("", "..", ".") or name.startswith("~") or name in _people()
    return _HIDDEN if hidden else name


def _people() -> set[str]:
    """Names of the user and of the home folder."""
    names: set[str] = set()
    try:
        names |= {Path.home().name, getpass.getuser()}
    except (OSError, KeyError, RuntimeError):
        pass  # a user without a name or a home, as in some containers
    return names - {""}
