"""Episodes of branching vessels, of another course in every subject: only their look is shared.

The trees of `scenes` are the same in all subjects but for a warp, so place tells a network where
they are. Vessels of the retina or of a heart run otherwise in every person; a network has to learn
from the supports what a vessel looks like.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from training.fields import Rng, blur, coordinates, normal, smooth

MOST_SEGMENTS = 260
BORDER = 1.3  # in half picture sides from the middle: what runs further out is not followed


def _grow(
    rng: Rng,
    width: float,
    thinnest: float,
    roots: int,
    origin: np.ndarray,
    spread: float,
) -> np.ndarray:
    """Segments of trees, (M, 5): x and y of both ends, and half the width; picture is -1..1."""
    crooked, step = rng.uniform(0.05, 0.35), rng.uniform(0.05, 0.12)
    branching = rng.uniform(0.08, 0.3)
    tips = [
        (
            *(origin + rng.normal(0, spread, 2)),
            rng.uniform(0, 2 * math.pi),
            width * rng.uniform(0.6, 1),
        )
        for _ in range(roots)
    ]
    segments: list[tuple[float, float, float, float, float]] = []
    while tips and len(segments) < MOST_SEGMENTS:
        x, y, angle, w = tips.pop(0)
        for _ in range(int(rng.integers(3, 16))):
            angle += rng.normal(0, crooked)
            nx, ny = x + step * math.cos(angle), y + step * math.sin(angle)
            segments.append((x, y, nx, ny, w))
            x, y, w = nx, ny, w * 0.985
            if max(abs(x), abs(y)) > BORDER:
                break
            if rng.random() < branching and w * 0.7 > thinnest:
                side = float(rng.choice([-1, 1])) * rng.uniform(0.3, 1.2)
                tips.append((x, y, angle + side, w * rng.uniform(0.5, 0.85)))
        else:
            if w * 0.8 > thinnest:
                for side in (-0.4, 0.4):
                    tips.append((x, y, angle + side + rng.normal(0, 0.2), w * 0.8))
    return np.array(segments[:MOST_SEGMENTS])


def _depth(segments: np.ndarray, size: int) -> Tensor:
    """(S, S) how far a pixel is inside the nearest vessel, in pixels; negative outside."""
    x, y = coordinates(size)
    data = torch.from_numpy(segments.astype(np.float32))
    deepest = torch.full((size * size,), -9.0)
    px, py = x.reshape(-1, 1), y.reshape(-1, 1)
    for part in torch.split(data, 64):
        ax, ay, bx, by, w = part.unbind(1)
        dx, dy = bx - ax, by - ay
        along = ((px - ax) * dx + (py - ay) * dy) / (dx * dx + dy * dy + 1e-9)
        along = along.clamp(0, 1)
        distance = torch.hypot(px - ax - along * dx, py - ay - along * dy)
        deepest = torch.maximum(deepest, ((w - distance) * size / 2).amax(1))
    return deepest.view(size, size)


def draw_vessels(rng: Rng, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Pictures and masks of `count` subjects' vessels in one kind of imaging.

    Returns:
        (count, S, S) float32 pictures of any range and (count, S, S) int64 labels: 1 vessels.
    """
    pixel = 2 / size
    width = pixel * math.exp(rng.uniform(math.log(0.8), math.log(5.0)))  # half, of a root
    thinnest = max(0.4 * pixel, width * rng.uniform(0.12, 0.5))
    roots = int(rng.integers(2, 12))
    # From one disc, or as a part of a larger picture shows them: from everywhere.
    spread = 0.04 if rng.random() < 0.5 else 0.8
    shared = rng.uniform(-1, 1, 2)  # where the vessels come from, about the same in all subjects
    sign = -1.0 if rng.random() < 0.75 else 1.0  # dark on bright, as a retina or an angiogram
    contrast, fading = rng.uniform(0.15, 0.5), rng.uniform(0.2, 0.9)
    round_view, reflex = rng.random() < 0.3, rng.random() < 0.3
    ground = float(rng.uniform(0.02, 0.2))
    cells, blobs = int(rng.integers(2, 8)), rng.random() < 0.4
    disc = rng.uniform(0.15, 0.4) if rng.random() < 0.4 else 0.0
    x, y = coordinates(size)
    images, labels = [], []
    for _ in range(count):
        origin = shared + rng.normal(0, 0.15, 2)
        depth = _depth(_grow(rng, width, thinnest, roots, origin, spread), size)
        inside = (depth + 0.5).clamp(0, 1)
        # Thin vessels are fainter; a wide one may shine along its middle.
        strength = (depth / (width / pixel)).clamp(0, 1) * fading + (1 - fading)
        if reflex:
            strength = strength - 0.5 * (depth > 0.6 * width / pixel).float()
        image = smooth(rng, 1, cells, size)[0] * ground
        if disc:
            away = torch.hypot(x - float(origin[0]), y - float(origin[1]))
            image = image + float(rng.uniform(0.1, 0.5)) * (away < disc).float()
        if blobs:  # lesions, light or dark, that are no vessels
            spots = smooth(rng, 1, int(rng.integers(8, 20)), size)[0]
            image = image + float(rng.normal(0, 0.2)) * (spots > 1.6).float()
        image = image + sign * contrast * float(rng.uniform(0.7, 1.3)) * inside * strength
        image = image + float(rng.uniform(0, 0.05)) * normal(rng, size, size)
        label = (depth > 0).long()
        if round_view:
            outside = torch.hypot(x - float(shared[0]), y - float(shared[1])) > 1.4
            image = torch.where(outside, image.min(), image)
            label = torch.where(outside, 0, label)
        images.append(image)
        labels.append(label)
    sharpness = float(rng.uniform(0, 0.9))
    return blur(torch.stack(images), sharpness, sharpness), torch.stack(labels)
