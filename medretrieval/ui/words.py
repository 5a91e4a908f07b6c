"""The sentences of the page: what was found, what its numbers mean, what was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from medretrieval.errors import UsageError
from medretrieval.imaging.orientation import AS_STORED
from medretrieval.retrieval.selection import DEFAULT_SAMPLE, runs
from medretrieval.types import UNKNOWN, Hit, Localization, Match, Volume
from medretrieval.ui import options
from medretrieval.ui.options import Wanted
from medretrieval.ui.session import CartItem, Found, Outcome

# In the order in which they are offered.
MODES = {
    "rerank": "Cases, re-ranked",
    "slice": "Slices like this one",
    "region": "Cases like a part of it",
    "localized": "A part of it, located",
    "count": "Cases, counted",
    "weighted": "Cases, weighted count",
    "sampled": "Cases, from a few slices",
    "max": "Cases, by the best slice",
    "sum": "Cases, similarities summed",
    "mean-pool": "Cases, by the average slice",
    "median-pool": "Cases, by the median slice",
}
HINTS = {
    "rerank": "Compares all slices with all.",
    "slice": "With the slice that you look at.",
    "region": "With the slices chosen below.",
    "localized": "And on which slices of a case it is.",
    "count": "By where most best matches are.",
    "weighted": "As counted; middle slices count more.",
    "sampled": "As counted, with fewer slices: quick.",
    "max": "One very similar slice is enough.",
    "sum": "Best matches, by how similar they are.",
    "mean-pool": "One average for the whole image.",
    "median-pool": "As the average; outliers count less.",
}
SCORES = {
    "slice": "cosine similarity of the two slices; 1 is identical",
    "count": "how many slices of your image have their best match in this case",
    "weighted": "the same count, in which slices near the middle of your image weigh more",
    "sampled": "how many of the sampled slices of your image have their best match in this case",
    "max": "similarity of the best of the pairs below; 1 is identical",
    "sum": "sum of the similarities of your slices whose best match is in this case",
    "mean-pool": "cosine similarity of the two averages over all slices; 1 is identical",
    "median-pool": "cosine similarity of the two medians over all slices; 1 is identical",
    "region": "how many of the chosen slices of your image have their best match in this case",
    "localized": "how many of the chosen slices of your image have their best match in this case",
    "rerank": "the best similarity within this case, summed over the slices of your image",
}
COUNTS = ("count", "sampled", "region", "localized")
COSINES = ("slice", "max", "mean-pool", "median-pool")
FUSED_SCORE = (
    "sum over the indexes of 1 / (60 + rank of this case there); a case that all indexes rank "
    "high comes first"
)
# In an index of whole volumes.
WHOLE_MODES = {
    "slice": "Volumes like this one",
    "count": "The most similar volume, counted",
    "weighted": "The most similar volume, weighted",
    "rerank": "The most similar volume, re-ranked",
}
WHOLE_SCORE = "cosine similarity of the two volumes, each compared as a whole; 1 is identical"
NO_PICTURES = "Hits are named, not shown, and nothing can be segmented from them"
WHOLE_NOTE = (
    "This index compares whole volumes, so the slice that you look at makes no difference to a "
    "search; to segment, add slices to the support set yourself."
)
NEAR_DUPLICATE = (
    "So similar that it shows the same picture or the same volume as yours, perhaps saved again "
    "in another format, shifted or scaled."
)
ORIENTATIONS = {
    "rotated left": "a quarter turn to the left",
    "rotated right": "a quarter turn to the right",
    "rotated 180": "half a turn",
    "flipped left-right": "mirroring it left to right",
    "flipped top-bottom": "mirroring it top to bottom",
    "flipped diagonally": "swapping its rows and columns",
    "flipped along the other diagonal": "swapping its rows and columns, mirrored",
}


def mode_choices(names: Iterable[str], *, whole: bool = False) -> list[tuple[str, str]]:
    """(title, name) of the ways of searching, in an index of slices or of `whole` volumes."""
    titles = WHOLE_MODES if whole else MODES
    there = set(names)
    return [(title, name) for name, title in titles.items() if name in there]


def score(hit: Hit, mode: str, slices: int, *, whole: bool = False, fused: bool = False) -> str:
    """The score of a hit in words, of an image that was searched with `slices` slices.

    `whole`: whole volumes were compared. `fused`: it is that of several rankings together.
    """
    if fused:
        return f"fused score {hit.score:.4f}"
    if whole:
        return f"similarity {hit.matches[0].score:.3f}"
    if mode in COSINES:
        return f"similarity {hit.score:.3f}"
    if mode in COUNTS:
        return f"{hit.score:.0f} of {slices} slice{'' if slices == 1 else 's'}"
    return f"score {hit.score:.2f}" + (f" of {slices}" if mode in ("rerank", "sum") else "")


def score_meaning(mode: str, *, whole: bool = False, fused: bool = False) -> str:
    """What the score of a hit is."""
    return FUSED_SCORE if fused else WHOLE_SCORE if whole else SCORES.get(mode, "score")


def caption(found: Found, hit: Hit, match: Match, labels: Sequence[str]) -> list[str]:
    """Lines of a hit's caption: score, case, the pair of slices, where it is, what it shows."""
    pair = f"slice {match.slice_index}"
    if found.whole:
        pair = f"whole volume, shown by {pair}"
    elif found.slices > 1:
        pair += f" for your {match.query_slice}"
    none = "no structure in it" if found.whole else "no structure on it"
    about = " \u00b7 ".join(part for part in (hit.modality, hit.region) if part != UNKNOWN)
    return [
        score(hit, found.result.mode, found.slices, whole=found.whole, fused=found.fused),
        hit.volume_id,
        pair,
        *([located(hit.localization)] if hit.localization and found.in_part else []),
        *([about] if about else []),
        ", ".join(labels) if labels else none,
    ]


def located(where: Localization) -> str:
    """On which slices of a case the image, or a structure of it, was found."""
    if not where.slices:
        return "on none of its slices"
    numbers = sorted({match.slice_index for match in where.slices})
    named = runs(numbers).replace("..", "\u2013")
    line = f"on its slice{'' if len(numbers) == 1 else 's'} {named}"
    if where.ratio is None:
        return line
    return f"{line}; {where.structure or 'the structure'} on {100 * where.ratio:.0f} % of them (LR)"


def found_line(found: Found, slices: int, *, meaningless: bool = False) -> str:
    """What a search gave, for an image of `slices` slices.

    `meaningless`: it was a search for a real image among phantoms. Something is always found
    there, and must not look like an answer.
    """
    hits = len(found.result.hits)
    if not hits:
        if found.narrowed:
            return "No case passes the filters. Take some of them away under “Search options”."
        return "Nothing similar was found in this index."
    what = "similar cases" if found.slice_index is None else "similar slices"
    if found.slice_index is not None and slices > 1:
        what = f"slices similar to your slice {found.slice_index}"
    if hits == 1:
        what = what.replace("cases", "case").replace("slices", "slice", 1)
    line = f"{hits} {what}, {_took(found.seconds)}. Click a picture to see why it was found."
    if found.whole and found.result.mode != "slice":
        line += f" To see more cases, search for “{WHOLE_MODES['slice']}”."
    elif hits < found.k and found.slice_index is None and not found.whole:
        line += _fewer(found)
    if found.result.orientation != AS_STORED:
        way = ORIENTATIONS.get(found.result.orientation, found.result.orientation)
        line += f" Your image lies as those of the index do after {way}; it was searched so."
    elif found.wanted.orientation == options.ANY_ORIENTATION:
        line += " Your image lies as those of the index do."
    if meaningless:
        line += " This index is synthetic: for a real image its cases have no meaning."
    return line


def _fewer(found: Found) -> str:
    if found.result.mode in ("mean-pool", "median-pool"):
        return " The index has no other case." if not found.narrowed else " No other passes."
    return " In no other case is the best match of any of your slices."


def in_use(wanted: Wanted, mode: str, titles: Mapping[str, str]) -> list[str]:
    """Each option that changes the search, in a few words; `titles` of indexes by their keys."""
    select, filters = wanted.select, wanted.filters
    said = []
    if select.slices is not None:
        first, last = select.slices
        said.append(f"slice {first}" if first == last else f"slices {first} to {last}")
    if select.structure is not None:
        said.append(f"slices with {select.structure}")
    if select.sample is not None and (mode != "sampled" or select.sample != DEFAULT_SAMPLE):
        said.append(sample_words(select.sample))
    said += [value for value in (filters.modality, filters.region) if value is not None]
    if filters.labels is not None:
        said.append("showing " + " or ".join(filters.labels))
    said += [f"{column} {value}" for column, value in filters.where.items()]
    if filters.patient is not None:
        said.append("only one patient")
    if filters.exclude_patient is not None:
        said.append("without one patient")
    if wanted.orientation != AS_STORED:
        said.append("in all eight orientations")
    if wanted.candidates is not None:
        said.append(f"{wanted.candidates} candidates")
    if wanted.also:
        said.append("fused with " + ", ".join(titles.get(key, key) for key in wanted.also))
    return said


def sample_words(sample: str) -> str:
    """A sample of slices in words; as it is where it is none."""
    form, _, number = sample.partition(":")
    words = {"mm": "a slice every {} mm", "step": "every {}th slice", "random": "{} random slices"}
    return words[form].format(number) if form in words else sample


def segmented_line(
    outcome: Outcome, slices: int, *, meaningless: bool = False, missed: int = 0
) -> str:
    """What was segmented of an image of `slices` slices, from what, and how long it took.

    Args:
        meaningless: it is a real image, segmented from phantoms.
        missed: points that the mask does not follow.
    """
    made = outcome.segmentation
    if slices == 1:
        what = "your image"
    elif outcome.slice_index is not None:
        what = f"slice {outcome.slice_index}"
    else:
        what = f"{made.slices} slice{'' if made.slices == 1 else 's'}"
    one = slices == 1 or outcome.slice_index is not None
    by = f"from annotated slices found for {'it' if one else 'each slice'}"
    if outcome.cart:
        by = "from the support set"
    line = f"Segmented {what} {by}, {_took(made.seconds)} with {made.segmenter}."
    corrected = list(outcome.corrected)
    if corrected:
        line += f" Corrected by you: slice{'' if len(corrected) == 1 else 's'} {runs(corrected)}."
    if missed:
        points = "1 point is" if missed == 1 else f"{missed} points are"
        line += (
            f" {points} not followed: {made.segmenter} did not take the hint. Try more points or a "
            "box, or undo."
        )
    if outcome.orientation != AS_STORED:
        line += " It was turned for that as for the search, and its mask turned back."
    if meaningless:
        line += " Those slices are synthetic: on a real image the mask has no meaning."
    return line


def odd_supports(items: Iterable[CartItem], found: Found | None) -> str:
    """That annotated slices show something else than what is most similar to the image, or nothing.

    Args:
        items: annotated slices that the visitor chose.
        found: what was found for the image.
    """
    hits = () if found is None else found.result.hits
    similar = {part for hit in hits for part in (hit.modality, hit.region)}
    odd = [
        item
        for item in items
        if hits
        and not {part for part in (item.modality, item.region) if part != UNKNOWN} <= similar
    ]
    if not odd:
        return ""
    shows = ", ".join(sorted({f"{item.modality} {item.region}" for item in odd}))
    what = "a slice" if len(odd) == 1 else f"{len(odd)} slices"
    return (
        f"The support set has {what} of another kind ({shows}) than the cases most similar to your "
        "image; a mask made from them is unlikely to be right."
    )


def unsuitable(volume: Volume, modalities: Iterable[str]) -> str:
    """That an index has nothing of the modality of an image, or nothing.

    Args:
        modalities: those of the index.
    """
    known = set(modalities) - {UNKNOWN}
    if volume.modality == UNKNOWN or not known or volume.modality in known:
        return ""
    return (
        f"Your image is {volume.modality}, and this index has only {', '.join(sorted(known))}: "
        "what it finds is of another kind. Choose an index of your modality."
    )


def _took(seconds: float) -> str:
    return "in under 0.1 s" if seconds < 0.05 else f"in {seconds:.1f} s"


def size_line(volume: Volume) -> str:
    """Modality, size and spacing of an image in one line; nothing that identifies a patient."""
    grid = volume.grid
    parts = [] if volume.modality == UNKNOWN else [volume.modality]
    if not grid.spacing_known:
        parts.append("\u00d7".join(map(str, grid.shape[:2])) + " pixels, spacing unknown")
    else:
        parts.append("\u00d7".join(map(str, grid.shape)) + " voxels")
        parts.append("\u00d7".join(f"{s:.3g}" for s in grid.spacing) + " mm")
    return " · ".join(parts)


def label_names(text: str | None) -> dict[int, str] | None:
    """Names of mask values from "1=liver, 2=spleen"; None if there are none.

    Raises:
        UsageError: not of that form.
    """
    names: dict[int, str] = {}
    for item in filter(None, (part.strip() for part in (text or "").split(","))):
        value, equals, name = (part.strip() for part in item.partition("="))
        if not (equals and value.isdecimal() and int(value) > 0 and name):
            raise UsageError(
                f"{item!r} does not name a mask value; write for example 1=liver, 2=spleen"
            )
        names[int(value)] = name
    return names or None
