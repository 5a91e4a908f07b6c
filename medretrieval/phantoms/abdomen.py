"""The abdomen: liver, spleen, kidneys, stomach, pancreas, bowel and their vessels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medretrieval.phantoms.canvas import Box, Canvas
from medretrieval.phantoms.fields import (
    Field,
    Point,
    ellipsoid,
    grow_tree,
    join,
    meet,
    profile,
    spline,
)
from medretrieval.phantoms.trunk import Trunk, spine_y


def paint_abdomen(t: Trunk, *, bowel: bool = True) -> None:
    """Paint the organs between diaphragm and pelvis that reach into the grid.

    Args:
        bowel: also the loops of the small bowel, which are most of the work.
    """
    c = t.canvas
    if float(c.z.min()) > 120:
        return
    _vessels(c)
    if float(c.z.max()) > -60:
        _pancreas(c)
    _kidneys(t)
    if bowel:
        _small_bowel(t)
    _stomach(t)
    _colon(t)
    _spleen(t)
    _liver(t)


def _liver(t: Trunk) -> None:
    c, rng = t.canvas, t.canvas.rng
    if float(c.z.max()) < -95:
        return
    grow = float(rng.uniform(0.9, 1.15))
    left = float(rng.uniform(0.75, 1.2))
    texture = c.tissue["liver"] + c.tissue["liver_texture"] * c.grain
    box: Box = ((-160, 90), (-125, 110), (-90, 115))
    s = c.region(box)
    if s is None:
        return
    x, y, z = c.coordinates(s)
    right_lobe = ellipsoid(x, y, z, (-78, -4, 22), (76 * grow, 96, 92 * grow), (0, 14, 8))
    left_lobe = ellipsoid(x, y, z, (-8, -58, 48), (84 * left, 36, 40), (0, -14, -8))
    spine = 44 - np.sqrt((x + 4) ** 2 + (y - spine_y(z) + 4) ** 2)
    hilum = 22 - np.sqrt((x + 26) ** 2 + (y + 8) ** 2 + (0.6 * (z - 8)) ** 2)
    renal = -ellipsoid(x, y, z, (-62, 44, -22), (34, 38, 60), (0, 8, 0))
    fissure = 3.2 - np.abs(x + 16 - 0.25 * (y + 70)) + 0.35 * np.maximum(y + 48, 0)
    fissure = np.maximum(np.minimum(fissure, 3.2), -30) - 0.25 * np.maximum(z - 20, 0)
    body = join(right_lobe, left_lobe, blend=16) + 2.0 * t.bumps[s]
    d = meet(body, spine, hilum, renal, fissure, blend=6)
    d = meet(d, t.cavity[s] + 3.0, t.diaphragm[s] * 0.6 + 4.0, blend=8)
    full = np.full(c.shape, 60, dtype=np.float32)
    full[s] = d
    c.paint("skin", full - 1.0, box=box, strength=0.5)
    c.paint(texture, full, box=box, label="liver")
    _liver_vessels(c, full, box)
    bladder: tuple[Point, Point] = ((-50.0, -46.0, -8.0), (14.0, 27.0, 26.0))
    fill = float(rng.uniform(0.75, 1.15))
    radii = (bladder[1][0] * fill, bladder[1][1] * fill, bladder[1][2] * fill)
    for grown, tissue in ((2.0, "stomach_wall"), (0.0, "bile")):
        c.paint(
            tissue,
            lambda x, y, z, g=grown: ellipsoid(x, y, z, bladder[0], radii, (25, 10, 25)) - g,
            box=c.ellipsoid_box(bladder[0], radii),
            label="gallbladder",
        )
    cava = spline([(-24, 12, -5), (-27, 12, 30), (-26, 14, 70), (-26, 12, 90)], 12)
    c.pipe("liver_vein", cava, np.linspace(10, 13, 12), label="")


def _liver_vessels(c: Canvas, liver: Field, box: Box) -> None:
    rng = c.rng
    s = c.region(box)
    inside = np.argwhere(liver[s] < -7) if s is not None else np.empty((0, 3))
    if s is None or len(inside) < 50:
        return
    coordinates = [np.broadcast_to(a, liver[s].shape) for a in c.coordinates(s)]
    systems = (
        ((-26.0, 12.0, 82.0), "liver_vein", 55, 1.15, 9.0),
        ((-30.0, -16.0, 20.0), "portal", 75, 1.0, 7.0),
    )
    for root, tissue, n, tip, widest in systems:
        at = inside[rng.integers(0, len(inside), n)]
        targets = np.stack([a[tuple(at.T)] for a in coordinates], 1).astype(float)
        segments, radii = grow_tree(rng, root, targets, tip, power=2.8, bend=0.08)
        c.tubes(tissue, segments, np.minimum(radii, widest), strength=0.85)


def _spleen(t: Trunk) -> None:
    c, rng = t.canvas, t.canvas.rng
    size = float(rng.uniform(0.85, 1.2))
    centre = (102.0, 44.0, 32.0 + float(rng.normal(0, 5)))
    box = c.ellipsoid_box(centre, (64.0, 64.0, 64.0))
    s = c.region(box)
    if s is None:
        return
    x, y, z = c.coordinates(s)
    d = ellipsoid(x, y, z, centre, (38 * size, 56 * size, 58 * size), (-12, 0, -28))
    bite = 41 - np.sqrt((x - 56) ** 2 + (y - 8) ** 2 + (0.6 * (z - 35)) ** 2)
    kidney = -ellipsoid(x, y, z, (64, 46, -4), (31, 34, 56), (0, -8, 0))
    d = meet(d + 1.5 * t.bumps[s], bite, kidney, t.cavity[s] + 3, t.diaphragm[s] * 0.6 + 4, blend=7)
    full = np.full(c.shape, 60, dtype=np.float32)
    full[s] = d
    c.paint("spleen", full, box=box, label="spleen")


def _kidneys(t: Trunk) -> None:
    c, rng = t.canvas, t.canvas.rng
    if float(c.z.min()) > 70 or float(c.z.max()) < -110:
        return
    columns = 3.0 * np.abs(c.noise(11.0))
    for side, name, height in ((-1, "right kidney", -22.0), (1, "left kidney", -6.0)):
        size = float(rng.uniform(0.88, 1.12))
        centre = (side * (63 + float(rng.normal(0, 2))), 44.0, height + float(rng.normal(0, 6)))
        radii = (26 * size, 31 * size, 54 * size)
        turn = (-8.0, side * -12.0, side * 28.0)
        box = c.ellipsoid_box(centre, radii)
        hilum = (centre[0] - side * 24, centre[1] - 13, centre[2])

        def bean(
            x: Field,
            y: Field,
            z: Field,
            k: Point = centre,
            r: Point = radii,
            w: Point = turn,
            h: Point = hilum,
        ) -> Field:
            sinus = ellipsoid(x, y, z, h, (19.0, 12.0, 25.0), (0.0, 0.0, w[2]))
            return meet(ellipsoid(x, y, z, k, r, w), -sinus, blend=8)

        # Perirenal fat inside Gerota's fascia
        c.paint(
            "muscle", lambda x, y, z, f=bean: np.abs(f(x, y, z) - 9) - 0.6, box=box, strength=0.35
        )
        c.paint("kidney_cortex", bean, box=box, label=name)

        s = c.region(box)
        if s is None:
            continue
        full = np.full(c.shape, 60, dtype=np.float32)
        full[s] = bean(*c.coordinates(s)) + 7.0
        pyramids = full.copy()
        pyramids[s] += 3.5 - columns[s] * 1.4
        c.paint("kidney_medulla", pyramids, box=box)
        inner = (centre[0] - side * 7, centre[1] - 4, centre[2])
        for grow, tissue in ((0.0, "fat"), (-5.5, "pelvis_urine")):
            c.paint(
                tissue,
                lambda x, y, z, i=inner, g=grow, w=turn: ellipsoid(
                    x, y, z, i, (13 + g, 9 + g, 29 + 2 * g), w
                ),
                box=c.ellipsoid_box(inner, (30.0, 30.0, 30.0)),
            )
        z0 = centre[2]
        vein = spline([(side * 16, 8, z0 + 4), (side * 30, 16, z0), hilum], 8)
        c.pipe("blood_right", vein, 4.4)


def _vessels(c: Canvas) -> None:
    rng = c.rng
    wide = float(rng.uniform(0.85, 1.2))
    z = np.linspace(-100, 30, 14)
    aorta = np.stack([np.interp(z, [-100, 30], [4, 11]), spine_y(z) - 27, z], 1)
    c.pipe("vessel_wall", aorta, 11.2 * wide, label="aorta")
    c.pipe("blood_left", aorta, 9.8 * wide)
    cava = np.stack([np.full(14, -22.0), spine_y(z) - np.interp(z, [-100, 30], [24, 30]), z], 1)
    c.pipe("blood_right", cava, 10.5)
    for side in (-1, 1):
        fork = [(4, 2, -98), (side * 26, 8, -130), (side * 46, 20, -160)]
        outer = [
            (side * 46, 14, -160),
            (side * 64, -20, -190),
            (side * 72, -58, -240),
            (side * 74, -66, -300),
        ]
        inner = [(side * 46, 20, -160), (side * 56, 48, -185), (side * 52, 54, -215)]
        for path, r in ((fork, 6.2), (outer, 5.2), (inner, 3.6)):
            c.pipe("blood_left", spline(path, 12), r * wide)
            vein = spline([(p[0] + 6 * side - 8, p[1] + 9, p[2]) for p in path], 12)
            c.pipe("blood_right", vein, r * 1.15)
    for root, path in (
        (6.0, [(8, 4, 12), (6, -14, 2), (2, -22, -40), (-14, -26, -90)]),
        (8.0, [(-10, -18, -80), (-8, -20, -30), (-4, -16, 0), (-22, -14, 16), (-30, -16, 24)]),
        (6.5, [(-4, -16, 0), (20, -4, 8), (50, 16, 22), (80, 30, 30)]),
    ):
        tissue = "blood_left" if root == 6.0 else "portal"
        c.pipe(tissue, spline(path, 18), root * 0.75)
    celiac = spline([(10, 6, 28), (8, -14, 30), (-16, -20, 28)], 8)
    c.pipe("blood_left", celiac, 3.4)
    n = 46
    targets = np.stack(
        [rng.uniform(-80, 85, n), rng.uniform(-70, -10, n), rng.uniform(-130, -10, n)], 1
    )
    segments, radii = grow_tree(rng, (0, -20, -20), targets, 0.9)
    c.tubes("portal", segments, np.minimum(radii, 4.0), strength=0.7)


def _pancreas(c: Canvas) -> None:
    path = spline([(-34, -8, -26), (-30, -14, -8), (-6, -22, 4), (28, -8, 14), (74, 22, 26)], 30)
    radius = np.interp(np.arange(30), [0, 6, 12, 22, 29], [13, 15, 9, 10, 7])
    wobble = c.rng.normal(0, 1.3, path.shape)
    c.pipe("pancreas", path + wobble, radius + c.rng.normal(0, 1.2, 30), label="pancreas")
    duodenum = spline(
        [(-34, -34, 6), (-54, -20, -4), (-58, 2, -30), (-44, 6, -54), (-6, 2, -58)], 24
    )
    c.pipe("bowel_wall", duodenum, 12.5)
    c.pipe("bowel_content", duodenum, 9.0)


def _gut(
    c: Canvas,
    path: NDArray[np.float64],
    radius: NDArray[np.float64],
    wall: float,
    content: str | float | Field,
    label: str | None = None,
) -> None:
    c.pipe("bowel_wall", path, radius, label=label)
    c.pipe(content, path, radius - wall)


def _stomach(t: Trunk) -> None:
    c, rng = t.canvas, t.canvas.rng
    path = spline(
        [(54, 14, 46), (63, -6, 34), (60, -46, 16), (36, -72, -4), (2, -66, -10), (-28, -48, 2)], 26
    )
    full = float(rng.uniform(0.75, 1.15))
    radius = np.interp(np.arange(26), [0, 5, 12, 18, 25], [31, 34, 28, 20, 11]) * full
    path = path + rng.normal(0, 1.2, path.shape)
    c.pipe("stomach_wall", path, radius, label="stomach")
    level = float(rng.uniform(-48, -12))
    content = c.tissue["fluid"] + c.tissue["liver_texture"] * 2 * c.grain
    rough = rng.uniform(3.5, 7.0)
    c.pipe(content, path, radius - rough)
    # The patient lies on the back: gas collects in front, above a level fluid surface.
    for p, q, r0, r1 in zip(path[:-1], path[1:], radius[:-1], radius[1:], strict=True):
        mid, r = (p + q) / 2, (r0 + r1) / 2 - rough
        if mid[1] - r < level:
            at = (float(mid[0]), float(mid[1]), float(mid[2]))
            c.paint(
                "gas",
                lambda x, y, z, a=at, r=r: np.maximum(
                    np.sqrt((x - a[0]) ** 2 + (y - a[1]) ** 2 + (z - a[2]) ** 2) - r, y - level
                ),
                box=c.ellipsoid_box(at, (r, r, r)),
            )


def _colon(t: Trunk) -> None:
    c, rng = t.canvas, t.canvas.rng
    stool = c.tissue["stool"] + c.tissue["stool_texture"] * (c.grain - 0.8)
    sag = float(rng.uniform(-70, -20))
    arcs = {
        "ascending": [(-86, 0, -150), (-100, 12, -120), (-102, 20, -80), (-92, 6, -52)],
        "transverse": [
            (-92, -10, -52),
            (-66, -66, -46),
            (-20, -84, sag),
            (40, -84, sag + 14),
            (88, -50, 8),
            (104, -10, 14),
        ],
        "descending": [
            (104, -10, 14),
            (110, 20, -26),
            (106, 30, -80),
            (98, 10, -130),
            (80, -10, -160),
        ],
    }
    for name, points in arcs.items():
        n = 28
        path = spline(points, n) + rng.normal(0, 0.8, (n, 3))
        base = {"ascending": 25.0, "transverse": 19.0, "descending": 13.5}[name]
        haustra = 1 + 0.13 * np.sin(np.arange(n) * 1.9 + rng.uniform(0, 6))
        radius = base * float(rng.uniform(0.85, 1.15)) * haustra
        gas = {"ascending": 0.3, "transverse": 0.75, "descending": 0.35}[name]
        _gut(c, path, radius, 2.2, stool, label="")
        kind = np.repeat(rng.random(7) < gas, 4)
        for i in np.flatnonzero(kind):
            r = radius[i] - 3.2
            at = (float(path[i, 0]), float(path[i, 1]), float(path[i, 2]))
            c.paint(
                "gas",
                lambda x, y, z, a=at, r=r: np.maximum(
                    np.sqrt((x - a[0]) ** 2 + (y - a[1]) ** 2 + (z - a[2]) ** 2) - r,
                    y - a[1] - 0.35 * r,
                ),
                box=c.ellipsoid_box(at, (r, r, r)),
            )


def _small_bowel(t: Trunk) -> None:
    c, rng = t.canvas, t.canvas.rng
    if float(c.z.min()) > 10:
        return
    placed: list[Point] = []
    for _ in range(260):
        z = float(rng.uniform(-200, 0))
        half = float(profile(np.array(z), [-200, -160, -60, 0], [42, 74, 88, 62]))
        x = float(rng.uniform(-half, half)) + (14 if z > -60 else 0)
        y = float(rng.uniform(-76, -8 if abs(x) < 45 else 8))
        if all((x - p[0]) ** 2 + (y - p[1]) ** 2 + (z - p[2]) ** 2 > 26**2 for p in placed):
            placed.append((x, y, z))
    for p in placed:
        direction = rng.normal(0, 1, 3) * (1, 0.7, 1)
        direction *= rng.uniform(14, 26) / np.linalg.norm(direction)
        bow = rng.normal(0, 7, 3)
        at = np.array(p)
        path = spline([at - direction, at + bow, at + direction], 5)
        radius = float(rng.uniform(8.5, 13)) * (1 + 0.1 * np.sin(np.arange(5) * 2.0))
        draw = rng.random()
        content: str | float = "gas" if draw < 0.12 else "bowel_content"
        wall = 2.2 if draw < 0.6 else 5.5
        c.pipe("fat", path, radius + 1.4)
        _gut(c, path, radius, wall, content)
