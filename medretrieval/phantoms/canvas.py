"""A canvas: intensities and labels on a rendering grid, painted shape by shape with soft edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.phantoms.fields import Field, Point, capsule, smooth_noise

Box = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
# Of x, y and z; further arguments have defaults (they bind loop variables).
Distance = Callable[..., Field]
INF = 1e9


class Canvas:
    """Intensities, labels and the anatomical coordinates of every voxel of a rendering grid.

    Anatomical coordinates are LPS millimetres (x to the patient's left, y to the back, z to the
    head) in the frame in which the anatomy is written down; pose, size and natural variation are
    a deformation of them, so that neighbouring organs move together and never collide.

    Attributes:
        x, y, z: float32 coordinates, each broadcastable to `shape`.
        shape: (slices, rows, columns) of the rendering grid.
        spacing: its (slice, row, column) distances in mm.
        image: `shape` float32. labels: `shape` uint8.
        tissue: name -> intensity, the contrast of the modality.
        values: structure name -> label value of the structures that this kind annotates.
    """

    def __init__(
        self,
        coordinates: tuple[Field, Field, Field],
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float],
        *,
        tissue: Mapping[str, float],
        values: Mapping[str, int],
        rng: np.random.Generator,
    ) -> None:
        self.x, self.y, self.z = (c.astype(np.float32, copy=False) for c in coordinates)
        self.shape, self.spacing = shape, spacing
        self.tissue, self.values, self.rng = tissue, values, rng
        self.image: Field = np.full(shape, tissue["air"], dtype=np.float32)
        self.labels: NDArray[np.uint8] = np.zeros(shape, dtype=np.uint8)
        # For every plane of the grid along every axis: the range of x, y and z on it.
        others = ((1, 2), (0, 2), (0, 1))
        self._ranges = []
        for axis in range(3):
            low = [np.broadcast_to(c.min(axis=others[axis]), shape[axis]) for c in coordinates]
            high = [np.broadcast_to(c.max(axis=others[axis]), shape[axis]) for c in coordinates]
            self._ranges.append((np.stack(low), np.stack(high)))

    def region(self, box: Box | None) -> tuple[slice, slice, slice] | None:
        """Smallest index box that surely contains `box` (mm), or None if it lies outside."""
        if box is None:
            return slice(None), slice(None), slice(None)
        low, high = np.array(box, dtype=np.float32).T[..., None]
        found = []
        for n, (smallest, largest) in zip(self.shape, self._ranges, strict=True):
            where = ((smallest <= high) & (largest >= low)).all(axis=0).nonzero()[0]
            if not len(where):
                return None
            # One voxel more on both sides: soft edges reach beyond the shape.
            found.append(slice(max(int(where[0]) - 1, 0), min(int(where[-1]) + 2, n)))
        return found[0], found[1], found[2]

    def coordinates(self, s: tuple[slice, slice, slice]) -> tuple[Field, Field, Field]:
        """x, y, z cut to an index box; axes along which a coordinate is constant keep length 1."""
        return tuple(  # type: ignore[return-value]
            c[tuple(cut if n > 1 else slice(None) for cut, n in zip(s, c.shape, strict=True))]
            for c in (self.x, self.y, self.z)
        )

    def noise(self, scale: float) -> Field:
        """A new smooth random field on the whole grid, control points `scale` mm apart."""
        return smooth_noise(self.rng, self.shape, self.spacing, scale)

    @cached_property
    def grain(self) -> Field:
        """One fine random field (4 mm) that all mottled tissues share: they never overlap."""
        return self.noise(4.0)

    def paint(
        self,
        value: str | float | Field,
        shape: Distance | Field,
        *,
        box: Box | None = None,
        label: str | None = None,
        soft: float = 1.0,
        strength: float = 1.0,
    ) -> None:
        """Lay a shape over what is there.

        The edge is one pixel wide in plane, and wider where the surface is oblique to the slice:
        the partial volume of thick slices.

        Args:
            value: tissue name, number, or a field on the whole grid.
            shape: signed distance (mm, negative inside), as a function of x, y, z that is
                evaluated inside `box`, or as a field on the whole grid.
            box: (x, y, z) bounds in mm of the shape; None is everywhere.
            label: structure name. None leaves labels as they are; a name that this kind does
                not annotate clears them.
            soft: width of the edge in pixels.
            strength: opacity, 0..1.
        """
        s = self.region(box)
        if s is None:
            return
        target = self.image[s]
        d = shape(*self.coordinates(s)) if callable(shape) else shape[s]
        if d.shape != target.shape:
            d = np.broadcast_to(d, target.shape)
        width: Any = np.float32(soft * 0.5 * (self.spacing[1] + self.spacing[2]))
        if len(d) > 1:
            slope = np.empty_like(d)
            np.subtract(d[1:], d[:-1], out=slope[:-1])
            slope[-1] = slope[-2]
            limit = np.float32(self.spacing[0])
            np.minimum(np.maximum(slope, -limit, out=slope), limit, out=slope)
            width = np.sqrt(slope * slope + width * width)
        cover = np.float32(0.5) - d / width
        np.minimum(np.maximum(cover, 0, out=cover), 1, out=cover)
        if strength != 1.0:
            cover *= np.float32(strength)
        paint: Any = self.tissue[value] if isinstance(value, str) else value
        if isinstance(paint, np.ndarray):
            paint = paint[s]
        target += cover * (paint - target)
        if label is not None:
            self.labels[s][d < 0] = self.values.get(label, 0)

    def ellipsoid_box(self, centre: Point, radii: Point) -> Box:
        """Box of an ellipsoid however it is turned."""
        r = max(radii)
        return tuple((c - r, c + r) for c in centre)  # type: ignore[return-value]

    def tubes(
        self,
        value: str | float | Field,
        segments: NDArray[np.float64],
        radii: NDArray[np.float64],
        *,
        label: str | None = None,
        strength: float = 1.0,
    ) -> None:
        """Paint tapered segments (n, 2, 3) with radii (n, 2), in mm."""
        for (p, q), (r0, r1) in zip(segments.tolist(), radii.tolist(), strict=True):
            r = max(r0, r1)
            box: Any = tuple((min(a, b) - r, max(a, b) + r) for a, b in zip(p, q, strict=True))

            def distance(
                x: Field, y: Field, z: Field, p: Any = p, q: Any = q, r0: float = r0, r1: float = r1
            ) -> Field:
                return capsule(x, y, z, p, q, r0, r1)

            self.paint(value, distance, box=box, label=label, strength=strength)

    def pipe(
        self,
        value: str | float | Field,
        points: NDArray[np.float64],
        radius: float | Sequence[float] | NDArray[np.float64],
        *,
        label: str | None = None,
        strength: float = 1.0,
    ) -> None:
        """Paint a tube along the polyline `points` (n, 3); one radius or one a point."""
        r = np.broadcast_to(np.asarray(radius, dtype=float), (len(points),))
        segments = np.stack([points[:-1], points[1:]], axis=1)
        self.tubes(value, segments, np.stack([r[:-1], r[1:]], 1), label=label, strength=strength)
