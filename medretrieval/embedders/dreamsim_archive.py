"""Weights in the zip of a release, read without trusting it.

Only files with names known beforehand are taken out, under those names, into a temporary folder:
no entry can say where it is written to.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from medretrieval.errors import InputError

# The largest file of a release is a checkpoint of a ViT-B's training, below 2 GB.
MAX_BYTES = 4 << 30
_ENCRYPTED = 0x1


@contextmanager
def unpacked(location: Path, wanted: Sequence[str]) -> Iterator[Path]:
    """The folder `location`; if it is a zip, a temporary folder with its files called `wanted`.

    The zip may have one folder around them.

    Raises:
        InputError: it is neither, is damaged or encrypted, or claims files above `MAX_BYTES`.
    """
    if location.is_dir():
        yield location
        return
    with tempfile.TemporaryDirectory(prefix="medretrieval-") as temporary:
        try:
            _extract(location, wanted, Path(temporary))
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise InputError(
                f"{location} cannot be read as a zip ({type(error).__name__}); expected the "
                "archive of the release, or the folder that it unzips to. Fetch it again"
            ) from error
        yield Path(temporary)


def _extract(path: Path, wanted: Sequence[str], to: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            parts = PurePosixPath(member.filename.replace("\\", "/")).parts
            name = next((w for w in wanted if w in ("/".join(parts), "/".join(parts[1:]))), None)
            if name is None or member.is_dir():
                continue
            if member.flag_bits & _ENCRYPTED:
                raise InputError(f"{path} is encrypted; give the folder that it unzips to")
            if member.file_size > MAX_BYTES:
                raise InputError(
                    f"{path} claims {member.file_size} bytes for {name}, more than {MAX_BYTES}; "
                    "expected the archive of the release"
                )
            target = to / name
            target.parent.mkdir(parents=True, exist_ok=True)
            # zipfile gives no more bytes than the entry claims.
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
