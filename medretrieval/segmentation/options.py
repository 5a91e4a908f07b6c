"""How a segmentation is done: choices with defaults per network, checked in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import isfinite
from numbers import Integral, Real
from typing import Any, Literal, TypedDict, cast, get_args

from medretrieval.errors import UsageError, unknown_name
from medretrieval.segmentation.crop import Box

CropPolicy = Literal["none", "body", "supports", "body+supports"]
Pointers = Literal["equal", "rank"]
Propagation = Literal["none", "both"]
Keep = Literal["all", "largest"]
Axis = Literal["index", "best"]
Precision = Literal["float32", "bfloat16"]
MemoryTokens = Literal["all", "pooled", "foreground"]
Tiles = int | Literal["auto"]

MOST_TILES = 16  # along a side; the time grows with the square


class OptionChanges(TypedDict, total=False):
    """Keyword arguments that change single options of a segmenter for one call."""

    crop: CropPolicy | Box
    crop_margin: float
    flips: bool
    closer: bool
    tiles: Tiles
    threshold: float
    negatives: bool
    pointers: Pointers
    memory: MemoryTokens


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions:
    """How supports and query are shown to the network, and how supports are told apart.

    Attributes:
        crop: what of supports and query alike the network sees; outside everything is background.
            "none": whole pictures. "body": of each picture the part that shows the body.
            "supports": the part of the picture, in relative coordinates, where the supports show
            the structures. "body+supports": the same part of each picture's body. Or a `Box`.
        crop_margin: what "supports" adds on every side, as a fraction of the box's own side.
        flips: also segment the mirrored query from mirrored supports and average the logits.
        closer: segment every label that was found once more, in a crop around itself, which may
            reach out of the first crop; see `closer.look_closer`. No effect where the crop is a
            `Box` of one's own.
        tiles: along a side of the part where the supports show a label, which is then segmented
            tile by tile, at most `MOST_TILES`; see `tiles.look_in_tiles`. "auto": as many as a
            label needs that is thin for the network's output, 1: none. No effect where the crop is
            a `Box` of one's own.
        threshold: the probability from which a pixel counts as the label's. Dice is largest not at
            one half but at half of the Dice that can be reached (Lipton, Elkan and
            Naryanaswamy, "Optimal thresholding of classifiers to maximize F1 measure", 2014), so a
            network that is often unsure should have a lower one.
        negatives: supports that do not show a label become memories of its absence (mask all
            zero); otherwise such supports are left out for that label.
        pointers: the frame distance that SAM 2's object pointers carry. "equal": the same for all
            supports, so the result does not depend on their order. "rank": the supports are
            frames 0, 1, ... in the order given and the query is the next frame, as
            `SAM2VideoPredictor` would have it; the last support is the nearest. No effect on a
            network without object pointers (`sam2-micro`).
        memory: what of the supports' memories the query is compared with. "all": every token, as
            SAM 2 does. "foreground": every token of the label and next to it, and means of 2 x 2
            neighbours elsewhere; an approximation for many supports at a high resolution. "pooled":
            means of 2 x 2 neighbours everywhere, a quarter of the tokens; for networks that were
            trained with it, such as EfficientTAM's `_1`, and a coarse approximation for others.
            `tokens` tells what they compute.

    Raises:
        UsageError: a value is not one of these, or of another type.
    """

    crop: CropPolicy | Box = "none"
    crop_margin: float = 1.0
    flips: bool = False
    closer: bool = False
    tiles: Tiles = 1
    threshold: float = 0.5
    negatives: bool = True
    pointers: Pointers = "equal"
    memory: MemoryTokens = "all"

    def __post_init__(self) -> None:
        if not isinstance(self.crop, Box):
            _one_of("crop", self.crop, get_args(CropPolicy), " or a Box")
        _one_of("pointers", self.pointers, get_args(Pointers))
        _one_of("memory", self.memory, get_args(MemoryTokens))
        for name in ("flips", "closer", "negatives"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} {getattr(self, name)!r}: expected true or false")
        if self.tiles != "auto" and not (
            _is_a(Integral, self.tiles) and 1 <= self.tiles <= MOST_TILES
        ):
            raise UsageError(
                f"tiles {self.tiles!r}: expected 'auto' or a whole number from 1 to {MOST_TILES}"
            )
        if not (_is_a(Real, self.threshold) and 0 < self.threshold < 1):
            raise UsageError(f"threshold {self.threshold!r}: expected a number between 0 and 1")
        margin = self.crop_margin
        if not (_is_a(Real, margin) and isfinite(margin) and margin >= 0):
            raise UsageError(f"crop_margin {margin!r}: expected a finite number, 0 or more")

    def changed(self, changes: OptionChanges) -> SegmentationOptions:
        """Return these options with some of them changed."""
        return replace(self, **changes)


def read_options(values: Any) -> OptionChanges:
    """Options from outside of the program, such as from JSON.

    Args:
        values: option -> value; options that are missing stay as the segmenter has them.

    Raises:
        UsageError: it is no mapping, has an option that there is not, or a value is not as
            `SegmentationOptions` wants it.

    >>> read_options({"crop": "body", "tiles": "auto"})
    {'crop': 'body', 'tiles': 'auto'}
    """
    known = [field.name for field in fields(SegmentationOptions)]
    if not isinstance(values, Mapping):
        raise UsageError(
            f"options {values!r}: expected names with values, such as {{'closer': True}}; "
            f"known: {', '.join(known)}"
        )
    for name in values:
        if name not in known:
            raise unknown_name("option", str(name), known, None)
    SegmentationOptions(**values)
    return cast(OptionChanges, dict(values))


@dataclass(frozen=True, kw_only=True)
class VolumeOptions:
    """How the slices of a volume make one label map.

    Attributes:
        propagation: "none" (every slice by itself) or "both" (from the most confident slice
            outwards in both directions, see `propagation.propagate`). No difference to one slice.
        neighbours: with propagation, how many slices segmented just before are shown to the network
            beside the supports of a slice.
        keep: of each label, "all" that was found or only the "largest" connected component; see
            `cleanup.largest_components`.
        axis: "index" (slices as the index's policy has them) or "best" (across the axis whose
            slices have the finest pixels; see `volume.slicing`).

    Raises:
        UsageError: a value is not one of these.
    """

    propagation: Propagation = "both"
    neighbours: int = 2
    keep: Keep = "all"
    axis: Axis = "index"

    def __post_init__(self) -> None:
        _one_of("propagation", self.propagation, get_args(Propagation))
        _one_of("keep", self.keep, get_args(Keep))
        _one_of("axis", self.axis, get_args(Axis))
        if self.neighbours < 1:
            raise UsageError(f"neighbours {self.neighbours}: expected a whole number, 1 or more")


def _is_a(kind: type, value: Any) -> bool:
    """Whether a value is a number of this kind; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _one_of(name: str, value: Any, known: tuple[str, ...], more: str = "") -> None:
    if value not in known:
        raise UsageError(f"{name} {value!r}: expected {' or '.join(map(repr, known))}{more}")


VOLUME_DEFAULTS = VolumeOptions()
