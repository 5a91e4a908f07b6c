"""What differs between two indexes: settings, volumes, patients, labels, files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medretrieval.index.diff_text import diff_text
from medretrieval.index.embedding_sets import EmbeddingSet
from medretrieval.index.files import MANIFEST, FileEntry, file_entry
from medretrieval.index.manifest import Manifest
from medretrieval.index.row_changes import VolumeChange, compare_rows
from medretrieval.index.store import IndexStore, open_store
from medretrieval.types import Progress, no_progress

# Compared one by one below, not as settings.
_APART = {
    *("files", "counts", "changes", "vocabulary", "label_counts", "modalities", "regions"),
    "dim",  # the embedder says it too
}

Numbers = Mapping[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A field of the manifest that differs; `old` or `new` is None where it is not set."""

    field: str
    old: Any
    new: Any


@dataclass(frozen=True, kw_only=True)
class ValueChange:
    """A mask value that means something else: renamed, moved, added, or removed.

    Attributes:
        old, new: (value, name) in either index, None where the name is in the other alone.
    """

    old: tuple[int, str] | None
    new: tuple[int, str] | None


@dataclass(frozen=True, kw_only=True)
class EmbeddingsCompared:
    """The embeddings of an embedder that both indexes have.

    Attributes:
        embedder: its name in the first index.
        distance: the largest cosine distance between two embeddings of one slice.
    """

    embedder: str
    distance: float


@dataclass(frozen=True, kw_only=True)
class FileChanges:
    """The files of two indexes, by their sha256.

    Attributes:
        same: how many are equal.
        changed, added, removed: names of the others.
        bytes: size of the files that the second has and the first has not as they are.
    """

    same: int
    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class IndexDiff:
    """What differs between two indexes.

    Attributes:
        old, new: their folders.
        settings: fields of the manifests that differ, by their place in them ("embedder.weights").
        changes_added, changes_removed: entries of the list of changes that only one has, in words.
        counts, labels, modalities, regions: (old, new) for every name of which they differ; slices
            in all but `counts`.
        added, removed: volumes that only one has.
        changed: volumes whose rows differ.
        same: how many volumes have equal rows.
        reordered: the volumes that both have come in another order.
        patients_added, patients_removed: pseudonyms that only one has; None where the indexes have
            different names, so that one patient has different pseudonyms.
        values: mask values that mean something else.
        embeddings: those of embedders that both have.
        apart: embedders, by name, whose embeddings cannot be compared with any of the other index.
        files: by sha256.
    """

    old: str
    new: str
    settings: tuple[Setting, ...]
    changes_added: tuple[str, ...]
    changes_removed: tuple[str, ...]
    counts: Numbers
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[VolumeChange, ...]
    same: int
    reordered: bool
    patients_added: tuple[str, ...] | None
    patients_removed: tuple[str, ...] | None
    values: tuple[ValueChange, ...]
    labels: Numbers
    modalities: Numbers
    regions: Numbers
    embeddings: tuple[EmbeddingsCompared, ...]
    apart: tuple[str, ...]
    files: FileChanges

    @property
    def equal(self) -> bool:
        """Whether nothing differs, not one byte of the files that count."""
        return self.same_content and not (
            self.files.changed or self.files.added or self.files.removed
        )

    @property
    def same_content(self) -> bool:
        """Whether nothing but the files differs, such as how the rows are divided into them."""
        return not any(
            (
                *(self.settings, self.changes_added, self.changes_removed, self.counts),
                *(self.added, self.removed, self.changed, self.reordered, self.values),
                *(self.patients_added, self.patients_removed),
                *(self.labels, self.modalities, self.regions, self.apart),
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return {
            "old": self.old,
            "new": self.new,
            "equal": self.equal,
            "same_content": self.same_content,
            "settings": [asdict(setting) for setting in self.settings],
            "changes": {
                "added": list(self.changes_added),
                "removed": list(self.changes_removed),
            },
            "counts": _pairs(self.counts),
            "volumes": {
                "added": list(self.added),
                "removed": list(self.removed),
                "changed": [
                    {**asdict(c), "parts": list(c.parts), "slices": list(c.slices)}
                    for c in self.changed
                ],
                "same": self.same,
                "reordered": self.reordered,
            },
            "patients": {
                "comparable": self.patients_added is not None,
                "added": list(self.patients_added or ()),
                "removed": list(self.patients_removed or ()),
            },
            "values": [
                {"old": v.old and list(v.old), "new": v.new and list(v.new)} for v in self.values
            ],
            "labels": _pairs(self.labels),
            "modalities": _pairs(self.modalities),
            "regions": _pairs(self.regions),
            "embeddings": [asdict(compared) for compared in self.embeddings],
            "not_comparable": list(self.apart),
            "files": {
                "same": self.files.same,
                "changed": list(self.files.changed),
                "added": list(self.files.added),
                "removed": list(self.files.removed),
                "bytes_to_transfer": self.files.bytes,
            },
        }

    def text(self) -> str:
        """Return it in words, long lists cut."""
        return diff_text(self)


def diff(old: str | Path, new: str | Path, *, progress: Progress = no_progress) -> IndexDiff:
    """Compare two indexes.

    Volumes are the same by name, their slices by number. Pictures are the same if their pixels
    are, masks if they are by value or by name (what the values mean is compared on its own).
    Embeddings of one vector space are compared exactly, float32 with float16 as float16. In memory
    are the rows without their pictures, and one row group.

    Args:
        old, new: index folders.
        progress: called with what is done of reading the pictures.

    Raises:
        IndexFormatError: one of them is damaged.
    """
    with open_store(old) as first, open_store(new) as second:
        a, b = first.manifest, second.manifest
        sets = _comparable(first, second)
        rows = compare_rows(first, second, sets=sets, progress=progress)
        files = _files(first), _files(second)
        ours, theirs = set(first.volume_ids), set(second.volume_ids)
        both = [
            [name for name in store.volume_ids if name in ours and name in theirs]
            for store in (first, second)
        ]
        patients = (
            (set(first.patient.names), set(second.patient.names))
            if a.pseudonym_keys == b.pseudonym_keys
            else None
        )
        compared = [name for pair in sets for name in (pair[0].embedder, pair[1].embedder)]
        return IndexDiff(
            old=str(old),
            new=str(new),
            settings=tuple(_settings(_rest(a), _rest(b))),
            changes_added=tuple(c.words() for c in b.changes if c not in a.changes),
            changes_removed=tuple(c.words() for c in a.changes if c not in b.changes),
            counts=_numbers(asdict(a.counts), asdict(b.counts)),
            added=tuple(name for name in second.volume_ids if name not in ours),
            removed=tuple(name for name in first.volume_ids if name not in theirs),
            changed=rows.changed,
            same=rows.same,
            reordered=both[0] != both[1],
            patients_added=patients and tuple(sorted(patients[1] - patients[0])),
            patients_removed=patients and tuple(sorted(patients[0] - patients[1])),
            values=tuple(_values(a.vocabulary, b.vocabulary)),
            labels=_numbers(a.label_counts, b.label_counts),
            modalities=_numbers(a.modalities, b.modalities),
            regions=_numbers(a.regions, b.regions),
            embeddings=tuple(
                EmbeddingsCompared(embedder=name, distance=distance)
                for name, distance in rows.distances.items()
            ),
            apart=tuple(
                dict.fromkeys(
                    entry.embedder.name
                    for manifest in (a, b)
                    for entry in manifest.sets.values()
                    if entry.embedder not in compared
                )
            ),
            files=_file_changes(*files),
        )


def _comparable(old: IndexStore, new: IndexStore) -> list[tuple[EmbeddingSet, EmbeddingSet]]:
    """The embeddings of either index that are in one vector space, and there."""
    ours, theirs = (
        {
            entry.embedder.space: entry
            for entry in store.manifest.sets.values()
            if (store.path / entry.embeddings_file).exists()
        }
        for store in (old, new)
    )
    return [(entry, theirs[space]) for space, entry in ours.items() if space in theirs]


def _rest(manifest: Manifest) -> dict[str, Any]:
    return {key: value for key, value in manifest.to_json().items() if key not in _APART}


def _settings(
    old: Mapping[str, Any], new: Mapping[str, Any], within: str = ""
) -> Iterator[Setting]:
    for key in dict.fromkeys([*old, *new]):
        ours, theirs = old.get(key), new.get(key)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            yield from _settings(ours, theirs, f"{within}{key}.")
        elif ours != theirs:
            yield Setting(field=f"{within}{key}", old=ours, new=theirs)


def _numbers(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    pairs = {name: (old.get(name, 0), new.get(name, 0)) for name in sorted({*old, *new})}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _values(old: Mapping[int, str], new: Mapping[int, str]) -> list[ValueChange]:
    """What mask values mean something else, in the order of the values."""
    lost = [pair for pair in sorted(old.items()) if pair not in new.items()]
    gained = [pair for pair in sorted(new.items()) if pair not in old.items()]
    found = []
    for part in (1, 0):  # the same name has moved, or the same value was renamed
        for ours in [*lost]:
            theirs = next((pair for pair in gained if pair[part] == ours[part]), None)
            if theirs is not None:
                lost.remove(ours)
                gained.remove(theirs)
                found.append(ValueChange(old=ours, new=theirs))
    found += [ValueChange(old=pair, new=None) for pair in lost]
    found += [ValueChange(old=None, new=pair) for pair in gained]
    return sorted(found, key=lambda change: min(filter(None, (change.old, change.new))))


def _files(store: IndexStore) -> dict[str, FileEntry]:
    path = store.path / MANIFEST
    own = file_entry(path)
    return {MANIFEST: own, **store.manifest.files}


def _file_changes(old: Mapping[str, FileEntry], new: Mapping[str, FileEntry]) -> FileChanges:
    both = sorted(old.keys() & new.keys())
    changed = tuple(name for name in both if old[name].sha256 != new[name].sha256)
    added = tuple(sorted(new.keys() - old.keys()))
    return FileChanges(
        same=len(both) - len(changed),
        changed=changed,
        added=added,
        removed=tuple(sorted(old.keys() - new.keys())),
        bytes=sum(new[name].bytes for name in (*changed, *added)),
    )


def _pairs(numbers: Numbers) -> dict[str, Sequence[int]]:
    return {name: list(pair) for name, pair in numbers.items()}
