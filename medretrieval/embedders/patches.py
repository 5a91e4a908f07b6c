"""Features of the parts of pictures: what a network knows before it pools them into one vector.

An adapter that has them says so in `feature_maps`, from pixels to features, and in `mean_pooled`.
Nothing here is computed before it is asked for, and then in float32 by torch, whatever computes the
embeddings.

What is taken: of a convolutional network the last feature map, of a vision transformer the tokens
of the patches as they leave the last layer norm, without class token and registers. Where an
embedding is a linear projection of one of these, parts are projected too.

A grid is laid over what the network sees as if every part were an equal rectangle of it. That is
exact for the patches of a vision transformer. A part of a convolutional feature map depends on a
much larger region, whose middle padding moves by up to half a rectangle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medretrieval.embedders.preprocess import check_picture, prepare, seen_box
from medretrieval.embedders.spec import EmbedderSpec
from medretrieval.errors import InputError, UnavailableError
from medretrieval.types import PatchFeatures

# The cosine of a mean and an embedding from which they are the same but for rounding.
SAME = 1 - 1e-6

if TYPE_CHECKING:
    import torch


class FeatureMaps(NamedTuple):
    """What a network says of the parts of n inputs of S by S pixels.

    Attributes:
        features: (n, rows, columns, c).
        covers: how many pixels of the input the grid divides evenly, from its top left corner on: S
            but for a vision transformer that leaves out what does not fill a patch.
    """

    features: torch.Tensor
    covers: float


def patch_features(embedder: Any, images: Sequence[NDArray[np.uint8]]) -> PatchFeatures:
    """The features of the parts of n >= 1 pictures, see `medretrieval.types.PatchEmbedder`.

    Args:
        embedder: a `TorchEmbedder`.

    Raises:
        UnavailableError: the network has none that can be told apart.
        InputError: no pictures, one that cannot be embedded, or features that are not finite.
    """
    import torch

    if not images:
        raise InputError("no pictures to take patches of; expected at least one")
    spec, size = embedder.spec, embedder.pass_size
    boxes = np.array([_seen(image, spec) for image in images])
    parts, covers = [], float(spec.input_size)
    for begin in range(0, len(images), size):
        pixels = torch.from_numpy(prepare(images[begin : begin + size], spec))
        with torch.inference_mode():
            maps: FeatureMaps = embedder.feature_maps(pixels.to(embedder.device))
        covers = maps.covers
        parts.append(maps.features.float().cpu().numpy())
    features = np.concatenate(parts)
    if not np.isfinite(features).all():
        raise InputError(
            f"{spec.name} gives features that are not finite; the weights are damaged or not those "
            "of this embedder"
        )
    boxes[:, 2:] = boxes[:, :2] + (boxes[:, 2:] - boxes[:, :2]) * (covers / spec.input_size)
    return PatchFeatures(features=features, boxes=boxes, mean_pooled=embedder.mean_pooled)


def _seen(image: NDArray[np.uint8], spec: EmbedderSpec) -> tuple[float, float, float, float]:
    height, width = check_picture(image).shape[:2]
    return seen_box(height, width, spec)


def of_channels_first(features: torch.Tensor, input_size: int) -> FeatureMaps:
    """A feature map (n, c, rows, columns) that covers all of the input."""
    return FeatureMaps(features.permute(0, 2, 3, 1), input_size)


def of_tokens(
    tokens: torch.Tensor, name: str, *, input_size: int, patch: int | None = None
) -> FeatureMaps:
    """Tokens (n, others + rows * columns, c), of which those of a square of patches come last.

    Args:
        name: of the embedder, for the error.
        patch: pixels that a patch is high and wide; default what makes the tokens a square, which
            covers all of the input, with at most one other token.

    Raises:
        UnavailableError: they make no square.
    """
    count = tokens.shape[1]
    side = math.isqrt(count) if patch is None else input_size // patch
    others = count - side**2
    if others < 0 or (patch is None and others > 1):
        raise no_patches(name, f"its {count} tokens are not those of a square of patches")
    return FeatureMaps(
        tokens[:, others:].reshape(len(tokens), side, side, -1),
        input_size if patch is None else side * patch,
    )


def pools_by_mean(embedder: Any) -> bool:
    """Whether embeddings of test pictures are the means of their parts: asked of the numbers.

    For networks of libraries, which do not say how they pool.
    """
    import torch

    from medretrieval.embedders.base import test_pictures

    pixels = torch.from_numpy(prepare(test_pictures(), embedder.spec)).to(embedder.device)
    with torch.inference_mode():
        for row in pixels:
            mean = embedder.feature_maps(row[None]).features.mean(dim=(1, 2)).double()
            whole = embedder.forward(row[None]).double()
            if mean.shape != whole.shape:
                return False
            if torch.nn.functional.cosine_similarity(mean, whole).min() < SAME:
                return False
    return True


def no_patches(name: str, why: str = "") -> UnavailableError:
    """The error for an embedder that cannot say which part of a picture its features are of."""
    return UnavailableError(
        f"{name} gives no features of the parts of a picture{f' ({why})' if why else ''}, so that "
        "there is no heat map; the similarity matrix of the slices can be had all the same. Single "
        "embedders of slices that are convolutional networks or vision transformers have them, "
        "such as efficientnet-lite0, dinov2-vit-b14 or sam-vit-b: build an index of the same "
        "images with one of these"
    )
