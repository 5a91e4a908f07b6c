"""The kinds of nearest-neighbour search: their settings, and what these are for a given index.

Every setting is a whole number that ends in the manifest. Defaults that depend on the number of
rows or on the length of the embeddings are worked out when the index is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import UsageError, unknown_name
from medretrieval.index import structures
from medretrieval.index.structures import IP, L2, Find

GRAPH_NEIGHBOURS = 32
AUTO = "auto"  # not a kind: `choice.choose` names one when the number of rows is known

# Rows that k-means wants for each centre (FAISS's own rule).
_ROWS_OF_A_CENTRE = 39


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A setting of an index kind: smallest and largest value, what it means, and its default.

    Attributes:
        default: a number, or a function of rows, dim, and the parameters listed before this one.
    """

    low: int
    high: int
    summary: str
    default: int | Callable[[int, int, Mapping[str, int]], int]


@dataclass(frozen=True, kw_only=True)
class IndexKind:
    """A way of searching.

    Attributes:
        exact: whether it always finds the best rows.
        parameters: settings by name.
        metric: FAISS metric by which an exact search compares.
        build: makes the FAISS index from (n, dim) float32 unit rows; None if the embeddings
            themselves are searched and nothing has to be stored.
        find: looks for candidates in what `build` made.
        faiss_types: classes that a stored index of this kind can have, and their metric.
    """

    name: str
    summary: str
    exact: bool = False
    parameters: Mapping[str, Parameter]
    metric: int = IP
    build: Callable[[NDArray[np.float32], Mapping[str, int]], Any] | None = None
    find: Find | None = None
    faiss_types: Mapping[str, int]


def _lists(rows: int, dim: int, chosen: Mapping[str, int]) -> int:
    return max(1, min(4 * isqrt(rows), rows // _ROWS_OF_A_CENTRE))


def _bits(rows: int, dim: int, chosen: Mapping[str, int]) -> int:
    return min(8, max(4, (rows // _ROWS_OF_A_CENTRE).bit_length() - 1))


def _subvectors(rows: int, dim: int, chosen: Mapping[str, int]) -> int:
    """The smallest divisor of dim that leaves at most eight numbers to a code."""
    return next(m for m in range(1, dim + 1) if dim % m == 0 and dim <= 8 * m)


def _probes(rows: int, dim: int, chosen: Mapping[str, int]) -> int:
    return min(chosen["nlist"], max(32, chosen["nlist"] // 64))


def _lsh_candidates(rows: int, dim: int, chosen: Mapping[str, int]) -> int:
    return max(400, rows // 2000)


_CANDIDATES = "rows whose exact similarity is computed for each query slice"

KINDS: Mapping[str, IndexKind] = {
    "flat": IndexKind(
        name="flat",
        summary="exact: every query is compared with every row",
        exact=True,
        parameters={},
        faiss_types={},
    ),
    "flat-l2": IndexKind(
        name="flat-l2",
        summary="exact by Euclidean distance: of unit vectors the same ranking as flat",
        exact=True,
        parameters={},
        metric=L2,
        faiss_types={},
    ),
    "hnsw": IndexKind(
        name="hnsw",
        summary="approximate: a graph of near neighbours, for large indexes",
        parameters={
            "M": Parameter(
                default=GRAPH_NEIGHBOURS,
                low=2,
                high=256,
                summary="neighbours of a row in the graph",
            ),
            "efConstruction": Parameter(
                default=100, low=1, high=10_000, summary="rows looked at to place a row"
            ),
            "efSearch": Parameter(
                default=384, low=1, high=10_000, summary="rows looked at for a query slice"
            ),
        },
        build=structures.build_hnsw,
        find=structures.find_hnsw,
        # Older indexes hold the vectors themselves in the graph.
        faiss_types={"IndexHNSWSQ": IP, "IndexHNSWFlat": IP},
    ),
    "lsh": IndexKind(
        name="lsh",
        summary="approximate: a short code of bits for each row, all of which are compared",
        parameters={
            "nbits": Parameter(default=512, low=8, high=4096, summary="bits of a code"),
            "candidates": Parameter(
                default=_lsh_candidates, low=1, high=1_000_000, summary=_CANDIDATES
            ),
        },
        build=structures.build_lsh,
        find=structures.find_lsh,
        faiss_types={"IndexLSH": L2},
    ),
    "ivf-pq": IndexKind(
        name="ivf-pq",
        summary="approximate: short codes in lists, for indexes too large for hnsw's memory",
        parameters={
            "nlist": Parameter(default=_lists, low=1, high=1 << 16, summary="lists of rows"),
            "nprobe": Parameter(
                default=_probes, low=1, high=1 << 16, summary="lists looked at for a query slice"
            ),
            "m": Parameter(
                default=_subvectors, low=1, high=4096, summary="codes of a row; divides dim"
            ),
            "bits": Parameter(default=_bits, low=4, high=12, summary="bits of a code"),
            "candidates": Parameter(default=400, low=1, high=1_000_000, summary=_CANDIDATES),
        },
        build=structures.build_ivf_pq,
        find=structures.find_ivf_pq,
        faiss_types={"IndexIVFPQ": IP},
    ),
}


def check_parameters(kind: str, given: Mapping[str, int] | None, *, dim: int) -> None:
    """Refuse what no index of this dimension can be built with, before anything is embedded.

    Raises:
        UsageError: unknown kind or parameter, or a value out of range.
    """
    if kind == AUTO:
        if given:
            raise UsageError(
                f"index kind {AUTO!r} chooses kind and parameters by the number of rows; name the "
                f"kind to set {', '.join(given)}"
            )
        return
    if kind not in KINDS:
        raise unknown_name("index kind", kind, [AUTO, *KINDS], "medretrieval build --help")
    known = KINDS[kind].parameters
    for name, value in (given or {}).items():
        if name not in known:
            raise UsageError(
                f"index kind {kind!r} has no parameter {name!r}; "
                f"it has {', '.join(known) or 'none'}"
            )
        low, high = known[name].low, known[name].high
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UsageError(f"{kind} {name} is {value!r}; expected a whole number {low}..{high}")
    codes = (given or {}).get("m")
    if codes is not None and dim % codes:
        raise UsageError(
            f"{kind} m is {codes}; it must divide the {dim} numbers of an embedding, e.g. "
            f"{_subvectors(0, dim, {})}"
        )


def resolve_parameters(
    kind: str, given: Mapping[str, int] | None, *, rows: int, dim: int
) -> dict[str, int]:
    """Return all parameters of `kind` as numbers: the given ones, and defaults for this size.

    Args:
        kind: one of `KINDS`; not "auto".
        rows, dim: shape of the embeddings.

    Raises:
        UsageError: unknown kind or parameter, or a value out of range.
    """
    if kind not in KINDS:
        raise unknown_name("index kind", kind, KINDS, "medretrieval build --help")
    check_parameters(kind, given, dim=dim)
    values: dict[str, int] = {}
    for name, parameter in KINDS[kind].parameters.items():
        if given and name in given:
            values[name] = given[name]
        elif callable(parameter.default):
            default = parameter.default(rows, dim, values)
            values[name] = min(max(default, parameter.low), parameter.high)
        else:
            values[name] = parameter.default
    return values
