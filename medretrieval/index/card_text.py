"""Text of a manifest as parts of a card: whatever it says, it stays where it was put.

A manifest can come from anyone, and names come from tables and folders. What is written here can
neither begin another line, table, code block or HTML element, nor end the YAML above the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

# What means something in the middle of a line of Markdown, or at the end of a heading. Underscores
# inside words and brackets without a link mean nothing, and names and intervals are full of them.
_SPECIAL = re.compile(r"[\\*~$]|\](?=\()|#(?=[#\s]*$)|(?<![^\W_])_|_(?![^\W_])")


def on_one_line(text: str) -> str:
    """Return text without line ends and other characters that cannot be printed."""
    return "".join(c if c.isprintable() else " " for c in text)


def plain(text: str) -> str:
    r"""Return text for the middle of a line or for a cell of a table, shown as it is.

    What comes after it must not be an opening bracket.

    >>> plain("a|b_c <b> *x*")
    'a/b_c &lt;b&gt; \\*x\\*'
    """
    cleaned = _SPECIAL.sub(r"\\\g<0>", on_one_line(text).strip())
    for special, instead in (("|", "/"), ("`", "'"), ("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        cleaned = cleaned.replace(special, instead)
    return cleaned


def code(text: str) -> str:
    """Return text as a code span for a line or a cell.

    >>> code("hf:org/repo"), code("`")
    ('`hf:org/repo`', "`'`")
    """
    cleaned = on_one_line(text).replace("`", "'").replace("|", "/")
    return f"`{cleaned}`" if cleaned.strip() else "`-`"


def fenced(text: str, language: str = "") -> str:
    """Return lines of text as a code block, which no line of it can end."""
    lines = [on_one_line(line) for line in text.splitlines()]
    longest = max((len(run) for run in re.findall("`+", "\n".join(lines))), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows of cells, which are Markdown already, as a table."""
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def quoted(text: str) -> str:
    """Return text as a YAML string; JSON strings are YAML strings."""
    return json.dumps(on_one_line(text), ensure_ascii=False)
