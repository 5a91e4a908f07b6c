"""From stored intensities to 8 bit, by a named policy that an index keeps for its queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import unknown_name

# Percentiles of more voxels than this are taken of every n-th voxel in memory order (n fixed by
# the size), which is deterministic and leaves tens of thousands of voxels in each tail.
MAX_SAMPLES = 1 << 23
PERCENTILES = (0.5, 99.5)
HU_AIR = -500.0


@dataclass(frozen=True, kw_only=True)
class IntensityPolicy:
    """How intensities become 0..255.

    Attributes:
        kind: "window" (fixed limits), "percentile" (limits from the volume), "identity" (8-bit
            pictures as they are) or "auto" (one of these, decided from the voxels).
        centre, width: of the window in Hounsfield units, for kind "window".
        description: one line for lists.
    """

    kind: str
    description: str
    centre: float = 0.0
    width: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Window:
    """A policy decided for one volume: intensities `low`..`high` become 0..255.

    Attributes:
        policy: name of the policy that it comes from, never "auto".
        low, high: limits; equal if the volume is constant, which then becomes 0 throughout.
    """

    policy: str
    low: float
    high: float


# Centres and widths are the presets in common use in radiology (e.g. radiopaedia.org,
# "Windowing (CT)"); ct-wide spans air to dense bone.
POLICIES: Mapping[str, IntensityPolicy] = {
    "ct-lung": IntensityPolicy(
        kind="window", centre=-600, width=1500, description="CT lung: -1350..150 HU"
    ),
    "ct-mediastinum": IntensityPolicy(
        kind="window", centre=50, width=350, description="CT mediastinum: -125..225 HU"
    ),
    "ct-abdomen": IntensityPolicy(
        kind="window", centre=40, width=400, description="CT abdomen: -160..240 HU"
    ),
    "ct-bone": IntensityPolicy(
        kind="window", centre=400, width=1800, description="CT bone: -500..1300 HU"
    ),
    "ct-brain": IntensityPolicy(
        kind="window", centre=40, width=80, description="CT brain: 0..80 HU"
    ),
    "ct-wide": IntensityPolicy(
        kind="window", centre=0, width=2000, description="CT wide: -1000..1000 HU"
    ),
    "percentile": IntensityPolicy(
        kind="percentile", description="percentiles 0.5..99.5 of the volume"
    ),
    "identity": IntensityPolicy(
        kind="identity", description="values 0..255 as they are, others cut off"
    ),
    "auto": IntensityPolicy(
        kind="auto",
        description="8-bit pictures: identity; air at -500 or less: ct-wide; else percentile",
    ),
}


def _sample(voxels: NDArray[Any]) -> NDArray[Any]:
    flat = voxels.ravel(order="K")
    return flat[:: max(1, -(-flat.size // MAX_SAMPLES))]


def _is_picture(voxels: NDArray[Any]) -> bool:
    """8-bit colour, or 8-bit grey of a single slice; (X, Y) and (X, Y, Z[, 3]) alike."""
    return voxels.dtype == np.uint8 and (voxels.ndim != 3 or 1 in voxels.shape)


def resolve_window(voxels: NDArray[Any], policy: str) -> Window:
    """Decide the limits of `policy` for a whole volume.

    "auto" looks at nothing but the voxels, so that the same image gets the same limits whichever
    file format it comes in.

    Args:
        voxels: (X, Y, Z) real numbers or (X, Y, Z, 3) uint8, not empty.
        policy: a name of `POLICIES`.

    Raises:
        UsageError: unknown policy.
    """
    if policy not in POLICIES:
        raise unknown_name("intensity policy", policy, POLICIES, "medretrieval build --help")
    chosen = POLICIES[policy]
    if chosen.kind == "window":
        half = chosen.width / 2
        return Window(policy=policy, low=chosen.centre - half, high=chosen.centre + half)
    if chosen.kind == "identity" or (chosen.kind == "auto" and _is_picture(voxels)):
        return Window(policy="identity", low=0.0, high=255.0)
    sample = _sample(voxels)
    low, high = (float(x) for x in np.percentile(sample, PERCENTILES))
    if chosen.kind == "auto" and low <= HU_AIR:
        return resolve_window(voxels, "ct-wide")
    if not low < high:
        # More than 99 % of the voxels are of one value: what differs is what matters.
        low, high = float(voxels.min()), float(voxels.max())
    return Window(policy="percentile", low=low, high=high)


def apply_window(voxels: NDArray[Any], window: Window | str) -> NDArray[np.uint8]:
    """Map intensities to 8 bit: `low` and below to 0, `high` and above to 255, linear between.

    Args:
        voxels: real numbers of any shape and dtype.
        window: limits, or the name of a policy that is decided from these voxels themselves.

    Returns:
        uint8 of the same shape; a copy.

    Raises:
        UsageError: unknown policy name.
    """
    if isinstance(window, str):
        window = resolve_window(voxels, window)
    if window.policy == "identity" and voxels.dtype == np.uint8:
        return voxels.copy()
    if not window.low < window.high:
        return np.zeros(voxels.shape, np.uint8)
    # Halved before subtracting: the span of float64 limits may exceed the largest float64.
    low, high = window.low / 2, window.high / 2
    # float32 holds every 16-bit integer exactly; wider types need float64.
    small = voxels.dtype == np.float32 or (voxels.dtype.kind in "biu" and voxels.itemsize <= 2)
    values: NDArray[np.floating[Any]] = voxels.astype(np.float32 if small else np.float64)
    np.clip(values, window.low, window.high, out=values)
    values *= 0.5
    values -= low
    values /= high - low
    values *= 255
    values += 0.5
    # The conversion cuts off the fraction, so the half added above rounds to the nearest.
    return np.clip(values, 0, 255, out=values).astype(np.uint8)
