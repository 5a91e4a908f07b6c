"""What `segment` accepts about how the network is used, and what it says."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, get_args

from medretrieval.errors import UsageError
from medretrieval.segmentation.options import CropPolicy, OptionChanges, Tiles
from medretrieval.segmentation.prompts import Edit, Kind, Prompts, prompts_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_PLACES: Mapping[Kind, tuple[str, str]] = {
    "positive": ("LABEL=X,Y", "a point that belongs to the label"),
    "negative": ("LABEL=X,Y", "a point that does not"),
    "box": ("LABEL=X0,Y0,X1,Y1", "a box around the label"),
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
        "--tiles",
        type=_tiles,
        metavar="auto|N",
        help="segment in N x N tiles; auto: labels that are thin for the network's output, in as "
        "many as they need (default: by segmenter)",
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
    if options.tiles is not None:
        changes["tiles"] = options.tiles
    return changes


def _tiles(text: str) -> Tiles:
    if text == "auto":
        return "auto"
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: expected auto or a number, 1 or more")
    return int(text)


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
