"""The dataset card of an index: README.md, generated from the manifest alone."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from medretrieval.errors import UsageError
from medretrieval.index.card_contents import LISTED, columns, embedders, files, labels
from medretrieval.index.card_front import front_matter
from medretrieval.index.card_front import size_category as size_category
from medretrieval.index.card_loading import Place, loading
from medretrieval.index.card_text import code, fenced, plain, table
from medretrieval.index.changes import changelog
from medretrieval.index.embedding_sets import EmbeddingSet
from medretrieval.index.evaluated import MAX_EVALUATIONS, Evaluation, problem_of
from medretrieval.index.files import CARD, FileEntry
from medretrieval.index.manifest import Manifest, read_manifest
from medretrieval.index.search_entry import EXACT_KINDS
from medretrieval.index.workspace import writing
from medretrieval.types import RESEARCH_ONLY, UNKNOWN


def dataset_card(manifest: Manifest, *, repo: str | None = None) -> str:
    """Return the text of README.md: YAML for the Hub, contents, origin, how to load, limits.

    Args:
        repo: ORG/NAME or ORG/NAME@REVISION if the index is, or will be, on the Hub; the examples
            then load it from there, without a revision at the tag of its version (v1, v2 and so
            on). By default they load the folder.

    Raises:
        UsageError: `repo` is not such a name.
    """
    m = manifest
    parts = (
        _title(m),
        _contents(m),
        labels(m),
        columns(m),
        files(m),
        embedders(m),
        _building(m),
        _changes(m),
        _evaluations(m.evaluations),
        loading(m, Place.of(repo, version=m.version)),
        _uses(m),
        _limits(m),
        _citation(m, repo),
    )
    text = "\n\n".join(part.strip("\n") for part in parts if part)
    return f"{front_matter(m)}\n{text}\n"


def with_card(manifest: Manifest, *, repo: str | None = None) -> tuple[Manifest, bytes]:
    """Return the manifest with its card among its files, and the bytes of README.md.

    Args:
        manifest: lists all other files; by them the card says what there is.
        repo: as for `dataset_card`.

    Raises:
        UsageError: `repo` is not such a name.
    """
    card = dataset_card(manifest, repo=repo).encode()
    entry = FileEntry(bytes=len(card), sha256=hashlib.sha256(card).hexdigest())
    listed = dict(sorted({**manifest.files, CARD: entry}.items()))
    return dataclasses.replace(manifest, files=listed), card


def write_card(
    index: str | Path, *, evaluations: Iterable[Evaluation] = (), repo: str | None = None
) -> Path:
    """Make the card of an index again, from its manifest and what evaluations found.

    The index is valid at any time: a card that is missing, as it is for a moment, is no error. A
    card that somebody changed is replaced.

    Args:
        index: an index folder, which is changed: README.md and manifest.json.
        evaluations: are added to those in the manifest; one of the same title is replaced.
        repo: as for `dataset_card`.

    Returns:
        The path of the card.

    Raises:
        UsageError: an evaluation is too large, or there are too many; `repo` is not the name of a
            repository; another process changes the index.
        IndexFormatError: the manifest is damaged.
        MedRetrievalError: it cannot be written.
    """
    # Whatever changes an index in place makes its card again, so that module needs this one.
    from medretrieval.index.in_place import changing, publish

    folder = Path(index)
    read_manifest(folder)  # before anything is written into what may be no index
    with changing(folder), writing(folder / CARD):
        publish(folder, with_evaluations(read_manifest(folder), evaluations), repo=repo)
    return folder / CARD


def with_evaluations(manifest: Manifest, evaluations: Iterable[Evaluation]) -> Manifest:
    """Return the manifest with further evaluations; one of the same title is replaced.

    Raises:
        UsageError: an evaluation is too large, or there are too many.
    """
    found = {evaluation.title: evaluation for evaluation in manifest.evaluations}
    for evaluation in evaluations:
        problem = problem_of(evaluation)
        if problem is not None:
            raise UsageError(f"the evaluation {evaluation.title[:80]!r} {problem}")
        found[evaluation.title] = evaluation
    if len(found) > MAX_EVALUATIONS:
        raise UsageError(
            f"these would be {len(found)} evaluations, a card shows {MAX_EVALUATIONS}; give one "
            "the title of an older one, which it then replaces"
        )
    return dataclasses.replace(manifest, evaluations=tuple(found.values()))


def _title(m: Manifest) -> str:
    what = "for retrieval by similarity and for segmentation from retrieved examples"
    left_out = ""
    if not m.pictures:
        what = "for retrieval by similarity"
        left_out = (
            f"\n\nThe images and their masks are **not** here: {plain(m.withheld or '')}."
            "\nWhat is here are the embeddings, the positions and the labels of the slices. A"
            "\nsearch says which cases are similar; the pictures are at the source."
        )
    return f"""# {plain(m.name) or "index"}

An index of medical images {what},
made with medretrieval {plain(m.medretrieval_version)}.

**{RESEARCH_ONLY}**

Images: **{plain(m.source) or "of an unknown source"}**.{left_out}"""


def _contents(m: Manifest) -> str:
    counts = m.counts
    skipped = ""
    if counts.skipped:
        skipped = f"\n\n{counts.skipped} volumes of the source could not be read and were left out."
    return f"""## What is inside

| | |
|---|---|
| volumes | {counts.volumes} |
| patients | {counts.patients} |
| slices | {counts.slices} |
| annotated slices | {counts.annotated_slices} |
| modality (slices) | {_counted(m.modalities)} |
| region (slices) | {_counted(m.regions)} |
| split | {plain(m.split or "not given")} |{_part(m)}
| source | {plain(m.source)} |
| license | {plain(m.license)} |{skipped}"""


def _part(m: Manifest) -> str:
    return f"\n| part | {m.part.replace('/', ' of ')}, to be merged |" if m.part else ""


def _changes(m: Manifest) -> str:
    lines = "\n".join(f"- {plain(line)}" for line in changelog(m.changes))
    return f"## Changes\n\n{lines}" if lines else ""


def _building(m: Manifest) -> str:
    made = "Slices"
    if m.embedder.unit == "volume":
        made = "Every row is a whole volume, embedded at once, and shows one slice of it. Slices"
    crop = "" if m.slices.crop == "none" else f", crop {code(m.slices.crop)} for the embedder"
    stored = "Images are 8-bit renderings by that policy, not the original intensities."
    if not m.pictures:
        stored = "The embeddings are of 8-bit renderings by that policy."
    parts = [
        "## How it was built",
        "" if m.command is None else fenced(m.command, "bash"),
        f"- {made}: axis {code(m.slices.axis)}, intensity policy {code(m.slices.window)}, at most\n"
        f"  {m.slices.max_side} pixels a side{crop}. {stored}\n"
        + "\n".join(_search(entry, several=bool(m.others)) for entry in m.sets.values()),
    ]
    return "\n\n".join(filter(None, parts))


def _search(entry: EmbeddingSet, *, several: bool) -> str:
    """How one embedder's embeddings are searched, and what is found, as an item of a list."""
    parameters = ", ".join(f"{plain(k)} {v}" for k, v in entry.index_parameters.items())
    kind = f"{plain(entry.index_kind)} ({parameters})" if parameters else plain(entry.index_kind)
    by = f" by {code(entry.embedder.name)}" if several else ""
    lines = [f"- Search{by}: {kind}, cosine similarity."]
    if entry.index_reason is not None:
        lines.append(f"Chosen by size: {plain(entry.index_reason)}.")
    if entry.index_kind in EXACT_KINDS:
        lines.append("It is exact: there is no recall to report.")
    elif entry.recall is not None:
        r = entry.recall
        lines.append(
            f"Compared with exact search it finds {r.recall_at_1:.1%} of the most similar slices "
            f"and {r.recall_at_10:.1%} of the ten most similar ({r.queries} queries)."
        )
        if r.first_volume is not None and r.first_5_volumes is not None:
            lines.append(
                f"The first volume is the same for {r.first_volume:.0%} of {r.volumes} query "
                f"volumes, and {r.first_5_volumes:.0%} of the first five are found."
            )
        lines.append(f"How this was measured: {plain(r.how)}.")
    return "\n  ".join(lines)


def _evaluations(evaluations: tuple[Evaluation, ...]) -> str:
    if not evaluations:
        return ""
    parts = ["## Evaluations"]
    for found in evaluations:
        parts += [
            f"### {plain(found.title)}",
            fenced(found.command, "bash") if found.command else "",
            table(
                [plain(c) for c in found.header], [[plain(c) for c in row] for row in found.rows]
            ),
            f"Note: {plain(found.note)}" if found.note else "",
        ]
    return "\n\n".join(filter(None, parts))


def _uses(m: Manifest) -> str:
    segmenting = ""
    if m.pictures and m.counts.annotated_slices:
        segmenting = ", and on segmentation from a few annotated examples"
    return f"""## Intended use

Research and teaching on the retrieval of medical images by similarity{segmenting}.

Out of scope:

- diagnosis, triage, treatment, or any other decision about a person;
- finding out who a patient is, or joining the rows with other data of the same people;
- conclusions on how frequent a finding is: the counts are those of the source, not of a population;
- use that the license of the images does not allow."""


def _limits(m: Manifest) -> str:
    counts = m.counts
    extra = " and the extra columns" if m.attributes else ""
    shown = ", and the pixels as they were rendered" if m.pictures else ""
    masks = ""
    if m.pictures:
        masks = """
- A mask of zeros says that nothing was annotated on the slice; no mask (null) says that the case
  has no annotation. Masks are as good as the annotations they come from."""
    return f"""## Limits

- {RESEARCH_ONLY} A similar image does not mean a similar finding.
- Nothing can be found that is not among the {counts.slices} slices of {counts.patients} patients: a
  query of another kind has results too, and they mean nothing.
- `patient_id` is a keyed hash: a pseudonym, not an anonymisation. Whoever knows an identifier can
  compute its hash. `volume_id`, the labels{extra} are stored as they were given{shown}: whether
  they identify a person was not checked.
- A patient can ask to be removed: `medretrieval remove` writes a version without the patient, by
  which older copies have to be replaced.
- Scores compare images as the embedder sees them. They are not probabilities.{masks}"""


def _citation(m: Manifest, repo: str | None) -> str:
    terms = f"They are under the license {plain(m.license)}, which may also say what may become of"
    terms += " pictures and embeddings made from them."
    if m.license.strip().lower() == UNKNOWN:
        terms = "Their license is unknown: ask whoever owns them before you copy or publish them."
    at = f", {code(repo)}" if repo else ""
    return f"""## Source, license and citation

The images come from: {plain(m.source)}. {terms}

Cite the source in the way that it asks for. This index is: {plain(m.name)}, version
{m.version}{at}, made with medretrieval {plain(m.medretrieval_version)}."""


def _counted(names: Mapping[str, int]) -> str:
    shown = [f"{plain(name)} ({count})" for name, count in list(names.items())[:LISTED]]
    return ", ".join(shown) + (", ..." if len(names) > LISTED else "")
