"""What `medretrieval search` can be asked for, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medretrieval.cli import main
from medretrieval.imaging import orientation
from medretrieval.query_arguments import AS_STORED, ORIENTATIONS

AFFINE = np.diag([1.5, 1.5, 4.0, 1.0])


def write(folder: Path, name: str, seed: int) -> None:
    """A noisy volume with a bright bar on the slices 2 to 5 of eight, and its mask."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((32, 24, 8), np.uint8)
    mask[8 + seed : 20, 6:18, 2:6] = 1
    image = 100 + 20 * rng.standard_normal(mask.shape) + 200 * mask
    for kind, voxels in (("images", image.astype(np.int16)), ("masks", mask)):
        path = folder / kind / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, AFFINE), path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    for seed, name in enumerate(("a", "b", "c")):
        write(root / "database", name, seed)
    write(root, "query", 5)
    database = root / "database"
    arguments = [str(database / "images"), str(root / "index"), "--masks", str(database / "masks")]
    assert main(["build", *arguments, "--quiet", "--modality", "MR", "--label-names", "1=bar"]) == 0
    return root


def search(world: Path, capsys: pytest.CaptureFixture[str], *options: object) -> Any:
    asked = ["search", str(world / "index"), *map(str, options), "--json", "--quiet"]
    code = main(asked)
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def query_slices(found: Any) -> list[int]:
    return sorted({m["query_slice"] for hit in found["hits"] for m in hit["matches"]})


def test_parts_and_samples_of_the_query(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, mask = world / "images" / "query.nii.gz", world / "masks" / "query.nii.gz"
    drawn = ("--query-labels", mask, "--structure", "bar")

    def slices(*options: object) -> list[int]:
        return query_slices(search(world, capsys, image, *options))

    assert slices("--mode", "region", *drawn) == [2, 3, 4, 5]
    assert slices("--mode", "region", "--slices", "1:3") == [1, 2, 3]
    assert slices("--mode", "count", "--sample", "step:3") == [0, 3, 6]
    assert slices("--mode", "sampled") == [0, 2, 3, 5, 7]
    random = ("--mode", "sampled", "--sample", "random:3", "--seed")
    assert slices(*random, 4) == slices(*random, 4)
    assert slices("--mode", "rerank", *drawn, "--sample", "step:2", "--slices", "3:7") == [3, 5]
    named = ("--query-labels", mask, "--query-label-names", "1=it", "--structure", "it")
    assert slices("--mode", "count", *named) == [2, 3, 4, 5]


def test_localized_says_where_and_how_much(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, mask = world / "images" / "query.nii.gz", world / "masks" / "query.nii.gz"
    drawn = ("--query-labels", mask, "--structure", "bar")
    hit = search(world, capsys, image, "--mode", "localized", "-k", 1, *drawn)["hits"][0]
    assert hit["localization"]["structure"] == "bar"
    assert 0 <= hit["localization"]["ratio"] <= 1
    options = (image, "--mode", "rerank", "--top", 2, "--candidates", 1, *drawn)
    hits = search(world, capsys, *options)["hits"]
    assert [len(hit["localization"]["slices"]) for hit in hits] == [2]
    assert main(["search", str(world / "index"), *map(str, options), "--quiet"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[-2:] == ["found_on", "LR"]
    assert line.split()[-1] == f"{hits[0]['localization']['ratio']:.4g}"


def test_a_case_of_the_index_and_filters(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def found(*options: object) -> set[str]:
        hits = search(world, capsys, "case:a", "--mode", "mean-pool", *options)["hits"]
        return {hit["volume_id"] for hit in hits}

    assert found() == {"b", "c"}
    assert found("--where", "volume_id=b") == {"b"}
    assert found("--exclude-patient", "b") == {"c"}
    assert found("--patient", "c") == {"c"}
    assert found("--unlike", "b") == {"c"}
    assert found("--modality", "mr", "--labels", "bar") == {"b", "c"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("case:a", "--sample", "often"), "write random:N"),
        (("case:a", "--where", "volume_id"), "is not COLUMN=VALUE"),
        (("case:a", "--where", "region=a", "--where", "region=b"), "column 'region' twice"),
        (("case:a", "--where", "colour=red"), "unknown column 'colour'"),
        (("case:z",), "unknown volume 'z'"),
        (("case:a", "--mode", "region"), "--slices 20:45"),
        (("case:a", "--mode", "region", "--structure", "bone"), "there is bar"),
        (("case:a", "--query-labels", "mask.nii"), "brings its own labels"),
        (("case:a", "--mode", "weighted", "--sigma", "0"), "sigma is 0"),
        (("case:a", "--slice", "1", "--slices", "1:2"), "expected one of the two"),
        (("case:a", "--slices", "3:99"), "within 0:7"),
        (("case:a", "--like", "z"), "unknown volume 'z'"),
    ],
)
def test_what_cannot_be_asked_for_is_said(
    world: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert main(["search", str(world / "index"), *options, "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert (out, message in err) == ("", True), err


@pytest.mark.parametrize("text", ["3", "a:b", "5:2", "-1:3", "1:2:3"])
def test_a_range_is_first_and_last(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["search", "index", "case:a", f"--slices={text}"])
    assert stopped.value.code == 2
    assert "is not FIRST:LAST, such as 20:45" in capsys.readouterr().err


def test_orientations_are_those_of_the_library() -> None:
    assert (AS_STORED, *ORIENTATIONS) == orientation.ORIENTATIONS
