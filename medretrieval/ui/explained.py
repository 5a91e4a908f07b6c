"""The pictures that explain a hit: all similarities, and where two slices are alike."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from medretrieval.errors import UnavailableError
from medretrieval.imaging import slice_axis, turn
from medretrieval.types import Hit, Match
from medretrieval.ui import content, pictures, text
from medretrieval.ui.opened import Opened
from medretrieval.ui.session import Found, Query

WAITING = text.placeholder("Being explained", "Where the two slices are alike follows.")
MATRIX = (
    "Each row is a slice of your image, each column a slice of the case; marked is the best match "
    "of each of your slices. A line from corner to corner: both show the same, in the same order."
)
KINDS = {
    "contribution": "Bright: what makes the two slices similar; the mean is their similarity.",
    "match": "Bright: what looks like some part of the other slice.",
}
UNITS = {
    "contribution": "contribution to the similarity",
    "match": "similarity to the most similar part",
}
SIDE = 320


def matrix(opened: Opened, embedded: Any, found: Found, hit: Hit) -> str:
    """The similarity of the embedded slices of an image with those of a case, as in the search."""
    from medretrieval.retrieval.explain import matrix_picture

    title = f"Similarity of all slices of your image and of {hit.volume_id}"
    wanted = found.wanted
    drawn = matrix_picture(
        opened.index, embedded, hit.volume_id, filters=wanted.filters, feedback=wanted.feedback
    )
    return text.figure(drawn, title, MATRIX)


def maps(query: Query, found: Found, opened: Opened, hit: Hit, match: Match) -> str:
    """The pair of slices under their heat maps.

    Raises:
        UnavailableError: the embedder has no features of parts of a picture.
    """
    from medretrieval.retrieval.explain import explain_pair, limits, overlay

    policy, store = opened.policy, opened.index.store
    axis = slice_axis(query.volume.grid, policy.axis)
    stored = query.view(policy, policy.window, match.query_slice).image
    own = turn(stored, found.result.orientation)
    aspect = text.aspect(query.volume.grid, axis)
    if _swapped(found.result.orientation):
        aspect = 1 / aspect
    row = store.row(hit.volume_id, match.slice_index)
    if not store.has_image(row):
        raise UnavailableError("this index has no pictures")
    other = store.image(row)
    heat = explain_pair(opened.index, own, row)
    both = limits(heat.a.pixels, heat.b.pixels)
    shown = text.figures(
        (pictures.thumbnail(overlay(image, pixels, both), aspect=form, side=SIDE), caption)
        for image, pixels, form, caption in (
            (own, heat.a.pixels, aspect, f"your slice {match.query_slice}"),
            (
                other,
                heat.b.pixels,
                content.row_aspect(opened, row),
                f"its slice {match.slice_index}",
            ),
        )
    )
    scale = text.scale(pictures.gradient(), f"{both[0]:.2g}", f"{both[1]:.2g}", UNITS[heat.kind])
    return f'<div class="mr-two">{shown}</div>{scale}<p>{escape(KINDS[heat.kind])}</p>'


def _swapped(orientation: str) -> bool:
    """Whether rows become columns."""
    return orientation in ("rotated left", "rotated right") or "diagonal" in orientation


def unavailable(reason: str) -> str:
    """Instead of heat maps: why there are none."""
    return f'<p class="mr-missing">No heat maps: {escape(reason)}</p>'


def panel(parts: Iterable[str]) -> str:
    """All of it."""
    return f'<section class="mr-why">{"".join(parts)}</section>'
