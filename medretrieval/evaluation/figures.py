"""Figures of a few-shot study: Dice by number of supports, and example masks."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medretrieval.errors import UnavailableError
from medretrieval.evaluation.cells import file_name
from medretrieval.evaluation.examples import PICTURE, TRUTH, load_example
from medretrieval.evaluation.methods import parse_method

CURVE, PANEL = "supports.png", "examples.png"
_PANEL_METHODS = 4
_TRUE, _FOUND = "#2ca02c", "#d62728"


def pyplot() -> Any:
    """matplotlib's pyplot, without a display.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        raise UnavailableError(
            "the figures of a report need matplotlib, which is not installed; run "
            "`pip install -r requirements-evaluation.txt`"
        ) from None
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def draw_figures(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what a report has data for into its folder.

    Returns:
        The files written: the curve, if there is one, and the panel of examples.
    """
    plt = pyplot()
    written = []
    curves = [chosen for chosen in report["sets"] if len(chosen["curve"]) > 1]
    if curves:
        written.append(_save(plt, _curves(plt, curves), folder / CURVE))
    examples = folder / "examples"
    if any(chosen["methods"] for chosen in report["sets"]):
        written.append(_save(plt, _panel(plt, report, examples), folder / PANEL))
    return written


def _curves(plt: Any, sets: Sequence[Mapping[str, Any]]) -> Any:
    """Dice by number of supports, a plot a set, a line a label (RAFS, figure 4)."""
    figure, axes = plt.subplots(1, len(sets), figsize=(3.6 * len(sets), 3.4), squeeze=False)
    for plot, chosen in zip(axes[0], sets, strict=True):
        entries = [(parse_method(e["method"], 0).k, e["dice"]) for e in chosen["curve"]]
        entries.sort(key=lambda entry: entry[0])
        counts = [k for k, _ in entries]
        for label in chosen["labels"]:
            plot.plot(counts, [dice[label]["mean"] for _, dice in entries], "o-", label=label)
        plot.set_xscale("log", base=2)
        plot.set_xticks(counts, [str(k) for k in counts])
        plot.set_ylim(0, 1)
        plot.grid(alpha=0.3)
        volumes = chosen["curve"][0]["volumes"]
        plot.set_title(f"{chosen['title']}\n{volumes} volumes", fontsize=9)
        plot.set_xlabel("supports")
        plot.legend(fontsize=7)
    axes[0][0].set_ylabel("3-D Dice")
    return figure


def _panel(plt: Any, report: Mapping[str, Any], examples: Path) -> Any:
    """A row a set: the query whose Dice by the first method is the median, by several methods."""
    sets = [chosen for chosen in report["sets"] if chosen["methods"]]
    columns = 1 + min(_PANEL_METHODS, max(len(chosen["methods"]) for chosen in sets))
    figure, axes = plt.subplots(
        len(sets), columns, figsize=(2.6 * columns, 2.8 * len(sets)), squeeze=False
    )
    for row, chosen in zip(axes, sets, strict=True):
        for plot in row:
            plot.axis("off")
        volume, dice = _median_volume(report, chosen)
        folder = examples / file_name(chosen["name"]) / file_name(volume)
        picture, truth = load_example(folder, PICTURE), load_example(folder, TRUTH)
        if picture is None or truth is None:
            continue
        row[0].imshow(picture, cmap="gray")
        row[0].set_title(f"{chosen['title']}\n{volume}", fontsize=7)
        for plot, entry in zip(row[1:], chosen["methods"], strict=False):
            found = load_example(folder, entry["method"])
            plot.imshow(picture, cmap="gray")
            _outline(plot, truth, _TRUE)
            if found is not None:
                _outline(plot, found, _FOUND)
            plot.set_title(f"{entry['title']}\nDice {dice[entry['method']]:.2f}", fontsize=7)
    figure.suptitle("true outline green, found outline red", fontsize=9)
    return figure


def _median_volume(
    report: Mapping[str, Any], chosen: Mapping[str, Any]
) -> tuple[str, Mapping[str, float]]:
    """The query in the middle by the first method, and its mean Dice by every method."""
    own = [r for r in report["volumes"] if r["set"] == chosen["name"] and r["in_table"]]
    dice: dict[str, dict[str, float]] = {}
    for result in own:
        mean = float(np.mean([score["dice"] for score in result["scores"].values()]))
        dice.setdefault(result["volume_id"], {})[result["method"]] = mean
    first = chosen["methods"][0]["method"]
    ordered = sorted(dice, key=lambda volume: dice[volume][first])
    volume = ordered[len(ordered) // 2]
    return volume, dice[volume]


def _outline(plot: Any, mask: Any, color: str) -> None:
    for value in np.unique(mask[mask > 0]):
        plot.contour(mask == value, [0.5], colors=color, linewidths=0.9)


def _save(plt: Any, figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
