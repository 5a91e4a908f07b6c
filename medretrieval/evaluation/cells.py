"""Results kept as small files, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Cells:
    """A folder with one JSON file for every result.

    Args:
        folder: made when the first result is written.
        fresh: do not use what is there.
    """

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        self._folder = folder
        self._fresh = fresh

    def get(
        self, *names: str, identity: Mapping[str, Any], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """The result called `names`, made now unless it was made before from the same things.

        Args:
            names: folders and, last, the name of the file.
            identity: everything that the result depends on, JSON-able. A stored result of another
                identity is made again.
            make: returns a JSON-able result.
        """
        text = json.dumps(identity, sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()
        path = self._folder.joinpath(*map(file_name, names)).with_suffix(".json")
        stored = None if self._fresh else _read(path)
        if stored is not None and stored.get("key") == key:
            return dict(stored["result"])
        result = make()
        write_json(path, {"key": key, "result": result})
        return result


def file_name(name: str) -> str:
    """A name for a file: readable, and different for different names.

    >>> file_name("patient001_frame01")
    'patient001_frame01'
    """
    plain = re.sub(r"[^\w@+-]+", "-", name)
    if plain == name and len(name) <= 80:
        return name
    return f"{plain[:64]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def write_json(path: Path, data: Any) -> None:
    """Write a file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) and isinstance(data.get("result"), dict) else None
