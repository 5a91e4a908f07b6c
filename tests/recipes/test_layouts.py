"""Tables of data sets in their own layout."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import layout_fakes as fakes
import nibabel as nib
import numpy as np
import pytest

from medretrieval.cli import main
from medretrieval.errors import Cancelled, InputError, UsageError
from medretrieval.index import cases_from_table
from medretrieval.recipes import LAYOUTS, Written, write_table


def rows(written: Written) -> list[dict[str, str]]:
    with open(written.table, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def by_id(written: Written) -> dict[str, dict[str, str]]:
    return {row["volume_id"]: row for row in rows(written)}


# The decathlon


def test_msd_task_names_what_its_description_says(tmp_path: Path) -> None:
    fakes.msd_single(tmp_path / "data" / "Task02_Heart")
    written = write_table("msd", tmp_path / "data" / "Task02_Heart", tmp_path / "heart.csv")
    assert (written.rows, written.annotated, written.patients, written.missing) == (2, 2, 2, 0)
    row = by_id(written)["la_003"]
    assert row == {
        "path": "data/Task02_Heart/imagesTr/la_003.nii.gz",
        "mask": "data/Task02_Heart/labelsTr/la_003.nii.gz",
        "volume_id": "la_003",
        "patient_id": "la_003",
        "modality": "MR",
        "region": "chest",
        "labels": "1=left atrium",
        "channel": "",
        "task": "Task02_Heart",
        "protocol": "",
        "split": "train",
    }


def test_msd_makes_a_volume_of_each_channel(tmp_path: Path) -> None:
    fakes.msd_single(tmp_path / "Task05_Prostate")
    written = write_table("msd", tmp_path / "Task05_Prostate", tmp_path / "t.csv")
    assert (written.rows, written.patients) == (4, 2)
    adc = by_id(written)["prostate_003_ADC"]
    assert (adc["channel"], adc["protocol"], adc["modality"]) == ("1", "ADC", "MR")
    assert (adc["patient_id"], adc["region"]) == ("prostate_003", "pelvis")
    first, second = (case.load()[0] for case in cases_from_table(written.table)[:2])
    stored = nib.load(tmp_path / "Task05_Prostate" / "imagesTr" / "prostate_003.nii.gz")
    np.testing.assert_array_equal(first.voxels, stored.get_fdata(dtype=np.float32)[..., 0])
    np.testing.assert_array_equal(second.voxels, stored.get_fdata(dtype=np.float32)[..., 1])


def test_msd_tasks_together_do_not_share_a_cancer(tmp_path: Path) -> None:
    written = write_table("msd", fakes.msd_all(tmp_path / "MSD"), tmp_path / "all.csv")
    found = by_id(written)
    assert found["liver_0"]["labels"] == "1=liver;2=Liver cancer"
    assert found["lung_001"]["labels"] == "1=Lung cancer"
    assert found["BRATS_001_t1gd"]["labels"] == "1=edema;2=tumor"
    assert {row["region"] for row in found.values()} == {"head", "abdomen", "chest"}
    assert len(found) == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no dataset.json of the decathlon"),
        ("[]", "no dataset.json of the decathlon"),
        ('{"modality": {"0": "CT"}, "labels": {"1": "a"}}', "'training'"),
        ('{"modality": {"0": "CT"}, "labels": {"a": "b"}, "training": []}', "invalid literal"),
        ('{"modality": {"0": "CT"}, "labels": {"1": "a"}, "training": []}', "no training images"),
    ],
)
def test_msd_description_that_is_none(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=said):
        write_table("msd", tmp_path, tmp_path / "t.csv")


def test_missing_files_fail_or_are_left_out(tmp_path: Path) -> None:
    folder = fakes.msd_single(tmp_path / "Task02_Heart")
    (folder / "imagesTr" / "la_003.nii.gz").unlink()
    with pytest.raises(InputError, match=r"1 files that .* such as .*la_003.*--skip-missing"):
        write_table("msd", folder, tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()
    written = write_table("msd", folder, tmp_path / "t.csv", skip_missing=True)
    assert (written.rows, written.missing) == (1, 1)
    shutil.rmtree(folder / "labelsTr")
    with pytest.raises(InputError, match=r"unpack the data set again$"):
        write_table("msd", folder, tmp_path / "u.csv", skip_missing=True)


# TotalSegmentator


def test_totalsegmentator_masks_become_one_label_map(tmp_path: Path) -> None:
    source = fakes.total(tmp_path / "data")
    written = write_table("totalsegmentator", source, tmp_path / "total.csv")
    found = by_id(written)
    assert sorted(found) == ["s0000", "s0001", "s0002"]
    row = found["s0000"]
    assert row["labels"] == "1=kidney_cyst_left;2=kidney_left;3=liver;4=spleen"
    assert (row["path"], row["mask"]) == ("data/s0000/ct.nii.gz", "total-files/s0000.nii.gz")
    assert (row["modality"], row["region"]) == ("CT", "chest-abdomen-pelvis")
    assert (row["study_type"], row["split"]) == ("ct thorax-abdomen-pelvis", "train")
    assert found["s0002"]["region"] == ""
    merged = np.asarray(nib.load(tmp_path / "total-files" / "s0000.nii.gz").dataobj)
    assert merged.dtype == np.uint8
    assert merged[5, 6, 2] == 1  # the cyst, in the kidney
    assert merged[7, 10, 2] == 2
    assert merged[15, 10, 2] == 3  # stored as 1.0000001
    assert merged[5, 6, 0] == 0
    without_liver = np.asarray(nib.load(tmp_path / "total-files" / "s0002.nii.gz").dataobj)
    assert set(np.unique(without_liver)) == {0, 1, 2}
    volume, labels = cases_from_table(written.table)[0].load()
    assert labels is not None
    assert labels.grid is volume.grid


def test_totalsegmentator_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    source = fakes.total_mri(tmp_path / "data")
    out, merged = tmp_path / "t.csv", tmp_path / "t-files"

    def stop(done: int, total: int, message: str) -> None:
        if done == 2:
            raise Cancelled(message)

    with pytest.raises(Cancelled, match="merging masks of s0001"):
        write_table("totalsegmentator", source, out, progress=stop)
    assert not out.exists()
    before = {path.name: path.stat().st_mtime_ns for path in merged.glob("*.nii.gz")}
    assert sorted(before) == ["s0000.nii.gz", "s0001.nii.gz"]
    changed = source / "s0001" / "segmentations" / "spleen.nii.gz"
    fakes.mask(changed, {1: fakes.RIGHT})
    newer = before["s0001.nii.gz"] + 10_000_000_000
    os.utime(changed, ns=(newer, newer))
    written = write_table("totalsegmentator", source, out)
    assert [row["modality"] for row in rows(written)] == ["MR"] * 3
    assert (merged / "s0000.nii.gz").stat().st_mtime_ns == before["s0000.nii.gz"]
    assert 4 in np.asarray(nib.load(merged / "s0001.nii.gz").dataobj)


def test_totalsegmentator_of_other_structures_is_merged_again(tmp_path: Path) -> None:
    source = fakes.total(tmp_path / "data")
    write_table("totalsegmentator", source, tmp_path / "t.csv")
    fakes.mask(source / "s0002" / "segmentations" / "aorta.nii.gz", {1: fakes.INNER})
    write_table("totalsegmentator", source, tmp_path / "t.csv", force=True)
    values = json.loads((tmp_path / "t-files" / "structures.json").read_text())
    assert list(values) == ["aorta", "kidney_cyst_left", "kidney_left", "liver", "spleen"]
    merged = np.asarray(nib.load(tmp_path / "t-files" / "s0000.nii.gz").dataobj)
    assert merged[7, 10, 2] == values["kidney_left"]


def test_totalsegmentator_deletes_nothing_of_others(tmp_path: Path) -> None:
    source = fakes.total(tmp_path / "data")
    own = fakes.volume(tmp_path / "t-files" / "mine.nii.gz")
    with pytest.raises(InputError, match="something else than merged masks"):
        write_table("totalsegmentator", source, tmp_path / "t.csv")
    assert own.is_file()


def test_totalsegmentator_masks_on_two_grids(tmp_path: Path) -> None:
    source = fakes.total(tmp_path / "data")
    path = source / "s0001" / "segmentations" / "spleen.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), fakes.AFFINE), path)
    with pytest.raises(InputError, match=r"mask spleen.nii.gz of s0001 is on another grid"):
        write_table("totalsegmentator", source, tmp_path / "t.csv")


def test_totalsegmentator_without_masks_or_with_another_list(tmp_path: Path) -> None:
    source = fakes.total(tmp_path / "data")
    (source / "meta.csv").write_text("image_id,split\ns0000,train\n")
    with pytest.raises(InputError, match=r"no column 'image_id'.*';'"):
        write_table("totalsegmentator", source, tmp_path / "t.csv")
    (source / "meta.csv").unlink()
    shutil.rmtree(source / "s0001" / "segmentations")
    with pytest.raises(InputError, match="s0001 has an image but no masks"):
        write_table("totalsegmentator", source, tmp_path / "t.csv")


# ACDC


@pytest.mark.parametrize("inside", ["", "database", "database/training"])
def test_acdc_frames(tmp_path: Path, inside: str) -> None:
    top = tmp_path / "ACDC"
    fakes.acdc(top / "database")
    written = write_table("acdc", top / inside, tmp_path / "acdc.csv")
    found = by_id(written)
    assert len(found) == (4 if inside.endswith("training") else 6)
    row = found["patient001_frame12"]
    assert row["mask"] == "ACDC/database/training/patient001/patient001_frame12_gt.nii.gz"
    assert (row["phase"], row["group"], row["split"]) == ("ES", "DCM", "training")
    assert (row["patient_id"], row["modality"]) == ("patient001", "MR")
    assert row["labels"] == "1=RV;2=myocardium;3=LV"


def test_acdc_that_is_not_complete(tmp_path: Path) -> None:
    fakes.acdc(tmp_path / "a")
    patient = tmp_path / "a" / "training" / "patient001"
    (patient / "patient001_frame01_gt.nii.gz").unlink()
    with pytest.raises(InputError, match="patient001_frame01_gt"):
        write_table("acdc", tmp_path / "a", tmp_path / "t.csv")
    (patient / "Info.cfg").write_text("ED: 3\nES: 9\n")
    with pytest.raises(InputError, match="names the frames ED 3 and ES 9"):
        write_table("acdc", tmp_path / "a", tmp_path / "t.csv")
    for path in patient.glob("*frame*"):
        path.unlink()
    with pytest.raises(InputError, match="patient001 has no frames"):
        write_table("acdc", tmp_path / "a", tmp_path / "t.csv")


# RadImageNet


@pytest.mark.parametrize("inside", ["", "radiology_ai"])
def test_radimagenet_lists(tmp_path: Path, inside: str) -> None:
    source = fakes.radimagenet(tmp_path / "RadImageNet")
    if inside:
        for path in source.glob("*.csv"):
            path.rename(source / inside / path.name)
    written = write_table("radimagenet", source / inside, tmp_path / "t.csv")
    assert (written.rows, written.annotated) == (5, 0)
    found = by_id(written)
    one = found["radiology_ai/MR/af/coalition/2"]
    assert (one["modality"], one["region"], one["labels"]) == ("MR", "ankle-foot", "coalition")
    assert found["radiology_ai/US/gb/3"]["region"] == ""
    assert found["radiology_ai/CT/abd/normal/1"]["split"] == "train"
    cases = {case.volume_id: case for case in cases_from_table(written.table)}
    assert cases["radiology_ai/CT/lung/nodule/5"].labels == ("nodule, solid:1",)


def test_radimagenet_that_is_none(tmp_path: Path) -> None:
    source = fakes.radimagenet(tmp_path / "r")
    (source / "RadiologyAI_val.csv").write_text("filename,label\n../x.png,normal\n")
    with pytest.raises(InputError, match=r"'../x.png' .* no image of RadImageNet"):
        write_table("radimagenet", source, tmp_path / "t.csv")
    (source / "RadiologyAI_val.csv").write_text("path,class\n")
    with pytest.raises(InputError, match="no column 'filename'"):
        write_table("radimagenet", source, tmp_path / "t.csv")
    shutil.rmtree(source / "radiology_ai")
    with pytest.raises(InputError, match="no folder radiology_ai"):
        write_table("radimagenet", source, tmp_path / "t.csv")


# MedMNIST


def test_medmnist_pictures_and_classes(tmp_path: Path) -> None:
    source = fakes.medmnist(tmp_path / "data" / "organamnist_224.npz")
    written = write_table("medmnist", source.parent, tmp_path / "t.csv")
    assert written.rows == 8
    row = by_id(written)["organamnist_224/train/000001"]
    assert row["path"] == "t-files/organamnist_224/train/000001.png"
    assert (row["modality"], row["region"], row["labels"]) == ("CT", "abdomen", "liver")
    volume, labels = cases_from_table(written.table)[1].load()
    assert labels is None
    with np.load(source) as arrays:
        stored = arrays["train_images"][1]
    np.testing.assert_array_equal(volume.voxels[..., 0].T, stored)


def test_medmnist_of_several_classes_and_unknown_sets(tmp_path: Path) -> None:
    many = np.zeros((4, 14), np.uint8)
    many[0, [1, 5]] = 1
    fakes.medmnist(tmp_path / "a" / "chestmnist.npz", train_labels=many)
    written = write_table("medmnist", tmp_path / "a", tmp_path / "a.csv")
    assert [row["labels"] for row in rows(written)[:2]] == ["cardiomegaly;nodule", ""]
    fakes.medmnist(tmp_path / "b" / "newmnist_64.npz")
    written = write_table("medmnist", tmp_path / "b", tmp_path / "b.csv")
    assert rows(written)[0]["labels"] == "class 5"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_images": np.zeros((4, 8, 8, 8), np.uint8)}, "Sets of volumes"),
        ({"train_images": np.zeros((4, 8, 8), np.float32)}, "float32"),
        ({"train_labels": np.zeros((3, 1), np.uint8)}, "for 3 labels"),
        ({"train_labels": np.array([[{}]] * 4, object)}, "cannot be turned into pictures"),
    ],
)
def test_medmnist_arrays_that_are_none(
    tmp_path: Path, changes: dict[str, np.ndarray], said: str
) -> None:
    source = fakes.medmnist(tmp_path / "x.npz", **changes)
    with pytest.raises(InputError, match=said):
        write_table("medmnist", source, tmp_path / "t.csv")


def test_medmnist_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"not a zip")
    with pytest.raises(InputError, match="cannot be turned into pictures"):
        write_table("medmnist", tmp_path / "x.npz", tmp_path / "t.csv")
    np.savez(tmp_path / "x.npz", images=np.zeros(3))
    with pytest.raises(InputError, match=r"no array 'train_images'.*found images"):
        write_table("medmnist", tmp_path / "x.npz", tmp_path / "t.csv")


# All layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_folder_says_what_was_expected(tmp_path: Path, layout: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected"):
        write_table(layout, tmp_path / "empty", tmp_path / "t.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


@pytest.mark.parametrize(
    ("layout", "source", "out", "said"),
    [
        ("mds", "data", "t.csv", "did you mean msd"),
        ("msd", "nowhere", "t.csv", "does not exist"),
        ("msd", "data", "t.txt", "ends in .csv"),
        ("msd", "data", "old.csv", "--force"),
        ("msd", "data", "no/t.csv", "create it first"),
    ],
)
def test_wrong_use(tmp_path: Path, layout: str, source: str, out: str, said: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "old.csv").write_text("mine")
    with pytest.raises(UsageError, match=said):
        write_table(layout, tmp_path / source, tmp_path / out)
    assert (tmp_path / "old.csv").read_text() == "mine"


def test_the_command_says_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fakes.msd_single(tmp_path / "Task09_Spleen")
    assert main(["table", "msd", "Task09_Spleen", "t.csv", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out == "t.csv\n"
    assert "2 rows, 2 with a mask, of 2 patients" in err
    assert main(["table", "msd", "Task09_Spleen", "t.csv"]) == 2
    capsys.readouterr()
    assert main(["table", "msd", "Task09_Spleen", "t.csv", "--force", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "table": "t.csv", "rows": 2, "annotated": 2, "patients": 2, "missing": 0,
    }  # fmt: skip


def test_a_channel_that_is_no_number(tmp_path: Path) -> None:
    fakes.volume(tmp_path / "a.nii.gz")
    (tmp_path / "t.csv").write_text("path,channel\na.nii.gz,T2\n")
    with pytest.raises(InputError, match="row 2, column channel: 'T2' is not a number from 0"):
        cases_from_table(tmp_path / "t.csv")
