"""The whole way through the product: build an index, segment a query.

The packages below know one subject each; this module connects them. The command line and the page
call it and add nothing of their own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medretrieval.embedders.registry import DEFAULT_EMBEDDER
from medretrieval.errors import UsageError, unknown_name
from medretrieval.metrics.segmentation import dice
from medretrieval.retrieval.fusion import search_fused as search_fused
from medretrieval.segmentation.registry import DEFAULT_SEGMENTER
from medretrieval.types import (
    UNKNOWN,
    Embedder,
    LabelVolume,
    Progress,
    Slice,
    SlicePolicy,
    Support,
    Volume,
    VolumeEmbedder,
    no_progress,
)

if TYPE_CHECKING:
    from medretrieval.embedders.compute import Precision, Runtime
    from medretrieval.retrieval.engine import Index
    from medretrieval.retrieval.filters import Filters
    from medretrieval.segmentation.options import OptionChanges
    from medretrieval.segmentation.prompts import Prompts
    from medretrieval.segmentation.uncertainty import Agreement
    from medretrieval.segmentation.volume import BatchSegmenter

DEFAULT_SUPPORT_K = 8


def build_index(
    source: str | Path,
    out: str | Path,
    *,
    embedder: str | Embedder | VolumeEmbedder = DEFAULT_EMBEDDER,
    weights: str | Path | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
    runtime: Runtime = "torch",
    masks: str | Path | None = None,
    table: str | Path | None = None,
    where: Mapping[str, str] | None = None,
    keep: Sequence[str] = (),
    modality: str | None = None,
    region: str | None = None,
    labels_from_folders: bool = False,
    channel: int = 0,
    label_names: Mapping[int, str] | None = None,
    slices: SlicePolicy | None = None,
    index_kind: str = "auto",
    index_parameters: Mapping[str, int] | None = None,
    name: str | None = None,
    license: str = UNKNOWN,
    origin: str | None = None,
    split: str | None = None,
    float16: bool = False,
    force: bool = False,
    skip_bad: bool = False,
    allow_one_slice: bool = False,
    part: tuple[int, int] | None = None,
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    ray_address: str | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Build an index folder from a folder of images or a CSV table.

    Args:
        source: a folder of images or volumes, or a `.csv` table.
        masks: folder with label maps of the same file names.
        table: CSV with columns path, mask, volume_id, patient_id, modality, region, labels; its
            paths are relative to `source`.
        where: keep only the rows of the table whose columns have these values.
        keep: other columns of the table that the index stores in clear, to filter by.
        modality, region: of every case of a folder.
        labels_from_folders: the sub-folder of a case is a label of it.
        channel: which channel of 4-D volumes.
        label_names: mask value -> name, for cases that do not name their labels themselves.
        weights: local file or folder with the embedder's weights.
        device, precision, runtime: how it is computed, see `embedders.load_embedder`.
        license, origin, split: of the images; they go into the manifest and the card. The origin
            defaults to the name of the source folder.
        float16: store the embeddings at half precision.
        slices: how slices are made; stored in the index, a query gets the same.
        index_kind, index_parameters: the kind of search and its settings, see
            `medretrieval.index.KINDS`; "auto" chooses by the number of slices.
        skip_bad: leave out cases that cannot be read (they are logged) instead of failing.
        part: (i, n) builds the i-th of n blocks of the cases, to be merged later; see
            `medretrieval.index.merge`.
        engine: "local" embeds in this process, "ray" in `workers` processes (default 2) of the Ray
            cluster at `ray_address`, or of one that is started on this machine.

    Returns:
        The path of the finished index folder.

    Raises:
        UsageError: `out` exists and not `force`, or options do not go together.
        InputError: a case cannot be read, or the source holds none.
        UnavailableError: the embedder's weights are not on this machine and cannot be fetched.
    """
    from medretrieval.embedders import load_embedder
    from medretrieval.index import RayEngine, build, cases_from_folder, cases_from_table
    from medretrieval.index.embedding import embed_cases

    if part is not None and name is None:
        raise UsageError(
            "a part needs the name of the whole index, the same for all parts: it is the key of "
            "the patients' pseudonyms (--name)"
        )
    if engine not in ("local", "ray"):
        raise UsageError(f"engine is {engine!r}; expected local or ray")
    if engine == "local" and not (workers is None and ray_address is None):
        raise UsageError("workers and the address of a cluster go with the engine ray")
    source = Path(source)
    if table is None and source.suffix.lower() == ".csv":
        source, table = source.parent, source
    if table is not None:
        if masks or modality or region or labels_from_folders:
            raise UsageError(
                "masks, modality, region and labels-from-folders go with a folder without a table; "
                "a table has columns for them"
            )
        cases = cases_from_table(
            table,
            root=source,
            where=where,
            keep=keep,
            label_names=label_names,
            channel=channel,
            allow_one_slice=allow_one_slice,
        )
    else:
        if where:
            raise UsageError("where selects rows of a table, but no table is given")
        if keep:
            raise UsageError("keep names columns of a table, but no table is given")
        cases = cases_from_folder(
            source,
            masks=masks,
            modality=modality,
            region=region,
            labels_from_folders=labels_from_folders,
            label_names=label_names,
            channel=channel,
            allow_one_slice=allow_one_slice,
        )
    load = None
    if isinstance(embedder, str):
        load = partial(
            load_embedder,
            embedder,
            weights=weights,
            device=device,
            precision=precision,
            runtime=runtime,
        )
        embedder = load()
    on_ray = RayEngine(
        workers=2 if workers is None else workers,
        address=ray_address,
        load=load,
        gpus=1 if device.startswith("cuda") else 0,
    )
    return build(
        cases,
        Path(out),
        embedder=embedder,
        slices=slices or SlicePolicy(),
        index_kind=index_kind,
        index_parameters=index_parameters,
        name=name or Path(out).resolve().name,
        license=license,
        source=origin or source.resolve().name,
        split=split,
        float16=float16,
        force=force,
        skip_bad=skip_bad,
        part=part,
        engine=on_ray if engine == "ray" else embed_cases,
        progress=progress,
    )


@dataclass(frozen=True, kw_only=True)
class SupportUse:
    """Which support served which query slice, and how similar it was (None: chosen by hand)."""

    query_slice: int
    key: str
    score: float | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Segmentation:
    """A label map on the query's grid, and how it came about.

    `orientation` says how the slices were turned to be segmented; the label map is as the query.
    """

    labels: LabelVolume
    segmenter: str
    supports: tuple[SupportUse, ...]
    seconds: float
    slices: int
    orientation: str = "as stored"

    def structures(self) -> list[dict[str, Any]]:
        """Per label: value, name, voxels, and millilitres (None where the spacing is unknown)."""
        grid = self.labels.grid
        ml = float(np.prod(grid.spacing)) / 1000 if grid.spacing_known else None
        counts = np.bincount(self.labels.voxels.ravel(), minlength=1)
        rows = []
        for value, name in sorted(self.labels.names.items()):
            voxels = int(counts[value]) if value < len(counts) else 0
            rows.append(
                {
                    "value": value,
                    "name": name,
                    "voxels": voxels,
                    "ml": None if ml is None else round(voxels * ml, 3),
                }
            )
        return rows

    def dice(self, truth: LabelVolume) -> dict[str, float]:
        """Dice of each structure that the truth or this label map shows, matched by name.

        Args:
            truth: on the same grid; its values may differ from those here.

        Raises:
            UsageError: the truth has a value without a name.
        """
        unnamed = sorted(set(np.unique(truth.voxels).tolist()) - set(truth.names) - {0})
        if unnamed:
            raise UsageError(
                f"the truth has the values {unnamed}, which have no name in the index; name them, "
                "as in --truth-names 1=RV,2=Myo,3=LV"
            )
        value_of = {name: value for value, name in truth.names.items()}
        own_value = {name: value for value, name in self.labels.names.items()}
        scores = {}
        for name in sorted(value_of.keys() | own_value.keys()):
            found = self.labels.voxels == own_value.get(name, -1)
            wanted = truth.voxels == value_of.get(name, -1)
            if found.any() or wanted.any():
                scores[name] = dice(found, wanted)
        return scores

    def to_json(self) -> dict[str, Any]:
        return {
            "segmenter": self.segmenter,
            "labels": self.structures(),
            "slices": self.slices,
            "orientation": self.orientation,
            "seconds": round(self.seconds, 3),
            "supports": [
                {"query_slice": s.query_slice, "key": s.key, "score": s.score}
                for s in self.supports
            ],
        }


def _check_labels(labels: Sequence[str] | None, index: Index) -> None:
    """Refuse unknown labels before minutes are spent on embedding."""
    known = set(index.store.vocabulary.values())
    for label in labels or ():
        if label not in known:
            raise unknown_name("label", label, known, "medretrieval info INDEX")


def segment(
    index: Index,
    query: Volume,
    *,
    segmenter: str | BatchSegmenter = DEFAULT_SEGMENTER,
    support_k: int = DEFAULT_SUPPORT_K,
    supports: Sequence[Support] | None = None,
    labels: Sequence[str] | None = None,
    indices: Sequence[int] | None = None,
    filters: Filters | None = None,
    orientation: str = "as stored",
    prompts: Mapping[int, Mapping[str, Prompts]] | None = None,
    options: OptionChanges | None = None,
    progress: Progress = no_progress,
) -> Segmentation:
    """Segment `query` from annotated slices, without training (RAFS, section III).

    Args:
        index: where supports are retrieved; the slices of the query are made with its policy.
        query: image or volume.
        support_k: how many annotated slices are retrieved for each query slice.
        supports: use these for every slice instead of retrieving.
        labels: names of the structures wanted; default is all that the supports show.
        indices: slices to segment, default all; the others stay background.
        filters: which slices may be retrieved, by default all, see `retrieval.filters.Filters`.
        orientation: how the slices are turned before supports are retrieved and they are segmented:
            a name of `imaging.ORIENTATIONS`, or "any" for the one in which they are most similar to
            the annotated slices that may be retrieved, or to the given supports.
        prompts: points and boxes for single slices, by voxel index along the sliced axis and then
            by label, in pixels of the slice as displayed.
        options: how the network is used, where it differs from the segmenter's own defaults.

    Returns:
        A label map with exactly the grid of `query`.

    Raises:
        UsageError: no supports, a label that no support has, a slice or an orientation that does
            not exist; or `supports` are left out with an index of whole volumes, which cannot find
            any.
    """
    from medretrieval.segmentation import load_segmenter, segment_volume

    start = time.perf_counter()
    model = load_segmenter(segmenter) if isinstance(segmenter, str) else segmenter
    policy = index.manifest.slices
    chosen, orientation = _support_sets(
        index,
        query,
        supports,
        support_k=support_k,
        labels=labels,
        indices=indices,
        filters=filters,
        orientation=orientation,
        progress=progress,
    )
    used: list[SupportUse] = []

    def choose(piece: Slice) -> Sequence[Support]:
        picked = chosen[piece.index]
        used.extend(SupportUse(query_slice=piece.index, key=s.key, score=s.score) for s in picked)
        return picked

    result = segment_volume(
        query,
        policy,
        choose,
        model,
        labels=labels,
        indices=indices,
        orientation=orientation,
        progress=progress,
        **(options or {}),
    )
    return Segmentation(
        labels=result,
        segmenter=model.name,
        supports=tuple(used),
        seconds=time.perf_counter() - start,
        slices=len({u.query_slice for u in used}),
        orientation=orientation,
    )


def agreement(
    index: Index,
    query: Volume,
    slice_index: int,
    *,
    segmenter: str | BatchSegmenter = DEFAULT_SEGMENTER,
    support_k: int = DEFAULT_SUPPORT_K,
    supports: Sequence[Support] | None = None,
    labels: Sequence[str] | None = None,
    filters: Filters | None = None,
    orientation: str = "as stored",
    options: OptionChanges | None = None,
    progress: Progress = no_progress,
) -> Agreement:
    """How far the mask of one slice depends on single supports, see `leave_one_out`.

    Args:
        slice_index: of the query, voxel index along the sliced axis.
        index, query, segmenter, support_k, supports, labels, filters, orientation, options: as for
            `segment`; the supports are those that it would use for this slice.

    Returns:
        Masks and maps at the size of the slice, which lie as it is displayed.

    Raises:
        UsageError: as for `segment`; or there are fewer than two supports.
    """
    from medretrieval.imaging import make_slices
    from medretrieval.imaging.orientation import turn, turn_back
    from medretrieval.segmentation import load_segmenter
    from medretrieval.segmentation.uncertainty import leave_one_out

    model = load_segmenter(segmenter) if isinstance(segmenter, str) else segmenter
    chosen, orientation = _support_sets(
        index,
        query,
        supports,
        support_k=support_k,
        labels=labels,
        indices=[slice_index],
        filters=filters,
        orientation=orientation,
        progress=progress,
    )
    piece = next(iter(make_slices(query, index.manifest.slices, indices=[slice_index])))
    found = leave_one_out(
        model,
        np.ascontiguousarray(turn(piece.image, orientation)),
        chosen[slice_index],
        labels=labels,
        progress=progress,
        **(options or {}),
    )
    return found.each(lambda picture: turn_back(picture, orientation))


def _support_sets(
    index: Index,
    query: Volume,
    supports: Sequence[Support] | None,
    *,
    support_k: int,
    labels: Sequence[str] | None,
    indices: Sequence[int] | None,
    filters: Filters | None,
    orientation: str,
    progress: Progress,
) -> tuple[Mapping[int, Sequence[Support]], str]:
    """The supports of every slice, retrieved or given, and how slices are turned for them."""
    from medretrieval.imaging import slice_axis
    from medretrieval.retrieval.filters import Filters
    from medretrieval.retrieval.orienting import annotated, given, oriented
    from medretrieval.retrieval.whole import refuse_supports

    if supports is not None:
        if not supports:
            raise UsageError("the support set is empty; add at least one annotated slice")
        lookup = given(index, supports)
        orientation = oriented(index, query, orientation, lookup, indices, progress)
        if indices is None:
            indices = range(query.grid.shape[slice_axis(query.grid, index.manifest.slices.axis)])
        return dict.fromkeys(indices, supports), orientation
    refuse_supports(index.manifest.embedder)
    if support_k < 1:
        raise UsageError(f"support_k is {support_k}; at least 1 support is needed")
    _check_labels(labels, index)
    filters = filters or Filters()
    lookup = annotated(index, labels=labels, filters=filters)
    orientation = oriented(index, query, orientation, lookup, indices, progress)
    embedded = index.query_embeddings(
        query, indices=indices, orientation=orientation, progress=progress
    )
    retrieved = index.supports_each(embedded.embeddings, support_k, labels=labels, filters=filters)
    # Neighbouring slices share most of their supports: each is read once.
    stored = cache(index.store.support)
    chosen = {
        number: [
            replace(stored(row), score=score)
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
        ]
        for number, (rows, scores) in zip(embedded.slice_index.tolist(), retrieved, strict=True)
    }
    if not any(chosen.values()):
        raise UsageError(
            "the index has no annotated slices to segment from; choose another index, or give "
            "supports"
        )
    return chosen, orientation
