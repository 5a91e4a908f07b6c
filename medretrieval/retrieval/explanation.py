"""An explanation of a hit as files: the matrix of all slices, and the heat maps of one pair."""

from __future__ import annotations

import io
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medretrieval.errors import InputError, UnavailableError, UsageError
from medretrieval.imaging.orientation import AS_STORED
from medretrieval.retrieval.engine import Index
from medretrieval.retrieval.explain import (
    SimilarityMatrix,
    draw_matrix,
    embedded_query,
    explain_pair,
    pair_picture,
    picture_of,
    similarity_matrix,
)
from medretrieval.retrieval.filters import NO_FILTERS, Filters
from medretrieval.retrieval.heat import Kind
from medretrieval.retrieval.query import Query, QueryEmbeddings
from medretrieval.retrieval.whole import refuse_localizing
from medretrieval.types import Match, Progress, no_progress

MATRIX, TABLE, PAIR = "matrix.png", "matrix.csv", "pair.png"


@dataclass(frozen=True, eq=False, kw_only=True)
class Explanation:
    """What was written.

    Attributes:
        matrix: similarities of all slices.
        pair: the two slices with heat maps.
        orientation: how the slices of the query were turned.
        kind: of the maps, see `heat`; None where there are none.
        files: paths.
        problem: why there are no heat maps, None where there are.
    """

    matrix: SimilarityMatrix
    pair: Match
    orientation: str
    kind: Kind | None
    files: tuple[Path, ...]
    problem: UnavailableError | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            **self.matrix.to_json(),
            "orientation": self.orientation,
            "pair": {**self.pair.to_json(), "kind": self.kind},
            "files": [str(path) for path in self.files],
        }


def write_explanation(
    index: Index,
    query: Query,
    out: str | Path,
    *,
    volume_id: str | None = None,
    slice_index: int | None = None,
    filters: Filters = NO_FILTERS,
    orientation: str = AS_STORED,
    channel: int = 0,
    allow_one_slice: bool = False,
    force: bool = False,
    progress: Progress = no_progress,
) -> Explanation:
    """Write matrix.png, matrix.csv and pair.png into the folder `out`.

    Where the embedder has no features of parts there is no pair.png, and `problem` says why.

    Args:
        query: as for `Index.search`.
        out: made if it does not exist.
        volume_id: a volume of the index, default the first hit of mode "rerank".
        slice_index: the slice of the query whose best match is shown with heat maps, default that
            of the most similar pair.
        filters: of the search for the volume.
        orientation, channel, allow_one_slice: as for `Index.search`.
        force: replace files of these names.

    Raises:
        UsageError: a file exists and not `force`; unknown volume or slice; nothing was found; an
            index of whole volumes.
        InputError: the query cannot be read, or `out` cannot be written.
    """
    folder = Path(out)
    _check_folder(folder, force)
    refuse_localizing(index.store.manifest.embedder)
    embedded = embedded_query(
        index,
        index.read(query, channel=channel, allow_one_slice=allow_one_slice),
        orientation=orientation,
        filters=filters,
        progress=progress,
    )
    if volume_id is None:
        hits = index.search(embedded, mode="rerank", k=1, filters=filters).hits
        if not hits:
            raise UsageError("no volume of the index is left to be found; change the filters")
        volume_id = hits[0].volume_id
    matrix = similarity_matrix(index, embedded, volume_id)
    place = _place(matrix, embedded, slice_index)
    pair = matrix.match(place)
    files = [
        _write(folder / MATRIX, _png(draw_matrix(matrix))),
        _write(folder / TABLE, matrix.csv().encode()),
    ]
    row = int(matrix.rows[matrix.best[place]])
    problem, kind = None, None
    try:
        picture = picture_of(index, embedded, pair.query_slice)
        maps = explain_pair(index, picture, row)
    except UnavailableError as error:
        # A picture of an earlier run would pass for one of this pair.
        (folder / PAIR).unlink(missing_ok=True)
        problem = error
    else:
        kind = maps.kind
        titles = (
            f"{matrix.query}, slice {pair.query_slice}",
            f"{matrix.volume_id}, slice {pair.slice_index}",
        )
        drawn = pair_picture((picture, index.store.image(row)), maps, titles)
        files.append(_write(folder / PAIR, _png(drawn)))
    return Explanation(
        matrix=matrix,
        pair=pair,
        orientation=embedded.orientation,
        kind=kind,
        files=tuple(files),
        problem=problem,
    )


def _place(matrix: SimilarityMatrix, embedded: QueryEmbeddings, slice_index: int | None) -> int:
    """The row of the matrix that the pair is of."""
    if slice_index is None:
        return int(matrix.values.max(axis=1).argmax())
    embedded.only(slice_index)  # refuses a slice that there is not
    return int(np.flatnonzero(matrix.query_slices == slice_index)[0])


def _check_folder(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give a folder for the explanation")
    there = [name for name in (MATRIX, TABLE, PAIR) if (folder / name).exists()]
    if there and not force:
        raise UsageError(
            f"{folder} has {', '.join(there)} already; give another folder, or --force to replace"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}); check the path") from error


def _png(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); check space and permissions"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
