"""What an index is built from: cases, each loaded only when its turn comes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medretrieval.errors import InputError, UsageError
from medretrieval.index.columns import MAX_CASE_LABELS, attribute_problem
from medretrieval.index.table import MAX_TEXT
from medretrieval.types import UNKNOWN, LabelVolume, Volume

Load = Callable[[], tuple[Volume, LabelVolume | None]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image or volume, with or without annotation.

    Attributes:
        volume_id: unique name, shown with every hit and stored in clear.
        patient_id: whose it is; stored as a pseudonym only.
        modality: DICOM modality code; "unknown" takes what the volume itself says.
        region: body region.
        labels: labels of the case as a whole, such as "benign".
        attributes: extra columns by name; stored in clear, empty text where nothing is known.
        label_names: mask value -> name; other values are named by the loaded label volume, else
            "label_<value>".
        load: reads voxels and annotation. Without annotation (None) nothing is known of the
            slices; an annotation without a structure says that nothing is there.
        indices: which slices are taken, by voxel index along the sliced axis; None for all.
        fingerprint: changes when the files change, so that a resumed build reads them again.
    """

    volume_id: str
    patient_id: str
    modality: str = UNKNOWN
    region: str = UNKNOWN
    labels: tuple[str, ...] = ()
    label_names: Mapping[int, str] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    load: Load
    indices: tuple[int, ...] | None = None
    fingerprint: str = ""

    @property
    def key(self) -> str:
        """Identifies what is embedded and stored of this case in an unfinished build."""
        names = sorted(self.label_names.items())
        what = [self.volume_id, self.fingerprint, self.modality, names]
        text = json.dumps(what if self.indices is None else [*what, self.indices])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def attribute_names(cases: Iterable[Case]) -> tuple[str, ...]:
    """Return the names of the attributes that any case has, in order of first appearance."""
    return tuple(dict.fromkeys(name for case in cases for name in case.attributes))


def check_cases(cases: Iterable[Case]) -> list[Case]:
    """Return the cases as a list, after checking their names.

    Raises:
        InputError: none at all, a repeated volume_id, a name that cannot be stored, more labels
            or other attributes than an index can have.
    """
    checked: list[Case] = []
    seen: set[str] = set()
    for case in cases:
        texts = {
            "volume_id": [case.volume_id],
            "patient_id": [case.patient_id],
            "modality": [case.modality],
            "region": [case.region],
            "label": [*case.labels, *case.label_names.values()],
        }
        for what, values in texts.items():
            for value in values:
                if not value or len(value) > MAX_TEXT or not value.isprintable():
                    raise InputError(
                        f"case {case.volume_id!r}: {what} {value!r} cannot be stored; expected 1 "
                        f"to {MAX_TEXT} printable characters"
                    )
        for name, text in case.attributes.items():
            if len(text) > MAX_TEXT or not (text.isprintable() or not text):
                raise InputError(
                    f"case {case.volume_id!r}: {name} {text!r} cannot be stored; expected up to "
                    f"{MAX_TEXT} printable characters"
                )
        if len(case.labels) > MAX_CASE_LABELS:
            raise InputError(
                f"case {case.volume_id!r} has {len(case.labels)} labels of its own; expected at "
                f"most {MAX_CASE_LABELS}"
            )
        if any(value < 1 for value in case.label_names):
            raise InputError(
                f"case {case.volume_id!r}: label values are 1 or more (0 is background), "
                f"not {min(case.label_names)}"
            )
        if case.volume_id in seen:
            raise InputError(
                f"volume_id {case.volume_id!r} occurs twice; every image or volume needs its own"
            )
        seen.add(case.volume_id)
        checked.append(case)
    if not checked:
        raise InputError("there are no cases to build an index from")
    problem = attribute_problem(attribute_names(checked))
    if problem is not None:
        raise InputError(f"the extra columns of the cases cannot be stored: {problem}")
    return checked


def file_case(
    path: Path,
    mask: Path | None,
    *,
    volume_id: str,
    patient_id: str | None = None,
    modality: str | None = None,
    region: str | None = None,
    labels: tuple[str, ...] = (),
    label_names: Mapping[int, str] | None = None,
    attributes: Mapping[str, str] | None = None,
    channel: int = 0,
    allow_one_slice: bool = False,
) -> Case:
    """Return the case of an image or volume file (or DICOM folder) and its mask file."""

    def load() -> tuple[Volume, LabelVolume | None]:
        from medretrieval.imaging import read_labels, read_volume

        volume = read_volume(
            path, channel=channel, modality=modality, allow_one_slice=allow_one_slice
        )
        if mask is None:
            return volume, None
        return volume, read_labels(mask, reference=volume.grid)

    return Case(
        volume_id=volume_id,
        patient_id=patient_id or volume_id,
        modality=modality or UNKNOWN,
        region=region or UNKNOWN,
        labels=labels,
        label_names=dict(label_names or {}),
        attributes=dict(attributes or {}),
        load=load,
        fingerprint=json.dumps([channel, _state(path), _state(mask)]),
    )


def _state(path: Path | None) -> list[list[object]]:
    if path is None:
        return []
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return [[str(path)], *([name, s.st_size, s.st_mtime_ns] for name, s in stats)]


IMAGE_SUFFIXES = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".tif", ".tiff")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
ARCHIVE_SUFFIXES = (".zip",)
MASK_SUFFIXES = (".nii.gz", ".nii", ".png", ".tif", ".tiff")


def split_suffix(name: str, suffixes: Iterable[str]) -> tuple[str, str]:
    """Return a file name without, and its suffix out of, `suffixes`; ("name", "") if none fits.

    >>> split_suffix("1.2.840.NII.gz", IMAGE_SUFFIXES)
    ('1.2.840', '.nii.gz')
    """
    for suffix in suffixes:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)], suffix
    return name, ""


def check_label_name(value: int, name: str, where: str) -> None:
    """Refuse a named label value that no mask can hold or that says nothing.

    Raises:
        UsageError: the value is below 1, or the name empty.
    """
    if value < 1 or not name.strip():
        raise UsageError(f"{where}: {value}={name!r} names no label; write for example 1=liver")


def check_text(**texts: str) -> None:
    """Refuse a text that an index cannot store about itself.

    Raises:
        UsageError: it is empty, too long, or not on one line.
    """
    for what, text in texts.items():
        if not text or len(text) > MAX_TEXT or not text.isprintable():
            raise UsageError(
                f"{what} is {text!r}; expected 1 to {MAX_TEXT} printable characters on one line"
            )
