"""One picture stored as many kinds of file gives one embedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from medretrieval.embedders import load_embedder
from medretrieval.imaging import make_slices, read_volume
from medretrieval.types import Embedder, SlicePolicy

HEIGHT, WIDTH = 97, 140


def _grey() -> np.ndarray:
    """(H, W) uint8; more than 1 % of it is black and as much white.

    So the percentiles that 16-bit values are windowed by are the ends of their range.
    """
    y, x = np.mgrid[:HEIGHT, :WIDTH] / WIDTH
    wave = 127 + 70 * np.sin(11 * x + 3 * y) + 50 * np.cos(23 * y * x)
    picture = np.clip(wave, 0, 255).astype(np.uint8)
    picture[5:25, 8:40], picture[60:85, 90:125] = 0, 255
    return picture


def _colour() -> np.ndarray:
    """(H, W, 3) uint8 with 64 colours, few enough for a palette."""
    grey = _grey()
    return np.stack([grey, grey[::-1], grey[:, ::-1]], axis=2) // 64 * 85


def _save(picture: np.ndarray, path: Path, mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(picture)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def _with_alpha(picture: np.ndarray, path: Path) -> Path:
    """Half transparent pixels, twice as bright, over black: the same picture where it is even."""
    colour = np.repeat(picture[..., None], 3, axis=2) if picture.ndim == 2 else picture
    alpha = np.full(picture.shape[:2], 255, dtype=np.uint8)
    alpha[picture.reshape(*alpha.shape, -1).max(axis=2) == 0] = 0  # black is what lies below
    shown = np.where(alpha[..., None] == 0, 200, colour).astype(np.uint8)
    return _save(np.dstack([shown, alpha]), path)


def _palette(picture: np.ndarray, path: Path) -> Path:
    """A palette picture whose indices are in no order of brightness."""
    flat = picture.reshape(HEIGHT * WIDTH, -1)
    colours, indices = np.unique(flat, axis=0, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(colours))
    table = np.zeros_like(colours)
    table[order] = colours
    image = Image.fromarray(order[indices].reshape(HEIGHT, WIDTH).astype(np.uint8), mode="P")
    image.putpalette(np.broadcast_to(table, (len(table), 3)).astype(np.uint8).tobytes())
    image.save(path)
    assert Image.open(path).mode == "P"
    return path


def _dicom(pixels: np.ndarray, path: Path, photometric: str, **elements: Any) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.PatientID, dataset.Modality, dataset.SeriesInstanceUID = "P", "OT", generate_uid()
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = photometric
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    bits = pixels.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = 0
    data = pixels.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _palette_dicom(picture: np.ndarray, path: Path) -> Path:
    colours, indices = np.unique(picture.reshape(-1, 3), axis=0, return_inverse=True)
    tables = {
        f"{name}PaletteColorLookupTable{kind}": value
        for channel, name in enumerate(("Red", "Green", "Blue"))
        for kind, value in (
            ("Descriptor", [len(colours), 0, 16]),
            ("Data", (colours[:, channel].astype("<u2") * 257).tobytes()),
        )
    }
    pixels = indices.reshape(HEIGHT, WIDTH).astype(np.uint8)
    return _dicom(pixels, path, "PALETTE COLOR", **tables)


def _deep(picture: np.ndarray) -> np.ndarray:
    return picture.astype(np.uint16) * 257


Store = Callable[[np.ndarray, Path], Path]

GREY: dict[str, Store] = {
    "png": lambda p, d: _save(p, d / "a.png"),
    "png rgb": lambda p, d: _save(p, d / "a.png", "RGB"),
    "png rgba": lambda p, d: _save(p, d / "a.png", "RGBA"),
    "png grey and alpha": lambda p, d: _save(p, d / "a.png", "LA"),
    "png transparent": lambda p, d: _with_alpha(p, d / "a.png"),
    "png palette": lambda p, d: _palette(p, d / "a.png"),
    "png 16 bit": lambda p, d: _save(_deep(p), d / "a.png"),
    "tiff": lambda p, d: _save(p, d / "a.tif"),
    "tiff lzw": lambda p, d: _save(p, d / "a.tif", compression="tiff_lzw"),
    "tiff 16 bit": lambda p, d: _save(_deep(p), d / "a.tif"),
    "tiff 32 bit": lambda p, d: _save(_deep(p).astype(np.int32), d / "a.tif"),
    "tiff float": lambda p, d: _save(p.astype(np.float32) / 255, d / "a.tif"),
    "dicom monochrome2": lambda p, d: _dicom(p, d / "a.dcm", "MONOCHROME2"),
    "dicom monochrome1": lambda p, d: _dicom(255 - p, d / "a.dcm", "MONOCHROME1"),
    "dicom 16 bit": lambda p, d: _dicom(_deep(p), d / "a.dcm", "MONOCHROME2"),
    "dicom 16 bit monochrome1": lambda p, d: _dicom(65535 - _deep(p), d / "a.dcm", "MONOCHROME1"),
    "dicom rgb": lambda p, d: _dicom(np.dstack([p, p, p]), d / "a.dcm", "RGB"),
}
COLOUR: dict[str, Store] = {
    "png": lambda p, d: _save(p, d / "a.png"),
    "png rgba": lambda p, d: _save(p, d / "a.png", "RGBA"),
    "png transparent": lambda p, d: _with_alpha(p, d / "a.png"),
    "png palette": lambda p, d: _palette(p, d / "a.png"),
    "tiff": lambda p, d: _save(p, d / "a.tif"),
    "dicom rgb": lambda p, d: _dicom(p, d / "a.dcm", "RGB"),
    "dicom palette": lambda p, d: _palette_dicom(p, d / "a.dcm"),
}


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder("efficientnet-lite0", threads=1)


def _image(path: Path) -> np.ndarray:
    (found,) = make_slices(read_volume(path), SlicePolicy())
    return found.image


@pytest.mark.parametrize("kind", GREY)
def test_grey(kind: str, embedder: Embedder, tmp_path: Path) -> None:
    image = _image(GREY[kind](_grey(), tmp_path))
    colour = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    np.testing.assert_array_equal(colour, np.repeat(_grey()[..., None], 3, axis=2))
    same, other = embedder.embed_batch([image, _grey()])
    np.testing.assert_allclose(same, other, atol=1e-6)


@pytest.mark.parametrize("kind", COLOUR)
def test_colour(kind: str, embedder: Embedder, tmp_path: Path) -> None:
    image = _image(COLOUR[kind](_colour(), tmp_path))
    np.testing.assert_array_equal(image, _colour())
    same, other = embedder.embed_batch([image, _colour()])
    np.testing.assert_allclose(same, other, atol=1e-6)


@pytest.mark.parametrize("picture", [_grey(), _colour()], ids=["grey", "colour"])
def test_jpeg_is_what_it_decodes_to(
    picture: np.ndarray, embedder: Embedder, tmp_path: Path
) -> None:
    path = _save(picture, tmp_path / "a.jpg", quality=100, subsampling=0)
    image = _image(path)
    with Image.open(path) as decoded:
        np.testing.assert_array_equal(image, np.asarray(decoded))
    # Lossy: near what was stored, farther away than any other kind.
    same, other = embedder.embed_batch([image, picture])
    assert same @ other > 0.99


def test_pictures_differ(embedder: Embedder) -> None:
    # Else the tests above would show nothing: what a wrong reading would give is far away.
    grey, colour = _grey(), _colour()
    wrong = [255 - grey, grey[:, ::-1], grey // 4, colour, colour[..., ::-1]]
    first, *others = embedder.embed_batch([grey, *wrong])
    assert max(float(first @ other) for other in others) < 0.99
