"""What the Hub asks a person who wants access to a gated index.

https://huggingface.co/docs/hub/datasets-gated: the questions are YAML on top of the card; whether
access is granted at once ("auto") or by the owners ("manual") is a setting of the data set.
"""

from __future__ import annotations

import json
from typing import Literal, get_args

from medretrieval.errors import UsageError

Gate = Literal["auto", "manual"]

_HEADING = "Access to medical images"
_PROMPT = (
    "These are images of patients, or numbers that were computed from them. They are for research "
    "only, not for diagnosis. By asking for access you agree to use them under the licence and the "
    "terms of their source."
)
_FIELDS = (
    ("Name", "text"),
    ("Institution", "text"),
    ("Country", "country"),
    ("What I will use it for", "text"),
    ("I will use it for research only, and not for diagnosis", "checkbox"),
    ("I will not try to find out who the patients are", "checkbox"),
    ("I will not pass it on to others", "checkbox"),
    ("I will delete what was removed from it when a newer version says so", "checkbox"),
)


def check_gate(gate: str | None) -> Gate | None:
    """Return `gate` if it is one.

    Raises:
        UsageError: it is not "auto", "manual" or None.
    """
    for known in get_args(Gate):
        if gate == known:
            return known  # type: ignore[no-any-return]
    if gate is None:
        return None
    raise UsageError(f"gate is {gate!r}; expected auto or manual")


def with_gate(card: str, gate: Gate | None) -> str:
    """Return a card whose YAML has the questions, if there is a gate."""
    if gate is None:
        return card
    lines = [
        f"extra_gated_heading: {json.dumps(_HEADING)}",
        f"extra_gated_prompt: {json.dumps(_PROMPT)}",
        "extra_gated_fields:",
        *(f"  {json.dumps(question)}: {kind}" for question, kind in _FIELDS),
    ]
    start = "---\n"
    assert card.startswith(start)
    return start + "\n".join(lines) + "\n" + card.removeprefix(start)
