"""What `datasets` reads besides the slices: the embeddings as a table, and a FAISS index.

Both are derived from the embeddings file, for those who work without medretrieval.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

COLUMN = "embedding"
_GROUP_BYTES = 8 << 20
_MAX_FAISS_BYTES = 4 << 30  # it is made in memory


def write_embeddings_table(path: Path, embeddings: NDArray[np.float32]) -> None:
    """Write (n, dim) float32 unit rows as parquet with the columns row_id and embedding."""
    rows, dim = embeddings.shape
    features = {
        "row_id": {"dtype": "int64", "_type": "Value"},
        COLUMN: {"feature": {"dtype": "float32", "_type": "Value"}, "length": dim, "_type": "List"},
    }
    schema = pa.schema(
        [("row_id", pa.int64()), (COLUMN, pa.list_(pa.float32(), dim))],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    step = max(1, _GROUP_BYTES // (4 * dim))
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for first in range(0, rows, step):
            block = np.ascontiguousarray(embeddings[first : first + step], np.float32)
            numbers = pa.array(np.arange(first, first + len(block)))
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), dim)
            writer.write_table(pa.Table.from_arrays([numbers, vectors], schema=schema))


def write_flat_faiss(path: Path, embeddings: NDArray[np.float32]) -> bool:
    """Write an exact FAISS index (inner product) of (n, dim) float32 unit rows.

    Returns:
        Whether it was written: not if it takes more than 4 GB, as it is made in memory.
    """
    from medretrieval.index.faiss_files import write_faiss
    from medretrieval.index.structures import faiss

    if embeddings.nbytes > _MAX_FAISS_BYTES:
        logger.warning("no %s: %d MB are too many", path.name, embeddings.nbytes >> 20)
        return False
    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(np.ascontiguousarray(embeddings, np.float32))
    write_faiss(index, path)
    return True
