"""The protocol from a table to a report, with a stand-in for the network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medretrieval.cli import main
from medretrieval.errors import UsageError
from medretrieval.evaluation.few_shot import FewShotOptions, few_shot
from medretrieval.evaluation.index_of import open_set
from medretrieval.evaluation.queries import Query
from medretrieval.evaluation.sets import EvaluationSet, one_set
from medretrieval.segmentation.baselines import MaskCopy
from medretrieval.segmentation.labels import SliceSegmentation, merge
from medretrieval.segmentation.prompts import Prompts
from medretrieval.types import Support

LABELS = {1: "core", 2: "ring"}


class StandIn:
    """Copies the mean mask of the supports; where it is pointed at, a square around the point."""

    name = "stand-in"

    def __init__(self) -> None:
        self.pictures = 0

    def segment_batch(
        self,
        images: Sequence[np.ndarray],
        supports: Sequence[Sequence[Support]],
        *,
        prompts: Sequence[Mapping[str, Prompts] | None] | None = None,
        **options: Any,
    ) -> list[SliceSegmentation]:
        self.pictures += len(images)
        if prompts is None:
            return MaskCopy("mean-mask").segment_batch(images, supports)
        results = []
        for image, pointed in zip(images, prompts, strict=True):
            names = dict(enumerate(pointed or {}, start=1))
            logits = np.full((len(names), *image.shape[:2]), -1, np.float32)
            for logit, label in zip(logits, names.values(), strict=True):
                x, y = (pointed or {})[label].positive[0]
                logit[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] = 1
            results.append(
                SliceSegmentation(mask=merge(logits, list(names)), logits=logits, names=names)
            )
        return results


@pytest.fixture(scope="module")
def discs(table: Path) -> EvaluationSet:
    return one_set(table, LABELS)


@pytest.fixture(scope="module")
def study(discs: EvaluationSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("report")
    methods = ["retrieved", "random@3", "nearest-mask", "points-1-neg"]
    options = FewShotOptions(
        methods=methods, supports=4, curve=(2, 4), curve_volumes=2, agreement=2
    )
    return out, few_shot([discs], out, options=options, segmenter=StandIn(), command="as given")


def test_the_report_has_every_volume_method_and_label(study: tuple[Path, Any]) -> None:
    out, report = study
    (discs,) = report["sets"]
    assert [m["method"] for m in discs["methods"]] == [
        *("retrieved@4", "random@3", "nearest-mask@4", "points-1-neg")
    ]
    best = discs["methods"][0]
    assert (best["volumes"], best["patients"]) == (3, 2)
    assert 0.7 < best["dice"]["mean"]["mean"] <= 1
    assert best["dice"]["core"]["low"] <= best["dice"]["core"]["mean"]
    assert best["difference"]["mean"] == 0
    assert [m["method"] for m in discs["curve"]] == ["retrieved@4", "retrieved@2"]
    assert all(m["volumes"] == 2 for m in discs["curve"])
    assert discs["agreement"]["n"] > 0
    assert report["command"] == "as given"
    assert json.loads((out / "report.json").read_text()) == report
    page = (out / "report.md").read_text()
    assert "| stand-in, 4 retrieved supports |" in page
    assert "not for diagnosis" in page.casefold()
    assert {path.name for path in out.glob("*.png")} == {"supports.png", "examples.png"}
    assert "patient5" not in (out / "report.json").read_text()


def test_points_find_what_they_are_on(study: tuple[Path, Any]) -> None:
    pointed = [r for r in study[1]["volumes"] if r["method"] == "points-1-neg"]
    assert all(r["slices"] == 3 for r in pointed)  # those that show the structures
    assert all(0.1 < r["scores"]["core"]["dice"] < 1 for r in pointed)


def test_a_run_goes_on_where_it_stopped(study: tuple[Path, Any], discs: EvaluationSet) -> None:
    out, report = study
    methods = [m["method"] for m in report["sets"][0]["methods"]]
    options = FewShotOptions(
        methods=methods, supports=4, curve=(2, 4), curve_volumes=2, agreement=2
    )
    idle = StandIn()
    again = few_shot([discs], out, options=options, segmenter=idle)
    assert idle.pictures == 0
    assert again["volumes"] == report["volumes"]
    (out / "cells" / discs.name / "retrieved@4" / "case4.json").unlink()
    busy = StandIn()
    few_shot([discs], out, options=options, segmenter=busy)
    assert busy.pictures == 3  # nothing is on the supports of the outer two


def test_supports_are_of_other_patients(table: Path, tmp_path: Path, discs: EvaluationSet) -> None:
    index = open_set(discs, tmp_path, embedder="efficientnet-lite0")
    (case, *_) = discs.queries()
    own = {
        **{"volume_id": "case0", "patient_id": "patient0"},
        **{"image": case.image, "mask": case.mask, "modality": "MR"},
    }
    query = Query(type(case)(**own), index, every=2, seed=0, most=99)
    assert query.indices == [0, 2, 4]
    for rows in (query.retrieved(99, [2]), query.random(99)):
        volumes = {index.store.support(row).key.split(":")[0] for row in rows[2]}
        assert volumes == {"case1", "case2", "case3"}
    assert query.retrieved(3, [1, 2])[2] == query.retrieved(99, [2])[2][:3]
    assert query.random(3)[2] == query.random(9)[2][:3]
    assert query.random(3)[2] != query.random(3)[4]
    assert {i: set(p) for i, p in query.points(LABELS, 1, 0).items()} == {2: {"core", "ring"}}


def test_wrong_use_is_refused(discs: EvaluationSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no set"):
        few_shot([], tmp_path, segmenter=StandIn())
    with pytest.raises(UsageError, match="unknown method"):
        few_shot([discs], tmp_path, options=FewShotOptions(methods=["x"]), segmenter=StandIn())
    alone = FewShotOptions(supports=1, agreement=1)
    with pytest.raises(UsageError, match="at least 2"):
        few_shot([discs], tmp_path, options=alone, segmenter=StandIn())


def test_the_command(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report"
    given = ["evaluate", "few-shot", str(table), "--out", str(out), "--quiet", "--json"]
    wanted = ["--methods", "retrieved,points-1", "--supports", "2", "--curve", "0", "--every", "3"]
    labels = ["--label-names", "1=core,2=ring"]
    assert main([*given, *wanted, *labels, "--limit-volumes", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["segmenter"] == "sam2-micro"
    assert report["command"].startswith("medretrieval evaluate few-shot")
    assert [m["volumes"] for m in report["sets"][0]["methods"]] == [1, 1]
    assert not (out / "supports.png").exists()
    assert report["sets"][0]["labels"] == ["core", "ring"]
    assert main([*given, *wanted, "--limit-volumes", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["sets"][0]["labels"] == ["label_1", "label_2"]
    assert main([*given, "--only", "a"]) == 2
    assert main([*given, *labels, "--sets", "x.json"]) == 2
