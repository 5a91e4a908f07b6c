"""The cards in `index_cards/`: what an index of this project is, and the recipe for it."""

from __future__ import annotations

import json
from pathlib import Path

from medretrieval.embedders.registry import REGISTRY
from medretrieval.index.licenses import license_lines
from medretrieval.index.offered import Offered, wrapped
from medretrieval.index.sources import Source
from medretrieval.recipes import LAYOUTS
from medretrieval.types import RESEARCH_ONLY

NOT_PUBLISHED = "Not published yet: build it by the recipe below."


def offer_card(offered: Offered) -> str:
    """Return the text of a card: YAML front matter, contents, terms, recipe, limits."""
    return f"{_front_matter(offered)}\n{_body(offered)}"


def status(offered: Offered) -> str:
    """Say whether an index is published, and where it is or would be."""
    if not offered.published:
        return f"{NOT_PUBLISHED} Its place on the Hugging Face Hub would be `{offered.repo}`."
    url = f"https://huggingface.co/datasets/{offered.repo}"
    return f"Published as [{offered.repo}]({url}), revision `{offered.revision}`."


def pictures(offered: Offered) -> str:
    """Say whether pictures and masks are in the published index, and why."""
    verdict = offered.pictures
    says = {
        "yes": "A published index of them carries pictures and masks",
        "no": "A published index of them carries no pictures and no masks; one that you build for "
        "yourself does",
        "unknown": "A published index of them carries no pictures and no masks as long as it is "
        "not known whether it may; one that you build for yourself does",
    }
    return f"{says[verdict.allowed]}. {verdict.reason}."


def _front_matter(offered: Offered) -> str:
    size = [] if offered.size is None else ["size_categories:", f"- {offered.size}"]
    return "\n".join(
        [
            "---",
            *license_lines(offered.origin.license),
            f"pretty_name: {json.dumps(offered.title, ensure_ascii=False)}",
            "task_categories:",
            "- image-feature-extraction",
            "- image-segmentation",
            "tags:",
            "- medical",
            "- image-retrieval",
            "- medretrieval",
            *size,
            "configs:",
            "- config_name: default",
            "  data_files:",
            "  - split: train",
            "    path: slices/*.parquet",
            "---",
            "",
        ]
    )


def _body(offered: Offered) -> str:
    source, embedder = offered.origin, REGISTRY[offered.embedder]
    part = f", {offered.part}" if offered.part else ""
    return f"""# {offered.title}

{offered.shows}

**{RESEARCH_ONLY}**

**{status(offered)}**

## Source and terms

| | |
|---|---|
| images | {_linked(source)}{part} |
| licence | {source.license} |
| cite | {source.citation} |

{pictures(offered)}

The terms are given as they were known when this was written; nobody verified them. Read those of
the source before you use or publish its images.

## Embedder

`{embedder.name}`: {embedder.pooling}, {embedder.dim} numbers a picture, weights
{embedder.weights} ({embedder.license}). A query is embedded by the same. Another one of
`medretrieval embedders` makes another index: give it to `--embedder`, and the index a name of its
own.

## The recipe

{_data(offered)}

```bash
{chr(10).join(map(wrapped, offered.commands))}
```

{_explained(offered)}

## How to use it

{_use(offered)}

## Limits

- {RESEARCH_ONLY} A similar image does not mean a similar finding.
- Annotations are those of the source, with their errors. Pictures are 8-bit renderings.
- `patient_id` is a keyed hash: a pseudonym, not an anonymisation.

This card is generated from `medretrieval/index/offered.py`. An index carries a card of its own,
with its counts and hashes.
"""


def _use(offered: Offered) -> str:
    if offered.published:
        return (
            f"Choose it in the app, or open it in Python: "
            f'`medretrieval.open_index("{offered.hub_id}")`.'
        )
    if offered.origin.layout is None:
        return (
            "The app opens it by itself. In Python, open the path that `medretrieval demo` prints."
        )
    return (
        f"Type `{offered.key}-index` as the index in the app, or open it in Python: "
        f'`medretrieval.open_index("{offered.key}-index")`.'
    )


def _linked(source: Source) -> str:
    return f"[{source.title}]({source.homepage})" if source.homepage else source.title


def _data(offered: Offered) -> str:
    """How the data set has to lie there."""
    if offered.origin.layout is None:
        return "The demo needs no data: it is computed on first use."
    layout = LAYOUTS[offered.origin.layout]
    tree = "\n".join(f"    {line}" for line in layout.tree.splitlines())
    if "." in Path(offered.data).name:
        return f"Get `{offered.data}` from {offered.origin.homepage}."
    inside = "the folders of the tasks, each with" if offered.key == "msd" else "in it"
    return (
        f"Get the data from {offered.origin.homepage} and unpack it, so that there is a folder "
        f"`{offered.data}` and {inside}\n\n{tree}"
    )


def _explained(offered: Offered) -> str:
    """What each command does."""
    if offered.origin.layout is None:
        return "`push` is for who may publish under that name: give your own."
    layout = LAYOUTS[offered.origin.layout]
    beside = f", and writes {layout.beside}, to `{offered.key}-files`" if layout.beside else ""
    return (
        f"`table` lists the cases{beside}. `build` embeds their slices; interrupted, it goes on "
        "where it stopped.\n`push` is for who may publish under that name: give your own."
    )
