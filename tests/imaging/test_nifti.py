from __future__ import annotations

import contextlib
import gzip
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medretrieval.errors import InputError, UsageError
from medretrieval.imaging import read_volume

SHAPE = (4, 5, 6)
Save = Callable[..., Path]


def ramp(dtype: Any = np.int16, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.arange(np.prod(shape)).astype(dtype).reshape(shape)


def plain(save_nifti: Save, **kwargs: Any) -> tuple[Path, bytearray]:
    path = save_nifti(ramp(), name="image.nii", **kwargs)
    return path, bytearray(path.read_bytes())


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
)
def test_integers_keep_their_dtype(save_nifti: Save, name: str, kind: type, dtype: type) -> None:
    path = save_nifti(ramp(dtype), name=name.lower(), kind=lambda *image: kind(*image, dtype=dtype))
    path = path.rename(path.with_name(name))
    volume = read_volume(path)
    assert volume.voxels.dtype == dtype
    assert np.array_equal(volume.voxels, ramp(dtype))
    assert volume.name == name[:1]
    assert (volume.modality, volume.color) == ("unknown", False)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_become_float32(save_nifti: Save, dtype: type) -> None:
    volume = read_volume(save_nifti(ramp(dtype) / 7))
    assert volume.voxels.dtype == np.float32
    assert np.array_equal(volume.voxels, (ramp(dtype) / 7).astype(np.float32))


def test_big_endian(tmp_path: Path) -> None:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nib.Nifti1Image(ramp(">i2"), np.eye(4), header).to_filename(tmp_path / "big.nii")
    volume = read_volume(tmp_path / "big.nii")
    assert volume.voxels.dtype.isnative
    assert np.array_equal(volume.voxels, ramp())


def test_scaling_gives_float32(save_nifti: Save) -> None:
    path, data = plain(save_nifti)
    data[112:120] = struct.pack("<2f", 2.0, -1024.0)
    path.write_bytes(data)
    volume = read_volume(path)
    assert volume.voxels.dtype == np.float32
    assert np.array_equal(volume.voxels, ramp(np.float32) * 2 - 1024)


def test_slope_of_zero_means_none(save_nifti: Save) -> None:
    path, data = plain(save_nifti)
    data[112:120] = struct.pack("<2f", 0.0, 5.0)
    path.write_bytes(data)
    assert np.array_equal(read_volume(path).voxels, ramp())


@pytest.mark.parametrize("scaling", [(np.nan, 0.0), (1.0, np.nan), (np.inf, 0.0)])
def test_scaling_that_is_not_a_number(save_nifti: Save, scaling: tuple[float, float]) -> None:
    path, data = plain(save_nifti)
    data[112:120] = struct.pack("<2f", *scaling)
    path.write_bytes(data)
    with pytest.raises(InputError, match="scaling that is not a number"):
        read_volume(path)


def test_four_dimensions_give_the_chosen_channel(save_nifti: Save) -> None:
    path = save_nifti(ramp(shape=(*SHAPE, 3)))
    for channel in range(3):
        volume = read_volume(path, channel=channel)
        assert np.array_equal(volume.voxels, ramp(shape=(*SHAPE, 3))[..., channel])
        assert volume.grid.shape == SHAPE


@pytest.mark.parametrize("channel", [3, -1, True, 1.0])
def test_channels_out_of_range(save_nifti: Save, channel: Any) -> None:
    with pytest.raises(UsageError, match="channel"):
        read_volume(save_nifti(ramp(shape=(*SHAPE, 3))), channel=channel)
    with pytest.raises(UsageError, match="channel"):
        read_volume(save_nifti(ramp()), channel=channel)


def test_three_long_last_axis_is_not_colour(save_nifti: Save) -> None:
    assert not read_volume(save_nifti(ramp(np.uint8, (5, 6, 3)))).color


def test_modality_is_what_the_caller_says(save_nifti: Save) -> None:
    assert read_volume(save_nifti(ramp()), modality=" mr ").modality == "MR"


def test_affine_is_nibabels(save_nifti: Save, affine: np.ndarray) -> None:
    path = save_nifti(ramp(), affine)
    assert np.array_equal(read_volume(path).grid.affine, nib.load(path).affine)


def test_header_keeps_geometry_and_nothing_private(save_nifti: Save) -> None:
    def edit(image: Any) -> None:
        header = image.header
        header["descrip"], header["db_name"] = b"Jane Doe 1970", b"Jane Doe"
        header["aux_file"], header["intent_name"] = b"/home/jane.txt", b"Doe"
        header["data_type"] = b"JaneDoe"
        header["intent_code"], header["cal_max"], header["toffset"] = 1002, 9.0, 3.0
        header["intent_p1"], header["slice_duration"] = 4.0, 2.0
        header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
        image.set_qform(image.affine, 1)
        image.set_sform(image.affine, 4)
        header.set_xyzt_units("mm", "sec")

    grid = read_volume(save_nifti(ramp(), np.diag([1.5, 2, 3, 1]), edit=edit)).grid
    raw = grid.header.binaryblock
    assert b"Jane" not in raw
    assert b"Doe" not in raw
    assert len(grid.header.extensions) == 0
    assert (int(grid.header["qform_code"]), int(grid.header["sform_code"])) == (1, 4)
    assert grid.header.get_xyzt_units() == ("mm", "sec")
    for field in ("intent_code", "cal_max", "toffset", "intent_p1", "slice_duration"):
        assert grid.header[field] == 0


def test_other_units_are_reported(save_nifti: Save, caplog: pytest.LogCaptureFixture) -> None:
    path = save_nifti(ramp(), edit=lambda image: image.header.set_xyzt_units("micron"))
    assert read_volume(path).grid.spacing == (1, 1, 1)
    assert "micrometres; read as mm" in caplog.text


def test_one_slice_needs_the_option(save_nifti: Save) -> None:
    path = save_nifti(ramp(shape=(4, 5, 1)))
    with pytest.raises(InputError, match="allow_one_slice"):
        read_volume(path)
    assert read_volume(path, allow_one_slice=True).grid.shape == (4, 5, 1)


def test_two_dimensions_are_one_slice(save_nifti: Save) -> None:
    path = save_nifti(ramp(shape=(4, 5)))
    with pytest.raises(InputError, match="one slice"):
        read_volume(path)
    assert read_volume(path, allow_one_slice=True).grid.shape == (4, 5, 1)


@pytest.mark.parametrize("shape", [(3, 3, 3, 2, 2), (3, 3, 3, 1, 3), (3, 3, 3, 1, 1)])
def test_five_dimensions(save_nifti: Save, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="5 dimensions"):
        read_volume(save_nifti(ramp(shape=shape)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("share", ["one", "all"])
def test_not_finite(save_nifti: Save, bad: float, share: str) -> None:
    voxels = ramp(np.float32)
    voxels[(1, 2, 3) if share == "one" else ...] = bad
    with pytest.raises(InputError, match="1 of 120" if share == "one" else "120 of 120"):
        read_volume(save_nifti(voxels))


@pytest.mark.parametrize("value", [0, 7])
def test_constant(save_nifti: Save, value: int) -> None:
    with pytest.raises(InputError, match=f"constant: every voxel is {value}"):
        read_volume(save_nifti(np.full(SHAPE, value, np.int16)))


def test_beyond_float32(save_nifti: Save) -> None:
    with pytest.raises(InputError, match=r"3.4e38"):
        read_volume(save_nifti(ramp(np.float64) * 1e300))


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128, "rgb", "rgba"])
def test_voxels_that_are_not_real_numbers(save_nifti: Save, dtype: Any) -> None:
    if isinstance(dtype, str):
        dtype = np.dtype([(c, "u1") for c in dtype.upper()])
    with pytest.raises(InputError, match="expected real numbers"):
        read_volume(save_nifti(np.zeros(SHAPE, dtype)))


@pytest.mark.parametrize("keep", [0, 1, 2, 100, 347, 348, 351, 352, 400])
def test_truncated_plain(save_nifti: Save, keep: int) -> None:
    path, data = plain(save_nifti)
    path.write_bytes(data[:keep])
    with pytest.raises(InputError, match=r"truncated|empty"):
        read_volume(path)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_truncated_gzip(save_nifti: Save, share: float) -> None:
    rng = np.random.default_rng(0)
    path = save_nifti(rng.integers(0, 999, SHAPE).astype(np.int16))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InputError, match=r"truncated|damaged"):
        read_volume(path)


def test_corrupt_checksum(save_nifti: Save) -> None:
    path = save_nifti(ramp())
    data = bytearray(path.read_bytes())
    data[-8] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match="gzip data does not decompress"):
        read_volume(path)


def test_corrupt_gzip_stream(save_nifti: Save) -> None:
    path = save_nifti(ramp())
    data = bytearray(path.read_bytes())
    data[30:60] = b"\xff" * 30
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_volume(path)


def test_not_a_gzip(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"this is not a gzip file" * 40)
    with pytest.raises(InputError, match="named like a NIfTI file"):
        read_volume(path)


def test_plain_nifti_under_a_gz_name_is_read_by_content(save_nifti: Save) -> None:
    path, _ = plain(save_nifti)
    assert np.array_equal(read_volume(path.rename(path.with_suffix(".nii.gz"))).voxels, ramp())


def test_gzip_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "notes.nii.gz"
    path.write_bytes(gzip.compress(b"hello" * 500))
    with pytest.raises(InputError, match="gzip file without a NIfTI"):
        read_volume(path)


@pytest.mark.parametrize("zipped", [False, True])
def test_claiming_two_gigabytes(save_nifti: Save, zipped: bool) -> None:
    path, data = plain(save_nifti)
    data[40:56] = struct.pack("<8h", 3, 1024, 1024, 1024, 1, 1, 1, 1)
    path.write_bytes(gzip.compress(data) if zipped else data)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"claims 2147\.5 MB.*MEDRETRIEVAL_MAX_BYTES"):
        read_volume(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.parametrize("zipped", [False, True])
def test_claiming_more_than_the_file_can_hold(save_nifti: Save, zipped: bool) -> None:
    path, data = plain(save_nifti)
    data[40:56] = struct.pack("<8h", 3, 512, 512, 512, 1, 1, 1, 1)
    path.write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(InputError, match=r"truncated.*cannot hold"):
        read_volume(path)


def test_limit_is_an_option(save_nifti: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_nifti(ramp())
    monkeypatch.setenv("MEDRETRIEVAL_MAX_BYTES", "100")
    with pytest.raises(InputError, match="limit of 100 bytes"):
        read_volume(path)
    monkeypatch.setenv("MEDRETRIEVAL_MAX_BYTES", "lots")
    with pytest.raises(UsageError, match="'lots'"):
        read_volume(path)


def test_gzip_bomb_after_the_image(save_nifti: Save) -> None:
    path, data = plain(save_nifti)
    path.write_bytes(gzip.compress(bytes(data) + b"\0" * (40 << 20)))
    tracemalloc.start()
    with pytest.raises(InputError, match="bomb"):
        read_volume(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_voxels_that_start_far_away(save_nifti: Save) -> None:
    path, data = plain(save_nifti)
    data[108:112] = struct.pack("<f", 2e9)
    path.write_bytes(gzip.compress(data))
    with pytest.raises(InputError, match="start at byte"):
        read_volume(path)


@pytest.mark.parametrize("dims", [(3, 0, 5, 6), (3, -4, 5, 6), (0, 4, 5, 6), (9, 4, 5, 6),
                                  (1, 4, 1, 1)])  # fmt: skip
def test_impossible_shapes(save_nifti: Save, dims: tuple[int, ...]) -> None:
    path, data = plain(save_nifti)
    data[40:48] = struct.pack("<4h", *dims)
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_volume(path)


@pytest.mark.parametrize("srow", [(0.0, 0.0, 0.0, 0.0), (np.nan, 0.0, 0.0, 1.0)])
def test_unusable_sform(save_nifti: Save, srow: tuple[float, ...]) -> None:
    path, data = plain(save_nifti)
    data[280:296] = struct.pack("<4f", *srow)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"geometry \(affine\)"):
        read_volume(path)


def test_no_geometry_at_all(save_nifti: Save) -> None:
    path, data = plain(save_nifti)
    data[252:256] = struct.pack("<2h", 0, 0)
    data[80:92] = struct.pack("<3f", 0.0, 0.0, 0.0)
    path.write_bytes(data)
    with pytest.raises(InputError, match="no geometry"):
        read_volume(path)


def test_impossible_quaternion(save_nifti: Save) -> None:
    path, data = plain(save_nifti)
    data[252:256] = struct.pack("<2h", 1, 0)
    data[256:268] = struct.pack("<3f", 5.0, 5.0, 5.0)
    path.write_bytes(data)
    with pytest.raises(InputError, match="geometry"):
        read_volume(path)


def test_pair_of_files(save_nifti: Save) -> None:
    path, data = plain(save_nifti)
    data[344:348] = b"ni1\0"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"hdr/.img"):
        read_volume(path)


@pytest.mark.parametrize("seed", range(60))
def test_damaged_headers_never_escape_as_other_errors(save_nifti: Save, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path, data = plain(save_nifti)
    for position in rng.integers(0, 348, 8):
        data[position] = rng.integers(0, 256)
    path.write_bytes(data)
    with contextlib.suppress(InputError, UsageError):
        assert np.isfinite(read_volume(path).voxels).all()
