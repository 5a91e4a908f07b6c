"""Support sets: annotated slices from files, saved as a small folder or zip and loaded again.

A folder holds `supports.json` and for each support its picture and mask as PNG (`0.png`,
`0-mask.png`). Every file is read only if its sha256 is the one in `supports.json`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isfinite
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
from medretrieval.imaging.limits import check_claim
from medretrieval.index.png import encode_png, png_pixels
from medretrieval.index.publish import move_into_place, recover
from medretrieval.index.workspace import sync, writing
from medretrieval.segmentation.labels import check_support
from medretrieval.types import RESEARCH_ONLY, LabelVolume, SlicePolicy, Support, Volume

SUPPORTS_FILE = "supports.json"
SCHEMA_VERSION = 1
MAX_SUPPORTS = 10_000
MAX_SIDE = 8192
_MAX_TEXT = 500
# The only names that are ever read, or extracted from a zip: none of them leaves the folder.
_PICTURE = re.compile(r"[0-9]{1,6}(-mask)?\.png")
_NAMES = re.compile(rf"{re.escape(SUPPORTS_FILE)}|{_PICTURE.pattern}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VALUE = re.compile(r"0|[1-9][0-9]{0,4}")
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
        UsageError: it exists and not `overwrite`, or it is something else than a support set.
    """
    if not (folder.exists() or folder.is_symlink()):
        return
    if not overwrite:
        raise UsageError(
            f"{folder} exists already; choose another folder, or replace it with --force "
            "(overwrite=True)"
        )
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {""}
    if folder.is_symlink() or (names and SUPPORTS_FILE not in names):
        raise UsageError(
            f"{folder} is not a support set, so it is not replaced; remove it yourself or choose "
            "another folder"
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
    """The files of a support set; everything is checked before the first is yielded."""
    if not supports:
        raise UsageError("the support set is empty; there is nothing to save")
    if len(supports) > MAX_SUPPORTS:
        raise InputError(f"{len(supports)} supports are more than a set of {MAX_SUPPORTS} can hold")
    masks = [_checked(support) for support in supports]

    def generate() -> Iterator[tuple[str, bytes]]:
        entries = []
        for number, (support, mask) in enumerate(zip(supports, masks, strict=True)):
            named = {"image": f"{number}.png", "mask": f"{number}-mask.png"}
            content = {"image": encode_png(support.image), "mask": encode_png(mask)}
            yield from ((named[what], content[what]) for what in named)
            entries.append(
                {
                    "key": support.key,
                    "names": {str(v): support.names[v] for v in sorted(support.names)},
                    "score": None if support.score is None else float(support.score),
                    **{
                        what: {
                            "file": named[what],
                            "sha256": hashlib.sha256(content[what]).hexdigest(),
                        }
                        for what in named
                    },
                }
            )
        data = {"schema_version": SCHEMA_VERSION, "note": RESEARCH_ONLY, "supports": entries}
        yield SUPPORTS_FILE, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()

    return generate()


def _checked(support: Support) -> NDArray[Any]:
    """The mask of a support that can be stored, as it is stored: (H, W) uint8 or uint16."""
    check_support(support)
    what = f"support {support.key}"
    if max(support.image.shape[:2]) > MAX_SIDE:
        raise InputError(
            f"{what} is {support.image.shape[:2]} pixels large; a support set holds pictures of at "
            f"most {MAX_SIDE} a side: reduce it"
        )
    problem = _problem(support.key, support.names, support.score)
    if problem is not None:
        raise InputError(f"{what} cannot be stored: {problem}")
    mask = support.mask
    if mask.dtype in (np.uint8, np.uint16):
        return mask
    if mask.min() < 0 or mask.max() > 65535:
        raise InputError(f"{what} has mask values beyond 0 to 65535, which cannot be stored")
    return mask.astype(np.uint8 if mask.max() <= 255 else np.uint16)


def _problem(key: str, names: Mapping[int, str], score: float | None) -> str | None:
    """What keeps key, names and score of a support from being stored, None if nothing does."""
    for text in (key, *names.values()):
        if not text or len(text) > _MAX_TEXT or not text.isprintable():
            return f"{text!r} is not a name of 1 to {_MAX_TEXT} printable characters"
    wrong = [value for value in names if not 0 <= value <= 65535]
    if wrong:
        return f"a mask has no values {wrong[:5]}; expected 0 to 65535"
    if score is not None and not isfinite(score):
        return f"its score is {score}"
    return None


# Loading


def load_supports(folder: str | Path) -> list[Support]:
    """Read a support set that `save_supports` wrote, or a zip of one.

    Returns:
        The supports in their order, equal to those that were saved; pictures and masks own their
        memory.

    Raises:
        InputError: no support set, damaged, changed since it was saved (sha256), of a newer
            version, a file that is a link, or larger than `imaging.max_bytes` allows.
    """
    folder = Path(folder)
    if folder.is_file():
        return unpack_supports(folder)
    path = folder / SUPPORTS_FILE
    content = _content(path)
    try:
        data = json.loads(content)
        if data["schema_version"] > SCHEMA_VERSION:
            raise InputError(
                f"{path} is of version {data['schema_version']}, this version of medretrieval "
                f"reads {SCHEMA_VERSION}; upgrade medretrieval (pip install -U medretrieval)"
            )
        entries = [_entry(entry) for entry in data["supports"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if not 1 <= len(entries) <= MAX_SUPPORTS:
        raise _damaged(path, f"{len(entries)} supports, expected 1 to {MAX_SUPPORTS}")
    taken = 0
    supports = []
    for key, names, score, files in entries:
        pictures = []
        for name, sha256 in files:
            pictures.append(_picture(folder / name, sha256, taken))
            taken += pictures[-1].nbytes
        image, mask = pictures
        if mask.ndim != 2 or image.dtype != np.uint8:
            raise _damaged(folder / files[0][0], "picture and mask are not of the right kind")
        support = Support(image=image, mask=mask, names=names, key=key, score=score)
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
        extract_named(path, Path(folder), f"support set {path.name}", _NAMES)
        if not (Path(folder) / SUPPORTS_FILE).is_file():
            raise InputError(f"{path.name} has no {SUPPORTS_FILE}: it is no support set")
        return load_supports(folder)


_Entry = tuple[str, dict[int, str], float | None, list[tuple[str, str]]]


def _entry(entry: Mapping[str, Any]) -> _Entry:
    """Key, names, score, and (file, sha256) of picture and mask.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is no such entry.
    """
    key, score = entry["key"], entry["score"]
    if not isinstance(key, str) or not (score is None or type(score) in (int, float)):
        raise ValueError("a key or score is of the wrong type")
    names = {}
    for value, name in entry["names"].items():
        if _VALUE.fullmatch(value) is None or not isinstance(name, str):
            raise ValueError(f"{value!r} is not a mask value with a name")
        names[int(value)] = name
    problem = _problem(key, names, score)
    if problem is not None:
        raise ValueError(problem)
    files = [(entry[what]["file"], entry[what]["sha256"]) for what in ("image", "mask")]
    for name, sha256 in files:
        if _PICTURE.fullmatch(name) is None or _SHA256.fullmatch(sha256) is None:
            raise ValueError(f"{name!r} is not a file of a support set with its sha256")
    return key, names, None if score is None else float(score), files


def _picture(path: Path, sha256: str, taken: int) -> NDArray[Any]:
    """Read a PNG; `taken` is how many bytes of pictures are in memory already."""
    content = _content(path, taken)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _damaged(path, f"its sha256 is not the one in {SUPPORTS_FILE}")
    # Columns and rows as the header of a PNG claims them, before anything is decoded.
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    check_claim(taken + 3 * width * height, f"support set {path.parent.name}")
    try:
        return png_pixels(content, max_side=MAX_SIDE)
    except ValueError as error:
        raise _damaged(path, str(error)) from None


def _content(path: Path, taken: int = 0) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise InputError(
            f"{path} is missing; a support set is a folder with {SUPPORTS_FILE} and its pictures, "
            "as `medretrieval segment --save-supports` writes it"
        )
    check_claim(taken + path.stat().st_size, f"support set {path.parent.name}")
    return path.read_bytes()


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
        hasher.update(support.image.tobytes() + support.mask.tobytes())
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
    hasher = hashlib.sha256(volume.voxels.tobytes())
    hasher.update(labels.voxels.tobytes())
    source = f"pair-{hasher.hexdigest()[:8]}"
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
