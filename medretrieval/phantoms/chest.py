"""The chest: lungs with vessels and bronchi, heart and great vessels, shoulder girdle."""

from __future__ import annotations

import numpy as np

from medretrieval.phantoms.canvas import INF, Canvas
from medretrieval.phantoms.fields import (
    Field,
    ellipse,
    ellipsoid,
    grow_tree,
    join,
    meet,
    profile,
    spline,
    stroke,
)
from medretrieval.phantoms.trunk import Trunk, spine_y


def paint_chest(t: Trunk, *, arms: bool = True) -> None:
    """Paint everything between neck and diaphragm; nothing happens below the lungs.

    Args:
        arms: also the heads of the humeri.
    """
    c = t.canvas
    if float(c.z.max()) < -25:
        return
    _shoulders(c, arms)
    lungs = _lungs(t)
    _lung_vessels(t, lungs)
    _heart(t)
    _great_vessels(c)
    _airways(c)


def _lungs(t: Trunk) -> Field:
    c = t.canvas
    x, y, z = c.x, c.y, c.z
    wide = profile(z, [60, 90, 130, 180, 220, 260, 300], [24, 25, 28, 30, 31, 33, 30])
    column = ellipse(x - 2, y - 2, wide, 62.0)
    gutter = ellipse(x, y - t.spine - 12, 25.0, 34.0)
    strip = stroke(x, y, (0, -120), (0, -40)) - 9
    middle = join(column, gutter, strip, blend=12) + 2.0 * t.bumps
    apex = (z - 297) * 0.7 + 0.0028 * ((np.abs(x) - 46) ** 2 + (y - 12) ** 2)
    lungs = meet(t.cavity + 2.5, -middle, -0.55 * t.diaphragm, apex, blend=7)
    c.paint("muscle", np.maximum(np.abs(t.diaphragm + 2.5) - 2.2, t.cavity))
    # Blood sinks: a lung of a patient on the back is denser behind.
    base = c.tissue["lung"] + c.tissue["lung_gradient"] * (y / 100)
    texture = c.noise(7.0) + 0.6 * c.grain
    value = (base + c.tissue["lung_texture"] * texture).astype(np.float32)
    left = np.broadcast_to(x > 0, lungs.shape)
    c.paint(value, np.where(left, 30, lungs), label="right lung")
    c.paint(value, np.where(left, lungs, 30), label="left lung")
    fissure = np.abs(z - 150 + 0.95 * y + 9 * t.bumps) - 0.5
    c.paint("muscle", meet(fissure, lungs + 1), strength=0.1)
    return lungs


def _lung_vessels(t: Trunk, lungs: Field) -> None:
    c, rng = t.canvas, t.canvas.rng
    for side in (-1, 1):
        n = 900
        p = np.stack(
            [side * rng.uniform(22, 136, n), rng.uniform(-98, 96, n), rng.uniform(-30, 300, n)], 1
        )
        keep = _inside(c, lungs, p) < -4
        targets = p[keep][:150]
        if len(targets) < 8:
            continue
        for root, tip in (((side * 38, 4, 182), 0.62), ((side * 30, 12, 158), 0.55)):
            chosen = targets[:: 1 if tip > 0.6 else 2] + rng.normal(0, 5, 3)
            segments, radii = grow_tree(rng, root, chosen, tip, power=2.9)
            c.tubes("vessel_in_lung", segments, np.minimum(radii, 7.5))


def _inside(c: Canvas, field: Field, points: np.ndarray) -> np.ndarray:
    """Value of a field on the grid at points (n, 3) in undeformed coordinates, +50 outside it."""
    k = [np.broadcast_to(a, c.shape) for a in (c.x, c.y, c.z)]
    middle = tuple(n // 2 for n in c.shape)
    axes = []
    out = np.zeros(len(points), dtype=bool)
    for axis in range(3):
        line = [slice(m, m + 1) for m in middle]
        line[axis] = slice(None)
        spans = [float(np.ptp(a[tuple(line)])) for a in k]
        which = int(np.argmax(spans))
        values = k[which][tuple(line)].ravel()
        order = np.argsort(values)
        index = np.interp(points[:, which], values[order], order)
        out |= (points[:, which] < values.min() - 4) | (points[:, which] > values.max() + 4)
        axes.append(np.round(index).astype(int))
    result = field[tuple(axes)].astype(float)
    result[out] = 50
    return np.asarray(result)


def _heart(t: Trunk) -> None:
    c, rng = t.canvas, t.canvas.rng
    size = float(rng.uniform(0.92, 1.14))
    centre = (27.0, -36.0, 111.0 + float(rng.normal(0, 4)))
    cx, cy, cz = centre

    def outer(x: Field, y: Field, z: Field) -> Field:
        ventricles = ellipsoid(
            x, y, z, centre, (46 * size, 62 * size, 42 * size), (24.0, 0.0, -42.0)
        )
        atria = ellipsoid(x, y, z, (cx - 36, cy + 16, cz + 24), (34 * size, 38, 42))
        back = ellipsoid(x, y, z, (cx - 14, cy + 40, cz + 34), (40 * size, 24, 28))
        return join(ventricles, atria, back, blend=14)

    box = ((-75, 105), (-125, 50), (45, 205))
    c.paint("fat", lambda x, y, z: outer(x, y, z) - 4.5, box=box, label="")
    c.paint("muscle", lambda x, y, z: np.abs(outer(x, y, z) - 5.2) - 0.6, box=box, strength=0.6)
    c.paint("myocardium", outer, box=box, label="heart")
    chambers = [
        ((cx + 16, cy + 2, cz - 2), (20, 40, 22), (20.0, 0.0, -38.0), "blood_left"),
        ((cx - 14, cy - 24, cz - 6), (17, 42, 27), (16.0, 0.0, -48.0), "blood_right"),
        ((cx - 42, cy + 14, cz + 20), (23, 28, 32), (0.0, 0.0, 0.0), "blood_right"),
        ((cx - 14, cy + 42, cz + 34), (36, 18, 23), (0.0, 0.0, 0.0), "blood_left"),
    ]
    for at, radii, turn, tissue in chambers:
        r = (radii[0] * size, radii[1] * size, radii[2] * size)
        c.paint(
            tissue,
            lambda x, y, z, a=at, r=r, w=turn: np.maximum(
                ellipsoid(x, y, z, a, r, w) + 1.2 * np.sin(x / 5) * np.sin(y / 6 + z / 7),
                outer(x, y, z) + 3,
            ),
            box=c.ellipsoid_box(at, r),
        )


def _great_vessels(c: Canvas) -> None:
    rng = c.rng
    wide = float(rng.uniform(0.92, 1.2))
    z = np.linspace(-5, 215, 23)
    descending = np.stack(
        [np.interp(z, [0, 215], [12, 25]), spine_y(z) - np.interp(z, [0, 80, 215], [24, 20, 8]), z],
        1,
    )
    c.pipe("vessel_wall", descending, 12.6 * wide, label="aorta")
    c.pipe("blood_left", descending, 11 * wide)
    arch = spline(
        [
            (8, -28, 150),
            (-14, -34, 172),
            (-17, -32, 205),
            (-6, -20, 232),
            (12, 12, 240),
            (24, 38, 228),
            (25, 50, 212),
        ],
        26,
    )
    c.pipe("vessel_wall", arch, 15.0 * wide, label="aorta")
    c.pipe("blood_left", arch, 13.4 * wide)
    for x0, x1, y0, y1, r in ((-8, -28, -22, 0, 6.5), (6, 14, -6, 2, 4.5), (18, 30, 14, 12, 5)):
        branch = spline([(x0, y0, 238), (x0, y0 - 4, 262), (x1, y1, 300), (1.5 * x1, y1, 330)], 10)
        c.pipe("blood_left", branch, r)
    cava = spline([(-30, -14, 140), (-27, -22, 180), (-24, -26, 225), (-22, -30, 250)], 12)
    c.pipe("blood_right", cava, 10.0, label="")
    c.pipe("blood_right", spline([(-22, -30, 250), (0, -40, 256), (30, -36, 270)], 10), 6.0)
    c.pipe("blood_right", spline([(-22, -30, 250), (-32, -22, 280), (-44, -10, 305)], 8), 6.5)
    lower = spline([(-24, 22, 60), (-28, 10, 85), (-30, 2, 105)], 8)
    c.pipe("blood_right", lower, 11.0)
    trunk = spline([(14, -50, 150), (20, -48, 172), (24, -30, 190)], 12)
    c.pipe("blood_right", trunk, 13.5 * wide, label="heart")
    c.pipe("blood_right", spline([(24, -30, 190), (-4, -12, 186), (-42, 0, 182)], 14), 10.0)
    c.pipe("blood_right", spline([(24, -30, 190), (34, -6, 194), (46, 10, 190)], 12), 10.0)
    for side in (-1, 1):
        vein = spline([(side * 18 + 6, 8, 148), (side * 42, 10, 160), (side * 58, 16, 168)], 8)
        c.pipe("blood_left", vein, 6.0)
    azygos = np.stack([np.full(23, -9.0), spine_y(z) - 15, z], 1)
    c.pipe("blood_right", azygos, 3.6)


def _airways(c: Canvas) -> None:
    def tube(points: np.ndarray, r: float | np.ndarray, wall: float) -> None:
        c.pipe("muscle", points, r + wall)
        c.pipe("air", points, r)

    oesophagus = spline(
        [(8, 30, 75), (10, 38, 110), (8, 38, 150), (5, 34, 200), (3, 26, 260), (2, 20, 330)], 24
    )
    c.pipe("muscle", oesophagus, 6.5)
    c.pipe("air", oesophagus[6::5], 2.2, strength=0.7)
    for side, drop in ((-1, 26.0), (1, 16.0)):
        main = spline([(1, 12, 202), (side * 22, 12, 200 - drop), (side * 42, 14, 188 - drop)], 8)
        tube(main, 6.6, 1.5)
        hilum = (side * 42, 14, 188 - drop)
        for dx, dy, dz in ((24, -12, 38), (30, -30, -8), (22, 22, -30), (18, 4, -50), (34, 16, 12)):
            end = (hilum[0] + side * dx, hilum[1] + dy, hilum[2] + dz)
            middle = tuple(
                (p + q) / 2 + c.rng.normal(0, 3) for p, q in zip(hilum, end, strict=True)
            )
            branch = spline([hilum, middle, end], 7)
            tube(branch, np.linspace(4.0, 1.7, 7), 1.2)
    trachea = spline([(1, 12, 200), (0, 8, 240), (0, -2, 290), (0, -8, 340)], 16)
    tube(trachea, 9.0, 1.6)


def _shoulders(c: Canvas, arms: bool) -> None:
    """Shoulder blades, collar bones and, at the top, the heads of the humeri."""
    box = ((-INF, INF), (-60, 125), (140, INF))

    def blade(x: Field, y: Field, z: Field) -> Field:
        u = np.abs(x)
        inner = profile(z, [150, 200, 260, 300], [104, 84, 76, 84])
        back = profile(z, [150, 200, 260, 300], [82, 84, 82, 66])
        outer = profile(z, [150, 200, 260, 285, 300], [112, 128, 142, 150, 152])
        front = profile(z, [150, 200, 260, 285, 300], [76, 62, 42, 34, 34])
        d = stroke(u, y, (inner, back), (outer, front)) - profile(z, [145, 160, 300], [0, 3.2, 4])
        ridge = stroke(u, y, (inner + 12, back), (outer, back + 6)) - 3.2
        ridge = ridge + np.maximum(np.abs(z - 276) - 8, 0)
        return np.asarray(np.maximum(join(d, ridge), 150 - z))

    c.paint("fat", lambda x, y, z: np.abs(blade(x, y, z) - 8) - 1.2, box=box, strength=0.5)
    c.paint("cortex", blade, box=box)
    c.paint("marrow", lambda x, y, z: blade(x, y, z) + 2.2, box=box, strength=0.8)
    for side in (-1, 1):
        head = ((side * 160.0, 12.0, 290.0), (23.0, 23.0, 24.0))
        for inset, tissue in ((0.0, "cortex"), (2.2, "marrow")) if arms else ():
            c.paint(
                tissue,
                lambda x, y, z, h=head, i=inset: ellipsoid(x, y, z, *h) + i,
                box=c.ellipsoid_box(*head),
            )
        collar = spline(
            [
                (side * 18, -62, 272),
                (side * 60, -68, 286),
                (side * 105, -42, 298),
                (side * 145, -10, 304),
            ],
            12,
        )
        c.pipe("cortex", collar, 6.2)
        c.pipe("marrow", collar, 3.6)
