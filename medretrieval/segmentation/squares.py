"""From pictures and masks of any size to the square tensors that a SAM 2 network takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def imagenet(pictures: Tensor) -> Tensor:
    """(n, 3, S, S) in 0..1 -> the same with the mean and deviation of SAM 2's training."""
    mean = pictures.new_tensor((0.485, 0.456, 0.406))[:, None, None]
    deviation = pictures.new_tensor((0.229, 0.224, 0.225))[:, None, None]
    return (pictures - mean) / deviation


def square(picture: NDArray[np.uint8], size: int) -> Tensor:
    """(H, W[, 3]) uint8 -> (1, 3, S, S) float32 in 0..1; grey becomes three channels."""
    tensor = torch.from_numpy(np.ascontiguousarray(picture)).float() / 255
    tensor = tensor.expand(3, -1, -1) if tensor.ndim == 2 else tensor.permute(2, 0, 1)
    return _resized(tensor[None], size)


def square_masks(masks: Sequence[NDArray[np.bool_]], size: int) -> Tensor:
    """L times (H, W) bool -> (L, 1, S, S) float32 of 0 and 1, resized like `add_new_mask`."""
    tensor = torch.from_numpy(np.stack(masks)).float()[:, None]
    if tensor.shape[-2:] == (size, size):
        return tensor
    resized = _resized(tensor, size)
    # A structure too small to fill half a pixel keeps its best pixels: a memory of a label must
    # not turn into a memory of its absence.
    peak = resized.amax((-2, -1), keepdim=True)
    threshold = torch.where(peak >= 0.5, 0.5, (peak / 2).clamp(min=1e-6))
    return (resized >= threshold).float()


def _resized(tensor: Tensor, size: int) -> Tensor:
    return F.interpolate(
        tensor, size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )
