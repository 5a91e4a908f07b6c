"""Reports of a few-shot study as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medretrieval.evaluation.methods import parse_method
from medretrieval.evaluation.report import MEAN

CPU_SECONDS = "CPU seconds a slice"
EXPLAINED = (
    "3-D Dice of a volume over all slices that were segmented, also those without the structure; "
    "mean over the volumes and 95 % bootstrap interval over the patients."
)


def markdown(report: Mapping[str, Any]) -> str:
    """The page report.md: everything that was measured, a paper's numbers beside it."""
    return f"# Few-shot segmentation\n\n{report['note']}\n\n{sections(report)}\n"


def sections(report: Mapping[str, Any], *, level: int = 2) -> str:
    """How it was measured, and the tables of every set, under headings of this level."""
    heading = "#" * level
    parts = [
        _how(report),
        f"{EXPLAINED} Difference: paired, to the first method. Points are drawn on the true mask, "
        "on the slices that truly show the structure only, so that a method that gets points knows "
        "where the structure is not.",
    ]
    for chosen in report["sets"]:
        parts += [f"{heading} {chosen['title']}", _amount(chosen), dice_table(chosen)]
        parts.append(
            "The slices that truly show a structure only (mean of their 2-D Dice), and the 95th "
            "percentile of the distances of borders, in mm, or pixels where the spacing is unknown:"
        )
        parts.append(_other_scores(chosen))
        if chosen["published"]:
            parts += ["Published, of other patients of this data set:", _published(chosen)]
        if chosen["curve"]:
            volumes = chosen["curve"][0]["volumes"]
            parts.append(f"By the number of supports, {volumes} query volumes:")
            parts.append(dice_table({**chosen, "methods": chosen["curve"]}))
    if report["agreement"]["n"]:
        parts += [
            f"{heading} Agreement and Dice",
            "Correlation of the agreement of the masks made without each support (see "
            "`segment --agreement`) with the 2-D Dice, over slices and labels:",
            agreement_table(report),
        ]
    return "\n\n".join(parts)


def overview(report: Mapping[str, Any]) -> str:
    """One table of all sets and labels, a column a method; and what a paper reports.

    Points without supports, which know the truth, are in `sections` only where there is more.
    """
    header, rows = overview_rows(report)
    parts = [
        _how(report),
        EXPLAINED,
        markdown_table(header, rows),
    ]
    for chosen in report["sets"]:
        if chosen["published"]:
            parts += [f"Published, of other patients of {chosen['title']}:", _published(chosen)]
    if report["agreement"]["n"]:
        parts += [
            "Correlation of the agreement without each support with the Dice of a slice:",
            agreement_table(report),
        ]
    return "\n\n".join(parts)


def overview_rows(
    report: Mapping[str, Any], *, marked: bool = True
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of `overview`.

    Args:
        marked: with signs of Markdown: the best mean of a row is bold.
    """
    every = dict.fromkeys(e["method"] for chosen in report["sets"] for e in chosen["methods"])
    methods = [name for name in every if not name.startswith("points")] or list(every)
    title = {e["method"]: e["title"] for chosen in report["sets"] for e in chosen["methods"]}
    rows: list[list[str]] = []
    for chosen in report["sets"]:
        entries = {entry["method"]: entry for entry in chosen["methods"]}
        volumes = chosen["methods"][0]["volumes"]
        for label in (MEAN, *chosen["labels"]):
            means = [entries[m]["dice"][label]["mean"] for m in methods if m in entries]
            best = max((m for m in means if m is not None), default=None) if marked else None
            cells = [
                _cell(entries[m]["dice"][label], best=best) if m in entries else "-"
                for m in methods
            ]
            name = f"{chosen['title']} ({volumes})" if label == MEAN else ""
            rows.append([name, label, *cells])
        # Those of the processor, which depend less on what else the machine does.
        seconds = [entries[m]["cpu_seconds_a_slice"] if m in entries else None for m in methods]
        rows.append(["", f"*{CPU_SECONDS}*" if marked else CPU_SECONDS, *map(_seconds, seconds)])
    return ["set (query volumes)", "label", *(title[m] for m in methods)], rows


def agreement_table(report: Mapping[str, Any]) -> str:
    """How well the agreement of masks made without each support tells the Dice of a slice."""
    rows = [(chosen["title"], chosen["agreement"]) for chosen in report["sets"]]
    rows.append(("all", report["agreement"]))
    return markdown_table(
        ["set", "slices and labels", "Spearman", "Pearson"],
        [
            [title, str(found["n"]), _number(found["spearman"]), _number(found["pearson"])]
            for title, found in rows
        ],
    )


def dice_table(chosen: Mapping[str, Any]) -> str:
    """Dice of one set: a row a method, a column a label."""
    labels = (MEAN, *chosen["labels"])
    header = ["method", *labels, "difference", "seconds a slice", "of the CPU"]
    rows = []
    for number, entry in enumerate(chosen["methods"]):
        cells = [_cell(entry["dice"][label]) for label in labels]
        difference = "-" if number == 0 else _cell(entry["difference"], show=_signed)
        seconds = [entry["seconds_a_slice"], entry["cpu_seconds_a_slice"]]
        rows.append([entry["title"], *cells, difference, *map(_seconds, seconds)])
    return markdown_table(header, rows)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows as a Markdown table."""
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def made_with(report: Mapping[str, Any]) -> str:
    """The versions and the machine, in a sentence."""
    machine, versions = report["machine"], report["versions"]
    return (
        f"medretrieval {versions['medretrieval']}, {report['segmenter']}, supports retrieved by "
        f"{report['embedder']}; {machine['threads']} threads of {machine['processor']}."
    )


def _how(report: Mapping[str, Any]) -> str:
    text = made_with(report)
    return f"```\n{report['command']}\n```\n\n{text}" if report["command"] else text


def _amount(chosen: Mapping[str, Any]) -> str:
    best = chosen["methods"][0]
    text = f"{best['volumes']} query volumes of {best['patients']} patients"
    every = chosen["every"]
    return f"{text}, every slice." if every == 1 else f"{text}, one slice in {every}."


def _other_scores(chosen: Mapping[str, Any]) -> str:
    labels = (MEAN, *chosen["labels"])
    rows = []
    for entry in chosen["methods"]:
        dice = [_cell(entry["slice_dice"][label]) for label in labels]
        rows.append([entry["title"], "Dice of shown slices", *dice])
        distance = [_cell(entry["hd95"][label], show=_long) for label in labels]
        rows.append(["", "HD95", *distance])
    return markdown_table(["method", "", *labels], rows)


def _published(chosen: Mapping[str, Any]) -> str:
    rows = []
    for p in chosen["published"]:
        scores = [_number(p["scores"].get(label)) for label in chosen["labels"]]
        like = parse_method(p["like"], 0).title("the segmenter")
        rows.append([p["source"], p["method"], like, *scores])
    return markdown_table(["source", "method", "compare with", *chosen["labels"]], rows)


def _number(value: float | None) -> str:
    """.533, as papers print Dice."""
    return "-" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}".replace("0.", ".", 1)


def _long(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _cell(interval: Mapping[str, Any], *, show: Any = _number, best: float | None = None) -> str:
    mean = show(interval["mean"])
    if best is not None and interval["mean"] == best:
        mean = f"**{mean}**"
    if interval["low"] is None:
        return str(mean)
    return f"{mean} [{show(interval['low'])}, {show(interval['high'])}]"
