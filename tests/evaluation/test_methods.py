"""Methods as they are written on the command line."""

from __future__ import annotations

import pytest

from medretrieval.errors import UsageError
from medretrieval.evaluation.methods import METHODS, parse_method, parse_methods
from medretrieval.evaluation.published import PUBLISHED


def test_a_number_of_supports_can_be_said() -> None:
    assert parse_method("random@16", 8).k == 16
    assert str(parse_method("random", 8)) == "random@8"
    assert str(parse_method("points-1", 8)) == "points-1"
    assert len(parse_methods(["retrieved", "retrieved@8", "retrieved@2"], 8)) == 2
    assert parse_method("multi-atlas", 4).title("net") == "multi-atlas fusion, 4 retrieved supports"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("randm", "did you mean random"),
        ("random@", "random@16"),
        ("random@0", "random@16"),
        ("points-1@8", "takes no supports"),
    ],
)
def test_wrong_methods_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_method(text, 8)


def test_published_numbers_are_of_known_methods() -> None:
    for rows in PUBLISHED.values():
        for row in rows:
            assert str(parse_method(row.like, 8)) == row.like
            assert all(0 < score < 1 for score in row.scores.values())
    assert {m.source for m in METHODS.values()} == {"retrieved", "random", "points"}
