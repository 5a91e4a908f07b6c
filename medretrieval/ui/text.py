"""The pieces of the page as HTML. Everything that comes from a file or an index is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.imaging.geometry import display_axes, orientation
from medretrieval.types import Grid, Match
from medretrieval.ui.pictures import Palette, data_uri

# How the agreement of leave-one-out masks is to be read.
AGREEMENT = (
    "The slice was segmented again with each of its annotated slices left out in turn. An "
    "agreement of 1 says that the mask is always the same. The lower it is, the more the mask "
    "depends on a single annotated slice, and the less it can be trusted. Masks can also agree and "
    "be wrong together."
)
# docs/evaluation.md has the table and the command.
AGREEMENT_MEASURED: str | None = (
    "With sam2-micro, on 139 slices and structures of five small research sets, it went along with "
    "the true overlap (Dice): rank correlation 0.60."
)
PLANES = ("sagittal", "coronal", "axial")
# First letter: the edge at the top; second: the edge at the left (of the patient).
EDGES = {"axial": "A R", "coronal": "S R", "sagittal": "S A"}


def sentence(message: str) -> str:
    """A message with a capital at its start, unless it starts with a name or path, as it is typed.

    >>> sentence("no such index"), sentence("lab/hearts cannot be fetched")
    ('No such index', 'lab/hearts cannot be fetched')
    """
    plain = message.partition(" ")[0].isalpha()
    return message[:1].upper() + message[1:] if plain else message


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
    marks: str = ""  # further elements over it, as HTML, placed in percent of its extent


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
        return frame(plain + over + shown.marks)
    return (
        f'<div class="mr-pair">{frame(plain, " mr-plain")}{frame(plain + over + shown.marks)}</div>'
    )


def scale(colours: Sequence[str], low: str, high: str, meaning: str) -> str:
    """What the colours of a map mean: a bar from the lowest to the highest number.

    Args:
        colours: CSS colours, equally far apart.
    """
    return (
        f'<div class="mr-scale"><span>{escape(low)}</span>'
        f'<i style="background:linear-gradient(to right,{",".join(colours)})"></i>'
        f"<span>{escape(high)}</span><span>{escape(meaning)}</span></div>"
    )


def placeholder(title: str, hint: str) -> str:
    """What stands where a picture or a list will be."""
    return f'<div class="mr-empty"><b>{escape(title)}</b><span>{escape(hint)}</span></div>'


@dataclass(frozen=True)
class Action:
    """A button of a card.

    Attributes:
        name: of the action.
        text: on the button.
        describe: for a screen reader and as a tooltip, `text` if empty.
        done: the action is done already or impossible: the button is disabled.
        pressed: for a button that switches something on and off, whether it is on.
    """

    name: str
    text: str
    describe: str = ""
    done: bool = False
    pressed: bool | None = None


@dataclass(frozen=True)
class Card:
    """A small picture with a caption and buttons.

    Attributes:
        key: what the actions of the card are about.
        lines: caption, first line first; the first is set in bold.
        actions: its buttons.
        badge: a few letters over the picture.
        flag: a remark over the picture, and what it means.
        opens: action of a click on the picture; none if empty.
    """

    key: str
    image: NDArray[np.uint8]
    alt: str
    lines: Sequence[str]
    actions: Sequence[Action] = ()
    badge: str = ""
    flag: tuple[str, str] | None = None
    opens: str = ""


def cards(items: Iterable[Card], *, kind: str) -> str:
    """Cards in a grid; `kind` ("hits", "cart", "examples") sets their size."""
    return f'<ul class="mr-cards mr-{kind}">{"".join(map(_card, items))}</ul>'


def _card(card: Card) -> str:
    picture = (
        f'<img src="{data_uri(card.image, lossy=True)}" alt="{escape(card.alt)}" loading="lazy">'
    )
    if card.badge:
        picture += f'<span class="mr-badge" aria-hidden="true">{escape(card.badge)}</span>'
    if card.opens:
        picture = (
            f'<button type="button" class="mr-picture" data-action="{card.opens}" '
            f'data-key="{escape(card.key)}" aria-label="{escape(card.alt)}">{picture}</button>'
        )
    else:
        picture = f'<div class="mr-picture">{picture}</div>'
    flag = ""
    if card.flag:
        remark, meaning = map(escape, card.flag)
        flag = f'<div class="mr-flag" title="{meaning}">{remark}</div>'
    lines = "".join(f"<span>{escape(line)}</span>" for line in card.lines)
    buttons = "".join(_button(action, card.key) for action in card.actions)
    if buttons:
        buttons = f'<div class="mr-buttons">{buttons}</div>'
    return f'<li class="mr-card">{picture}{flag}<div class="mr-caption">{lines}</div>{buttons}</li>'


def _button(action: Action, key: str) -> str:
    described = escape(action.describe or action.text)
    state = ' disabled class="mr-done"' if action.done else ""
    if action.pressed is not None:
        state += f' aria-pressed="{str(action.pressed).lower()}"'
    return (
        f'<button type="button" data-action="{action.name}" data-key="{escape(key)}"{state} '
        f'title="{described}" aria-label="{described}">{escape(action.text)}</button>'
    )


def chips(groups: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Named lists of keys, each key with a button to take it out; empty lists are left out."""
    shown = [
        f'<div class="mr-chips"><span>{escape(title)}</span>'
        + "".join(
            f'<button type="button" class="mr-chip" data-action="remove" data-key="{escape(key)}" '
            f'title="Remove" aria-label="Remove {escape(key)} from: {escape(title)}">'
            f'{escape(key)} <i aria-hidden="true">\u00d7</i></button>'
            for key in keys
        )
        + "</div>"
        for title, keys in groups
        if keys
    ]
    return "".join(shown)


def figures(pictures: Iterable[tuple[NDArray[np.uint8], str]]) -> str:
    """Pictures side by side, each with its caption."""
    return "".join(
        f'<figure><img src="{data_uri(image, lossy=True)}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for image, caption in pictures
    )


def figure(picture: NDArray[np.uint8], alt: str, caption: str) -> str:
    """One picture as wide as its place; a click on it shows it as large as the window."""
    shown = f'<img src="{data_uri(picture)}" alt="{escape(alt)}">'
    return (
        f'<figure class="mr-wide"><button type="button" title="Enlarge" data-enlarge '
        f'aria-label="Enlarge: {escape(alt)}">{shown}</button><dialog class="mr-large" '
        f'aria-label="{escape(alt)}"><form method="dialog"><button aria-label="Close">\u00d7'
        f"</button></form>{shown}</dialog><figcaption>{escape(caption)}</figcaption></figure>"
    )


def pairs_table(pairs: Sequence[Match], *, most: int = 8) -> str:
    """Pairs of slices and how similar they are, best first."""
    best = sorted(pairs, key=lambda m: -m.score)
    rows = "".join(
        f"<tr><td>{m.query_slice}</td><td>{m.slice_index}</td><td>{m.score:.3f}</td></tr>"
        for m in best[:most]
    )
    more = len(best) - most
    rest = f"<p>and {more} more pairs; the settings file has them all</p>" if more > 0 else ""
    return (
        "<table><thead><tr><th>your slice</th><th>its slice</th><th>similarity</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>{rest}"
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
