"""An explanation of a hit as files: the matrix of all slices, and the heat maps of one pair."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medretrieval.errors import InputError, UnavailableError, UsageError
from medretrieval.imaging.orientation import AS_STORED
from medretrieval.retrieval.aggregation import DEFAULT_SIGMA
from medretrieval.retrieval.chosen import chosen_slices
from medretrieval.retrieval.engine import NO_FEEDBACK, Index
from medretrieval.retrieval.explain import (
    SimilarityMatrix,
    draw_matrix,
    embedded_query,
    explain_pair,
    pair_picture,
    picture_of,
    rows_of,
    similarity_matrix,
)
from medretrieval.retrieval.feedback import Feedback
from medretrieval.retrieval.filters import NO_FILTERS, Filters
from medretrieval.retrieval.heat import Kind
from medretrieval.retrieval.modes import MODES
from medretrieval.retrieval.query import Query
from medretrieval.retrieval.selection import ALL_SLICES, Selection, runs
from medretrieval.retrieval.whole import refuse_localizing
from medretrieval.types import Hit, Match, Progress, SearchResult, no_progress

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
    mode: str = "rerank",
    select: Selection = ALL_SLICES,
    filters: Filters = NO_FILTERS,
    feedback: Feedback = NO_FEEDBACK,
    sigma: float = DEFAULT_SIGMA,
    candidates: int | None = None,
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
        volume_id: a volume of the index, default the first that `Index.search` finds; in a mode
            that finds slices that of the most similar one.
        slice_index: the slice of the query whose best match is shown with heat maps, default that
            of the best match of the hit, or of the most similar pair where `volume_id` is given.
        mode, sigma, candidates: as for `Index.search`. With `volume_id` nothing is searched, and
            the mode only says whether a sample of the query's slices is taken.
        select, orientation, channel, allow_one_slice: as for `Index.search`.
        filters, feedback: as for `Index.search`. Slices of the volume that may not be found are not
            compared. The similarities are those of the query as it was moved by the examples, the
            heat maps those of the two pictures.
        force: replace files of these names.

    Raises:
        UsageError: a file exists and not `force`; unknown volume or slice; nothing was found, or
            may be found of the volume; an index of whole volumes; and as `Index.search`.
        InputError: the query cannot be read, or `out` cannot be written.
    """
    folder = Path(out)
    _check_folder(folder, force)
    refuse_localizing(index.store.manifest.embedder)
    read = index.read(query, channel=channel, allow_one_slice=allow_one_slice)
    policy = index.store.manifest.slices
    chosen = chosen_slices(read, select, mode=mode, policy=policy).slices.tolist()
    if slice_index is not None and slice_index not in chosen:
        raise UsageError(
            f"slice {slice_index} is not among those of the query that are searched with: "
            f"{runs(chosen)}; expected one of these"
        )
    embed = partial(embedded_query, index, read, indices=chosen, filters=filters, progress=progress)
    hit = None
    if volume_id is None:
        search = partial(
            index.search,
            mode=mode,
            k=1,
            filters=filters,
            feedback=feedback,
            sigma=sigma,
            candidates=candidates,
            progress=progress,
        )
        sampled = select.sample is not None or MODES[mode].needs == "sample"
        if sampled:
            # Embedded slices do not say what they are a sample of: the search takes it itself.
            result = search(read, select=select, orientation=orientation)
            embedded = embed(orientation=result.orientation)
        else:
            embedded = embed(orientation=orientation)
            result = search(embedded, select=_chosen_again(select, chosen))
        hit = _first(result, slice_index)
        volume_id = hit.volume_id
    else:
        rows_of(index, volume_id)  # an unknown one is refused before minutes of embedding
        embedded = embed(orientation=orientation)
    matrix = similarity_matrix(index, embedded, volume_id, filters=filters, feedback=feedback)
    pair = _pair(matrix, hit, slice_index)
    files = [
        _write(folder / MATRIX, _png(draw_matrix(matrix))),
        _write(folder / TABLE, matrix.csv().encode()),
    ]
    row = index.store.row(volume_id, pair.slice_index)
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


def _chosen_again(select: Selection, chosen: Sequence[int]) -> Selection:
    """A selection without a sample, to be applied to the slices that it chose of an image."""
    if select.slices is None and select.labels is None:
        return select
    return replace(select, slices=(chosen[0], chosen[-1]), labels=None)


def _first(result: SearchResult, slice_index: int | None) -> Hit:
    """The volume found; of slices, which are found for every query slice, the most similar one."""
    hits = result.hits
    if MODES[result.mode].finds == "slices" and slice_index is not None:
        hits = tuple(hit for hit in hits if hit.matches[0].query_slice == slice_index)
    if not hits:
        raise UsageError("no volume of the index is left to be found; change the filters")
    return max(hits, key=lambda hit: hit.score)


def _pair(matrix: SimilarityMatrix, hit: Hit | None, slice_index: int | None) -> Match:
    """The pair of slices to show: a match of the hit where it has one, else the most similar."""
    for match in hit.matches if hit else ():  # best first
        if slice_index in (None, match.query_slice):
            return match
    if slice_index is None:
        return matrix.match(int(matrix.values.max(axis=1).argmax()))
    return matrix.match(int(np.flatnonzero(matrix.query_slices == slice_index)[0]))


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
