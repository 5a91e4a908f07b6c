from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medretrieval.errors import InputError, UsageError
from medretrieval.imaging import extract, read_volume
from medretrieval.types import Volume

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20


def shown(volume: Volume) -> np.ndarray:
    return extract(volume.voxels, volume.grid, 2, 0)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.TIFF", "a"])
def test_grey(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.fromarray(PIXELS).save(path, format="PNG" if name in ("a", "a.png") else "TIFF")
    volume = read_volume(path)
    assert np.array_equal(shown(volume), PIXELS)
    assert volume.voxels.dtype == np.uint8
    assert volume.grid.shape == (4, 3, 1)
    assert np.array_equal(volume.grid.affine, np.diag([-1, -1, 1, 1]))
    assert not volume.grid.spacing_known
    assert volume.name == "a"


def test_jpeg(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(64), np.arange(80)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(shown(read_volume(tmp_path / "a.jpg")).astype(int) - smooth).max() <= 3


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit(tmp_path: Path, name: str) -> None:
    wide = PIXELS.astype(np.uint16) * 250
    Image.fromarray(wide).save(tmp_path / name)
    volume = read_volume(tmp_path / name)
    assert volume.voxels.dtype == np.uint16
    assert np.array_equal(shown(volume), wide)


@pytest.mark.parametrize("bits", [8, 16])
def test_white_is_zero_tiff_is_inverted(tmp_path: Path, bits: int) -> None:
    pixels = PIXELS if bits == 8 else PIXELS.astype(np.uint16) * 250
    Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={262: 0})
    stored = Image.open(tmp_path / "a.tif").tag_v2
    assert stored[262] == 0
    volume = read_volume(tmp_path / "a.tif")
    # Pillow stores 8-bit values inverted on saving, 16-bit values as they are.
    expected = pixels if bits == 8 else 65535 - pixels
    assert np.array_equal(shown(volume), expected)


def test_float_tiff(tmp_path: Path) -> None:
    Image.fromarray(PIXELS.astype(np.float32) / 7).save(tmp_path / "a.tif")
    assert np.array_equal(shown(read_volume(tmp_path / "a.tif")), PIXELS.astype(np.float32) / 7)
    broken = PIXELS.astype(np.float32)
    broken[0, 0] = np.nan
    Image.fromarray(broken).save(tmp_path / "b.tif")
    with pytest.raises(InputError, match="NaN"):
        read_volume(tmp_path / "b.tif")


def test_colour(tmp_path: Path) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    Image.fromarray(colors).save(tmp_path / "a.png")
    volume = read_volume(tmp_path / "a.png")
    assert volume.color
    assert volume.voxels.shape == (4, 3, 1, 3)
    assert np.array_equal(shown(volume), colors)


def test_replicated_grey_is_grey(tmp_path: Path) -> None:
    Image.fromarray(np.repeat(PIXELS[..., None], 3, axis=2)).save(tmp_path / "a.png")
    volume = read_volume(tmp_path / "a.png")
    assert not volume.color
    assert np.array_equal(shown(volume), PIXELS)


def test_transparency_is_laid_over_black(tmp_path: Path) -> None:
    rgba = np.full((3, 4, 4), 255, np.uint8)
    rgba[..., 1] = 100
    rgba[0, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    picture = shown(read_volume(tmp_path / "a.png"))
    assert picture[0].max() == 0
    assert picture[1, 0].tolist() == [255, 100, 255]
    grey_alpha = np.stack([PIXELS, np.full_like(PIXELS, 255)], axis=-1)
    Image.fromarray(grey_alpha, mode="LA").save(tmp_path / "b.png")
    assert np.array_equal(shown(read_volume(tmp_path / "b.png")), PIXELS)


def test_palette_is_resolved(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode="P")
    picture.putpalette([10, 20, 30, 200, 0, 0])
    picture.save(tmp_path / "a.png")
    assert shown(read_volume(tmp_path / "a.png"))[0].tolist() == [[10, 20, 30], [200, 0, 0]]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_one_bit(tmp_path: Path, name: str) -> None:
    Image.fromarray(PIXELS > 100).save(tmp_path / name)
    assert np.array_equal(shown(read_volume(tmp_path / name)), np.where(PIXELS > 100, 255, 0))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_exif_orientation(
    tmp_path: Path, name: str, orientation: int, compression: str | None
) -> None:
    pixels = np.zeros((40, 64), np.uint8)
    pixels[:, :24], pixels[:16, 40:] = 255, 128
    # EXIF 2.3, tag 0x0112: where the first row and the first column of the stored picture are.
    expected = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.T,
        6: np.rot90(pixels, -1), 7: pixels[::-1, ::-1].T, 8: np.rot90(pixels),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"compression": compression} if name == "a.tif" else {}
    Image.fromarray(pixels).save(tmp_path / name, exif=exif, **options)
    picture = shown(read_volume(tmp_path / name))
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected).max() <= (40 if name == "a.jpg" else 0)


def test_several_pages_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="2 pages"):
        read_volume(tmp_path / "a.tif")


def test_constant(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 4), 9, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="constant"):
        read_volume(tmp_path / "a.png")


def test_no_channels_to_choose_from(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="one channel"):
        read_volume(tmp_path / "a.png", channel=1)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_truncated(tmp_path: Path, name: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    path = tmp_path / name
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match="damaged"):
        read_volume(path)


def test_corrupt_png_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    data = bytearray(path.read_bytes())
    data[20] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        read_volume(path)


def test_decompression_bomb(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data)
        )  # fmt: skip

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )  # fmt: skip
    with pytest.raises(InputError, match=r"Bomb|limit"):
        read_volume(path)


@pytest.mark.parametrize("format_", ["BMP", "GIF", "WEBP"])
def test_other_formats_are_named_unknown(tmp_path: Path, format_: str) -> None:
    path = tmp_path / f"a.{format_.lower()}"
    Image.fromarray(PIXELS).save(path, format=format_)
    with pytest.raises(InputError, match="unknown type; expected PNG"):
        read_volume(path)
