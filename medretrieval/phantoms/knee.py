"""The knee for sagittal MR: femur, tibia, patella, fibula, cartilage, menisci and ligaments.

Coordinates: origin in the middle of the joint line, x to the left, y to the back, z up, in mm. The
fibula lies at positive x: a left knee (`mirror` turns it into a right one).
"""

from __future__ import annotations

import numpy as np

from medretrieval.phantoms.canvas import INF, Canvas
from medretrieval.phantoms.fields import (
    Field,
    ellipse,
    ellipsoid,
    join,
    meet,
    profile,
    spline,
)


def paint_knee(c: Canvas, *, effusion: float) -> None:
    """Paint a knee; `effusion` 0..1 fills the bursa above the patella."""
    _soft_tissue(c)
    x, y, z = c.x, c.y, c.z
    femur, tibia = _femur(x, y, z), _tibia(x, y, z)
    femur = femur + 0.7 * c.noise(18.0)
    tibia = tibia + 0.7 * c.noise(18.0)
    pouch = spline([(0, -30, 42), (0, -27, 62), (0, -24, 78)], 8)
    c.pipe("fluid", pouch, 1.0 + 6.0 * effusion)
    bearing = np.where(z > -6, z - profile(y, [-30, -10, 30], [46, 22, 26]), 0) + 0 * x
    gristle = np.maximum(femur - 2.6, bearing)
    c.paint("cartilage", gristle)
    plateau = np.maximum(tibia - 2.2, -8 - z)
    c.paint("cartilage", plateau)
    fluid = np.maximum(np.maximum(femur - 3.4, tibia - 3.4), np.abs(z + 1) - 5)
    c.paint("fluid", fluid, strength=0.5 + 0.5 * effusion)
    _menisci(c, femur, tibia)
    _ligaments(c)
    grain = c.tissue["marrow"] * (1 + 0.05 * c.noise(3.0) + 0.05 * c.noise(14.0))
    for d, name in ((femur, "femur"), (tibia, "tibia")):
        thick = profile(z, [-110, -50, -20, 20, 50, 110], [4.5, 2.2, 1.1, 1.1, 2.2, 4.5])
        c.paint("bone", d, label=name)
        c.paint(grain, d + thick)
        scar = -30.0 if name == "tibia" else 34.0
        line = np.abs(z - scar - 0.006 * y * y - 1.5 * c.noise(20.0)) - 0.5
        c.paint("bone", np.maximum(line, d + thick), strength=0.6)
    centre, radii = (0.0, -44.0, 30.0), (22.0, 10.5, 21.0)
    box = c.ellipsoid_box(centre, radii)

    def patella(x: Field, y: Field, z: Field) -> Field:
        d = ellipsoid(x, y, z, centre, radii, (-6, 0, 0))
        return meet(d, y + 35.5 - 0.18 * np.abs(x), blend=4)

    c.paint("cartilage", lambda x, y, z: meet(patella(x, y, z) - 3.2, -(y + 38)), box=box)
    c.paint("bone", patella, box=box, label="patella")
    c.paint(grain, lambda x, y, z: patella(x, y, z) + 1.6, box=box)
    fibula = spline([(34, 22, -18), (36, 24, -40), (35, 22, -80), (34, 20, -130)], 14)
    radius = np.interp(np.arange(14), [0, 3, 6, 13], [8.5, 9.5, 6.5, 6.5])
    c.pipe("bone", fibula, radius, label="fibula")
    c.pipe(grain, fibula, radius - 1.8)


def _femur(x: Field, y: Field, z: Field) -> Field:
    u = np.abs(x)
    shaft = ellipse(
        x,
        y + 6 - 0.05 * (z - 40),
        profile(z, [20, 45, 80, 130], [36, 26, 16, 14]),
        profile(z, [20, 45, 80, 130], [22, 19, 15, 14]),
    )
    shaft = np.maximum(shaft, 20 - z)
    condyles = ellipsoid(u, y, z, (23, 9, 21), (17, 31, 22), (0, 0, 6))
    groove = ellipsoid(x, y, z, (0, -10, 30), (33, 20, 22))
    notch = 9 - np.sqrt(
        x * x + (0.5 * np.maximum(20 - y, 0)) ** 2 + (0.7 * np.maximum(z - 14, 0)) ** 2
    )
    return meet(join(shaft, condyles, groove, blend=10), notch, blend=4)


def _tibia(x: Field, y: Field, z: Field) -> Field:
    wide = profile(z, [-130, -80, -45, -25, -12, -4], [13, 15, 23, 33, 38, 38])
    deep = profile(z, [-130, -80, -45, -25, -12, -4], [14, 16, 20, 24, 27, 27])
    body = ellipse(x, y - 6 + 0.03 * (z + 10), wide, deep)
    lump = ellipsoid(x, y, z, (0, -22, -44), (10, 9, 18))
    dish = 0.0016 * (np.abs(x) - 22) ** 2
    spines = 7 * np.exp(-((np.abs(x) - 6) ** 2) / 20 - (y - 8) ** 2 / 90)
    top = z + 4 - dish * 2 - spines
    return meet(join(body, lump, blend=8), top, blend=3)


def _menisci(c: Canvas, femur: Field, tibia: Field) -> None:
    u = np.abs(c.x)
    ring = np.sqrt(((u - 22) / 17) ** 2 + ((c.y - 6) / 25) ** 2)
    wedge = meet(
        np.maximum(1.6 - femur, 1.4 - tibia) - 0.4,
        (0.62 - ring) * 18,
        (ring - 1.02) * 18,
        np.abs(c.z) - 8 + 0 * u,
    )
    c.paint("ligament", wedge, label="meniscus")


def _ligaments(c: Canvas) -> None:
    jitter = c.rng.normal(0, 0.8, 3)
    for path, width in (
        ([(0, -44, 12), (0, -42, -8), (0, -31, -40)], 3.6),
        ([(0, -45, 50), (0, -36, 80), (0, -28, 130)], 3.8),
        ([(5, 20, 26), (2, 6, 10), (-1, -9, -3)], 4.2),
        ([(-4, 2, 14), (-2, 22, 12), (0, 31, -8), (0, 33, -18)], 4.8),
    ):
        points = spline(path, 12) + jitter
        if path[0][1] < -40:
            for across in (-9, -4.5, 0, 4.5, 9):
                c.pipe("ligament", points + np.array([across, 0, 0]), width)
        else:
            c.pipe("ligament", points, width, strength=0.85)


def _soft_tissue(c: Canvas) -> None:
    x, y, z = c.x, c.y, c.z
    rng = c.rng
    a = profile(z, [-130, -60, 0, 40, 130], [50, 54, 55, 58, 70])
    b = profile(z, [-130, -60, 0, 40, 130], [52, 57, 59, 60, 70])
    back = profile(z, [-130, -60, 0, 40, 130], [14, 12, 6, 5, 8])
    skin = ellipse(x, y - back, a, b) + 1.5 * c.noise(40.0)
    c.paint(c.tissue["fat"] * (1 + 0.05 * c.noise(8.0)), skin)
    c.paint("skin", np.abs(skin + 1.2) - 1.0, strength=0.8)
    fat = float(rng.uniform(5, 14))
    septa = np.abs(c.noise(9.0)) * 8 - 0.5
    c.paint("septum", np.maximum(septa - 0.1, skin + 2), strength=0.2)
    groups = [
        (
            ellipse(
                np.abs(x) - 20, y - 47, 17.0, profile(z, [-130, -60, 0, 30, 45], [22, 20, 13, 8, 1])
            ),
            -INF,
            42.0,
        ),
        (ellipse(np.abs(x) - 30, y - 36, 13.0, profile(z, [20, 60, 130], [6, 15, 22])), 15.0, INF),
        (ellipse(x, y - 34, 26.0, profile(z, [-130, -70, -35], [16, 14, 5])), -INF, -30.0),
        (
            ellipse(
                x,
                y + 20,
                profile(z, [48, 80, 130], [14, 42, 54]),
                profile(z, [48, 80, 130], [3, 13, 26]),
            ),
            48.0,
            INF,
        ),
        (ellipse(x - 22, y + 6, 17.0, profile(z, [-130, -60, -30], [24, 20, 3])), -INF, -32.0),
    ]
    for d, low, high in groups:
        d = np.maximum(
            np.maximum(d + 1.5 * c.noise(12.0), skin + fat), np.maximum(low - z, z - high)
        )
        c.paint("muscle", d)
        c.paint("fat", np.maximum(np.abs(c.noise(14.0)) * 12 - 0.7, d + 2), strength=0.55)
    vessel = spline([(0, 30, 130), (2, 36, 40), (0, 42, 0), (3, 40, -50), (6, 34, -130)], 18)
    c.pipe("fat", vessel, 8.0)
    c.pipe("vessel", vessel, 4.0)
    c.pipe("vein", vessel + np.array([5, 5, 0]), 4.2)
    c.pipe("vein", np.array([(-28.0, 44.0, 130.0), (-34.0, 40.0, 0.0), (-30.0, 36.0, -130.0)]), 2.2)
