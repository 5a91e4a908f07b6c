from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless
from scipy.spatial.transform import Rotation

from medretrieval.errors import InputError, UnavailableError, UsageError
from medretrieval.imaging import decode as module
from medretrieval.imaging import extract, read_labels, read_volume, slice_axis, write_labels
from medretrieval.types import LabelVolume, Volume

Make = Callable[..., pydicom.FileDataset]
SaveSeries = Callable[..., Path]
OBLIQUE = Rotation.from_euler("xyz", [20, -15, 10], degrees=True).as_matrix()
TURNED = tuple(np.round(np.concatenate([OBLIQUE[:, 0], OBLIQUE[:, 1]]), 6).tolist())
SAGITTAL = (0, 1, 0, 0, 0, -1)


def stack(slices: int = 5, dtype: Any = np.int16) -> np.ndarray:
    """(Z, rows, columns) where every voxel is different."""
    return np.arange(slices * 4 * 6).astype(dtype).reshape(slices, 4, 6)


def save(dataset: pydicom.FileDataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def shown(volume: Volume) -> np.ndarray:
    return extract(volume.voxels, volume.grid, 2, 0)


# --- one file ---------------------------------------------------------------------------------


def test_ct_of_pydicom(pydicom_file: Callable[[str], Path]) -> None:
    path = pydicom_file("CT_small.dcm")
    volume = read_volume(path)
    dataset = pydicom.dcmread(path)
    assert dataset.RescaleIntercept == -1024
    assert np.array_equal(volume.voxels[..., 0], dataset.pixel_array.T.astype(np.float32) - 1024)
    assert volume.modality == "CT"
    assert volume.grid.spacing == pytest.approx((0.661468, 0.661468, 5.0), abs=1e-5)
    # Position (-158.135803, -179.035797, -75.699997) LPS is (158.14, 179.04, -75.70) RAS.
    assert volume.grid.affine[:3, 3] == pytest.approx([158.135803, 179.035797, -75.699997])
    assert np.array_equal(shown(volume), volume.voxels[..., 0].T)


def test_mr_of_pydicom(pydicom_file: Callable[[str], Path]) -> None:
    volume = read_volume(pydicom_file("MR_small.dcm"))
    assert volume.modality == "MR"
    assert volume.voxels.dtype == np.int16
    assert (volume.voxels.min(), volume.voxels.max()) == (127, 2145)


@pytest.mark.parametrize(
    "name",
    ["MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_padded.dcm",
     "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:The pixel data is 8320 bytes long")
def test_every_lossless_encoding_gives_the_same_volume(
    name: str, pydicom_file: Callable[[str], Path]
) -> None:
    path = pydicom_file(name)
    if "jpeg_ls" in name:
        pytest.importorskip("gdcm", reason="python-gdcm decodes JPEG-LS")
    reference, volume = read_volume(pydicom_file("MR_small.dcm")), read_volume(path)
    assert np.array_equal(volume.voxels, reference.voxels)
    assert volume.voxels.dtype == np.int16
    assert np.array_equal(volume.grid.affine, reference.grid.affine)


def test_missing_decoder_names_the_package(
    pydicom_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Decoder:
        is_available = False

    monkeypatch.setattr(module, "get_decoder", lambda syntax: Decoder())
    with pytest.raises(UnavailableError, match=r"JPEG 2000.*pip install python-gdcm"):
        read_volume(pydicom_file("MR_small_jp2klossless.dcm"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_monochrome1_is_inverted(tmp_path: Path, make_dicom: Make, dtype: type) -> None:
    pixels = stack(1, dtype)[0]
    dark = make_dicom(pixels, PhotometricInterpretation="MONOCHROME1")
    volume = read_volume(save(dark, tmp_path / "a.dcm"))
    largest = np.iinfo(np.uint8 if dtype is np.uint8 else np.uint16).max
    expected = largest - pixels.astype(int) if dtype is not np.int16 else -1 - pixels.astype(int)
    assert np.array_equal(volume.voxels[..., 0].T, expected)


def test_monochrome1_counts_from_the_stored_bits(tmp_path: Path, make_dicom: Make) -> None:
    pixels = stack(1, np.uint16)[0]
    dark = make_dicom(pixels, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    volume = read_volume(save(dark, tmp_path / "a.dcm"))
    assert np.array_equal(volume.voxels[..., 0].T, 4095 - pixels)


def test_rescale_to_hounsfield_units(tmp_path: Path, make_dicom: Make) -> None:
    dataset = make_dicom(stack(1)[0], RescaleSlope=2, RescaleIntercept=-1024.5)
    volume = read_volume(save(dataset, tmp_path / "a.dcm"))
    assert volume.voxels.dtype == np.float32
    assert np.array_equal(volume.voxels[..., 0].T, stack(1)[0] * 2 - 1024.5)


def test_rescale_slope_of_zero(tmp_path: Path, make_dicom: Make) -> None:
    with pytest.raises(InputError, match="rescale"):
        read_volume(save(make_dicom(stack(1)[0], RescaleSlope=0), tmp_path / "a.dcm"))


def test_colour(tmp_path: Path, make_dicom: Make) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    dataset = make_dicom(
        pixels, None, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0,
        Modality="US",
    )  # fmt: skip
    volume = read_volume(save(dataset, tmp_path / "a.dcm"))
    assert volume.color
    assert np.array_equal(shown(volume), pixels)
    assert not volume.grid.spacing_known


def test_palette(pydicom_file: Callable[[str], Path]) -> None:
    volume = read_volume(pydicom_file("examples_palette.dcm"))
    assert volume.color
    assert volume.voxels.shape == (800, 350, 1, 3)


def test_dicom_that_also_looks_like_a_tiff(pydicom_file: Callable[[str], Path]) -> None:
    path = pydicom_file("CT_small.dcm")
    assert path.read_bytes()[:4] == b"II*\0"
    assert read_volume(path).modality == "CT"


def test_without_suffix_and_without_preamble(tmp_path: Path, make_dicom: Make) -> None:
    whole = save(make_dicom(stack(1)[0]), tmp_path / "IM0001").read_bytes()
    assert read_volume(tmp_path / "IM0001").modality == "CT"
    (tmp_path / "bare").write_bytes(whole[132:])
    bare = read_volume(tmp_path / "bare")
    assert np.array_equal(bare.voxels, read_volume(tmp_path / "IM0001").voxels)
    dataset = make_dicom(stack(1)[0])
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.preamble = None
    dataset.save_as(tmp_path / "no_meta", implicit_vr=True, little_endian=True)
    assert np.array_equal(read_volume(tmp_path / "no_meta").voxels, bare.voxels)


def test_no_pixel_data(tmp_path: Path, make_dicom: Make) -> None:
    dataset = make_dicom(stack(1)[0])
    del dataset.PixelData
    with pytest.raises(InputError, match="no pixel data"):
        read_volume(save(dataset, tmp_path / "a.dcm"))


@pytest.mark.parametrize("name", ["rtstruct.dcm", "reportsi.dcm", "rtdose.dcm", "liver_1frame.dcm"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_not_an_image(name: str, pydicom_file: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="without an image"):
        read_volume(pydicom_file(name))


@pytest.mark.parametrize("missing", [1, 20, 47])
def test_truncated_pixels(tmp_path: Path, make_dicom: Make, missing: int) -> None:
    path = save(make_dicom(stack(1)[0]), tmp_path / "a.dcm")
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(InputError, match=r"truncated|damaged"):
        read_volume(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_truncated_anywhere(tmp_path: Path, make_dicom: Make) -> None:
    path = save(make_dicom(stack(1)[0]), tmp_path / "a.dcm")
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(InputError):
            read_volume(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(40))
def test_damaged_files_never_escape_as_other_errors(
    tmp_path: Path, make_dicom: Make, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    path = save(make_dicom(stack(1)[0], RescaleSlope=1), tmp_path / "a.dcm")
    data = bytearray(path.read_bytes())
    for position in rng.integers(132, len(data), 10):
        data[position] = rng.integers(0, 256)
    path.write_bytes(data)
    with contextlib.suppress(InputError, UnavailableError):
        assert np.isfinite(read_volume(path).voxels).all()


def test_gdcm_gives_what_the_other_decoders_give(
    pydicom_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gdcm")
    path = pydicom_file("MR_small_jp2klossless.dcm")
    expected = read_volume(path)

    class Decoder:
        is_available, available_plugins = True, ("gdcm",)

    monkeypatch.setattr(module, "get_decoder", lambda syntax: Decoder())
    for _ in range(2):  # the second time by the same process
        assert np.array_equal(read_volume(path).voxels, expected.voxels)
    processes = module._gdcm._process
    assert processes is not None
    processes.kill()
    processes.wait()
    assert np.array_equal(read_volume(path).voxels, expected.voxels)


def test_a_decoder_that_dies_is_an_error_and_not_our_end(
    pydicom_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import os, sys\nsys.stdin.readline()\nos.abort()\n")

    class Decoder:
        is_available, available_plugins = True, ("gdcm",)

    monkeypatch.setattr(module, "get_decoder", lambda syntax: Decoder())
    monkeypatch.setattr(module, "_WORKER", worker)
    monkeypatch.setattr(module, "_gdcm", module._Gdcm())
    for _ in range(2):
        with pytest.raises(InputError, match="its process died on this data"):
            read_volume(pydicom_file("MR_small_jp2klossless.dcm"))


@pytest.mark.parametrize("compress", [RLELossless, JPEG2000Lossless])
def test_damaged_compressed_pixels(tmp_path: Path, make_dicom: Make, compress: str) -> None:
    dataset = make_dicom(stack(1, np.uint16)[0])
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51garbage garbage"])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = compress
    with pytest.raises(InputError, match="cannot be decoded"):
        read_volume(save(dataset, tmp_path / "a.dcm"))


def test_claiming_gigabytes(tmp_path: Path, make_dicom: Make) -> None:
    dataset = make_dicom(stack(1)[0], Rows=50_000, Columns=50_000)
    with pytest.raises(InputError, match=r"claims 5000.0 MB"):
        read_volume(save(dataset, tmp_path / "a.dcm"))
    dataset = make_dicom(stack(1)[0], Rows=5_000, Columns=5_000)
    with pytest.raises(InputError, match="truncated"):
        read_volume(save(dataset, tmp_path / "a.dcm"))


def test_deflated(pydicom_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = pydicom_file("image_dfl.dcm")
    assert read_volume(path).grid.shape == (512, 512, 1)
    monkeypatch.setenv("MEDRETRIEVAL_MAX_BYTES", "300000")
    with pytest.raises(InputError, match="deflated"):
        read_volume(path)


@pytest.mark.parametrize(
    "elements",
    [
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]},
        {"PixelSpacing": [0, 0]},
        {"ImageOrientationPatient": [1, 0, 0]},
    ],
)
def test_bad_geometry(tmp_path: Path, make_dicom: Make, elements: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        read_volume(save(make_dicom(stack(1)[0], **elements), tmp_path / "a.dcm"))


# --- multi-frame ------------------------------------------------------------------------------


def enhanced(make_dicom: Make, pixels: np.ndarray, positions: list[float]) -> pydicom.FileDataset:
    dataset = make_dicom(pixels, None)
    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.75], 2.0
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number, z in enumerate(positions):
        place, values, group = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [-10, 20, z]
        values.RescaleSlope, values.RescaleIntercept = 1, number * 1000
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [place], [values]
        frames.append(group)
    dataset.PerFrameFunctionalGroupsSequence = frames
    return dataset


def test_enhanced_multi_frame_is_a_volume(tmp_path: Path, make_dicom: Make) -> None:
    pixels = stack(3)
    dataset = enhanced(make_dicom, pixels, [4.0, 0.0, 2.0])
    volume = read_volume(save(dataset, tmp_path / "a.dcm"))
    assert volume.grid.shape == (6, 4, 3)
    assert volume.grid.spacing == pytest.approx((0.75, 0.5, 2.0))
    for z, frame in enumerate([1, 2, 0]):
        assert np.array_equal(volume.voxels[..., z].T, pixels[frame] + 1000.0 * frame)
    with pytest.raises(UsageError):
        read_volume(tmp_path / "a.dcm", channel=1)


def test_enhanced_with_duplicates(tmp_path: Path, make_dicom: Make) -> None:
    dataset = enhanced(make_dicom, stack(4), [0.0, 2.0, 0.0, 2.0])
    with pytest.raises(InputError, match="4 images at only 2 places"):
        read_volume(save(dataset, tmp_path / "a.dcm"))


def test_cine_frames_are_channels(tmp_path: Path, make_dicom: Make) -> None:
    path = save(make_dicom(stack(3), None, Modality="XA"), tmp_path / "a.dcm")
    for frame in range(3):
        volume = read_volume(path, channel=frame)
        assert np.array_equal(shown(volume), stack(3)[frame])
        assert (volume.grid.shape, volume.modality) == ((6, 4, 1), "XA")
    with pytest.raises(UsageError, match=r"frame 3 .* 3 frames \(0..2\)"):
        read_volume(path, channel=3)


# --- series -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0, 1, 0), SAGITTAL, (1, 0, 0, 0, 0, -1), (-1, 0, 0, 0, 1, 0), TURNED]
)
@pytest.mark.parametrize("direction", [1, -1])
def test_series_is_sorted_and_its_affine_is_right(
    save_series: SaveSeries, orientation: tuple[float, ...], direction: int
) -> None:
    pixels = stack(5)
    at = [direction * 2.5 * i for i in range(5)]
    volume = read_volume(save_series(pixels, at=at, orientation=orientation))
    assert volume.grid.shape == (6, 4, 5)
    # Independent derivation, voxel by voxel, from the equation of PS3.3 C.7.6.2.1.1.
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    for value, (i, j, k) in zip((0, 47, 119), ((0, 0, 0), (5, 3, 1), (5, 3, 4)), strict=True):
        position = np.array((-10.0, 20.0, 30.0)) + at[k] * np.cross(row, column)
        lps = position + i * 0.75 * row + j * 0.5 * column
        x, y, z = (int(n[0]) for n in np.nonzero(volume.voxels == value))
        ras = volume.grid.affine @ [x, y, z, 1]
        assert ras[:3] == pytest.approx(lps * [-1, -1, 1], abs=1e-3)
    exact = volume.grid.affine.astype(np.float32).astype(np.float64)
    assert np.array_equal(volume.grid.affine, exact)
    assert np.linalg.det(volume.grid.affine[:3, :3]) > 0


def test_sagittal_series_is_cut_along_its_stack(save_series: SaveSeries) -> None:
    pixels = stack(5)
    folder = save_series(pixels, at=[3.0 * i for i in range(5)], orientation=SAGITTAL)
    volume = read_volume(folder)
    axis = slice_axis(volume.grid, "acquisition")
    # Rows of this series run down and columns to the back, as sagittal slices are displayed.
    slices = {int(extract(volume.voxels, volume.grid, axis, i)[0, 0]) for i in range(5)}
    assert axis == 2
    assert slices == {0, 24, 48, 72, 96}
    assert any(
        np.array_equal(extract(volume.voxels, volume.grid, axis, i), pixels[0]) for i in range(5)
    )


def test_names_and_order_of_files_do_not_matter(save_series: SaveSeries) -> None:
    at = [2.0 * i for i in range(6)]
    first = read_volume(save_series(stack(6), at=at, folder="a", seed=1))
    second = read_volume(save_series(stack(6), at=at, folder="b", seed=2))
    assert np.array_equal(first.voxels, second.voxels)
    assert np.array_equal(first.grid.affine, second.grid.affine)


def test_tilted_gantry_keeps_its_shear(tmp_path: Path, make_dicom: Make) -> None:
    for i in range(4):
        save(make_dicom(stack(4)[i], (0.0, 0.5 * i, 2.0 * i)), tmp_path / f"{i}")
    affine = read_volume(tmp_path).grid.affine
    assert affine[:3, 2] == pytest.approx([0, -0.5, 2.0])


def test_missing_slice(save_series: SaveSeries) -> None:
    folder = save_series(stack(5), at=[0, 2, 4, 8, 10])
    with pytest.raises(InputError, match=r"1 missing slices: the spacing is 2 mm.* gap of 4 mm"):
        read_volume(folder)


def test_uneven_spacing(save_series: SaveSeries) -> None:
    with pytest.raises(InputError, match=r"uneven slices: spacings from 2 to 2.7 mm"):
        read_volume(save_series(stack(5), at=[0, 2, 4, 6.7, 8.7]))


def test_rounded_positions_are_even_enough(save_series: SaveSeries) -> None:
    volume = read_volume(save_series(stack(5), at=[0, 1.67, 3.33, 5.0, 6.67]))
    assert volume.grid.spacing[2] == pytest.approx(6.67 / 4)


def test_duplicates(save_series: SaveSeries) -> None:
    with pytest.raises(InputError, match="5 images at only 4 places"):
        read_volume(save_series(stack(5), at=[0, 2, 4, 4, 6]))


def test_different_sizes(tmp_path: Path, make_dicom: Make) -> None:
    save(make_dicom(stack(1)[0], (0, 0, 0)), tmp_path / "a")
    save(make_dicom(stack(1)[0][:3], (0, 0, 2)), tmp_path / "b")
    with pytest.raises(InputError, match=r"different sizes \(6x3, 6x4\)"):
        read_volume(tmp_path)


def test_different_orientations(tmp_path: Path, make_dicom: Make) -> None:
    save(make_dicom(stack(1)[0], (0, 0, 0)), tmp_path / "a")
    save(make_dicom(stack(1)[0], (0, 0, 2), orientation=SAGITTAL), tmp_path / "b")
    with pytest.raises(InputError, match="different orientations"):
        read_volume(tmp_path)


def test_different_pixel_spacings(tmp_path: Path, make_dicom: Make) -> None:
    save(make_dicom(stack(1)[0], (0, 0, 0)), tmp_path / "a")
    save(make_dicom(stack(1)[0], (0, 0, 2), spacing=(0.6, 0.75)), tmp_path / "b")
    with pytest.raises(InputError, match="different pixel spacings"):
        read_volume(tmp_path)


def test_several_pictures_without_position(tmp_path: Path, make_dicom: Make) -> None:
    for name in "ab":
        save(make_dicom(stack(1)[0], None, Modality="DX"), tmp_path / name)
    with pytest.raises(InputError, match=r"2 of 2 images .* no position"):
        read_volume(tmp_path)


def test_several_series_are_listed_and_chosen(save_series: SaveSeries) -> None:
    at = [0.0, 2.0, 4.0]
    save_series(stack(3), at=at, series="1.1", number=2)
    save_series(stack(3) + 500, at=at, series="1.2", number=7)
    folder = save_series(stack(3) + 900, at=at, series="1.3", number=7)
    with pytest.raises(InputError) as caught:
        read_volume(folder)
    assert "3 series" in str(caught.value)
    assert "series 2: CT, 3 slices of 6x4; series 7-1: CT, 3 slices" in str(caught.value)
    assert read_volume(folder, series=2).voxels.min() == 0
    assert read_volume(folder, series="7-1").voxels.min() == 500
    assert read_volume(folder, series="7-2").voxels.min() == 900
    with pytest.raises(UsageError, match="series 5 is not in"):
        read_volume(folder, series=5)


def test_other_files_and_folders_are_left_out(save_series: SaveSeries) -> None:
    folder = save_series(stack(4), at=[0, 2, 4, 6])
    (folder / "README.txt").write_text("hello")
    (folder / ".DS_Store").write_bytes(b"\0" * 200)
    (folder / "empty").touch()
    assert read_volume(folder.parent).grid.shape == (6, 4, 4)


def test_dicom_folder_of_pydicom(pydicom_file: Callable[[str], Path]) -> None:
    folder = pydicom_file("CT_small.dcm").parent / "dicomdirtests" / "98892001" / "CT5N"
    volume = read_volume(folder)
    assert volume.grid.shape == (16, 16, 5)
    assert volume.grid.spacing == pytest.approx((0.488281, 0.488281, 2.5), abs=1e-4)
    positions = sorted(
        (pydicom.dcmread(p).ImagePositionPatient for p in folder.iterdir()), key=lambda p: p[2]
    )
    assert volume.grid.affine[:3, 3] == pytest.approx(np.array(positions[0]) * [-1, -1, 1])


def test_total_size_of_a_series(save_series: SaveSeries, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_series(stack(4), at=[0, 2, 4, 6])
    monkeypatch.setenv("MEDRETRIEVAL_MAX_BYTES", "150")  # one slice has 48 bytes
    with pytest.raises(InputError, match="limit"):
        read_volume(folder)


def test_mask_of_a_series_has_its_exact_affine(save_series: SaveSeries, tmp_path: Path) -> None:
    volume = read_volume(save_series(stack(5), at=[1.7 * i for i in range(5)], orientation=TURNED))
    mask = (volume.voxels % 3).astype(np.uint8)
    write_labels(LabelVolume(voxels=mask, grid=volume.grid, names={}), tmp_path / "mask.nii.gz")
    back = read_labels(tmp_path / "mask.nii.gz", reference=None)
    assert np.array_equal(back.grid.affine, volume.grid.affine)
    assert np.array_equal(back.voxels, mask)


# --- privacy ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Invalid value for VR AS")
@pytest.mark.parametrize("broken", [False, True])
def test_patients_are_never_named(
    save_series: SaveSeries, caplog: pytest.LogCaptureFixture, broken: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    folder = save_series(
        stack(4), at=[0, 2, 2, 6] if broken else [0, 2, 4, 6], PatientAge="not an age",
        StudyDescription="Doe, Jane", SeriesDescription="Doe, Jane",
    )  # fmt: skip
    caplog.clear()  # of what pydicom says on writing
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if broken:
            with pytest.raises(InputError) as error:
                read_volume(folder)
            said = str(error.value)
        else:
            volume = read_volume(folder)
            said = repr(volume) + repr(volume.__dict__)
            assert volume.name == "CT series 2"
            assert volume.grid.header is None
    said += caplog.text + "".join(str(w.message) for w in caught)
    for secret in ("Doe", "Jane", "4711", "1970", "not an age"):
        assert secret not in said


def test_names_of_single_files_are_not_used(tmp_path: Path, make_dicom: Make) -> None:
    volume = read_volume(save(make_dicom(stack(1)[0], number=None), tmp_path / "DOE_JANE.dcm"))
    assert volume.name == "CT"
