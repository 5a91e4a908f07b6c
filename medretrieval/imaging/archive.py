"""Zip files: one DICOM series, one supported image, or files of known names.

Everything else about them is refused.
"""

from __future__ import annotations

import re
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medretrieval.errors import InputError, MedRetrievalError
from medretrieval.imaging.limits import ENVIRONMENT, max_bytes, size_text
from medretrieval.imaging.sniff import HEAD_BYTES, KNOWN, kind_of, suffix_of

_MAX_MEMBERS = 20_000
# Medical images deflate by about 2, by 20 with much background; a bomb by up to 1032.
_MAX_RATIO = 200
_RATIO_FROM = 1 << 20  # small members may be as empty as they like
_ENCRYPTED = 0x1
_NESTED = (".zip", ".7z", ".rar", ".tar", ".tgz", ".bz2", ".xz", ".jar")
_NESTED_KINDS = ("zip", "7z archive", "RAR archive", "tar archive", "bzip2 file", "xz file")
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What a zip holds, extracted to a temporary folder.

    Attributes:
        dicom: the DICOM files; then `image` is None.
        image: the only other image, or None.
        name: file name of `image` in the archive.
    """

    dicom: Sequence[Path]
    image: Path | None
    name: str


def _check_members(members: Sequence[zipfile.ZipInfo], what: str) -> None:
    if len(members) > _MAX_MEMBERS:
        raise InputError(
            f"{what} has {len(members)} entries, more than {_MAX_MEMBERS}; zip one series alone"
        )
    for member in members:
        name = member.filename.replace("\\", "/")
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or (parts and ":" in parts[0]) or "\0" in name:
            raise InputError(
                f"{what} has an entry that points outside the archive ({name!r}); it may be an "
                "attack. Expected plain relative names: zip the folder again"
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{what} has a link ({name!r}); zip the files themselves")
        if member.flag_bits & _ENCRYPTED:
            raise InputError(f"{what} is encrypted; unpack it and zip it without a password")
        packed = max(1, member.compress_size)
        if member.file_size > _RATIO_FROM and member.file_size > _MAX_RATIO * packed:
            raise InputError(
                f"{what} has an entry that expands {member.file_size // packed} times, more than "
                f"{_MAX_RATIO}; it may be a zip bomb. Unpack it and give the image itself"
            )
    total = sum(member.file_size for member in members)
    if total > max_bytes():
        raise InputError(
            f"{what} holds {size_text(total)}, more than the limit of {size_text(max_bytes())}; "
            f"zip one series alone, or raise the limit with {ENVIRONMENT}"
        )


def _is_clutter(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return (
        "__MACOSX" in parts
        or any(p.startswith(".") for p in parts)
        or (bool(parts) and parts[-1].lower() in ("thumbs.db", "desktop.ini"))
    )


def _sort_members(
    archive: zipfile.ZipFile, members: Sequence[zipfile.ZipInfo], what: str
) -> tuple[list[zipfile.ZipInfo], list[zipfile.ZipInfo]]:
    """Return (DICOM files, other images) of an archive."""
    dicom, images = [], []
    for member in members:
        with archive.open(member) as stream:
            kind = kind_of(stream.read(HEAD_BYTES))
        if kind in _NESTED_KINDS or Path(member.filename).suffix.lower() in _NESTED:
            raise InputError(
                f"{what} has another archive in it ({member.filename!r}); unpack it and zip the "
                "images themselves"
            )
        if kind == "dicom":
            dicom.append(member)
        elif kind in ("nifti", "picture") or (
            kind == "gzip" and suffix_of(Path(member.filename)) == ".nii.gz"
        ):
            images.append(member)
    return dicom, images


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, what: str) -> None:
    left = member.file_size
    with archive.open(member) as source, open(target, "xb") as out:
        while chunk := source.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise InputError(
                    f"{what} holds more than it declares; it may be a zip bomb. Unpack it and "
                    "give the image itself"
                )
            out.write(chunk)


@contextmanager
def extracted(path: Path, what: str) -> Iterator[Extracted]:
    """Extract the images of a zip to a temporary folder, which is deleted afterwards.

    Files get names of our own, so that no name in the archive is ever used as a path.

    Raises:
        InputError: not a zip, damaged, encrypted, unsafe, too large, nested, without an image, or
            with several images that are not DICOM.
    """
    with tempfile.TemporaryDirectory(prefix="medretrieval-") as folder:
        yield _extract_all(path, Path(folder), what)


def _extract_all(path: Path, folder: Path, what: str) -> Extracted:
    with _opened(path, what) as archive:
        members = _files(archive)
        dicom, images = _sort_members(archive, members, what)
        if not dicom and not images:
            raise InputError(f"{what} has no image among its {len(members)} files; "
                             f"expected {KNOWN}")  # fmt: skip
        if not dicom and len(images) > 1:
            names = ", ".join(repr(PurePosixPath(m.filename).name) for m in images[:5])
            raise InputError(
                f"{what} has {len(images)} images ({names}{', ...' if images[5:] else ''}); "
                "expected one image or one DICOM series: unpack it and give one of them"
            )
        targets = []
        for number, member in enumerate(dicom or images, start=1):
            target = folder / f"file-{number:05d}"
            _extract(archive, member, target, what)
            targets.append(target)
    if dicom:
        return Extracted(dicom=targets, image=None, name="")
    return Extracted(
        dicom=(), image=targets[0], name=PurePosixPath(images[0].filename.replace("\\", "/")).name
    )


def extract_named(
    path: Path, folder: Path, what: str, names: re.Pattern[str], *, most: int
) -> None:
    """Extract those files of a zip whose bare names match, whatever folders they are in there.

    Args:
        folder: where they go, under their bare names; it holds none of them yet.
        names: full matches are extracted, everything else is left; it must not match a name with
            a separator, or "..".
        most: so many bytes of them are extracted, at most.

    Raises:
        InputError: not a zip, damaged, encrypted, unsafe, too large, or a name occurs twice.
    """
    with _opened(path, what) as archive:
        chosen: dict[str, zipfile.ZipInfo] = {}
        for member in _files(archive):
            name = PurePosixPath(member.filename.replace("\\", "/")).name
            if names.fullmatch(name) is None:
                continue
            if name in chosen:
                raise InputError(f"{what} has {name!r} twice; zip one folder alone")
            chosen[name] = member
        total = sum(member.file_size for member in chosen.values())
        if total > most:
            raise InputError(
                f"{what} holds {size_text(total)}, more than the limit of {size_text(most)}"
            )
        for name, member in chosen.items():
            _extract(archive, member, folder / name, what)


@contextmanager
def _opened(path: Path, what: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip of which every entry is acceptable; what goes wrong becomes an InputError."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive.infolist(), what)
            yield archive
    except MedRetrievalError:
        raise
    except Exception as error:
        # zipfile raises BadZipFile, but also NotImplementedError, zlib.error, EOFError,
        # RuntimeError and struct.error, depending on where a file is damaged.
        raise InputError(
            f"{what} is a damaged or unsupported zip file ({type(error).__name__}: {error}); zip "
            "the files again"
        ) from error


def _files(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return [m for m in archive.infolist() if not m.is_dir() and not _is_clutter(m.filename)]
