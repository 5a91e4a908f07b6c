"""Random anatomy-like scenes: bodies, tissues, organs with walls, pairs, trees and sheets.

A scene is a stack of painted regions. Each region has a level function over the picture, negative
inside; how far inside depends on the height z of the slice, so that slices at different heights
show a structure larger, smaller or not at all, as neighbouring slices of a volume do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from training.fields import Rng, coordinates, smooth

EMPTY = -10.0  # a level no function reaches: the region is not on this slice


@dataclass
class Scene:
    """Label maps being painted for `count` slices of one kind of anatomy.

    Attributes:
        labels: (count, S, S) int64.
        heights: (count,) z of each slice.
        objects: labels of distinct structures (others are background tissue).
        same: pairs of labels that must look alike (parts or mirror images of one structure).
    """

    rng: Rng
    labels: Tensor
    heights: np.ndarray
    objects: list[int] = field(default_factory=list)
    same: list[tuple[int, int]] = field(default_factory=list)
    used: int = 1

    @property
    def size(self) -> int:
        return self.labels.shape[-1]

    def new(self, *, is_object: bool = True) -> int:
        label = self.used
        self.used += 1
        if is_object:
            self.objects.append(label)
        return label

    def levels(self) -> np.ndarray:
        """(count,) threshold of an ellipsoid-like structure at every slice, EMPTY where absent."""
        middle = self.rng.normal(0, 0.5)
        half_height = math.exp(self.rng.uniform(math.log(0.4), math.log(3.0)))
        u = 1 - ((self.heights - middle) / half_height) ** 2
        return np.where(u > 0.02, np.sqrt(np.maximum(u, 0.02)), EMPTY).astype(np.float32)

    def paint(self, where: Tensor, label: int) -> None:
        self.labels = torch.where(where, label, self.labels)


def radius(
    rng: Rng, size: int, center: tuple[float, float], r: float, *, roughness: float, stretch: float
) -> Tensor:
    """(S, S) distance from `center` in units of the wavy, elliptic radius r: below 1 is inside."""
    x, y = coordinates(size)
    angle = rng.uniform(0, math.pi)
    aspect = math.exp(rng.uniform(-stretch, stretch))
    dx, dy = x - center[0], y - center[1]
    u = (dx * math.cos(angle) + dy * math.sin(angle)) / (r * math.sqrt(aspect))
    v = (dy * math.cos(angle) - dx * math.sin(angle)) / (r / math.sqrt(aspect))
    cells = int(min(24, max(2, rng.uniform(2.0, 4.0) / max(r, 0.12))))
    return torch.sqrt(u * u + v * v + 1e-6) + roughness * smooth(rng, 1, cells, size)[0]


def _inside(distance: Tensor, levels: np.ndarray) -> Tensor:
    return distance[None] < torch.from_numpy(levels)[:, None, None]


def _place(rng: Rng, spread: float) -> tuple[float, float]:
    return float(rng.uniform(-spread, spread)), float(rng.uniform(-spread, spread))


def paint_body(scene: Scene) -> None:
    """Air, a rim of skin or fat, and one or several tissues in broad patches."""
    rng, size = scene.rng, scene.size
    if rng.random() < 0.7:
        body = radius(
            rng,
            size,
            _place(rng, 0.15),
            rng.uniform(0.65, 1.25),
            roughness=rng.uniform(0, 0.15),
            stretch=0.4,
        )
        scene.paint((body < 1)[None], scene.new(is_object=False))
        if rng.random() < 0.5:
            scene.paint((body < 1 - rng.uniform(0.05, 0.3))[None], scene.new(is_object=False))
    if rng.random() < 0.6:
        kinds = int(rng.integers(2, 6))
        patches = smooth(rng, kinds, int(rng.integers(2, 9)), size).argmax(0)
        inner = scene.used - 1
        inside = scene.labels == inner
        scene.paint(inside & True, inner)
        for kind in range(1, kinds):
            scene.paint(inside & (patches == kind)[None], scene.new(is_object=False))


def paint_blob(scene: Scene, center: tuple[float, float], r: float) -> None:
    """An organ; sometimes with a wall, a neighbour that hugs it, a core, or split in two parts."""
    rng, size = scene.rng, scene.size
    roughness, levels = rng.uniform(0, 0.3) ** 1.2, scene.levels()
    distance = radius(rng, size, center, r, roughness=roughness, stretch=0.6)
    style = rng.random()
    if style < 0.35:  # cavity in a wall, such as ventricle and myocardium, with or without hugger
        if rng.random() < 0.6:
            angle, gap = rng.uniform(0, 2 * math.pi), r * rng.uniform(0.9, 1.6)
            beside = (center[0] + gap * math.cos(angle), center[1] + gap * math.sin(angle))
            other = radius(
                rng, size, beside, r * rng.uniform(0.7, 1.4), roughness=roughness, stretch=0.5
            )
            hugger = scene.new()
            scene.paint(_inside(other, levels * rng.uniform(0.8, 1.1)), hugger)
            if rng.random() < 0.6:
                scene.same.append((hugger, hugger + 2))
        wall, cavity = scene.new(), scene.new()
        thickness = rng.uniform(0.15, 0.8)
        open_part = rng.random() < 0.15  # a wall with a gap
        where = _inside(distance, np.where(levels > 0, levels + thickness, EMPTY))
        if open_part:
            where = where & (smooth(rng, 1, 2, size)[0] > -0.6)[None]
        scene.paint(where, wall)
        filled = np.where(levels > rng.uniform(0, 0.6), levels, EMPTY).astype(np.float32)
        scene.paint(_inside(distance, filled), cavity)
        return
    label = scene.new()
    scene.paint(_inside(distance, levels), label)
    if style < 0.5:  # two parts of one tissue: only position tells them apart
        x, y = coordinates(size)
        angle = rng.uniform(0, 2 * math.pi)
        side = (x - center[0]) * math.cos(angle) + (y - center[1]) * math.sin(angle)
        cut = side + 0.3 * r * smooth(rng, 1, 4, size)[0]
        shift = torch.from_numpy((scene.heights * rng.normal(0, 0.6) * r).astype(np.float32))
        part = scene.new()
        scene.paint((scene.labels == label) & (cut[None] > shift[:, None, None]), part)
        scene.same.append((label, part))
    elif style < 0.62:  # a core or lesion inside
        spot = (center[0] + rng.normal(0, 0.3) * r, center[1] + rng.normal(0, 0.3) * r)
        core = radius(rng, size, spot, r * rng.uniform(0.2, 0.6), roughness=roughness, stretch=0.5)
        scene.paint((scene.labels == label) & _inside(core, scene.levels()), scene.new())


def paint_pair(scene: Scene, center: tuple[float, float], r: float) -> None:
    """The same structure left and right of the middle, as two labels or as one."""
    rng, size = scene.rng, scene.size
    x0 = max(abs(center[0]), r * 0.8)
    wobble = rng.normal(0, 0.05, 2)
    distance = radius(rng, size, (x0, center[1]), r, roughness=rng.uniform(0, 0.25), stretch=0.6)
    mirrored = torch.roll(
        distance.flip(-1), (int(wobble[0] * size / 2), int(wobble[1] * size / 2)), (0, 1)
    )
    levels, left = scene.levels(), scene.new()
    scene.paint(_inside(distance, levels), left)
    right = left if rng.random() < 0.35 else scene.new()
    scene.paint(_inside(mirrored, levels * rng.uniform(0.85, 1.1)), right)
    if right != left:
        scene.same.append((left, right))


def paint_tree(scene: Scene, center: tuple[float, float], width: float) -> None:
    """A branching vessel: random walks that start from each other and grow thinner."""
    rng, size = scene.rng, scene.size
    x, y = coordinates(size)
    label, step = scene.new(), 0.12
    starts = [(center[0], center[1], rng.uniform(0, 2 * math.pi), width)]
    inside = torch.zeros(size, size, dtype=torch.bool)
    for _ in range(int(rng.integers(1, 6))):
        px, py, angle, w = starts[int(rng.integers(len(starts)))]
        for _ in range(int(rng.integers(4, 14))):
            angle += rng.normal(0, 0.35)
            qx, qy = px + step * math.cos(angle), py + step * math.sin(angle)
            along = ((x - px) * (qx - px) + (y - py) * (qy - py)).div_(step**2).clamp_(0, 1)
            d2 = (x - px - along * (qx - px)) ** 2 + (y - py - along * (qy - py)) ** 2
            inside |= d2 < w * w
            px, py, w = qx, qy, max(w * 0.96, 0.012)
            starts.append((px, py, angle + rng.normal(0, 0.6), w * 0.8))
    scene.paint(inside[None] & torch.from_numpy(scene.levels() > 0)[:, None, None], label)


def paint_sheet(scene: Scene, center: tuple[float, float], r: float) -> None:
    """A thin folded sheet: where a smooth field is near zero, within a round window."""
    rng, size = scene.rng, scene.size
    field_ = smooth(rng, 1, int(rng.integers(2, 7)), size)[0]
    window = radius(rng, size, center, max(r, 0.3), roughness=0.1, stretch=0.4)
    drift = torch.from_numpy((scene.heights * rng.normal(0, 0.4)).astype(np.float32))
    thin = (field_[None] - drift[:, None, None]).abs() < rng.uniform(0.08, 0.3)
    scene.paint(thin & _inside(window, scene.levels()), scene.new())


def paint_cluster(scene: Scene, center: tuple[float, float], r: float) -> None:
    """Several small pieces of one label, such as bowel loops, nodes or vertebrae parts."""
    rng, size = scene.rng, scene.size
    label, levels = scene.new(), scene.levels()
    for _ in range(int(rng.integers(2, 6))):
        spot = (center[0] + rng.normal(0, 0.2), center[1] + rng.normal(0, 0.2))
        piece = radius(
            rng, size, spot, max(r * 0.5, 0.04), roughness=rng.uniform(0, 0.2), stretch=0.5
        )
        scene.paint(_inside(piece, levels), label)


def paint_partition(scene: Scene) -> None:
    """The whole picture divided among labels by which of several noise fields is largest."""
    rng, size = scene.rng, scene.size
    kinds = int(rng.integers(3, 12))
    fields = smooth(rng, kinds, int(rng.integers(2, 10)), size)
    fields = fields + rng.uniform(0, 0.5) * smooth(rng, kinds, int(rng.integers(8, 24)), size)
    lift = rng.normal(0, 1, (kinds, 1)) * rng.uniform(0, 0.6)
    lift = lift + rng.normal(0, 1, (kinds, 1)) * scene.heights[None] * 1.2
    lifted = fields[:, None] + torch.from_numpy(lift.astype(np.float32))[..., None, None]
    scene.labels = lifted.argmax(0) + scene.used
    for _ in range(kinds):
        scene.new()
    if rng.random() < 0.4:
        body = radius(
            rng,
            size,
            _place(rng, 0.1),
            rng.uniform(0.7, 1.0),
            roughness=rng.uniform(0, 0.15),
            stretch=0.4,
        )
        scene.paint((body >= 1)[None], 0)


def make_scene(rng: Rng, heights: np.ndarray, size: int) -> Scene:
    """Paint one kind of anatomy at the given slice heights, (count,) float."""
    scene = Scene(rng, torch.zeros(len(heights), size, size, dtype=torch.int64), heights)
    if rng.random() < 0.2:
        paint_partition(scene)
        if rng.random() < 0.5:
            return scene
    else:
        paint_body(scene)
    # A narrow field of view shows few, large structures; a wide one many small ones.
    zoom = rng.uniform(0.7, 1.9)
    painters = (paint_blob, paint_pair, paint_tree, paint_sheet, paint_cluster)
    for _ in range(int(rng.integers(2, 9))):
        painter = painters[int(rng.choice(5, p=(0.6, 0.16, 0.09, 0.08, 0.07)))]
        r = zoom * math.exp(rng.uniform(math.log(0.05), math.log(0.34)))
        if painter is paint_tree:
            r *= 0.2
        painter(scene, _place(rng, 0.65), min(r, 0.55))
    return scene
