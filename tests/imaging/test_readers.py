from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medretrieval
from medretrieval.errors import InputError
from medretrieval.imaging import KNOWN, read_volume, sniff, stem
from medretrieval.imaging.sniff import kind_of

NOISE = np.random.default_rng(0).bytes(4000)


@pytest.mark.parametrize("name", ["scan.nii", "scan.png", "scan.dcm", "scan.zip", "scan.jpg"])
def test_content_that_is_not_what_the_name_says(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\1" + NOISE)
    with pytest.raises(InputError, match="is named like a"):
        read_volume(tmp_path / name)


def test_unknown_types(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError) as caught:
        read_volume(tmp_path / "notes.txt")
    assert f"notes.txt is of an unknown type; expected {KNOWN}" in str(caught.value)


def test_other_archives_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(__file__)
    with pytest.raises(InputError, match="a tar archive"):
        read_volume(tmp_path / "a.tar")
    (tmp_path / "a.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + NOISE)
    with pytest.raises(InputError, match="a 7z archive"):
        read_volume(tmp_path / "a.7z")


@pytest.mark.parametrize("name", ["a.png", "a.nii.gz", "a.nii", "a.dcm", "a.zip", "a.tif", "a"])
def test_empty_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"empty \(0 bytes\)"):
        read_volume(tmp_path / name)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_volume(tmp_path / "none.nii.gz")
    with pytest.raises(InputError):
        read_volume(tmp_path / "a\0b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(NOISE)
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        read_volume(tmp_path / "a.png")


def test_folders_without_a_series(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty"):
        read_volume(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="no image among its 1 files"):
        read_volume(tmp_path)
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"1 other images.*one file"):
        read_volume(tmp_path)


@pytest.mark.parametrize("name", ["scan.dcm", "scan.bin", "scan"])
def test_content_decides_not_the_name(
    tmp_path: Path, save_nifti: Callable[..., Path], name: str
) -> None:
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    (tmp_path / name).write_bytes(save_nifti(voxels).read_bytes())
    assert np.array_equal(read_volume(tmp_path / name).voxels, voxels)
    assert sniff(tmp_path / name, name) == "nifti"


def test_random_bytes_are_never_something() -> None:
    rng = np.random.default_rng(0)
    assert all(kind_of(b"\x77" + rng.bytes(600)) is None for _ in range(2000))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.nii.gz", "a"), ("a.b.NII.GZ", "a.b"), ("a.png", "a"), ("a", "a"), (".nii.gz", ".nii.gz")],
)
def test_stem(name: str, expected: str) -> None:
    assert stem(name) == expected


def test_importing_the_package_stays_light() -> None:
    code = (
        "import sys, medretrieval, medretrieval.imaging\n"
        "heavy = {'torch', 'faiss', 'gradio', 'transformers', 'datasets'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    root = str(Path(medretrieval.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_are_refused_and_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scan.nii")
    with pytest.raises(InputError, match="pipe"):
        read_volume(tmp_path / "scan.nii")
    with pytest.raises(InputError, match="is empty"):
        read_volume(tmp_path)
