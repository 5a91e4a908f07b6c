"""The dataset card of an index: README.md, generated from the manifest alone."""

from __future__ import annotations

import json
from collections.abc import Mapping

from medretrieval.index.licenses import license_lines
from medretrieval.index.manifest import Manifest
from medretrieval.index.search_entry import EXACT_KINDS
from medretrieval.types import RESEARCH_ONLY

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LARGE = "1M<n<10M"
_LISTED = 40


def size_category(rows: int) -> str:
    """Return the Hub's size category of a data set with `rows` rows.

    >>> size_category(999), size_category(1000), size_category(290_757)
    ('n<1K', '1K<n<10K', '100K<n<1M')
    """
    return next((name for limit, name in _SIZES if rows < limit), _LARGE)


def dataset_card(manifest: Manifest) -> str:
    """Return the text of README.md: YAML front matter, contents, origin, how to load, limits."""
    return f"{_front_matter(manifest)}\n{_body(manifest)}"


def _front_matter(m: Manifest) -> str:
    # JSON strings are YAML strings, so quoting a name with a colon or a quote is json's work.
    return "\n".join(
        [
            "---",
            *license_lines(m.license),
            f"pretty_name: {json.dumps(m.name, ensure_ascii=False)}",
            "task_categories:",
            "- image-feature-extraction",
            "- image-segmentation",
            "tags:",
            "- medical",
            "- image-retrieval",
            "- medretrieval",
            "size_categories:",
            f"- {size_category(m.counts.slices)}",
            "configs:",
            "- config_name: default",
            "  data_files:",
            "  - split: train",
            "    path: slices/*.parquet",
            "---",
            "",
        ]
    )


def _body(m: Manifest) -> str:
    counts, embedder = m.counts, m.embedder
    parameters = ", ".join(f"{k} {v}" for k, v in m.index_parameters.items())
    kind = f"{m.index_kind} ({parameters})" if parameters else m.index_kind
    skipped = ""
    if counts.skipped:
        skipped = f"\n{counts.skipped} volumes of the source could not be read and were left out.\n"
    faiss = (
        "| `index.faiss` | search structure, derived: it is made again where it is absent |\n"
        if m.index_kind not in EXACT_KINDS
        else ""
    )
    row = "a slice: image and mask as PNG, volume, position, spacing, labels"
    made = "Slices"
    if embedder.unit == "volume":
        row = "a volume: image and mask of one of its slices as PNG, position, spacing, all labels"
        made = "Every row is a whole volume, embedded at once, and shows one slice of it. Slices"
    return f"""# {_plain(m.name)}

An index of medical images for retrieval by similarity and for segmentation from retrieved examples,
made with medretrieval {m.medretrieval_version}.

**{RESEARCH_ONLY}**

Images: **{_plain(m.source)}**.

## What is inside

| | |
|---|---|
| volumes | {counts.volumes} |
| patients | {counts.patients} |
| slices | {counts.slices} |
| annotated slices | {counts.annotated_slices} |
| modality (slices) | {_counted(m.modalities)} |
| region (slices) | {_counted(m.regions)} |
| split | {_plain(m.split or "not given")} |{_part(m)}{_version(m)}
| source | {_plain(m.source)} |
| license | {_plain(m.license)} |
{skipped}
{_labels(m)}
| file | content |
|---|---|
| `slices/*.parquet` | one row {row}{_extra(m)} |
| `embeddings/*.safetensors` | a {m.dtype} unit vector of length {m.dim} for each row |
| `manifest.json` | settings, counts, vocabulary, sha256 of every file |
{faiss}
## How it was built

- Embedder: `{_plain(embedder.name)}`, weights {_plain(embedder.weights)} at revision
  {_plain(embedder.revision)} (sha256 of the tensors {embedder.weights_sha256}),
  {_plain(embedder.pooling)}, {m.dim} numbers. A query must be embedded by the same; medretrieval
  refuses any other.
- {made}: axis `{m.slices.axis}`, intensity policy `{m.slices.window}`, at most
  {m.slices.max_side} pixels a side. Images are 8-bit renderings by that policy, not the original
  intensities.
- Search: {kind}, cosine similarity.{_found(m)}

## How to load it

In the app: type the path of this folder as the index, or start the app with
`MEDRETRIEVAL_INDEXES` set to it.

In Python, with `index` as the path of this folder:

```python
from medretrieval import open_index

index = open_index("index")
for hit in index.search("query.nii.gz", mode="slice", k=5).hits:
    print(hit.rank, hit.volume_id, hit.slice_index, hit.score, hit.labels)
```

As a table of images, without medretrieval (a Hub id serves as well):

```python
from datasets import load_dataset

slices = load_dataset("index", split="train")
print(slices[0]["image"], slices[0]["mask"], slices[0]["labels"])
```

## Limits

- {RESEARCH_ONLY} A similar image does not mean a similar finding.
- `patient_id` is a keyed hash: a pseudonym, not an anonymisation. Whoever knows an identifier can
  compute its hash. `volume_id`, the labels{_and_extra(m)} are stored as they were given, and the
  pixels as they were rendered: whether they identify a person was not checked.
- Scores compare images as the embedder sees them. They are not probabilities.
- A mask of zeros says that nothing was annotated on the slice; no mask (null) says that the case
  has no annotation. Masks are as good as the annotations they come from.
"""


def _part(m: Manifest) -> str:
    return f"\n| part | {m.part.replace('/', ' of ')}, to be merged |" if m.part else ""


def _version(m: Manifest) -> str:
    if not m.changes:
        return ""
    last = m.changes[-1]
    return f"\n| version | {m.version}, of {last.date} ({last.volumes} volumes added) |"


def _found(m: Manifest) -> str:
    """What is to be known of the search beside its kind, each on a line of its own."""
    lines = [] if m.index_reason is None else [f"Chosen by size: {_plain(m.index_reason)}."]
    if m.index_kind in EXACT_KINDS:
        lines.append("It is exact: there is no recall to report.")
    elif m.recall is not None:
        r = m.recall
        lines.append(
            f"Compared with exact search it finds {r.recall_at_1:.1%} of the most similar slices "
            f"and {r.recall_at_10:.1%} of the ten most similar ({r.queries} queries)."
        )
        if r.first_volume is not None and r.first_5_volumes is not None:
            lines.append(
                f"The first volume is the same for {r.first_volume:.0%} of {r.volumes} query "
                f"volumes, and {r.first_5_volumes:.0%} of the first five are found."
            )
        lines.append(f"How this was measured: {_plain(r.how)}.")
    return "".join(f"\n  {line}" for line in lines)


def _labels(m: Manifest) -> str:
    if not m.label_counts:
        return "No slice carries a label.\n"
    values = {name: value for value, name in m.vocabulary.items()}
    rows = [
        f"| {_plain(name)} | {values.get(name, 'whole case')} | {count} |"
        for name, count in list(m.label_counts.items())[:_LISTED]
    ]
    more = len(m.label_counts) - _LISTED
    rest = f"\nand {more} more; `manifest.json` lists all.\n" if more > 0 else ""
    return "\n".join(["| label | mask value | slices |", "|---|---|---|", *rows, rest])


def _extra(m: Manifest) -> str:
    """The extra columns, for the table of files."""
    return "".join(f", `{_plain(name)}`" for name in m.attributes)


def _and_extra(m: Manifest) -> str:
    return " and the extra columns" if m.attributes else ""


def _counted(names: Mapping[str, int]) -> str:
    shown = [f"{_plain(name)} ({count})" for name, count in list(names.items())[:_LISTED]]
    return ", ".join(shown) + (", ..." if len(names) > _LISTED else "")


def _plain(text: str) -> str:
    """Return text that cannot break out of a Markdown table, a code span or a line."""
    cleaned = "".join(c if c.isprintable() else " " for c in text)
    return cleaned.replace("|", "/").replace("`", "'").replace("<", "&lt;")
