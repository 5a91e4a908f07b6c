"""The YAML on top of a card: what the Hub filters by, and what `datasets` loads."""

from __future__ import annotations

import re
from collections.abc import Iterable

from medretrieval.index.card_text import on_one_line, quoted
from medretrieval.index.files import embeddings_table, slug
from medretrieval.index.licenses import license_lines
from medretrieval.index.manifest import Manifest
from medretrieval.types import UNKNOWN

DEFAULT = "default"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGE = "1M<n<10M"
_TAGS = 60
_TAG_LENGTH = 60


def size_category(rows: int) -> str:
    """Return the Hub's size category of a data set with `rows` rows.

    >>> size_category(999), size_category(1000), size_category(290_757)
    ('n<1K', '1K<n<10K', '100K<n<1M')
    """
    return next((name for limit, name in _SIZES if rows < limit), _LARGE)


def front_matter(m: Manifest) -> str:
    """Return the YAML of a card, between its two lines of dashes."""
    tasks = _tasks(m)
    lines = [
        *license_lines(m.license),
        f"pretty_name: {quoted(m.name)}",
        *_list("annotations_creators", [_annotations(m)]),
        *_list("task_categories", tasks),
        *_list("task_ids", filter(None, tasks.values())),
        *_list("tags", map(quoted, _tags(m))),
        *_list("size_categories", [size_category(m.counts.slices)]),
        "configs:",
    ]
    for name, path in {DEFAULT: "slices/*.parquet", **_tables(m)}.items():
        lines += [
            f"- config_name: {name if name == DEFAULT else quoted(name)}",
            "  data_files:",
            "  - split: train",
            f"    path: {path}",
        ]
    return "\n".join(["---", *lines, "---", ""])


def embedding_configs(m: Manifest) -> dict[str, str]:
    """Return the config by which `datasets` loads the embeddings of each embedder that has one.

    The names are those of the embedders as far as they can be: none is that of the pictures, and
    none occurs twice.
    """
    found: dict[str, str] = {}
    for embedder, entry in m.sets.items():
        if embeddings_table(entry.embeddings_file) in m.files:
            name = base = f"{DEFAULT}-" if slug(embedder) == DEFAULT else slug(embedder)
            number = 1
            while name in found.values():
                number += 1
                name = f"{base}-{number}"
            found[embedder] = name
    return found


def _tables(m: Manifest) -> dict[str, str]:
    """Config -> path of its parquet file."""
    return {
        name: embeddings_table(m.sets[embedder].embeddings_file)
        for embedder, name in embedding_configs(m).items()
    }


def _list(key: str, values: Iterable[str]) -> list[str]:
    items = [f"- {value}" for value in values]
    return [f"{key}:", *items] if items else []


def _annotations(m: Manifest) -> str:
    """Who annotated is not known here: annotations came with the images, or there are none."""
    return "found" if m.counts.annotated_slices or m.label_counts else "no-annotation"


def _tasks(m: Manifest) -> dict[str, str | None]:
    """Task of the Hub -> its narrower task, where it has one that fits."""
    tasks: dict[str, str | None] = {"image-feature-extraction": None}
    if m.pictures and m.counts.annotated_slices:
        tasks["image-segmentation"] = "semantic-segmentation"
    if m.pictures and set(m.label_counts) - set(m.vocabulary.values()):
        tasks["image-classification"] = "multi-label-image-classification"
    return tasks


def _tags(m: Manifest) -> list[str]:
    names = [*m.modalities, *m.regions, *m.sets]
    tags = ["medical", "image-retrieval", "medretrieval", *map(_tag, names)]
    return [tag for tag in dict.fromkeys(tags) if tag and tag != UNKNOWN][:_TAGS]


def _tag(name: str) -> str:
    """A name as a tag; the Hub takes what stands before a colon for a kind of tag.

    >>> _tag("Upper abdomen"), _tag("hf:org/repo")
    ('upper-abdomen', 'hf-org-repo')
    """
    return re.sub(r"[\s:/,|-]+", "-", on_one_line(name)).strip("-").lower()[:_TAG_LENGTH]
