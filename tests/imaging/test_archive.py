from __future__ import annotations

import io
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medretrieval.errors import InputError, UsageError
from medretrieval.imaging import read_volume

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def make_zip(tmp_path: Path) -> Callable[..., Path]:
    def make(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
        path = tmp_path / "upload.zip"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
        return path

    return make


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


Zip = Callable[..., Path]


def test_one_picture(make_zip: Zip, own_temporary_folder: Path) -> None:
    volume = read_volume(make_zip({"folder/scan.png": png(), "notes.txt": b"hello"}))
    assert np.array_equal(volume.voxels[..., 0].T, PIXELS)
    assert volume.name == "scan"
    assert list(own_temporary_folder.iterdir()) == []


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_one_nifti(make_zip: Zip, save_nifti: Callable[..., Path], name: str) -> None:
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    volume = read_volume(make_zip({name: save_nifti(voxels, name=name).read_bytes()}))
    assert np.array_equal(volume.voxels, voxels)
    assert volume.name == "scan"


def test_dicom_series(
    make_zip: Zip, save_series: Callable[..., Path], own_temporary_folder: Path
) -> None:
    stack = np.arange(96, dtype=np.int16).reshape(4, 4, 6)
    folder = save_series(stack, at=[0, 2, 4, 6])
    entries = {f"DICOM/{p.name}": p.read_bytes() for p in folder.iterdir()}
    path = make_zip({**entries, "__MACOSX/x": b"?", "viewer/run.exe": b"MZ", "logo.png": png()})
    volume, direct = read_volume(path), read_volume(folder)
    assert np.array_equal(volume.voxels, direct.voxels)
    assert np.array_equal(volume.grid.affine, direct.grid.affine)
    assert list(own_temporary_folder.iterdir()) == []


def test_several_dicom_series(make_zip: Zip, save_series: Callable[..., Path]) -> None:
    stack = np.arange(72, dtype=np.int16).reshape(3, 4, 6)
    save_series(stack, at=[0, 2, 4], series="1.1", number=1)
    folder = save_series(stack + 100, at=[0, 2, 4], series="1.2", number=2)
    path = make_zip({p.name: p.read_bytes() for p in folder.iterdir()})
    with pytest.raises(InputError, match="2 series"):
        read_volume(path)
    assert read_volume(path, series=2).voxels.min() == 100


def test_series_of_something_else(make_zip: Zip) -> None:
    with pytest.raises(UsageError, match="not a folder or zip of DICOM"):
        read_volume(make_zip({"a.png": png()}), series=1)


def test_several_images(make_zip: Zip) -> None:
    with pytest.raises(InputError, match=r"2 images \('a.png', 'b.png'\)"):
        read_volume(make_zip({"a.png": png(), "x/b.png": png()}))


@pytest.mark.parametrize("entries", [{}, {"notes.txt": b"hello"}, {"empty.png": b""}])
def test_no_image(make_zip: Zip, entries: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match="no image among"):
        read_volume(make_zip(entries))


@pytest.mark.parametrize(
    "name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png"]
)
def test_path_traversal(make_zip: Zip, tmp_path: Path, name: str) -> None:
    path = make_zip({name: png()})
    before = set(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="outside the archive"):
        read_volume(path)
    assert set(tmp_path.rglob("*")) == before


def test_links(tmp_path: Path) -> None:
    path = tmp_path / "link.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("scan.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match="link"):
        read_volume(path)


def test_encrypted(make_zip: Zip) -> None:
    path = make_zip({"scan.png": png()})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="encrypted"):
        read_volume(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2,
                                         zipfile.ZIP_LZMA])  # fmt: skip
def test_bomb_by_ratio(make_zip: Zip, compression: int) -> None:
    with pytest.raises(InputError, match="zip bomb"):
        read_volume(make_zip({"scan.nii": b"\0" * (8 << 20)}, compression))


def test_bomb_by_total_size(make_zip: Zip, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).bytes(60_000)
    path = make_zip({f"{i}.bin": noise for i in range(4)})
    monkeypatch.setenv("MEDRETRIEVAL_MAX_BYTES", "200000")
    with pytest.raises(InputError, match="more than the limit"):
        read_volume(path)


def test_bomb_by_number_of_entries(make_zip: Zip) -> None:
    with pytest.raises(InputError, match="20001 entries"):
        read_volume(make_zip({f"{i}": b"" for i in range(20_001)}, zipfile.ZIP_STORED))


def test_more_than_declared(make_zip: Zip, own_temporary_folder: Path) -> None:
    path = make_zip({"scan.png": png() + b"\0" * 5000})
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[22:26] = data[central + 24 : central + 28] = struct.pack("<I", 100)
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_volume(path)
    assert list(own_temporary_folder.iterdir()) == []


@pytest.mark.parametrize("name", ["inner.zip", "inner.png", "inner"])
def test_nested(make_zip: Zip, name: str) -> None:
    inner = make_zip({"scan.png": png()}).read_bytes()
    with pytest.raises(InputError, match="another archive"):
        read_volume(make_zip({name: inner, "scan.png": png()}))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated(make_zip: Zip, share: float) -> None:
    path = make_zip({"scan.png": png()})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match="damaged"):
        read_volume(path)


def test_corrupt_member(make_zip: Zip, own_temporary_folder: Path) -> None:
    path = make_zip({"scan.png": png()}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[70] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        read_volume(path)
    assert list(own_temporary_folder.iterdir()) == []


def test_bad_image_inside_is_named(make_zip: Zip, own_temporary_folder: Path) -> None:
    with pytest.raises(InputError, match=r"scan.png in upload.zip is damaged"):
        read_volume(make_zip({"scan.png": png()[:45]}))
    assert list(own_temporary_folder.iterdir()) == []
