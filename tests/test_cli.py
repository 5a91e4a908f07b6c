"""The command line as a user meets it: real embedder, real `sam2-micro`, tiny volumes."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medretrieval.arguments import INDEX_KINDS, WINDOWS, parser
from medretrieval.cli import COMMANDS, main
from medretrieval.imaging import POLICIES
from medretrieval.index import KINDS

AFFINE = np.diag([1.5, 1.5, 8.0, 1.0])


def ball(shape: tuple[int, int, int], centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.indices(shape) - np.reshape(centre, (3, 1, 1, 1))
    return (grid**2).sum(0) < radius**2


def write_case(folder: Path, name: str, kind: str, seed: int) -> tuple[Path, Path]:
    """A noisy volume with a bright ball or a dark box as its annotated structure."""
    rng = np.random.default_rng(seed)
    shape = (48, 40, 6)
    mask = np.zeros(shape, np.uint8)
    if kind == "ball":
        mask[ball(shape, (24 + seed % 3, 20, 3), 9)] = 1
    else:
        mask[10 + seed % 3 : 28, 8:20, 1:5] = 1
    contrast = 200.0 if kind == "ball" else -90.0
    image = 100 + 20 * rng.standard_normal(shape) + contrast * mask
    paths = folder / "images" / f"{name}.nii.gz", folder / "masks" / f"{name}.nii.gz"
    for path, voxels in zip(paths, (image.astype(np.int16), mask), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return paths


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("MEDRETRIEVAL_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `index` (3 balls, 3 boxes) and the unseen pairs query/, truth/."""
    root = tmp_path_factory.mktemp("world")
    for kind in ("ball", "box"):
        for seed in range(3):
            write_case(root / "database", f"{kind}{seed}", kind, seed)
        write_case(root / "queries", kind, kind, 7)
    database = root / "database"
    arguments = [str(database / "images"), str(root / "index"), "--masks", str(database / "masks")]
    assert main(["build", *arguments, "--quiet", "--modality", "MR", "--region", "box"]) == 0
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """Run with --json; return what it printed."""
    code = main([*map(str, arguments), "--json", "--quiet"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def query(world: Path, kind: str = "ball") -> Path:
    return world / "queries" / "images" / f"{kind}.nii.gz"


@pytest.mark.parametrize("mode", ["slice", "count", "weighted", "rerank"])
@pytest.mark.parametrize("kind", ["ball", "box"])
def test_search_finds_the_same_kind(
    world: Path, capsys: pytest.CaptureFixture[str], mode: str, kind: str
) -> None:
    found = run(capsys, "search", world / "index", query(world, kind), "--mode", mode, "-k", 2)
    assert list(found) == ["query", "mode", "orientation", "hits"]
    assert found["mode"] == mode
    middle = [h for h in found["hits"] if h["rank"] == 1 and h["matches"][0]["query_slice"] == 3]
    best = middle if mode == "slice" else found["hits"][:1]
    assert [hit["volume_id"][: len(kind)] for hit in best] == [kind]
    assert list(best[0]) == [
        *("rank", "volume_id", "score", "slice_index", "position_mm", "labels"),
        *("modality", "region", "near_duplicate", "matches"),
        *(("localization",) if mode == "rerank" else ()),
    ]
    assert set(best[0]["matches"][0]) == {"query_slice", "slice_index", "score"}


def test_search_text_is_a_table(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(world / "index"), str(query(world)), "--slice", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["query_slice", "rank", "volume_id"]
    assert len(lines) == 6


def test_segment_writes_a_mask_on_the_grid_of_the_query(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mask.nii.gz"
    truth = world / "queries" / "masks" / "ball.nii.gz"
    made = run(
        *(capsys, "segment", world / "index", query(world), "--out", out),
        *("--truth", truth, "--support-k", 6),
    )
    image, mask = nib.load(query(world)), nib.load(out)
    assert mask.shape == image.shape
    np.testing.assert_array_equal(mask.affine, image.affine)
    voxels = np.asarray(mask.dataobj)
    assert made["labels"][0]["name"] == "label_1"
    assert made["labels"][0]["voxels"] == int((voxels == 1).sum()) > 0
    assert made["labels"][0]["ml"] == pytest.approx(made["labels"][0]["voxels"] * 0.018, rel=1e-3)
    # The ball is bright on a flat background: a segmenter that looks at the query finds it.
    assert made["dice"]["label_1"] > 0.6
    assert made["segmenter"] == "sam2-micro"
    renumbered = nib.Nifti1Image(np.asarray(nib.load(truth).dataobj) * 5, image.affine)
    nib.save(renumbered, tmp_path / "renumbered.nii.gz")
    again = ["segment", world / "index", query(world), "--out", out, "--support-k", 6, "--force"]
    again += ["--truth", tmp_path / "renumbered.nii.gz"]
    assert main([*map(str, again), "--quiet"]) == 2
    assert "--truth-names" in capsys.readouterr().err
    assert run(capsys, *again, "--truth-names", "5=label_1")["dice"] == made["dice"]
    assert {s["query_slice"] for s in made["supports"]} == set(range(6))


def test_segment_one_slice_leaves_the_others(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mask.nii"
    truth = world / "queries" / "masks" / "ball.nii.gz"
    made = run(
        *(capsys, "segment", world / "index", query(world), "--out", out, "--slice", 3),
        *("--truth", truth),
    )
    voxels = np.asarray(nib.load(out).dataobj)
    assert np.flatnonzero(voxels.any(axis=(0, 1))).tolist() == [3]
    found, wanted = voxels[..., 3] > 0, np.asarray(nib.load(truth).dataobj)[..., 3] > 0
    expected = 2 * (found & wanted).sum() / (found.sum() + wanted.sum())
    assert made["dice"] == {"label_1": pytest.approx(expected)}


def test_segment_with_a_network_loaded_and_used_in_another_way(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medretrieval import segmentation
    from medretrieval.segmentation import Segmenter, load_segmenter

    used: list[Segmenter] = []
    changed: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> Segmenter:
        used.append(load_segmenter(*args, **kwargs))
        return used[-1]

    batch = Segmenter.segment_batch

    def spy(self: Segmenter, *args: Any, **kwargs: Any) -> Any:
        changed.append(kwargs.get("memory"))
        return batch(self, *args, **kwargs)

    monkeypatch.setattr(segmentation, "load_segmenter", load)
    monkeypatch.setattr(Segmenter, "segment_batch", spy)
    arguments = ["segment", world / "index", query(world), "--out", tmp_path / "mask.nii"]
    arguments += ["--slice", 3, "--image-size", 128, "--segmenter-precision", "bfloat16"]
    assert main([*map(str, arguments), "--memory", "foreground", "--quiet"]) == 0
    assert (used[0].network.image_size, used[0].network.precision) == (128, "bfloat16")
    assert set(changed) == {"foreground"}


def test_segment_says_how_far_single_supports_decide(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [world / "index", query(world), "--out", tmp_path / "mask.nii", "--agreement"]
    made = run(capsys, "segment", *arguments, "--slice", 3, "--support-k", 4)
    assert set(made["agreement"]) == {"label_1"}
    assert 0.5 < made["agreement"]["label_1"] <= 1
    refused = {
        "--slice": ["--out", tmp_path / "no.nii"],
        "without points": ["--out", tmp_path / "no.nii", "--slice", 3, "--positive", "label_1=9,9"],
        "at least 2": ["--out", tmp_path / "no.nii", "--slice", 3, "--support-k", 1],
    }
    for message, more in refused.items():
        command = ["segment", world / "index", query(world), "--agreement", "--quiet", *more]
        assert main([*map(str, command)]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no.nii").exists()


def test_a_new_label_may_be_named_and_pointed_at(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(
        *(capsys, "segment", world / "index", query(world), "--out", tmp_path / "mask.nii"),
        *("--slice", 3, "--labels", "label_1,tumour", "--positive", "tumour=5,5"),
    )
    assert [row["name"] for row in made["labels"]] == ["label_1", "tumour"]


def test_segment_does_not_overwrite(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mask.nii.gz"
    out.write_bytes(b"precious")
    arguments = ["segment", str(world / "index"), str(query(world)), "--out", str(out), "--quiet"]
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert out.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("mask.txt", "cannot write an image"),
        ("none/mask.nii.gz", "does not exist"),
        ("mask.png", "are a volume"),
    ],
)
def test_segment_refuses_a_bad_out_before_its_work(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, message: str
) -> None:
    target = tmp_path / out
    code = main(["segment", str(world / "index"), str(query(world)), "--out", str(target)])
    printed = capsys.readouterr()
    assert code == 2
    assert message in printed.err
    assert "embedding" not in printed.err
    assert not list(tmp_path.iterdir())


def test_info_reports_the_index(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = run(capsys, "info", world / "index")
    assert info["counts"]["volumes"] == 6
    assert info["counts"]["slices"] == 36
    assert info["embedder"]["name"] == "efficientnet-lite0"
    assert info["vocabulary"] == {"1": "label_1"}


@pytest.mark.parametrize(
    ("command", "expected"),
    [("embedders", "efficientnet-lite0"), ("segmenters", "sam2-micro")],
)
def test_listings(capsys: pytest.CaptureFixture[str], command: str, expected: str) -> None:
    rows = run(capsys, command)
    assert {row["name"]: row["status"] for row in rows}[expected] == "bundled"
    assert main([command]) == 0
    assert expected in capsys.readouterr().out


def nifti(path: Path, voxels: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path


def bad_files(folder: Path) -> dict[str, Path]:
    """Files that no reader may accept, by what is wrong with them."""
    rng = np.random.default_rng(0)
    good = rng.normal(100, 10, (16, 16, 4)).astype(np.float32)
    whole = nifti(folder / "whole.nii", good)
    truncated = folder / "truncated.nii"
    truncated.write_bytes(whole.read_bytes()[:-900])
    truncated_gz = folder / "truncated.nii.gz"
    truncated_gz.write_bytes(gzip.compress(whole.read_bytes())[:-400])
    empty = folder / "empty.nii.gz"
    empty.write_bytes(b"")
    nan = good.copy()
    nan[3, 4, 2] = np.nan
    claims = nib.Nifti1Header()
    claims.set_data_dtype(np.int16)
    claims.set_data_shape((1024, 1024, 1024))
    claims["vox_offset"], claims["magic"] = 352, b"n+1"
    huge = folder / "huge.nii"
    huge.write_bytes(claims.binaryblock + bytes(4))
    huge_gz = folder / "huge.nii.gz"
    huge_gz.write_bytes(gzip.compress(claims.binaryblock + bytes(4)))
    text = folder / "text.png"
    text.write_text("not a picture")
    return {
        "truncated": truncated,
        "truncated gz": truncated_gz,
        "empty": empty,
        "NaN": nifti(folder / "nan.nii.gz", nan),
        "constant": nifti(folder / "constant.nii.gz", np.full((16, 16, 4), 7, np.int16)),
        "5-D": nifti(folder / "five.nii.gz", np.zeros((8, 8, 4, 1, 3), np.float32)),
        "one slice": nifti(folder / "one.nii.gz", good[:, :, :1]),
        "claims 2 GB": huge,
        "claims 2 GB, gz": huge_gz,
        "text": text,
        "missing": folder / "missing.nii.gz",
    }


BAD = [
    *("truncated", "truncated gz", "empty", "NaN", "constant", "5-D", "one slice"),
    *("claims 2 GB", "claims 2 GB, gz", "text", "missing"),
]


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("command", ["search", "segment", "build"])
def test_bad_files(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, command: str
) -> None:
    path = bad_files(tmp_path)[what]
    work = tmp_path / "work"
    work.mkdir()
    if command == "build":
        source = tmp_path / "source"
        source.mkdir()
        if path.exists():
            path = path.rename(source / path.name)
        arguments = ["build", str(source), str(work / "index")]
    else:
        arguments = [command, str(world / "index"), str(path)]
        arguments += ["--out", str(work / "mask.nii.gz")] if command == "segment" else []
    code = main([*arguments, "--quiet"])
    out, err = capsys.readouterr()
    assert code in (1, 2)
    assert out == ""
    assert "Traceback" not in err
    assert "internal error" not in err
    assert len(err.strip()) > 30
    assert list(work.iterdir()) == []


def test_one_slice_is_accepted_on_request(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bad_files(tmp_path)["one slice"]
    found = run(capsys, "search", world / "index", path, "--allow-one-slice", "-k", 1)
    assert len(found["hits"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--embedder", "efficientnet-lite1"], "did you mean efficientnet-lite0"),
        (["--label-names", "RV=1"], "1=RV,2=Myo,3=LV"),
        (["--label-names", "\u00b2=RV"], "1=RV,2=Myo,3=LV"),
        (["--where", "split"], "COLUMN=VALUE"),
        (["--window", "ct-lungs"], "ct-lung"),
    ],
)
def test_wrong_use_of_build(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    source = world / "database" / "images"
    assert main(["build", str(source), str(tmp_path / "out"), "--quiet", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_suggest(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = [str(world / "index"), str(query(world))]
    assert main(["segment", *base, "--out", "m.nii", "--segmenter", "sam2-mikro"]) == 2
    assert "did you mean sam2-micro" in capsys.readouterr().err
    assert main(["segment", *base, "--out", "m.nii", "--labels", "liver", "--quiet"]) == 2
    assert "label_1" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["search", *base, "--mode", "colbert"])
    assert stopped.value.code == 2


def test_not_an_index(tmp_path: Path, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(tmp_path), str(query(world))]) == 1
    assert "manifest.json" in capsys.readouterr().err


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "medretrieval", "info", "/nowhere"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_index_kinds_are_those_of_the_library() -> None:
    assert ("auto", *KINDS) == INDEX_KINDS


def test_windows_are_those_of_the_library() -> None:
    assert set(POLICIES) == set(WINDOWS)


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    text = parser().format_help()
    for command in COMMANDS:
        assert command in text
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        assert "--json" in capsys.readouterr().out
