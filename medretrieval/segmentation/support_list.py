"""`supports.json`, the list of a support set: what may be in it. No other file is read here."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from medretrieval.errors import InputError
from medretrieval.types import RESEARCH_ONLY

SUPPORTS_FILE = "supports.json"
SCHEMA_VERSION = 1
MAX_SUPPORTS = 1024
MAX_LIST_BYTES = 4 << 20
_MAX_TEXT = 500
_PICTURE = re.compile(r"[0-9]{1,6}(-mask)?\.png")
# The only names that are ever read, or extracted from a zip: none of them leaves the folder.
NAMES = re.compile(rf"{re.escape(SUPPORTS_FILE)}|{_PICTURE.pattern}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VALUE = re.compile(r"[1-9][0-9]{0,4}")


@dataclass(frozen=True, kw_only=True)
class PictureFile:
    """A PNG file of a support set.

    Attributes:
        name: in the folder of the set.
        sha256: of its content, 64 hexadecimal digits.
    """

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the list says of one support; `key`, `names` and `score` are those of `Support`."""

    key: str
    names: Mapping[int, str]
    score: float | None
    image: PictureFile
    mask: PictureFile


def problem(key: str, names: Mapping[int, str], score: float | None) -> str | None:
    """What keeps key, names and score of a support from being stored, None if nothing does."""
    for text in (key, *names.values()):
        if not text or len(text) > _MAX_TEXT or not text.isprintable():
            return f"{text!r} is not a name of 1 to {_MAX_TEXT} printable characters"
    wrong = [value for value in names if not 0 < value <= 65535]
    if wrong:
        return f"the values {wrong[:5]} have a name; expected 1 to 65535 (0 is the background)"
    if len(set(names.values())) < len(names):
        return f"two values of its mask have one name: {sorted(names.values())}"
    # Integers are compared as they are: one of 400 digits cannot become a float.
    if score is not None and not abs(score) <= sys.float_info.max:
        return "its score is not a finite number"
    return None


def dump_list(entries: Iterable[Entry]) -> bytes:
    """The content of `supports.json`.

    Raises:
        InputError: it would be larger than can be loaded again.
    """
    data = {
        "schema_version": SCHEMA_VERSION,
        "note": RESEARCH_ONLY,
        "supports": [
            {
                "key": entry.key,
                "names": {str(value): entry.names[value] for value in sorted(entry.names)},
                "score": entry.score,
                "image": {"file": entry.image.name, "sha256": entry.image.sha256},
                "mask": {"file": entry.mask.name, "sha256": entry.mask.sha256},
            }
            for entry in entries
        ],
    }
    content = (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()
    if len(content) > MAX_LIST_BYTES:
        raise InputError(
            f"the names of the supports take {len(content)} bytes, a support set holds "
            f"{MAX_LIST_BYTES}; save fewer supports"
        )
    return content


def parse_list(content: bytes) -> list[Entry]:
    """The inverse of `dump_list`.

    Raises:
        InputError: it is of a newer version.
        ValueError: it is no such list; the message says why.
    """
    try:
        data = json.loads(content)
        version = data["schema_version"]
        if type(version) is not int or version < 1:
            raise ValueError(f"schema_version {version!r}, expected {SCHEMA_VERSION}")
        if version > SCHEMA_VERSION:
            raise InputError(
                f"the support set is of version {version}, this version of medretrieval reads "
                f"{SCHEMA_VERSION}; upgrade medretrieval (pip install -U medretrieval)"
            )
        if not 1 <= len(data["supports"]) <= MAX_SUPPORTS:
            raise ValueError(f"{len(data['supports'])} supports, expected 1 to {MAX_SUPPORTS}")
        entries = [_entry(entry) for entry in data["supports"]]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    files = [file.name for entry in entries for file in (entry.image, entry.mask)]
    # A small file that is named often would be read and decoded as often.
    if len(set(files)) < len(files):
        raise ValueError("a file is named twice")
    return entries


def _entry(entry: Mapping[str, Any]) -> Entry:
    key, score = entry["key"], entry["score"]
    if not isinstance(key, str) or not (score is None or type(score) in (int, float)):
        raise ValueError("a key or score is of the wrong type")
    names = {}
    for value, name in entry["names"].items():
        if _VALUE.fullmatch(value) is None or not isinstance(name, str):
            raise ValueError(f"{value!r} is not a mask value with a name")
        names[int(value)] = name
    wrong = problem(key, names, score)
    if wrong is not None:
        raise ValueError(wrong)
    return Entry(
        key=key,
        names=names,
        score=None if score is None else float(score),
        image=_file(entry["image"]),
        mask=_file(entry["mask"]),
    )


def _file(file: Mapping[str, Any]) -> PictureFile:
    name, sha256 = file["file"], file["sha256"]
    if _PICTURE.fullmatch(name) is None or _SHA256.fullmatch(sha256) is None:
        raise ValueError(f"{name!r} is not a file of a support set with its sha256")
    return PictureFile(name=name, sha256=sha256)
