"""Options of segmenters that come from outside of the program."""

from __future__ import annotations

from typing import Any

import pytest

from medretrieval.errors import UsageError
from medretrieval.segmentation.options import MOST_TILES, SegmentationOptions, read_options


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"crop": "body", "crop_margin": 0, "flips": True, "closer": False, "negatives": True},
        {"tiles": "auto", "threshold": 0.3, "pointers": "rank", "memory": "pooled"},
        {"tiles": MOST_TILES},
    ],
)
def test_options_that_there_are(values: dict[str, Any]) -> None:
    changes = read_options(values)
    assert changes == values
    options = SegmentationOptions().changed(changes)
    assert {name: getattr(options, name) for name in values} == values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"foo": 1}, "unknown option 'foo'; known: closer, crop"),
        ({"tile": 2}, "did you mean tiles"),
        ({"crop": "left"}, "expected 'none' or 'body'"),
        ({"crop": ["body"]}, "expected 'none' or 'body'"),
        ({"crop_margin": "a"}, "crop_margin 'a': expected a finite number"),
        ({"crop_margin": float("nan")}, "finite"),
        ({"crop_margin": -1}, "0 or more"),
        ({"closer": "false"}, "closer 'false': expected true or false"),
        ({"flips": 1}, "true or false"),
        ({"negatives": None}, "true or false"),
        ({"tiles": None}, "expected 'auto' or a whole number from 1 to 16"),
        ({"tiles": 1.5}, "whole number"),
        ({"tiles": MOST_TILES + 1}, "from 1 to 16"),
        ({"threshold": "0.5"}, "between 0 and 1"),
        ({"threshold": True}, "between 0 and 1"),
        ({"memory": 3}, "expected 'all' or 'pooled'"),
        (["closer"], "expected names with values"),
    ],
)
def test_options_that_cannot_be(values: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_options(values)
