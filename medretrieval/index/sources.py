"""Known sources of images, and whether pictures of them may be passed on in an index.

As known, unverified; see `medretrieval.index.source_table`. What is said here is no legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from medretrieval.index.licenses import NO_DERIVATIVES, OPEN
from medretrieval.index.source_table import ROWS
from medretrieval.index.source_table import Source as Source
from medretrieval.types import UNKNOWN

SOURCES: Mapping[str, Source] = MappingProxyType({row.key: row for row in ROWS})

_NONE = frozenset({"", UNKNOWN})  # what no licence looks like
_WORD = re.compile(r"[^\W\d_]+|\d+")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether pictures and masks may be passed on, and why, in words."""

    allowed: Literal["yes", "no", "unknown"]
    reason: str


def recognise(text: str) -> list[Source]:
    """Return every known source that a free text names, in the order of the table.

    Names are compared word by word, without letter case and punctuation; the longest name counts
    ("TotalSegmentator MRI" is not "TotalSegmentator"). A number that follows does not matter. The
    key of a source is recognised if it is all of the text: inside of it, it may be common English.

    >>> [source.key for source in recognise("BraTS2021, MIMIC_CXR-JPG 2.0 and our own")]
    ['brats', 'mimic-cxr']
    """
    words = _words(text)
    found = {key for key in SOURCES if _words(key) == words}
    place = 0
    while place < len(words):
        taken = next((n for n in range(_LONGEST, 0, -1) if words[place : place + n] in _NAMES), 0)
        if taken:
            found.add(_NAMES[words[place : place + taken]])
        place += taken or 1
    return [source for key, source in SOURCES.items() if key in found]


def may_publish_pictures(source_text: str, licence: str) -> Verdict:
    """Say whether an index may carry pictures and masks where others can fetch it.

    A source that forbids it wins over everything, then one whose terms are not known. What is
    known of a source does not outweigh a licence that its user gave for the index and that is no
    open one. For images of no known source an open licence is taken at its word.

    Args:
        source_text: where the images come from, as the manifest says it.
        licence: of the images, as the manifest says it.
    """
    named = recognise(source_text)
    given = licence.strip().lower()
    forbidden = [source for source in named if source.images == "forbidden"]
    if forbidden:
        return Verdict(allowed="no", reason=_terms(forbidden))
    unclear = [source for source in named if source.images == "unknown"]
    if unclear:
        return Verdict(allowed="unknown", reason=_terms(unclear))
    own = {source.license.lower() for source in named}
    if named and given in OPEN | own | _NONE:
        return Verdict(allowed="yes", reason=_terms(named))
    if given in OPEN:
        return Verdict(
            allowed="yes",
            reason=f"the licence {given} lets copies be passed on, by its conditions",
        )
    return Verdict(allowed="unknown", reason=_unclear(source_text, given))


def _unclear(source_text: str, licence: str) -> str:
    """Why a licence that is no open one does not answer the question."""
    if licence in _NONE:
        return (
            f"{source_text!r} names no known source, and no licence is given; say both with "
            "`medretrieval build --source ... --license ...`"
        )
    if licence in NO_DERIVATIVES:
        return f"the licence {licence} allows no derived works, and a rendered slice may be one"
    return f"the licence {licence!r} is none of the open ones known here: {', '.join(sorted(OPEN))}"


def _terms(sources: Sequence[Source]) -> str:
    """What is known of the terms of these sources, in words."""
    says = {
        "allowed": "pictures may be passed on",
        "forbidden": "pictures may not be passed on",
        "unknown": "whether pictures may be passed on is not known",
    }
    return ". ".join(
        f"{s.title}: {says[s.images]}; {s.why} (licence: {s.license}; as known, unverified"
        f"{f'; {s.homepage}' if s.homepage else ''})"
        for s in sources
    )


def _words(text: str) -> tuple[str, ...]:
    """Runs of letters and runs of digits, in lower case."""
    return tuple(_WORD.findall(text.casefold()))


_NAMES: Mapping[tuple[str, ...], str] = {
    _words(name): row.key for row in ROWS for name in (row.title, *row.aliases)
}
_LONGEST = max(map(len, _NAMES))
