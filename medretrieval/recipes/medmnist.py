"""MedMNIST: an .npz file a set, with arrays of pictures and classes; the pictures become files."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medretrieval.errors import InputError
from medretrieval.recipes.rows import Row
from medretrieval.types import Progress

_SPLITS = ("train", "val", "test")
_ORGANS = (
    *("bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver"),
    *("lung-left", "lung-right", "pancreas", "spleen"),
)
# Names of the classes, which the files do not carry; of other sets they are called "class 0".
_CLASSES: dict[str, Sequence[str]] = {
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
    "pathmnist": (
        *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle"),
        *("normal colon mucosa", "cancer-associated stroma"),
        "colorectal adenocarcinoma epithelium",
    ),
    "chestmnist": (
        *("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule"),
        *("pneumonia", "pneumothorax", "consolidation", "edema", "emphysema", "fibrosis"),
        *("pleural", "hernia"),
    ),
    "pneumoniamnist": ("normal", "pneumonia"),
    "breastmnist": ("malignant", "normal or benign"),
    "octmnist": (*("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),),
}
# DICOM codes and regions, where all pictures of a set are alike.
_KINDS = {
    **{name: ("CT", "abdomen") for name in ("organamnist", "organcmnist", "organsmnist")},
    **{"chestmnist": ("DX", "chest"), "pneumoniamnist": ("DX", "chest")},
    **{"breastmnist": ("US", "breast"), "octmnist": ("OPT", "eye"), "pathmnist": ("SM", "colon")},
}


def read(source: Path, beside: Path, progress: Progress) -> list[Row]:
    """Return a row for each picture, after writing it into `beside`.

    It is not known which pictures are of one patient.

    Raises:
        InputError: no .npz file, or not one of a 2-D set of MedMNIST.
    """
    files = [source] if source.is_file() else sorted(source.glob("*.npz"))
    if not files:
        raise InputError(f"{source} has no .npz file; expected such as organamnist_224.npz")
    return [row for path in files for row in _set(path, beside, progress)]


def _set(path: Path, beside: Path, progress: Progress) -> list[Row]:
    rows: list[Row] = []
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for split in _SPLITS:
                images, classes = _arrays(path, arrays, split)
                rows += _split(path, split, images, classes, beside, progress)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} cannot be turned into pictures ({error}); expected an .npz file of MedMNIST: "
            "download it again, and see that there is room for the pictures"
        ) from None
    return rows


def _arrays(path: Path, arrays: Any, split: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pictures (N, H, W) or (N, H, W, 3) uint8, and classes (N, C) of a split."""
    absent = [n for n in (f"{split}_images", f"{split}_labels") if n not in arrays]
    if absent:
        raise InputError(
            f"{path} has no array {absent[0]!r}; expected images and labels for "
            f"{', '.join(_SPLITS)}, found {', '.join(arrays)}"
        )
    images, classes = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    flat = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
    if not flat or images.dtype != np.uint8 or len(images) != len(classes):
        raise InputError(
            f"{path}: {split}_images has the shape {images.shape} ({images.dtype}) for "
            f"{len(classes)} labels; expected pictures (N, H, W) or (N, H, W, 3) of uint8. Sets of "
            "volumes (OrganMNIST3D and others) are not read"
        )
    return images, classes.reshape(len(classes), -1)


def _split(
    path: Path,
    split: str,
    images: NDArray[Any],
    classes: NDArray[Any],
    beside: Path,
    progress: Progress,
) -> list[Row]:
    name = re.sub(r"_\d+$", "", path.stem)
    modality, region = _KINDS.get(name, ("", ""))
    folder = beside / path.stem / split
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (image, own) in enumerate(zip(images, classes, strict=True)):
        picture = folder / f"{number:06d}.png"
        partial = picture.with_suffix(".partial")
        Image.fromarray(image).save(partial, format="PNG")
        os.replace(partial, picture)
        rows.append(
            Row(
                path=picture,
                volume_id=f"{path.stem}/{split}/{number:06d}",
                modality=modality,
                region=region,
                labels=_names(name, own),
                extra={"split": split},
            )
        )
        progress(number + 1, len(images), f"writing pictures of {path.stem} {split}")
    return rows


def _names(name: str, own: NDArray[Any]) -> tuple[str, ...]:
    """The classes of a picture: (1,) its class, or (C,) for each class whether it is there."""
    chosen = np.flatnonzero(own) if len(own) > 1 else own
    known = _CLASSES.get(name, ())
    return tuple(known[c] if 0 <= c < len(known) else f"class {c}" for c in map(int, chosen))
