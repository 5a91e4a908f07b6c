"""Whether embeddings can be compared, and the two embedders side by side where they cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import zip_longest
from textwrap import wrap
from typing import Any, NamedTuple

from medretrieval.errors import EmbedderMismatchError
from medretrieval.types import EmbedderIdentity

_HASH_DIGITS = 12  # of a hash, as shown
_WIDTH = 40  # of a column
_ABSENT = "-"
_MARK = "  (differs)"


def check_identity(
    index: EmbedderIdentity, other: EmbedderIdentity, *, what: str = "this query"
) -> None:
    """Refuse embeddings that cannot be compared with those of an index.

    Args:
        what: what `other` made or is, as the heading of its column.

    Raises:
        EmbedderMismatchError: they are of another space; the message shows both identities.
    """
    if index.space == other.space:
        return
    advice = "with the weights and the preprocessing of the index, or build the index again"
    if index.name != other.name:
        advice = (
            f"with the embedder of the index ({index.name}), or build the index again with "
            f"{other.name}"
        )
    raise EmbedderMismatchError(
        "the index was made with another embedder, and embeddings of two embedders cannot be "
        f"compared:\n{side_by_side(index, other, what)}\nSearch {advice}"
    )


def side_by_side(index: EmbedderIdentity, other: EmbedderIdentity, what: str) -> str:
    """Both identities as a table: a line for every fact, with a mark where they differ."""
    left, right = _facts(index), _facts(other)
    rows = [_Row("", ["the index"], [what], "")]
    names = dict.fromkeys([*left, *right])
    groups = list(dict.fromkeys(name.partition(" ")[0] for name in names))
    for name in sorted(names, key=lambda name: groups.index(name.partition(" ")[0])):
        ours, theirs = left.get(name, _ABSENT), right.get(name, _ABSENT)
        shown = [_short(name, ours), _short(name, theirs)]
        if ours != theirs and shown[0] == shown[1]:
            shown = [ours, theirs]  # the difference is behind the digits shown otherwise
        left_cell, right_cell = (wrap(cell, _WIDTH) or [""] for cell in shown)
        rows.append(_Row(name, left_cell, right_cell, "" if ours == theirs else _MARK))
    label = max(len(row.name) for row in rows)
    width = max(len(line) for row in rows for line in row.left)
    lines = []
    for row in rows:
        name, mark = row.name, row.mark
        for a, b in zip_longest(row.left, row.right, fillvalue=""):
            lines.append(f"  {name:{label}}  {a:{width}}  {b}{mark}".rstrip())
            name = mark = ""  # in the first of its lines only
    return "\n".join(lines)


class _Row(NamedTuple):
    name: str
    left: list[str]
    right: list[str]
    mark: str


def _facts(identity: EmbedderIdentity) -> dict[str, str]:
    """Name -> text, equal for equal values, also where one of them has been through JSON."""
    return dict(_flat("", json.loads(json.dumps(asdict(identity)))))


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in sorted(value.items()) if path else value.items():
            yield from _flat(f"{path} {key}".strip(), inner)
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        # The parts of an ensemble.
        stem = path.removesuffix("s").removeprefix("preprocessing ")
        for number, inner in enumerate(value, start=1):
            yield from _flat(f"{stem} {number}", inner)
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)


def _short(name: str, text: str) -> str:
    if name.endswith("sha256"):
        return text[:_HASH_DIGITS]
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if isinstance(value, list) and all(isinstance(item, float) for item in value):
        return f"[{', '.join(f'{item:.4g}' for item in value)}]"
    return text
