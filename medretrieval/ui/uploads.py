"""Uploaded files: taken out of the server's reach at once, read under a neutral name, deleted."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medretrieval.errors import InputError
from medretrieval.imaging import suffix_of


@contextmanager
def taken(upload: str | Path, cache: str | Path, *, name: str = "your file") -> Iterator[Path]:
    """Move an uploaded file to a private folder for as long as the block lasts, then delete it.

    The file is called `name` there, with its own suffix: file names may hold patients' names, and
    messages show them. A file outside of `cache` is not an upload: it is left where it is.

    Args:
        upload: path of the file as the server stored it.
        cache: folder that the server stores uploads in.

    Raises:
        InputError: the file is gone.
    """
    upload = Path(upload)
    if not upload.resolve().is_relative_to(Path(cache).resolve()):
        yield upload
        return
    suffix = suffix_of(upload)
    if not re.fullmatch(r"(\.[A-Za-z0-9]{1,8}){0,2}", suffix):
        suffix = ""
    with tempfile.TemporaryDirectory(prefix="medretrieval-") as folder:
        private = Path(folder) / f"{name}{suffix}"
        try:
            shutil.move(upload, private)
        except FileNotFoundError:
            raise InputError(
                "the upload is not there any more (uploads are deleted once they are read); "
                "upload the file again"
            ) from None
        yield private
