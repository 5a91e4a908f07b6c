"""What a visitor chose about how to segment, and what the library is asked because of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from medretrieval.pipeline import DEFAULT_SUPPORT_K
from medretrieval.segmentation.options import VOLUME_DEFAULTS, OptionChanges, VolumeOptions
from medretrieval.segmentation.registry import DEFAULT_SEGMENTER

# Of each control the value that changes nothing. "" leaves a choice to the segmenter.
DEFAULTS: Mapping[str, Any] = {
    "segmenter": DEFAULT_SEGMENTER,
    "support_k": DEFAULT_SUPPORT_K,
    "structures": [],
    "one_set": False,
    "negatives": True,
    "propagate": VOLUME_DEFAULTS.propagation == "both",
    "largest": VOLUME_DEFAULTS.keep == "largest",
    "best_axis": VOLUME_DEFAULTS.axis == "best",
    "crop": "",
    "memory": "",
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How to segment.

    Attributes:
        support_k: annotated slices found for each slice, where no support set is given.
        labels: names of the structures wanted; none for all.
        sets: whether they are found for each "slice", or once for the whole "volume".
        how: how the slices make a volume.
        options: of the segmenter, where they differ from its own.
    """

    segmenter: str = DEFAULT_SEGMENTER
    support_k: int = DEFAULT_SUPPORT_K
    labels: tuple[str, ...] = ()
    sets: Literal["slice", "volume"] = "slice"
    how: VolumeOptions = VOLUME_DEFAULTS
    options: OptionChanges = field(default_factory=lambda: OptionChanges())

    def of_one_slice(self) -> Asked:
        """The same for a single slice, to which what is done with volumes does not apply."""
        return replace(self, sets="slice", how=VOLUME_DEFAULTS)

    def for_slice(self) -> dict[str, Any]:
        """As arguments of `pipeline.agreement`: what matters for a single slice."""
        return {
            "segmenter": self.segmenter,
            "support_k": self.support_k,
            "labels": list(self.labels) or None,
            "options": dict(self.options),
        }

    def keywords(self) -> dict[str, Any]:
        """As arguments of `pipeline.segment`."""
        return {**self.for_slice(), "sets": self.sets, "how": self.how}

    def to_json(self) -> dict[str, Any]:
        """JSON-able; the segmenter and what was found are in the segmentation itself."""
        return {"sets": self.sets, "volume": asdict(self.how), "options": dict(self.options)}


def asked(values: Mapping[str, Any]) -> Asked:
    """What the controls ask for.

    Args:
        values: value of each control of `DEFAULTS`; one that is missing has its default.
    """
    values = {**DEFAULTS, **values}
    options = OptionChanges()
    if values["crop"]:
        options["crop"] = values["crop"]
    if values["memory"]:
        options["memory"] = values["memory"]
    if not values["negatives"]:
        options["negatives"] = False
    return Asked(
        segmenter=values["segmenter"],
        support_k=int(values["support_k"]),
        labels=tuple(values["structures"] or ()),
        sets="volume" if values["one_set"] else "slice",
        how=VolumeOptions(
            propagation="both" if values["propagate"] else "none",
            keep="largest" if values["largest"] else "all",
            axis="best" if values["best_axis"] else "index",
        ),
        options=OptionChanges(**options),
    )
