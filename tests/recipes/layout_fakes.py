"""Tiny data sets in the layouts of real ones, with what makes real archives awkward."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

AFFINE = np.diag([-1.5, -1.5, 5.0, 1.0])
SHAPE = (24, 20, 4)
# What macOS leaves in archives beside a file.
APPLE_DOUBLE = b"\x00\x05\x16\x07Mac OS X"


def volume(path: Path, seed: int = 0, *, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = SHAPE if channels == 1 else (*SHAPE, channels)
    voxels = np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path


def mask(path: Path, boxes: Mapping[int, tuple[slice, slice]], dtype: type = np.uint8) -> Path:
    """A mask with a value in each box, on all slices but the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.zeros(SHAPE, dtype)
    for value, (x, y) in boxes.items():
        voxels[x, y, 1:] = value
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return path


LEFT, RIGHT, INNER = (
    (slice(2, 9), slice(3, 15)),
    (slice(12, 20), slice(3, 15)),
    (slice(4, 6), slice(5, 8)),
)


def msd_task(
    folder: Path,
    prefix: str,
    *,
    labels: Sequence[str] = ("left atrium",),
    channels: Sequence[str] = ("MRI",),
    cases: Sequence[str] = ("003", "004"),
) -> Path:
    """A task of the decathlon; its masks are floats, as some of the real ones are."""
    for seed, case in enumerate(cases):
        name = f"{prefix}_{case}.nii.gz"
        volume(folder / "imagesTr" / name, seed, channels=len(channels))
        boxes = dict(zip(range(1, len(labels) + 1), (LEFT, INNER), strict=False))
        mask(folder / "labelsTr" / name, boxes, np.float32)
        for part in ("imagesTr", "labelsTr"):
            (folder / part / f"._{name}").write_bytes(APPLE_DOUBLE)
    volume(folder / "imagesTs" / f"{prefix}_900.nii.gz", channels=len(channels))
    description = {
        "name": prefix,
        "relase": "1.0 04/05/2018",
        "modality": {str(n): name for n, name in enumerate(channels)},
        "labels": {"0": "background"} | {str(n): name for n, name in enumerate(labels, 1)},
        "numTraining": len(cases),
        "training": [
            {"image": f"./imagesTr/{prefix}_{c}.nii.gz", "label": f"./labelsTr/{prefix}_{c}.nii.gz"}
            for c in cases
        ],
        "test": [f"./imagesTs/{prefix}_900.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def msd_all(folder: Path) -> Path:
    msd_task(
        folder / "Task01_BrainTumour", "BRATS", labels=("edema", "tumor"),
        channels=("FLAIR", "T1w", "t1gd", "T2w"), cases=("001",),
    )  # fmt: skip
    msd_task(
        folder / "Task03_Liver", "liver", labels=("liver", "cancer"), channels=("CT",),
        cases=("0",),
    )  # fmt: skip
    msd_task(folder / "Task06_Lung", "lung", labels=("cancer",), channels=("CT",), cases=("001",))
    (folder / "._Task06_Lung").write_bytes(APPLE_DOUBLE)
    (folder / "__MACOSX").mkdir()
    return folder


def msd_single(folder: Path) -> Path:
    """The task that the name of the folder says."""
    tasks = {
        "Task02_Heart": ("la", ("left atrium",), ("MRI",)),
        "Task03_Liver": ("liver", ("liver", "cancer"), ("CT",)),
        "Task04_Hippocampus": ("hippocampus", ("Anterior", "Posterior"), ("MRI",)),
        "Task05_Prostate": ("prostate", ("PZ", "TZ"), ("T2", "ADC")),
        "Task09_Spleen": ("spleen", ("spleen",), ("CT",)),
    }
    prefix, labels, channels = tasks[folder.name]
    return msd_task(folder, prefix, labels=labels, channels=channels)


def total(folder: Path, *, image: str = "ct.nii.gz", meta: bool = True) -> Path:
    """TotalSegmentator: a cyst in the left kidney, a liver that s0002 lacks the file of."""
    for number in range(3):
        case = folder / f"s{number:04d}"
        volume(case / image, number)
        inside = case / "segmentations"
        mask(inside / "kidney_left.nii.gz", {1: LEFT})
        mask(inside / "kidney_cyst_left.nii.gz", {1: INNER})
        mask(inside / "spleen.nii.gz", {})
        (inside / "._spleen.nii.gz").write_bytes(APPLE_DOUBLE)
        if number < 2:
            scaled_mask(inside / "liver.nii.gz")
    if meta:
        lines = ["image_id;age;gender;institute;study_type;split"]
        lines += ["s0000;61;m;A;ct thorax-abdomen-pelvis;train", "s0001;52;f;B;ct abdomen;train"]
        lines += ["s0002;70;f;A;ct polytrauma;test"]
        (folder / "meta.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    return folder


def scaled_mask(path: Path) -> Path:
    """A mask whose ones are stored so that they read as 1.00000006."""
    mask(path, {1: RIGHT})
    image = nib.load(path)
    header = image.header.copy()
    voxels = np.asarray(image.dataobj)
    header.set_data_dtype(np.int8)
    header.set_slope_inter(1.0000001, 0)
    stored = nib.Nifti1Image(voxels.astype(np.int8), AFFINE, header)
    stored.header.set_slope_inter(1.0000001, 0)
    nib.save(stored, path)
    return path


def total_mri(folder: Path) -> Path:
    return total(folder, image="mri.nii.gz", meta=False)


def acdc(folder: Path) -> Path:
    for number, split, group in (
        (1, "training", "DCM"),
        (2, "training", "NOR"),
        (101, "testing", "RV"),
    ):
        name = f"patient{number:03d}"
        patient = folder / split / name
        volume(patient / f"{name}_4d.nii.gz", channels=3)
        for frame in ("01", "12"):
            volume(patient / f"{name}_frame{frame}.nii.gz", number)
            mask(patient / f"{name}_frame{frame}_gt.nii.gz", {1: LEFT, 2: RIGHT, 3: INNER})
        (patient / "Info.cfg").write_text(
            f"ED: 1\nES: 12\nGroup: {group}\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n"
        )
        (patient / "MANDATORY_CITATION.md").write_text("cite")
    return folder


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 18), np.uint8)).save(path)
    return path


def radimagenet(folder: Path) -> Path:
    names = {
        "train": (
            *(("CT/abd/normal/1.png", "normal-abd"), ("MR/af/coalition/2.png", "coalition")),
            ("US/gb/3.png", "gallbladder"),
        ),
        "val": (("MR/knee/acl_tear/4.png", "acl_tear"),),
        "test": (("CT/lung/nodule/5.png", "nodule; solid=1"),),
    }
    for split, entries in names.items():
        for number, (name, _) in enumerate(entries):
            picture(folder / "radiology_ai" / name, number)
        lines = ["filename,label", *(f"radiology_ai/{n},{label}" for n, label in entries)]
        (folder / f"RadiologyAI_{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def medmnist(path: Path, *, side: int = 24, **changes: np.ndarray) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, side, side), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8)[:, None] + 5
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{**arrays, **changes})
    return path


# Of each index of the project: writes its data set, tiny, at the path that the recipe names.
DATA: Mapping[str, Callable[[Path], Path]] = {
    "acdc": acdc,
    "msd": msd_all,
    **{
        key: msd_single
        for key in ("msd-heart", "msd-hippocampus", "msd-prostate", "msd-liver", "msd-spleen")
    },
    "totalsegmentator-ct": total,
    "totalsegmentator-mri": total_mri,
    "radimagenet": radimagenet,
    "organamnist": medmnist,
}
