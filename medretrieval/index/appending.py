"""A new version of an index: its rows as they are, and further cases embedded as they were."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path

from medretrieval import __version__
from medretrieval.errors import EmbedderMismatchError, UsageError, unknown_name
from medretrieval.imaging.digest import digest
from medretrieval.index.adding import add_embedder
from medretrieval.index.builder import build
from medretrieval.index.cases import Case, check_cases
from medretrieval.index.changes import Change, and_change, check_note, day_of
from medretrieval.index.embedding_sets import EmbeddingSet, embedders_here
from medretrieval.index.manifest import Manifest, read_manifest
from medretrieval.index.merging import Source, check_sources, describe, write_merged
from medretrieval.index.publish import Description, check_output, named_path
from medretrieval.index.store import open_store, pseudonym
from medretrieval.index.workspace import writing
from medretrieval.types import (
    UNKNOWN,
    Embedder,
    LabelVolume,
    Progress,
    Volume,
    VolumeEmbedder,
    no_progress,
)

logger = logging.getLogger(__name__)

AnyEmbedder = Embedder | VolumeEmbedder

_SHOWN = 5
_WHOLE = ".cases"  # in the index of the further cases: which they are; hidden, so no part of it


def append(
    index: str | Path,
    out: str | Path,
    cases: Iterable[Case],
    *,
    embedder: AnyEmbedder | Sequence[AnyEmbedder],
    without_embedders: Collection[str] = (),
    replace: bool = False,
    note: str = "",
    day: str | None = None,
    force: bool = False,
    skip_bad: bool = False,
    progress: Progress = no_progress,
) -> Path:
    """Write a new version of an index with further cases; the old one stays as it is.

    Old rows are copied, not embedded again, and come first. Slice policy, name (so also the
    patients' pseudonyms), precision, kind of search, licence and source are those of the index;
    labels are united by name; stored memories go along. The manifest counts the version and lists
    the change. Nothing appears at `out` before it is complete; an interrupted call that is made
    again goes on with the cases that are not embedded yet.

    Args:
        index: an index folder.
        out: the folder of the new version; not `index` itself.
        cases: what is added. Extra columns of the index that a case lacks stay empty.
        embedder: the one that made the index; of an index with embeddings by several, all of them.
        without_embedders: names of embedders of the index whose embeddings the new version lacks.
        replace: a case of a volume that the index has takes its place; otherwise it is refused.
        note: what the list of changes says of this one.
        day: of the change, as 2026-11-27; default today (UTC).
        force: replace an index at `out`.
        skip_bad: leave out cases that cannot be read, and count them in the manifest.
        progress: called with what is done of embedding, then of copying.

    Returns:
        `out`.

    Raises:
        EmbedderMismatchError: the embedder is not that of the index, or one of several is missing.
        UsageError: `out` exists or is `index`; a volume is in the index already; a case has an
            extra column that the index lacks; the note is too long.
        InputError: as `build`.
        IndexFormatError: the index is damaged.
        MedRetrievalError: the disk is full or cannot be written.
    """
    out = named_path(Path(out))
    return _append(
        Path(index),
        out,
        cases,
        out.with_name(f".{out.name}.added"),
        embedder=embedder,
        without_embedders=without_embedders,
        replace=replace,
        note=note,
        day=day,
        force=force,
        skip_bad=skip_bad,
        progress=progress,
    )


def _append(
    index: Path,
    out: Path,
    cases: Iterable[Case],
    added: Path,
    *,
    embedder: AnyEmbedder | Sequence[AnyEmbedder],
    without_embedders: Collection[str],
    replace: bool,
    note: str,
    day: str | None,
    force: bool,
    skip_bad: bool = False,
    progress: Progress,
) -> Path:
    """As `append`; `added` is the folder of the index of the further cases alone, for a while."""
    if out.resolve() == index.resolve():
        raise UsageError(f"{out} is the index itself, which stays as it is; choose another output")
    check_note(note)
    day = day_of(day)
    with writing(out):
        check_output(out, force=force)
    with open_store(index, verify="sizes") as store:
        manifest, present = store.manifest, set(store.volume_ids)
        pseudonym_of = partial(_pseudonym, manifest, frozenset(store.patient.names))
    if not manifest.pictures:
        raise UsageError(
            f"{index} has no pictures ({manifest.withheld}), and new cases would have some; append "
            "to the index that it was published from"
        )
    embedders = _embedders(index, manifest, _as_list(embedder), without_embedders)
    cases = [_with_columns(case, manifest) for case in check_cases(cases)]
    again = [case.volume_id for case in cases if case.volume_id in present]
    if again and not replace:
        shown = ", ".join(map(repr, again[:_SHOWN])) + (", ..." if again[_SHOWN:] else "")
        raise UsageError(
            f"{index} has {len(again)} of these volumes already: {shown}. Leave them out, give "
            "them other names, or let them take the place of the old ones with --replace "
            "(replace=True)"
        )
    _build_added(
        cases,
        added,
        manifest,
        embedders,
        pseudonym_of=pseudonym_of,
        skip_bad=skip_bad,
        progress=progress,
    )
    try:
        with open_store(added, verify="sizes") as store:
            again = sorted(present & set(store.volume_ids))  # a bad case takes nobody's place
            _warn_of_unknown(manifest, store.manifest)
        sources = check_sources([index, added], without=again)
        description = _description(sources, note=note, day=day, replaced=len(again))
        write_merged(sources, out, description, force=force, progress=progress)
    finally:
        # A whole index is of no use to the same call again; unfinished ones are, see `build`.
        shutil.rmtree(added, ignore_errors=True)
    return out


def _warn_of_unknown(old: Manifest, added: Manifest) -> None:
    """New cases that lack what all old ones have are left out by a filter on it."""
    for what, ours, theirs in (
        ("modality", old.modalities, added.modalities),
        ("region", old.regions, added.regions),
    ):
        if UNKNOWN in theirs and UNKNOWN not in ours:
            logger.warning(
                "the %s of %d new slices is unknown, while the index has it of all others (%s); a "
                "search with --%s leaves them out. Say it with --%s or in a table",
                *(what, theirs[UNKNOWN], ", ".join(ours), what, what),
            )


def _pseudonym(manifest: Manifest, known: Collection[str], patient_id: str) -> str:
    """The name that a patient has in an index already, by whichever key, or gets in it."""
    found = (pseudonym(patient_id, key) for key in manifest.pseudonym_keys)
    own = pseudonym(patient_id, manifest.name)
    return next((name for name in found if name in known), own)


def _as_list(embedder: AnyEmbedder | Sequence[AnyEmbedder]) -> list[AnyEmbedder]:
    return list(embedder) if isinstance(embedder, Sequence) else [embedder]


def _embedders(
    index: Path, manifest: Manifest, given: Sequence[AnyEmbedder], without: Collection[str]
) -> list[tuple[AnyEmbedder, EmbeddingSet]]:
    """The embedders of the new version, each with the embeddings that it made in the old one."""
    sets = manifest.sets
    for name in without:
        if name not in sets:
            raise unknown_name("embedder of this index", name, sets, "medretrieval info INDEX")
    kept = [entry for name, entry in sets.items() if name not in without]
    if not kept:
        raise UsageError(f"{index} has no other embedders; leave out at most all but one of them")
    found: dict[str, tuple[AnyEmbedder, EmbeddingSet]] = {}
    for entry in kept:
        space = entry.embedder.space
        own = next((one for one in given if one.identity.space == space), None)
        if own is None:
            raise _missing(index, entry.embedder.name, given, several=len(kept) > 1)
        found.setdefault(space, (own, entry))
    return list(found.values())


def _missing(
    index: Path, name: str, given: Sequence[AnyEmbedder], *, several: bool
) -> EmbedderMismatchError:
    names = ", ".join(one.identity.name for one in given)
    if not several:
        return EmbedderMismatchError(
            f"{index} was made with {name}, whose embeddings cannot be compared with those of "
            f"{names}; give the embedder of the index"
        )
    return EmbedderMismatchError(
        f"{index} has embeddings by {name} too, which cannot be compared with those of {names}; "
        "give that embedder as well, or leave its embeddings out of the new version with "
        f"--without-embedder {name} (without_embedders=[{name!r}])"
    )


def _build_added(
    cases: Sequence[Case],
    added: Path,
    manifest: Manifest,
    embedders: Sequence[tuple[AnyEmbedder, EmbeddingSet]],
    *,
    pseudonym_of: Callable[[str], str],
    skip_bad: bool,
    progress: Progress,
) -> None:
    """Build the index of the further cases, or go on with one that lacks some embeddings."""
    (embedder, first), *others = embedders
    mark = _fingerprint(cases, manifest, embedder, skip_bad=skip_bad)
    path = added / _WHOLE
    if not (others and path.is_file() and path.read_text(encoding="utf-8") == mark):
        build(
            cases,
            added,
            embedder=embedder,
            slices=manifest.slices,
            name=manifest.name,
            license=manifest.license,
            source=manifest.source,
            split=manifest.split,
            float16=first.dtype == "float16",
            force=True,
            skip_bad=skip_bad,
            pseudonym_of=pseudonym_of,
            progress=progress,
        )
    if not others:
        return
    with writing(path):
        path.write_text(mark, encoding="utf-8")
    here = embedders_here(added, read_manifest(added).sets)
    for one, entry in others:
        if one.identity.name not in here:
            half = entry.dtype == "float16"
            add_embedder(added, embedder=one, float16=half, index_kind="flat", progress=progress)


def _fingerprint(
    cases: Sequence[Case], manifest: Manifest, embedder: AnyEmbedder, *, skip_bad: bool
) -> str:
    """A hash of all that the rows of the further cases depend on."""
    rows = [
        [case.key, case.patient_id, case.region, case.labels, sorted(case.attributes.items())]
        for case in cases
    ]
    what = [__version__, embedder.identity.name, embedder.identity.space, skip_bad, rows]
    text = manifest.dumps() + json.dumps(what, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _description(sources: Sequence[Source], *, note: str, day: str, replaced: int) -> Description:
    """What the new version says of itself, given the old index and that of the new cases."""
    old, added = (source.manifest for source in sources)
    change = Change(
        version=old.version + 1,
        date=day,
        volumes=added.counts.volumes,
        slices=added.counts.slices,
        replaced=replaced,
        note=note,
    )
    return dataclasses.replace(
        describe(sources, None, None),
        version=change.version,
        changes=and_change(old.changes, change),
    )


def append_slices(
    index: str | Path,
    out: str | Path,
    volume: Volume,
    labels: LabelVolume,
    indices: Sequence[int],
    *,
    volume_id: str,
    patient_id: str | None = None,
    region: str | None = None,
    embedder: AnyEmbedder | Sequence[AnyEmbedder],
    without_embedders: Collection[str] = (),
    replace: bool = False,
    note: str = "",
    day: str | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> Path:
    """Write a new version of an index with some annotated slices of one volume.

    Whatever happens, nothing of the volume stays anywhere but in the new version.

    Args:
        index, out, embedder, without_embedders, note, day, force: as for `append`.
        volume: the image that was annotated.
        labels: on its grid, with names.
        indices: the annotated slices, by voxel index along the sliced axis; of the others nothing
            is stored.
        volume_id: its name in the index, stored in clear.
        patient_id: whose it is, stored as a pseudonym; default `volume_id`.
        region: body region.
        replace: these slices take the place of all that the index has of this volume.

    Raises:
        UsageError: as `append`; no slices, one that does not exist, or an index of whole volumes.
        (others): as `append`.
    """
    if not len(indices):
        raise UsageError("no slice is chosen; give at least one annotated slice")
    for one in _as_list(embedder):
        if one.identity.unit == "volume":
            raise UsageError(
                f"the embedder {one.identity.name} of this index takes whole volumes, so single "
                "slices cannot be added; use an index of slices"
            )
    case = Case(
        volume_id=volume_id,
        patient_id=patient_id or volume_id,
        region=region or UNKNOWN,
        label_names={value: name for value, name in labels.names.items() if value},
        load=lambda: (volume, labels),
        indices=tuple(sorted({int(number) for number in indices})),
        fingerprint=digest(volume.voxels, labels.voxels),
    )
    out = named_path(Path(out))
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        work = tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)
    with work as folder:
        return _append(
            Path(index),
            out,
            [case],
            Path(folder) / "added",
            embedder=embedder,
            without_embedders=without_embedders,
            replace=replace,
            note=note,
            day=day,
            force=force,
            progress=progress,
        )


def _with_columns(case: Case, manifest: Manifest) -> Case:
    """The case with exactly the extra columns of the index."""
    more = sorted(set(case.attributes) - set(manifest.attributes))
    if more:
        raise UsageError(
            f"case {case.volume_id!r} has the extra columns {', '.join(more)}, which the index "
            "lacks; leave them out, or build the index again with them (--keep)"
        )
    columns = {name: case.attributes.get(name, "") for name in manifest.attributes}
    return dataclasses.replace(case, attributes=columns)
