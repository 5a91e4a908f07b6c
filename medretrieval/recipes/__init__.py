"""From the folder of a known data set, as it is unpacked, to the table that a build takes.

A layout is a row of a plain table; its reader is imported when it is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from medretrieval.errors import UsageError, unknown_name
from medretrieval.types import Progress, no_progress

if TYPE_CHECKING:
    from medretrieval.recipes.rows import Row

# Source folder, folder for files that the table needs and the data set lacks, progress -> rows.
Reader = Callable[[Path, Path, Progress], "list[Row]"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the folder of a data set looks.

    Attributes:
        name: of the layout, for the command line.
        title: of the data set.
        tree: files and folders of SOURCE, a line each.
        extra: columns of the table beside those that every table has.
        beside: what is written beside the table; empty if nothing is.
        reader: "module:function" of type `Reader`.
    """

    name: str
    title: str
    tree: str
    extra: tuple[str, ...] = ()
    beside: str = ""
    reader: str


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        layout.name: layout
        for layout in (
            Layout(
                name="msd",
                title="a task of the Medical Segmentation Decathlon, or a folder of several tasks",
                tree="dataset.json\nimagesTr/la_003.nii.gz\nlabelsTr/la_003.nii.gz",
                extra=("task", "protocol", "split"),
                reader="medretrieval.recipes.msd:read",
            ),
            Layout(
                name="totalsegmentator",
                title="the TotalSegmentator data set, CT (v1, v2) or MRI",
                tree="meta.csv\ns0001/ct.nii.gz or mri.nii.gz\ns0001/segmentations/liver.nii.gz",
                extra=("study_type", "split"),
                beside="one label map a case, merged from one file a structure",
                reader="medretrieval.recipes.totalsegmentator:read",
            ),
            Layout(
                name="acdc",
                title="ACDC, training and testing, or one of them",
                tree="training/patient001/Info.cfg\n"
                "training/patient001/patient001_frame01.nii.gz\n"
                "training/patient001/patient001_frame01_gt.nii.gz",
                extra=("phase", "group", "split"),
                reader="medretrieval.recipes.acdc:read",
            ),
            Layout(
                name="radimagenet",
                title="RadImageNet with its lists of images",
                tree="RadiologyAI_train.csv (filename, label; also _val, _test)\n"
                "radiology_ai/CT/abd/normal/1.png",
                extra=("split",),
                reader="medretrieval.recipes.radimagenet:read",
            ),
            Layout(
                name="medmnist",
                title="a 2-D set of MedMNIST, of any size of pictures",
                tree="organamnist_224.npz (the file itself, or a folder of such files)",
                extra=("split",),
                beside="the pictures, as PNG",
                reader="medretrieval.recipes.medmnist:read",
            ),
        )
    }
)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a table holds.

    Attributes:
        table: its path.
        rows: how many volumes or images it lists; annotated: how many of them have a mask.
        patients: how many patients, as far as the data set tells them apart.
        missing: how many were left out because their files are not there.
    """

    table: Path
    rows: int
    annotated: int
    patients: int
    missing: int


def write_table(
    layout: str,
    source: str | Path,
    out: str | Path,
    *,
    skip_missing: bool = False,
    force: bool = False,
    progress: Progress = no_progress,
) -> Written:
    """Write the table of a data set, for `medretrieval build OUT.csv INDEX`.

    The paths in it are relative to its own folder. What the table needs and the data set lacks is
    written beside it, to `<OUT without .csv>-files/`; a run that was killed goes on from there.

    Args:
        layout: a name of `LAYOUTS`.
        source: the folder of the data set, as it is unpacked.
        out: the table, a name that ends in .csv.
        skip_missing: leave out cases whose files are not there, instead of failing.
        force: replace an existing table.

    Raises:
        UsageError: no such layout or source, or `out` exists and not `force`.
        InputError: the source is not of this layout, or files that it lists are missing.
    """
    from medretrieval.recipes.rows import save, usable

    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS, None)
    source, out = Path(source), Path(out)
    if not source.exists():
        raise UsageError(f"{source} does not exist; expected {LAYOUTS[layout].title}")
    if out.suffix.lower() != ".csv":
        raise UsageError(f"{out} is no name of a table; expected one that ends in .csv")
    if out.exists() and not force:
        raise UsageError(f"{out} exists already; choose another name, or replace it with --force")
    if not out.parent.is_dir():
        raise UsageError(f"the folder {out.parent} does not exist; create it first")
    module, _, function = LAYOUTS[layout].reader.partition(":")
    read: Reader = getattr(importlib.import_module(module), function)
    found = read(source, out.with_name(f"{out.stem}-files"), progress)
    rows = usable(found, skip=skip_missing, source=source)
    save(rows, out, extra=LAYOUTS[layout].extra)
    return Written(
        table=out,
        rows=len(rows),
        annotated=sum(row.mask is not None for row in rows),
        patients=len({row.patient_id or row.volume_id for row in rows}),
        missing=len(found) - len(rows),
    )
