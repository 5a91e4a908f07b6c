"""The pelvis: hip bones, sacrum, femora, muscles, bladder, rectum, prostate or uterus."""

from __future__ import annotations

import numpy as np

from medretrieval.phantoms.canvas import INF, Box, Canvas
from medretrieval.phantoms.fields import (
    Field,
    ellipse,
    ellipsoid,
    join,
    meet,
    profile,
    spline,
    stroke,
)
from medretrieval.phantoms.trunk import Trunk

HIP = (91.0, 2.0, -235.0)
BOX: Box = ((-INF, INF), (-INF, INF), (-330, -85))


def paint_pelvis(t: Trunk) -> None:
    """Paint everything below the iliac crests."""
    c = t.canvas
    if float(c.z.min()) > -90:
        return
    _muscles(t)
    _viscera(t)
    _bones(c)


def _wing(x: Field, y: Field, z: Field) -> Field:
    """Distance to the middle surface of the iliac bones."""
    u = np.abs(x)
    x0 = profile(z, [-215, -190, -160, -100], [72, 62, 50, 62])
    y0 = profile(z, [-215, -190, -160, -100], [34, 44, 66, 62])
    x1 = profile(z, [-215, -190, -160, -120, -100], [88, 96, 110, 122, 118])
    y1 = profile(z, [-215, -190, -160, -130, -100], [-26, -40, -56, -46, -6])
    mx, my = (x0 + x1) / 2 + 7, (y0 + y1) / 2 + 5
    return join(stroke(u, y, (x0, y0), (mx, my)), stroke(u, y, (mx, my), (x1, y1)))


def _hip_bone(x: Field, y: Field, z: Field) -> Field:
    u = np.abs(x)
    thick = profile(z, [-225, -205, -160, -110, -96], [10, 9, 6, 6, 4.5])
    wing = np.maximum(_wing(x, y, z) - thick, np.maximum(z + 92, -212 - z))
    sacroiliac = ellipse(u - 54, y - 68, 11.0, 17.0) + 0.25 * np.maximum(np.abs(z + 152) - 26, 0)
    cup = ellipsoid(u, y, z, (84, 4, -232), (37, 37, 38))
    ramus_top = _rod(u, y, z, (72, -16, -240), (14, -50, -256), 9.0)
    body = _rod(u, y, z, (8, -52, -252), (10, -50, -276), 9.0)
    ramus_low = _rod(u, y, z, (12, -46, -276), (50, 26, -300), 7.0)
    ischium = join(
        _rod(u, y, z, (74, 30, -240), (62, 44, -276), 15.0),
        _rod(u, y, z, (62, 44, -276), (54, 36, -304), 14.0),
        blend=8,
    )
    return join(wing, sacroiliac, cup, ramus_top, body, ramus_low, ischium, blend=7)


def _rod(
    x: Field,
    y: Field,
    z: Field,
    p: tuple[float, float, float],
    q: tuple[float, float, float],
    r: float,
) -> Field:
    d = [q[i] - p[i] for i in range(3)]
    t = ((x - p[0]) * d[0] + (y - p[1]) * d[1] + (z - p[2]) * d[2]) / sum(k * k for k in d)
    t = np.clip(t, 0, 1)
    e = [a - p[i] - t * d[i] for i, a in enumerate((x, y, z))]
    return np.asarray(np.sqrt(e[0] ** 2 + e[1] ** 2 + e[2] ** 2) - r, dtype=np.float32)


def _femur(x: Field, y: Field, z: Field) -> tuple[Field, Field]:
    """Signed distance to the head alone, and to the whole upper femur."""
    u = np.abs(x)
    head = np.sqrt((u - HIP[0]) ** 2 + (y - HIP[1]) ** 2 + (z - HIP[2]) ** 2) - 24.5
    neck = _rod(u, y, z, (94, 3, -238), (126, 12, -262), 14.0)
    trochanter = ellipsoid(u, y, z, (142, 18, -262), (16, 20, 24))
    shaft = _rod(u, y, z, (136, 14, -272), (128, 8, -360), 16.0)
    return head, join(head, neck, trochanter, shaft, blend=8)


def _bones(c: Canvas) -> None:
    s = c.region(BOX)
    if s is None:
        return
    x, y, z = c.coordinates(s)
    spongy = c.tissue["marrow"] + c.tissue["bone_texture"] * c.grain
    full = np.full(c.shape, 60, dtype=np.float32)
    head, femur = _femur(x, y, z)
    hip = meet(_hip_bone(x, y, z), 3.4 - head)
    for d, name in ((hip, "hip bone"), (femur, "femur"), (_sacrum(x, y, z), "sacrum")):
        full[s] = d
        c.paint("cortex", full, box=BOX, label=name)
        full[s] = d + (2.4 if name != "sacrum" else 1.9)
        c.paint(spongy, full, box=BOX, strength=0.95)
    left = np.broadcast_to(x > 0, full[s].shape)
    for side, name in ((left, "left femoral head"), (~left, "right femoral head")):
        c.labels[s][side & (head < 0)] = c.values.get(name, 0)
    canal = ellipse(
        x,
        y - profile(z, [-220, -150], [92, 66]),
        profile(z, [-215, -150], [3, 12]),
        profile(z, [-215, -150], [2, 6]),
    )
    full[s] = np.maximum(canal, np.maximum(z + 138, -212 - z))
    c.paint("epidural", full, box=BOX)
    joint = np.maximum(np.abs(np.abs(x) - 46 + 0.25 * (y - 66)) - 1.1, np.abs(y - 64) - 20)
    full[s] = np.maximum(joint, np.abs(z + 158) - 32)
    c.paint("joint", full, box=BOX)
    full[s] = np.maximum(np.abs(x) - 2.6, _rod(x, y, z, (0, -52, -252), (0, -50, -276), 11.0))
    c.paint("cartilage", full, box=BOX)


def _sacrum(x: Field, y: Field, z: Field) -> Field:
    u = np.abs(x)
    front = profile(z, [-262, -245, -225, -190, -140], [62, 76, 84, 78, 28])
    deep = profile(z, [-262, -245, -225, -190, -160, -140], [5, 6, 9, 15, 26, 30])
    wide = profile(z, [-262, -240, -215, -190, -160, -145, -138], [5, 9, 20, 42, 50, 46, 26])
    bow = 0.004 * u * u  # the wings curve backwards
    d = ellipse(x, y - front - deep * 0.5 - bow * 2, wide, deep * 0.62)
    crest = stroke(u, y, (0, front + deep), (0, front + deep + 10)) - 3.5
    hole = 4.5 - np.sqrt((u - 22) ** 2 + (y - front - deep * 0.4) ** 2)
    hole = hole - 0.6 * np.abs(np.mod(z + 150, 24) - 12)
    end = np.maximum(z + 139, -264 - z)
    bone = meet(join(d, np.maximum(crest, -210 - z), blend=4), hole, blend=3)
    return np.asarray(np.maximum(bone, end))


def _muscles(t: Trunk) -> None:
    """Fat inside the bony ring, the buttocks' muscles in layers, thigh muscles in front."""
    c = t.canvas
    s = c.region(BOX)
    if s is None:
        return
    x, y, z = c.coordinates(s)
    u = np.abs(x)
    full = np.full(c.shape, 60, dtype=np.float32)
    # Muscle groups; the fat between them is what remains.
    groups = [
        # gluteus maximus; medius and minimus around the wing
        ellipse(
            u - 88,
            y - 70,
            profile(z, [-300, -200, -110], [56, 60, 40]),
            profile(z, [-300, -200, -120, -95], [28, 30, 20, 4]),
        ),
        _wing(x, y, z) - profile(z, [-250, -215, -150, -110, -95], [2, 30, 34, 24, 2]),
        ellipse(
            u - 128,
            y + 6,
            profile(z, [-250, -205, -110, -95], [15, 26, 18, 4]),
            profile(z, [-260, -200, -110], [34, 46, 36]),
        ),
        # iliopsoas, sartorius, rectus and tensor in front of the hip
        ellipse(
            u - profile(z, [-290, -235, -170], [98, 92, 84]),
            y + profile(z, [-290, -235, -170], [22, 36, 22]),
            19.0,
            profile(z, [-320, -235, -150], [19, 20, 24]),
        ),
        ellipse(u - 116, y + 58, 15.0, profile(z, [-330, -230, -180, -160], [24, 20, 12, 2])),
        ellipse(u - 146, y + 24, 15.0, profile(z, [-330, -250, -190, -150], [38, 34, 26, 3])),
        # pectineus, obturators, adductors
        ellipse(u - 60, y + 44, 24.0, profile(z, [-330, -262, -240, -225], [28, 22, 13, 2])),
        ellipse(u - 57, y - 8, 8.0, profile(z, [-300, -280, -205, -180], [24, 36, 38, 6])),
        ellipse(u - 72, y - 14, profile(z, [-300, -262, -250], [26, 20, 4]), 24.0),
        ellipse(u - 36, y - 2, profile(z, [-330, -282, -268], [32, 26, 2]), 40.0),
        # levator ani as a funnel, piriformis
        np.maximum(
            np.abs(
                ellipse(
                    x,
                    y - 30,
                    profile(z, [-300, -285, -250, -240], [8, 14, 44, 48]),
                    profile(z, [-300, -270, -240], [20, 28, 34]),
                )
            )
            - 2.5,
            np.maximum(z + 240, -y - 10),
        ),
        stroke(u, y, (8, 84), (76, 44)) - profile(z, [-250, -225, -180, -165], [2, 9, 9, 1]),
    ]
    psoas = np.maximum(_wing(x, y, z) - 24, np.maximum(z + 104, -232 - z))
    groups.append(meet(psoas, u - 116, y - 58) + 1)
    low = profile(z, [-190, -160], [0, 40])  # fat compartment only where the ring is
    full[s] = meet(t.muscle[s] + 2 + low, np.where(z < -120, -40, 40) + 0 * y)
    c.paint("fat", full, box=BOX)
    wall = np.maximum(t.muscle[s], -(t.muscle[s] + 8))
    full[s] = np.maximum(wall, profile(z, [-262, -240], [30, -30])) + np.where(
        (y < -20) & (u < 70), 0, 60
    )
    c.paint("muscle", full, box=BOX)
    streak = 1.3 * t.bumps[s] + 0.6
    full[s] = np.maximum(join(*groups) + streak, t.muscle[s] + 1.5)
    c.paint("muscle", full, box=BOX)
    fibres = np.abs(c.noise(13.0)) * 15 - 1.0
    c.paint(
        "fat",
        np.maximum(fibres, t.muscle + 5) + np.where(c.z < -120, 0, 60),
        box=BOX,
        strength=0.45,
    )
    for side in (-1, 1):
        for dx, dy, tissue in ((0, 0, "blood_left"), (-11, 5, "blood_right")):
            path = spline(
                [
                    (side * (70 + dx), -40 + dy, -215),
                    (side * (76 + dx), -62 + dy, -245),
                    (side * (76 + dx), -66 + dy, -300),
                    (side * (80 + dx), -60 + dy, -340),
                ],
                10,
            )
            c.pipe("fat", path, 9.0)
            c.pipe(tissue, path, 5.4)


def _viscera(t: Trunk) -> None:
    c, rng = t.canvas, t.canvas.rng
    full = float(rng.uniform(0.72, 1.12))
    radii = (44 * full, 34 * full, 33 * full)
    centre = (float(rng.normal(0, 3)), -22.0, -243 + radii[2])
    rectum = spline(
        [
            (0, 44, -300),
            (0, 46, -275),
            (4, 58, -245),
            (-2, 64, -215),
            (8, 52, -190),
            (22, 26, -178),
            (46, 6, -170),
            (66, 0, -158),
            (80, -10, -155),
        ],
        40,
    )
    swell = (
        12
        + 3.5 * np.sin(np.arange(40) / 3.0 + rng.uniform(0, 6))
        + np.interp(np.arange(40), [0, 4, 12, 20], [-4, -3, 3, 0])
    )
    c.pipe("bowel_wall", rectum, swell, label="rectum")
    stool = c.tissue["stool"] + c.tissue["stool_texture"] * (c.grain - 0.5)
    c.pipe(stool, rectum[4:], (swell - 3.5)[4:])
    for i in np.flatnonzero(np.repeat(rng.random(10) < 0.35, 4)):
        if i > 5:
            c.pipe("gas", rectum[i : i + 2], (swell - 5)[i], label=None)
    if t.female:
        lean = float(rng.uniform(-10, 10))
        womb = ((float(rng.normal(0, 6)), 16.0, -200.0), (27.0, 19.0, 32.0))
        c.paint(
            "uterus",
            lambda x, y, z: ellipsoid(x, y, z, *womb, (30, lean, 0)),
            box=c.ellipsoid_box(*womb),
            label="uterus",
        )
        c.paint(
            "fluid",
            lambda x, y, z: ellipsoid(x, y, z, womb[0], (7, 3.5, 16), (30, lean, 0)),
            box=c.ellipsoid_box(*womb),
            strength=0.5,
        )
        canal = spline([(0, 14, -214), (0, 16, -240), (0, 10, -275), (0, 2, -300)], 12)
        c.pipe("uterus", canal + np.array([6, 0, 0]), 9.0)
        c.pipe("uterus", canal - np.array([6, 0, 0]), 9.0)
        c.pipe("bowel_wall", spline([(0, -20, -262), (0, -16, -280), (0, -12, -300)], 6), 8.0)
        for side in (-1, 1):
            ovary = ((side * 44.0, 10.0, -196.0), (12.0, 9.0, 14.0))
            c.paint(
                "fluid",
                lambda x, y, z, o=ovary: ellipsoid(x, y, z, *o),
                box=c.ellipsoid_box(*ovary),
                strength=0.6,
            )
    else:
        _prostate(c, float(rng.uniform(0.85, 1.3)))
    for grow, tissue in ((3.0, "bowel_wall"), (0.0, "bladder")):
        r = (radii[0] + grow, radii[1] + grow, radii[2] + grow)

        def sack(x: Field, y: Field, z: Field, r: tuple[float, float, float] = r) -> Field:
            flat = ellipsoid(x, y, z, centre, r)
            return flat + 0.06 * np.abs(x - centre[0]) * (y > centre[1])

        c.paint(tissue, sack, box=c.ellipsoid_box(centre, r), label="bladder")


def _prostate(c: Canvas, size: float) -> None:
    centre = (0.0, -2.0, -257.0)
    radii = (25 * size, 18 * size, 20 * size)
    box = c.ellipsoid_box(centre, (30.0 * size, 30.0, 30.0))

    def gland(x: Field, y: Field, z: Field) -> Field:
        return ellipsoid(x, y, z, centre, radii, (15, 0, 0)) + 0.0015 * x * x

    c.paint("muscle", lambda x, y, z: gland(x, y, z) - 1.5, box=box)
    mottled = c.tissue["prostate_outer"] * (1 + 0.08 * c.noise(5.0))
    c.paint(mottled, gland, box=box, label="prostate")
    nodes = c.tissue["prostate_inner"] * (1 + 0.3 * np.abs(c.grain) - 0.15)
    core = ((0.0, -6.0, -254.0), (18 * size, 12.5 * size, 17 * size))
    c.paint("muscle", lambda x, y, z: ellipsoid(x, y, z, *core) - 1.0, box=box, strength=0.7)
    c.paint(nodes, lambda x, y, z: ellipsoid(x, y, z, *core), box=box)
    for side in (-1, 1):
        sac = spline([(side * 5, 17, -236), (side * 18, 22, -230), (side * 34, 22, -222)], 8)
        c.pipe("vesicle", sac + c.rng.normal(0, 1.2, sac.shape), 5.5)
