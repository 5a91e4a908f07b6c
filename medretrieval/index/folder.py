"""Cases from a folder of images or volumes."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medretrieval.errors import InputError, UsageError
from medretrieval.index.cases import (
    ARCHIVE_SUFFIXES,
    DICOM_SUFFIXES,
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    Case,
    check_label_name,
    file_case,
    split_suffix,
)

logger = logging.getLogger(__name__)

_ALL_SUFFIXES = (*IMAGE_SUFFIXES, *DICOM_SUFFIXES, *ARCHIVE_SUFFIXES)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """An image of the folder: where it is, and its path below the folder, with suffix and not."""

    path: Path
    relative: str
    stem: str


def cases_from_folder(
    source: str | Path,
    *,
    masks: str | Path | None = None,
    label_names: Mapping[int, str] | None = None,
    modality: str | None = None,
    region: str | None = None,
    labels_from_folders: bool = False,
    channel: int = 0,
    allow_one_slice: bool = False,
) -> list[Case]:
    """Find the images and volumes in a folder and its sub-folders, sorted by path.

    PNG, JPEG, TIFF, NIfTI, zip and single DICOM files are a case each; a folder whose DICOM files
    are of one series is one case. Hidden files and folders are passed over. The volume_id is the
    path below `source` without suffix (with it, where two would be the same), and every volume is
    a patient of its own.

    Args:
        masks: folder with label maps of the same paths or file names; the suffix may differ
            (.nii for .nii.gz, .png for .jpg). Cases without one are not annotated.
        label_names: mask value -> name, for all cases.
        modality, region: of all cases; without them, what the files say.
        labels_from_folders: the name of the folder that an image is in is a label of the case.
        channel: of 4-D volumes.
        allow_one_slice: accept NIfTI volumes of a single slice.

    Raises:
        UsageError: no such folder.
        InputError: no images, or `masks` has none that belongs to an image.
    """
    source = Path(source)
    if not source.is_dir():
        what = "is a file" if source.exists() else "does not exist"
        raise UsageError(f"{source} {what}; expected a folder of images, or a .csv table")
    for value, name in (label_names or {}).items():
        check_label_name(value, name, "label_names")
    mask_folder = None if masks is None else _mask_folder(Path(masks), source)
    found = _distinct(_find(source, mask_folder))
    if not found:
        raise InputError(
            f"{source} holds no images; expected PNG, JPEG, TIFF, NIfTI (.nii, .nii.gz), DICOM or "
            "zip files, there or in its sub-folders"
        )
    matched = {} if mask_folder is None else _match(found, mask_folder)
    cases = []
    for image in found:
        folder = Path(image.relative).parent.name
        cases.append(
            file_case(
                image.path,
                matched.get(image.relative),
                volume_id=image.stem,
                modality=modality,
                region=region,
                labels=(folder,) if labels_from_folders and folder else (),
                label_names=label_names,
                channel=channel,
                allow_one_slice=allow_one_slice,
            )
        )
    return cases


def _mask_folder(masks: Path, source: Path) -> Path:
    if not masks.is_dir():
        raise UsageError(f"masks folder {masks} does not exist; expected a folder of label maps")
    if masks.resolve() == source.resolve():
        raise UsageError(f"images and masks are both in {masks}; put them into two folders")
    return masks


def _find(source: Path, excluded: Path | None) -> list[_Found]:
    found: list[_Found] = []
    skip = None if excluded is None else excluded.resolve()
    for root, folders, names in os.walk(source):
        here = Path(root)
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and (skip is None or (here / name).resolve() != skip)
        )
        dicom: list[Path] = []
        for name in sorted(names):
            path = here / name
            if name.startswith(".") or not path.is_file():
                continue
            stem, suffix = split_suffix(name, _ALL_SUFFIXES)
            if suffix in DICOM_SUFFIXES or (not suffix and _is_dicom(path)):
                dicom.append(path)
            elif suffix:
                found.append(_found(source, path, path.with_name(stem)))
        found += _dicom_cases(source, here, dicom)
    return sorted(found, key=lambda image: image.relative)


def _found(source: Path, path: Path, stem: Path) -> _Found:
    if path == source:
        return _Found(path=path, relative=source.resolve().name, stem=source.resolve().name)
    return _Found(
        path=path,
        relative=path.relative_to(source).as_posix(),
        stem=stem.relative_to(source).as_posix(),
    )


def _is_dicom(path: Path) -> bool:
    if path.name.upper() == "DICOMDIR":
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _dicom_cases(source: Path, folder: Path, files: Sequence[Path]) -> list[_Found]:
    """Return one case for a folder of one series, else one for each file.

    Files of several series that are mixed in a folder are left to the reader of the folder, which
    says what to do about it.
    """
    series = Counter(uid for uid in map(_series, files) if uid) if len(files) > 1 else Counter()
    if series and max(series.values()) > 1:
        return [_found(source, folder, folder)]
    return [
        _found(source, path, path.with_name(split_suffix(path.name, DICOM_SUFFIXES)[0]))
        for path in files
    ]


def _series(path: Path) -> str | None:
    """Return the series that a DICOM file belongs to, None if its header cannot be read."""
    import pydicom

    try:
        header = pydicom.dcmread(
            path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"], force=True
        )
        return str(header.get("SeriesInstanceUID", "")) or None
    except Exception:  # the parser raises many kinds; reading the case reports what is wrong
        return None


def _distinct(found: list[_Found]) -> list[_Found]:
    """Give images that differ only in their suffix their full names."""
    seen = Counter(image.stem for image in found)
    return [
        _Found(path=f.path, relative=f.relative, stem=f.relative) if seen[f.stem] > 1 else f
        for f in found
    ]


def _match(found: Sequence[_Found], folder: Path) -> dict[str, Path]:
    """Return relative image path -> mask, by the same path, else by a file name that is unique."""
    by_path: dict[str, list[Path]] = defaultdict(list)
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        stem, suffix = split_suffix(path.name, MASK_SUFFIXES)
        if suffix and not path.name.startswith(".") and path.is_file():
            by_path[path.with_name(stem).relative_to(folder).as_posix()].append(path)
            by_name[stem].append(path)
    images = Counter(_bare(image) for image in found)
    matched: dict[str, Path] = {}
    for image in found:
        name = _bare(image)
        candidates = by_path.get(_without_suffix(image), [])
        if not candidates and images[name] == 1:
            candidates = by_name.get(name, [])
        if len(candidates) > 1:
            shown = ", ".join(str(path.relative_to(folder)) for path in candidates[:3])
            raise InputError(f"image {image.relative} has several masks ({shown}); leave one")
        if candidates:
            matched[image.relative] = candidates[0]
    if not matched:
        example = next(iter(by_name), None)
        have = f"such as {example!r}" if example else "none (.nii, .nii.gz, .png, .tif)"
        raise InputError(
            f"no mask in {folder} has the name of an image: images are called such as "
            f"{_bare(found[0])!r}, masks {have}; give masks the file names of their images"
        )
    without = len(found) - len(matched)
    if without:
        logger.warning("%d of %d images have no mask in %s", without, len(found), folder)
    unused = sum(map(len, by_path.values())) - len(set(matched.values()))
    if unused:
        logger.warning("%d masks in %s belong to no image", unused, folder)
    return matched


def _without_suffix(image: _Found) -> str:
    return split_suffix(image.relative, _ALL_SUFFIXES)[0]


def _bare(image: _Found) -> str:
    return Path(_without_suffix(image)).name
