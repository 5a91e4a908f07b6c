"""Cases from folders and tables."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from index_fakes import FakeEmbedder
from PIL import Image
from pydicom.data import get_testdata_file

from medretrieval.errors import InputError, UsageError
from medretrieval.index import build, cases_from_folder, cases_from_table, open_store
from medretrieval.types import SlicePolicy


def picture(path: Path, value: int = 0, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, size[::-1], dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def label_picture(path: Path, value: int = 1, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[2:4, 3:5] = value
    Image.fromarray(pixels).save(path)
    return path


def nifti(path: Path, *, label: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 3, (5, 6, 4)) if label else rng.integers(0, 999, (5, 6, 4))
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), np.diag([1.0, 1, 3, 1])), path)
    return path


def dicom(path: Path, series: str, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    data.SeriesInstanceUID = series
    data.SOPInstanceUID = f"{series}.{number}"
    data.InstanceNumber = number
    data.ImagePositionPatient = [0, 0, 5.0 * number]
    data.save_as(path)
    return path


def test_folder_finds_every_kind_sorted_by_path(tmp_path: Path) -> None:
    picture(tmp_path / "b" / "x.jpg")
    picture(tmp_path / "a.b.PNG")
    nifti(tmp_path / "b" / "scan.nii.gz")
    for number in range(3):
        dicom(tmp_path / "series" / f"I{number}", "1.2", number)
    dicom(tmp_path / "single" / "xray.dcm", "1.3")
    dicom(tmp_path / "several" / "p.dcm", "1.4")
    dicom(tmp_path / "several" / "q.dcm", "1.5")
    picture(tmp_path / ".hidden" / "no.png")
    picture(tmp_path / ".no.png")
    (tmp_path / "README.txt").write_text("no image")
    cases = cases_from_folder(tmp_path)
    assert [case.volume_id for case in cases] == [
        "a.b", "b/scan", "b/x", "series", "several/p", "several/q", "single/xray",
    ]  # fmt: skip
    assert all(case.patient_id == case.volume_id and case.labels == () for case in cases)
    shapes = {case.volume_id: case.load()[0].grid.shape for case in cases}
    assert shapes["b/scan"] == (5, 6, 4)
    assert shapes["series"][2] == 3
    assert shapes["a.b"] == (8, 6, 1)


def test_a_folder_that_is_itself_a_series_is_one_case(tmp_path: Path) -> None:
    for number in range(2):
        dicom(tmp_path / "scan7" / f"{number}.dcm", "1.2", number)
    (case,) = cases_from_folder(tmp_path / "scan7")
    assert case.volume_id == "scan7"
    assert case.load()[0].grid.shape[2] == 2


def test_images_that_differ_in_suffix_keep_it(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.png")
    assert [c.volume_id for c in cases_from_folder(tmp_path)] == ["a.jpg", "a.png", "b"]


def test_masks_go_by_name_whatever_their_suffix(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, masks = tmp_path / "images", tmp_path / "images" / "masks"
    nifti(images / "v.nii.gz")
    nifti(masks / "v.nii", label=True)
    picture(images / "p.jpg")
    label_picture(masks / "p.png", 2)
    picture(images / "deep" / "q.png")
    label_picture(masks / "q.tif")
    picture(images / "none.png")
    label_picture(masks / "nobody.png")
    with caplog.at_level(logging.WARNING):
        cases = cases_from_folder(images, masks=masks, label_names={2: "lesion"})
    found = {case.volume_id: case.load()[1] for case in cases}
    assert set(found) == {"v", "p", "deep/q", "none"}  # the masks are no images
    assert found["none"] is None
    assert found["p"] is not None
    assert np.unique(found["p"].voxels).tolist() == [0, 2]
    assert found["v"] is not None
    assert found["deep/q"] is not None
    assert "1 of 4 images have no mask" in caplog.text
    assert "1 masks in" in caplog.text


def test_same_names_in_several_folders_need_the_same_paths(tmp_path: Path) -> None:
    for folder in "ab":
        picture(tmp_path / "images" / folder / "1.png")
    label_picture(tmp_path / "masks" / "b" / "1.png")
    cases = cases_from_folder(tmp_path / "images", masks=tmp_path / "masks")
    assert [case.load()[1] is None for case in cases] == [True, False]


def test_masks_that_fit_nothing_or_twice_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    label_picture(tmp_path / "masks" / "a_seg.png")
    with pytest.raises(InputError, match=r"'a', masks such as 'a_seg'"):
        cases_from_folder(tmp_path / "images", masks=tmp_path / "masks")
    label_picture(tmp_path / "masks" / "a.png")
    label_picture(tmp_path / "masks" / "a.tif")
    with pytest.raises(InputError, match=r"several masks \(a\.png, a\.tif\)"):
        cases_from_folder(tmp_path / "images", masks=tmp_path / "masks")


def test_folders_are_labels_only_on_request(tmp_path: Path) -> None:
    picture(tmp_path / "benign" / "1.png")
    picture(tmp_path / "2.png")
    cases = cases_from_folder(tmp_path, labels_from_folders=True, modality="US", region="breast")
    assert [case.labels for case in cases] == [(), ("benign",)]
    assert {(case.modality, case.region) for case in cases} == {("US", "breast")}


def test_folders_that_cannot_be_a_source(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no images"):
        cases_from_folder(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        cases_from_folder(tmp_path / "no")
    file = picture(tmp_path / "a.png")
    with pytest.raises(UsageError, match="is a file"):
        cases_from_folder(file)
    with pytest.raises(UsageError, match="masks folder"):
        cases_from_folder(tmp_path, masks=tmp_path / "no")
    with pytest.raises(UsageError, match="two folders"):
        cases_from_folder(tmp_path, masks=tmp_path)
    with pytest.raises(UsageError, match="label_names"):
        cases_from_folder(tmp_path, label_names={0: "background"})


def test_unreadable_file_fails_only_when_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "empty.png").write_bytes(b"")
    for case in cases_from_folder(tmp_path):
        with pytest.raises(InputError):
            case.load()


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 1)
    before = cases_from_folder(tmp_path)[0].key
    assert cases_from_folder(tmp_path)[0].key == before
    picture(path, 2, size=(9, 9))
    assert cases_from_folder(tmp_path)[0].key != before


def table(folder: Path, text: str) -> Path:
    path = folder / "cases.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in "abc":
        picture(tmp_path / "images" / f"{name}.png", ord(name))
        label_picture(tmp_path / "masks" / f"{name}.png", 1)
    return tmp_path


def test_table_with_all_columns(images: Path) -> None:
    path = table(
        images,
        "\ufeffpath, mask ,volume_id,patient_id,modality,region,labels,split,other\n"
        "images/a.png,masks/a.png,one,p1,US,breast,1=lesion; benign,database,x\n"
        "\n"
        "images/b.png,,,,,,,query,\n"
        '"images/c.png",masks/c.png,,p1,,,malignant,database,"a, b"\n',
    )
    a, b, c = cases_from_table(path, label_names={1: "unnamed", 2: "z"})
    assert (a.volume_id, a.patient_id, a.modality, a.region) == ("one", "p1", "US", "breast")
    assert a.labels == ("benign",)
    assert a.label_names == {1: "lesion", 2: "z"}
    assert (b.volume_id, b.patient_id, b.modality, b.region) == (
        "images/b", "images/b", "unknown", "unknown",
    )  # fmt: skip
    assert b.load()[1] is None
    assert (c.patient_id, c.labels, c.label_names[1]) == ("p1", ("malignant",), "unnamed")
    assert c.load()[1] is not None
    selected = cases_from_table(path, where={"split": "database"})
    assert [case.volume_id for case in selected] == ["one", "images/c"]


def test_no_other_column_is_kept_unasked(images: Path) -> None:
    path = table(images, "path,name,scanner\nimages/a.png,Mueller,A\nimages/b.png,Maier,\n")
    assert [dict(case.attributes) for case in cases_from_table(path)] == [{}, {}]
    kept = cases_from_table(path, keep=["scanner"])
    assert [dict(case.attributes) for case in kept] == [{"scanner": "A"}, {"scanner": ""}]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["scaner"], "no column 'scaner' to keep; did you mean 'scanner'"),
        (["path"], "cannot be kept: 'path' is a column"),
        (["labels"], "cannot be kept: 'labels' is a column"),
        (["scanner", "scanner"], "named twice"),
        ("scanner", "expected a list"),
    ],
)
def test_columns_that_cannot_be_kept(images: Path, keep: list[str], message: str) -> None:
    path = table(images, "path,labels,scanner\nimages/a.png,,A\n")
    with pytest.raises(UsageError, match=message):
        cases_from_table(path, keep=keep)


def test_kept_text_must_be_storable(images: Path, tmp_path: Path) -> None:
    path = table(images, f"path,scanner\nimages/a.png,{'x' * 501}\n")
    cases = cases_from_table(path, keep=["scanner"])
    with pytest.raises(InputError, match="'images/a': scanner 'x"):
        build(cases, tmp_path / "i", embedder=FakeEmbedder(), slices=SlicePolicy(), name="n")


def test_kept_columns_are_stored_listed_and_read(images: Path, tmp_path: Path) -> None:
    path = table(images, "path,scanner,secret,kVp\nimages/a.png,A b,x7,120\nimages/b.png,,x8,80\n")
    cases = cases_from_table(path, keep=["scanner", "kVp"])
    out = build(cases, tmp_path / "i", embedder=FakeEmbedder(), slices=SlicePolicy(), name="us")
    with open_store(out) as store:
        assert {name: list(c.text()) for name, c in store.attributes.items()} == {
            "scanner": ["A b", ""], "kVp": ["120", "80"],
        }  # fmt: skip
        assert store.manifest.attributes == ("scanner", "kVp")
        assert store.info()["attributes"] == ["scanner", "kVp"]
    assert "`scanner`, `kVp`" in (out / "README.md").read_text()
    for file in out.rglob("*"):
        assert file.is_dir() or b"x7" not in file.read_bytes()


def test_paths_start_at_the_table_or_at_root(images: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    path = table(tmp_path / "lists", "path\nimages/a.png\n")
    assert cases_from_table(path, root=images)[0].volume_id == "images/a"
    with pytest.raises(InputError, match="row 2, column path"):
        cases_from_table(path)
    path = table(tmp_path / "lists", f"path\n{images / 'images' / 'a.png'}\n../images/b.png\n")
    assert [case.volume_id for case in cases_from_table(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path'"),
        ("path\n", "no rows"),
        ("path;mask\nimages/a.png;\n", "separate the columns by commas"),
        ("file,mask\nx,y\n", "found file, mask"),
        ("path,path\na,b\n", "'path' twice"),
        ("path,mask\nimages/a.png\n", "row 2: 1 cells, the header has 2"),
        ("path,mask\nimages/a.png,,x\n", "row 2: 3 cells, the header has 2"),
        ("path,region\n,chest\n", "row 2, column path: is empty"),
        (f"path\n{'x' * 5000}\n", "row 2, column path or mask: File name too long"),
        ("path\nimages/a.png\nimages/z.png\n", r"row 3, column path: .*z\.png does not exist"),
        ("path,mask\nimages/a.png,masks/z.png\n", "row 2, column mask"),
        ("path,mask\nimages/a.png,masks\n", "row 2, column mask"),
        ("path,labels\nimages/a.png,x=RV\n", "row 2, column labels: 'x=RV'"),
        ("path,labels\nimages/a.png,0=RV\n", "row 2, column labels: '0=RV'"),
        ("path,labels\nimages/a.png,1=\n", "row 2, column labels: '1='"),
        ("path,labels\nimages/a.png,1=a;1=b\n", "value 1 has two names"),
        ("path\nimages/a.png\nimages/a.png\n", "row 3, column volume_id: .* is in row 2 already"),
        ('path\n"images/a.png\n', "not a CSV table"),
    ],
)
def test_table_errors_name_row_and_column(images: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        cases_from_table(table(images, text))
    assert re.search(message, str(caught.value))
    assert "cases.csv" in str(caught.value)


def test_all_wrong_rows_are_told_at_once(images: Path) -> None:
    rows = "".join(f"no{n}.png\n" for n in range(15))
    with pytest.raises(InputError) as caught:
        cases_from_table(table(images, "path\n" + rows))
    text = str(caught.value)
    assert "15 wrong rows" in text
    assert "row 11," in text
    assert "and 5 more" in text


def test_selection_errors(images: Path) -> None:
    path = table(images, "path,split\nimages/a.png,database\n")
    with pytest.raises(UsageError, match="did you mean 'split'"):
        cases_from_table(path, where={"spilt": "database"})
    with pytest.raises(InputError, match="these values occur"):
        cases_from_table(path, where={"split": "test"})
    with pytest.raises(UsageError, match="does not exist"):
        cases_from_table(images / "no.csv")
    path.write_bytes(b"path\n\xff\xfe\n")
    with pytest.raises(InputError, match="UTF-8"):
        cases_from_table(path)


def test_folder_to_index(images: Path, tmp_path: Path) -> None:
    shutil.copy(images / "images" / "a.png", images / "images" / "unmasked.png")
    cases = cases_from_folder(
        images / "images", masks=images / "masks", label_names={1: "lesion"}, modality="US"
    )
    out = build(cases, tmp_path / "i", embedder=FakeEmbedder(), slices=SlicePolicy(), name="us")
    with open_store(out) as store:
        assert store.volume_ids == ["a", "b", "c", "unmasked"]
        assert list(store.labels) == [("lesion",)] * 3 + [()]
        assert np.isnan(store.position_mm).all() or store.manifest.modalities == {"US": 4}
        with Image.open(images / "images" / "b.png") as original:
            np.testing.assert_array_equal(store.image(1), np.asarray(original))
        with Image.open(images / "masks" / "b.png") as original:
            np.testing.assert_array_equal(store.mask(1), np.asarray(original))


def test_the_package_never_unpickles() -> None:
    from medretrieval import index

    folder = Path(index.__file__).parent
    for path in folder.glob("*.py"):
        text = path.read_text()
        for word in (
            "import pickle",
            "pickle.",
            "allow_pickle",
            "torch.load",
            "joblib",
            "np.load",
            "eval(",
            "exec(",
        ):
            assert word not in text, f"{word} in {path.name}"
