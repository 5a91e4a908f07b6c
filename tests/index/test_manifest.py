"""The manifest survives JSON, and a damaged one is refused by the name of the field."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medretrieval.errors import IndexFormatError
from medretrieval.index.manifest import (
    EMBEDDINGS_FILE,
    Counts,
    FileEntry,
    Manifest,
    manifest_from_json,
    read_manifest,
)
from medretrieval.types import EmbedderIdentity, SlicePolicy

TEXT = st.text(min_size=1, max_size=20)
COUNTED = st.dictionaries(TEXT, st.integers(0, 10**9), max_size=4)
MANIFESTS = st.builds(
    Manifest,
    name=TEXT,
    embedder=st.builds(
        EmbedderIdentity,
        name=TEXT, weights=TEXT, revision=TEXT, weights_sha256=TEXT, pooling=TEXT,
        preprocessing=st.dictionaries(TEXT, st.integers() | TEXT | st.lists(st.integers())),
        dim=st.integers(1, 4096), network=st.dictionaries(TEXT, st.integers() | TEXT),
        precision=TEXT,
    ),
    slices=st.builds(SlicePolicy, axis=TEXT, window=TEXT, max_side=st.integers(1, 4096)),
    index_kind=TEXT,
    index_parameters=COUNTED,
    dtype=st.sampled_from(["float32", "float16"]),
    counts=st.just(Counts(volumes=3, patients=2, slices=9, annotated_slices=4, skipped=1)),
    vocabulary=st.dictionaries(st.integers(1, 65535), TEXT),
    label_counts=COUNTED,
    modalities=COUNTED,
    regions=COUNTED,
    license=TEXT,
    source=TEXT,
    split=st.none() | TEXT,
    medretrieval_version=TEXT,
    files=st.just(
        {
            name: FileEntry(bytes=7, sha256="a" * 64)
            for name in ("README.md", EMBEDDINGS_FILE, "slices/a.parquet", "memories/b.safetensors")
        }
    ),
)  # fmt: skip


@given(MANIFESTS)
def test_manifest_survives_json(manifest: Manifest) -> None:
    assert manifest_from_json(json.loads(manifest.dumps())) == manifest


def test_embedders_of_older_indexes_say_less(data: dict[str, Any]) -> None:
    now = manifest_from_json(data).embedder
    del data["embedder"]["network"], data["embedder"]["precision"]
    assert manifest_from_json(data).embedder == now


@pytest.mark.parametrize(
    "name", ["file:/etc/secret.json", "file:../ours.json", "file:", "a+ file:x/y.json"]
)
def test_an_index_names_no_file_elsewhere_on_this_machine(data: dict[str, Any], name: str) -> None:
    data["embedder"]["name"] = name
    with pytest.raises(IndexFormatError, match="expected the bare name of a file"):
        manifest_from_json(data)
    data["embedder"]["name"] = "file:ours (2).json"
    assert manifest_from_json(data).embedder.name == "file:ours (2).json"


@pytest.fixture
def data(flat_index: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((flat_index / "manifest.json").read_text())
    return loaded


FIELDS = (
    "schema_version", "name", "embedder", "dim", "dtype", "metric", "normalised", "index", "slices",
    "counts", "vocabulary", "label_counts", "modalities", "regions", "license", "source",
    "medretrieval_version", "files", "embedder.weights_sha256", "embedder.preprocessing",
    "index.kind", "index.parameters", "slices.window", "counts.volumes",
)  # fmt: skip


def at(data: dict[str, Any], field: str) -> tuple[dict[str, Any], str]:
    *outer, last = field.split(".")
    for name in outer:
        data = data[name]
    return data, last


@pytest.mark.parametrize("field", FIELDS)
def test_missing_and_mistyped_fields_are_named(data: dict[str, Any], field: str) -> None:
    changed = copy.deepcopy(data)
    place, name = at(changed, field)
    del place[name]
    with pytest.raises(IndexFormatError, match=f"'{name}' is missing"):
        manifest_from_json(changed)
    changed = copy.deepcopy(data)
    place, name = at(changed, field)
    place[name] = None
    with pytest.raises(IndexFormatError, match=f"'{name}' is a NoneType"):
        manifest_from_json(changed)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema_version", 0, "below 1"),
        ("schema_version", True, "is a bool"),
        ("schema_version", 99, "upgrade"),
        ("dim", 13, "the embedder's is 12"),
        ("embedder.dim", 0, "at least 1"),
        ("metric", "l2", "cosine"),
        ("normalised", False, "cosine"),
        ("dtype", "float64", "float32, float16"),
        ("slices.max_side", 0, "at least 1"),
        ("counts.slices", 0, "at least 1"),
        ("counts.slices", 2, "does not go with"),
        ("counts.patients", 6, "does not go with"),
        ("counts.annotated_slices", 100, "does not go with"),
        ("counts.skipped", -1, "negative"),
        ("vocabulary", {"0": "x"}, "mask value"),
        ("vocabulary", {"70000": "x"}, "mask value"),
        ("vocabulary", {"1": ""}, "mask value"),
        ("vocabulary", {"1": 3}, "is a int"),
        ("index.parameters", {"M": "32"}, "is a str"),
        ("files", {}, "README.md"),
        ("slices.crop", "head", "expected one of none, body"),
        ("slices.crop", None, "is a NoneType"),
        ("attributes", "scanner", "is a str, expected list"),
        ("attributes", [1], "not a list of names"),
        ("attributes", ["mask"], "cannot be columns: 'mask'"),
        ("attributes", ["a", "a"], "named twice"),
        ("attributes", [f"c{n}" for n in range(33)], "at most 32"),
        ("attributes", ["x" * 101], "1 to 100"),
    ],
)
def test_values_out_of_range_are_refused(
    data: dict[str, Any], field: str, value: Any, message: str
) -> None:
    place, name = at(data, field)
    place[name] = value
    with pytest.raises(IndexFormatError, match=message):
        manifest_from_json(data)


@pytest.mark.parametrize(
    "entry", [{"bytes": -1, "sha256": "a" * 64}, {"bytes": 1, "sha256": "xyz"}]
)
def test_files_need_size_and_hash(data: dict[str, Any], entry: dict[str, Any]) -> None:
    data["files"]["README.md"] = entry
    with pytest.raises(IndexFormatError, match="no valid size and sha256"):
        manifest_from_json(data)


def test_unknown_fields_of_the_same_schema_are_passed_over(data: dict[str, Any]) -> None:
    assert manifest_from_json({**data, "added": 1}) == manifest_from_json(data)


def test_fields_of_later_versions_may_be_absent(data: dict[str, Any]) -> None:
    assert "attributes" not in data
    del data["slices"]["crop"]
    manifest = manifest_from_json(data)
    assert manifest.attributes == ()
    assert manifest.slices.crop == "none"


def test_extra_columns_and_crop_come_back(data: dict[str, Any]) -> None:
    data["attributes"] = ["scanner", "kVp"]
    data["slices"]["crop"] = "body"
    manifest = manifest_from_json(data)
    assert manifest.attributes == ("scanner", "kVp")
    assert manifest.slices.crop == "body"
    assert manifest_from_json(manifest.to_json()) == manifest


def test_huge_manifest_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "manifest.json", "wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no space
    with pytest.raises(IndexFormatError, match="larger than"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_names_that_no_folder_can_have(name: str) -> None:
    with pytest.raises(IndexFormatError, match="cannot be opened as an index"):
        read_manifest(Path(name))
