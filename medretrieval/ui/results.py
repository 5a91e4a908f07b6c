"""What is shown of a mask: the slice under it with its corrections, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from math import isnan
from typing import Any

import numpy as np

from medretrieval.segmentation.prompts import Edit
from medretrieval.segmentation.uncertainty import Agreement
from medretrieval.types import SlicePolicy
from medretrieval.ui import content, pictures, text
from medretrieval.ui.corrections import Corner, share
from medretrieval.ui.pictures import Palette
from medretrieval.ui.session import Outcome, Props, Query

# What the agreement of a structure tells, by its least value.
SURE = (
    (0.9, "the same whichever annotated slice is left out"),
    (0.7, "changes with the annotated slices: look at its edge"),
    (0.0, "depends on single annotated slices: do not rely on it"),
)
UNCORRECTED = "This is about the mask without your corrections."
NOTHING = "not found with any of them"


def stage(
    query: Query,
    outcome: Outcome,
    policy: SlicePolicy,
    window: str,
    index: int,
    colours: Palette,
    corner: Corner | None = None,
) -> str:
    """One slice of the query under its mask, beside the plain slice where the page wants both.

    Args:
        corner: the first corner of a box that is being drawn.
    """
    names = outcome.segmentation.labels.names
    colours = colours.with_names(names.values())
    mask = outcome.mask(policy, index)
    shown = ", ".join(names.get(int(v), str(v)) for v in np.unique(mask) if v) or "nothing"
    base = content.plain(query, policy, window, index)
    edits = outcome.edits(index)
    note = (
        base.note
        if mask.any()
        else f"{base.note} \u00b7 no structure found on it".lstrip(" \u00b7")
    )
    if edits:
        note += f" \u00b7 corrected ({len(edits)})"
    return text.stage(
        replace(
            base,
            alt=f"{base.alt} Segmented on it: {shown}.",
            note=note,
            overlay=pictures.overlay(mask, names, colours),
            marks=marks(edits, (mask.shape[0], mask.shape[1]), colours, corner),
        ),
        comparison=True,
    )


def marks(
    edits: Sequence[Edit], shape: tuple[int, int], colours: Palette, corner: Corner | None = None
) -> str:
    """Points and boxes over a picture of `shape` (H, W), each in the colour of its label."""
    drawn = [_mark(edit, shape, colours) for edit in edits]
    if corner is not None:
        drawn.append(_point(corner.at, shape, colours.css(corner.label), "corner"))
    return "".join(drawn)


def _mark(edit: Edit, shape: tuple[int, int], colours: Palette) -> str:
    colour = colours.css(edit.label)
    if edit.kind != "box":
        return _point(edit.at, shape, colour, edit.kind)
    (left, top), (right, bottom) = share(edit.at[:2], shape), share(edit.at[2:], shape)
    return (
        f'<i class="mr-mark mr-box" style="left:{left:.2%};top:{top:.2%};width:{right - left:.2%};'
        f'height:{bottom - top:.2%};--mark:{colour}"></i>'
    )


def _point(at: Sequence[float], shape: tuple[int, int], colour: str, kind: str) -> str:
    left, top = share(at, shape)
    return (
        f'<i class="mr-mark mr-point mr-{kind}" style="left:{left:.2%};top:{top:.2%};'
        f'--mark:{colour}"></i>'
    )


def choices(structures: Sequence[Mapping[str, Any]], kept: str | None) -> Props:
    """The structures that can be corrected.

    Args:
        structures: as `Segmentation.structures` has them.
        kept: the one chosen before stays; otherwise one that was found is chosen to begin with.
    """
    names = [row["name"] for row in structures]
    there = [row["name"] for row in structures if row["voxels"]]
    return Props(choices=names, value=kept if kept in names else next(iter([*there, *names]), None))


def agreement(
    found: Agreement, query: Query, policy: SlicePolicy, index: int, *, corrected: bool
) -> str:
    """How far the mask of a slice depends on single annotated slices.

    Args:
        corrected: the slice has corrections, which `found` knows nothing of.
    """
    differing = 1 - found.overall()
    base = content.plain(query, policy, policy.window, index)
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{_number(score)}</td><td>{escape(meaning(score))}</td></tr>"
        for name, score in found.scores.items()
    )
    picture = text.stage(
        replace(
            base,
            alt=f"{base.alt} Where the mask depends on single annotated slices.",
            overlay=pictures.heat(differing),
        )
    )
    said = (text.AGREEMENT, text.AGREEMENT_MEASURED, UNCORRECTED if corrected else None)
    scale = text.scale(
        pictures.gradient(), "0 %", "100 %", "of the masks differ here from the one shown"
    )
    return (
        f'<section class="mr-why mr-sure"><h3>How sure is slice {index}?</h3>'
        f"<p>{escape(' '.join(filter(None, said)))}</p>{picture}{scale}"
        f"<table><thead><tr><th>structure</th><th>agreement</th><th></th></tr></thead>"
        f"<tbody>{rows}</tbody></table></section>"
    )


def _number(score: float) -> str:
    return "\u2013" if isnan(score) else f"{score:.2f}"


def meaning(score: float) -> str:
    """What the agreement of a structure tells, in a few words."""
    if isnan(score):
        return NOTHING
    return next(said for least, said in SURE if score >= least)
