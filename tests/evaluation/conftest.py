"""A small table of cases: bright discs with a ring in volumes, of six patients."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

SHAPE = (40, 36, 5)
LABELS = {1: "core", 2: "ring"}


def write_case(folder: Path, name: str, seed: int) -> None:
    """A disc (1) in a ring (2) on the three middle slices; the outer ones show nothing."""
    random = np.random.default_rng(seed)
    x, y = np.indices(SHAPE[:2])
    apart = np.hypot(x - 19 - seed % 3, y - 17 + seed % 2)
    mask = np.zeros(SHAPE, np.uint8)
    mask[..., 1:4] = np.where(apart < 5, 1, np.where(apart < 9, 2, 0))[..., None]
    image = np.array([40, 220, 130])[mask] + 4 * random.standard_normal(SHAPE)
    for kind, voxels in (("image", image.astype(np.int16)), ("mask", mask)):
        nib.save(
            nib.Nifti1Image(voxels, np.diag([1.5, 1.5, 6.0, 1.0])),
            folder / f"{name}-{kind}.nii.gz",
        )


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TABLE.csv: four database patients, two query patients with three volumes."""
    folder = tmp_path_factory.mktemp("cases")
    rows = []
    for seed in range(7):
        name = f"case{seed}"
        write_case(folder, name, seed)
        rows.append(
            {
                "path": f"{name}-image.nii.gz",
                "mask": f"{name}-mask.nii.gz",
                "volume_id": name,
                "patient_id": f"patient{min(seed, 5)}",
                "modality": "MR",
                "organ": "disc",
                "split": "database" if seed < 4 else "query",
            }
        )
    path = folder / "cases.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
