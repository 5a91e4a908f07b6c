"""Known sources of images, and whether pictures of them may be passed on in an index.

As known, unverified; see `medretrieval.index.source_table`. What is said here is no legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from medretrieval.index.licenses import NO_DERIVATIVES, OPEN
from medretrieval.index.source_table import ROWS
from medretrieval.index.source_table import Source as Source
from medretrieval.types import UNKNOWN

SOURCES: Mapping[str, Source] = MappingProxyType({row.key: row for row in ROWS})

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
    key of a source is recognised if it is all of the text: as a word it may be common English.

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
    for images, allowed in (("forbidden", "no"), ("unknown", "unknown")):
        bad = [source for source in named if source.images == images]
        if bad:
            return _verdict(allowed, "; ".join(map(_terms, bad)))
    own = {source.license.lower() for source in named}
    if named and (given in OPEN | own or given in ("", UNKNOWN)):
        return _verdict("yes", "; ".join(map(_terms, named)))
    if given in OPEN:
        return _verdict("yes", f"the licence {given} lets copies be passed on, by its conditions")
    if given in NO_DERIVATIVES:
        return _verdict(
            "unknown",
            f"the licence {given} allows no derived works, and a rendered slice may be one",
        )
    if given in ("", UNKNOWN):
        return _verdict(
            "unknown",
            f"no known source is named in {source_text!r}, and no licence is given; name both with "
            "`medretrieval build --source ... --license ...`",
        )
    return _verdict("unknown", f"the licence {licence!r} is not one of the open licences known here")


def _terms(source: Source) -> str:
    says = {
        "allowed": "lets pictures be passed on",
        "forbidden": "forbids to pass pictures on",
        "unknown": "is not known to let pictures be passed on",
    }
    return (
        f"{source.title} {says[source.images]}: {source.why} ({source.license}; as known, see "
        f"{source.homepage})"
    )


def _verdict(allowed: str, reason: str) -> Verdict:
    words: Mapping[str, Literal["yes", "no", "unknown"]] = {
        "yes": "yes",
        "no": "no",
        "unknown": "unknown",
    }
    return Verdict(allowed=words[allowed], reason=reason)


def _words(text: str) -> tuple[str, ...]:
    """Runs of letters and runs of digits, in lower case."""
    return tuple(_WORD.findall(text.casefold()))


_NAMES: Mapping[tuple[str, ...], str] = {
    _words(name): row.key for row in ROWS for name in (row.title, *row.aliases)
}
_LONGEST = max(map(len, _NAMES))
