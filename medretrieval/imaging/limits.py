"""What a file may claim, and what its voxels must be, before anything else is done with them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import InputError, UsageError

ENVIRONMENT = "MEDRETRIEVAL_MAX_BYTES"
DEFAULT_MAX_BYTES = 3 << 29  # 1.5 GiB
# No deflate stream expands by more than this (zlib's documentation, "Maximum Expansion Factor").
DEFLATE_RATIO = 1032


def max_bytes() -> int:
    """Return the largest number of bytes that the voxels of one input may take.

    1.5 GiB unless the environment variable MEDRETRIEVAL_MAX_BYTES says otherwise.

    Raises:
        UsageError: the variable is not a positive whole number.
    """
    text = os.environ.get(ENVIRONMENT, "").strip()
    if not text:
        return DEFAULT_MAX_BYTES
    if not text.isdecimal() or int(text) == 0:
        raise UsageError(
            f"{ENVIRONMENT} is {text!r}, but must be a positive whole number of bytes; "
            f"unset it for the default of {DEFAULT_MAX_BYTES}"
        )
    return int(text)


def size_text(nbytes: int) -> str:
    """Return a size for messages.

    >>> size_text(3 << 29)
    '1610.6 MB'
    >>> size_text(8192)
    '8192 bytes'
    """
    return f"{nbytes} bytes" if nbytes < 100_000 else f"{nbytes / 1e6:.1f} MB"


def check_claim(nbytes: int, what: str) -> None:
    """Refuse a header that claims more voxels than the limit, before they are allocated.

    Args:
        nbytes: size of the voxels by the header, or of a decompressed file.
        what: the file's name for the message.

    Raises:
        InputError: the claim is above `max_bytes`.
    """
    limit = max_bytes()
    if nbytes > limit:
        raise InputError(
            f"{what} claims {size_text(nbytes)} of voxels, more than the limit of "
            f"{size_text(limit)}; crop or resample it, or raise the limit with {ENVIRONMENT}"
        )


def check_channel(channel: int, count: int, what: str, kind: str = "channel") -> None:
    """Refuse a channel that the image does not have.

    Raises:
        UsageError: `channel` is not in 0..count-1.
    """
    if not 0 <= channel < count:
        have = f"{count} {kind}s (0..{count - 1})" if count > 1 else f"one {kind} (0)"
        raise UsageError(f"{kind} {channel} of {what} does not exist; it has {have}")


def check_voxels(voxels: NDArray[Any], what: str) -> None:
    """Refuse voxels that nothing can be searched with.

    Args:
        voxels: (X, Y, Z) or (X, Y, Z, 3) real numbers.
        what: the file's name for the message.

    Raises:
        InputError: no voxels, NaN or infinite ones, or all of the same value.
    """
    if voxels.size == 0:
        raise InputError(f"{what} is empty: an axis of its image has no voxels; export it again")
    if voxels.dtype.kind == "f":
        # Plane by plane, so that the check never holds a mask as long as the volume.
        bad = sum(
            int(voxels[:, :, z].size - np.isfinite(voxels[:, :, z]).sum())
            for z in range(voxels.shape[2])
        )
        if bad:
            raise InputError(
                f"{what} has {bad} of {voxels.size} voxels that are NaN or infinite; images must "
                "be finite everywhere: replace these voxels (for example with the background)"
            )
    low = voxels.min()
    if low == voxels.max():
        raise InputError(
            f"{what} is constant: every voxel is {low}; there is nothing to search or segment. "
            "Check that the export worked and that this is the image, not an empty mask"
        )


def as_float32(voxels: NDArray[Any], what: str) -> NDArray[np.float32]:
    """Return real voxels as float32.

    Raises:
        InputError: a finite value is beyond the range of float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        out = voxels.astype(np.float32, copy=False)
    if voxels.dtype.itemsize > 4 and bool(np.isinf(out).any()) and bool(np.isfinite(voxels).all()):
        raise InputError(
            f"{what} has values beyond +-3.4e38, which is not a plausible image; rescale it"
        )
    return out


def rescale(voxels: NDArray[Any], slope: float, intercept: float, what: str) -> NDArray[Any]:
    """Return `voxels * slope + intercept`: as stored if that changes nothing, else float32.

    Raises:
        InputError: slope or intercept is not finite, or the result is beyond float32.
    """
    if not (np.isfinite(slope) and np.isfinite(intercept)):
        raise InputError(
            f"{what} has a scaling that is not a number (slope {slope}, intercept {intercept}); "
            "its intensities are unknown: set both in the header (1 and 0 for none)"
        )
    if slope == 1 and intercept == 0:
        return voxels
    out = np.empty(voxels.shape, np.float32, order="F")
    with np.errstate(over="ignore", invalid="ignore"):
        for z in range(voxels.shape[2]):
            out[:, :, z] = voxels[:, :, z].astype(np.float64) * slope + intercept
    if voxels.dtype.kind in "iu" and not bool(np.isfinite(out).all()):
        raise InputError(f"{what} is scaled beyond +-3.4e38, which is not plausible; rescale it")
    return out
