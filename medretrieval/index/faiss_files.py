"""FAISS indexes in files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import IndexFormatError
from medretrieval.index.kinds import KINDS
from medretrieval.index.structures import faiss


def build_faiss(embeddings: NDArray[np.float32], kind: str, parameters: Mapping[str, int]) -> Any:
    """Build the FAISS index, the same one each time; None if the kind needs none."""
    make = KINDS[kind].build
    return None if make is None else make(embeddings, parameters)


def write_faiss(index: Any, path: Path) -> None:
    """Write a FAISS index to a file."""
    faiss.write_index(index, str(path))


def read_faiss(path: Path, *, rows: int, dim: int, kind: str) -> Any:
    """Read a FAISS index. Only for files whose hash was checked and whose source is trusted.

    Raises:
        IndexFormatError: not a FAISS index, or not of these rows, dimension and kind.
    """
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise IndexFormatError(
            f"{path} cannot be read by FAISS ({str(error).splitlines()[0][:200]}); delete it and "
            "its entry in the manifest, it is made again from the embeddings"
        ) from None
    types = KINDS[kind].faiss_types
    name = type(index).__name__
    if (index.ntotal, index.d) != (rows, dim) or types.get(name) != index.metric_type:
        raise IndexFormatError(
            f"{path} holds {name} of {index.ntotal} x {index.d} (metric {index.metric_type}), "
            f"expected {' or '.join(types)} of {rows} x {dim}; build the index again"
        )
    return index
