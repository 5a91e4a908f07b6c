"""The ways of segmenting that the few-shot protocol compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from medretrieval.errors import UsageError, unknown_name
from medretrieval.segmentation.options import Propagation

if TYPE_CHECKING:
    from medretrieval.segmentation.members import BatchSegmenter

Source = Literal["retrieved", "random", "points"]


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """One way of segmenting.

    Attributes:
        title: for tables.
        source: what a slice is segmented from: supports that are "retrieved" for it or drawn at
            "random", or "points" on the slice itself.
        segmenter: "network" (the one under test), or the name of a baseline.
        positive, negative: with points, how many a label gets on a slice.
        propagation: whether slices help each other, see `segmentation.VolumeOptions`.
    """

    title: str
    source: Source
    segmenter: Literal["network", "nearest-mask", "mean-mask", "multi-atlas"] = "network"
    positive: int = 0
    negative: int = 0
    propagation: Propagation = "none"


METHODS: Mapping[str, MethodSpec] = {
    "retrieved": MethodSpec(title="{segmenter}, {k} retrieved supports", source="retrieved"),
    "propagated": MethodSpec(
        title="{segmenter}, {k} retrieved supports, propagated",
        source="retrieved",
        propagation="both",
    ),
    "random": MethodSpec(title="{segmenter}, {k} random supports", source="random"),
    "multi-atlas": MethodSpec(
        title="multi-atlas fusion, {k} retrieved supports",
        source="retrieved",
        segmenter="multi-atlas",
    ),
    "nearest-mask": MethodSpec(
        title="mask of the nearest support", source="retrieved", segmenter="nearest-mask"
    ),
    "mean-mask": MethodSpec(
        title="mean of {k} retrieved masks", source="retrieved", segmenter="mean-mask"
    ),
    "points-1": MethodSpec(title="{segmenter}, 1 positive point", source="points", positive=1),
    "points-2": MethodSpec(title="{segmenter}, 2 positive points", source="points", positive=2),
    "points-1-neg": MethodSpec(
        title="{segmenter}, 1 positive and 1 negative point",
        source="points",
        positive=1,
        negative=1,
    ),
    "points-2-neg": MethodSpec(
        title="{segmenter}, 2 positive and 2 negative points",
        source="points",
        positive=2,
        negative=2,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way of segmenting with a number of supports (0: it needs none)."""

    name: str
    k: int

    @property
    def spec(self) -> MethodSpec:
        return METHODS[self.name]

    def __str__(self) -> str:
        return f"{self.name}@{self.k}" if self.k else self.name

    def title(self, segmenter: str) -> str:
        return self.spec.title.format(segmenter=segmenter, k=self.k)


def parse_method(text: str, supports: int) -> Method:
    """The method written as NAME or NAME@K; without K it has `supports` supports.

    Raises:
        UsageError: unknown, or a number of supports that makes no sense.
    """
    name, at, number = text.partition("@")
    if name not in METHODS:
        raise unknown_name("method", name, METHODS, None)
    if METHODS[name].source == "points" and at:
        raise UsageError(f"method {text!r}: {name} takes no supports; write {name}")
    if at and not (number.isdecimal() and int(number) >= 1):
        raise UsageError(f"method {text!r}: expected NAME@K with K supports, such as {name}@16")
    k = 0 if METHODS[name].source == "points" else int(number) if at else supports
    return Method(name=name, k=k)


def parse_methods(texts: Sequence[str], supports: int) -> list[Method]:
    """Every method once, in the order given; raises as `parse_method`."""
    return list(dict.fromkeys(parse_method(text, supports) for text in texts))


def make_segmenter(method: Method, network: BatchSegmenter) -> BatchSegmenter:
    """What segments by this method: the network itself, or a baseline."""
    kind = method.spec.segmenter
    if kind == "network":
        return network
    if kind == "multi-atlas":
        from medretrieval.evaluation.atlas import MultiAtlas

        return MultiAtlas()
    from medretrieval.segmentation.baselines import MaskCopy

    return MaskCopy(kind)
