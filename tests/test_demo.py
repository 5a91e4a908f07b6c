"""The built-in demo, whole: built once here, searched and segmented with the bundled networks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medretrieval.cli import main
from medretrieval.demo import Demo, open_demo
from medretrieval.imaging import read_labels, read_volume
from medretrieval.metrics.segmentation import dice_per_label
from medretrieval.phantoms import KINDS
from medretrieval.pipeline import segment
from medretrieval.retrieval.engine import Index, open_index
from medretrieval.segmentation.baselines import MaskCopy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDRETRIEVAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield open_demo()


@pytest.fixture(scope="module")
def index(demo: Demo) -> Index:
    return open_index(demo.index)


def test_there_are_enough_kinds_and_cases(index: Index) -> None:
    ids = index.store.volume_ids
    assert len(KINDS) >= 8
    assert all(sum(f"-{kind}-" in volume for volume in ids) >= 6 for kind in KINDS)
    assert all(volume.startswith("synthetic-") for volume in ids)
    card = (index.store.path / "README.md").read_text()
    assert "synthetic" in card
    assert "Not for diagnosis" in card


def test_a_second_call_builds_nothing(
    demo: Demo, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = demo.index / "manifest.json"
    before = manifest.stat().st_mtime_ns
    monkeypatch.setenv("MEDRETRIEVAL_CACHE", str(demo.index.parents[1]))
    assert main(["demo", "--json", "--quiet"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert Path(printed["index"]) == demo.index
    assert manifest.stat().st_mtime_ns == before
    assert sum(query["synthetic"] for query in printed["queries"]) == len(KINDS)
    assert {Path(q["path"]).name for q in printed["queries"] if not q["synthetic"]} == {
        "CT_small.dcm",
        "MR_small.dcm",
    }


def test_every_synthetic_query_finds_its_own_kind(demo: Demo, index: Index) -> None:
    for query in demo.queries:
        if query.synthetic:
            kind = query.path.name.split(".")[0]
            embedded = index.query_embeddings(read_volume(query.path))
            for mode in ("count", "weighted", "rerank"):
                best = index.search(embedded, mode=mode, k=1).hits[0]
                assert f"-{kind}-" in best.volume_id, (kind, mode)
                assert (best.modality, best.region) == (KINDS[kind].modality, KINDS[kind].region)


@pytest.mark.parametrize("kind", ["mr-heart", "ct-chest", "mr-abdomen"])
def test_masks_are_better_than_copies(demo: Demo, index: Index, kind: str) -> None:
    query = next(q for q in demo.queries if q.path.name.startswith(kind))
    volume = read_volume(query.path)
    assert query.truth is not None
    truth = read_labels(query.truth, reference=volume.grid).voxels
    values = [int(v) for v in np.unique(truth) if v]
    assert {index.store.vocabulary[v] for v in values} == set(KINDS[kind].labels.values())

    def mean_dice(segmenter: str | MaskCopy) -> float:
        made = segment(index, volume, segmenter=segmenter).labels
        return float(np.mean(list(dice_per_label(made.voxels, truth, labels=values).values())))

    reached = mean_dice("sam2-micro")
    assert reached > 0.5
    assert reached > mean_dice(MaskCopy("nearest-mask"))
    assert reached > mean_dice(MaskCopy("mean-mask"))
