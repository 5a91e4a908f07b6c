"""The trunk from neck to thighs: outline, fat, muscles, spine and ribs.

One set of coordinates holds for chest, abdomen and pelvis, so that every slice also shows what
reaches into it from next door: x to the left, y to the back, z to the head, in mm of an average
person. Landmarks: lung apex z=295, carina 200, diaphragm 90, first lumbar vertebra 10, iliac crest
-100, promontory -145, femoral heads -235, symphysis -265.
"""

from __future__ import annotations

import numpy as np

from medretrieval.phantoms.canvas import INF, Canvas
from medretrieval.phantoms.fields import (
    Field,
    ellipse,
    join,
    meet,
    profile,
    squircle,
    stroke,
)

# Lower end of each vertebral body, from L5 up to the neck, in mm.
VERTEBRAE = np.array(
    [
        -140,
        -106,
        -72,
        -38,
        -4,
        28,
        56,
        83,
        109,
        134,
        158,
        182,
        205,
        228,
        250,
        271,
        291,
        310,
        328,
        344,
        360,
    ],
    dtype=np.float32,
)

_CAVITY = (
    [-300, -240, -180, -130, -80, 0, 60, 130, 200, 240, 265, 285, 300, 320],
    [98, 100, 108, 114, 118, 128, 136, 138, 130, 118, 104, 84, 62, 45],
    [70, 72, 76, 78, 78, 88, 97, 98, 90, 80, 70, 58, 50, 40],
    [5, 2, 0, -5, -6, -3, -2, -2, -2, 0, 3, 8, 12, 12],
)
_MUSCLE = (
    [-310, -280, -235, -180, -130, -80, 0, 60, 130, 200, 240, 270, 300, 330],
    [160, 170, 174, 160, 144, 137, 145, 152, 155, 160, 168, 174, 170, 150],
    [92, 96, 100, 101, 98, 97, 103, 111, 113, 110, 104, 96, 82, 66],
    [10, 10, 9, 7, 4, 2, 2, 3, 4, 6, 9, 11, 14, 16],
)
_SPINE = (
    [-150, -130, -70, 0, 60, 130, 200, 260, 300, 330],
    [40, 34, 28, 35, 46, 58, 60, 52, 42, 30],
)


def spine_y(z: Field | float) -> Field:
    """y of the middle of the vertebral bodies at height z."""
    return profile(np.asarray(z, dtype=np.float32), *_SPINE)


class Trunk:
    """Fields of one patient's trunk, shared by everything painted inside it.

    Attributes:
        skin, muscle, cavity: signed distances (mm) in plane to the outer surface, to the outside
            of the muscles and to the inside of ribs and abdominal wall.
        diaphragm: vertical distance below (negative) or above the diaphragm, in mm.
        bumps: smooth noise of unit variance, 35 mm wide, to make organ surfaces uneven.
    """

    def __init__(self, canvas: Canvas, *, fat: float, female: bool) -> None:
        self.canvas, self.fat, self.female = canvas, fat, female
        x, y, z = canvas.x, canvas.y, canvas.z
        rng = canvas.rng
        a, b, c = (profile(z, _CAVITY[0], v) for v in _CAVITY[1:])
        visceral = 0.35 * max(fat - 14, -6) * profile(z, [-200, -80, 0, 90], [0, 1, 1, 0])
        self.cavity = squircle(x, y - c + 0.4 * visceral, a + visceral, b + visceral, 0.35)
        a, b, c = (profile(z, _MUSCLE[0], v) for v in _MUSCLE[1:])
        square = profile(z, [-300, -200, -80, 60, 200], [0.25, 0.35, 0.3, 0.4, 0.25])
        muscle = squircle(x, y - c + 0.4 * visceral, a + visceral, b + visceral, square)
        self.muscle = np.minimum(muscle, self.cavity + 7)
        angle_y = y / np.sqrt(x * x + y * y + 25)
        thickness = fat * profile(
            z, [-300, -200, -100, 0, 90, 200, 320], [1.5, 1.35, 1.2, 1.0, 0.75, 0.65, 0.7]
        )
        # Fat lies thicker at the flanks and back of the belly than over the breastbone.
        self.skin = self.muscle - thickness * (0.95 + 0.35 * angle_y) - 2
        if female:
            self.skin = self._breasts(self.skin)
        self.bumps = canvas.noise(35.0)
        self.spine = spine_y(z)
        self.diaphragm = self._diaphragm(float(rng.normal(0, 6)), float(rng.normal(0, 6)))

    def _breasts(self, skin: Field) -> Field:
        c, rng = self.canvas, self.canvas.rng
        size = float(rng.uniform(34, 52))
        for side in (-1, 1):
            u, v, w = (c.x - 82 * side) / 1.25, c.y + 100, (c.z - 165) / 1.15
            skin = join(skin, np.sqrt(u * u + v * v + w * w) - size, blend=18)
        return skin

    def _diaphragm(self, right: float, left: float) -> Field:
        x, y, z = self.canvas.x, self.canvas.y, self.canvas.z
        rise = 12 / (1 + np.exp(x / 12))  # the right dome stands higher
        dome = 80 + rise + np.where(x < 0, right, left) - 10 * np.exp(-((x / 30) ** 2))
        q2 = (x / 136) ** 2 + ((y + 2) / 98) ** 2
        q4 = np.minimum(q2 * q2, 1.4)  # flat on top, steep at the rim
        fall = (95 + 45 * y / 100) * q4 * q4
        return np.asarray(z - dome + fall, dtype=np.float32)

    def paint_walls(self) -> None:
        """Skin, fat, muscles with their fat planes, and what fills the cavity."""
        c, rng = self.canvas, self.canvas.rng
        fat = c.tissue["fat"] + c.tissue["fat_texture"] * c.noise(9.0)
        c.paint(fat, self.skin)
        c.paint("skin", np.abs(self.skin + 1.2) - 1.0, strength=0.8)
        c.paint("muscle", self.muscle)
        depth = np.abs(self.muscle + 11 + 2.5 * self.bumps)  # between the muscle layers
        planes = np.minimum(depth, 26 * np.abs(c.noise(26.0)) + 1.5)
        streaks = meet(planes - np.float32(rng.uniform(0.7, 1.5)), self.muscle + 3)
        c.paint("fat", streaks, strength=0.75)
        c.paint(fat, self.cavity)
        self._back_muscles()

    def _back_muscles(self) -> None:
        c = self.canvas

        def erector(x: Field, y: Field, z: Field) -> Field:
            sy = spine_y(z)
            wide = profile(z, [-300, -200, -130, 0, 150, 300], [10, 18, 27, 28, 22, 24])
            deep = profile(z, [-300, -200, -130, 0, 150, 300], [6, 9, 19, 20, 14, 14])
            u = np.abs(x) - wide - 4
            return ellipse(u, y - sy - 44, wide, deep)

        box = ((-75, 75), (40, 140), (-230, INF))
        c.paint("fat", lambda x, y, z: erector(x, y, z) - 2.0, box=box, strength=0.7)
        c.paint("muscle", erector, box=box)

        def psoas(x: Field, y: Field, z: Field) -> Field:
            sy = spine_y(z)
            centre = profile(z, [-240, -150, -60, 20], [78, 56, 42, 27])
            back = profile(z, [-240, -150, -60, 20], [-75, -34, 2, 2])
            r = profile(z, [-240, -150, -60, 15, 35], [17, 24, 21, 9, 1])
            return ellipse(np.abs(x) - centre, y - sy - back, r * 0.9, r * 1.15)

        box = ((-100, 100), (-60, 80), (-240, 35))
        c.paint("fat", lambda x, y, z: psoas(x, y, z) - 1.5, box=box)
        c.paint("muscle", psoas, box=box)

        def quadratus(x: Field, y: Field, z: Field) -> Field:
            return ellipse(np.abs(x) - 68, y - spine_y(z) - 26, 24.0, 8.0)

        c.paint("muscle", quadratus, box=((-100, 100), (20, 90), (-100, 15)))

    def paint_spine(self) -> None:
        """Vertebral bodies and discs, canal with cord, arches and processes."""
        c = self.canvas
        box = ((-62, 62), (-10, 150), (-147, INF))
        trabecular = c.tissue["marrow"] + c.tissue["bone_texture"] * c.grain

        def body(x: Field, y: Field, z: Field) -> Field:
            rx = profile(z, [-130, 0, 60, 200, 300], [26, 22, 19, 15, 14])
            ry = profile(z, [-130, 0, 60, 200, 300], [18, 17, 16, 14, 11])
            waist = 1.8 * np.sin(np.pi * _phase(z)[0])
            d = ellipse(x, y - spine_y(z), rx - waist, ry - waist)
            notch = 7 - np.sqrt(x * x + (y - spine_y(z) - ry - 4) ** 2)
            return meet(d, notch, blend=4)

        def disc(x: Field, y: Field, z: Field) -> Field:
            return np.broadcast_to(_phase(z)[1] - 3.2, np.broadcast_shapes(x.shape, y.shape))

        c.paint("cortex", body, box=box, label="vertebra")
        c.paint(
            trabecular,
            lambda x, y, z: np.maximum(body(x, y, z) + 2.2, 1.2 - disc(x, y, z)),
            box=box,
        )
        c.paint("disc", lambda x, y, z: np.maximum(body(x, y, z), disc(x, y, z)), box=box)
        c.paint("cortex", _arch, box=box, label="vertebra")
        c.paint(trabecular, lambda x, y, z: _arch(x, y, z) + 2.0, box=box, strength=0.8)

        def canal(x: Field, y: Field, z: Field) -> Field:
            ry = profile(z, [-130, 0, 60, 200, 300], [18, 17, 16, 14, 11])
            return ellipse(x, y - spine_y(z) - ry - 8.5, 11.0, 8.5)

        c.paint("epidural", canal, box=box, label="")
        c.paint("csf", lambda x, y, z: canal(x, y, z) + 1.6, box=box)

        def cord(x: Field, y: Field, z: Field) -> Field:
            r = profile(z, [-130, -20, 0, 40, 300], [0.2, 1.0, 4.0, 5.0, 5.5])
            return canal(x, y, z) + 8.5 - r

        c.paint("cord", cord, box=((-20, 20), (20, 120), (-60, INF)))

    def paint_ribs(self) -> None:
        """Ribs as oblique bands of a shell around the cavity, cartilage in front, breastbone."""
        c = self.canvas
        x, y, z = c.x, c.y, c.z
        if float(z.max()) < -20:
            return
        drop = 0.72 * (self.spine + 20 - y)
        u = z + np.minimum(drop, 120)  # a rib is level in this coordinate
        across = (np.mod(u, 25.5) - 12.75) / np.float32(6.2)
        shell = (self.cavity - 5.5) / np.float32(4.2)
        d = (np.sqrt(across**2 + shell**2) - 1) * np.float32(4.4)
        low = np.maximum(-12 - u, u - 312)
        d = np.maximum(np.maximum(d, low), 7 - np.abs(x) + 0 * y)
        # False ribs end at the flank: no bone in front below the costal arch.
        arch = 105 - 0.85 * np.abs(x)
        d = np.maximum(d, np.where(y < 0, arch - z - 0.35 * y - 30, -50))
        front = np.where(z > 60, np.abs(x) < 62, np.abs(x) < 98) & (y < 0)
        c.paint("cartilage", np.where(front, d, 50).astype(np.float32))
        bone = np.where(front, 50, d).astype(np.float32)
        c.paint("rib", bone)
        c.paint("rib_marrow", bone + 2.2, strength=0.85)

        def sternum(x: Field, y: Field, z: Field) -> Field:
            front = profile(z, [60, 130, 200, 240, 265, 285], [-103, -104, -97, -85, -75, -66])
            wide = profile(z, [65, 80, 110, 200, 240, 260, 276], [5, 12, 19, 16, 20, 30, 26])
            return meet(ellipse(x, y - front, wide, 6.0), np.maximum(z - 276, 66 - z))

        box = ((-35, 35), (-118, -50), (60, 282))
        c.paint("cortex", sternum, box=box)
        c.paint("marrow", lambda x, y, z: sternum(x, y, z) + 2.0, box=box)


def _phase(z: Field) -> tuple[Field, Field]:
    """Position 0..1 within the vertebra at z, and the distance in mm from the nearest disc."""
    i = np.clip(np.searchsorted(VERTEBRAE, z) - 1, 0, len(VERTEBRAE) - 2)
    low, high = VERTEBRAE[i], VERTEBRAE[i + 1]
    t = np.clip((z - low) / (high - low), 0, 1)
    gap = np.minimum(np.abs(z - low), np.abs(high - z))
    return t.astype(np.float32), gap.astype(np.float32)


def _arch(x: Field, y: Field, z: Field) -> Field:
    """Pedicles, laminae, transverse and spinous processes."""
    t, _ = _phase(z)
    ry = profile(z, [-130, 0, 60, 200, 300], [18, 17, 16, 14, 11])
    v = y - spine_y(z) - ry
    u = np.abs(x)
    upper = np.abs(t - 0.62) * 30  # mm from the pedicles' height
    pedicle = stroke(u, v, (13, -3), (16, 9)) - 5.0 + np.maximum(upper - 7, 0)
    side = stroke(u, v, (16, 9), (36, 15)) - 3.6 + np.maximum(upper - 4, 0)
    lamina = stroke(u, v, (16, 9), (1, 21)) - 3.2 + 3 * np.maximum(np.abs(t - 0.4) - 0.38, 0) * 8
    tip = profile(z, [-140, 0, 100, 300], [42, 44, 40, 42])
    spinous = stroke(u, v, (0, 20), (0, tip)) - 3.0 + np.maximum(np.abs(t - 0.35) * 30 - 9, 0)
    facet = stroke(u, v, (17, 10), (19, 15)) - 5.0
    return join(pedicle, side, lamina, spinous, facet)
