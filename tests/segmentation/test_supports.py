"""Support sets: what is saved comes back, and nothing else does."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from medretrieval.errors import InputError, MedRetrievalError, UsageError
from medretrieval.segmentation import supports
from medretrieval.segmentation.support_list import MAX_LIST_BYTES
from medretrieval.segmentation.supports import (
    load_supports,
    pack_supports,
    save_supports,
    supports_from_pair,
    unpack_supports,
)
from medretrieval.types import SlicePolicy, Support

POLICY = SlicePolicy()
NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)


@st.composite
def any_support(draw: st.DrawFn) -> Support:
    shape = draw(st.tuples(st.integers(1, 13), st.integers(1, 13)))
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    labels = draw(st.lists(NAMES, unique=True, max_size=4))
    numbers = st.integers(1, np.iinfo(dtype).max)
    chosen = draw(st.lists(numbers, unique=True, min_size=len(labels), max_size=len(labels)))
    names = dict(zip(chosen, labels, strict=True))
    values = st.sampled_from([0, *names])
    color = draw(st.booleans())
    return Support(
        image=draw(arrays.arrays(np.uint8, (*shape, 3) if color else shape)),
        mask=draw(arrays.arrays(dtype, shape, elements=values)),
        names=names,
        key=draw(NAMES),
        score=draw(st.none() | st.floats(-1, 1)),
    )


def same(a: Support, b: Support) -> bool:
    pictures = all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in ((a.image, b.image), (a.mask, b.mask))
    )
    return pictures and (a.names, a.key, a.score) == (b.names, b.key, b.score)


def support(seed: int = 0, **changes: Any) -> Support:
    rng = np.random.default_rng(seed)
    made = Support(
        image=rng.integers(0, 256, (9, 7), dtype=np.uint8),
        mask=rng.integers(0, 3, (9, 7), dtype=np.uint8),
        names={1: "RV", 2: "LV"},
        key=f"case:{seed}",
        score=0.5,
    )
    return dataclasses.replace(made, **changes)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(chosen=st.lists(any_support(), min_size=1, max_size=3))
def test_what_was_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, chosen: list[Support]
) -> None:
    folder = tmp_path_factory.mktemp("x") / "set"
    assert save_supports(chosen, folder) == folder
    packed = folder.with_suffix(".zip")
    packed.write_bytes(pack_supports(chosen))
    for loaded in (load_supports(folder), unpack_supports(packed), load_supports(packed)):
        assert all(map(same, loaded, chosen))
        assert len(loaded) == len(chosen)


def test_masks_of_other_types_are_stored_if_their_values_fit(tmp_path: Path) -> None:
    wide = support(mask=np.full((9, 7), 300, np.int64), names={300: "x"})
    save_supports([wide, support(mask=np.ones((9, 7), np.bool_), names={1: "x"})], tmp_path / "s")
    first, second = load_supports(tmp_path / "s")
    assert (first.mask.dtype, second.mask.dtype) == (np.uint16, np.uint8)
    assert (first.mask == 300).all()
    assert (second.mask == 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "a\nb"}, "printable"),
        ({"names": {1: "", 2: "LV"}}, "printable"),
        ({"score": float("nan")}, "finite"),
        ({"score": 10**400}, "finite"),
        ({"names": {1: "RV", 2: "LV", 70_000: "x"}}, "1 to 65535"),
        ({"names": {0: "air", 1: "RV", 2: "LV"}}, "1 to 65535"),
        ({"names": {1: "RV", 2: "RV"}}, "one name"),
        ({"mask": np.full((9, 7), 70_000, np.int64), "names": {70_000: "x"}}, "1 to 65535"),
        ({"mask": np.full((9, 7), 3, np.uint8)}, "without a name"),
    ],
)
def test_what_cannot_be_stored_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        save_supports([support(), support(**changes)], tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_needs_overwrite(tmp_path: Path) -> None:
    folder = save_supports([support(1)], tmp_path / "s")
    with pytest.raises(UsageError, match="exists already"):
        save_supports([support(2)], folder)
    assert same(load_supports(folder)[0], support(1))
    save_supports([support(2)], folder, overwrite=True)
    assert same(load_supports(folder)[0], support(2))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    other = tmp_path / "photos"
    other.mkdir()
    (other / "holiday.jpg").touch()
    with pytest.raises(UsageError, match="not a support set"):
        save_supports([support(2)], other, overwrite=True)
    with pytest.raises(UsageError, match="empty"):
        save_supports([], tmp_path / "t")


@pytest.mark.parametrize("name", ["notes.txt", "7.jpg", "sub/0.png"])
def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path: Path, name: str) -> None:
    folder = save_supports([support(1)], tmp_path / "s")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    with pytest.raises(UsageError, match="something else"):
        save_supports([support(2)], folder, overwrite=True)
    assert (folder / name).read_text() == "mine"
    assert same(load_supports(folder)[0], support(1))


def edit(folder: Path, change: Callable[[Any], None]) -> None:
    data = json.loads((folder / "supports.json").read_text())
    change(data)
    (folder / "supports.json").write_text(json.dumps(data))


def set_file(name: str) -> Callable[[Any], None]:
    return lambda data: data["supports"][0]["image"].update(file=name)


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/0.png", "a/0.png", "supports.json", "..", "", 7, None]
)
def test_no_path_leaves_the_folder(tmp_path: Path, name: Any) -> None:
    folder = save_supports([support()], tmp_path / "s")
    (tmp_path / "secret.png").write_bytes((folder / "0.png").read_bytes())
    edit(folder, set_file(name))
    with pytest.raises(InputError, match="damaged"):
        load_supports(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("supports"),
        lambda data: data.update(supports=[]),
        lambda data: data.update(supports={}),
        lambda data: data["supports"].append(None),
        lambda data: data["supports"][0].update(names={"1": "RV"}),
        lambda data: data["supports"][0].update(names={"-1": "RV"}),
        lambda data: data["supports"][0].update(names=["RV"]),
        lambda data: data["supports"][0].update(score="0.5"),
        lambda data: data["supports"][0].update(score=True),
        lambda data: data["supports"][0].update(score=10**400),
        lambda data: data["supports"][0].update(names={"0": "air", "1": "RV", "2": "LV"}),
        lambda data: data["supports"][0].update(names={"1": "RV", "2": "RV"}),
        lambda data: data.update(schema_version=0),
        lambda data: data.update(schema_version=1.0),
        lambda data: data.update(schema_version=True),
        lambda data: data.update(schema_version="1"),
        lambda data: data.update(note="x" * MAX_LIST_BYTES),
        lambda data: data["supports"][0].update(key=None),
        lambda data: data["supports"][0]["mask"].update(sha256="0" * 64),
        lambda data: data["supports"][0]["mask"].update(sha256=None),
        lambda data: data["supports"][0].update(mask=data["supports"][1]["mask"]),
    ],
)
def test_a_damaged_list_is_refused(tmp_path: Path, change: Callable[[Any], None]) -> None:
    larger = support(image=np.zeros((4, 4), np.uint8), mask=np.zeros((4, 4), np.uint8))
    folder = save_supports([support(), larger], tmp_path / "s")
    edit(folder, change)
    with pytest.raises(InputError):
        load_supports(folder)


def test_a_newer_version_says_so(tmp_path: Path) -> None:
    folder = save_supports([support()], tmp_path / "s")
    edit(folder, lambda data: data.update(schema_version=2))
    with pytest.raises(InputError, match="upgrade medretrieval"):
        load_supports(folder)


def test_changed_missing_and_linked_files_are_refused(tmp_path: Path) -> None:
    folder = save_supports([support()], tmp_path / "s")
    picture = folder / "0.png"
    good = picture.read_bytes()
    picture.write_bytes(good[:-1] + b"\0")
    with pytest.raises(InputError, match="sha256"):
        load_supports(folder)
    picture.unlink()
    with pytest.raises(InputError, match="missing"):
        load_supports(folder)
    (tmp_path / "elsewhere.png").write_bytes(good)
    os.symlink(tmp_path / "elsewhere.png", picture)
    with pytest.raises(InputError, match="missing"):
        load_supports(folder)
    with pytest.raises(InputError, match="missing"):
        load_supports(tmp_path / "nothing")


def test_sizes_are_limited_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = {"image": np.zeros((200, 200), np.uint8), "mask": np.zeros((200, 200), np.uint8)}
    folder = save_supports([support(**blank), support(**blank)], tmp_path / "s")
    monkeypatch.setenv("MEDRETRIEVAL_MAX_BYTES", "150000")
    with pytest.raises(InputError, match="more than the limit"):
        load_supports(folder)
    monkeypatch.delenv("MEDRETRIEVAL_MAX_BYTES")
    assert len(load_supports(folder)) == 2


def test_a_file_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    folder = save_supports([support(), support(1)], tmp_path / "s")
    edit(folder, lambda data: data.update(supports=data["supports"][:1] * 40))
    with pytest.raises(InputError, match="named twice"):
        load_supports(folder)


def test_a_set_has_a_budget_that_is_checked_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_supports([support(), support(1)], tmp_path / "s")
    monkeypatch.setattr(supports, "png_pixels", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(supports, "MAX_SET_BYTES", 4 * 9 * 7 - 1)
    with pytest.raises(InputError, match="more than the limit"):
        load_supports(folder)
    with pytest.raises(InputError, match="more than the limit"):
        pack_supports([support(), support(1)])
    packed = zipped(tmp_path / "s.zip", members())
    monkeypatch.setattr(supports, "MAX_SET_BYTES", 10)
    with pytest.raises(InputError, match="more than the limit"):
        unpack_supports(packed)


def one_pixel(png: bytes) -> bytes:
    """The header of a PNG, with one row and column."""
    header = b"IHDR" + bytes([0, 0, 0, 1] * 2) + png[24:29]
    return png[8:12] + header + zlib.crc32(header).to_bytes(4, "big")


def replaced(folder: Path, content: bytes) -> None:
    (folder / "0.png").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit(folder, lambda data: data["supports"][0]["image"].update(sha256=digest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda png: b"", "not a PNG"),
        (lambda png: png[:16] + bytes(8) + png[24:], "0 x 0 pixels"),
        (lambda png: png[:16] + bytes([0, 1, 0, 0]) + png[20:], "65536 x 9 pixels"),
        (lambda png: png[:24] + bytes([8, 6]) + png[26:], "kind 6"),
        (lambda png: png + bytes(10_000), "larger than its picture"),
        # A second header, which counts for the decoder, after one that promises less.
        (lambda png: png[:8] + one_pixel(png) + png[8:], "another size"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    folder = save_supports([support()], tmp_path / "s")
    replaced(folder, change((folder / "0.png").read_bytes()))
    with pytest.raises(InputError, match=message):
        load_supports(folder)


def zipped(path: Path, files: dict[str, bytes], **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(pack_supports([support()]))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_zip_of_the_folder_itself_is_taken_too(tmp_path: Path) -> None:
    inside = {f"my set/{name}": content for name, content in members().items()}
    clutter = {"__MACOSX/my set/._0.png": b"x", "my set/.DS_Store": b"x", "my set/notes.txt": b"x"}
    path = zipped(tmp_path / "s.zip", {**inside, **clutter})
    assert same(unpack_supports(path)[0], support())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"../0.png": b"x"}, "outside"),
        ({"copy/0.png": b"x"}, "twice"),
        ({"9.png": b"\0" * (3 << 20)}, "zip bomb"),
    ],
)
def test_an_unsafe_zip_is_refused(tmp_path: Path, extra: dict[str, bytes], message: str) -> None:
    path = tmp_path / "s.zip"
    zipped(path, {**members(), **extra}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=message):
        unpack_supports(path)


@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut off", b"no zip"])
def test_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.zip"
    path.write_bytes(content)
    with pytest.raises(MedRetrievalError, match="zip"):
        load_supports(path)
    with pytest.raises(InputError, match="no support set"):
        unpack_supports(zipped(tmp_path / "t.zip", {"a.txt": b"x"}))


def test_a_pair_of_pictures(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 32), dtype=np.uint8)
    mask = np.zeros((24, 32), np.uint8)
    mask[3:9, 4:9], mask[12:15, 20:25] = 1, 7
    Image.fromarray(picture).save(tmp_path / "Anna Mueller.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    pair = tmp_path / "Anna Mueller.png", tmp_path / "mask.png"
    (made,) = supports_from_pair(*pair, policy=POLICY, names={1: "liver"})
    np.testing.assert_array_equal(made.mask, mask)
    assert made.names == {1: "liver", 7: "label_7"}
    assert made.image.shape == (24, 32)
    assert "Anna" not in made.key
    assert supports_from_pair(*pair, policy=POLICY)[0].key == made.key
    Image.fromarray(mask * 0).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="mask is empty"):
        supports_from_pair(*pair, policy=POLICY)
    Image.fromarray(mask[:-1]).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match="32x23 pixels"):
        supports_from_pair(*pair, policy=POLICY)


def test_a_pair_of_volumes_gives_its_annotated_slices(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    mask = np.zeros((20, 18, 12), np.uint8)
    mask[4:9, 5:9, 2:11], mask[10:15, 5:9, 6] = 1, 2
    for name, voxels in (("image", rng.normal(size=mask.shape)), ("mask", mask)):
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), affine), tmp_path / f"{name}.nii.gz")
    pair = tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz"
    every = supports_from_pair(*pair, policy=POLICY, names={1: "RV", 2: "LV"})
    assert [s.key.rpartition(":")[2] for s in every] == [str(i) for i in range(2, 11)]
    assert [s.names for s in every][3:5] == [{1: "RV"}, {1: "RV", 2: "LV"}]
    some = supports_from_pair(*pair, policy=POLICY, at_most=3)
    assert [s.key.rpartition(":")[2] for s in some] == ["2", "6", "10"]
