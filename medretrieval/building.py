"""An index from files: cases found in a folder or table, an embedder by its name."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medretrieval.embedders.registry import DEFAULT_EMBEDDER
from medretrieval.errors import UsageError
from medretrieval.types import (
    UNKNOWN,
    Embedder,
    Progress,
    SlicePolicy,
    VolumeEmbedder,
    no_progress,
)

if TYPE_CHECKING:
    from medretrieval.embedders.compute import Precision, Runtime
    from medretrieval.index import Case


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
    command: str | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Build an index folder from a folder of images or a CSV table.

    Args:
        source: a folder of images or volumes, or a `.csv` table.
        masks: folder with label maps of the same file names.
        table: CSV with columns path, mask, volume_id, patient_id, modality, region, labels,
            channel; its paths are relative to `source`.
        where: keep only the rows of the table whose columns have these values.
        keep: other columns of the table that the index stores in clear, to filter by.
        modality, region: of every case of a folder.
        labels_from_folders: the sub-folder of a case is a label of it.
        channel: which channel of 4-D volumes, where the table does not say it.
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
        command: the command line that asked for this, for the card.

    Returns:
        The path of the finished index folder.

    Raises:
        UsageError: `out` exists and not `force`, or options do not go together.
        InputError: a case cannot be read, or the source holds none.
        UnavailableError: the embedder's weights are not on this machine and cannot be fetched.
    """
    from medretrieval.embedders import load_embedder
    from medretrieval.index import RayEngine, build
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
    if keep and table is None and source.suffix.lower() != ".csv":
        raise UsageError("keep names columns of a table, but no table is given")
    cases, source = _cases(
        source,
        masks=masks,
        table=table,
        where=where,
        keep=keep,
        modality=modality,
        region=region,
        labels_from_folders=labels_from_folders,
        channel=channel,
        label_names=label_names,
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
        command=command,
        progress=progress,
    )


def append_index(
    index: str | Path,
    out: str | Path,
    source: str | Path,
    *,
    weights: Path | None = None,
    device: str = "cpu",
    precision: Precision | None = None,
    runtime: Runtime = "torch",
    masks: str | Path | None = None,
    table: str | Path | None = None,
    where: Mapping[str, str] | None = None,
    modality: str | None = None,
    region: str | None = None,
    labels_from_folders: bool = False,
    channel: int = 0,
    label_names: Mapping[int, str] | None = None,
    without_embedders: Collection[str] = (),
    replace: bool = False,
    note: str = "",
    force: bool = False,
    skip_bad: bool = False,
    allow_one_slice: bool = False,
    progress: Progress = no_progress,
) -> Path:
    """Write a new version of an index with more cases, from a folder of images or a CSV table.

    Args:
        index: an index folder; it stays as it is.
        out: the folder of the new version.
        source, masks, table, where, modality, region, labels_from_folders, channel, label_names,
            skip_bad, allow_one_slice: as for `build_index`, but that label values without a name
            are named as in the index. A table needs every extra column that the index has.
        weights: of the index's first embedder, if they are neither bundled nor cached.
        device, precision, runtime: of all its embedders, see `open_index`.
        without_embedders, replace, note, force: as for `medretrieval.index.append`.

    Returns:
        The path of the finished index folder.

    Raises:
        UsageError, InputError, UnavailableError: as `build_index` and `medretrieval.index.append`;
            an embedder of the index cannot be loaded here.
    """
    from medretrieval.index import append
    from medretrieval.index.manifest import read_manifest
    from medretrieval.retrieval.loading import load_every

    manifest = read_manifest(Path(index))
    cases, _ = _cases(
        Path(source),
        masks=masks,
        table=table,
        where=where,
        keep=manifest.attributes,
        modality=modality,
        region=region,
        labels_from_folders=labels_from_folders,
        channel=channel,
        label_names=label_names or manifest.vocabulary,
        allow_one_slice=allow_one_slice,
    )
    return append(
        index,
        out,
        cases,
        embedder=load_every(
            [own.embedder for name, own in manifest.sets.items() if name not in without_embedders],
            device=device,
            weights=weights,
            precision=precision,
            runtime=runtime,
        ),
        without_embedders=without_embedders,
        replace=replace,
        note=note,
        force=force,
        skip_bad=skip_bad,
        progress=progress,
    )


def add_embedder(
    index: str | Path,
    *,
    embedder: str | Embedder | VolumeEmbedder,
    weights: str | Path | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
    runtime: Runtime = "torch",
    float16: bool = False,
    index_kind: str | None = None,
    index_parameters: Mapping[str, int] | None = None,
    note: str = "",
    progress: Progress = no_progress,
) -> Path:
    """Add the embeddings of one more embedder to an index, in place.

    Args:
        index: an index folder, which is changed.
        embedder, weights, device, precision, runtime: as for `build_index`.
        float16, index_kind, index_parameters, note: as for `medretrieval.index.add_embedder`.

    Returns:
        `index`.

    Raises:
        UsageError, IndexFormatError, MedRetrievalError: as `medretrieval.index.add_embedder`.
        UnavailableError: the embedder's weights are not on this machine and cannot be fetched.
    """
    from medretrieval.embedders import load_embedder
    from medretrieval.index import adding
    from medretrieval.index.manifest import read_manifest

    sets = read_manifest(Path(index)).sets  # before weights are fetched
    if isinstance(embedder, str):
        # Embeddings that are listed and missing are made again by the same weights.
        listed = sets.get(embedder)
        embedder = load_embedder(
            embedder,
            weights=weights,
            revision=None if listed is None else listed.embedder.revision,
            device=device,
            precision=precision,
            runtime=runtime,
        )
    return adding.add_embedder(
        index,
        embedder=embedder,
        float16=float16,
        index_kind=index_kind,
        index_parameters=index_parameters,
        note=note,
        progress=progress,
    )


def _cases(
    source: Path,
    *,
    masks: str | Path | None,
    table: str | Path | None,
    where: Mapping[str, str] | None,
    keep: Sequence[str],
    modality: str | None,
    region: str | None,
    labels_from_folders: bool,
    channel: int,
    label_names: Mapping[int, str] | None,
    allow_one_slice: bool,
) -> tuple[list[Case], Path]:
    """The cases of a folder or table, and the folder that their paths are relative to."""
    from medretrieval.index import cases_from_folder, cases_from_table

    if table is None and source.suffix.lower() == ".csv":
        source, table = source.parent, source
    if table is None:
        if where:
            raise UsageError("where selects rows of a table, but no table is given")
        found = cases_from_folder(
            source,
            masks=masks,
            modality=modality,
            region=region,
            labels_from_folders=labels_from_folders,
            label_names=label_names,
            channel=channel,
            allow_one_slice=allow_one_slice,
        )
        return found, source
    if masks or modality or region or labels_from_folders:
        raise UsageError(
            "masks, modality, region and labels-from-folders go with a folder without a table; "
            "a table has columns for them"
        )
    found = cases_from_table(
        table,
        root=source,
        where=where,
        keep=keep,
        label_names=label_names,
        channel=channel,
        allow_one_slice=allow_one_slice,
    )
    return found, source
