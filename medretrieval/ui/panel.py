"""What the controls under "Search options" offer and which of them are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from medretrieval.imaging.orientation import AS_STORED
from medretrieval.types import UNKNOWN, LabelVolume
from medretrieval.ui import options, words
from medretrieval.ui.backend import Backend
from medretrieval.ui.opened import Opened
from medretrieval.ui.options import ALL, DEFAULTS, RANGE, STRUCTURE, Wanted
from medretrieval.ui.session import Props, Query, Updates

PREFIX = "opt_"  # of the names of the controls among the parts of the page
EVERY = ("Every slice", "")
SAMPLES = [
    ("One every 7 mm", "mm:7"),
    ("One every 15 mm", "mm:15"),
    ("Every 2nd slice", "step:2"),
    ("Every 4th slice", "step:4"),
    ("16 at random", "random:16"),
]
PARTS = [
    ("All slices", ALL),
    ("From … to …", RANGE),
    ("Those of a structure", STRUCTURE),
]
ORIENTATIONS = [
    ("As stored", AS_STORED),
    ("Try all eight orientations", options.ANY_ORIENTATION),
]
LISTED = 500  # values of a column to choose from; another one can be typed


def fresh() -> Updates:
    """Every control with the value that changes nothing."""
    return {PREFIX + name: value for name, value in DEFAULTS.items()}


def for_image(query: Query, count: int) -> Updates:
    """The controls that speak of the image, for another one of `count` slices."""
    return {
        "opt_slices": Props(value=ALL),
        "opt_first": 0,
        "opt_last": count - 1,
        "opt_sample": Props(value=""),
        **structures(query.labels),
    }


def structures(labels: LabelVolume | None) -> Updates:
    """The structures of a label map to choose from, the first one chosen."""
    found = [] if labels is None else list(labels.names.items())
    choices = [(f"{name} (value {value})", name) for value, name in found]
    return {
        "opt_structure": Props(choices=choices, value=choices[0][1] if choices else None),
        "opt_map": None,
    }


def for_index(opened: Opened, backend: Backend) -> Updates:
    """The filters that an index offers, none of them chosen."""
    store = opened.index.store
    offered = [(title, key) for title, key in backend.choices() if key != opened.key]
    return {
        "opt_modality": Props(choices=_names("Any modality", store.modality.names), value=""),
        "opt_region": Props(choices=_names("Any region", store.region.names), value=""),
        "opt_labels": Props(choices=sorted(store.labels.names), value=[]),
        "opt_column": Props(choices=[("None", ""), *_columns(opened)], value=""),
        "opt_value": Props(choices=[], value=None, visible=False),
        "opt_patient": "",
        "opt_without": "",
        "opt_also": Props(
            choices=offered,
            value=[],
            visible=bool(offered or backend.allow_paths) and not opened.whole,
        ),
    }


def _columns(opened: Opened) -> list[tuple[str, str]]:
    return [("case", "volume_id"), *((name, name) for name in opened.index.store.attributes)]


def values(opened: Opened, column: str | None) -> Updates:
    """The values of a column to choose from."""
    store = opened.index.store
    names: Sequence[str] = ()
    if column == "volume_id":
        names = store.volume_ids
    elif column:
        names = store.attributes[column].names if column in store.attributes else ()
    choices = sorted(filter(None, names))[:LISTED]
    return {"opt_value": Props(choices=choices, value=None, visible=bool(column))}


def _names(every: str, names: Sequence[str]) -> list[tuple[str, str]]:
    return [(every, ""), *((name, name) for name in sorted(names) if name != UNKNOWN)]


def shown(mode: str, which: str, sample: str, *, whole: bool, count: int) -> Updates:
    """Which controls are shown.

    Args:
        mode: of searching; "slice" searches with the slice that is looked at.
        which: value of the control `slices`.
        whole: the index is of whole volumes.
        count: number of slices of the image; 0 as long as there is none.
    """
    choosing = not whole and mode != "slice" and count != 1
    sampled = mode in options.SAMPLE_MODES
    return {
        "mode": Props(info=words.HINTS.get(mode, "") if not whole else ""),
        "opt_part": Props(visible=choosing),
        "opt_range": Props(visible=which == RANGE),
        "opt_map_group": Props(visible=which == STRUCTURE),
        "opt_sample": Props(choices=[*([] if sampled else [EVERY]), *SAMPLES]),
        "opt_seed": Props(visible=sample.startswith("random")),
        "opt_orientation": Props(visible=not whole),
        "opt_sigma": Props(visible=mode in options.SIGMA_MODES and not whole),
        "opt_candidates": Props(visible=mode in options.CANDIDATE_MODES and not whole),
        "opt_top": Props(visible=mode in options.TOP_MODES and not whole),
    }


def around(number: int, count: int) -> tuple[int, int]:
    """A quarter of `count` slices around slice `number`, to begin with."""
    half = max(1, count // 8)
    return max(0, number - half), min(count - 1, number + half)


def in_use(wanted: Wanted, mode: str, titles: Mapping[str, str]) -> str:
    """The options that change the search in one line; nothing if there are none."""
    said = words.in_use(wanted, mode, titles)
    if not said:
        return ""
    return f'<div class="mr-in-use">In use: {escape(" · ".join(said))}</div>'


def named(values: Sequence[Any]) -> dict[str, Any]:
    """The values of the controls, in the order of `options.DEFAULTS`, by their names."""
    return dict(zip(DEFAULTS, values, strict=True))
