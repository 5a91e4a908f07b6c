"""One recipe for each kind of phantom: scanner settings, patient, painting, scanning, storing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.phantoms import tissues
from medretrieval.phantoms.abdomen import paint_abdomen
from medretrieval.phantoms.canvas import Canvas
from medretrieval.phantoms.chest import paint_chest
from medretrieval.phantoms.head import paint_head
from medretrieval.phantoms.heart import paint_heart
from medretrieval.phantoms.knee import paint_knee
from medretrieval.phantoms.pelvis import paint_pelvis
from medretrieval.phantoms.radiograph import angiogram, project_chest
from medretrieval.phantoms.scanner import Frame, pose, scan_ct, scan_mr, to_file_axes
from medretrieval.phantoms.trunk import Trunk
from medretrieval.types import Grid

Values = Mapping[str, int]
Rng = np.random.Generator
AXIAL_CODES = ("LPS", "RAS", "LAS", "RPS", "LPI", "LAI")
SAGITTAL_CODES = ("PSR", "PIR", "ASL", "PSL", "AIR")


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawing:
    """Stored image and labels (X, Y, Z), and their grid."""

    image: NDArray[Any]
    labels: NDArray[np.uint8]
    grid: Grid


def _frame(
    rng: Rng,
    quick: bool,
    *,
    view: str = "axial",
    sides: tuple[int, ...],
    fov: tuple[float, float],
    length: tuple[float, float],
    thickness: tuple[float, ...],
    centre: tuple[float, float, float],
    stray: float = 8.0,
) -> Frame:
    """Draw a scanner's grid: pixels a side, field of view, covered length, slice distance in mm."""
    n = int(rng.choice(sides))
    side = float(rng.uniform(*fov))
    step = float(rng.choice(thickness))
    slices = max(round(float(rng.uniform(*length)) / step), 4)
    if quick:
        n, slices, step = n // 2, max(slices // 2, 4), step * slices / max(slices // 2, 4)
    spacing = (round(step, 3), round(side / n, 4), round(side / n, 4))
    at = tuple(c + s for c, s in zip(centre, rng.normal(0, stray, 3) * (1, 0.6, 0.8), strict=True))
    return Frame(view=view, shape=(slices, n, n), spacing=spacing, centre=at)


def _store(rng: Rng, frame: Frame, canvas: Canvas, image: NDArray[Any], oblique: float) -> Drawing:
    codes = SAGITTAL_CODES if frame.view == "sagittal" else AXIAL_CODES
    angles = rng.normal(0, oblique, 3) if oblique else np.zeros(3)
    shift = np.round(rng.normal(0, 60, 3), 2)
    stored, labels, grid = to_file_axes(
        frame,
        (image, canvas.labels),
        str(rng.choice(codes)),
        oblique=tuple(angles),
        shift=tuple(shift),
    )
    return Drawing(image=stored, labels=labels.astype(np.uint8), grid=grid)


def _trunk(
    rng: Rng,
    frame: Frame,
    values: Values,
    tissue: tissues.Tissue,
    *,
    female: bool,
    turn: float = 2.5,
) -> tuple[Canvas, Trunk]:
    size = (
        float(rng.uniform(0.92, 1.09)),
        float(rng.uniform(0.92, 1.1)),
        float(rng.uniform(0.95, 1.06)),
    )
    xyz = pose(
        rng, frame, size=size, turn=float(rng.normal(0, turn)), about=(0, 0, frame.centre[2])
    )
    canvas = Canvas(xyz, frame.shape, frame.spacing, tissue=tissue, values=values, rng=rng)
    trunk = Trunk(canvas, fat=min(float(rng.gamma(4, 4.0) + 5), 40.0), female=female)
    trunk.paint_walls()
    return canvas, trunk


def _table(
    frame: Frame, image: NDArray[np.float32], floor: NDArray[np.bool_], depth: float
) -> None:
    """Draw the couch under the patient: a curved shell of plastic, foam inside.

    Args:
        floor: (slices, rows, columns) where the body is.
        depth: how far (mm) the couch sags in the middle against its rims.
    """
    rows = np.flatnonzero(floor.any(axis=(0, 2)))
    x = (np.arange(frame.shape[2]) - (frame.shape[2] - 1) / 2) * frame.spacing[2]
    y = (np.arange(frame.shape[1]) - rows[-1] - 1) * frame.spacing[1] - 3.0
    surface = y[:, None] + depth * (x[None, :] / 200) ** 2
    pixel = frame.spacing[1]
    plastic = np.zeros(surface.shape, dtype=np.float32)
    for at, thick in ((0.0, 3.0), (26.0 + depth * 0.3, 3.0)):
        plastic += np.clip(0.5 + (thick / 2 - np.abs(surface - at)) / pixel, 0, 1)
    foam = np.clip(0.5 + surface / pixel, 0, 1) * np.clip(0.5 + (27 - surface) / pixel, 0, 1)
    rim = np.clip(215 - np.abs(x), 0, 1)[None, :]
    new = -1000 + (60 * foam + 820 * np.clip(plastic, 0, 1)) * rim
    np.copyto(image, np.maximum(image, new), where=~floor)


def _ct(rng: Rng, frame: Frame, canvas: Canvas, noise: tuple[float, float], sag: float) -> Drawing:
    _table(frame, canvas.image, canvas.image > -400, sag)
    image = scan_ct(
        rng, canvas.image, noise=float(rng.uniform(*noise)), sharpness=float(rng.uniform(0.3, 0.8))
    )
    return _store(rng, frame, canvas, image, 0.0)


def _mr(rng: Rng, frame: Frame, canvas: Canvas, *, bias: float, ghost: float = 0.0) -> Drawing:
    image = scan_mr(
        rng,
        canvas.image,
        frame.spacing,
        noise=float(rng.uniform(0.012, 0.035)),
        bias=float(rng.uniform(0.4, 1.3)) * bias,
        gain=float(np.exp(rng.uniform(np.log(250), np.log(2200)))),
        ghost=ghost * float(rng.random()),
        sharpness=float(rng.uniform(0.3, 0.7)),
    )
    return _store(rng, frame, canvas, image, 4.0)


def ct_head(rng: Rng, values: Values, quick: bool) -> Drawing:
    frame = _frame(
        rng,
        quick,
        sides=(176, 192, 208),
        fov=(215, 250),
        length=(140, 160),
        thickness=(5.0, 5.5, 6.0),
        centre=(0, -4, 6),
        stray=4,
    )
    canvas = _head(rng, frame, values, tissues.ct_head(rng))
    return _ct(rng, frame, canvas, (2.0, 4.5), 70.0)


def mr_brain(rng: Rng, values: Values, quick: bool) -> Drawing:
    frame = _frame(
        rng,
        quick,
        sides=(176, 192, 208),
        fov=(220, 250),
        length=(135, 155),
        thickness=(5.0, 5.5, 6.0),
        centre=(0, -2, 8),
        stray=4,
    )
    canvas = _head(rng, frame, values, tissues.mr_t1_head(rng))
    return _mr(rng, frame, canvas, bias=0.15)


def _head(rng: Rng, frame: Frame, values: Values, tissue: tissues.Tissue) -> Canvas:
    size = tuple(rng.uniform(0.93, 1.06, 3).tolist())
    tilt = (float(rng.normal(0, 5)), float(rng.normal(0, 1.5)))
    xyz = pose(
        rng, frame, size=size, turn=float(rng.normal(0, 4)), tilt=tilt, warp=1.8, warp_scale=55.0
    )
    canvas = Canvas(xyz, frame.shape, frame.spacing, tissue=tissue, values=values, rng=rng)
    paint_head(canvas, atrophy=float(rng.uniform(0, 1)))
    return canvas


def ct_chest(rng: Rng, values: Values, quick: bool) -> Drawing:
    frame = _frame(
        rng,
        quick,
        sides=(192, 208, 224),
        fov=(360, 410),
        length=(270, 300),
        thickness=(10.0, 12.0),
        centre=(0, 8, 168),
    )
    canvas, trunk = _trunk(rng, frame, values, tissues.ct_trunk(rng), female=rng.random() < 0.5)
    paint_abdomen(trunk)
    paint_chest(trunk)
    trunk.paint_spine()
    trunk.paint_ribs()
    return _ct(rng, frame, canvas, (6.0, 16.0), 18.0)


def _abdomen(
    rng: Rng, quick: bool, values: Values, tissue: tissues.Tissue, thickness: tuple[float, ...]
) -> tuple[Frame, Canvas]:
    frame = _frame(
        rng,
        quick,
        sides=(192, 208, 224),
        fov=(350, 410),
        length=(205, 235),
        thickness=thickness,
        centre=(0, 4, 14),
        stray=6,
    )
    canvas, trunk = _trunk(rng, frame, values, tissue, female=rng.random() < 0.5)
    paint_chest(trunk)
    paint_abdomen(trunk)
    paint_pelvis(trunk)
    trunk.paint_spine()
    trunk.paint_ribs()
    return frame, canvas


def ct_abdomen(rng: Rng, values: Values, quick: bool) -> Drawing:
    frame, canvas = _abdomen(rng, quick, values, tissues.ct_trunk(rng), (8.0, 10.0))
    return _ct(rng, frame, canvas, (6.0, 14.0), 18.0)


def mr_abdomen(rng: Rng, values: Values, quick: bool) -> Drawing:
    fat = float(rng.choice([0.14, 0.14, 0.6]))
    tissue = tissues.mr_t2_trunk(rng, fat=fat)
    frame, canvas = _abdomen(rng, quick, values, tissue, (8.0, 9.0))
    return _mr(rng, frame, canvas, bias=0.3, ghost=0.06)


def ct_pelvis(rng: Rng, values: Values, quick: bool) -> Drawing:
    frame = _frame(
        rng,
        quick,
        sides=(192, 208, 224),
        fov=(380, 420),
        length=(185, 215),
        thickness=(8.0, 10.0),
        centre=(0, 8, -205),
        stray=5,
    )
    canvas, trunk = _trunk(rng, frame, values, tissues.ct_trunk(rng), female=rng.random() < 0.5)
    paint_pelvis(trunk)
    paint_abdomen(trunk)
    trunk.paint_spine()
    return _ct(rng, frame, canvas, (6.0, 14.0), 18.0)


def mr_prostate(rng: Rng, values: Values, quick: bool) -> Drawing:
    frame = _frame(
        rng,
        quick,
        sides=(176, 192, 208),
        fov=(190, 230),
        length=(75, 95),
        thickness=(3.5, 4.0),
        centre=(0, 4, -246),
        stray=4,
    )
    tissue = tissues.mr_t2_trunk(rng, fat=float(rng.uniform(0.55, 0.8)))
    canvas, trunk = _trunk(rng, frame, values, tissue, female=False)
    paint_pelvis(trunk)
    return _mr(rng, frame, canvas, bias=0.25)


def mr_heart(rng: Rng, values: Values, quick: bool) -> Drawing:
    frame = _frame(
        rng,
        quick,
        sides=(176, 192, 208),
        fov=(280, 350),
        length=(92, 108),
        thickness=(8.0, 9.0, 10.0),
        centre=(8, 4, 0),
        stray=5,
    )
    size = tuple(rng.uniform(0.9, 1.12, 3).tolist())
    xyz = pose(rng, frame, size=size, turn=float(rng.normal(0, 14)), warp=3.0)
    canvas = Canvas(
        xyz, frame.shape, frame.spacing, tissue=tissues.mr_cine(rng), values=values, rng=rng
    )
    paint_heart(
        canvas,
        contraction=float(rng.random()),
        thick=float(rng.uniform(7.5, 13)),
        right=float(rng.uniform(0.8, 1.2)),
        fat=float(rng.uniform(8, 30)),
    )
    return _mr(rng, frame, canvas, bias=0.35, ghost=0.05)


def mr_knee(rng: Rng, values: Values, quick: bool) -> Drawing:
    frame = _frame(
        rng,
        quick,
        view="sagittal",
        sides=(176, 192, 208),
        fov=(145, 180),
        length=(92, 104),
        thickness=(4.0, 4.5),
        centre=(0, 2, 4),
        stray=4,
    )
    size = tuple(rng.uniform(0.92, 1.1, 3).tolist())
    x, y, z = pose(rng, frame, size=size, turn=float(rng.normal(0, 5)), warp=1.5, warp_scale=50.0)
    if rng.random() < 0.5:  # a right knee
        x = -x
    canvas = Canvas(
        (x, y, z), frame.shape, frame.spacing, tissue=tissues.mr_knee(rng), values=values, rng=rng
    )
    paint_knee(canvas, effusion=float(rng.uniform(0, 1)))
    return _mr(rng, frame, canvas, bias=0.3)


def _picture(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Drawing:
    stored, marks = (np.ascontiguousarray(a.T[..., None]) for a in (image, labels))
    shape = (stored.shape[0], stored.shape[1], 1)
    grid = Grid(shape=shape, affine=np.diag([-1.0, -1.0, 1.0, 1.0]), spacing_known=False)
    return Drawing(image=stored, labels=marks, grid=grid)


def xr_chest(rng: Rng, values: Values, quick: bool) -> Drawing:
    n = 112 if quick else 192
    side = float(rng.uniform(315, 355))
    frame = Frame(
        view="coronal",
        shape=(23, n, n),
        spacing=(11.0, side / n, side / n),
        centre=(float(rng.normal(0, 6)), 8.0, 160 + float(rng.normal(0, 8))),
    )
    canvas, trunk = _trunk(
        rng,
        frame,
        values,
        tissues.film(tissues.ct_trunk(rng)),
        female=rng.random() < 0.4,
    )
    paint_abdomen(trunk, bowel=False)
    paint_chest(trunk, arms=False)
    trunk.paint_spine()
    trunk.paint_ribs()
    picture, labels = project_chest(
        rng, canvas.image, canvas.labels, frame.spacing[0], size=n if quick else 2 * n
    )
    return _picture(picture, labels)


def xa_coronary(rng: Rng, values: Values, quick: bool) -> Drawing:
    return _picture(*angiogram(rng, "coronary", 256 if quick else 512))


def xa_cerebral(rng: Rng, values: Values, quick: bool) -> Drawing:
    return _picture(*angiogram(rng, "cerebral", 256 if quick else 512))
