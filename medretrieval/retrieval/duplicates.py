"""Hits that show the same picture as the query, or the same volume: copies, saved again.

Embeddings do not tell: with efficientnet-lite0 a copy saved as JPEG of quality 75 has a median
cosine of 0.92 with its original, less than most slices of a CT have with the next one, and than
some have with slices of other patients. So pictures are compared, as outlines of 32 x 32 pixels:
how well their gradients correlate at the best shift of at most one of these pixels. Gradients,
because a wide background alone makes pictures alike. The result does not depend on the embedder.

The threshold was chosen on 196 slices of MR of heart, hippocampus and abdomen, and CT of head and
neck (`python -m benchmarks.duplicates`). Copies (JPEG of quality 90 and 75, shifted by a pixel,
resampled to 75 %, 5 % brighter or darker) all reach it, at least 0.969. The most similar slices of
other patients have at most 0.713 in MR; in CT of head and neck, where one of 94 slices passes,
0.975. The next slice of the same volume has at most 0.929 in MR, but of thin CT slices 97 % pass.
So the flag of a slice says: the same picture, or one so near to it that it is most likely of the
same patient. The flag of a volume needs half of its slices to pass.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medretrieval.errors import UnavailableError, UsageError
from medretrieval.retrieval.stores import Store
from medretrieval.types import Hit, Match

if TYPE_CHECKING:
    from medretrieval.retrieval.query import QueryEmbeddings

logger = logging.getLogger(__name__)

SIDE = 32  # pixels of a thumbnail
SAME = 0.968  # correlation from which two thumbnails show the same picture
SHIFT = 1  # pixels of a thumbnail by which the same picture may be shifted
EQUAL = 0.999  # cosine of embeddings of the same pixels, whatever the precision
SHARE = 0.5  # of the slices of a query that are the same, from which a volume is
PAIRS = 8  # of the slices of a volume compared, equally spaced from the most to the least similar
SLICES = 24  # slice hits compared in one search, the most similar first
FETCHED = 4  # files of an index of the Hub that are fetched for it in one search, 8 MB each


def thumbnail(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a slice as small as its outline needs.

    Args:
        picture: (H, W) or (H, W, 3) uint8 of any size.

    Returns:
        (SIDE, SIDE) uint8, grey.
    """
    image = Image.fromarray(np.ascontiguousarray(picture)).convert("L")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def correlation(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """How well the gradients of two thumbnails correlate, at the best small shift.

    Args:
        a, b: (SIDE, SIDE) uint8.

    Returns:
        -1..1; 0 where one of them is even, as it has no outline.
    """
    fixed, moved = _gradient(a), _gradient(b)
    end = fixed.shape[1] - SHIFT
    middle = fixed[:, SHIFT:end, SHIFT:end]
    best = -1.0
    for down in range(-SHIFT, SHIFT + 1):
        for right in range(-SHIFT, SHIFT + 1):
            part = moved[:, SHIFT + down : end + down, SHIFT + right : end + right]
            norm = float(np.linalg.norm(middle) * np.linalg.norm(part))
            best = max(best, float((middle * part).sum()) / norm if norm else 0.0)
    return best


def _gradient(thumb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(2, SIDE - 2, SIDE - 2) differences of the neighbours of each inner pixel."""
    grey = thumb.astype(np.float64)
    return np.stack([grey[2:, 1:-1] - grey[:-2, 1:-1], grey[1:-1, 2:] - grey[1:-1, :-2]])


def mark(
    hits: Sequence[Hit], query: QueryEmbeddings, store: Store, *, finds: str
) -> tuple[Hit, ...]:
    """Set the flag `near_duplicate` of hits.

    Args:
        hits: of a search in `store`, with their matches.
        query: what was searched with, before feedback moved it.
        finds: "slices": a hit is flagged if it shows the same picture as its query slice; of more
            than `SLICES` hits the most similar are compared. "volumes": if at least half of the
            query's slices that show something have the same picture in the volume, estimated from
            `PAIRS` of the matches.

    Returns:
        The same hits. Of a query without pictures, given as embeddings, those are flagged whose
        embeddings are all but equal, which copies that were saved again are not; so it is with the
        pictures of an index of the Hub that are in more than `FETCHED` files. Nothing is flagged
        for an embedder of whole volumes, which matches no slices.
    """
    if query.identity is not None and query.identity.unit == "volume":
        return tuple(hits)
    same = _Comparison(query, store)
    if finds == "slices":
        order = sorted(range(len(hits)), key=lambda i: -hits[i].matches[0].score)[:SLICES]
        found = {i for i in order if same(hits[i].volume_id, hits[i].matches[0])}
        return tuple(
            replace(hit, near_duplicate=True) if i in found else hit for i, hit in enumerate(hits)
        )
    return tuple(replace(hit, near_duplicate=_same_volume(hit, same)) for hit in hits)


class _Comparison:
    """Whether a match is of the same picture twice."""

    def __init__(self, query: QueryEmbeddings, store: Store) -> None:
        self._query = query
        self._store = store
        self._place = {index: i for i, index in enumerate(query.slice_index.tolist())}
        # A case of the index has its pictures there.
        self._stored = query.patient is not None and query.name in store.volume_ids
        self._reachable = True
        self._fetched: set[str] = set()

    def shown(self) -> set[int]:
        """The query slices that show something, as far as that is known."""
        thumbs = self._query.thumbnails
        if thumbs is None:
            return set(self._place)
        return {index for index, i in self._place.items() if np.any(_gradient(thumbs[i]))}

    def __call__(self, volume_id: str, match: Match) -> bool:
        place = self._place[match.query_slice]
        row = self._store.row(volume_id, match.slice_index)
        if self._query.thumbnails is not None:
            own = self._query.thumbnails[place]
        elif self._stored:
            own = self._thumbnail(self._store.row(self._query.name, match.query_slice))
        else:
            own = None
        other = None if own is None else self._thumbnail(row)
        if own is None or other is None:
            stored: Any = np.asarray(self._store.embeddings[row], dtype=np.float64)
            return float(self._query.embeddings[place] @ stored) >= EQUAL
        return correlation(own, other) >= SAME

    def _thumbnail(self, row: int) -> NDArray[np.uint8] | None:
        """Of a row; None where there is no picture, or it cannot be fetched: hits stay hits."""
        if not self._reachable or not self._affordable(row):
            return None
        try:
            return thumbnail(self._store.image(row))
        except (UsageError, UnavailableError) as error:
            # Each further picture may take as long as this one before it is given up.
            self._reachable = not isinstance(error, UnavailableError)
            logger.debug("near duplicates are judged by embeddings: %s", error)
            return None

    def _affordable(self, row: int) -> bool:
        """Whether the picture lies here, or in one of the few files that may be fetched."""
        file = self._store.fetched_with(row)
        if file is not None and len(self._fetched) < FETCHED:
            self._fetched.add(file)
        return file is None or file in self._fetched


def _same_volume(hit: Hit, same: _Comparison) -> bool:
    shown = same.shown()
    # A query slice counts once, with its most similar slice of the volume, which is first.
    best: dict[int, Match] = {}
    for match in hit.matches:
        if match.query_slice in shown:
            best.setdefault(match.query_slice, match)
    if len(best) < SHARE * len(shown) or not best:
        return False
    matches = list(best.values())
    places = np.unique(np.linspace(0, len(matches) - 1, PAIRS).round().astype(int)).tolist()
    alike = np.mean([same(hit.volume_id, matches[place]) for place in places])
    return bool(alike * len(matches) >= SHARE * len(shown))
