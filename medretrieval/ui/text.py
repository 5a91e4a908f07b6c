"""The words of the page as HTML. Everything that comes from a file or an index is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import UsageError
from medretrieval.imaging.geometry import display_axes, orientation
from medretrieval.types import UNKNOWN, Grid, Hit, Match, Volume
from medretrieval.ui.pictures import Palette, data_uri
from medretrieval.ui.session import Found, Outcome

PLANES = ("sagittal", "coronal", "axial")
# First letter: the edge at the top; second: the edge at the left (of the patient).
EDGES = {"axial": "A R", "coronal": "S R", "sagittal": "S A"}
MODES = {
    "slice": "Slices like this one",
    "count": "Cases, counted",
    "weighted": "Cases, weighted count",
    "rerank": "Cases, re-ranked",
}
# In an index of whole volumes.
WHOLE_MODES = {
    "slice": "Volumes like this one",
    "count": "The most similar volume, counted",
    "weighted": "The most similar volume, weighted",
    "rerank": "The most similar volume, re-ranked",
}
WHOLE_SCORE = "cosine similarity of the two volumes, each compared as a whole; 1 is identical"
WHOLE_NOTE = (
    "This index compares whole volumes, so the slice that you look at makes no difference to a "
    "search; to segment, add slices to the support set yourself."
)
SCORES = {
    "slice": "cosine similarity of the two slices; 1 is identical",
    "count": "how many slices of your image have their best match in this case",
    "weighted": "the same count, in which slices near the middle of your image weigh more",
    "rerank": "the best similarity within this case, summed over the slices of your image",
}


def status(kind: str, message: str) -> str:
    """A line below an action. `kind` is "idle", "ok", "warning" or "error"."""
    role = "alert" if kind in ("warning", "error") else "status"
    sign = {"ok": "\u2713", "warning": "!", "error": "!"}.get(kind, "")
    mark = f'<span class="mr-sign" aria-hidden="true">{sign}</span>' if sign else ""
    # Where a message has several lines they hold a table, whose columns must stay.
    lines = ' class="mr-lines"' if "\n" in message else ""
    body = f"{mark}<span{lines}>{escape(message)}</span>"
    return f'<div class="mr-status mr-{kind}" role="{role}">{body}</div>'


def header(limits: str) -> str:
    """The top of the page; `limits` is the sentence that no visitor may miss."""
    return (
        '<header class="mr-header"><h1>medretrieval</h1><p>Find annotated images like yours, see '
        "why, and segment yours from them.</p>"
        f'<div class="mr-limits">{escape(limits)}</div></header>'
    )


def footer(limits: str) -> str:
    """Limits of use, and what happens to uploads."""
    return (
        f'<div class="mr-foot"><b>{escape(limits)}</b> The demo index is synthetic, and '
        "sam2-micro, the segmenter that comes with the page, is small and trained on synthetic "
        "images only: check every mask. An upload is deleted from disk as soon as it is read, and "
        "kept in memory for an hour at most; names and other identifiers in DICOM files are "
        "neither shown nor stored. Slices are counted from 0.</div>"
    )


def step(number: int, title: str) -> str:
    """Heading of a column."""
    return f'<div class="mr-step"><i aria-hidden="true">{number}</i><h2>{escape(title)}</h2></div>'


def label_names(text: str | None) -> dict[int, str] | None:
    """Names of mask values from "1=liver, 2=spleen"; None if there are none.

    Raises:
        UsageError: not of that form.
    """
    names: dict[int, str] = {}
    for item in filter(None, (part.strip() for part in (text or "").split(","))):
        value, equals, name = (part.strip() for part in item.partition("="))
        if not (equals and value.isdecimal() and int(value) > 0 and name):
            raise UsageError(
                f"{item!r} does not name a mask value; write for example 1=liver, 2=spleen"
            )
        names[int(value)] = name
    return names or None


def found_line(found: Found, slices: int, *, meaningless: bool = False) -> str:
    """What a search gave, for an image of `slices` slices.

    `meaningless`: it was a search for a real image among phantoms. Something is always found
    there, and must not look like an answer.
    """
    hits = len(found.result.hits)
    if not hits:
        return "Nothing similar was found in this index."
    what = "similar cases" if found.slice_index is None else "similar slices"
    if found.slice_index is not None and slices > 1:
        what = f"slices similar to your slice {found.slice_index}"
    if hits == 1:
        what = what.replace("cases", "case").replace("slices", "slice", 1)
    line = f"{hits} {what}, {_took(found.seconds)}. Click a picture to see why it was found."
    if found.whole and found.result.mode != "slice":
        line += f" To see more cases, search for “{WHOLE_MODES['slice']}”."
    elif hits < found.k and found.slice_index is None and not found.whole:
        line += " In no other case is the best match of any of your slices."
    if meaningless:
        line += " This index is synthetic: for a real image its cases have no meaning."
    return line


def segmented_line(outcome: Outcome, slices: int, *, meaningless: bool = False) -> str:
    """What was segmented of an image of `slices` slices, from what, and how long it took.

    `meaningless`: it is a real image, segmented from phantoms.
    """
    made = outcome.segmentation
    if slices == 1:
        what = "your image"
    elif outcome.slice_index is not None:
        what = f"slice {outcome.slice_index}"
    else:
        what = f"{made.slices} slice{'' if made.slices == 1 else 's'}"
    one = slices == 1 or outcome.slice_index is not None
    by = f"from annotated slices found for {'it' if one else 'each slice'}"
    if outcome.cart:
        by = "from the support set"
    line = f"Segmented {what} {by}, {_took(made.seconds)} with {made.segmenter}."
    if meaningless:
        line += " Those slices are synthetic: on a real image the mask has no meaning."
    return line


def _took(seconds: float) -> str:
    return "in under 0.1 s" if seconds < 0.05 else f"in {seconds:.1f} s"


def size_line(volume: Volume) -> str:
    """Modality, size and spacing of an image in one line; nothing that identifies a patient."""
    grid = volume.grid
    parts = [] if volume.modality == UNKNOWN else [volume.modality]
    if not grid.spacing_known:
        parts.append("\u00d7".join(map(str, grid.shape[:2])) + " pixels, spacing unknown")
    else:
        parts.append("\u00d7".join(map(str, grid.shape)) + " voxels")
        parts.append("\u00d7".join(f"{s:.3g}" for s in grid.spacing) + " mm")
    return " · ".join(parts)


def plane(grid: Grid, axis: int) -> str:
    """The plane that slices across stored `axis` are nearest to."""
    return PLANES[int(orientation(grid.affine)[axis, 0])]


def aspect(grid: Grid, axis: int) -> float:
    """Width divided by height of a displayed slice, in mm (pixels where spacing is unknown)."""
    row, column, _, _ = display_axes(grid.affine, axis)
    spacing = grid.spacing
    return (grid.shape[column] * spacing[column]) / (grid.shape[row] * spacing[row])


@dataclass(frozen=True)
class Stage:
    """A slice to show large, with an optional transparent overlay of the same extent."""

    image: NDArray[np.uint8]
    aspect: float
    alt: str
    edges: str = ""  # letters at the top and the left edge, e.g. "A R"; empty if unknown
    note: str = ""
    overlay: NDArray[np.uint8] | None = None


def stage(shown: Stage, *, comparison: bool = False) -> str:
    """The picture as HTML; with `comparison`, the plain picture is there a second time."""
    plain = f'<img class="mr-base" src="{data_uri(shown.image)}" alt="{escape(shown.alt)}">'
    letters = ""
    if shown.edges:
        top, left = shown.edges.split()
        letters = (
            f'<span class="mr-edge mr-top" aria-hidden="true">{top}</span>'
            f'<span class="mr-edge mr-left" aria-hidden="true">{left}</span>'
        )
    note = f'<span class="mr-note">{escape(shown.note)}</span>' if shown.note else ""
    over = ""
    if shown.overlay is not None:
        over = f'<img class="mr-over" src="{data_uri(shown.overlay)}" alt="">'

    def frame(inside: str, kind: str = "") -> str:
        fit = f'<div class="mr-fit" style="--aspect:{shown.aspect:.4f}">{inside}</div>'
        return f'<div class="mr-stage{kind}">{fit}{letters}{note}</div>'

    if not comparison:
        return frame(plain + over)
    return f'<div class="mr-pair">{frame(plain, " mr-plain")}{frame(plain + over)}</div>'


def placeholder(title: str, hint: str) -> str:
    """What stands where a picture or a list will be."""
    return f'<div class="mr-empty"><b>{escape(title)}</b><span>{escape(hint)}</span></div>'


@dataclass(frozen=True)
class Card:
    """A small picture with a caption and one button.

    Attributes:
        key: what the button's action is about.
        lines: caption, first line first; the first is set in bold.
        action, button: name of the action and text of the button; no button if `button` is empty.
        describe: the button for a screen reader, `button` if empty.
        active: the action is done already or impossible: the button is disabled.
        opens: action of a click on the picture; none if empty.
    """

    key: str
    image: NDArray[np.uint8]
    alt: str
    lines: Sequence[str]
    action: str
    button: str = ""
    describe: str = ""
    badge: str = ""
    active: bool = False
    opens: str = ""


def cards(items: Iterable[Card], *, kind: str) -> str:
    """Cards in a grid; `kind` ("hits", "cart", "examples") sets their size."""
    return f'<ul class="mr-cards mr-{kind}">{"".join(map(_card, items))}</ul>'


def _card(card: Card) -> str:
    picture = (
        f'<img src="{data_uri(card.image, lossy=True)}" alt="{escape(card.alt)}" loading="lazy">'
    )
    badge = (
        f'<span class="mr-badge" aria-hidden="true">{escape(card.badge)}</span>'
        if card.badge
        else ""
    )
    data = f'data-key="{escape(card.key)}"'
    if card.opens:
        picture = (
            f'<button type="button" class="mr-picture" data-action="{card.opens}" {data} '
            f'aria-label="{escape(card.alt)}">{picture}{badge}</button>'
        )
    else:
        picture = f'<div class="mr-picture">{picture}{badge}</div>'
    lines = "".join(f"<span>{escape(line)}</span>" for line in card.lines)
    button = ""
    if card.button:
        pressed = ' disabled class="mr-done"' if card.active else ""
        button = (
            f'<button type="button" data-action="{card.action}" {data}{pressed} '
            f'aria-label="{escape(card.describe or card.button)}">{escape(card.button)}</button>'
        )
    return f'<li class="mr-card">{picture}<div class="mr-caption">{lines}</div>{button}</li>'


def mode_choices(names: Iterable[str], *, whole: bool = False) -> list[tuple[str, str]]:
    """(title, name) of the ways of searching, in an index of slices or of `whole` volumes."""
    titles = WHOLE_MODES if whole else MODES
    return [(titles.get(name, name), name) for name in names]


def score(hit: Hit, mode: str, slices: int, *, whole: bool = False) -> str:
    """The score of a hit in words, of an image that was searched with `slices` slices.

    `whole`: whole volumes were compared.
    """
    if whole:
        return f"similarity {hit.matches[0].score:.3f}"
    if mode == "slice":
        return f"similarity {hit.score:.3f}"
    if mode == "count":
        return f"{hit.score:.0f} of {slices} slices"
    return f"score {hit.score:.2f}" + (f" of {slices}" if mode == "rerank" else "")


def caption(
    hit: Hit, match: Match, labels: Sequence[str], mode: str, slices: int, *, whole: bool = False
) -> list[str]:
    """Lines of a hit's caption: score, case, the pair of slices, labels of the slice (volume)."""
    pair = f"slice {match.slice_index}"
    if whole:
        pair = f"whole volume, shown by {pair}"
    elif slices > 1:
        pair += f" for your {match.query_slice}"
    none = "no structure in it" if whole else "no structure on it"
    about = " \u00b7 ".join(part for part in (hit.modality, hit.region) if part != UNKNOWN)
    return [
        score(hit, mode, slices, whole=whole),
        hit.volume_id,
        pair,
        *([about] if about else []),
        ", ".join(labels) if labels else none,
    ]


def why(hit: Hit, mode: str, slices: int, pair: str, *, most: int = 8, whole: bool = False) -> str:
    """The slice pairs that explain a hit, as a table below `pair`, the HTML of two pictures."""
    best = sorted(hit.matches, key=lambda m: -m.score)
    rows = "".join(
        f"<tr><td>{m.query_slice}</td><td>{m.slice_index}</td><td>{m.score:.3f}</td></tr>"
        for m in best[:most]
    )
    more = len(best) - most
    rest = f"<p>and {more} more pairs; the settings file has them all</p>" if more > 0 else ""
    table = (
        "<table><thead><tr><th>your slice</th><th>its slice</th><th>similarity</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>{rest}"
    )
    explained = escape(WHOLE_SCORE if whole else SCORES.get(mode, "score"))
    return (
        f'<section class="mr-why"><h3>Why #{hit.rank}, {escape(hit.volume_id)}</h3>'
        f"<p><b>{escape(score(hit, mode, slices, whole=whole))}</b>: {explained}.</p>"
        f'<div class="mr-two">{pair}</div>{"" if whole else table}</section>'
    )


def legend(structures: Sequence[Mapping[str, Any]], palette: Palette) -> str:
    """Colour, name, voxel count and volume of each structure found; names of those not found."""
    found = [s for s in structures if s["voxels"]]
    missing = ", ".join(s["name"] for s in structures if not s["voxels"])
    millilitres = any(s["ml"] is not None for s in found)
    rows = "".join(
        f'<tr><td><i style="background:{palette.css(s["name"])}"></i>{escape(s["name"])}</td>'
        f"<td>{s['voxels']:,}</td>"
        + (f"<td>{_millilitres(s['ml'])}</td></tr>" if millilitres else "</tr>")
        for s in sorted(found, key=lambda s: -s["voxels"])
    )
    head = "<th>voxels</th><th>ml</th>" if millilitres else "<th>pixels</th>"
    table = (
        f'<table class="mr-legend"><thead><tr><th>structure</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    rest = f'<p class="mr-missing">Looked for, not found: {escape(missing)}</p>' if missing else ""
    return (table if found else "") + rest


def _millilitres(ml: float) -> str:
    return f"{ml:.3g}" if ml < 1000 else f"{ml:.0f}"
