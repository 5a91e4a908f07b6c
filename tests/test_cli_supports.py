"""Support sets, stored memories and new versions of an index on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medretrieval import folders, segmentation
from medretrieval.cli import main
from medretrieval.errors import UsageError
from medretrieval.imaging import read_volume
from medretrieval.pipeline import segment
from medretrieval.retrieval.engine import open_index
from medretrieval.segmentation.baselines import MaskCopy
from medretrieval.segmentation.supports import load_supports

AFFINE = np.diag([1.5, 1.5, 4.0, 1.0])


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDRETRIEVAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def write(folder: Path, name: str, seed: int) -> None:
    """A noisy volume with a bright bar near one corner on the slices 2 to 5 of eight."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((32, 24, 8), np.uint8)
    mask[3 + seed : 14, 2:12, 2:6] = 1
    image = 100 + 20 * rng.standard_normal(mask.shape) + 200 * mask
    for kind, voxels in (("images", image.astype(np.int16)), ("masks", mask)):
        path = folder / kind / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, AFFINE), path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index `index` of two cases, and a query."""
    root = tmp_path_factory.mktemp("world")
    for seed, name in enumerate(("a", "b")):
        write(root / "database", name, seed)
    write(root / "more", "c", 2)
    write(root, "query", 4)
    source = [root / "database" / "images", root / "index"]
    masks = ["--masks", root / "database" / "masks", "--label-names", "1=bar", "--name", "bars"]
    assert main(["build", "--quiet", *map(str, [*source, *masks])]) == 0
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


def voxels(path: Path) -> Any:
    return np.asarray(nib.load(path).dataobj)


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segment by copying masks: what comes out shows what went in."""
    monkeypatch.setattr(segmentation, "load_segmenter", lambda *_, **__: MaskCopy("nearest-mask"))


def asked(world: Path, tmp_path: Path, *more: object) -> list[object]:
    query = world / "images" / "query.nii.gz"
    return ["segment", world / "index", query, "--out", tmp_path / "m.nii", "--force", *more]


@pytest.mark.usefixtures("copying")
def test_what_was_used_is_saved_and_used_again(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "set"
    given = asked(world, tmp_path, "--support-k", 2)
    first = run(capsys, *given, "--save-supports", saved)
    best: dict[str, float] = {}
    for use in first["supports"]:
        best[use["key"]] = max(best.get(use["key"], -1), use["score"])
    supports = load_supports(saved)
    assert {s.key: pytest.approx(s.score) for s in supports} == best
    assert len(supports) == len(best)
    assert [s.score for s in supports] == sorted(best.values(), reverse=True)
    again = run(capsys, *given, "--supports", saved, "--supports", saved, "--slice", 3)
    assert [use["key"] for use in again["supports"]] == [s.key for s in supports]
    # The first of the set is copied to every slice.
    slices = voxels(tmp_path / "m.nii")
    assert (slices[:, :, 3] == 1).sum() == (supports[0].mask == 1).sum()
    assert not slices[:, :, 4].any()
    assert "exists" in refused(capsys, *given[:-3], "--save-supports", saved)


@pytest.mark.usefixtures("copying")
def test_a_pair_instead_of_what_is_retrieved(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = world / "more"
    pair = ["--pair", more / "images" / "c.nii.gz", more / "masks" / "c.nii.gz"]
    given = asked(world, tmp_path, *pair, "--slice", 3)
    first = run(capsys, *given, "--save-supports", tmp_path / "set", "--support-k", 3)
    assert [s.names for s in load_supports(tmp_path / "set")] == [{1: "bar"}] * 3
    assert {s["score"] for s in first["supports"]} == {None}
    np.testing.assert_array_equal(
        voxels(tmp_path / "m.nii")[:, :, 3], voxels(more / "masks" / "c.nii.gz")[:, :, 3]
    )
    named = run(capsys, *given, "--pair-names", "1=rod")
    assert [row["name"] for row in named["labels"]] == ["rod"]
    assert "--pair" in refused(capsys, *asked(world, tmp_path, "--pair-names", "1=rod"))


@pytest.mark.usefixtures("copying")
def test_one_set_for_the_whole_volume(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(capsys, *asked(world, tmp_path, "--sets", "volume", "--support-k", 3))["supports"]
    by_slice = {n: [u for u in found if u["query_slice"] == n] for n in range(8)}
    (keys,) = {frozenset(use["key"] for use in uses) for uses in by_slice.values()}
    assert len(keys) == 3
    for uses in by_slice.values():
        scores = [use["score"] for use in uses]
        assert scores == sorted(scores, reverse=True)
        assert len(uses) == 3
    # What the search says of the same slices.
    single = run(capsys, *asked(world, tmp_path, "--support-k", 16, "--slice", 3))["supports"]
    known = {use["key"]: use["score"] for use in single}
    assert {u["key"]: u["score"] for u in by_slice[3]} == {
        key: pytest.approx(known[key], abs=1e-6) for key in keys
    }


def test_sets_there_are_not(world: Path) -> None:
    index = open_index(world / "index")
    query = read_volume(world / "images" / "query.nii.gz")
    with pytest.raises(UsageError, match="slice or volume"):
        segment(index, query, segmenter=MaskCopy("nearest-mask"), sets="case")  # type: ignore[arg-type]


def test_negatives_can_be_left_out(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = asked(world, tmp_path, "--slice", 3, "--support-k", 16, "--segmenter", "sam2-micro")
    masks = {}
    for option in ("--negatives", "--no-negatives"):
        run(capsys, *given, option)
        masks[option] = voxels(tmp_path / "m.nii")
    run(capsys, *given)
    np.testing.assert_array_equal(voxels(tmp_path / "m.nii"), masks["--negatives"])
    assert masks["--no-negatives"].any()


def test_memories_are_made_shown_and_used(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEDRETRIEVAL_CACHE", str(tmp_path / "cache"))
    index = tmp_path / "index"
    shutil.copytree(world / "index", index)
    first = run(capsys, "memories", index)
    # Of two cases with eight slices each, of which four show the bar.
    assert (first["slices"], first["memories"], first["computed"]) == (16, 16, 16)
    assert run(capsys, "memories", index)["computed"] == 0
    (known,) = run(capsys, "info", index)["memories"]
    assert known["segmenter"] == "sam2-micro"
    assert known["memories"] == 16
    assert known["bytes"] == first["bytes"]
    query = world / "images" / "query.nii.gz"
    given = ["segment", index, query, "--out", tmp_path / "m.nii", "--crop", "none", "--no-closer"]
    run(capsys, *given)
    assert (voxels(tmp_path / "m.nii") == 1).any()
    assert not list((folders.cache_dir() / "memories").glob("*")), "none had to be computed"
    assert "liver" in refused(capsys, "memories", index, "--labels", "liver")


def test_append_makes_a_new_version(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = world / "more"
    given = ["append", world / "index", tmp_path / "new", more / "images"]
    given += ["--masks", more / "masks", "--region", "box", "--note", "seen today"]
    assert run(capsys, *given) == {"index": str(tmp_path / "new")}
    info = run(capsys, "info", tmp_path / "new")
    assert info["version"] == 2
    assert info["changes"][0]["note"] == "seen today"
    assert info["counts"]["volumes"] == 3
    # Named as in the index.
    assert info["vocabulary"] == {"1": "bar"}
    query = world / "images" / "query.nii.gz"
    scores = [
        {(h["volume_id"], h["slice_index"]): h["score"] for h in found["hits"]}
        for path in (world / "index", tmp_path / "new")
        for found in [run(capsys, "search", path, query, "--mode", "slice", "-k", 30)]
    ]
    assert len(scores[1]) == len(scores[0]) + 8
    assert scores[0].items() <= scores[1].items()
    again = ["append", tmp_path / "new", tmp_path / "newer", *given[3:]]
    assert "--replace" in refused(capsys, *again)
    run(capsys, *again, "--replace")
    assert run(capsys, "info", tmp_path / "newer")["changes"][1]["replaced"] == 1
