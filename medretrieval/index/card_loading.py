"""The part of a card that shows how an index is loaded: in the app, in Python, with `datasets`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from medretrieval.errors import UsageError
from medretrieval.index.card_front import embedding_configs
from medretrieval.index.card_text import fenced
from medretrieval.index.manifest import Manifest

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
FOLDER = "index"  # what the examples call an index that is not on the Hub


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the examples find an index: a repository of the Hub at a revision, or a folder."""

    repo: str | None = None
    revision: str = ""

    @classmethod
    def of(cls, repo: str | None, *, version: int) -> Place:
        """Return the place of version `version` of an index.

        Args:
            repo: ORG/NAME or ORG/NAME@REVISION; without a revision it is the tag of the version,
                v1, v2 and so on. None for a folder.

        Raises:
            UsageError: not such a name.
        """
        if repo is None:
            return cls()
        name, at, revision = repo.partition("@")
        revision = revision if at else f"v{version}"
        if not (_REPO.fullmatch(name) and _REVISION.fullmatch(revision)):
            raise UsageError(
                f"{repo!r} is not the name of a repository; write ORG/NAME or ORG/NAME@REVISION"
            )
        return cls(repo=name, revision=revision)

    @property
    def name(self) -> str:
        """As medretrieval takes it."""
        return FOLDER if self.repo is None else f"{self.repo}@{self.revision}"

    def load(self, config: str | None = None) -> str:
        """The call of `load_dataset`."""
        arguments = [json.dumps(self.repo or FOLDER)]
        arguments += [] if config is None else [json.dumps(config)]
        arguments += [] if self.repo is None else [f"revision={json.dumps(self.revision)}"]
        return f'load_dataset({", ".join(arguments)}, split="train")'

    def file(self, path: str) -> str:
        """An expression for the path of a file of the index."""
        if self.repo is None:
            return json.dumps(f"{FOLDER}/{path}")
        asked = ", ".join(map(json.dumps, (self.repo, path)))
        return f'hf_hub_download({asked}, repo_type="dataset", revision="{self.revision}")'


def loading(m: Manifest, place: Place) -> str:
    """Return the part "How to load it"."""
    if place.repo is None:
        app = (
            "In the app: type the path of this folder as the index, or start the app with\n"
            "`MEDRETRIEVAL_INDEXES` set to it."
        )
        where = f"with `{FOLDER}` as the path of this folder"
        also = " (a Hub id serves as well)"
    else:
        app = (
            f"In the app: type `{place.name}` as the index, or start the app with\n"
            "`MEDRETRIEVAL_INDEXES` set to it."
        )
        where, also = f"at the revision `{place.revision}`, which stays as it is", ""
    parts = [
        f"## How to load it\n\n{app}",
        f"In Python, {where}:",
        fenced(_search(m, place), "python"),
        f"As a table{' of images' if m.pictures else ''}, without medretrieval{also}:",
        fenced(_table(m, place), "python"),
        _embeddings(m, place),
    ]
    return "\n\n".join(filter(None, parts))


def _search(m: Manifest, place: Place) -> str:
    mode, found = "slice", "hit.slice_index, hit.score, hit.labels"
    if m.embedder.unit == "volume":
        mode, found = "count", "hit.score, hit.labels"
    return f"""\
from medretrieval import open_index

index = open_index({json.dumps(place.name)})
for hit in index.search("query.nii.gz", mode="{mode}", k=5).hits:
    print(hit.rank, hit.volume_id, {found})"""


def _table(m: Manifest, place: Place) -> str:
    columns = ("image", "mask", "labels") if m.pictures else ("volume_id", "slice_index", "labels")
    shown = ", ".join(f'slices[0]["{column}"]' for column in columns)
    return f"from datasets import load_dataset\n\nslices = {place.load()}\nprint({shown})"


def _embeddings(m: Manifest, place: Place) -> str:
    """The embeddings with `datasets`, by a stored search structure if there is one."""
    configs = embedding_configs(m)
    if not configs:
        return ""
    stored = [name for name in configs if m.sets[name].faiss_file in m.files]
    embedder = stored[0] if stored else next(iter(configs))
    words = (
        "The embeddings as a table, searched by `datasets`; `row_id` is the row of the table above."
    )
    imports = ["from datasets import load_dataset"]
    if stored:
        file = m.sets[embedder].faiss_file
        words += (
            f" `{file}` is read by FAISS as it is: load it only if you trust who published it.\n"
            "medretrieval makes it again where it does not."
        )
        imports += [] if place.repo is None else ["from huggingface_hub import hf_hub_download"]
        attach = [f"file = {place.file(file)}", 'rows.load_faiss_index("embedding", file)']
    else:
        imports.insert(0, "import faiss")
        attach = ["metric = faiss.METRIC_INNER_PRODUCT"]
        attach.append('rows.add_faiss_index("embedding", metric_type=metric)')
    example = [
        *imports,
        "",
        f"rows = {place.load(configs[embedder])}",
        # Before the search structure is attached: another format copies the rows with it.
        'query = rows.with_format("numpy")[0]["embedding"]  # any unit vector of this embedder',
        *attach,
        'scores, found = rows.get_nearest_examples("embedding", query, k=5)',
        'print(scores, found["row_id"])',
    ]
    return f"{words}\n\n{fenced(chr(10).join(example), 'python')}"
