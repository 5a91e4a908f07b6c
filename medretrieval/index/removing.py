"""Taking a patient out of an index for good: rows, pictures, and every other trace of them."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import MedRetrievalError, UsageError
from medretrieval.folders import memories_dir
from medretrieval.index.changes import Change, and_change, check_note, day_of
from medretrieval.index.embedding_sets import embedders_here
from medretrieval.index.in_place import changing
from medretrieval.index.leftovers import clear_leftovers, settle
from medretrieval.index.manifest import Manifest, read_manifest
from medretrieval.index.memory_files import memory_files
from medretrieval.index.merging import Source, describe, write_merged
from medretrieval.index.publish import Description, check_output, named_path
from medretrieval.index.store import IndexStore, open_store
from medretrieval.index.verified import forget
from medretrieval.index.workspace import writing
from medretrieval.types import Progress, no_progress

logger = logging.getLogger(__name__)

_SHOWN = 5
# What an author wrote in their own words, or a command of theirs, may name a patient.
_TEXTS = {"source", "split", "command", "evaluations"}
_CLEAR = 4  # shorter names are parts of ordinary words


def remove_patient(
    index: str | Path,
    out: str | Path | None = None,
    *,
    patient_id: str | None = None,
    pseudonym: str | None = None,
    volumes: Collection[str] | None = None,
    note: str = "",
    day: str | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> Path:
    """Write a new version of an index without a patient, or without some volumes.

    The other rows are copied bit for bit and keep their order; the search structure is built
    again. Stored memories are dropped, as a file does not say whose they are, and so are the
    memories that segmentations keep in the cache folder of this machine. Texts of the manifest
    that name the patient, a pseudonym or a volume that is removed get a star in that place.

    In place of the index itself the new version appears at once, when it is complete; nothing of
    the old one stays in that folder or beside it. A call that was killed leaves the old index or
    the new one; made again it goes on. Copies elsewhere are not reached, see docs/index-format.md.

    Args:
        index: an index folder.
        out: the folder of the new version; None replaces `index`, as does `index` with `force`.
        patient_id: who, as the source of the index named them.
        pseudonym: who, by the name that they have in the index.
        volumes: names of the volumes that are removed, whoever they are of. Exactly one of these
            three is given.
        note: what the list of changes says of this one; it must not name what is removed.
        day: of the change, as 2026-11-27; default today (UTC).
        force: replace an index at `out`.
        progress: called with copied rows, number of rows, and what is going on.

    Returns:
        The folder of the new version.

    Raises:
        UsageError: nobody of that name, nothing would be left, the note names what is removed,
            `out` exists, another process is writing it.
        IndexFormatError: the index is damaged.
        MedRetrievalError: the disk is full or cannot be written, or something of the old index or
            of the cache cannot be deleted.
    """
    check_note(note)
    day = day_of(day)
    _check_asked(patient_id, pseudonym, volumes)
    folder = Path(index)
    target = folder.resolve() if out is None else named_path(Path(out))
    force = force or out is None
    if target.resolve() == folder.resolve():
        folder = target
        settle(target)
    with writing(target):
        check_output(target, force=force)
    with open_store(folder, verify="sizes") as store:
        if patient_id is not None:
            gone = _gone(store, _of_patient(store, patient_id), patient_id)
        elif pseudonym is not None:
            gone = _gone(store, _of_pseudonym(store, pseudonym))
        else:
            gone = _gone(store, _of_volumes(store, [*(volumes or ())]))
        manifest = store.manifest
    _check(folder, gone, note)
    if folder == target:
        with changing(folder):
            pass  # no other process writes into it
        _warn_of_links(folder, manifest)
    here = embedders_here(folder, manifest.sets)
    source = Source(path=folder, manifest=manifest, kept=~gone.rows, embedders=tuple(here))
    change = Change(version=manifest.version + 1, date=day, removed=gone.volumes, note=note)
    description = _description(source, change, gone)
    # Before the index is replaced: afterwards a second call would find nobody to remove.
    clear_leftovers(target)
    _clear_caches(target)
    write_merged([source], target, description, force=force, progress=progress)
    clear_leftovers(target)
    _clear_caches(target)
    _warn_of_losses(manifest, read_manifest(target))
    return target


@dataclass(frozen=True, eq=False, kw_only=True)
class _Gone:
    """What is removed.

    Attributes:
        rows: (n,) bool.
        volumes: how many volumes these rows are of.
        names: everything that names the volumes and patients of which nothing stays.
        others: how many volumes stay of patients who lose some.
    """

    rows: NDArray[np.bool_]
    volumes: int
    names: tuple[str, ...]
    others: int

    def named_in(self, text: str) -> bool:
        return self._pattern.search(text) is not None

    def without_names(self, value: Any) -> Any:
        """The same text, tuple or data class with a star in place of every name."""
        if isinstance(value, str):
            return self._pattern.sub("*", value)
        if isinstance(value, tuple):
            return tuple(map(self.without_names, value))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.replace(
                value, **{name: self.without_names(part) for name, part in vars(value).items()}
            )
        return value

    @property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.names, key=len, reverse=True)
        parts = [
            re.escape(name) if len(name) >= _CLEAR else rf"(?<!\w){re.escape(name)}(?!\w)"
            for name in longest_first
        ]
        return re.compile("|".join(parts), re.IGNORECASE)


def _gone(store: IndexStore, rows: NDArray[np.bool_], *names: str) -> _Gone:
    """What removing these rows removes.

    Args:
        names: under which the patient is known elsewhere.
    """
    patient = store.patient.codes
    volumes, patients = _only_in(rows, store.volume), _only_in(rows, patient)
    touched = np.isin(patient, np.unique(patient[rows]))
    return _Gone(
        rows=rows,
        volumes=len(np.unique(store.volume[rows])),
        names=(
            *names,
            *(store.volume_ids[code] for code in volumes),
            *(store.patient.names[code] for code in patients),
        ),
        others=len(np.unique(store.volume[touched & ~rows])),
    )


def _only_in(rows: NDArray[np.bool_], codes: NDArray[np.int32]) -> list[int]:
    """The codes that no other rows have."""
    return sorted(set(codes[rows].tolist()) - set(codes[~rows].tolist()))


def _of_patient(store: IndexStore, patient_id: str) -> NDArray[np.bool_]:
    rows = store.patient.rows_where(store.pseudonyms(patient_id))
    if not rows.any():
        raise UsageError(
            f"{store.path} has no patient of this id. It keeps no ids: the pseudonym that this id "
            f"has under the name {' or '.join(map(repr, store.manifest.pseudonym_keys))} of the "
            "index is none of its "
            f"{len(store.patient.names)} patients. Give the id exactly as the source of the index "
            "had it, with its case and leading zeros (without a column patient_id it was the name "
            "of the volume), or say who by --pseudonym or --volume. Was it removed before, "
            "nothing is left to do"
        )
    return rows


def _of_pseudonym(store: IndexStore, pseudonym: str) -> NDArray[np.bool_]:
    rows = store.patient.rows_where([pseudonym, pseudonym.lower()])
    if not rows.any():
        raise UsageError(
            f"{store.path} has no patient of the pseudonym {pseudonym!r}, it has "
            f"{len(store.patient.names)} of other ones; a pseudonym is the 16 hexadecimal digits "
            "in the column patient_id of slices/*.parquet, and differs from index to index"
        )
    return rows


def _of_volumes(store: IndexStore, volumes: Collection[str]) -> NDArray[np.bool_]:
    known = set(store.volume_ids)
    unknown = [name for name in volumes if name not in known]
    if unknown:
        shown = ", ".join(map(repr, unknown[:_SHOWN])) + (", ..." if unknown[_SHOWN:] else "")
        raise UsageError(
            f"{store.path} has no volume {shown}; it has {len(known)} others. Give the names "
            "exactly as in the column volume_id of slices/*.parquet"
        )
    wanted = set(volumes)
    return np.array([name in wanted for name in store.volume_ids], np.bool_)[store.volume]


def _check_asked(
    patient_id: str | None, pseudonym: str | None, volumes: Collection[str] | None
) -> None:
    if isinstance(volumes, str):
        raise UsageError(f"volumes is the text {volumes!r}; expected a list of names")
    if sum(bool(given) for given in (patient_id, pseudonym, volumes)) != 1:
        raise UsageError(
            "say what to remove in one way: the id of a patient, their pseudonym in this index, or "
            "the names of volumes"
        )


def _check(folder: Path, gone: _Gone, note: str) -> None:
    """Refuse a removal that cannot be done as it was asked for."""
    if gone.rows.all():
        raise UsageError(
            f"{folder} has no other patients or volumes, and an index cannot be empty: delete the "
            "folder itself"
        )
    if note and gone.named_in(note):
        raise UsageError(
            "the note names what is removed, and would stay in the index; leave out ids, "
            "pseudonyms and names of volumes"
        )
    if gone.others:
        logger.warning(
            "%d other volumes of the same patients stay in the index; --patient or --pseudonym "
            "removes all of a patient",
            gone.others,
        )


def _description(source: Source, change: Change, gone: _Gone) -> Description:
    """What the new version says of itself."""
    description = describe([source], None, None)
    texts = {
        field.name: gone.without_names(getattr(description, field.name))
        for field in dataclasses.fields(description)
        if field.name in _TEXTS
    }
    older = [
        dataclasses.replace(old, note=gone.without_names(old.note)) for old in description.changes
    ]
    if gone.named_in(description.name):
        logger.warning(
            "the name of the index contains a name of what is removed. It stays, as it is the key "
            "of the pseudonyms; build the index again under another name"
        )
    return dataclasses.replace(
        description,
        **texts,
        version=change.version,
        changes=and_change(older, change),
    )


def _warn_of_links(folder: Path, manifest: Manifest) -> None:
    """Say that files of the index have further names, as those that `pull` takes from the cache."""
    linked = [path for path in map(folder.joinpath, manifest.files) if _names(path) > 1]
    if linked:
        logger.warning(
            "%d files of the index are also elsewhere on this disk (hard links), as they are in "
            "the cache of the Hub's client after a pull; there they stay until you delete them",
            len(linked),
        )


def _names(path: Path) -> int:
    try:
        return path.stat().st_nlink
    except OSError:  # derived files may be missing
        return 0


def _warn_of_losses(old: Manifest, new: Manifest) -> None:
    """Say what the new version lacks beside the rows, and how it comes back."""
    if memory_files(old.files):
        logger.warning(
            "the stored memories of the index were dropped, as a file of memories does not say "
            "whose they are; `medretrieval memories` computes those of the other patients again"
        )
    lost = [name for name in old.sets if name not in new.sets]
    if lost:
        logger.warning(
            "the embeddings of %s were left out; add these embedders to the new version again",
            ", ".join(lost),
        )
    if old.evaluations and not new.evaluations:
        logger.warning(
            "the evaluations on the card were left out, as they are of the index with all "
            "patients; add them again with `medretrieval card`"
        )


def _clear_caches(index: Path) -> None:
    """Delete what this machine keeps aside because of an index.

    A memory in the cache is named by a hash of the network, the picture and the mask that it was
    shown, which depend on how it was segmented: whose it is cannot be told, so all are deleted.
    """
    deleted = 0
    try:
        forget(index)
        for pattern in ("*.safetensors", ".memory-*.tmp"):
            for path in memories_dir().glob(pattern):
                path.unlink(missing_ok=True)
                deleted += 1
    except OSError as error:
        raise MedRetrievalError(
            f"{error.filename} cannot be deleted ({error.strerror or error}); delete the folder "
            f"{memories_dir()} yourself, and remove again"
        ) from None
    if deleted:
        logger.warning(
            "%d memories of segmentations in %s were deleted, as a memory does not say whose it "
            "is; they are computed again when they are needed",
            deleted,
            memories_dir(),
        )
