"""Multi-atlas label fusion: the classical way to segment from a few annotated slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medretrieval.errors import UsageError
from medretrieval.evaluation.registration import register
from medretrieval.segmentation.labels import (
    SliceSegmentation,
    check_picture,
    check_support,
    merge,
    name_mask,
    vocabulary,
)
from medretrieval.segmentation.labels import chosen as chosen_labels
from medretrieval.segmentation.options import OptionChanges
from medretrieval.segmentation.prompts import Prompts
from medretrieval.types import Progress, Support, no_progress

# Width of the window in which a warped support is compared with the query, as a fraction of the
# picture's longer side, and how much the better ones count more.
_WINDOW = 1 / 32
_SHARPNESS = 2.0


class MultiAtlas:
    """Registers every support to the picture and lets their masks vote.

    A support is brought onto the picture by an affine and then a diffeomorphic deformable
    registration (see `registration.register`). Its vote counts, pixel by pixel, by how alike the
    two pictures are around there (locally weighted voting: Artaechevarria et al., IEEE Trans. Med.
    Imaging 28, 2009). Background votes like a label. The same pictures always give the same masks.
    """

    name = "multi-atlas"

    def segment_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        supports: Sequence[Sequence[Support]],
        *,
        labels: Sequence[str] | None = None,
        prompts: Sequence[Mapping[str, Prompts] | None] | None = None,
        progress: Progress = no_progress,
        **changes: Unpack[OptionChanges],
    ) -> list[SliceSegmentation]:
        """As `Segmenter.segment_batch`; the options of a network have no effect.

        The "logits" are the share of the votes for a label, less that for background.

        Raises:
            UsageError: no supports, or prompts, which a registration cannot follow.
            InputError: a picture or mask that cannot be used.
            UnavailableError: SimpleITK is not installed.
        """
        if any(prompts or ()):
            raise UsageError("multi-atlas fusion registers pictures and cannot follow points")
        results = []
        for image, support_set in zip(images, supports, strict=True):
            results.append(_segment(image, support_set, labels))
            progress(len(results), len(images), "registering")
        return results


def _segment(
    image: NDArray[np.uint8], supports: Sequence[Support], labels: Sequence[str] | None
) -> SliceSegmentation:
    check_picture(image, "the picture to segment")
    if not supports:
        raise UsageError("the support set is empty; give at least one annotated slice")
    for support in supports:
        check_support(support)
    names = chosen_labels(vocabulary(s.names for s in supports), labels)
    query = grey(image)
    votes = np.zeros((len(names), *query.shape), np.float32)
    total = np.zeros(query.shape, np.float32)
    for support in supports:
        warp = register(query, grey(support.image))
        weight = local_weight(query, warp.picture)
        total += weight
        for row, name in enumerate(names.values()):
            mask = name_mask(support, name)
            if mask.any():
                votes[row] += weight * warp(mask.astype(np.float32))
    shares = votes / total
    logits = shares - (1 - shares.sum(axis=0))
    return SliceSegmentation(
        mask=merge(logits, list(names)), logits=logits.astype(np.float32), names=names
    )


def local_weight(query: NDArray[np.float32], warped: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much a support's vote counts at every pixel: the more, the more alike the pictures are.

    Args:
        query, warped: (H, W) float32, of about the same intensities.

    Returns:
        (H, W) float32, positive: the inverse of the mean squared difference in a Gaussian window,
        to the power of 2. A thousandth of the query's variance is added, so that no weight is
        infinite.
    """
    sigma = max(1.0, _WINDOW * max(query.shape))
    apart = ndimage.gaussian_filter((query - warped) ** 2, sigma)
    floor = max(float(query.var()), 1e-6) * 1e-3
    return np.asarray((floor / (apart + floor)) ** _SHARPNESS, np.float32)


def grey(image: NDArray[Any]) -> NDArray[np.float32]:
    """(H, W) float32, 0..255: a picture, in colour the mean of its channels."""
    picture = image.astype(np.float32)
    return np.asarray(picture.mean(axis=2) if picture.ndim == 3 else picture, np.float32)
