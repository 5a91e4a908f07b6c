"""The manifest of an index: what it holds, what made it, and the hash of every file.

`manifest.json` is read before anything else, and nothing that it does not list is read at all.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medretrieval.errors import IndexFormatError, NewerSchemaError, unknown_name
from medretrieval.index.changes import Change, read_changes
from medretrieval.index.columns import attribute_problem
from medretrieval.index.embedding_sets import DTYPES as DTYPES
from medretrieval.index.embedding_sets import EmbeddingSet, read_others, read_set
from medretrieval.index.evaluated import Evaluation, read_evaluations
from medretrieval.index.fields import Fields
from medretrieval.index.files import CARD as CARD
from medretrieval.index.files import COLUMNS_FILE, EMBEDDINGS, SLICES, check_file_name, is_linked
from medretrieval.index.files import EMBEDDINGS_FILE as EMBEDDINGS_FILE
from medretrieval.index.files import FAISS_FILE as FAISS_FILE
from medretrieval.index.files import MANIFEST as MANIFEST
from medretrieval.index.files import MEMORIES as MEMORIES
from medretrieval.index.files import FileEntry as FileEntry
from medretrieval.index.files import sha256_file as sha256_file
from medretrieval.index.reference import is_repo
from medretrieval.index.search_entry import IndexRequest, RecallReport
from medretrieval.types import EmbedderIdentity, SlicePolicy

SCHEMA_VERSION = 2
CROPS = ("none", "body")
MAX_MANIFEST_BYTES = 16 << 20  # takes twenty times as much in memory
MAX_SIDE = 8192  # of a picture, in pixels; larger ones could fill the memory
MAX_COMMAND = 4000
MAX_KEYS = 1000  # of pseudonyms; each is tried for a patient who is looked for

_PART = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much is in an index.

    Attributes:
        slices: rows.
        annotated_slices: rows that have a mask, be it all zero.
        skipped: volumes of the source that could not be read and were left out.
    """

    volumes: int
    patients: int
    slices: int
    annotated_slices: int
    skipped: int = 0


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        embedder: the identity of the embedder; only an equal one may be searched with.
        slices: how the slices were made; a query gets the same.
        index_kind, index_parameters: the kind of nearest-neighbour search and its settings.
        index_reason: why this kind, where it was chosen by the number of rows.
        index_request: what was asked for, where that is less than kind and all settings; a merge
            of indexes chooses again by it.
        recall: how much of an exact search it finds, if it is approximate and this was measured.
        dtype: how embeddings are stored, "float32" or "float16".
        vocabulary: mask value -> name, for the values that occur in the masks.
        label_counts: name -> number of slices that carry it (structures and case labels).
        modalities, regions: name -> number of slices.
        split: which part of the source this is, or None.
        attributes: names of the extra text columns of slices/*.parquet, in their order.
        version: 1, and one more for every change that made this index out of an older one.
        changes: what was added in which version, oldest first.
        part: "2/8" if this is the second of eight indexes that were built to be merged, or None.
        files: path inside the folder -> size and hash, of every file but the manifest.
        embeddings_file, faiss_file: where the embeddings are, and the search structure if any.
        others: the further embedders of the rows, by name; `choose` puts one in the first place.
        withheld: why images and masks were left out, None if they are there.
        keys: the names that key the patients' pseudonyms, if not the name of the index alone does:
            indexes of several names were merged.
        command: the command that built the index, None where it is not known.
        evaluations: what was found with it, for the card.
    """

    name: str
    embedder: EmbedderIdentity
    slices: SlicePolicy
    index_kind: str
    index_parameters: Mapping[str, int]
    dtype: str
    counts: Counts
    vocabulary: Mapping[int, str]
    label_counts: Mapping[str, int]
    modalities: Mapping[str, int]
    regions: Mapping[str, int]
    license: str
    source: str
    split: str | None
    medretrieval_version: str
    files: Mapping[str, FileEntry]
    version: int = 1
    changes: tuple[Change, ...] = ()
    part: str | None = None
    attributes: tuple[str, ...] = ()
    index_reason: str | None = None
    index_request: IndexRequest | None = None
    recall: RecallReport | None = None
    embeddings_file: str = EMBEDDINGS_FILE
    faiss_file: str = FAISS_FILE
    others: Mapping[str, EmbeddingSet] = field(default_factory=dict)
    withheld: str | None = None
    keys: tuple[str, ...] = ()
    command: str | None = None
    evaluations: tuple[Evaluation, ...] = ()

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.embedder.dim

    @property
    def pictures(self) -> bool:
        """Whether it has images and masks."""
        return self.withheld is None

    @property
    def pseudonym_keys(self) -> tuple[str, ...]:
        """The names that key the patients' pseudonyms."""
        return self.keys or (self.name,)

    @property
    def sets(self) -> dict[str, EmbeddingSet]:
        """The embeddings of all embedders by name, the chosen one first."""
        own = EmbeddingSet(**{name: getattr(self, name) for name in _OF_A_SET})
        return {self.embedder.name: own, **self.others}

    def choose(self, embedder: str | None) -> Manifest:
        """Return the manifest with this embedder in the first place; None leaves it as it is.

        Raises:
            UsageError: the index has no embeddings of that name.
        """
        sets = self.sets
        if embedder is None or embedder == self.embedder.name:
            return self
        if embedder not in sets:
            raise unknown_name("embedder of this index", embedder, sets, "medretrieval info INDEX")
        chosen = sets.pop(embedder)
        return dataclasses.replace(self, **vars(chosen), others=sets)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON-able data; `from_json` gives an equal manifest back."""
        own, *others = self.sets.values()
        return {
            "schema_version": self._schema,
            "name": self.name,
            **({} if self.version == 1 else {"version": self.version}),
            **({"changes": [c.to_json() for c in self.changes]} if self.changes else {}),
            **own.to_json(),
            **({"embedders": {o.embedder.name: o.to_json() for o in others}} if others else {}),
            "slices": dataclasses.asdict(self.slices),
            "counts": dataclasses.asdict(self.counts),
            **({} if self.withheld is None else {"withheld": self.withheld}),
            **({"pseudonym_keys": list(self.keys)} if self.keys else {}),
            "vocabulary": {str(value): name for value, name in self.vocabulary.items()},
            "label_counts": dict(self.label_counts),
            "modalities": dict(self.modalities),
            "regions": dict(self.regions),
            "split": self.split,
            **({"attributes": list(self.attributes)} if self.attributes else {}),
            **({} if self.part is None else {"part": self.part}),
            "medretrieval_version": self.medretrieval_version,
            **({} if self.command is None else {"command": self.command}),
            **(
                {"evaluations": [e.to_json() for e in self.evaluations]} if self.evaluations else {}
            ),
            "source": self.source,
            "license": self.license,
            "files": {path: dataclasses.asdict(entry) for path, entry in self.files.items()},
        }

    @property
    def _schema(self) -> int:
        """The oldest schema that has all that this manifest says."""
        plain = (
            self.pictures
            and not self.keys
            and not self.others
            and self.embeddings_file == EMBEDDINGS_FILE
        )
        return 1 if plain and not any(map(_of_schema_2, self.files)) else 2

    def dumps(self) -> str:
        """Return the text of `manifest.json`."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"


_OF_A_SET = tuple(field.name for field in dataclasses.fields(EmbeddingSet))


def _of_schema_2(path: str) -> bool:
    return path == COLUMNS_FILE or (path.startswith(EMBEDDINGS) and path.endswith(".parquet"))


def canonical(identity: EmbedderIdentity) -> EmbedderIdentity:
    """Return the identity as it comes back from JSON: tuples in the preprocessing become lists."""
    return EmbedderIdentity(**json.loads(json.dumps(dataclasses.asdict(identity))))


def read_manifest(folder: Path, *, blobs: Path | None = None) -> Manifest:
    """Read and validate `folder/manifest.json`.

    Args:
        blobs: see `files.is_linked`.

    Raises:
        IndexFormatError: there is no index in `folder`, the manifest is damaged, or it is of a
            newer schema than this version reads.
    """
    path = folder / MANIFEST
    try:
        folder.stat()
    except FileNotFoundError:
        pass  # said below
    except (OSError, ValueError) as error:  # ValueError: a name that no folder can have
        reason = getattr(error, "strerror", None) or error
        raise IndexFormatError(f"{str(folder)!r} cannot be opened as an index: {reason}") from None
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        pull = f". One of the Hub is pulled first: `medretrieval pull {folder} FOLDER`"
        raise IndexFormatError(
            f"{folder} {what}; an index is a folder with a {MANIFEST}, as `medretrieval build` "
            f"writes it{pull if is_repo(str(folder).partition('@')[0]) else ''}"
        )
    if is_linked(path, blobs, folder) or not path.is_file():
        raise IndexFormatError(
            f"{folder} is not an index: it has no {MANIFEST}; give the folder that "
            "`medretrieval build` wrote"
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise IndexFormatError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes: not a manifest")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        # Half of a pair of surrogates passes as JSON, and could be written nowhere.
        json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise IndexFormatError(f"{path} is not valid JSON ({error}); fetch it again") from None
    if not isinstance(data, dict) or "schema_version" not in data:
        raise IndexFormatError(f"{path} is not the manifest of an index: no schema_version in it")
    return manifest_from_json(data, where=str(path))


def manifest_from_json(data: Mapping[str, Any], *, where: str = MANIFEST) -> Manifest:
    """Return the manifest that `data` describes.

    Raises:
        IndexFormatError: a field is missing, of another type or out of range, or the schema is
            newer; the message names `where` and the field.
    """
    top = Fields(data, where)
    schema = top.get("schema_version", int)
    if schema > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"{where} has schema_version {schema}, this version of medretrieval reads up to "
            f"{SCHEMA_VERSION}; upgrade medretrieval (pip install -U medretrieval)"
        )
    if schema < 1:
        raise top.wrong("schema_version", "is below 1")
    slices = top.sub("slices")
    first = read_set(top)
    others = read_others(top, first)
    embeddings = [entry.embeddings_file for entry in (first, *others.values())]
    return Manifest(
        **vars(first),
        others=others,
        name=top.get("name", str),
        slices=SlicePolicy(
            axis=slices.get("axis", str),
            window=slices.get("window", str),
            max_side=_max_side(slices),
            crop=_crop(slices),
        ),
        counts=_counts(top.sub("counts")),
        vocabulary=_vocabulary(top.sub("vocabulary")),
        label_counts=top.sub("label_counts").counts(),
        modalities=top.sub("modalities").counts(),
        regions=top.sub("regions").counts(),
        license=top.get("license", str),
        source=top.get("source", str),
        split=None if data.get("split") is None else top.get("split", str),
        medretrieval_version=top.get("medretrieval_version", str),
        files=_files(top.sub("files"), embeddings),
        version=top.positive("version") if "version" in data else 1,
        changes=read_changes(top),
        part=_part(top),
        attributes=_attributes(top),
        withheld=top.get("withheld", str) if "withheld" in data else None,
        keys=_keys(top),
        command=_command(top),
        evaluations=read_evaluations(top),
    )


def _keys(fields: Fields) -> tuple[str, ...]:
    keys = fields.get("pseudonym_keys", list) if "pseudonym_keys" in fields.data else []
    if len(keys) > MAX_KEYS or not all(isinstance(key, str) and key for key in keys):
        raise fields.wrong("pseudonym_keys", f"is not a list of at most {MAX_KEYS} names")
    return tuple(keys)


def _command(fields: Fields) -> str | None:
    if "command" not in fields.data:
        return None
    command = fields.get("command", str)
    if len(command) > MAX_COMMAND:
        raise fields.wrong("command", f"is longer than {MAX_COMMAND} characters")
    return command


def _max_side(fields: Fields) -> int:
    side = fields.positive("max_side")
    if side > MAX_SIDE:
        raise fields.wrong("max_side", f"is {side}, expected at most {MAX_SIDE}")
    return side


def _crop(fields: Fields) -> str:
    if "crop" not in fields.data:
        return CROPS[0]  # what indexes did that are older than this field
    crop = fields.get("crop", str)
    if crop not in CROPS:
        raise fields.wrong("crop", f"is {crop!r}, expected one of {', '.join(CROPS)}")
    return crop


def _attributes(fields: Fields) -> tuple[str, ...]:
    names = fields.get("attributes", list) if "attributes" in fields.data else []
    if not all(isinstance(name, str) for name in names):
        raise fields.wrong("attributes", "is not a list of names")
    problem = attribute_problem(names)
    if problem is not None:
        raise fields.wrong("attributes", f"cannot be columns: {problem}")
    return tuple(names)


def _part(fields: Fields) -> str | None:
    if "part" not in fields.data:
        return None
    match = _PART.fullmatch(fields.get("part", str))
    if match is None or int(match[1]) > int(match[2]):
        raise fields.wrong("part", f"is {fields.data['part']!r}, expected a number of a part, 2/8")
    return match[0]


def _counts(fields: Fields) -> Counts:
    fields.counts()
    counts = Counts(
        volumes=fields.positive("volumes"),
        patients=fields.positive("patients"),
        slices=fields.positive("slices"),
        annotated_slices=fields.get("annotated_slices", int),
        skipped=fields.get("skipped", int),
    )
    if not counts.patients <= counts.volumes <= counts.slices >= counts.annotated_slices:
        raise fields.wrong("slices", "does not go with the other counts")
    return counts


def _vocabulary(fields: Fields) -> dict[int, str]:
    names: dict[int, str] = {}
    for key in fields.data:
        name = fields.get(key, str)
        if not re.fullmatch(r"[1-9][0-9]{0,4}", key) or int(key) > 65535 or not name:
            raise fields.wrong(key, "is not a mask value (1 to 65535) with a name")
        names[int(key)] = name
    return names


def _files(fields: Fields, embeddings: Sequence[str]) -> dict[str, FileEntry]:
    files: dict[str, FileEntry] = {}
    for path in fields.data:
        if not check_file_name(path):
            raise IndexFormatError(
                f"{fields.where}: {path!r} is not a file of an index (README.md, index.faiss, "
                "slices/*.parquet, embeddings/*.safetensors, memories/*.safetensors, ...); "
                "do not use this index, it was made to reach outside its folder or is damaged"
            )
        entry = fields.sub(path)
        if entry.get("bytes", int) < 0 or not _SHA256.fullmatch(entry.get("sha256", str)):
            raise fields.wrong(path, "has no valid size and sha256")
        files[path] = FileEntry(bytes=entry.get("bytes", int), sha256=entry.get("sha256", str))
    for needed in (CARD, *embeddings):
        if needed not in files:
            raise fields.wrong(needed, "is missing")
    if not any(path.startswith(SLICES) for path in files):
        raise fields.wrong("slices/*.parquet", "is missing")
    return files
