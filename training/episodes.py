"""Procedural few-shot episodes: slices of several synthetic subjects with their label maps.

Nothing here is measured from patients: shapes, intensities and textures are random numbers. An
episode is a pure function of (seed, number), so a training can be repeated and resumed exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from training.anatomy import draw_anatomy
from training.fields import Rng, blur, normal, smooth, warp_grids
from training.scenes import make_scene
from training.vessels import draw_vessels

SMALLEST = 0.0012  # smallest mean area of a structure to be asked for, as a part of the picture
LARGEST = 0.5
VESSELS = 0.1  # part of the episodes that show vessels of another course in every subject
PHANTOMS = 0.3  # part that shows phantoms, where there is a bank of them


@dataclass(frozen=True)
class Episode:
    """Slices of `count` subjects that show the same kind of anatomy.

    Attributes:
        images: (count, S, S) uint8.
        labels: (count, S, S) uint8 label maps.
        targets: the structures worth asking for, each a tuple of label values.
    """

    images: Tensor
    labels: Tensor
    targets: tuple[tuple[int, ...], ...]


def make_episode(
    seed: int,
    number: int,
    *,
    count: int = 10,
    size: int = 144,
    bank: Path | None = None,
) -> Episode:
    """Make episode `number` of the endless sequence that `seed` stands for.

    Args:
        count: subjects.
        size: side of the pictures in pixels.
        bank: slices of phantoms, see `training.anatomy`; None for episodes without them.
    """
    for attempt in range(1000):
        rng = np.random.default_rng((seed, number, attempt))
        kind = rng.random()
        if kind < VESSELS:
            image, labels = draw_vessels(rng, count, size)
            targets = _targets(rng, labels, [1], 2)
        elif bank is not None and kind < VESSELS + PHANTOMS:
            image, labels, grids = draw_anatomy(rng, bank, count, size)
            used = int(labels.max()) + 1
            targets = _targets(rng, labels, list(range(1, used)), used)
            if rng.random() < 0.5:  # the same anatomy in other intensities
                image = _tissues(rng, labels, [], grids)
        else:
            labels, targets, same, grids = _anatomy(rng, count, size)
            image = _tissues(rng, labels, same, grids)
        if targets:
            return Episode(_scanned(rng, image), labels.to(torch.uint8), targets)
    raise RuntimeError("no scene with a visible structure in 1000 attempts")


def _anatomy(
    rng: Rng, count: int, size: int
) -> tuple[Tensor, tuple[tuple[int, ...], ...], list[tuple[int, int]], Tensor]:
    # Retrieved supports are at heights like the query's, but not at the same.
    heights = rng.normal(0, 1, count) * rng.uniform(0, 0.9) + rng.normal(0, 0.3)
    scene = make_scene(rng, heights, size)
    pose = rng.uniform(0.2, 1.5) if rng.random() < 0.5 else rng.uniform(1.5, 3.5)
    grids = warp_grids(rng, count, size, strength=rng.uniform(0.2, 1.5), pose=pose)
    warped = F.grid_sample(
        scene.labels[:, None].float(),
        grids,
        mode="nearest",
        padding_mode="border",
        align_corners=False,
    )
    labels = warped[:, 0].long()
    if rng.random() < 0.2:
        labels = _pad(rng, labels)
    objects = scene.objects if rng.random() < 0.9 else list(range(1, scene.used))
    return labels, _targets(rng, labels, objects, scene.used), scene.same, grids


def _targets(
    rng: Rng, labels: Tensor, objects: list[int], used: int
) -> tuple[tuple[int, ...], ...]:
    """Structures worth asking for: shown by some subjects, neither tiny nor huge."""
    count, size = labels.shape[0], labels.shape[-1]
    area = torch.zeros(count, used)
    area.scatter_add_(1, labels.flatten(1), torch.ones(count, size * size)).div_(size * size)
    targets: list[tuple[int, ...]] = []
    for label in rng.permutation(objects).tolist() if objects else []:
        group: tuple[int, ...] = (int(label),)
        if rng.random() < 0.12:  # a structure made of two labels, such as an organ with its wall
            group = tuple(sorted({int(label), int(rng.choice(objects))}))
        shown = area[:, list(group)].sum(1)
        present = shown[shown > 3 / size**2]
        if len(present) >= 0.3 * count and SMALLEST < float(present.mean()) < LARGEST:
            targets.append(group)
        if len(targets) == 6:
            break
    return tuple(targets)


def _pad(rng: Rng, labels: Tensor) -> Tensor:
    # Outside the scanned field of view nothing is seen and nothing is annotated.
    size = labels.shape[-1]
    labels = labels.clone()
    first, last = (rng.uniform(0, 0.22, 2) * size).astype(int).tolist()
    if rng.random() < 0.5:
        labels[:, :, :first] = 0
        labels[:, :, size - last :] = 0
    else:
        labels[:, :first] = 0
        labels[:, size - last :] = 0
    return labels


def _tissues(rng: Rng, labels: Tensor, same: list[tuple[int, int]], grids: Tensor) -> Tensor:
    """(count, S, S) float32: every label in an own intensity and texture."""
    count, size = labels.shape[0], labels.shape[-1]
    used = int(labels.max()) + 1
    # Few palette entries for many labels: neighbours often share an intensity.
    palette = rng.random(int(rng.integers(2, 7)))
    if rng.random() < 0.7:
        palette = (palette - palette.min()) / (np.ptp(palette) + 1e-3)
    mean = palette[rng.integers(0, len(palette), used)] + rng.normal(0, 1, used) * rng.uniform(
        0, 0.06
    )
    texture_of = rng.random(used) * rng.uniform(0, 0.16)
    for a, b in same:
        if max(a, b) < used:
            mean[b] = mean[a] + rng.normal(0, 0.02)
            texture_of[b] = texture_of[a]
    if rng.random() < 0.55:
        mean[0] = rng.uniform(0, 0.1)
        texture_of[0] *= 0.2
    table = torch.from_numpy(mean.astype(np.float32))[None]
    table = table + normal(rng, count, used) * float(rng.uniform(0, 0.09))
    image = torch.gather(table, 1, labels.flatten(1)).view(count, size, size)
    texture = smooth(rng, count, int(rng.integers(size // 16, size // 3)), size)
    texture = texture * float(rng.uniform(0, 1)) + normal(rng, count, size, size) * float(
        rng.uniform(0, 0.8)
    )
    strength = torch.from_numpy(texture_of.astype(np.float32))[labels]
    image = image + strength * texture
    if rng.random() < 0.4:  # anatomy that nobody annotated, alike in all subjects
        common = smooth(rng, 1, int(rng.integers(size // 16, size // 4)), size)
        common = common[None].expand(count, -1, -1, -1)
        common = F.grid_sample(common, grids, padding_mode="border", align_corners=False)
        image = image + float(rng.uniform(0, 0.1)) * common[:, 0]
    return image


def _scanned(rng: Rng, image: Tensor) -> Tensor:
    """(count, S, S) uint8: what a scanner makes of it, with blur, bias field, gamma and noise."""
    count, size = image.shape[0], image.shape[-1]
    sharp_y, sharp_x = rng.uniform(0, 1.5, 2) * size / 128
    if rng.random() < 0.7:
        sharp_x = sharp_y
    image = blur(image, float(sharp_y), float(sharp_x))
    image = image * torch.exp(
        smooth(rng, count, int(rng.integers(1, 4)), size) * float(rng.uniform(0, 0.35))
    )
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    image = (image - low) / (high - low + 1e-5)
    image = image ** torch.exp(normal(rng, count, 1, 1) * float(rng.uniform(0, 0.35)))
    noise = normal(rng, count, size, size) * float(rng.uniform(0, 0.1))
    if rng.random() < 0.4:  # speckle and photon noise: grows with the signal
        noise = noise * (image + 0.2) * 1.5
    image = blur(image + noise, *([float(rng.uniform(0, 0.9))] * 2))
    if rng.random() < 0.3:
        image = -image
    low = torch.quantile(image.flatten(1)[:, ::31], 0.005, dim=1)[:, None, None]
    high = torch.quantile(image.flatten(1)[:, ::31], 0.995, dim=1)[:, None, None]
    return ((image - low) / (high - low + 1e-5)).clamp(0, 1).mul(255).round().to(torch.uint8)
