"""The files that an index can have: their names, which of them are derived, their hashes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
CARD = "README.md"
FAISS_FILE = "index.faiss"
EMBEDDINGS_FILE = "embeddings/embeddings.safetensors"
COLUMNS_FILE = "columns.parquet"  # of slices/*.parquet all but the pictures
SLICES = "slices/"
EMBEDDINGS = "embeddings/"
MEMORIES = "memories/"

# Only these names can be listed: no "..", no absolute path, no drive, no hidden file gets through.
_NAME = "[A-Za-z0-9][A-Za-z0-9_.-]*"
_FILE_NAME = re.compile(
    rf"README\.md|columns\.parquet|index(-{_NAME})?\.faiss"
    rf"|slices/{_NAME}\.parquet"
    rf"|(embeddings|memories)/{_NAME}\.safetensors"
    rf"|embeddings/{_NAME}\.parquet"
)


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Size in bytes and sha256 (hexadecimal) of a file of the index."""

    bytes: int
    sha256: str


def check_file_name(path: str) -> bool:
    """Whether `path` can be a file of an index.

    >>> check_file_name("slices/slices-00000.parquet"), check_file_name("slices/../../x.parquet")
    (True, False)
    """
    return _FILE_NAME.fullmatch(path) is not None


def check_bare_name(name: str) -> bool:
    """Whether `name` is that of a file, without any folder.

    >>> check_bare_name("ours.json"), check_bare_name("../ours.json"), check_bare_name("..")
    (True, False, False)
    """
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def is_derived(path: str) -> bool:
    """Whether a file of an index can be made again from the others, so that it may be missing.

    >>> is_derived("index.faiss"), is_derived("embeddings/embeddings.safetensors")
    (True, False)
    """
    return (
        path.endswith(".faiss")
        or path in (CARD, COLUMNS_FILE)
        or path.startswith(MEMORIES)
        or (path.startswith(EMBEDDINGS) and path.endswith(".parquet"))
    )


def slug(name: str) -> str:
    """Return the name of an embedder or segmenter as a part of a file name.

    >>> slug("hf:org/repo"), slug("-")
    ('hf-org-repo', 'x-')
    """
    cleaned = re.sub(r"[^A-Za-z0-9_.-]", "-", name)
    return cleaned if re.match("[A-Za-z0-9]", cleaned) else f"x{cleaned}"


def embeddings_table(embeddings_file: str) -> str:
    """The parquet file with the same numbers as an embeddings file, for `datasets`.

    >>> embeddings_table("embeddings/embeddings.safetensors")
    'embeddings/embeddings.parquet'
    """
    return embeddings_file.removesuffix(".safetensors") + ".parquet"


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal, in bounded memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(path: Path) -> FileEntry:
    """What a manifest says of a file."""
    return FileEntry(bytes=path.stat().st_size, sha256=sha256_file(path))


def git_hash(data: bytes) -> str:
    """Return the name that Git gives to a file, in hexadecimal; the Hub names small files by it."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def is_linked(path: Path, blobs: Path | None, folder: Path | None = None) -> bool:
    """Whether a file of an index is a link, or lies in a linked folder, though it must not.

    Args:
        blobs: the resolved folder into which the cache of the Hub's client links its files; a link
            to a file right in it is as good as the file. None where nothing may be a link.
        folder: the index itself may be reached by a link.
    """
    if blobs is not None and path.is_symlink():
        return path.resolve().parent != blobs
    return path.is_symlink() or (path.parent != folder and path.parent.is_symlink())
