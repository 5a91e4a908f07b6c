"""The parts of a card that say what is in an index: labels, columns, files, embedders."""

from __future__ import annotations

from collections.abc import Mapping

from medretrieval.index.card_front import embedding_configs
from medretrieval.index.card_text import code, plain, table
from medretrieval.index.columns import FIXED
from medretrieval.index.files import COLUMNS_FILE, MEMORIES, embeddings_table
from medretrieval.index.manifest import Manifest
from medretrieval.index.search_entry import EXACT_KINDS

LISTED = 40  # of labels and the like; the manifest lists all
_COLUMNS: Mapping[str, tuple[str, str]] = {
    "row_id": ("whole number", "number of the row, the same in the embeddings"),
    "volume_id": ("text", "name of the image or volume, as it was given"),
    "patient_id": ("text", "pseudonym of the patient: who has the same is the same patient"),
    "modality": ("text", "such as CT or MR"),
    "region": ("text", "region of the body"),
    "slice_index": ("whole number", "place along the sliced axis of the source file, from 0"),
    "position_mm": ("number", "the same in mm (NIfTI world space, RAS+), null where unknown"),
    "spacing": ("3 numbers", "mm between rows, columns and slices, null where unknown"),
    "labels": ("list of texts", "labels of the case, then the structures that the mask shows"),
    "image": ("PNG", "the slice, 8 bits deep"),
    "mask": ("PNG", "label map of the image, null where nobody annotated"),
}
_WITHOUT_PICTURES = tuple(name for name in FIXED if name not in ("image", "mask"))


def labels(m: Manifest) -> str:
    if not m.label_counts:
        return "### Labels\n\nNo slice carries a label."
    values = {name: str(value) for value, name in m.vocabulary.items()}
    rows = [
        (plain(name), values.get(name, "whole case"), str(count))
        for name, count in list(m.label_counts.items())[:LISTED]
    ]
    more = len(m.label_counts) - LISTED
    rest = f"\n\nand {more} more; `manifest.json` lists all." if more > 0 else ""
    return f"### Labels\n\n{table(('label', 'mask value', 'slices'), rows)}{rest}"


def columns(m: Manifest) -> str:
    """What the columns of the table say, in their order."""
    wanted = (*FIXED, *m.attributes) if m.pictures else (*_WITHOUT_PICTURES, *m.attributes)
    given = ("text", "from the table that the index was built from, as it was given")
    rows = [(code(name), *_COLUMNS.get(name, given)) for name in wanted]
    return f"### Columns\n\n{table(('column', 'type', 'meaning'), rows)}"


def files(m: Manifest) -> str:
    """Every file that the manifest lists, and itself."""
    unit = "volume" if m.embedder.unit == "volume" else "slice"
    pictures = ""
    if m.pictures:
        of = " of one of its slices" if unit == "volume" else ""
        pictures = f"image and mask{of} as PNG, "
    about = (
        "volume, position, spacing, labels" if unit == "slice" else "position, spacing, all labels"
    )
    extra = "".join(f", {code(name)}" for name in m.attributes)
    rows = [("`slices/*.parquet`", f"one row a {unit}: {pictures}{about}{extra}")]
    if COLUMNS_FILE in m.files:
        rows.append((code(COLUMNS_FILE), "all of its columns but the pictures, in one small file"))
    configs = embedding_configs(m)
    for name, entry in m.sets.items():
        by = f", by {code(name)}" if m.others else ""
        vectors = f"a {entry.dtype} unit vector of length {entry.embedder.dim} for each row{by}"
        rows.append((code(entry.embeddings_file), vectors))
        if name in configs:
            same = f"the same numbers with `row_id`, for `datasets`: config {code(configs[name])}"
            rows.append((code(embeddings_table(entry.embeddings_file)), same))
        if entry.index_kind not in EXACT_KINDS:
            derived = "search structure, derived: it is made again where it is absent"
            rows.append((code(entry.faiss_file), derived))
        elif entry.faiss_file in m.files:
            exact = "derived: the same numbers as a FAISS index, exact, for `datasets`"
            rows.append((code(entry.faiss_file), exact))
    if any(name.startswith(MEMORIES) for name in m.files):
        remembered = "derived: what SAM 2 remembers of the annotated slices"
        rows.append(("`memories/*.safetensors`", remembered))
    rows.append(("`manifest.json`", "settings, counts, vocabulary, sha256 of every file"))
    return f"### Files\n\n{table(('file', 'content'), rows)}"


def embedders(m: Manifest) -> str:
    header = ("embedder", "weights", "revision", "sha256 of the tensors", "feature", "numbers")
    rows = [
        (
            *(code(e.name), plain(e.weights), plain(e.revision), code(e.weights_sha256)),
            *(plain(e.pooling), str(e.dim)),
        )
        for e in (entry.embedder for entry in m.sets.values())
    ]
    one = "one of them, which makes the embeddings that it is compared with" if m.others else "it"
    return f"""## Embedders

{table(header, rows)}

A query must be embedded by {one}; medretrieval refuses any other."""
