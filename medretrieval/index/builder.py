"""Building an index: cases are read, sliced, embedded and stored as a stream."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from medretrieval import __version__
from medretrieval.errors import InputError, UsageError
from medretrieval.imaging import check_crop
from medretrieval.index.cases import Case, attribute_names, check_cases, check_text
from medretrieval.index.commands import shareable
from medretrieval.index.embedding import Engine, Job, check_unit, embed_cases
from medretrieval.index.identifiers import looks_like_identifier
from medretrieval.index.kinds import check_parameters
from medretrieval.index.manifest import MAX_SIDE, canonical
from medretrieval.index.publish import (
    Description,
    blocks_of_cases,
    check_output,
    move_into_place,
    named_path,
    recover,
    write_index,
)
from medretrieval.index.store import pseudonym
from medretrieval.index.table import SHARD_BYTES
from medretrieval.index.vocabulary import Vocabulary
from medretrieval.index.workspace import Workspace, writing
from medretrieval.types import (
    UNKNOWN,
    Embedder,
    Progress,
    SlicePolicy,
    VolumeEmbedder,
    no_progress,
)

logger = logging.getLogger(__name__)

_LISTED = 20


def build(
    cases: Iterable[Case],
    out: str | Path,
    *,
    embedder: Embedder | VolumeEmbedder,
    slices: SlicePolicy,
    index_kind: str = "flat",
    index_parameters: Mapping[str, int] | None = None,
    name: str,
    license: str = UNKNOWN,
    source: str = UNKNOWN,
    split: str | None = None,
    float16: bool = False,
    force: bool = False,
    skip_bad: bool = False,
    shard_bytes: int = SHARD_BYTES,
    part: tuple[int, int] | None = None,
    engine: Engine = embed_cases,
    pseudonym_of: Callable[[str], str] | None = None,
    command: str | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Build an index folder.

    Nothing appears at `out` before the index is complete. Until then the work is in the sibling
    folder `.<out>.partial`: a build that was killed and is started again with the same embedder and
    slices goes on after the last finished case.

    Args:
        cases: rows come in their order; the same slice twice gives two rows.
        out: the folder to write; its parents are made.
        embedder: its `batch_size`, if it has one, is the number of slices embedded together;
            batches are full but the last, across the borders of cases. One of whole volumes gives
            a volume a single row: its picture and mask are of the slice with the most structures
            (of several the one nearest to the middle, which it is without a mask), its labels are
            those of the whole volume.
        index_kind, index_parameters: see `medretrieval.index.KINDS`; "auto" chooses by the number
            of rows. Settings that are not given are worked out from the size of the index.
        name: of the index; also keys the pseudonyms of the patients.
        license: Hub identifier of the licence of the images, for the card.
        source: where the images come from, in words, for the card.
        split: which part of the source this is, for the card.
        float16: halve the embeddings' size; scores change by less than 0.001.
        force: replace an index at `out`; the old one is removed when the new one is in place.
        skip_bad: leave out cases that cannot be read, and count them in the manifest.
        shard_bytes: size after which another parquet file is begun.
        part: (i, n) builds the i-th of n contiguous blocks of the cases, i from 1. Each part can be
            built on another machine; `medretrieval.index.merge` of all parts in order equals the
            build of all cases.
        engine: what embeds the cases: this process, or a `medretrieval.index.RayEngine`.
        command: what the card says that the index was built by; paths are shortened, see
            `commands.shareable`.
        pseudonym_of: gives the pseudonym of a patient; default `store.pseudonym` by the name.
        progress: called with finished cases, number of cases, and what is going on.

    Returns:
        `out`.

    Raises:
        UsageError: `out` exists, another build of it is running, unknown kind or parameter, an
            embedder that does what its identity does not say, more parts than cases.
        InputError: no cases, repeated names, cases that cannot be read (all of them are listed,
            after all others are done, so that the next start only does what was missing).
        MedRetrievalError: the disk is full or cannot be written.
    """
    out = named_path(Path(out))
    check_text(name=name, license=license, source=source, split=split or UNKNOWN)
    cases = check_cases(cases)
    _warn_of_identifiers(cases)
    identity = canonical(embedder.identity)
    check_parameters(index_kind, index_parameters, dim=identity.dim)
    check_unit(embedder)
    _check_slices(slices, embedder)
    # Of all cases, so that every part gives a structure the same value.
    pseudonym_of = pseudonym_of or partial(pseudonym, index_name=name)
    known = Vocabulary(case.label_names for case in cases)
    attributes = attribute_names(cases)
    cases = cases if part is None else block_of(cases, part)
    settings = {
        "version": __version__,
        "embedder": dataclasses.asdict(identity),
        "slices": dataclasses.asdict(slices),
        "vocabulary": {str(value): label for value, label in known.names().items()},
        **({} if part is None else {"part": list(part)}),
    }
    with writing(out):
        check_output(out, force=force)
    with Workspace(out, settings) as workspace:
        with writing(out):
            recover(out)
            check_output(out, force=force)  # another build may have finished since
        known.restore(workspace.names)
        wanted = [number for number, case in enumerate(cases) if case.key not in workspace]
        units = f"{embedder.identity.unit}s"

        def report(finished: int, embedded: int) -> None:
            done = len(cases) - len(wanted) + finished
            progress(done, len(cases), f"cases, {embedded} {units} embedded")

        bad = engine(
            Job(
                cases=cases,
                wanted=wanted,
                embedder=embedder,
                policy=slices,
                vocabulary=known,
                save=workspace.write,
                report=report,
            )
        )
        good = [case for number, case in enumerate(cases) if number not in bad]
        if bad and (not skip_bad or not good):
            raise InputError(_list_bad(cases, bad, can_skip=bool(good)))
        progress(len(cases), len(cases), "writing the index")
        description = Description(
            name=name,
            embedder=identity,
            slices=slices,
            index_kind=index_kind,
            index_parameters=index_parameters or {},
            dtype="float16" if float16 else "float32",
            license=license,
            source=source,
            split=split,
            skipped=len(bad),
            part=None if part in (None, (1, 1)) else "{}/{}".format(*part),
            attributes=attributes,
            command=None if command is None else shareable(command),
        )
        with writing(out):
            write_index(
                workspace.stage,
                blocks_of_cases(good, workspace, known.names(), pseudonym_of),
                known.names(),
                description,
                total=sum(workspace.rows(case.key) for case in good),
                shard_bytes=shard_bytes,
                progress=progress,
            )
            move_into_place(workspace.stage, out)
        workspace.remove()
    progress(len(cases), len(cases), "done")
    return out


def block_of(cases: Sequence[Case], part: tuple[int, int]) -> list[Case]:
    """Return the cases of part (i, n): the i-th of n contiguous blocks, as equal as they can be.

    Raises:
        UsageError: no such part, or more parts than cases.
    """
    number, parts = part
    if not 1 <= number <= parts:
        raise UsageError(f"part {number}/{parts} does not exist; the parts are 1/{parts} and on")
    if parts > len(cases):
        raise UsageError(
            f"{len(cases)} cases cannot be divided into {parts} parts; choose at most as many "
            "parts as there are cases"
        )
    return list(cases[(number - 1) * len(cases) // parts : number * len(cases) // parts])


def _check_slices(slices: SlicePolicy, embedder: Embedder | VolumeEmbedder) -> None:
    check_crop(slices.crop)
    if slices.max_side > MAX_SIDE:
        raise UsageError(f"max_side is {slices.max_side}, but no index has more than {MAX_SIDE}")
    if embedder.identity.unit == "volume" and slices.crop != "none":
        raise UsageError(
            f"crop is {slices.crop!r}, but the embedder {embedder.identity.name} embeds whole "
            "volumes, not slices; leave the crop out"
        )


def _warn_of_identifiers(cases: Sequence[Case]) -> None:
    """Say early what `push` would refuse when all is embedded."""
    kinds = [kind for case in cases if (kind := looks_like_identifier(case.volume_id))]
    if kinds:
        logger.warning(
            "%d names of volumes look like %s and are stored in clear, so that this index cannot "
            "be published; give other names in the column volume_id of a table",
            len(kinds),
            kinds[0],
        )


def _list_bad(cases: Sequence[Case], bad: Mapping[int, str], *, can_skip: bool) -> str:
    lines = [
        f"  {cases[number].volume_id}: {reason}" for number, reason in sorted(bad.items())[:_LISTED]
    ]
    if len(bad) > _LISTED:
        lines.append(f"  and {len(bad) - _LISTED} more")
    advice = "repair them and run the same build again; what is done is kept"
    if can_skip:
        advice += ". Or leave them out with --skip-bad (skip_bad=True)"
    return "\n".join(
        [f"{len(bad)} of {len(cases)} cases cannot be used:", *lines, f"Nothing written: {advice}"]
    )
