"""Means, intervals and tables of hand-made results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medretrieval.evaluation.agreement import correlations
from medretrieval.evaluation.pages import markdown, overview
from medretrieval.evaluation.report import few_shot_report, summary
from medretrieval.evaluation.sets import EvaluationSet

LABELS = {1: "RV", 2: "Myo", 3: "LV"}
HEARTS = EvaluationSet(
    name="acdc", title="Hearts", table=Path("x.csv"), labels=LABELS, published="ACDC"
)


def result(method: str, volume: str, dice: float, **more: Any) -> dict[str, Any]:
    scores = {
        label: {"dice": dice, "slice_dice": None if label == "LV" else dice / 2, "hd95": 10 * dice}
        for label in LABELS.values()
    }
    return {
        **{"set": "acdc", "method": method, "in_table": True, "on_curve": False},
        **{"volume_id": volume, "patient": volume[0], "slices": 10, "seconds": 2.0},
        **{"cpu_seconds": 1.0, "scores": scores, **more},
    }


@pytest.fixture
def report() -> dict[str, Any]:
    results = [
        *(result("retrieved@8", v, d) for v, d in (("a1", 0.5), ("a2", 0.7), ("b1", 0.9))),
        *(result("points-1", v, d) for v, d in (("a1", 0.4), ("a2", 0.5), ("b1", 0.6))),
        result("retrieved@2", "a1", 0.3, in_table=False, on_curve=True),
    ]
    pairs = [{"set": "acdc", "agreement": a, "dice": d} for a, d in ((0.2, 0.1), (0.9, 0.8))]
    options = {"seed": 0, "every": 1}
    return few_shot_report(
        [HEARTS],
        results,
        pairs,
        **{"segmenter": "net", "embedder": "emb", "changes": {}},
        **{"options": options, "command": "medretrieval evaluate"},
    )


def test_means_intervals_and_differences(report: dict[str, Any]) -> None:
    (hearts,) = report["sets"]
    best, points = hearts["methods"]
    assert best["dice"]["RV"] == {"mean": 0.7, "low": 0.6, "high": 0.9, "volumes": 3}
    assert best["dice"]["mean"]["mean"] == 0.7
    assert best["slice_dice"]["RV"]["mean"] == 0.35
    assert best["slice_dice"]["LV"]["mean"] is None
    assert best["slice_dice"]["mean"]["mean"] == 0.35
    assert best["hd95"]["mean"]["mean"] == 7
    assert (best["seconds_a_slice"], best["cpu_seconds_a_slice"]) == (0.2, 0.1)
    assert points["difference"]["mean"] == pytest.approx(-0.2)
    assert hearts["curve"][0]["dice"]["RV"] == {
        **{"mean": 0.3, "low": None, "high": None, "volumes": 1}
    }
    assert hearts["agreement"] == {"n": 2, "pearson": 1.0, "spearman": 1.0}


def test_pages(report: dict[str, Any]) -> None:
    page = markdown(report)
    assert "| net, 8 retrieved supports | .700 [.600, .900] |" in page
    assert "-.200 [-.300, -.150]" in page
    assert "| RAFS, table I | Ours | the segmenter, 16 retrieved supports | .673 |" in page
    table = overview(summary(report))
    assert "| Hearts (3) | mean | **.700** [.600, .900] |\n" in table, "no points here"
    assert "medretrieval evaluate" in table
    assert "volumes" not in summary(report)


def test_no_pairs_no_correlation() -> None:
    assert correlations([]) == {"n": 0, "pearson": None, "spearman": None}
