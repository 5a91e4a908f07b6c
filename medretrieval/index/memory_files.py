"""Files of stored memories in an index folder: added to it, counted, and taken along.

What is in them is the business of `medretrieval.segmentation.stored`. They are derived, as
index.faiss is: an index that lists them and lacks them is whole. So an index is valid at any time
while they are added: first the manifest names the file, then the file appears.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from medretrieval.index.files import file_entry
from medretrieval.index.in_place import replace_manifest
from medretrieval.index.manifest import (
    CARD,
    MANIFEST,
    MEMORIES,
    FileEntry,
    Manifest,
    read_manifest,
)
from medretrieval.index.workspace import sync, writing

_NUMBERED = re.compile(rf"{MEMORIES}(.+)-([0-9a-f]{{12}})-([0-9]{{5}})\.safetensors")
COUNT = "memories"  # in the metadata of a file: how many it holds
# Of ours a header takes half a kilobyte for a memory of 10 kB or more, in files of 64 MB; it takes
# ten times as much in memory.
_MAX_HEADER = 8 << 20


def memory_prefix(segmenter: str, digest: str) -> str:
    """How the names of the files begin that hold memories of these weights.

    Args:
        segmenter: its name; characters that a file of an index cannot have become "-".
        digest: sha256 of its weights, of which 12 digits are used.
    """
    return f"{MEMORIES}{re.sub(r'[^A-Za-z0-9_.-]', '-', segmenter)}-{digest[:12]}-"


def memory_files(files: Iterable[str], prefix: str = MEMORIES) -> list[str]:
    """The names of files of memories among the files of an index, in order."""
    return sorted(name for name in files if name.startswith(prefix))


def without_memories(manifest: Manifest) -> Manifest:
    """What a manifest says of everything but the memories, and the card with its evaluations."""
    files = {
        name: entry
        for name, entry in manifest.files.items()
        if name != CARD and not name.startswith(MEMORIES)
    }
    return dataclasses.replace(manifest, files=files, evaluations=())


def next_memory_file(files: Iterable[str], prefix: str) -> str:
    """The name of a further file."""
    used = (_NUMBERED.fullmatch(name) for name in memory_files(files, prefix))
    return f"{prefix}{max((int(m[3]) + 1 for m in used if m), default=0):05d}.safetensors"


def add_memories(folder: Path, staged: Path, prefix: str) -> Manifest:
    """Move a file of memories into an index and list it in the manifest.

    Files that are listed and missing are taken off the list.

    Args:
        staged: the complete file, on the same disk.

    Returns:
        The new manifest.

    Raises:
        IndexFormatError: the manifest is damaged.
        MedRetrievalError: it cannot be written.
    """
    manifest = read_manifest(folder)
    files = {
        name: entry
        for name, entry in manifest.files.items()
        if not name.startswith(MEMORIES) or (folder / name).exists()
    }
    name = next_memory_file(files, prefix)
    files[name] = file_entry(staged)
    manifest = dataclasses.replace(manifest, files=dict(sorted(files.items())))
    with writing(folder / name):
        shutil.copymode(folder / MANIFEST, staged)  # safetensors writes for its owner alone
        replace_manifest(folder, manifest)
        (folder / MEMORIES).mkdir(exist_ok=True)
        os.replace(staged, folder / name)
        sync(folder / MEMORIES)
    return manifest


def copy_memories(sources: Sequence[tuple[Path, Manifest]], out: Path) -> None:
    """Copy the memories of indexes into a new one: their keys are of pictures, not of rows."""
    taken: list[str] = []
    for folder, manifest in sources:
        for name in memory_files(manifest.files):
            match = _NUMBERED.fullmatch(name)
            if match is None or not (folder / name).exists():
                continue
            (out / MEMORIES).mkdir(exist_ok=True)
            taken.append(next_memory_file(taken, memory_prefix(match[1], match[2])))
            shutil.copyfile(folder / name, out / taken[-1])


def memory_info(folder: Path, files: Mapping[str, FileEntry]) -> list[dict[str, Any]]:
    """What memories an index has: for each segmenter and its weights, how many in how many bytes.

    `memories` is None where a file does not say it.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name in memory_files(files):
        match = _NUMBERED.fullmatch(name)
        if match is None or not (folder / name).exists():
            continue
        entry = found.setdefault(
            (match[1], match[2]),
            {"segmenter": match[1], "weights": match[2], "memories": 0, "files": 0, "bytes": 0},
        )
        count = _count(folder / name)
        total = entry["memories"]
        entry["memories"] = None if count is None or total is None else total + count
        entry["files"] += 1
        entry["bytes"] += files[name].bytes
    return list(found.values())


def open_memories(path: Path, framework: str) -> Any:
    """Open a file of memories; no tensor is read.

    Args:
        framework: "numpy" or "pt".

    Raises:
        SafetensorError, OSError: it cannot be opened.
        ValueError: its header is longer than memories need.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"its header claims {length} bytes, at most {_MAX_HEADER} are read")
    return safe_open(path, framework=framework)


def _count(path: Path) -> int | None:
    try:
        with open_memories(path, "numpy") as file:
            text = (file.metadata() or {}).get(COUNT, "")
    except (OSError, ValueError, SafetensorError):
        return None
    return int(text) if text.isdecimal() else None
