"""What `segment` accepts about how the network is used, and what it says."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from medretrieval.errors import UsageError
from medretrieval.option_values import label_names, positive
from medretrieval.segmentation.options import (
    MOST_TILES,
    VOLUME_DEFAULTS,
    Axis,
    CropPolicy,
    Keep,
    MemoryTokens,
    OptionChanges,
    Precision,
    Propagation,
    Tiles,
    VolumeOptions,
)
from medretrieval.segmentation.prompts import Edit, Kind, Prompts, prompts_of
from medretrieval.support_sets import DEFAULT_SUPPORT_K, Sets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medretrieval.types import SlicePolicy, Support

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
    """The arguments of `load_segmenter` from the options of `add_loading` and `add_device`."""
    return {
        "checkpoint": options.checkpoint,
        "image_size": options.image_size,
        "precision": options.segmenter_precision,
        "device": options.device,
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
        "--negatives",
        action=argparse.BooleanOptionalAction,
        help="whether a slice without a label is evidence of its absence (default: by segmenter)",
    )
    looks.add_argument(
        "--memory",
        choices=get_args(MemoryTokens),
        help="what of the supports' memories it compares with: all, or fewer for many supports on "
        "a CPU, which costs accuracy (default: by segmenter)",
    )
    looks.add_argument(
        "--tiles",
        type=_tiles,
        metavar="auto|N",
        help="segment in N x N tiles; auto: labels that are thin for the network's output, in as "
        "many as they need (default: by segmenter)",
    )
    looks.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="probability from which a pixel counts as a label's (default: by segmenter)",
    )


def add_volume(sub: argparse.ArgumentParser) -> None:
    """How the slices of a volume make one mask."""
    whole = sub.add_argument_group("how the slices of a volume make one mask")
    whole.add_argument(
        "--propagate",
        choices=get_args(Propagation),
        default=VOLUME_DEFAULTS.propagation,
        help="none: every slice by itself; both: each structure from the slice that shows it most "
        f"surely outwards in both directions (default: {VOLUME_DEFAULTS.propagation})",
    )
    whole.add_argument(
        "--keep",
        choices=get_args(Keep),
        default=VOLUME_DEFAULTS.keep,
        help="all: of every structure all that was found; largest: only its largest connected part "
        f"(default: {VOLUME_DEFAULTS.keep})",
    )
    whole.add_argument(
        "--slice-axis",
        choices=get_args(Axis),
        default=VOLUME_DEFAULTS.axis,
        help="index: slices as the index has them; best: across the axis whose slices have the "
        f"finest pixels, which --slice then counts along (default: {VOLUME_DEFAULTS.axis})",
    )


def volume_options(options: argparse.Namespace) -> VolumeOptions:
    """The options of `add_volume`."""
    return VolumeOptions(propagation=options.propagate, keep=options.keep, axis=options.slice_axis)


def add_agreement(sub: argparse.ArgumentParser) -> None:
    """How far the mask depends on single supports."""
    sub.add_argument(
        "--agreement",
        action="store_true",
        help="with --slice: make its mask again without each support in turn, and report per label "
        "how well those masks agree with the mask of all (mean Dice, 0 to 1)",
    )


def add_supports(sub: argparse.ArgumentParser) -> None:
    """From which annotated slices the query is segmented."""
    chosen = sub.add_argument_group("which annotated slices it is segmented from")
    chosen.add_argument(
        "--support-k",
        type=positive,
        default=DEFAULT_SUPPORT_K,
        metavar="K",
        help="how many are retrieved for a slice, or for --sets volume, or are taken from a --pair "
        f"(default: {DEFAULT_SUPPORT_K})",
    )
    chosen.add_argument(
        "--sets",
        choices=get_args(Sets),
        default="slice",
        help="retrieve a set for every slice of the query (default), or one that covers the whole "
        "volume",
    )
    chosen.add_argument(
        "--supports",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="instead of retrieving: a support set that was saved, folder or zip (repeatable)",
    )
    chosen.add_argument(
        "--pair",
        action="append",
        default=[],
        nargs=2,
        type=Path,
        metavar=("IMAGE", "MASK"),
        help="instead of retrieving: an image or volume and its label map (repeatable)",
    )
    chosen.add_argument(
        "--pair-names",
        default="",
        metavar="1=A,2=B",
        help="names of the values of the masks of --pair (default: as in the index)",
    )
    chosen.add_argument(
        "--save-supports",
        type=Path,
        metavar="FOLDER",
        help="save what it was segmented from, to be given to --supports",
    )


def given_supports(
    options: argparse.Namespace, policy: SlicePolicy, names: Mapping[int, str]
) -> list[Support] | None:
    """The supports of --supports and --pair, None if neither is given.

    Args:
        policy: how slices are made.
        names: of the values of masks, where --pair-names is not given.

    Raises:
        UsageError, InputError: one cannot be used.
    """
    if options.save_supports is not None or options.supports or options.pair:
        from medretrieval.segmentation import supports as files
    if options.save_supports is not None:
        # Before minutes of work for a folder that cannot be written.
        files.check_folder(options.save_supports, overwrite=options.force)
    if not options.supports and not options.pair:
        if options.pair_names:
            raise UsageError("--pair-names names the values of the masks of --pair; give a --pair")
        return None
    found = [support for path in options.supports for support in files.load_supports(path)]
    names = label_names(options.pair_names, "--pair-names") or names
    for image, mask in options.pair:
        found += files.supports_from_pair(
            image,
            mask,
            policy=policy,
            names=names,
            at_most=options.support_k,
        )
    return files.distinct(found)


def network_options(options: argparse.Namespace) -> OptionChanges:
    """The options of `add_network` that were given."""
    changes: OptionChanges = {}
    if options.crop is not None:
        changes["crop"] = options.crop
    if options.flips is not None:
        changes["flips"] = options.flips
    if options.closer is not None:
        changes["closer"] = options.closer
    if options.negatives is not None:
        changes["negatives"] = options.negatives
    if options.memory is not None:
        changes["memory"] = options.memory
    if options.tiles is not None:
        changes["tiles"] = options.tiles
    if options.threshold is not None:
        changes["threshold"] = options.threshold
    return changes


def _tiles(text: str) -> Tiles:
    if text == "auto":
        return "auto"
    if not (text.isdecimal() and 1 <= int(text) <= MOST_TILES):
        raise argparse.ArgumentTypeError(f"{text!r}: expected auto or a number, 1 to {MOST_TILES}")
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
