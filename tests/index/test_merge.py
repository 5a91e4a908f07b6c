"""Merging: what becomes of the rows, what is refused, and what a failure leaves behind."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_fakes import (
    POLICY,
    FakeEmbedder,
    FakeVolumeEmbedder,
    contents,
    edit_manifest,
    make_case,
)

from medretrieval.errors import EmbedderMismatchError, IndexFormatError, UsageError
from medretrieval.index import Case, build, merge, open_group, open_store
from medretrieval.index.manifest import read_manifest
from medretrieval.types import SlicePolicy


def run(cases: list[Case], out: Path, **options: Any) -> Path:
    options = {"embedder": FakeEmbedder(), "slices": POLICY, "name": "test", **options}
    return build(cases, out, **options)


def in_parts(cases: list[Case], folder: Path, parts: int, **options: Any) -> list[Path]:
    numbers = range(1, parts + 1)
    return [run(cases, folder / f"part{i}", part=(i, parts), **options) for i in numbers]


def named(number: int, **options: Any) -> Case:
    """A case of which all mask values have names."""
    return make_case(number, names={1: "RV", 2: "LV", 9: "Myo"}, values=(1, 2, 9), **options)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 4), st.booleans(), st.booleans()), min_size=1, max_size=7
    ),
    parts=st.integers(1, 7),
    float16=st.booleans(),
    kind=st.sampled_from(["flat", "hnsw"]),
)
def test_all_parts_merged_equal_the_single_build_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[tuple[int, bool, bool]],
    parts: int,
    float16: bool,
    kind: str,
) -> None:
    folder = tmp_path_factory.mktemp("x")
    cases = [
        named(n, depth=depth, annotated=annotated, color=color)
        for n, (depth, annotated, color) in enumerate(shapes)
    ]
    options = {"float16": float16, "index_kind": kind, "license": "mit", "split": "train"}
    whole = run(cases, folder / "whole", **options)
    built = in_parts(cases, folder, min(parts, len(cases)), **options)
    assert contents(merge(built, folder / "merged")) == contents(whole)


def test_extra_columns_go_along(tmp_path: Path) -> None:
    # The first part has no case with a scanner, and still the column.
    extra = [{}, {"site": "A"}, {"site": "B", "scanner": "X"}, {"scanner": "Y"}]
    cases = [replace(named(n), attributes=attributes) for n, attributes in enumerate(extra)]
    whole = run(cases, tmp_path / "whole")
    built = in_parts(cases, tmp_path, 3)
    assert contents(merge(built, tmp_path / "merged")) == contents(whole)
    with open_group(built) as group, open_store(whole) as one:
        assert list(group.attributes) == ["site", "scanner"]
        for name, column in one.attributes.items():
            assert list(group.attributes[name].text()) == list(column.text())
    other = run([replace(named(9), attributes={"site": "A"})], tmp_path / "other")
    with pytest.raises(UsageError, match=r"extra columns \(site, scanner, site\)"):
        merge([whole, other], tmp_path / "m")


@pytest.mark.parametrize(("kind", "options"), [("auto", None), ("ivf-pq", {"bits": 4})])
def test_settings_that_depend_on_the_size_are_chosen_again(
    tmp_path: Path, kind: str, options: dict[str, int] | None
) -> None:
    cases = [make_case(n, depth=20) for n in range(9)]
    asked: dict[str, Any] = {"index_kind": kind, "index_parameters": options}
    whole = run(cases, tmp_path / "whole", **asked)
    merged = merge(in_parts(cases, tmp_path, 3, **asked), tmp_path / "merged")
    assert read_manifest(merged) == read_manifest(whole)


def test_parts_are_contiguous_and_say_which_they_are(tmp_path: Path) -> None:
    cases = [named(n) for n in range(7)]
    built = in_parts(cases, tmp_path, 3)
    found = [open_store(path).volume_ids for path in built]
    assert [name for ids in found for name in ids] == [case.volume_id for case in cases]
    assert [len(ids) for ids in found] == [2, 2, 3]
    assert [read_manifest(path).part for path in built] == ["1/3", "2/3", "3/3"]
    assert "part" not in json.loads((run(cases, tmp_path / "w") / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("part", "message"),
    [((0, 2), "0/2 does not exist"), ((3, 2), "3/2 does not exist"), ((1, 4), "into 4 parts")],
)
def test_parts_that_cannot_be_are_refused(
    tmp_path: Path, part: tuple[int, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run([named(n) for n in range(3)], tmp_path / "i", part=part)


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/2/3", 1, "-1/2"])
def test_a_manifest_with_an_impossible_part_is_refused(tmp_path: Path, part: object) -> None:
    out = run([named(0)], tmp_path / "i")
    edit_manifest(out, lambda data: data.update(part=part))
    with pytest.raises(IndexFormatError, match="part"):
        open_store(out)


def structures(path: Path) -> list[list[list[str]] | None]:
    """For every row the name at each pixel of its mask."""
    with open_store(path) as store:
        masks = [store.mask(row) for row in range(len(store))]
        names = {0: "", **store.vocabulary}
    return [
        None if mask is None else np.vectorize(names.__getitem__, otypes=[object])(mask).tolist()
        for mask in masks
    ]


def test_one_vocabulary_for_parts_that_named_values_differently(tmp_path: Path) -> None:
    # Without a name in any table: each part gives the lowest free values in its own order.
    cases = [
        make_case(0, names={1: "RV"}, values=(1, 70_000)),
        make_case(1, names={1: "RV"}, values=(1, 80_000)),
        make_case(2, names={}, values=(1, 300)),
        make_case(3, annotated=False),
    ]
    whole = run(cases, tmp_path / "whole")
    built = in_parts(cases, tmp_path, 4)
    assert len({str(read_manifest(path).vocabulary) for path in built}) > 2
    merged = merge(built, tmp_path / "merged")
    assert structures(merged) == structures(whole)
    ours, theirs = read_manifest(merged), read_manifest(whole)
    assert sorted(ours.vocabulary.values()) == sorted(theirs.vocabulary.values())
    assert ours.label_counts == theirs.label_counts
    assert ours.counts == theirs.counts
    with open_store(merged) as a, open_store(whole) as b:
        assert list(a.labels) == list(b.labels)
        assert [a.image(row).tolist() for row in range(len(a))] == [
            b.image(row).tolist() for row in range(len(b))
        ]
        # 300 does not fit into 8 bits, the others do.
        assert {str(m.dtype) for row in range(6, 9) if (m := a.mask(row)) is not None} >= {"uint16"}
        assert a.mask(0).dtype == np.uint8  # type: ignore[union-attr]


def test_an_index_of_whole_volumes_is_merged_too(tmp_path: Path) -> None:
    cases = [named(n) for n in range(4)]
    embedder = FakeVolumeEmbedder()
    whole = run(cases, tmp_path / "whole", embedder=embedder)
    built = in_parts(cases, tmp_path, 2, embedder=embedder)
    assert contents(merge(built, tmp_path / "merged")) == contents(whole)


def test_other_kind_of_search_without_embedding(tmp_path: Path) -> None:
    cases = [named(n) for n in range(4)]
    options = {"M": 8, "efConstruction": 40}
    hnsw = run(cases, tmp_path / "whole", index_kind="hnsw", index_parameters=options)
    flat = in_parts(cases, tmp_path, 2)
    merged = merge(flat, tmp_path / "m", index_kind="hnsw", index_parameters=options)
    assert contents(merged) == contents(hnsw)
    # Parameters of the first index stay.
    assert contents(merge([hnsw], tmp_path / "again")) == contents(hnsw)


def test_many_shards_and_skipped_cases_are_counted(tmp_path: Path) -> None:
    bad = make_case(9, load_error=ValueError("damaged"))
    cases = [*(named(n) for n in range(3)), bad]
    whole = run(cases, tmp_path / "whole", skip_bad=True, shard_bytes=1)
    built = in_parts(cases, tmp_path, 2, skip_bad=True, shard_bytes=1)
    merged = merge(built, tmp_path / "merged", shard_bytes=1)
    assert contents(merged) == contents(whole)
    assert read_manifest(merged).counts.skipped == 1


def test_licences_and_sources_are_all_named(tmp_path: Path) -> None:
    a = run([named(0)], tmp_path / "a", license="mit", source="A", split="train")
    b = run([named(1)], tmp_path / "b", license="cc0-1.0", source="A")
    manifest = read_manifest(merge([a, b], tmp_path / "m"))
    assert (manifest.license, manifest.source, manifest.split) == ("mit; cc0-1.0", "A", None)
    long = [run([named(n)], tmp_path / f"{n}", source=f"{n}" * 300) for n in range(3)]
    assert read_manifest(merge(long, tmp_path / "long")).source == "0" * 300 + "; and 2 more"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"embedder": FakeVolumeEmbedder()}, EmbedderMismatchError, "different embedders"),
        ({"slices": SlicePolicy(axis="axial", window="auto")}, UsageError, "window: 'percentile'"),
        ({"name": "other"}, UsageError, "key of the patients' pseudonyms"),
        ({"float16": True}, UsageError, "precision .float32, float16."),
    ],
)
def test_indexes_that_do_not_go_together_are_refused(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    a = run([named(0)], tmp_path / "a")
    b = run([named(1)], tmp_path / "b", **options)
    with pytest.raises(error, match=message):
        merge([a, b], tmp_path / "m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_volume_in_two_indexes_is_refused(tmp_path: Path) -> None:
    a = run([named(0), named(1)], tmp_path / "a")
    b = run([named(2), named(1)], tmp_path / "b")
    with pytest.raises(UsageError, match=r"1 volumes of .*b are in .*a too: 'volume-001'"):
        merge([a, b], tmp_path / "m")


def test_outputs_that_must_not_be_written(tmp_path: Path) -> None:
    a = run([named(0)], tmp_path / "a")
    b = run([named(1)], tmp_path / "b")
    with pytest.raises(UsageError, match="nothing to merge"):
        merge([], tmp_path / "m")
    with pytest.raises(UsageError, match="one of the indexes"):
        merge([a, b], tmp_path / "b", force=True)
    other = run([named(2)], tmp_path / "m")
    with pytest.raises(UsageError, match="exists already"):
        merge([a, b], other)
    assert read_manifest(merge([a, b], other, force=True)).counts.volumes == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "m"]


def test_parts_that_are_missing_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    built = in_parts([named(n) for n in range(3)], tmp_path, 3)
    with caplog.at_level(logging.WARNING):
        merge(built, tmp_path / "all")
        assert not caplog.records
        merge([built[2], built[0]], tmp_path / "some")
    assert "parts 3/3, 1/3" in caplog.text
    assert read_manifest(merge([built[1]], tmp_path / "copy")).part == "2/3"


def test_a_damaged_source_is_found_before_its_rows_are_copied(tmp_path: Path) -> None:
    a = run([named(0)], tmp_path / "a")
    b = run([named(1)], tmp_path / "b")
    file = next((b / "slices").iterdir())
    data = bytearray(file.read_bytes())
    data[data.index(b"IDAT") + 9] ^= 1  # a pixel
    file.write_bytes(data)
    with pytest.raises(IndexFormatError, match="sha256"):
        merge([a, b], tmp_path / "m")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_killed_merge_leaves_nothing_at_out_and_begins_anew(tmp_path: Path) -> None:
    cases = [named(n) for n in range(4)]
    whole = run(cases, tmp_path / "whole")
    a, b = in_parts(cases, tmp_path, 2)
    out = tmp_path / "m"
    script = (
        "import os, signal, sys; from medretrieval.index import merge\n"
        "def progress(done, total, message):\n"
        "    if done == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "merge(sys.argv[2:], sys.argv[1], progress=progress)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(out), str(a), str(b)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not out.exists()
    assert contents(merge([a, b], out)) == contents(whole)
    assert not out.with_name(".m.partial").exists()


def test_one_of_the_hub_is_to_be_pulled_first(tmp_path: Path) -> None:
    with pytest.raises(IndexFormatError, match="medretrieval pull lab/hearts@v1 FOLDER"):
        merge(["lab/hearts@v1"], tmp_path / "m")
