"""The heart in short axis, as in balanced cine MR: bright blood, dark muscle.

Coordinates: origin in the left ventricle, x to the right of the picture (the patient's left side),
y down, z from the apex (-45) to the base (45) along the axis of the ventricle.
"""

from __future__ import annotations

import numpy as np

from medretrieval.phantoms.canvas import INF, Box, Canvas
from medretrieval.phantoms.fields import (
    Field,
    ellipse,
    ellipsoid,
    grow_tree,
    join,
    meet,
    profile,
    spline,
    squircle,
)


def paint_heart(c: Canvas, *, contraction: float, thick: float, right: float, fat: float) -> None:
    """Paint a heart in its chest.

    Args:
        contraction: 0 end of diastole .. 1 end of systole.
        thick: wall thickness in mm at end of diastole.
        right: size of the right ventricle, 1 is normal.
        fat: thickness of the fat below the skin in mm.
    """
    _chest(c, fat)
    _belly(c)
    _lung_vessels(c)
    inner = profile(c.z, [-47, -40, -28, -10, 15, 45], [0.5, 9, 17, 23, 25.5, 26])
    inner = inner * (1 - 0.36 * contraction)
    wall = thick * (1 + 0.35 * contraction) * profile(c.z, [-50, -40, 45], [0.8, 0.95, 1.0])
    wobble = 0.9 * c.noise(16.0)
    radius = np.sqrt(c.x**2 + (1.04 * c.y) ** 2) + wobble
    endo = radius - inner + np.where(c.z < -44, 8.0, 0.0)
    epi = radius - inner - wall + np.where(c.z < -52, 30.0, 0.0)
    reach = profile(c.z, [-40, -30, -5, 25, 45], [0, 0.45, 0.85, 1.0, 1.05])
    reach = reach * right * (1 - 0.2 * contraction) + 1e-3
    rv = meet(
        ellipse(c.x + 27 + 10 * reach, c.y + 2 - 8 * reach, 34 * reach, 41 * reach) + 1.6 * wobble,
        -(epi + 0.3),
        blend=4,
    ) + np.where(c.z < -36, 20.0, 0.0)
    heart = join(epi, rv - 3.2, blend=10)
    c.paint("fat", heart - 5.5 - 3 * np.maximum(c.noise(22.0), -1), strength=0.9)
    c.paint("muscle", np.abs(heart - 7.0) - 0.8, strength=0.5)
    c.paint("myocardium", heart)
    flow = 1 + 0.07 * c.noise(14.0)
    c.paint(c.tissue["blood"] * flow * 0.96, rv, label="RV")
    for _ in range(7):  # trabeculae of the right ventricle
        x0, y0 = c.rng.uniform(-68, -30), c.rng.uniform(-30, 38)
        d = meet(np.sqrt((c.x - x0) ** 2 + (c.y - y0) ** 2) - 2.2, rv + 1.0, -(rv + 10) + 0 * c.x)
        c.paint("myocardium", d, strength=0.8)
    c.paint("myocardium", np.maximum(epi, -endo), label="Myo")
    c.paint(c.tissue["blood"] * flow, endo, label="LV")
    turn = float(c.rng.uniform(-0.3, 0.3))
    for angle in (0.55 + turn, 2.35 + turn):  # papillary muscles
        at = inner * 0.62
        d = ellipse(c.x - at * np.cos(angle), c.y - at * np.sin(angle), 4.2, 4.2) + wobble
        d = d + np.where((c.z > 18) | (c.z < -34), 20.0, 0.0)
        c.paint("myocardium", d, strength=0.9)
    _base(c)


def _chest(c: Canvas, fat: float) -> None:
    """Chest wall with ribs, lung, and the fat around the heart."""
    rng = c.rng
    x, y = c.x, c.y
    body = squircle(x - 26, y - 16, 172.0, 128.0, 0.25)
    body = body + 6.0 * c.noise(75.0)
    c.paint(c.tissue["fat"] * (1 + 0.06 * c.noise(12.0)), body)
    c.paint("skin", np.abs(body + 1.5) - 1.3, strength=0.6)
    wall = body + fat * (1 + 0.3 * c.noise(80.0))
    c.paint("muscle", wall)
    c.paint("fat", np.abs(wall + 6 + 1.5 * c.noise(20.0)) - 1.1, strength=0.8)
    angle = np.arctan2(y - 18, x - 22)
    ribs = (np.mod(angle * 8.5 + c.z * 0.05 + float(rng.uniform(0, 6)), 2 * np.pi) - np.pi) * 13
    rib = np.sqrt((ribs / 9) ** 2 + ((wall + 13) / 5) ** 2) - 1
    c.paint("bone", rib * 4)
    c.paint("marrow", rib * 4 + 2.0)
    inside = wall + 19.5
    c.paint("lung", inside)
    pericardial = ellipse(x + 36, y + 24, profile(c.z, [-50, 45], [50, 58]), 38.0)
    pericardial = pericardial + 7.0 * c.noise(28.0)
    c.paint("fat", meet(pericardial, inside, blend=6), strength=0.85)
    d = ellipse(x - 128, y - 66, 22.0, 20.0)
    c.paint("muscle", meet(d - 20, wall))
    c.paint("bone", d)
    c.paint("marrow", d + 2.5)
    c.paint("csf", ellipse(x - 150, y - 80, 8.0, 8.0))
    aorta = ellipse(x - 98, y - 48, 11.5, 11.5)
    c.paint("myocardium", aorta - 1.8)
    c.paint("blood", aorta, strength=0.95)


def _belly(c: Canvas) -> None:
    """Diaphragm below the heart: liver to the left of the picture, stomach and spleen right."""
    rng = c.rng
    x, y = c.x, c.y
    top = 40 + 0.1 * x + 0.0035 * (x + 5) ** 2 + profile(c.z, [-50, 45], [-6, 14])
    top = top + 3 * c.noise(50.0)
    room = squircle(x - 26, y - 16, 172.0, 128.0, 0.25) + 38
    below = meet(top - y, room, blend=8)
    c.paint("fat", below)
    c.paint("muscle", np.maximum(np.abs(top - y + 2.0) - 1.6, room))
    liver = meet(below + 3, x - 34 - 0.5 * (y - 60) + 5 * c.noise(30.0), blend=10)
    texture = c.tissue["liver"] * (1 + 0.05 * c.noise(6.0))
    c.paint(texture, liver)
    n = 26
    targets = np.stack(
        [rng.uniform(-95, 20, n), rng.uniform(55, 105, n), rng.uniform(-50, 50, n)], 1
    )
    segments, radii = grow_tree(rng, (-25, 84, 30), targets, 1.3)
    c.tubes("vein", segments, np.minimum(radii, 4.5), strength=0.9)
    stomach = ((float(rng.uniform(52, 70)), 86.0, -8.0), (34.0, 27.0, 60.0))
    box: Box = c.ellipsoid_box(*stomach)
    c.paint("muscle", lambda x, y, z: ellipsoid(x, y, z, *stomach), box=box)
    content = "gas" if rng.random() < 0.5 else "fluid"
    c.paint(content, lambda x, y, z: ellipsoid(x, y, z, *stomach) + 4, box=box)
    spleen = ((104.0, 84.0, -10.0), (17.0, 34.0, 50.0), (0.0, 0.0, -24.0))
    c.paint("spleen", lambda x, y, z: ellipsoid(x, y, z, *spleen), box=c.ellipsoid_box(*spleen[:2]))


def _lung_vessels(c: Canvas) -> None:
    rng = c.rng
    n = 70
    targets = np.stack(
        [rng.uniform(35, 140, n), rng.uniform(-70, 60, n), rng.uniform(-60, 70, n)], 1
    )
    segments, radii = grow_tree(rng, (46, 0, 66), targets, 0.8)
    c.tubes("vein", segments, np.minimum(radii, 5), strength=0.85)


def _base(c: Canvas) -> None:
    """Above the base: outflow tract and left atrium instead of ventricles."""
    above: Box = ((-80, 70), (-70, 60), (40, INF))

    def great(x: Field, y: Field, z: Field) -> Field:
        return np.asarray(np.maximum(ellipse(x + 12, y + 12, 14.0, 14.0), 47 - z))

    c.paint(
        "myocardium",
        lambda x, y, z: np.maximum(ellipse(x - 8, y, 40.0, 36.0), 47 - z),
        box=above,
        label="",
    )
    c.paint(
        "blood", lambda x, y, z: np.maximum(ellipse(x - 12, y - 8, 30.0, 22.0), 47 - z), box=above
    )
    c.paint("myocardium", lambda x, y, z: great(x, y, z) - 2, box=above)
    c.paint("blood", great, box=above)
    appendage = spline([(10, -30, 40), (30, -24, 52), (40, -10, 60)], 6)
    c.pipe("blood", appendage, 6.0)
