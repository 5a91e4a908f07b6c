"""Recipes on real images in the layout of their data set, where they are beside the project."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medretrieval.cli import main
from medretrieval.index import open_store
from medretrieval.recipes import write_table

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.data,
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no annotated images at {DATA}"),
]


def test_acdc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for image in sorted((DATA / "acdc" / "images").glob("patient00[12]_*")):
        name, frame = image.name.removesuffix(".nii.gz").split("_")
        folder = tmp_path / "ACDC" / "training" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / image.name).symlink_to(image)
        (folder / f"{name}_{frame}_gt.nii.gz").symlink_to(DATA / "acdc" / "labels" / image.name)
        (folder / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\n")
    assert main(["table", "acdc", "ACDC", "acdc.csv", "--quiet"]) == 0
    assert main(["build", "acdc.csv", "index", "--keep", "phase", "--quiet"]) == 0
    manifest = open_store("index").manifest
    assert (manifest.counts.volumes, manifest.counts.patients) == (4, 2)
    assert set(manifest.label_counts) == {"RV", "myocardium", "LV"}


def test_hippocampus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = tmp_path / "Task04_Hippocampus"
    task.mkdir()
    (task / "imagesTr").symlink_to(DATA / "hippocampus" / "images")
    (task / "labelsTr").symlink_to(DATA / "hippocampus" / "labels")
    names = sorted(path.name for path in (task / "labelsTr").glob("*.nii.gz"))[:3]
    description = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in names],
    }
    (task / "dataset.json").write_text(json.dumps(description))
    assert main(["table", "msd", task.name, "t.csv", "--quiet"]) == 0
    assert main(["build", "t.csv", "index", "--quiet"]) == 0
    manifest = open_store("index").manifest
    assert manifest.counts.patients == 3
    assert set(manifest.label_counts) == {"Anterior", "Posterior"}
    assert set(manifest.regions) == {"head"}


def test_totalsegmentator_masks_are_put_together_again(tmp_path: Path) -> None:
    stored = nib.load(DATA / "formats" / "example_seg.nii.gz")
    whole = np.asarray(stored.dataobj).astype(np.uint8)
    case = tmp_path / "data" / "s0001"
    (case / "segmentations").mkdir(parents=True)
    (case / "ct.nii.gz").symlink_to(DATA / "formats" / "example_ct.nii.gz")
    chosen = np.unique(whole[whole > 0])[:8]
    for value in chosen:
        mask = nib.Nifti1Image((whole == value).astype(np.uint8), stored.affine, stored.header)
        nib.save(mask, case / "segmentations" / f"structure_{value:03d}.nii.gz")
    write_table("totalsegmentator", tmp_path / "data", tmp_path / "t.csv")
    merged = nib.load(tmp_path / "t-files" / "s0001.nii.gz")
    expected = np.searchsorted(chosen, whole) + 1
    expected[~np.isin(whole, chosen)] = 0
    np.testing.assert_array_equal(np.asarray(merged.dataobj), expected)
    np.testing.assert_array_equal(merged.affine, stored.affine)
