"""What `segment` accepts about how the network is used, and what it says."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from medretrieval.errors import UsageError
from medretrieval.segmentation.options import (
    CropPolicy,
    MemoryTokens,
    OptionChanges,
    Precision,
)
from medretrieval.segmentation.prompts import Edit, Kind, Prompts, prompts_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_PLACES: Mapping[Kind, tuple[str, str]] = {
    "positive": ("LABEL=X,Y", "a point that belongs to the label"),
    "negative": ("LABEL=X,Y", "a point that does not"),
    "box": ("LABEL=X0,Y0,X1,Y1", "a box around the label"),
}


def add_loading(sub: argparse.ArgumentParser) -> None:
    """How the network's weights are loaded; see `load_segmenter`."""
    sub.add_argument("--checkpoint", type=Path, metavar="FILE", help="local weights for it")
    sub.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="side of the network's input in pixels (default: by segmenter)",
    )
    sub.add_argument(
        "--segmenter-precision",
        choices=get_args(Precision),
        default="float32",
        help="of the network; bfloat16 is faster where the processor has it (default: float32)",
    )


def loading_options(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `load_segmenter` from the options of `add_loading`."""
    return {
        "checkpoint": options.checkpoint,
        "image_size": options.image_size,
        "precision": options.segmenter_precision,
    }


def add_network(sub: argparse.ArgumentParser) -> None:
    """How the network looks at pictures."""
    looks = sub.add_argument_group("how the network looks at pictures")
    looks.add_argument(
        "--crop",
        choices=get_args(CropPolicy),
        help="what of query and supports it sees (default: by segmenter)",
    )
    looks.add_argument(
        "--flips",
        action=argparse.BooleanOptionalAction,
        help="segment the mirrored query too and average (default: by segmenter)",
    )
    looks.add_argument(
        "--closer",
        action=argparse.BooleanOptionalAction,
        help="look at every structure once more in a crop of its own (default: by segmenter)",
    )
    looks.add_argument(
        "--memory",
        choices=get_args(MemoryTokens),
        help="what of the supports' memories it compares with: all, or fewer for many supports on "
        "a CPU, which costs accuracy (default: by segmenter)",
    )


def add_agreement(sub: argparse.ArgumentParser) -> None:
    """How far the mask depends on single supports."""
    sub.add_argument(
        "--agreement",
        action="store_true",
        help="with --slice: make its mask again without each support in turn, and report per label "
        "how well those masks agree with the mask of all (mean Dice, 0 to 1)",
    )


def network_options(options: argparse.Namespace) -> OptionChanges:
    """The options of `add_network` that were given."""
    changes: OptionChanges = {}
    if options.crop is not None:
        changes["crop"] = options.crop
    if options.flips is not None:
        changes["flips"] = options.flips
    if options.closer is not None:
        changes["closer"] = options.closer
    if options.memory is not None:
        changes["memory"] = options.memory
    return changes


def add_prompts(sub: argparse.ArgumentParser) -> None:
    """Points and boxes on the slice of --slice."""
    pointed = sub.add_argument_group(
        "corrections of the slice that --slice names, in pixels from its upper left corner"
    )
    for kind, (metavar, what) in _PLACES.items():
        pointed.add_argument(
            f"--{kind}", action="append", default=[], metavar=metavar, help=f"{what} (repeatable)"
        )


def prompts(options: argparse.Namespace) -> dict[int, dict[str, Prompts]] | None:
    """The options of `add_prompts`, for the slice of --slice.

    Raises:
        UsageError: they are given without --slice, or one is not as it should be.
    """
    edits = [
        _edit(kind, text, metavar)
        for kind, (metavar, _) in _PLACES.items()
        for text in getattr(options, kind)
    ]
    if not edits:
        return None
    if options.slice is None:
        raise UsageError("points and boxes are on one slice of the query; say which by --slice")
    return {options.slice: prompts_of(edits)}


def _edit(kind: Kind, text: str, metavar: str) -> Edit:
    label, _, numbers = text.rpartition("=")
    try:
        at = tuple(float(number) for number in numbers.split(","))
    except ValueError:
        at = ()
    if not label or len(at) != metavar.count(",") + 1:
        raise UsageError(f"--{kind}: {text!r} is not {metavar}, such as --positive LV=120,88")
    return Edit(label=label, kind=kind, at=at)
