"""Support sets: annotated slices from files, saved as a small folder or zip and loaded again.

A folder holds `supports.json` and for each support its picture and mask as PNG (`0.png`,
`0-mask.png`). Every file is read only if its sha256 is the one in `supports.json`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import InputError, UsageError
from medretrieval.imaging import (
    make_slices,
    read_labels,
    read_volume,
    slice_axis,
)
from medretrieval.imaging.archive import extract_named
from medretrieval.imaging.digest import digest
from medretrieval.imaging.limits import max_bytes, size_text
from medretrieval.index.png import HEADER_BYTES, claimed_bytes, encode_png, png_pixels
from medretrieval.index.publish import move_into_place, recover
from medretrieval.index.workspace import sync, writing
from medretrieval.segmentation.labels import check_support
from medretrieval.segmentation.support_list import (
    MAX_LIST_BYTES,
    MAX_SUPPORTS,
    NAMES,
    SUPPORTS_FILE,
    Entry,
    PictureFile,
    dump_list,
    parse_list,
    problem,
)
from medretrieval.types import LabelVolume, SlicePolicy, Support, Volume

MAX_SIDE = 8192
MAX_SET_BYTES = 256 << 20  # of all pictures and masks, decoded
_EPOCH = (1980, 1, 1, 0, 0, 0)


# Saving


def save_supports(
    supports: Sequence[Support], folder: str | Path, *, overwrite: bool = False
) -> Path:
    """Write a support set as a folder; nothing appears there before it is complete.

    Args:
        supports: at least one; masks have values up to 65535.
        folder: its parents are made.
        overwrite: replace a support set at `folder`.

    Returns:
        `folder`.

    Raises:
        UsageError: no supports; `folder` exists and not `overwrite`, or is no support set.
        InputError: a support that cannot be used or stored.
        MedRetrievalError: the disk is full or cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    check_folder(folder, overwrite=overwrite)
    files = _files(supports)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
            stage = Path(work) / "set"
            stage.mkdir()
            for name, content in files:
                (stage / name).write_bytes(content)
                sync(stage / name)
            sync(stage)
            recover(folder)
            move_into_place(stage, folder)
    return folder


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that a support set must not be written to.

    Raises:
        UsageError: it exists and not `overwrite`, or anything in it is not of a support set.
    """
    if not (folder.exists() or folder.is_symlink()):
        return
    if not overwrite:
        raise UsageError(
            f"{folder} exists already; choose another folder, or replace it with --force "
            "(overwrite=True)"
        )
    found = list(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else [folder]
    # Whatever else somebody keeps there would be gone.
    ours = all(NAMES.fullmatch(path.name) and path.is_file() for path in found)
    if not ours or (found and folder / SUPPORTS_FILE not in found):
        raise UsageError(
            f"{folder} is not a support set, or holds something else too, so it is not replaced; "
            "remove it yourself or choose another folder"
        )


def pack_supports(supports: Sequence[Support]) -> bytes:
    """Return a support set as a zip of the files of its folder, the same for the same supports.

    Raises:
        UsageError, InputError: as `save_supports`.
    """
    buffer = io.BytesIO()
    # PNG is compressed already.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in _files(supports):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    return buffer.getvalue()


def _files(supports: Sequence[Support]) -> Iterator[tuple[str, bytes]]:
    """The files of a support set; every support is checked before the first is yielded."""
    if not supports:
        raise UsageError("the support set is empty; there is nothing to save")
    if len(supports) > MAX_SUPPORTS:
        raise InputError(
            f"{len(supports)} supports are more than a set of {MAX_SUPPORTS} can hold; choose "
            "fewer, or retrieve one set for the whole volume (--sets volume)"
        )
    masks = [_checked(support) for support in supports]
    _check_total(sum(s.image.nbytes for s in supports) + sum(m.nbytes for m in masks), "the set")

    def generate() -> Iterator[tuple[str, bytes]]:
        entries = []
        for number, (support, mask) in enumerate(zip(supports, masks, strict=True)):
            image, shown = encode_png(support.image), encode_png(mask)
            entry = Entry(
                key=support.key,
                names=support.names,
                score=None if support.score is None else float(support.score),
                image=_named(f"{number}.png", image),
                mask=_named(f"{number}-mask.png", shown),
            )
            yield entry.image.name, image
            yield entry.mask.name, shown
            entries.append(entry)
        yield SUPPORTS_FILE, dump_list(entries)

    return generate()


def _named(name: str, content: bytes) -> PictureFile:
    return PictureFile(name=name, sha256=hashlib.sha256(content).hexdigest())


def _check_total(nbytes: int, what: str) -> None:
    """Refuse a set whose pictures and masks take more than `MAX_SET_BYTES`, or the user's limit."""
    limit = min(MAX_SET_BYTES, max_bytes())
    if nbytes > limit:
        raise InputError(
            f"{what} takes {size_text(nbytes)} of memory, more than the limit of "
            f"{size_text(limit)}; choose fewer supports, or smaller pictures"
        )


def _checked(support: Support) -> NDArray[Any]:
    """The mask of a support that can be stored, as it is stored: (H, W) uint8 or uint16."""
    check_support(support)
    what = f"support {support.key}"
    if max(support.image.shape[:2]) > MAX_SIDE:
        raise InputError(
            f"{what} is {support.image.shape[:2]} pixels large; a support set holds pictures of at "
            f"most {MAX_SIDE} a side: reduce it"
        )
    wrong = problem(support.key, support.names, support.score)
    if wrong is not None:
        raise InputError(f"{what} cannot be stored: {wrong}")
    mask = support.mask
    if mask.dtype in (np.uint8, np.uint16):
        return mask
    if mask.min() < 0 or mask.max() > 65535:
        raise InputError(f"{what} has mask values beyond 0 to 65535, which cannot be stored")
    return mask.astype(np.uint8 if mask.max() <= 255 else np.uint16)


# Loading


def load_supports(folder: str | Path) -> list[Support]:
    """Read a support set that `save_supports` wrote, or a zip of one.

    Returns:
        The supports in their order, equal to those that were saved; pictures and masks own their
        memory.

    Raises:
        InputError: no support set, damaged, changed since it was saved (sha256), of a newer
            version, a file that is a link or named twice, or more than `MAX_SUPPORTS` supports or
            `MAX_SET_BYTES` of pictures and masks.
    """
    folder = Path(folder)
    if folder.is_file():
        return unpack_supports(folder)
    path = _regular(folder / SUPPORTS_FILE)
    if path.stat().st_size > MAX_LIST_BYTES:
        raise _damaged(path, f"it is larger than {size_text(MAX_LIST_BYTES)}")
    try:
        entries = parse_list(path.read_bytes())
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    files = [file for entry in entries for file in (entry.image, entry.mask)]
    claims = {file.name: _claim(folder / file.name) for file in files}
    _check_total(sum(claims.values()), f"support set {folder.name}")
    supports = []
    for entry in entries:
        image, mask = (
            _picture(folder / file.name, file.sha256, claims[file.name])
            for file in (entry.image, entry.mask)
        )
        if mask.ndim != 2 or image.dtype != np.uint8:
            raise _damaged(folder / entry.image.name, "picture and mask are not of the right kind")
        support = Support(
            image=image, mask=mask, names=entry.names, key=entry.key, score=entry.score
        )
        check_support(support)
        supports.append(support)
    return supports


def unpack_supports(path: str | Path) -> list[Support]:
    """Read a support set from a zip of its folder.

    Raises:
        InputError: as `load_supports`, or the zip is damaged, encrypted or unsafe.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix="medretrieval-") as folder:
        # A PNG may be somewhat larger than its pixels.
        most = 2 * MAX_SET_BYTES
        extract_named(path, Path(folder), f"support set {path.name}", NAMES, most=most)
        if not (Path(folder) / SUPPORTS_FILE).is_file():
            raise InputError(f"{path.name} has no {SUPPORTS_FILE}: it is no support set")
        return load_supports(folder)


def _claim(path: Path) -> int:
    """How many bytes a PNG says that it takes when it is decoded."""
    with open(_regular(path), "rb") as file:
        head = file.read(HEADER_BYTES)
    try:
        claim = claimed_bytes(head, max_side=MAX_SIDE)
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    # Rows of one pixel take a byte more each; what else is in a PNG of ours is short.
    if path.stat().st_size > 2 * claim + 4096:
        raise _damaged(path, "it is far larger than its picture")
    return claim


def _picture(path: Path, sha256: str, claim: int) -> NDArray[Any]:
    """Read a PNG that takes `claim` bytes when it is decoded."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _damaged(path, f"its sha256 is not the one in {SUPPORTS_FILE}")
    try:
        pixels = png_pixels(content, max_side=MAX_SIDE)
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    if pixels.nbytes != claim:
        raise _damaged(path, "it has another size than its header says")
    return pixels


def _regular(path: Path) -> Path:
    """The path, if it is a file and no link."""
    if path.is_symlink() or not path.is_file():
        raise InputError(
            f"{path} is missing; a support set is a folder with {SUPPORTS_FILE} and its pictures, "
            "as `medretrieval segment --save-supports` writes it"
        )
    return path


def _damaged(path: Path, problem: str) -> InputError:
    return InputError(
        f"{path} is damaged or was changed ({problem}); save the support set again, or fetch it "
        "again"
    )


def distinct(supports: Iterable[Support]) -> list[Support]:
    """The supports in their order, without those of the same picture, mask and names as an earlier.

    The same slice twice would count twice.
    """
    kept: dict[str, Support] = {}
    for support in supports:
        hasher = hashlib.sha256(f"{support.image.shape} {support.mask.dtype}".encode())
        hasher.update(json.dumps(sorted(support.names.items())).encode())
        hasher.update(np.ravel(support.image).data)
        hasher.update(np.ravel(support.mask).data)
        kept.setdefault(hasher.hexdigest(), support)
    return list(kept.values())


# From annotated images


def supports_from_pair(
    image: str | Path,
    mask: str | Path,
    *,
    policy: SlicePolicy,
    names: Mapping[int, str] | None = None,
    at_most: int | None = None,
) -> list[Support]:
    """Make supports of an image file and its label map: pictures, or volumes on one grid.

    Args:
        image: what `imaging.read_volume` reads.
        mask: what `imaging.read_labels` reads, on the grid of the image.
        policy: how slices are made; that of the index that the query is segmented with.
        names: mask value -> name; other values are called "label_<value>".
        at_most: as for `supports_from_labels`.

    Returns:
        The annotated slices. Their keys are made of the content, never of the file's name, which
        may hold that of a patient.

    Raises:
        InputError: a file cannot be read, they do not fit, or nothing is labelled.
    """
    volume = read_volume(image, allow_one_slice=True)
    labels = read_labels(mask, reference=volume.grid, names=names)
    source = f"pair-{digest(volume.voxels, labels.voxels)[:8]}"
    return supports_from_labels(volume, labels, policy=policy, source=source, at_most=at_most)


def supports_from_labels(
    volume: Volume,
    labels: LabelVolume,
    *,
    policy: SlicePolicy,
    source: str,
    indices: Iterable[int] | None = None,
    at_most: int | None = None,
) -> list[Support]:
    """Make supports of the slices of an annotated volume on which something is labelled.

    Args:
        labels: on the grid of `volume`.
        source: the keys are "<source>:<slice>".
        indices: only these slices, labelled or not; one without a label is evidence of absence.
        at_most: of more labelled slices, so many that are spread out evenly.

    Raises:
        InputError: nothing is labelled, or the grids differ.
    """
    if indices is None:
        axis = slice_axis(volume.grid, policy.axis)
        across = tuple(a for a in range(3) if a != axis)
        chosen = np.flatnonzero((labels.voxels != 0).any(axis=across))
        if not len(chosen):
            raise InputError(
                "the mask is empty: every voxel is 0. Expected a label map in which structures "
                "have the values 1, 2, ...; choose another mask"
            )
        if at_most is not None and len(chosen) > at_most:
            chosen = chosen[np.linspace(0, len(chosen) - 1, at_most).round().astype(int)]
        indices = chosen.tolist()
    return [
        Support(
            image=part.image,
            mask=part.mask,
            names=_names_on(part.mask, labels.names),
            key=f"{source}:{part.index}",
        )
        for part in make_slices(volume, policy, labels=labels, indices=indices)
        if part.mask is not None
    ]


def _names_on(mask: NDArray[Any], names: Mapping[int, str]) -> dict[int, str]:
    """Names of the labels that occur in `mask`; "label_<value>" where there is none."""
    return {int(v): names.get(int(v), f"label_{v}") for v in np.unique(mask) if v != 0}
