"""What could tell whose images they are does not leave the machine."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_fakes import edit_manifest, make_case, rehash
from PIL import Image, PngImagePlugin
from safetensors.numpy import load_file, save_file
from sharing import EMBEDDINGS, SHARD, make_index

from medretrieval.errors import UsageError
from medretrieval.index.identifiers import find_identifiers, looks_like_identifier, png_chunks
from medretrieval.index.png import encode_png
from medretrieval.index.release import make_release
from medretrieval.index.store import open_store

UID = "1.2.840.113619.2.55.3.604688119.971.1234567890.123"


def found(index: Path) -> list[str]:
    with open_store(index) as store:
        return find_identifiers(store)


def index_of(out: Path, **change: Any) -> Path:
    """An index whose first case is another than usual."""
    first, *others = [make_case(number) for number in range(3)]
    first = dataclasses.replace(first, **change)
    if "attributes" in change:
        others = [dataclasses.replace(case, attributes={}) for case in others]
    return make_index(out, cases=[first, *others])


def edit_shard(index: Path, change: Callable[[Any], Any], name: str = SHARD) -> None:
    """Change a table of the index, as its maker could have."""
    path = index / name
    pq.write_table(change(pq.read_table(path)), path, compression="none")
    rehash(index)


def with_first_picture(column: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    def edit(table: Any) -> Any:
        cells = table.column(column).to_pylist()
        cells[0] = change(cells[0])
        place = table.schema.get_field_index(column)
        kind = table.schema.field(column).type
        return table.set_column(place, table.schema.field(column), pa.array(cells, kind))

    return edit


def test_an_index_of_ours_is_clean(tmp_path: Path) -> None:
    index = index_of(tmp_path / "index", attributes={"scanner": "A 1.5", "kVp": "120"})
    assert found(index) == []


# Texts


@pytest.mark.parametrize(
    "text",
    [
        UID,
        f"case {UID}",
        f"series/{UID}/image",
        "2.25.1.2.3.4.5.6",
        "Mueller^Anna",
        "Müller^Änne^^Dr.",
        "scan of MUSTERMANN^MAX",
        "O'Brien^Mary",
        "Ivanová^Jana",
        "山田^太郎",
    ],
)
def test_texts_that_tell(text: str) -> None:
    assert looks_like_identifier(text) is not None


@pytest.mark.parametrize(
    "text",
    ["", "liver", "case-001", "v1.2.3.4", "10.1038/s41586-020-2649-2", "1.5 x 1.5 x 8.0", "x^2",
     "10^-3 mm^2/s", "192.168.0.1", "ISO 8601", "LIDC-IDRI-0001", "2026.11.27", "a^b", "T2*", "^"],
)  # fmt: skip
def test_texts_that_do_not(text: str) -> None:
    assert looks_like_identifier(text) is None


@given(st.lists(st.integers(0, 10**12), min_size=6, max_size=12))
def test_any_uid(parts: list[int]) -> None:
    uid = ".".join(["1", "2", *map(str, parts)])
    assert looks_like_identifier(f"the study {uid}, first scan") == "a DICOM UID"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"volume_id": f"scan-{UID}"}, "names of volumes look like a DICOM UID"),
        ({"volume_id": "Mueller^Anna"}, "names of volumes look like a person's name"),
        ({"labels": ("Mueller^Anna",)}, "labels look like a person's name"),
        ({"region": UID}, "regions look like a DICOM UID"),
        ({"modality": UID}, "modalities look like a DICOM UID"),
        ({"attributes": {"note": f"see {UID}"}}, "values of the column note look like a DICOM UID"),
    ],
)
def test_names_in_the_rows(tmp_path: Path, change: dict[str, Any], where: str) -> None:
    index = index_of(tmp_path / "index", **change)
    problems = found(index)
    assert any(where in problem for problem in problems)
    # What is found is not repeated, where others may read it.
    assert UID not in "".join(problems)
    assert "Mueller" not in "".join(problems)
    with pytest.raises(UsageError, match="is not published") as caught:
        make_release(index, tmp_path / "release", repo="lab/x")
    assert "other names" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"name": f"of {UID}"},
        {"source": "Mueller^Anna"},
        {"split": UID},
        {"license": UID},
        {"command": f"medretrieval build /data/{UID} out"},
        {"changes": [{"version": 1, "date": "2026-01-01", "volumes": 1, "slices": 1, "replaced": 0,
                      "note": "without Mueller^Anna"}]},
    ],
)  # fmt: skip
def test_texts_of_the_manifest(tmp_path: Path, change: dict[str, Any]) -> None:
    index = index_of(tmp_path / "index")
    edit_manifest(index, lambda data: data.update(change))
    assert any("texts of the manifest look like" in problem for problem in found(index))


@pytest.mark.parametrize(
    "name",
    ["PatientName", "patient_name", "Patient's Name", "Patient ID", "PatientBirthDate", "DOB",
     "Study Date", "AccessionNumber", "StudyInstanceUID", "series_instance_uid", "MRN",
     "InstitutionName", "Referring Physician's Name", "SSN", "0010-0010 PatientName"],
)  # fmt: skip
def test_columns_that_tell(tmp_path: Path, name: str) -> None:
    index = index_of(tmp_path / "index", attributes={name: "x"})
    assert any(f"the column {name} is called like" in problem for problem in found(index))


@pytest.mark.parametrize("name", ["scanner", "kVp", "sex", "age_group", "dobutamine", "diagnosis"])
def test_columns_that_do_not(tmp_path: Path, name: str) -> None:
    assert found(index_of(tmp_path / "index", attributes={name: "x"})) == []


# Pictures


def saved(text: PngImagePlugin.PngInfo | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    picture = Image.fromarray(np.zeros((11, 9), np.uint8))
    picture.save(out, "PNG", pnginfo=text, **options)
    return out.getvalue()


def texts(kind: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    if kind == "tEXt":
        info.add_text("Patient", "Mueller")
    elif kind == "zTXt":
        info.add_text("Patient", "Mueller", zip=True)
    elif kind == "iTXt":
        info.add_itxt("Patient", "Müller")
    elif kind == "private":
        info.add(b"paTi", b"Mueller")
    elif kind == "tIME":
        info.add(b"tIME", struct.pack(">HBBBBB", 2026, 1, 1, 1, 1, 1))
    elif kind == "eXIf":
        return saved(exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")
    elif kind == "after the end":
        return saved() + b"Mueller^Anna, born 1950"
    elif kind == "a short rest":
        return saved() + b"Anna"
    return saved(info)


@pytest.mark.parametrize("column", ["image", "mask"])
@pytest.mark.parametrize(
    "kind",
    ["tEXt", "zTXt", "iTXt", "eXIf", "tIME", "private", "after the end", "a short rest"],
)
def test_text_in_a_picture(tmp_path: Path, column: str, kind: str) -> None:
    index = index_of(tmp_path / "index")
    edit_shard(index, with_first_picture(column, lambda cell: {**cell, "bytes": texts(kind)}))
    (problem,) = found(index)
    assert problem == f"1 pictures in {SHARD} carry text or other data besides their pixels"


@pytest.mark.parametrize("column", ["image", "mask"])
def test_the_path_of_a_picture(tmp_path: Path, column: str) -> None:
    index = index_of(tmp_path / "index")
    edit_shard(index, with_first_picture(column, lambda cell: {**cell, "path": "/data/Anna.dcm"}))
    (problem,) = found(index)
    assert "1 pictures" in problem


def test_pictures_of_other_programs_are_taken(tmp_path: Path) -> None:
    index = index_of(tmp_path / "index")
    data = saved(dpi=(72, 72))
    edit_shard(index, with_first_picture("image", lambda cell: {**cell, "bytes": data}))
    assert found(index) == []


def test_chunks_of_damaged_files() -> None:
    whole = encode_png(np.zeros((4, 4), np.uint8))
    assert list(png_chunks(whole)) == [b"IHDR", b"IDAT", b"IEND"]
    for end in range(len(whole)):
        list(png_chunks(whole[:end]))
    huge = whole[:8] + struct.pack(">I", 2**32 - 1) + b"IDAT" + struct.pack(">I", zlib.crc32(b""))
    assert list(png_chunks(huge)) == [b"IDAT", b""]
    assert list(png_chunks(b"")) == [b""]


# Metadata of files


def test_metadata_of_a_table(tmp_path: Path) -> None:
    index = index_of(tmp_path / "index")

    def add(table: Any) -> Any:
        return table.replace_schema_metadata({**table.schema.metadata, b"pandas": b"Mueller"})

    edit_shard(index, add)
    assert found(index) == [f"{SHARD} has metadata that no index needs"]


def test_metadata_of_embeddings(tmp_path: Path) -> None:
    index = index_of(tmp_path / "index")
    path = index / EMBEDDINGS
    save_file(load_file(path), path, metadata={"of": "Mueller"})
    rehash(index)
    assert found(index) == [f"{EMBEDDINGS} has metadata that no index needs"]


@pytest.mark.parametrize("metadata", [{"format": "1", "memories": "1"}, {"of": "Mueller"}, None])
def test_metadata_of_memories(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    index = index_of(tmp_path / "index")
    name = "memories/sam-0123456789ab-00000.safetensors"
    (index / "memories").mkdir()
    if metadata is None:
        (index / name).write_bytes(b"Mueller")
    else:
        save_file({"x": np.zeros(3, np.float16)}, index / name, metadata=metadata)
    edit_manifest(index, lambda data: data["files"].update({name: {}}))
    rehash(index)
    problems = found(index)
    if metadata is not None and "of" not in metadata:
        assert problems == []
    else:
        assert problems == [f"{name} has metadata that no index needs, or is no file of memories"]
