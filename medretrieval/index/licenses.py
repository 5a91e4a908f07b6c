"""Licence identifiers of the Hugging Face Hub, as far as data sets of images use them."""

from __future__ import annotations

from medretrieval.index.card_text import quoted
from medretrieval.types import UNKNOWN

# Those that let anyone pass copies on, under conditions of their own.
OPEN = frozenset(
    {
        *("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "pddl", "odbl", "odc-by"),
        *("cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0"),
        *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0"),
        *("cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    }
)
# Copies only as they are: whether a rendered and cut picture is one is for a lawyer to say.
NO_DERIVATIVES = frozenset({"cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"})
LICENSES = OPEN | NO_DERIVATIVES | {UNKNOWN}


def license_lines(text: str) -> list[str]:
    """Return lines of YAML with a licence as the Hub wants it.

    >>> license_lines("CC-BY-4.0"), license_lines("research only")
    (['license: cc-by-4.0'], ['license: other', 'license_name: "research only"'])
    """
    identifier = text.strip().lower()
    if identifier in LICENSES:
        return [f"license: {identifier}"]
    return ["license: other", f"license_name: {quoted(text)}"]
