"""What an index says of its versions: in JSON, on one line, on its card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medretrieval.errors import UsageError
from medretrieval.index.card import dataset_card
from medretrieval.index.changes import Change, check_note, day_of
from medretrieval.index.fields import Fields
from medretrieval.index.manifest import read_manifest

DAY = "2026-11-27"
COUNTS = st.integers(0, 10_000)


def change(**fields: object) -> Change:
    return Change(**{"version": 3, "date": DAY, **fields})  # type: ignore[arg-type]


def test_the_json_of_an_appended_index_is_that_of_older_versions() -> None:
    assert list(change(volumes=2, slices=40, replaced=1, note="x").to_json().items()) == [
        ("version", 3),
        ("date", DAY),
        ("volumes", 2),
        ("slices", 40),
        ("replaced", 1),
        ("note", "x"),
    ]


@given(
    volumes=COUNTS,
    slices=COUNTS,
    replaced=COUNTS,
    removed=COUNTS,
    embedder=st.none() | st.text(min_size=1, max_size=200),
    note=st.text(max_size=500),
)
def test_a_change_is_read_as_it_was_written(
    volumes: int, slices: int, replaced: int, removed: int, embedder: str | None, note: str
) -> None:
    made = change(
        **{"volumes": volumes, "slices": slices, "replaced": replaced, "removed": removed},
        embedder=embedder,
        note=note,
    )
    if any((volumes, slices, replaced, removed)) or embedder is not None:
        assert Change.read(Fields(made.to_json(), "m")) == made
        assert made.words().startswith(f"version 3 of {DAY}: ")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"volumes": 2, "slices": 40}, "2 volumes (40 slices) added"),
        (
            {"volumes": 2, "slices": 40, "replaced": 1, "note": "by night"},
            "2 volumes (40 slices) added, 1 of them in place of an older one; by night",
        ),
        (
            {"volumes": 3, "slices": 3, "replaced": 2},
            "3 volumes (3 slices) added, 2 of them in place of older ones",
        ),
        ({"volumes": 1, "slices": 1}, "1 volume (1 slice) added"),
        ({"removed": 1}, "1 volume removed"),
        ({"removed": 3, "note": "asked for"}, "3 volumes removed; asked for"),
        ({"embedder": "dinov2-base"}, "embeddings of dinov2-base added"),
        ({"replaced": 2}, "2 volumes replaced"),
    ],
)
def test_words(fields: dict[str, object], words: str) -> None:
    assert change(**fields).words() == f"version 3 of {DAY}: {words}"


def test_the_card_lists_the_last_changes(flat_index: Path) -> None:
    manifest = read_manifest(flat_index)
    assert "## Changes" not in dataset_card(manifest)
    changes = tuple(Change(version=n, date=DAY, removed=n, note="a | b") for n in range(2, 27))
    text = dataset_card(replace(manifest, version=26, changes=changes))
    section = text.partition("## Changes\n\n")[2].partition("\n\n## ")[0]
    lines = section.splitlines()
    assert lines[0] == f"- version 26 of {DAY}: 26 volumes removed; a / b"
    assert lines[19] == f"- version 7 of {DAY}: 7 volumes removed; a / b"
    assert lines[20:] == ["- 5 older ones, listed in manifest.json"]
    assert len(dataset_card(replace(manifest, changes=changes[:20])).split("\n- version ")) == 21


def test_notes_and_days_that_cannot_be() -> None:
    for note in ("a\nb", "x" * 501):
        with pytest.raises(UsageError, match="note"):
            check_note(note)
    assert day_of(DAY) == DAY
    assert len(day_of(None)) == 10
    with pytest.raises(UsageError, match="today"):
        day_of("today")
