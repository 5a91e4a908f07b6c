"""The head for CT and MR: scalp, skull and base, brain with folded cortex, ventricles, orbits.

Coordinates: origin in the middle of the brain, x to the left, y to the back, z up, in mm of an
average adult. Vertex z=82, foramen of Monro 8, orbital roof -14, foramen magnum -66.
"""

from __future__ import annotations

import numpy as np

from medretrieval.phantoms.canvas import INF, Box, Canvas, Distance
from medretrieval.phantoms.fields import (
    Field,
    capsule,
    ellipsoid,
    join,
    lattice_noise,
    meet,
    profile,
    spline,
    squircle,
    stroke,
)

_LEVELS = [-90, -75, -60, -40, -20, 0, 20, 40, 55, 66, 74, 80, 84]
_HALF_WIDTH = [38, 46, 56, 66, 73, 75, 74, 68, 58, 46, 33, 19, 4]
_HALF_DEPTH = [36, 46, 58, 76, 90, 94, 93, 86, 74, 59, 43, 25, 5]
_MIDDLE = [34, 32, 26, 12, 3, 0, 0, 1, 2, 3, 3, 3, 3]


def paint_head(c: Canvas, *, atrophy: float) -> None:
    """Paint a head; `atrophy` 0..1 widens sulci and ventricles."""
    x, y, z = c.x, c.y, c.z
    a, b, m = (profile(z, _LEVELS, v) for v in (_HALF_WIDTH, _HALF_DEPTH, _MIDDLE))
    vault = squircle(x, y - m, a, b, 0.12) * 0.93
    slope = profile(z, [20, 50, 84], [1.0, 0.85, 0.55])
    vault = vault * slope  # distances shrink where the dome closes
    _soft_tissue(c, vault)
    # The floor of the skull rises in three steps from the back to the front.
    u = np.abs(x)
    # The wings of the sphenoid curve forwards at the sides.
    back = y + 0.3 * u - 6
    floor = profile(
        back, [-95, -46, -34, -24, -4, 6, 16, 30], [-17, -17, -33, -35, -31, -32, -56, -68]
    )
    bumpy = 2.5 * c.noise(12.0)
    floor = (
        floor + bumpy - np.where(y < 5, np.clip((u - 10) * 0.3, 0, 7) * (back > -36), 0)
    ).astype(np.float32)
    above = (floor - z) * 0.8
    inner = meet(vault + 5.5 + 0.9 * c.noise(40.0), above, blend=6)
    _face(c, vault)
    bone = meet(vault, above - np.where(y < -36, 2.2, 4.0))
    c.paint("bone", bone, label="skull")
    diploe = np.maximum(np.abs(vault + 2.9) - 1.2, above + 6)
    c.paint("diploe", diploe, strength=0.8)
    _base(c)
    c.paint("csf", inner, label="brain")
    _brain(c, inner, atrophy)
    _ventricles(c, atrophy)


def _soft_tissue(c: Canvas, vault: Field) -> None:
    x, y, z = c.x, c.y, c.z
    scalp = vault - 6.5
    face = squircle(
        x, y + 44 + 0.18 * (z + 40), 58.0, profile(z, [-90, -60, -20, 10], [56, 58, 56, 44]), 0.2
    )
    face = np.maximum(face, z - 4)
    neck = squircle(x, y - 20, 52.0, 54.0, 0.1)
    neck = np.maximum(neck, z + 40)
    nose = ellipsoid(x, y, z, (0, -104, -48), (13, 19, 24), (-20, 0, 0))
    skin = join(scalp, face, neck, nose, blend=12)
    c.paint("fat", skin)
    c.paint("skin", np.abs(skin + 1.0) - 1.1, strength=0.85)
    deep = join(vault - 1.0, face + 6, neck + 5, blend=8)
    fibres = 1.0 - 9 * np.abs(c.noise(10.0))
    c.paint("muscle", np.maximum(meet(deep, z + 14), fibres + 0 * deep))
    for side in (-1, 1):
        temporal = ((side * 64.0, -30.0, -6.0), (8.0, 28.0, 38.0))
        c.paint(
            "muscle",
            lambda x, y, z, t=temporal: ellipsoid(x, y, z, *t),
            box=c.ellipsoid_box(*temporal),
        )
        ear = ((side * 80.0, 16.0, -34.0), (10.0, 16.0, 26.0))
        c.paint(
            "skin",
            lambda x, y, z, e=ear: np.abs(ellipsoid(x, y, z, *e)) - 1.6,
            box=c.ellipsoid_box(*ear),
            strength=0.8,
        )


def _face(c: Canvas, vault: Field) -> None:
    """Orbits, nose, sinuses, cheek bones and jaw; the skull base is painted over them."""
    rng = c.rng
    box: Box = ((-INF, INF), (-115, 10), (-100, 12))
    s = c.region(box)
    if s is None:
        return

    def paint(tissue: str, d: Distance, strength: float = 1.0, lab: str | None = None) -> None:
        c.paint(tissue, d, box=box, strength=strength, label=lab)

    for side in (-1, 1):
        orbit = ((side * 32.0, -62.0, -28.0), (20.0, 32.0, 18.0), (0.0, 0.0, side * 18.0))
        paint(
            "bone",
            lambda x, y, z, o=orbit: np.maximum(ellipsoid(x, y, z, *o) - 2.0, -84 - y),
            lab="skull",
        )
        paint("fat", lambda x, y, z, o=orbit: ellipsoid(x, y, z, *o), lab="")
        paint(
            "muscle",
            lambda x, y, z, o=orbit: np.maximum(np.abs(ellipsoid(x, y, z, *o) + 5.5) - 1.4, y + 64),
        )
        nerve = spline([(side * 32, -66, -28), (side * 26, -48, -27), (side * 12, -28, -24)], 8)
        c.pipe("muscle", nerve, 2.4)
        eye = (side * 33.0, -78.0, -28.0)
        for radius, tissue in ((12.5, "eye_wall"), (11.0, "eye")):
            paint(tissue, lambda x, y, z, e=eye, r=radius: ellipsoid(x, y, z, e, (r, r, r)))
        lens = (side * 33.5, -87.0, -28.0)
        paint("lens", lambda x, y, z, e=lens: ellipsoid(x, y, z, e, (4.5, 2.2, 4.5)))
        cheek = spline(
            [
                (side * 36, -84, -52),
                (side * 58, -66, -48),
                (side * 68, -36, -44),
                (side * 68, -8, -42),
            ],
            14,
        )
        c.pipe("bone", cheek, np.linspace(6, 2.8, 14), label="skull")
        antrum = ((side * 29.0, -64.0, -62.0), (17.0, 21.0, 18.0))
        paint("bone", lambda x, y, z, s=antrum: ellipsoid(x, y, z, *s) - 1.8, lab="skull")
        full = 0.25 if rng.random() < 0.25 else 1.0
        paint("mucosa", lambda x, y, z, s=antrum: ellipsoid(x, y, z, *s), lab="")
        paint(
            "air",
            lambda x, y, z, s=antrum, f=full: np.maximum(
                ellipsoid(x, y, z, *s) + 1.2,
                (y + 58) * (1.0 if f < 1 else 0.0) - (0 if f < 1 else 9),
            ),
        )
        jaw = spline([(side * 50, 2, -46), (side * 49, -6, -64), (side * 47, -16, -95)], 10)
        c.pipe("bone", jaw, 5.5, label="skull")
    paint(
        "bone",
        lambda x, y, z: np.maximum(
            stroke(x, y, (0, -92), (0, -34)) - profile(z, [-80, -50, -14], [15, 14, 13]), z + 16
        ),
        lab="skull",
    )
    cells = c.noise(5.0)
    x, y, z = c.coordinates(s)
    full_field = np.full(c.shape, 60, dtype=np.float32)
    airway = stroke(x, y, (0, -90), (0, -30)) - profile(z, [-80, -50, -14], [13.5, 12.5, 11.5])
    walls = np.where(z > -40, 1.2 - 2.6 * np.abs(cells[s]), 0.9 - np.abs(x))
    shells = 2.4 - np.abs(np.abs(x) - 8 + 2.2 * np.sin(z / 4.5 + y / 15))
    walls = np.where(z > -40, walls, np.maximum(walls, np.where(np.abs(y + 62) < 24, shells, -9)))
    full_field[s] = np.maximum(np.maximum(airway, z + 18), walls)
    c.paint("mucosa", np.where(full_field < 50, full_field - 1.4, 60), box=box, label="")
    c.paint("air", full_field, box=box)
    for centre, radii in (
        ((0.0, -28.0, -38.0), (15.0, 13.0, 11.0)),
        ((9.0, -88.0, -4.0), (15.0, 5.0, 12.0)),
        ((-10.0, -88.0, -6.0), (12.0, 5.0, 10.0)),
    ):
        paint("bone", lambda x, y, z, k=centre, r=radii: ellipsoid(x, y, z, k, r) - 2, lab="skull")
        paint(
            "air",
            lambda x, y, z, k=centre, r=radii: np.maximum(
                ellipsoid(x, y, z, k, r), 0.8 - np.abs(x)
            ),
            lab="",
        )
    c.pipe("air", spline([(0, -24, -58), (0, -16, -75), (0, -12, -100)], 6), 10.0)


def _base(c: Canvas) -> None:
    """Petrous bones with air cells, clivus, foramen magnum and first vertebra."""
    box: Box = ((-76, 76), (-35, 70), (-100, -18))
    if c.region(box) is None:
        return
    for side in (-1, 1):
        ridge = spline([(side * 62, 26, -40), (side * 40, 10, -38), (side * 14, -10, -36)], 9)
        c.pipe("bone", ridge, np.linspace(13, 7, 9), label="skull")
        mastoid = ((side * 60.0, 26.0, -52.0), (11.0, 15.0, 22.0))
        c.paint(
            "bone",
            lambda x, y, z, m=mastoid: ellipsoid(x, y, z, *m) - 2,
            box=c.ellipsoid_box(*mastoid),
            label="skull",
        )
        cells = 2.2 - 4.2 * np.abs(c.noise(4.0))
        s = c.region(c.ellipsoid_box(*mastoid))
        if s is not None:
            full = np.full(c.shape, 60, dtype=np.float32)
            full[s] = np.maximum(ellipsoid(*c.coordinates(s), *mastoid), cells[s])
            c.paint("air", full, box=c.ellipsoid_box(*mastoid))
        canal = np.array([(side * 80.0, 6.0, -38.0), (side * 48.0, 4.0, -37.0)])
        c.pipe("air", canal, 3.2)
    c.pipe("bone", spline([(0, -20, -32), (0, -2, -50), (0, 4, -64)], 8), 8.0, label="skull")
    ring = [(30 * np.cos(t), 24 + 26 * np.sin(t), -82.0) for t in np.linspace(0, 2 * np.pi, 20)]
    c.pipe("bone", np.array(ring), 6.0)
    c.pipe("bone", np.array([(0.0, 2.0, -76.0), (0.0, 4.0, -110.0)]), 6.0)
    c.pipe("csf", np.array([(0.0, 24.0, -60.0), (0.0, 24.0, -110.0)]), 13.0)


def _brain(c: Canvas, inner: Field, atrophy: float) -> None:
    rng = c.rng
    box: Box = ((-78, 78), (-98, 98), (-74, 84))
    s = c.region(box)
    if s is None:
        return
    x, y, z = c.coordinates(s)
    u = np.abs(x)
    gap = 1.0 + 2.0 * atrophy
    surface = inner[s] + gap
    radius = np.sqrt((x / 70) ** 2 + (y / 88) ** 2 + ((z - 4) / 74) ** 2) + 0.05
    # Sulci go inwards: the folds are sampled at points pulled towards the surface.
    pull = (0.35 / radius + 0.65).astype(np.float32)
    scale = float(rng.uniform(5.4, 6.4))
    folds = lattice_noise(rng, x * pull, y * pull, z * pull * 0.8, scale)
    sulcus = np.abs(folds) * np.float32(scale * 0.85)
    depth = np.maximum(-surface, 0)
    sulcus = np.sqrt(sulcus**2 + np.maximum(depth - float(rng.uniform(13, 17)), 0) ** 2)
    sheet = np.abs(z + 3 - 0.42 * y) * 0.9
    insula = np.abs(u - 38 + 0.012 * (y + 2) ** 2 - 1.5 * folds)
    operculum = np.maximum(sheet - 0.7 * gap, 36 - u)
    operculum = np.maximum(operculum, np.abs(y + 2) - 34)
    insula = np.maximum(insula, np.maximum(np.abs(y + 2) - 24, np.abs(z - 4) - 15))
    sulcus = join(sulcus, operculum + 0.8, insula - 0.4 * gap)
    callosum = np.sqrt(((y + 2) / 44) ** 2 + ((z - 6) / 24) ** 2)
    fissure = np.maximum(u - 0.5 - 0.5 * gap, (1 - callosum) * 25)
    # Cerebrum ends at the tentorium behind and at the temporal poles below.
    tent = z + 22 - 0.32 * (y - 20) + 0.25 * u
    behind = np.where(
        y > 8, 1.5 - tent, np.where(y > -6, (18 - u) - 8 - np.minimum(z + 14, 0) - 10, -60)
    )
    cerebrum = meet(surface, -fissure + 0.6, behind.astype(np.float32), blend=2)
    taper = np.clip(1.15 - depth / 22, 0, 1)
    opened = sulcus - (0.7 + 1.5 * atrophy) * taper
    white_core = np.minimum(np.minimum(sulcus, -surface), fissure + 0.5) - 3.9 - 0.4 * folds
    mottle = 1 + 0.025 * c.noise(5.0)[s]
    image, labels = c.image[s], c.labels[s]
    grey, white = c.tissue["grey"] * mottle, c.tissue["white"] * mottle
    pixel = 0.5 * (c.spacing[1] + c.spacing[2])
    mix = np.clip(0.5 + white_core / (1.2 * pixel), 0, 1)
    tissue = grey + mix * (white - grey)
    wet = np.clip(0.5 - opened / (1.3 * pixel), 0, 1)
    tissue = tissue + wet * (c.tissue["csf"] - tissue)
    cover = np.clip(0.5 - cerebrum / (1.2 * pixel), 0, 1)
    image += cover * (tissue - image)
    inside = cerebrum < 0
    for name, where in (("grey matter", white_core <= 0), ("white matter", white_core > 0)):
        if name in c.values:
            labels[inside & where & (opened > 0)] = c.values[name]
    falx = np.maximum(np.maximum(u - 0.8, (1.25 - callosum) * 25), surface - 2)
    falx = np.maximum(falx, -np.maximum(z - 2, np.abs(y + 5) - 45))
    full = np.full(c.shape, 60, dtype=np.float32)
    full[s] = falx
    c.paint("dura", full, box=box, strength=0.8)
    _hindbrain(c, surface, tent, s)
    _nuclei(c)


def _hindbrain(c: Canvas, surface: Field, tent: Field, s: tuple[slice, slice, slice]) -> None:
    x, y, z = c.coordinates(s)
    u = np.abs(x)
    full = np.full(c.shape, 60, dtype=np.float32)
    halves = join(
        ellipsoid(u, y, z, (20, 47, -34), (40, 44, 42)),
        ellipsoid(x, y, z, (0, 47, -34), (18, 36, 40)),
        blend=6,
    )
    cerebellum = meet(halves, tent + 2.5, surface + 1, blend=3)
    full[s] = cerebellum
    box: Box = ((-60, 60), (0, 85), (-74, -10))
    c.paint("grey", full, box=box, label="cerebellum")
    if "cerebellum" not in c.values:
        c.labels[s][cerebellum < 0] = c.values.get("brain", c.values.get("grey matter", 0))
    arc = np.sqrt((y - 26) ** 2 + (1.3 * (z + 40)) ** 2 + (0.55 * u) ** 2)
    folia = np.sin(arc * 1.55 + 0.8 * c.noise(9.0)[s])
    full[s] = np.maximum(cerebellum + 2.0, folia * 2 - 0.2)
    c.paint("white", full, box=box, strength=0.45)
    full[s] = np.maximum(cerebellum + 0.5, 1.6 - folia * 2)
    c.paint("csf", full, box=box, strength=0.3)
    full[s] = ellipsoid(u, y, z, (17, 36, -42), (17, 13, 12))
    c.paint("white", full, box=box, strength=0.9)
    stem = spline(
        [(0, 4, -8), (0, 8, -24), (0, 10, -40), (0, 20, -58), (0, 24, -78), (0, 24, -110)], 20
    )
    c.pipe("csf", np.array([(0.0, -14.0, -20.0), (0.0, 4.0, -22.0)]), 13.0)
    c.pipe(
        "white",
        stem,
        np.interp(np.arange(20), [0, 4, 8, 12, 15, 19], [14, 15, 17, 11, 7, 6]),
        label="brain" if "brain" in c.values else "brainstem",
    )
    fourth = ((0.0, 27.0, -38.0), (8.0, 5.0, 10.0))
    c.paint(
        "csf",
        lambda x, y, z: ellipsoid(x, y, z, *fourth),
        box=c.ellipsoid_box(*fourth),
        label="ventricles",
    )


def _nuclei(c: Canvas) -> None:
    name = "grey matter" if "grey matter" in c.values else None
    for side in (-1, 1):
        for centre, radii, turn in (
            ((14.0, -22.0, 11.0), (6.5, 12.0, 9.0), (0.0, 0.0, 18.0)),
            ((26.5, -5.0, 4.0), (6.0, 18.0, 12.0), (0.0, 0.0, 14.0)),
            ((10.5, 13.0, 8.0), (9.0, 15.0, 10.0), (0.0, 0.0, -14.0)),
        ):
            k = (side * centre[0], centre[1], centre[2])
            w = (0.0, 0.0, -side * turn[2])
            c.paint(
                "deep_grey",
                lambda x, y, z, k=k, r=radii, w=w: ellipsoid(x, y, z, k, r, w),
                box=c.ellipsoid_box(k, radii),
                label=name,
            )


def _ventricles(c: Canvas, atrophy: float) -> None:
    rng = c.rng
    wide = 0.8 + 0.75 * atrophy + float(rng.uniform(-0.08, 0.08))
    for side in (-1, 1):
        uneven = wide * float(rng.uniform(0.92, 1.08))
        horn = spline(
            [
                (side * 14, -37, 8),
                (side * 7.5, -22, 15),
                (side * 8.5, 0, 23),
                (side * 15, 20, 23),
                (side * 24, 38, 15),
                (side * 24, 54, 8),
            ],
            26,
        )
        c.pipe(
            "csf",
            horn,
            np.interp(np.arange(26), [0, 4, 12, 20, 25], [3, 4.6, 4.8, 6.2, 2.2]) * uneven,
            label="ventricles",
        )
        low = spline([(side * 25, 38, 13), (side * 33, 26, -6), (side * 33, 2, -18)], 10)
        c.pipe("csf", low, np.linspace(4.5, 1.4, 10) * uneven, label="ventricles")
        plexus = np.array([(side * 22.0, 34.0, 17.0), (side * 24.0, 42.0, 12.0)])
        c.pipe("plexus", plexus, 2.4)

    def third(x: Field, y: Field, z: Field) -> Field:
        return capsule(x * 4 / wide, y, z, (0, -8, -4), (0, 12, 4), 7, 7)

    c.paint("csf", third, box=((-6, 6), (-20, 24), (-14, 14)), label="ventricles")
    c.pipe("pineal", np.array([(0.0, 26.0, 5.0), (0.0, 28.0, 6.0)]), 2.4)
