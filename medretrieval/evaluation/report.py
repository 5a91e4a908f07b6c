"""What a few-shot study found: means with intervals."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

import numpy as np

from medretrieval import __version__
from medretrieval.evaluation.agreement import correlations
from medretrieval.evaluation.methods import parse_method
from medretrieval.evaluation.published import PUBLISHED
from medretrieval.evaluation.sets import EvaluationSet
from medretrieval.metrics.intervals import bootstrap_interval
from medretrieval.types import RESEARCH_ONLY

SCHEMA = 1
MEAN = "mean"
_PACKAGES = ("numpy", "scipy", "torch", "sam2", "faiss-cpu", "SimpleITK")
_METRICS = ("dice", "slice_dice", "hd95")


def few_shot_report(
    sets: Sequence[EvaluationSet],
    results: Sequence[Mapping[str, Any]],
    pairs: Sequence[Mapping[str, Any]],
    *,
    segmenter: str,
    embedder: str,
    changes: Mapping[str, str],
    options: Mapping[str, Any],
    command: str | None,
) -> dict[str, Any]:
    """Everything that report.json holds.

    Args:
        results: of every volume and method, as `few_shot` makes them.
        pairs: agreement and Dice of slices, as `agreement.agreement_pairs` makes them, with "set".
        changes: how the segmenter was used, where that differs from its defaults.
        options: as `few_shot.FewShotOptions`; its seed is that of the bootstrap too.
    """
    seed = options["seed"]
    summaries = []
    for chosen in sets:
        own = [r for r in results if r["set"] == chosen.name]
        labels = list(chosen.labels.values())
        summaries.append(
            {
                "name": chosen.name,
                "title": chosen.title,
                "labels": labels,
                "every": chosen.every * options["every"],
                "methods": _per_method([r for r in own if r["in_table"]], labels, segmenter, seed),
                "curve": _per_method([r for r in own if r["on_curve"]], labels, segmenter, seed),
                "agreement": correlations([p for p in pairs if p["set"] == chosen.name]),
                "published": [
                    {
                        "source": p.source,
                        "method": p.method,
                        "like": p.like,
                        "scores": dict(p.scores),
                    }
                    for p in PUBLISHED.get(chosen.published or "", ())
                ],
            }
        )
    return {
        "schema": SCHEMA,
        "protocol": "few-shot",
        "note": RESEARCH_ONLY,
        "command": command,
        "segmenter": segmenter,
        "embedder": embedder,
        "changes": dict(changes),
        "options": dict(options),
        "versions": _versions(),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "python": platform.python_version(),
            "threads": _threads(),
        },
        "sets": summaries,
        "agreement": correlations(pairs),
        "agreement_pairs": [dict(pair) for pair in pairs],
        "volumes": [dict(result) for result in results],
    }


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report without the entries of single volumes and slices."""
    return {name: v for name, v in report.items() if name not in ("volumes", "agreement_pairs")}


def _per_method(
    results: Sequence[Mapping[str, Any]], labels: Sequence[str], segmenter: str, seed: int
) -> list[dict[str, Any]]:
    """One entry a method, in order of appearance; differences are to the first."""
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        by_method.setdefault(result["method"], []).append(result)
    entries = []
    first: Mapping[str, float] = {}
    for name, own in by_method.items():
        means = {r["volume_id"]: _mean_over_labels(r, labels, "dice") for r in own}
        first = first or means
        patients = [r["patient"] for r in own]
        entries.append(
            {
                "method": name,
                "title": parse_method(name, 0).title(segmenter),
                "volumes": len(own),
                "patients": len(set(patients)),
                "seconds_a_slice": _seconds(own, "seconds"),
                "cpu_seconds_a_slice": _seconds(own, "cpu_seconds"),
                **{
                    metric: {
                        label: _interval([_score(r, label, metric, labels) for r in own], own, seed)
                        for label in (MEAN, *labels)
                    }
                    for metric in _METRICS
                },
                "difference": _interval([means[v] - first[v] for v in means], own, seed),
            }
        )
    return entries


def _score(
    result: Mapping[str, Any], label: str, metric: str, labels: Sequence[str]
) -> float | None:
    if label == MEAN:
        return _mean_over_labels(result, labels, metric)
    value: float | None = result["scores"][label][metric]
    return value


def _mean_over_labels(result: Mapping[str, Any], labels: Sequence[str], metric: str) -> float:
    """Mean over the labels that have a score; nan where none has."""
    scores = [result["scores"][label][metric] for label in labels]
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else float("nan")


def _interval(
    values: Sequence[float | None], results: Sequence[Mapping[str, Any]], seed: int
) -> dict[str, float | int | None]:
    """Mean and 95 % interval by patient of the volumes that have a score."""
    known = [
        (value, result["patient"])
        for value, result in zip(values, results, strict=True)
        if value is not None and not isnan(value)
    ]
    if not known:
        return {"mean": None, "low": None, "high": None, "volumes": 0}
    numbers, patients = zip(*known, strict=True)
    low, high = bootstrap_interval(numbers, patients, seed=seed)
    return {
        "mean": round(float(np.mean(numbers)), 4),
        "low": None if isnan(low) else round(low, 4),
        "high": None if isnan(high) else round(high, 4),
        "volumes": len(numbers),
    }


def _seconds(results: Sequence[Mapping[str, Any]], which: str) -> float | None:
    slices = sum(r["slices"] for r in results)
    return round(sum(r[which] for r in results) / slices, 4) if slices else None


def _versions() -> dict[str, str]:
    found = {"medretrieval": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _threads() -> int:
    import torch

    return int(torch.get_num_threads())
