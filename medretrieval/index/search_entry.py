"""What a manifest says of the search beside its kind: what was asked for, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medretrieval.index.fields import Fields

# Kinds that miss nothing and store no structure; named here too, because their table loads faiss.
EXACT_KINDS = ("flat", "flat-l2")


@dataclass(frozen=True, kw_only=True)
class IndexRequest:
    """The kind of search that was asked for ("auto" too), and the settings that were given."""

    kind: str
    parameters: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return {"kind": self.kind, "parameters": dict(self.parameters)}


@dataclass(frozen=True, kw_only=True)
class RecallReport:
    """How much of what an exact search finds an approximate index finds, each from 0 to 1.

    Attributes:
        recall_at_1: share of queries whose most similar row was found.
        recall_at_10: share of the ten most similar rows that were found.
        first_volume: share of query volumes with the same first volume; None if the index has only
            one volume.
        first_5_volumes: mean share of the first five volumes that were among the first five found.
        queries, volumes: how many were tried.
        how: how the queries were made, in words.
    """

    recall_at_1: float
    recall_at_10: float
    first_volume: float | None
    first_5_volumes: float | None
    queries: int
    volumes: int
    how: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able data; `read` gives it back."""
        shares = {
            "recall@1": self.recall_at_1,
            "recall@10": self.recall_at_10,
            "first_volume": self.first_volume,
            "first_5_volumes": self.first_5_volumes,
        }
        return {
            **{name: value for name, value in shares.items() if value is not None},
            "queries": self.queries,
            "volumes": self.volumes,
            "how": self.how,
        }

    @classmethod
    def read(cls, fields: Fields) -> RecallReport:
        """Read the report of a manifest.

        Raises:
            IndexFormatError: a field is missing or out of range.
        """
        ranked = "first_volume" in fields.data or "first_5_volumes" in fields.data
        counts = {name: fields.get(name, int) for name in ("queries", "volumes")}
        for name, value in counts.items():
            if value < 0:
                raise fields.wrong(name, "is negative")
        return cls(
            recall_at_1=fields.share("recall@1"),
            recall_at_10=fields.share("recall@10"),
            first_volume=fields.share("first_volume") if ranked else None,
            first_5_volumes=fields.share("first_5_volumes") if ranked else None,
            queries=counts["queries"],
            volumes=counts["volumes"],
            how=fields.get("how", str),
        )


def read_request(fields: Fields) -> IndexRequest:
    """Read what was asked for.

    Raises:
        IndexFormatError: a field is missing or of another type.
    """
    return IndexRequest(kind=fields.get("kind", str), parameters=fields.sub("parameters").counts())
