"""Supports as a network sees them, and the keys under which it keeps what it remembers of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_VERSION = 2  # another one, and no memory that was stored before is used


@dataclass(frozen=True, eq=False)
class Shown:
    """One support as a network sees it in one view: cropped, perhaps mirrored.

    A key is a hash of the network, the picture and the mask, so that a memory belongs to it
    whatever index, support or label it was made for.

    Attributes:
        picture: (H, W) or (H, W, 3) uint8.
        digest: tells pictures apart.
        masks: (H, W) for every label wanted of it; one without a pixel is a memory of absence.
        keys: of the memory of each, 64 hexadecimal digits.
        distance: the support's, see `types.Support`.
    """

    picture: NDArray[np.uint8]
    digest: str
    masks: Mapping[str, NDArray[np.bool_]]
    keys: Mapping[str, str]
    distance: int | None = None

    @classmethod
    def of(
        cls, picture: NDArray[np.uint8], masks: Mapping[str, NDArray[np.bool_]], *, network: str
    ) -> Shown:
        """Work out the keys.

        Args:
            network: everything that a memory depends on beside picture and mask.
        """
        hasher = hashlib.sha256(f"{_VERSION} {network} {picture.shape}".encode())
        hasher.update(picture.tobytes())
        keys = {}
        for name, mask in masks.items():
            one = hasher.copy()
            one.update(np.packbits(mask).tobytes())
            keys[name] = one.hexdigest()
        return cls(picture, hasher.hexdigest(), masks, keys)
