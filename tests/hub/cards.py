"""The metadata at the head of a README.md, as the Hub reads and judges it."""

from __future__ import annotations

import re
from typing import Any

import yaml

_HEAD = re.compile(r"\A\ufeff?\s*---\r?\n(.*?)(?:^|\n)---\s*?(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_TAGGED = ("license", "language", "task_categories", "size_categories")
_TYPES: dict[str, tuple[type, ...]] = {
    "license": (str, list),
    "language": (str, list),
    "tags": (list,),
    "task_categories": (list,),
    "size_categories": (str, list),
    "pretty_name": (str,),
    "configs": (list,),
    "viewer": (bool,),
}


def front_matter(readme: str) -> dict[str, Any]:
    """The metadata; {} where there is none that can be read."""
    try:
        found = _parse(readme)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _parse(readme: str) -> Any:
    match = _HEAD.search(readme)
    return yaml.safe_load(match[1]) if match else None


def problems(readme: str) -> tuple[list[str], list[str]]:
    """(errors, warnings) of the metadata."""
    try:
        found = _parse(readme)
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {str(error).splitlines()[0]}"], []
    if not found:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(found, dict):
        return ["YAML Metadata Error: the metadata must be a mapping"], []
    wrong = [
        f'"{name}" must be {" or ".join(type_.__name__ for type_ in types)}'
        for name, types in _TYPES.items()
        if name in found and not isinstance(found[name], types)
    ]
    return wrong, []


def card_tags(card: dict[str, Any]) -> list[str]:
    """The tags that the Hub shows, of which filters are made."""
    tags = []
    for name in _TAGGED:
        values = card.get(name) or []
        tags += [f"{name}:{v}" for v in ([values] if isinstance(values, str) else values)]
    return [*tags, *(card.get("tags") or []), "region:us"]
