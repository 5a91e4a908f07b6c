"""What a file is, by its content; its name only helps to word the message where that fails."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from medretrieval.errors import InputError
from medretrieval.imaging.dicom import looks_like_dicom
from medretrieval.imaging.nifti import GZIP_MAGIC, header_size

KNOWN = "PNG, JPEG, TIFF, NIfTI (.nii, .nii.gz), DICOM, or a zip of one of these"
_PICTURES = (
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+",
)  # fmt: skip
_ZIPS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
_OTHER_ARCHIVES = {
    b"7z\xbc\xaf\x27\x1c": "7z archive", b"Rar!\x1a\x07": "RAR archive", b"BZh": "bzip2 file",
    b"\xfd7zXZ\x00": "xz file",
}  # fmt: skip
_NAMED = {
    ".nii": "NIfTI", ".nii.gz": "NIfTI", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG",
    ".tif": "TIFF", ".tiff": "TIFF", ".dcm": "DICOM", ".zip": "zip",
}  # fmt: skip
HEAD_BYTES = 540


def suffix_of(path: Path) -> str:
    """Return the lower-case suffix, with .nii.gz as one.

    >>> suffix_of(Path("scan.v2.NII.GZ"))
    '.nii.gz'
    """
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def kind_of(head: bytes) -> str | None:
    """Return "zip", "gzip", "nifti", "picture", "dicom", "7z archive" ..., or None.

    Args:
        head: the first `HEAD_BYTES` of a file, or all of a shorter one.
    """
    # First of all: the 128 bytes before it may be anything, even the start of a TIFF file.
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(_ZIPS):
        return "zip"
    if head.startswith(GZIP_MAGIC):
        return "gzip"
    for magic, kind in _OTHER_ARCHIVES.items():
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "tar archive"
    if header_size(head) is not None:
        return "nifti"
    if head.startswith(_PICTURES):
        return "picture"
    return "dicom" if looks_like_dicom(head) else None


def sniff(path: Path, what: str) -> str:
    """Return "zip", "nifti", "picture" or "dicom" for a file, by its content.

    Raises:
        InputError: missing, unreadable, empty, damaged, or none of these.
    """
    try:
        # Opening a pipe would wait for its writer, perhaps for ever.
        if path.is_fifo() or path.is_socket():
            raise InputError(f"{what} is a pipe or socket; expected a file: save it to one first")
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise InputError(
            f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not head:
        raise InputError(f"{what} is empty (0 bytes); copy or export it again")
    kind = kind_of(head)
    if kind == "gzip":
        kind = _inside_gzip(path, what)
    if kind in ("zip", "nifti", "picture", "dicom"):
        return kind
    promised = _NAMED.get(suffix_of(path))
    if promised is not None:
        raise InputError(
            f"{what} is named like a {promised} file, but its content is not"
            f"{f' (it is a {kind})' if kind else ''}: it is damaged, truncated or misnamed. "
            f"Expected {KNOWN}; export or copy it again"
        )
    raise InputError(
        f"{what} is {f'a {kind}' if kind else 'of an unknown type'}; expected {KNOWN}: convert it"
    )


def _inside_gzip(path: Path, what: str) -> str:
    try:
        with gzip.open(path) as stream:
            head = stream.read(HEAD_BYTES)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(
            f"{what} is damaged: its gzip data does not decompress ({error}); copy or download "
            "the file again"
        ) from error
    if header_size(head) is None:
        raise InputError(
            f"{what} is a gzip file without a NIfTI image; expected .nii.gz, or {KNOWN}: "
            "decompress it first"
        )
    return "nifti"
