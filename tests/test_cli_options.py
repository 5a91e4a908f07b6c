"""Options of the command line whose effect is seen in what another command or file says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medretrieval import segmentation
from medretrieval.cli import main
from medretrieval.console import ProgressBar
from medretrieval.errors import Cancelled
from medretrieval.segmentation.baselines import MaskCopy

AFFINE = np.diag([1.5, 1.5, 4.0, 1.0])


def write(folder: Path, name: str, seed: int, *, upside_down: bool = False) -> None:
    """A noisy volume with a bright bar near one corner on the slices 2 to 5 of eight."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((32, 24, 8), np.uint8)
    mask[3 + seed : 14, 2:12, 2:6] = 1
    image = 100 + 20 * rng.standard_normal(mask.shape) + 200 * mask
    for kind, voxels in (("images", image.astype(np.int16)), ("masks", mask)):
        path = folder / kind / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels[:, ::-1] if upside_down else voxels, AFFINE), path)


def build(source: Path, out: Path, *options: object) -> None:
    assert main(["build", str(source), str(out), "--quiet", *map(str, options)]) == 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The indexes `index` and `coronal` of the same cases, and queries."""
    root = tmp_path_factory.mktemp("world")
    for seed, name in enumerate(("a", "b", "c")):
        write(root / "database", name, seed)
    write(root, "query", 4)
    write(root, "turned", 4, upside_down=True)
    images, masks = root / "database" / "images", root / "database" / "masks"
    build(images, root / "index", "--masks", masks, "--modality", "MR", "--label-names", "1=bar")
    build(images, root / "coronal", "--axis", "coronal", "--masks", masks)
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()
    code = main([*map(str, arguments), "--json", "--quiet"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments), "--quiet"]) == 2
    return capsys.readouterr().err


# search --fuse


def test_rankings_of_two_indexes_are_fused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = (world / "images" / "query.nii.gz", "--mode", "mean-pool")
    first, second = world / "index", world / "coronal"
    ranks = [
        {hit["volume_id"]: hit["rank"] for hit in run(capsys, "search", index, *query)["hits"]}
        for index in (first, second)
    ]
    hits = run(capsys, "search", first, *query, "--fuse", second, "-k", 2)["hits"]
    score = {name: sum(1 / (60 + place[name]) for place in ranks) for name in "abc"}
    expected = sorted("abc", key=lambda name: (-score[name], name))[:2]
    assert [hit["volume_id"] for hit in hits] == expected
    assert [hit["score"] for hit in hits] == pytest.approx([score[name] for name in expected])
    message = refused(capsys, "search", first, query[0], "--fuse", second, "--mode", "slice")
    assert "cut along acquisition and along coronal" in message


def test_indexes_of_other_cases_are_not_fused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(world / "images", tmp_path / "others")
    query = world / "images" / "query.nii.gz"
    message = refused(capsys, "search", world / "index", query, "--fuse", tmp_path / "others")
    assert "the indexes index and others have no case in common" in message


# build --crop body


def test_a_query_is_cut_as_the_index_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    body = rng.integers(90, 250, (60, 50)).astype(np.uint8)
    for name, (top, left) in {"images/stored.png": (10, 20), "moved.png": (90, 120)}.items():
        picture = np.zeros((160, 180), np.uint8)
        picture[top : top + 60, left : left + 50] = body
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / name)
    scores = {}
    for crop in ("body", "none"):
        index = tmp_path / crop
        build(tmp_path / "images", index, "--crop", crop)
        assert json.loads((index / "manifest.json").read_text())["slices"]["crop"] == crop
        (hit,) = run(capsys, "search", index, tmp_path / "moved.png")["hits"]
        scores[crop] = hit["score"]
    assert scores["body"] == pytest.approx(1, abs=1e-5)
    assert scores["none"] < 0.99


# segment --orientation


@pytest.mark.parametrize("orientation", ["flipped top-bottom", "any"])
def test_a_mask_is_turned_back(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    orientation: str,
) -> None:
    # The masks of the stored slices are copied to the turned slices of the query.
    monkeypatch.setattr(segmentation, "load_segmenter", lambda *_, **__: MaskCopy("nearest-mask"))
    query, truth = (world / kind / "turned.nii.gz" for kind in ("images", "masks"))
    asked = ("segment", world / "index", query, "--truth", truth, "--support-k", 1, "--slice", 3)

    def dice(asked_for: str, said: str) -> float:
        out = tmp_path / f"{asked_for}.nii.gz"
        made = run(capsys, *asked, "--out", out, "--orientation", asked_for)
        assert made["orientation"] == said
        found = np.asarray(nib.load(out).dataobj)[:, :, 3]
        shown = np.asarray(nib.load(truth).dataobj)[:, :, 3]
        return float(2 * (found & shown).sum() / (found.sum() + shown.sum()))

    assert dice("as stored", "as stored") == 0
    assert dice(orientation, "flipped top-bottom") > 0.7


# segment --propagate --keep --slice-axis


def test_how_slices_make_a_volume(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segmentation, "load_segmenter", lambda *_, **__: MaskCopy("mean-mask"))
    query, out = world / "images" / "query.nii.gz", tmp_path / "mask.nii.gz"
    thick = nib.load(query)
    asked = ("segment", world / "coronal", query, "--out", out, "--support-k", 2)
    options = ("--propagate", "both", "--keep", "largest", "--slice-axis", "best")
    slices = {}
    for name, more in {"as the index": (), "best": options}.items():
        made = run(capsys, *asked, *more, "--force")
        slices[name] = made["slices"]
        assert nib.load(out).shape == thick.shape
        np.testing.assert_array_equal(nib.load(out).affine, thick.affine)
    assert slices == {"as the index": thick.shape[1], "best": thick.shape[2]}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Cancelled("not wanted any more")])
def test_a_mask_that_is_not_finished_is_not_written(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stop: Any,
) -> None:
    def interrupted(self: Any, done: int, total: int, message: str) -> None:
        if message == "segmenting slices":
            raise stop

    monkeypatch.setattr(segmentation, "load_segmenter", lambda *_, **__: MaskCopy("mean-mask"))
    monkeypatch.setattr(ProgressBar, "__call__", interrupted)
    query = world / "images" / "query.nii.gz"
    arguments = ["segment", world / "index", query, "--out", tmp_path / "mask.nii.gz"]
    assert main([*map(str, arguments), "--quiet"]) == 1
    assert "interrupted" in (err := capsys.readouterr().err) or "not wanted any more" in err
    assert not list(tmp_path.iterdir())


# explain


@pytest.mark.parametrize(
    "options",
    [
        ("--mode", "slice", "--slice", 3),
        ("--mode", "count", "--slices", "1:4"),
        ("--mode", "weighted", "--sigma", 0.1, "--slices", "1:6", "--sample", "step:2"),
        ("--mode", "sampled"),
        ("--mode", "max", "--sample", "random:3", "--seed", 2),
        ("--mode", "rerank", "--candidates", 1, "--labels", "bar"),
        ("--mode", "mean-pool", "--exclude-patient", "a"),
        ("--mode", "count", "--like", "c", "--unlike", "a:3"),
        ("--mode", "rerank", "--like", "b:1", "--unlike", "c"),
        ("--mode", "localized", "--structure", "bar", "--query-labels", "masks/query.nii.gz"),
        ("--mode", "max", "--orientation", "any"),
    ],
)
@pytest.mark.parametrize("query", ["images/query.nii.gz", "case:b"])
def test_the_pair_that_a_search_finds_is_explained(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    query: str,
    options: Sequence[object],
) -> None:
    if query.startswith("case") and {"--query-labels", "--orientation"} & set(options):
        options = options[:4] if "--structure" in options else options[:2]
    monkeypatch.chdir(world)
    found = run(capsys, "search", "index", query, *options, "-k", 1)
    why = run(capsys, "explain", "index", query, *options, "--out", tmp_path / "why")
    (hit,) = found["hits"]
    assert why["volume_id"] == hit["volume_id"]
    assert {name: why["pair"][name] for name in hit["matches"][0]} == hit["matches"][0]
    assert why["pair"]["kind"] == "contribution"
    assert why["orientation"] == found["orientation"]
    compared = {match["query_slice"]: match for match in why["matches"]}
    if "slice" not in options:
        assert {match["query_slice"] for match in hit["matches"]} <= compared.keys()
    assert compared[why["pair"]["query_slice"]]["slice_index"] == why["pair"]["slice_index"]


def test_slices_that_may_not_be_found_are_not_compared(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("explain", world / "index", world / "images" / "query.nii.gz", "--out", tmp_path)
    run(capsys, *asked, "--volume", "b", "--labels", "bar", "--slices", "2:4")
    lines = (tmp_path / "matrix.csv").read_text().splitlines()
    assert lines[0] == "query slice,2,3,4,5"
    assert [line.partition(",")[0] for line in lines[1:]] == ["2", "3", "4"]
    named = (*asked, "--force", "--volume", "b")
    for options in (("--patient", "a"), ("--unlike", "b")):
        assert "no slice of b may be found" in refused(capsys, *named, *options)
    assert "has the region 'head'" in refused(capsys, *named, "--region", "head")
    message = refused(capsys, *asked, "--force", "--slices", "2:4", "--slice", 6)
    assert "slice 6 is not among those of the query that are searched with: 2..4" in message
    assert "--slices 20:45" in refused(capsys, *asked, "--force", "--mode", "region")
