"""Batches of tasks drawn from a window of recent episodes, a pure function of (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medretrieval.segmentation.micro import standardise
from training.episodes import Episode
from training.fields import Rng


@dataclass(frozen=True)
class Batch:
    """Arguments of `training.network.few_shot`.

    Attributes:
        images: (B, N, 3, S, S) float32, standardised.
        masks: (B, T, N, S, S) float32 0/1.
        shots: the first K pictures of a structure are its supports.
        shift: by how many pictures each structure's order is rolled against the one before.
    """

    images: Tensor
    masks: Tensor
    shots: int
    shift: int


def draw_batch(
    rng: Rng,
    episodes: Sequence[Episode],
    *,
    size: int,
    tasks: int,
    shots: int,
    crop: bool = True,
    color: bool = True,
) -> Batch:
    """Draw `tasks` structures from each episode and cut, turn and resize its pictures.

    Args:
        size: side of the batch's pictures, a multiple of 32.
        shots: supports of each task; the other pictures are queries.
        crop: sometimes cut all pictures of an episode to a part, mostly around the structures.
        color: sometimes give an episode's pictures three different channels.
    """
    drawn = [
        _draw_episode(rng, episode, size=size, tasks=tasks, crop=crop, color=color)
        for episode in episodes
    ]
    return Batch(
        images=torch.stack([images for images, _ in drawn]),
        masks=torch.stack([masks for _, masks in drawn]),
        shots=shots,
        shift=max(1, drawn[0][0].shape[0] // tasks),
    )


def _draw_episode(
    rng: Rng, episode: Episode, *, size: int, tasks: int, crop: bool, color: bool
) -> tuple[Tensor, Tensor]:
    picks = rng.permutation(len(episode.targets))
    chosen = [episode.targets[int(picks[t % len(picks)])] for t in range(tasks)]
    order = torch.from_numpy(rng.permutation(len(episode.images)))
    labels = episode.labels[order]
    masks = torch.stack([torch.isin(labels, torch.tensor(c, dtype=torch.uint8)) for c in chosen])
    images = episode.images[order].float()
    if crop:
        top, left, side = _window(rng, masks)
        images = images[:, top : top + side, left : left + side]
        masks = masks[:, :, top : top + side, left : left + side]
    if images.shape[-1] != size:
        images = F.interpolate(
            images[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False
        )[0]
        # Area averages cut at one half, as the masks of real supports are reduced.
        masks = F.interpolate(
            masks.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False
        )
    masks = (masks >= 0.5).float() if masks.is_floating_point() else masks.float()
    # Turned alike within an episode: left and right keep their meaning.
    turns, flip = int(rng.integers(4)), rng.random() < 0.5
    images, masks = images.rot90(turns, (-2, -1)), masks.rot90(turns, (-2, -1))
    if flip:
        images, masks = images.flip(-1), masks.flip(-1)
    channels = images[:, None].expand(-1, 3, -1, -1)
    if color and rng.random() < 0.12:
        gains = torch.from_numpy(rng.uniform(-0.3, 1.2, (1, 3, 1, 1)).astype(np.float32))
        offsets = torch.from_numpy(rng.uniform(-60, 60, (1, 3, 1, 1)).astype(np.float32))
        powers = torch.from_numpy(rng.uniform(0.6, 1.6, (1, 3, 1, 1)).astype(np.float32))
        channels = gains * 255 * (channels / 255) ** powers + offsets
    return standardise(channels), masks


def _window(rng: Rng, masks: Tensor) -> tuple[int, int, int]:
    """Top, left and side of the square part of (T, N, S, S) masks' pictures that is shown."""
    size = masks.shape[-1]
    kind = rng.random()
    if kind < 0.35:
        return 0, 0, size
    if kind < 0.5:
        side = int(size * rng.uniform(0.6, 1.0))
        top, left = rng.integers(0, size - side + 1, 2).tolist()
        return top, left, side
    shown = masks.any(0).any(0)
    rows, columns = shown.any(1).nonzero()[:, 0], shown.any(0).nonzero()[:, 0]
    if not len(rows):
        return 0, 0, size
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    wanted = max(bottom - top, right - left) * (1 + rng.uniform(0.2, 1.6))
    side = int(min(size, max(wanted, size * 0.25)))
    middle = np.array([top + bottom, left + right]) / 2 + rng.normal(0, 0.05, 2) * side
    start = np.clip(middle - side / 2, 0, size - side).astype(int)
    return int(start[0]), int(start[1]), side
