"""Encodings of the last pictures: the same picture is asked about again and again.

A correction, or a mask made without each support in turn, changes what is asked, not the picture.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from medretrieval.segmentation.sam2_backend import Encoding

MAX_BYTES = 64 * 1024**2


class RecentEncodings:
    """Encodes pictures, each different one once, and keeps the last. Safe between threads.

    Args:
        encode: a network's `encode`: (H, W[, 3]) uint8 pictures -> their encodings.
        max_bytes: of feature maps that are kept, least recently used dropped first.
    """

    def __init__(
        self,
        encode: Callable[[Sequence[NDArray[np.uint8]]], list[Encoding]],
        *,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._encode = encode
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Encoding] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> list[Encoding]:
        """Return the encoding of each picture."""
        keys = [_key(picture) for picture in pictures]
        with self._lock:
            known = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: p for key, p in zip(keys, pictures, strict=True) if key not in known}
        made = self._encode(list(missing.values())) if missing else []
        known.update(zip(missing, made, strict=True))
        with self._lock:
            for key in keys:
                self._kept[key] = known[key]
                self._kept.move_to_end(key)
            total = sum(map(_nbytes, self._kept.values()))
            while total > self._max_bytes:
                total -= _nbytes(self._kept.popitem(last=False)[1])
        return [known[key] for key in keys]


def _key(picture: NDArray[np.uint8]) -> str:
    return hashlib.sha256(f"{picture.shape}".encode() + picture.tobytes()).hexdigest()


def _nbytes(encoding: Encoding) -> int:
    # Positions are tables that all encodings of a network share.
    return sum(feature_map.nbytes for feature_map in encoding.maps)
