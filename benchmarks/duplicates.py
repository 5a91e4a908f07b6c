"""How similar re-saved copies of a picture are, and how similar pictures that are no copies.

For slices of an index, equally spaced over its rows: the stored picture against changed copies of
itself, the next slice of the same volume, and the three most similar slices of other patients (the
largest value of the three). Two tables: the cosine of the embeddings, which is not what the flag
uses, and the correlation of the outlines (`retrieval.duplicates`), whose threshold was chosen here.

    python -m benchmarks.duplicates runs/orientation/index-none --slices 200
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medretrieval.imaging import embedded_part
from medretrieval.retrieval.duplicates import EQUAL, SAME, correlation, thumbnail
from medretrieval.retrieval.engine import Index, open_index

Picture = NDArray[np.uint8]
PERCENTILES = (0, 5, 50, 95, 100)


class Similarity(NamedTuple):
    cosine: float
    correlation: float


def jpeg(picture: Picture, quality: int) -> Picture:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def resampled(picture: Picture, factor: float) -> Picture:
    image = Image.fromarray(picture)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def brightened(picture: Picture, factor: float) -> Picture:
    return np.clip(picture * factor, 0, 255).round().astype(np.uint8)


def shifted(picture: Picture) -> Picture:
    return np.ascontiguousarray(np.roll(picture, 1, axis=1))


CHANGES: Mapping[str, Callable[[Picture], Picture]] = {
    "the same pixels": lambda p: p.copy(),
    "JPEG, quality 90": lambda p: jpeg(p, 90),
    "JPEG, quality 75": lambda p: jpeg(p, 75),
    "shifted by a pixel": shifted,
    "resampled to 75 %": lambda p: resampled(p, 0.75),
    "5 % brighter": lambda p: brightened(p, 1.05),
    "5 % darker": lambda p: brightened(p, 0.95),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index")
    parser.add_argument("--slices", type=int, default=200)
    options = parser.parse_args()
    index = open_index(options.index)
    count = len(index.store.volume)
    rows = np.unique(np.linspace(0, count - 1, options.slices).astype(int))
    # A slice that shows nothing has copies everywhere, which is no finding.
    rows = np.array([row for row in rows if index.store.image(int(row)).std() > 1])
    found: dict[str, list[Similarity]] = {}
    for row in rows.tolist():
        for name, similarity in (*copies(index, row), *others(index, row)):
            found.setdefault(name, []).append(similarity)
    columns = ["", "slices", *(f"{p} %" for p in PERCENTILES)]
    for measure in Similarity._fields:
        threshold = {"cosine": EQUAL, "correlation": SAME}[measure]
        shown = [*columns, f"at least {threshold}"]
        print(f"\n{measure}\n\n| " + " | ".join(shown) + " |\n|" + "---|" * len(shown))
        for name, similarities in found.items():
            values = np.array([getattr(s, measure) for s in similarities])
            cells = [f"{value:.3f}" for value in np.percentile(values, PERCENTILES)]
            share = f"{(values >= threshold).mean():.1%}"
            print("| " + " | ".join([name, str(len(values)), *cells, share]) + " |")


def copies(index: Index, row: int) -> Iterator[tuple[str, Similarity]]:
    """A row against each changed copy of its picture."""
    crop = index.manifest.slices.crop
    picture, vector = index.store.image(row), np.asarray(index.store.embeddings[row], np.float64)
    made = [change(picture) for change in CHANGES.values()]
    embedded = index.embedder.embed_batch([embedded_part(copy, crop) for copy in made])
    for name, copy, other in zip(CHANGES, made, embedded, strict=True):
        alike = correlation(thumbnail(picture), thumbnail(copy))
        yield name, Similarity(float(vector @ other), alike)


def others(index: Index, row: int) -> Iterator[tuple[str, Similarity]]:
    """A row against the next slice of its volume, and against slices of other patients."""
    store = index.store
    cosine = np.asarray(store.embeddings[:], np.float64) @ np.asarray(store.embeddings[row])
    own = thumbnail(store.image(row))
    kind = f"{store.modality[row]} {store.region[row]}"

    def similarity(other: int) -> Similarity:
        return Similarity(float(cosine[other]), correlation(own, thumbnail(store.image(other))))

    same_volume = store.volume == store.volume[row]
    for following in np.flatnonzero(
        same_volume & (store.slice_index == store.slice_index[row] + 1)
    ):
        yield f"next slice, {kind}", similarity(int(following))
    strangers = np.flatnonzero(store.patient.codes != store.patient.codes[row])
    nearest = strangers[np.argsort(-cosine[strangers], kind="stable")[:3]]
    three = [similarity(int(other)) for other in nearest]
    largest = Similarity(max(s.cosine for s in three), max(s.correlation for s in three))
    yield f"other patients, {kind}", largest


if __name__ == "__main__":
    main()
