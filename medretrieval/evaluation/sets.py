"""Which rows of a table make a set, what its structures are called, and its queries."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medretrieval.errors import InputError, UsageError, unknown_name
from medretrieval.evaluation.published import PUBLISHED
from medretrieval.index.tabular import row_channel, table_rows

_KEYS = ("title", "table", "where", "labels", "every", "published")


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """One set of a study: patients to retrieve from, and others to segment.

    Attributes:
        name: short, for folders and options.
        title: for people.
        table: the CSV table, with the columns of `medretrieval build` and one called `split`:
            "database" rows are indexed, "query" rows segmented, others left out.
        where: column -> value of the rows that belong to the set.
        labels: mask value -> name of the structures that are scored; empty for all that the masks
            of the database rows show, under the names that they have in the index.
        every: only every n-th slice of a volume is segmented and scored.
        published: the data set's name in `published.PUBLISHED`, to show a paper's numbers beside.
    """

    name: str
    title: str
    table: Path
    where: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[int, str] = field(default_factory=dict)
    every: int = 1
    published: str | None = None

    def rows(self, split: str) -> list[dict[str, str]]:
        """The rows of the table with this `split`, in its order; raises as `table_rows`."""
        return table_rows(self.table, {**self.where, "split": split})

    def queries(self) -> list[QueryCase]:
        """The cases to segment.

        Raises:
            UsageError: as for `rows`; or a row has no mask to compare with.
            InputError: as for `rows`.
        """
        cases = []
        for row in self.rows("query"):
            if not row.get("mask"):
                raise UsageError(
                    f"{row['path']} is a query of {self.table} without a mask; a query needs its "
                    "true mask to be scored"
                )
            volume_id = row.get("volume_id") or row["path"]
            cases.append(
                QueryCase(
                    volume_id=volume_id,
                    patient_id=row.get("patient_id") or volume_id,
                    image=self.table.parent / row["path"],
                    mask=self.table.parent / row["mask"],
                    modality=row.get("modality") or None,
                    channel=row_channel(row),
                )
            )
        twice = [name for name, n in Counter(c.volume_id for c in cases).items() if n > 1]
        if twice:
            raise UsageError(
                f"{self.table} has several queries called {twice[0]!r}; give every case a "
                "volume_id of its own"
            )
        return cases


@dataclass(frozen=True, kw_only=True)
class QueryCase:
    """One image to segment (a channel of it, if it is 4-D), and its true mask."""

    volume_id: str
    patient_id: str
    image: Path
    mask: Path
    modality: str | None
    channel: int = 0


def one_set(
    table: Path,
    labels: Mapping[int, str] | None = None,
    where: Mapping[str, str] | None = None,
) -> EvaluationSet:
    """A whole table, or its rows with the values of `where`, as one set.

    Raises:
        UsageError: no such table.
    """
    _check_table(table)
    return EvaluationSet(
        name=table.stem,
        title=table.stem,
        table=table,
        where=dict(where or {}),
        labels=dict(labels or {}),
    )


def read_sets(
    table: Path, definitions: Path, only: Sequence[str] | None = None
) -> list[EvaluationSet]:
    """The sets that a file defines.

    Args:
        table: CSV, see `EvaluationSet.table`.
        definitions: JSON file, name -> {"title", "table", "where", "labels", "every", "published"},
            none of them needed. "labels" is such as {"1": "RV"}, "table" names another table in the
            folder of `table`.
        only: names of the sets wanted.

    Raises:
        UsageError: a file is missing, or a name in `only` is unknown.
        InputError: the file is not as it should be.
    """
    _check_table(table)
    try:
        data = json.loads(definitions.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"sets {definitions} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"sets {definitions}: not a JSON file ({error})") from None
    if not isinstance(data, dict) or not data:
        raise InputError(f"sets {definitions}: expected an object, name of the set -> definition")
    sets = {name: _set(name, entry, table, definitions) for name, entry in data.items()}
    for name in only or ():
        if name not in sets:
            raise unknown_name("set", name, sets, None)
    return [sets[name] for name in only or sets]


def _check_table(table: Path) -> None:
    if not table.is_file():
        raise UsageError(f"table {table} does not exist; expected a .csv file")


def _set(name: str, entry: Any, table: Path, source: Path) -> EvaluationSet:
    where = f"sets {source}, {name}"
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected an object with some of {', '.join(_KEYS)}")
    unknown = sorted(set(entry) - set(_KEYS))
    if unknown:
        raise InputError(
            f"{where}: unknown key {unknown[0]!r}; expected some of {', '.join(_KEYS)}"
        )
    labels = entry.get("labels", {})
    named = isinstance(labels, dict) and all(k.isdecimal() and int(k) > 0 for k in labels)
    if not named:
        raise InputError(f"{where}: labels {labels} are not mask value (1 or more) -> name")
    chosen = entry.get("where", {})
    if not isinstance(chosen, dict):
        raise InputError(f'{where}: where is {chosen!r}; expected {{"column": "value"}}')
    every = entry.get("every", 1)
    if not isinstance(every, int) or every < 1:
        raise InputError(f"{where}: every is {every!r}; expected a whole number of at least 1")
    published = entry.get("published")
    if published is not None and published not in PUBLISHED:
        raise InputError(f"{where}: published {published!r}; known: {', '.join(PUBLISHED)}")
    return EvaluationSet(
        name=name,
        title=str(entry.get("title", name)),
        table=table.parent / entry["table"] if "table" in entry else table,
        where={str(k): str(v) for k, v in chosen.items()},
        labels={int(value): str(label) for value, label in labels.items()},
        every=every,
        published=published,
    )
