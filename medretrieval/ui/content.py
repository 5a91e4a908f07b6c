"""What each part of the page shows, from the state of a session to HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.imaging import position_mm, slice_axis
from medretrieval.index.offered import OFFERED, Offered, wrapped
from medretrieval.retrieval.feedback import Feedback
from medretrieval.retrieval.modes import MODES
from medretrieval.types import Hit, Match, SlicePolicy
from medretrieval.ui import pictures, text, words
from medretrieval.ui.backend import Example
from medretrieval.ui.opened import Opened
from medretrieval.ui.pictures import Palette
from medretrieval.ui.session import Cart, Found, Props, Query

WINDOWS = {
    "As the index sees it": "",
    "CT lung": "ct-lung",
    "CT mediastinum": "ct-mediastinum",
    "CT abdomen": "ct-abdomen",
    "CT bone": "ct-bone",
    "CT brain": "ct-brain",
    "CT wide": "ct-wide",
    "Percentiles (MR, other)": "percentile",
}


def palette(opened: Opened | None) -> Palette:
    """Colours by the label vocabulary of an index."""
    return Palette.of(opened.index.manifest.vocabulary.values() if opened else ())


def example_cards(items: Sequence[Example]) -> str:
    """The examples, each opened by a click on its picture; synthetic and real ones apart."""
    groups = (
        ("Synthetic phantoms that are not in the demo index", True),
        ("Real slices, samples of pydicom", False),
    )
    return "".join(
        f'<h3 class="mr-group">{escape(heading)}</h3>'
        + text.cards(
            (
                text.Card(
                    key=str(place),
                    image=pictures.thumbnail(item.image, aspect=item.aspect, side=144),
                    alt=f"Open the example {item.query.title}",
                    lines=[_short(item.query.title)],
                    opens="open",
                )
                for place, item in enumerate(items)
                if item.query.synthetic == synthetic
            ),
            kind="examples",
        )
        for heading, synthetic in groups
    )


def _short(title: str) -> str:
    # The heading of the group says what kind of example it is.
    bare = re.sub(r"^Synthetic | of the\b|\s*\([^)]*\)|,.*", "", title).strip()
    return bare[:1].upper() + bare[1:]


def sliders(count: int) -> dict[str, Props]:
    """Both slice sliders, for an image of `count` slices, in the middle."""
    changes = {
        "maximum": max(1, count - 1),
        "value": count // 2,
        "visible": count > 1,
        "label": f"Slice, 0 to {count - 1}",
    }
    return {"slice": Props(changes), "result_slice": Props(changes)}


def view(query: Query, policy: SlicePolicy, window: str, index: int) -> str:
    """One slice of the query, large."""
    return text.stage(plain(query, policy, window, index))


def plain(query: Query, policy: SlicePolicy, window: str, index: int) -> text.Stage:
    """One slice of the query with nothing over it."""
    grid = query.volume.grid
    axis = slice_axis(grid, policy.axis)
    shown = query.view(policy, window or policy.window, index)
    plane = text.plane(grid, axis)
    where = position_mm(grid, axis, index)
    count = grid.shape[axis]
    note = "" if count == 1 else f"slice {index} of 0 to {count - 1}"
    if grid.spacing_known:
        note = " · ".join(filter(None, (plane, note, None if where is None else f"{where:.1f} mm")))
    return text.Stage(
        image=shown.image,
        aspect=text.aspect(grid, axis),
        alt=f"{query.title}, {note}." if note else f"{query.title}.",
        edges=text.EDGES[plane] if grid.spacing_known else "",
        note=note,
    )


def row_aspect(opened: Opened, row: int) -> float | None:
    """Width divided by height of a database slice, in mm; None if unknown."""
    store = opened.index.store
    if not store.has_image(row):
        return None
    down, right, _ = (float(s) for s in store.spacing[row])
    if not (np.isfinite(down) and np.isfinite(right)):
        return None
    image = store.image(row)
    return float(image.shape[1] * right / (image.shape[0] * down))


def row_picture(opened: Opened, row: int, *, side: int = 224) -> NDArray[np.uint8]:
    """The picture of a database slice with the contours of its labels; says so if there is none."""
    store = opened.index.store
    if not store.has_image(row):
        return pictures.blank("no picture", side)
    return pictures.thumbnail(
        store.image(row),
        store.mask(row),
        store.vocabulary,
        palette(opened),
        aspect=row_aspect(opened, row),
        side=side,
    )


def hit_cards(
    found: Found, opened: Opened, cart: Cart, feedback: Feedback, shown: int | None
) -> str:
    """The hits, each with its reasons behind the picture and its buttons.

    Args:
        feedback: the examples of what is wanted and what is not.
        shown: the slice that the visitor looks at; each case shows the slice that met this one.
    """
    if not found.result.hits:
        return text.placeholder("No similar case", "The index has no slice that fits.")
    inside = {item.key for item in cart}

    def card(hit: Hit, match: Match) -> text.Card:
        store = opened.index.store
        row = store.row(hit.volume_id, match.slice_index)
        what = f"slice {match.slice_index} of {hit.volume_id}"
        return text.Card(
            key=f"{hit.rank}:{match.slice_index}:{match.query_slice}",
            image=row_picture(opened, row),
            alt=f"Hit {hit.rank}: {hit.volume_id}, slice {match.slice_index}"
            f"{'' if store.has_image(row) else ', without a picture'}. Show why",
            lines=words.caption(found, hit, match, store.labels[row]),
            actions=[
                *_judging(found.example(hit, match), feedback, opened),
                _adding(store.has_mask(row), opened.cart_key(row) in inside, what),
            ],
            badge=str(hit.rank),
            flag=("near duplicate", words.NEAR_DUPLICATE) if hit.near_duplicate else None,
            opens="why",
        )

    return text.cards((card(*pair) for pair in found.pairs(shown)), kind="hits")


def _judging(key: str, feedback: Feedback, opened: Opened) -> list[text.Action]:
    if opened.whole:
        return []
    return [
        text.Action("like", "\u25b2 more", f"More like this: {key}", pressed=key in feedback.like),
        text.Action(
            "unlike", "\u25bc less", f"Less like this: {key}", pressed=key in feedback.unlike
        ),
    ]


def _adding(annotated: bool, taken: bool, what: str) -> text.Action:
    return text.Action(
        "add",
        ("\u2713 in the set" if taken else "+ add to set") if annotated else "not annotated",
        f"Add {what} to the support set",
        done=taken or not annotated,
    )


def examples_chosen(feedback: Feedback) -> str:
    """The examples of what is wanted and what is not, each with a button to take it out."""
    return text.chips((("More like", feedback.like), ("Less like", feedback.unlike)))


def why(found: Found, hit: Hit, match: Match, query: Query, opened: Opened) -> str:
    """A pair of slices of a hit side by side, and the best pairs as a table."""
    policy = opened.policy
    axis = slice_axis(query.volume.grid, policy.axis)
    own = pictures.thumbnail(
        query.view(policy, policy.window, match.query_slice).image,
        aspect=text.aspect(query.volume.grid, axis),
        side=320,
    )
    row = opened.index.store.row(hit.volume_id, match.slice_index)
    similar = "" if found.whole else f", similarity {match.score:.3f}"
    pair = text.figures(
        (
            (own, f"your slice {match.query_slice}"),
            (row_picture(opened, row, side=320), f"its slice {match.slice_index}{similar}"),
        )
    )
    mode, fused = found.result.mode, found.fused
    score = words.score(hit, mode, found.slices, whole=found.whole, fused=fused)
    meaning = words.score_meaning(mode, whole=found.whole, fused=fused)
    notes = [f"<p><b>{escape(score)}</b>: {escape(meaning)}.</p>"]
    if hit.near_duplicate:
        notes.append(f"<p><b>Near duplicate</b>: {escape(words.NEAR_DUPLICATE)}</p>")
    if hit.localization:
        notes.append(f"<p><b>Where</b>: {escape(words.located(hit.localization))}.</p>")
    table = "" if found.whole else text.pairs_table(hit.matches)
    return (
        f'<section class="mr-why"><h3>Why #{hit.rank}, {escape(hit.volume_id)}</h3>'
        f'{"".join(notes)}<div class="mr-two">{pair}</div>{table}</section>'
    )


def cart_cards(cart: Cart, colours: Palette) -> str:
    """The support set, each slice with a button to take it out."""
    if not cart:
        return text.placeholder(
            "The support set is empty",
            "Add results to segment from them. While it is empty, the most similar annotated "
            "slices are found for each slice.",
        )
    return text.cards(
        (
            text.Card(
                key=item.key,
                image=pictures.thumbnail(
                    item.support.image,
                    item.support.mask,
                    item.support.names,
                    colours.with_names(item.support.names.values()),
                    side=144,
                ),
                alt=item.title,
                lines=[item.title, ", ".join(item.support.names.values()) or "no structure"],
                actions=[
                    text.Action("remove", "remove", f"Remove {item.title} from the support set")
                ],
            )
            for item in cart
        ),
        kind="cart",
    )


def opened_line(opened: Opened) -> str:
    """That an index was opened, and what is different if its rows are whole volumes."""
    note = f" {words.WHOLE_NOTE}" if opened.whole else ""
    return f"Opened the index {opened.index.manifest.name}.{note}"


def modes(opened: Opened) -> Props:
    """The ways of searching by their titles for this index."""
    titles = words.mode_choices(MODES, whole=opened.whole)
    return Props(choices=titles, **({"value": "slice"} if opened.whole else {}))


def about(opened: Opened) -> str:
    """What is in an index, what made it, and what it is not good for."""
    m = opened.index.manifest
    counts = m.counts
    unit = "volume" if opened.whole else "slice"
    cases = f"{counts.volumes} cases of {counts.patients} patients"
    if opened.synthetic:
        cases = f"{counts.volumes} synthetic cases"
    rows = {
        "Index": "; ".join(f"{one.name}, version {one.version}" for one in opened.manifests()),
        **({"From": opened.origin} if opened.origin else {}),
        "Contents": f"{cases}, {counts.slices} {unit}s, {counts.annotated_slices} of them "
        "annotated",
        "Modalities": f"{_listing(m.modalities)} {unit}s",
        "Regions": f"{_listing(m.regions)} {unit}s",
        "Structures": ", ".join(m.vocabulary.values()) or "none",
        "Embedder": f"{m.embedder.name} ({m.embedder.dim} numbers a {unit}); your image is "
        "compared with the same one",
        "Slices": f"{m.slices.axis}, intensity window {m.slices.window}",
        **({} if m.pictures else {"Pictures": f"none ({m.withheld}). {words.NO_PICTURES}"}),
        "Source": m.source,
        "License": m.license,
    }
    if opened.whole:
        rows["Searching"] = words.WHOLE_NOTE
    if opened.synthetic:
        rows["Limits"] = (
            "Synthetic phantoms computed from formulas, no patients. Good for trying the page out; "
            "what it finds for a real image has no clinical meaning."
        )
    return _table(rows)


def buildable() -> str:
    """The indexes of this project that are neither published nor built in, with their recipes."""
    recipes = "".join(
        _recipe(offered)
        for offered in OFFERED.values()
        if not offered.published and offered.origin.layout
    )
    return (
        '<div class="mr-recipes"><p class="mr-missing">These are not published yet. Where you '
        "have the data, build them by these commands, and give the new folder as the index."
        f"</p>{recipes}</div>"
    )


def _recipe(offered: Offered) -> str:
    *build, _ = offered.commands  # publishing is not for a visitor
    commands = "\n".join(map(wrapped, build))
    return (
        f"<details><summary>{escape(offered.title)}</summary><p>{escape(offered.shows)}</p>"
        f"<p>{escape(offered.pictures.reason)}.</p><pre>{escape(commands)}</pre></details>"
    )


def _listing(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items()) or "none"


def _table(rows: Mapping[str, str]) -> str:
    body = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
    return f'<div class="mr-about"><table><tbody>{body}</tbody></table></div>'


def embedders(rows: Sequence[Mapping[str, Any]], own: str) -> str:
    """Which embedders work on this machine; the index's own first."""
    known = any(row["name"] == own for row in rows)
    ordered = sorted(rows, key=lambda row: row["name"] != own)
    if not known:  # a model of a library, an ensemble, or a description of the user's own
        ordered.insert(0, {"name": own, "status": "not in the table"})
    return (
        '<p class="mr-missing">An index is always searched with the embedder that built it. '
        "Another one needs an index built with it.</p>"
    ) + _table(
        {
            row["name"]: str(row["status"]) + (", used by this index" if row["name"] == own else "")
            for row in ordered
        }
    )
