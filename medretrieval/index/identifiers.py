"""What in an index could tell whose images they are: looked for before it leaves the machine.

Pixels are not looked at: whether text is burnt into them is for a person to see.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from medretrieval.index.files import EMBEDDINGS, MEMORIES, SLICES
from medretrieval.index.index_store import IndexStore
from medretrieval.index.memory_files import COUNT
from medretrieval.index.tensors import metadata_of

# DICOM UIDs: a root, and so many further numbers that they are made for one study or image
# (PS3.5, section 9). Shorter dotted numbers are versions and the like.
_UID = re.compile(r"(?<![\d.])[0-2](?:\.\d+){6,}(?![\d.])")
_PERSON_NAME = re.compile(r"[^\W\d_]{2,}\^[^\W\d_]+")  # PS3.5, 6.2.1.1: Family^Given
# Of the elements that PS3.15, table E.1-1, has removed or replaced, those that say who, by keyword.
_KEYWORDS = {
    *("accessionnumber", "additionalpatienthistory", "admissionid", "deviceserialnumber"),
    *("institutionaddress", "institutionname", "insuranceplanidentification"),
    *("issuerofpatientid", "medicalrecordlocator", "mrn", "nameofphysiciansreadingstudy"),
    *(
        "operatorsname",
        "otherpatientids",
        "otherpatientnames",
        "patientaddress",
        "patientbirthdate",
    ),
    *("patientbirthname", "patientbirthtime", "patientcomments", "patientid", "patientname"),
    *("patientmothersbirthname", "patienttelephonenumbers", "performingphysicianname"),
    *("personname", "referringphysicianname", "requestingphysician", "responsibleperson"),
    *("seriesinstanceuid", "socialsecuritynumber", "sopinstanceuid", "ssn", "stationname"),
    *("studydate", "studyid", "studyinstanceuid", "birthdate", "dateofbirth", "dob"),
}
_LONG = 9  # letters of a keyword that is no accident inside of another name
# What a picture needs; text, EXIF and whatever programs of scanners add has other names.
_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"sRGB", b"pHYs"}
_PNG_START = 8
_PARQUET_KEYS = {b"huggingface", b"ARROW:schema"}
_MEMORY_KEYS = {"format", COUNT}


def find_identifiers(store: IndexStore) -> list[str]:
    """Say what of an open index looks like an identifier of DICOM; empty if nothing does.

    Looked at: names of volumes, labels, extra columns, texts of the manifest, the metadata of
    tables and tensors, and text in the files of the pictures. The values themselves are not quoted.
    """
    return [
        *_names(store),
        *_attributes(store),
        *_metadata(store),
        *_pictures(store),
    ]


def looks_like_identifier(text: str) -> str | None:
    """Say what kind of identifier a text holds, None if none is seen.

    >>> looks_like_identifier("1.2.840.113619.2.55.3.604688119.971")
    'a DICOM UID'
    >>> looks_like_identifier("case-12, version 1.2.3") is None
    True
    """
    if _UID.search(text):
        return "a DICOM UID"
    if _PERSON_NAME.search(text):
        return "a person's name as DICOM writes it"
    return None


def _names(store: IndexStore) -> Iterator[str]:
    own = store.manifest.to_json()
    del own["files"]  # whose names have no room for any
    texts = {
        "names of volumes": store.volume_ids,
        "labels": store.labels.names,
        "regions": store.region.names,
        "modalities": store.modality.names,
        "texts of the manifest": list(_texts(own)),
        **{f"values of the column {name}": c.names for name, c in store.attributes.items()},
    }
    for where, values in texts.items():
        yield from _found(where, values)


def _texts(data: Any) -> Iterator[str]:
    """Every text in JSON-able data, names of fields too."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield key
            yield from _texts(value)
    elif isinstance(data, (list, tuple)):
        for value in data:
            yield from _texts(value)


def _found(where: str, values: Iterable[str]) -> Iterator[str]:
    kinds = [kind for kind in map(looks_like_identifier, values) if kind]
    for kind in dict.fromkeys(kinds):
        yield f"{kinds.count(kind)} of the {where} look like {kind}"


def _attributes(store: IndexStore) -> Iterator[str]:
    for name in store.attributes:
        letters = re.sub(r"[^a-z]", "", name.casefold().replace("'s", ""))
        if any(word == letters or (len(word) >= _LONG and word in letters) for word in _KEYWORDS):
            yield f"the column {name} is called like an element of DICOM that tells who it is"


def _metadata(store: IndexStore) -> Iterator[str]:
    for name in store.manifest.files:
        path = store.path / name
        if name.startswith(SLICES):
            keys = set(pq.read_metadata(path).metadata or {}) - _PARQUET_KEYS
            if keys:
                yield f"{name} has metadata that no index needs"
        elif name.startswith(EMBEDDINGS) and path.suffix == ".safetensors" and path.exists():
            if metadata_of(path):
                yield f"{name} has metadata that no index needs"
        elif name.startswith(MEMORIES) and path.exists():
            try:
                with safe_open(path, framework="numpy") as file:
                    plain = _MEMORY_KEYS.issuperset(file.metadata() or {})
            except (OSError, SafetensorError):
                plain = False
            if not plain:
                yield f"{name} has metadata that no index needs, or is no file of memories"


def _pictures(store: IndexStore) -> Iterator[str]:
    for name in sorted(name for name in store.manifest.files if name.startswith(SLICES)):
        count = 0
        with pq.ParquetFile(store.path / name) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["image", "mask"], use_threads=False)
                for column in table.columns:
                    count += sum(map(_says_more, column.to_pylist()))
        if count:
            yield f"{count} pictures in {name} carry text or other data besides their pixels"


def _says_more(cell: dict[str, Any] | None) -> bool:
    if cell is None:
        return False
    return cell["path"] is not None or not _PIXEL_CHUNKS.issuperset(png_chunks(cell["bytes"]))


def png_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the types of the chunks of a PNG file, and b"" for what is none at its end."""
    place = _PNG_START
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        yield kind
        place += 12 + length
    if place != len(data):
        yield b""
