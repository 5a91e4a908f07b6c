"""Which kind of index suits a number of rows, with the reason in words."""

from __future__ import annotations

from medretrieval.index.kinds import GRAPH_NEIGHBOURS

# Measured on 2 cores: 240 queries x 290,757 rows x 768 numbers take 1.3 s.
_PRODUCTS_A_SECOND = 240 * 290_757 * 768 / 1.3
_QUERY_SLICES = 300
# So long a search keeps a person waiting; below it nothing has to be approximated.
_PATIENCE_SECONDS = 2.0
# Half the memory of a common machine of 16 GB.
_GRAPH_BYTES = 8e9


def choose(rows: int, dim: int) -> tuple[str, str]:
    """Return the kind of index for (rows, dim) embeddings, and why, in words for the user.

    It depends on these two numbers alone, not on the machine that happens to build the index.

    >>> choose(290_757, 768)[0], choose(1_322_552, 768)[0], choose(50_000_000, 768)[0]
    ('flat', 'hnsw', 'ivf-pq')
    """
    seconds = _QUERY_SLICES * rows * dim / _PRODUCTS_A_SECOND
    exact = (
        f"{rows} rows of {dim} numbers: exact search of a {_QUERY_SLICES}-slice query takes "
        f"{_time(seconds)} on two cores"
    )
    if seconds <= _PATIENCE_SECONDS:
        return "flat", f"{exact}, so every row is compared"
    graph = rows * (dim + 8 * GRAPH_NEIGHBOURS + 16)
    if graph <= _GRAPH_BYTES:
        return "hnsw", (
            f"{exact}, so a graph of near neighbours is searched, which needs about "
            f"{graph / 1e9:.1f} GB of memory"
        )
    return "ivf-pq", (
        f"{exact}, and a graph of near neighbours would need about {graph / 1e9:.0f} GB of memory, "
        "so short codes in lists are searched"
    )


def _time(seconds: float) -> str:
    if seconds < 0.1:
        return "less than 0.1 s"
    return f"about {seconds:.1f} s" if seconds < 10 else f"about {seconds:.0f} s"
