"""One slice of every query volume, kept as pictures to draw the masks of several methods on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medretrieval.evaluation.cells import file_name
from medretrieval.evaluation.queries import Query
from medretrieval.imaging.geometry import extract
from medretrieval.imaging.slices import resize_nearest
from medretrieval.types import LabelVolume

PICTURE, TRUTH = "picture", "truth"


def save_example(
    query: Query, found: LabelVolume, labels: Mapping[int, str], folder: Path, method: str
) -> None:
    """Write the slice with the most of the structures: picture, truth and the mask of a method.

    Args:
        labels: value in the truth -> name; in the files the first has value 1, and so on.
        folder: of this query.
    """
    true = np.moveaxis(query.truth.voxels, query.axis, 0)
    size = [int(np.isin(true[index], list(labels)).sum()) for index in query.indices]
    index = query.indices[int(np.argmax(size))]
    (piece,) = query.slices([index])
    assert piece.mask is not None
    value_of = {name: value for value, name in found.names.items()}
    own = extract(found.voxels, found.grid, query.axis, index)
    own = resize_nearest(own, piece.mask.shape)
    folder.mkdir(parents=True, exist_ok=True)
    _save(piece.image, folder / f"{PICTURE}.png")
    _save(_coded(piece.mask, list(labels)), folder / f"{TRUTH}.png")
    values = [value_of.get(label, -1) for label in labels.values()]
    _save(_coded(own, values), folder / f"{file_name(method)}.png")


def load_example(folder: Path, what: str) -> NDArray[np.uint8] | None:
    """A file of `save_example`: `PICTURE`, `TRUTH` or the mask of a method; None if absent."""
    path = folder / f"{file_name(what)}.png"
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        return np.asarray(picture)


def _coded(mask: NDArray[Any], values: list[int]) -> NDArray[np.uint8]:
    coded = np.zeros(mask.shape, np.uint8)
    for number, value in enumerate(values, start=1):
        coded[mask == value] = number
    return coded


def _save(picture: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(np.ascontiguousarray(picture)).save(path)
