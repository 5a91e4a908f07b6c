"""What `diff` finds between two indexes, and that it finds nothing where there is nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_fakes import POLICY, FakeEmbedder, contents, edit_manifest, make_case, rehash
from safetensors.numpy import load_file, save_file

from medretrieval.errors import IndexFormatError
from medretrieval.index import (
    Case,
    IndexDiff,
    add_embedder,
    append,
    build,
    diff,
    merge,
    open_store,
    pseudonym,
    remove_patient,
    table,
)
from medretrieval.index.comparing import Setting, ValueChange
from medretrieval.index.png import decode_png, encode_png
from medretrieval.types import LabelVolume, SlicePolicy, Volume

DAY = "2026-11-27"


def run(cases: list[Case], out: Path, **options: Any) -> Path:
    options = {"embedder": FakeEmbedder(), "slices": POLICY, "name": "test", **options}
    return build(cases, out, **options)


def changed(found: IndexDiff) -> dict[str, tuple[str, ...]]:
    return {volume.volume_id: volume.parts for volume in found.changed}


def with_voxels(case: Case, change: Any) -> Case:
    """The case with other voxels and masks."""
    volume, labels = case.load()
    assert labels is not None
    voxels, mask = volume.voxels.copy(), labels.voxels.copy()
    change(voxels, mask)

    def load() -> tuple[Volume, LabelVolume | None]:
        return replace(volume, voxels=voxels), replace(labels, voxels=mask)

    return replace(case, load=load, fingerprint="other")


def test_equal_indexes(tmp_path: Path) -> None:
    a = run([make_case(n) for n in range(3)], tmp_path / "a")
    b = run([make_case(n) for n in range(3)], tmp_path / "b")
    assert contents(a) == contents(b)
    for found in (diff(a, a), diff(a, b)):
        assert found.equal
        assert found.same_content
        assert (found.same, found.files.same, found.files.bytes) == (3, 4, 0)
        assert [(e.embedder, e.distance) for e in found.embeddings] == [("fake", 0.0)]
        assert found.text() == "equal: 3 volumes, every file the same"
        assert json.loads(json.dumps(found.to_json()))["equal"] is True


def test_the_same_rows_in_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = run([make_case(n) for n in range(3)], tmp_path / "a")
    monkeypatch.setattr(table, "GROUP_ROWS", 2)
    b = merge([a], tmp_path / "b", shard_bytes=1)
    found = diff(a, b)
    assert not found.equal
    assert found.same_content
    # The manifest lists them.
    assert found.files.added
    assert "manifest.json" in found.files.changed
    assert found.text().startswith("the same rows and settings, in other files\n")


def test_appended(tmp_path: Path) -> None:
    old = run([make_case(n) for n in range(2)], tmp_path / "old")
    more = [make_case(n, names={1: "RV", 2: "LV", 5: "scar"}, values=(1, 5)) for n in (3, 4)]
    new = append(old, tmp_path / "new", more, embedder=FakeEmbedder(), day=DAY, note="more")
    found = diff(old, new)
    assert found.added == ("volume-003", "volume-004")
    assert (found.removed, found.changed, found.same, found.reordered) == ((), (), 2, False)
    assert found.settings == (Setting(field="version", old=None, new=2),)
    assert found.changes_added == (f"version 2 of {DAY}: 2 volumes (6 slices) added; more",)
    assert found.counts == {
        "volumes": (2, 4),
        "patients": (1, 3),
        "slices": (6, 12),
        "annotated_slices": (6, 12),
    }
    names = [pseudonym(f"Mueller^Anna-{n}", "test") for n in (1, 2)]
    assert found.patients_added == tuple(sorted(names))
    assert found.patients_removed == ()
    assert found.values == (ValueChange(old=None, new=(5, "scar")),)
    assert found.labels["scar"] == (0, 4)
    assert "LV" not in found.labels
    assert found.regions == {"chest": (3, 6), "head": (3, 6)}
    sizes = [(new / name).stat().st_size for name in (*found.files.changed, *found.files.added)]
    assert found.files.bytes == sum(sizes) > 0
    text = found.text()
    for line in (
        "volumes: 2 added, 0 removed, 0 changed, 2 the same",
        "    volume-003",
        "  slices: 6 -> 12 (+6)",
        "  version: 1 -> 2",
        "patients: 2 added, 0 removed",
        "  5 scar: added",
        "embeddings of fake: the same wherever both have the slice",
    ):
        assert line in text.splitlines()


def test_removed(tmp_path: Path) -> None:
    old = run([make_case(n, names={1: "RV", 2: f"only {n}"}) for n in range(4)], tmp_path / "old")
    new = remove_patient(old, tmp_path / "new", patient_id="Mueller^Anna-1", day=DAY)
    found = diff(old, new)
    assert (found.added, found.removed, found.same) == ((), ("volume-002", "volume-003"), 2)
    assert found.patients_removed == (pseudonym("Mueller^Anna-1", "test"),)
    lost = [change.old for change in found.values if change.new is None]
    assert [name for _, name in filter(None, lost)] == ["only 2", "only 3"]


def test_replaced(tmp_path: Path) -> None:
    old = run([make_case(n) for n in range(3)], tmp_path / "old")
    other = replace(make_case(8, depth=5), volume_id="volume-001", patient_id="Mueller^Anna-0")
    new = append(old, tmp_path / "new", [other], embedder=FakeEmbedder(), replace=True, day=DAY)
    found = diff(old, new)
    assert changed(found) == {"volume-001": ("slices", "region", "pictures", "masks", "embeddings")}
    (volume,) = found.changed
    assert volume.slices == (3, 5)
    assert volume.distance is not None
    assert volume.distance > 0
    assert found.reordered
    assert "volume-001: slices, 3 -> 5" in found.text()
    assert "those of both come in another order" in found.text()


def test_masks_changed(tmp_path: Path) -> None:
    cases = [make_case(n) for n in range(3)]
    old = run(cases, tmp_path / "old")

    def swap(voxels: Any, mask: Any) -> None:
        mask[0, 0, 1] = 3 - mask[0, 0, 1] if mask[0, 0, 1] else 1

    new = run([cases[0], with_voxels(cases[1], swap), cases[2]], tmp_path / "new")
    found = diff(old, new)
    assert changed(found) == {"volume-001": ("masks",)}
    assert found.changed[0].distance == 0.0
    assert found.same == 2
    nothing = run([cases[0], make_case(1, annotated=False), cases[2]], tmp_path / "nothing")
    assert changed(diff(old, nothing)) == {"volume-001": ("labels", "masks")}
    assert changed(diff(nothing, old)) == {"volume-001": ("labels", "masks")}


def test_pictures_changed(tmp_path: Path) -> None:
    cases = [make_case(n) for n in range(2)]
    old = run(cases, tmp_path / "old")

    def brighten(voxels: Any, mask: Any) -> None:
        voxels[0, 0, 1] += 20

    new = run([cases[0], with_voxels(cases[1], brighten)], tmp_path / "new")
    found = diff(old, new)
    assert changed(found) == {"volume-001": ("pictures", "embeddings")}
    with open_store(old) as a, open_store(new) as b:
        largest = max(1 - float(x @ y) for x, y in zip(a.embeddings, b.embeddings, strict=True))
    assert found.changed[0].distance == pytest.approx(largest, abs=1e-6)
    assert found.embeddings[0].distance == found.changed[0].distance
    assert "volume-001: pictures, embeddings by up to" in found.text()


def test_what_a_row_says_of_itself(tmp_path: Path) -> None:
    cases = [replace(make_case(n), attributes={"site": "A"}) for n in range(6)]
    old = run(cases, tmp_path / "old")
    cases[0] = replace(cases[0], attributes={"site": "B"})
    cases[1] = replace(cases[1], region="leg")
    cases[2] = replace(cases[2], labels=("benign",))
    cases[3] = replace(cases[3], patient_id="somebody else")
    cases[4] = replace(cases[4], modality="CT")

    def load() -> Any:
        volume, labels = make_case(5).load()
        assert labels is not None
        grid = replace(volume.grid, affine=np.diag([-1.5, -1.5, 5.0, 1.0]))
        return replace(volume, grid=grid), replace(labels, grid=grid)

    cases[5] = replace(cases[5], load=load, fingerprint="other")
    new = run(cases, tmp_path / "new")
    assert changed(diff(old, new)) == {
        "volume-000": ("attributes",),
        "volume-001": ("region",),
        "volume-002": ("labels",),
        "volume-003": ("patient",),
        "volume-004": ("modality",),
        "volume-005": ("position", "spacing"),
    }


def test_other_embedder(tmp_path: Path) -> None:
    cases = [make_case(n) for n in range(2)]
    old = run(cases, tmp_path / "old")
    other = FakeEmbedder()
    identity = replace(other.identity, name="other", weights_sha256="1" * 64)

    class Other(FakeEmbedder):
        @property
        def identity(self) -> Any:
            return identity

    new = run(cases, tmp_path / "new", embedder=Other(change=lambda v: v[:, ::-1]))
    found = diff(old, new)
    assert [(s.field, s.old, s.new) for s in found.settings] == [
        ("embedder.name", "fake", "other"),
        ("embedder.weights_sha256", "0" * 64, "1" * 64),
    ]
    assert found.changed == ()
    assert found.embeddings == ()
    assert found.apart == ("fake", "other")
    assert "embeddings of other: not compared" in found.text()
    # Another revision of the same tensors is the same space.
    new = run(cases, tmp_path / "revised", embedder=FakeEmbedder(revision="2"))
    found = diff(old, new)
    assert [s.field for s in found.settings] == ["embedder.revision"]
    assert found.embeddings[0].distance == 0


def test_embedders_are_told_by_their_names(tmp_path: Path) -> None:
    old = run([make_case(0)], tmp_path / "old")
    new = Path(shutil.copytree(old, tmp_path / "new"))

    class Other(FakeEmbedder):
        @property
        def identity(self) -> Any:
            return replace(super().identity, name="other", weights_sha256="1" * 64)

    add_embedder(new, embedder=Other())
    lines = diff(old, new).text().splitlines()
    assert "  embedders: - -> other" in lines
    assert "  version: 1 -> 2" in lines


def test_settings(tmp_path: Path) -> None:
    cases = [make_case(n) for n in range(2)]
    old = run(cases, tmp_path / "old")
    new = run(
        [replace(case, attributes={"site": "A"}) for case in cases],
        tmp_path / "new",
        slices=SlicePolicy(axis="axial", window="percentile", max_side=48),
        index_kind="hnsw",
        license="mit",
        source="B",
        split="train",
        float16=True,
        name="other",
    )
    found = diff(old, new)
    fields = {setting.field for setting in found.settings}
    assert fields >= {
        *("dtype", "index.kind", "index.parameters.M", "recall", "slices.max_side", "license"),
        *("source", "split", "name", "attributes"),
    }
    assert found.patients_added is None
    assert found.to_json()["patients"]["comparable"] is False
    assert "patients: not compared" in found.text()
    # What float16 rounds away is no difference.
    assert changed(found) == {}
    assert found.embeddings[0].distance == 0


def test_values_renamed_and_moved(tmp_path: Path) -> None:
    old = run([make_case(n, names={1: "RV", 2: "LV"}) for n in range(2)], tmp_path / "old")
    moved = run([make_case(n, names={1: "RV", 2: "LV"}) for n in range(2)], tmp_path / "moved")
    path = moved / "slices" / "slices-00000.parquet"
    rows = pq.read_table(path)
    masks = []
    for cell in rows.column("mask").to_pylist():
        mask = decode_png(cell["bytes"], "mask", max_side=64)
        masks.append({"bytes": encode_png(np.uint8([0, 2, 7])[mask]), "path": None})
    column = rows.schema.get_field_index("mask")
    field = rows.schema.field("mask")
    pq.write_table(rows.set_column(column, field, pa.array(masks, field.type)), path)
    edit_manifest(moved, lambda data: data.update(vocabulary={"2": "RV", "7": "LV"}))
    rehash(moved)
    found = diff(old, moved)
    assert changed(found) == {}  # the masks show the same, by other values
    assert found.values == (
        ValueChange(old=(1, "RV"), new=(2, "RV")),
        ValueChange(old=(2, "LV"), new=(7, "LV")),
    )
    assert "  1 RV: now 2" in found.text().splitlines()
    renamed = run(
        [make_case(n, names={1: "right ventricle", 2: "LV"}) for n in range(2)], tmp_path / "named"
    )
    found = diff(old, renamed)
    assert found.values == (ValueChange(old=(1, "RV"), new=(1, "right ventricle")),)
    assert {parts for parts in changed(found).values()} == {("labels",)}
    assert "  1 RV: now called right ventricle" in found.text().splitlines()


def test_pictures_written_by_another_program_are_the_same(tmp_path: Path) -> None:
    old = run([make_case(n) for n in range(2)], tmp_path / "old")
    new = run([make_case(n) for n in range(2)], tmp_path / "new")
    path = new / "slices" / "slices-00000.parquet"
    rows = pq.read_table(path)
    for name in ("image", "mask"):
        cells = [
            {"bytes": encode_png(decode_png(cell["bytes"], name, max_side=64)) + b"", "path": None}
            for cell in rows.column(name).to_pylist()
        ]
        for cell in cells:
            data: Any = cell["bytes"]
            cell["bytes"] = data[:-12] + b"\0\0\0\4tEXta\0bc\x5b\x9f\xe8\xb4" + data[-12:]
        field = rows.schema.field(name)
        number = rows.schema.get_field_index(name)
        rows = rows.set_column(number, field, pa.array(cells, field.type))
    pq.write_table(rows, path)
    rehash(new)
    with open_store(new) as store:
        store.image(0)
    found = diff(old, new)
    assert found.same_content
    assert not found.equal


def test_a_slice_that_is_there_twice_and_another_order(tmp_path: Path) -> None:
    case = make_case(0, depth=4)
    old = run([replace(case, indices=(0, 1, 3)), make_case(1)], tmp_path / "old")
    new = run([make_case(1), replace(case, indices=(0, 2, 3))], tmp_path / "new")
    found = diff(old, new)
    assert changed(found) == {"volume-000": ("slices",)}
    assert found.changed[0].slices == (3, 3)
    assert found.reordered
    path = new / "slices" / "slices-00000.parquet"
    rows = pq.read_table(path)
    numbers = rows.column("slice_index").to_pylist()
    number = rows.schema.get_field_index("slice_index")
    field = rows.schema.field("slice_index")
    twice = [n if n != 2 else 0 for n in numbers]
    pq.write_table(rows.set_column(number, field, pa.array(twice, field.type)), path)
    rehash(new)
    assert diff(new, new).equal
    assert "slices" in changed(diff(old, new))["volume-000"]
    turned = [*numbers[:3], *numbers[:2:-1]]
    pq.write_table(rows.set_column(number, field, pa.array(turned, field.type)), path)
    rehash(new)
    assert "order" in changed(diff(new, old))["volume-000"]


def test_long_lists_are_cut(tmp_path: Path) -> None:
    old = run([make_case(0, depth=1)], tmp_path / "old")
    new = run([make_case(n, depth=1) for n in range(30)], tmp_path / "new")
    lines = diff(old, new).text().splitlines()
    first = lines.index("  added:")
    assert lines[first + 1] == "    volume-001"
    assert lines[first + 20] == "    volume-020"
    assert lines[first + 21] == "    and 9 more"
    assert len(diff(old, new).to_json()["volumes"]["added"]) == 29


def test_no_volume_in_common(tmp_path: Path) -> None:
    a = run([make_case(0)], tmp_path / "a")
    b = run([make_case(1)], tmp_path / "b")
    found = diff(a, b)
    assert (found.added, found.removed, found.same) == (("volume-001",), ("volume-000",), 0)
    assert found.embeddings[0].distance == 0


def test_pictures_in_common_files_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "GROUP_ROWS", 3)
    old = run([make_case(n) for n in range(3)], tmp_path / "old", shard_bytes=1)
    new = merge([old, run([make_case(3)], tmp_path / "3")], tmp_path / "new", shard_bytes=1)
    same = run([make_case(n) for n in range(3)], tmp_path / "same", shard_bytes=1)
    read: list[dict[str, Any]] = []
    original = pq.ParquetFile.read_row_group

    def count(self: Any, *args: Any, **how: Any) -> Any:
        read.append(how)
        return original(self, *args, **how)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", count)
    assert diff(old, same).equal
    assert read == []
    assert diff(old, new).same == 3
    assert [how["columns"] for how in read] == [["image"], ["mask"]]  # of the last file


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    old = run([make_case(0)], tmp_path / "old")
    with pytest.raises(IndexFormatError, match="does not exist"):
        diff(old, tmp_path / "nowhere")
    (old / "README.md").write_text("x")
    with pytest.raises(IndexFormatError, match="bytes"):
        diff(old, old)


def test_stored_numbers_that_differ_by_rounding(tmp_path: Path) -> None:
    old = run([make_case(n) for n in range(2)], tmp_path / "old")
    new = run([make_case(n) for n in range(2)], tmp_path / "new")
    path = new / "embeddings" / "embeddings.safetensors"
    vectors = load_file(path)["embeddings"].copy()
    vectors[4, 0] = np.nextafter(vectors[4, 0], 2, dtype=np.float32)
    save_file({"embeddings": vectors}, path)
    rehash(new)
    found = diff(old, new)
    assert changed(found) == {"volume-001": ("embeddings",)}
    assert found.embeddings[0].distance < 1e-6


def sides(found: IndexDiff, turned: bool = False) -> dict[str, Any]:
    """What a difference says of either index; `turned` gives what the mirror image must say."""
    step = -1 if turned else 1

    def both(old: Any, new: Any) -> tuple[Any, ...]:
        return (old, new)[::step]

    return {
        "folders": both(found.old, found.new),
        "equal": (found.equal, found.same_content, found.same, found.reordered),
        "settings": {(s.field, *both(str(s.old), str(s.new))) for s in found.settings},
        "changes": both(found.changes_removed, found.changes_added),
        "volumes": both({*found.removed}, {*found.added}),
        "changed": {(v.volume_id, v.parts, v.slices[::step], v.distance) for v in found.changed},
        "patients": both(found.patients_removed, found.patients_added),
        "values": {both(v.old, v.new) for v in found.values},
        "numbers": [
            {name: pair[::step] for name, pair in numbers.items()}
            for numbers in (found.counts, found.labels, found.modalities, found.regions)
        ],
        "embeddings": (found.embeddings, {*found.apart}),
        "files": (found.files.same, found.files.changed),
        "other files": both(found.files.removed, found.files.added),
    }


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    drawn=st.tuples(
        *[
            st.tuples(
                st.dictionaries(
                    st.integers(0, 3),
                    st.tuples(
                        st.integers(1, 3),
                        st.booleans(),
                        st.booleans(),
                        st.sampled_from([{1: "RV", 2: "LV"}, {2: "RV", 1: "LV"}, {1: "X"}]),
                    ),
                    min_size=1,
                    max_size=3,
                ),
                st.booleans(),
            )
        ]
        * 2
    )
)
def test_the_other_way_round_it_is_the_mirror_image(
    tmp_path_factory: pytest.TempPathFactory, drawn: Any
) -> None:
    folder = tmp_path_factory.mktemp("x")
    built = []
    for cases, float16 in drawn:
        made = [
            replace(
                make_case(10 * other + number, depth=depth, annotated=annotated, names=names),
                volume_id=f"v{number}",
            )
            for number, (depth, other, annotated, names) in cases.items()
        ]
        built.append(run(made, folder / f"{len(built)}", float16=float16))
    a, b = built
    assert diff(a, a).equal
    there, back = diff(a, b), diff(b, a)
    assert sides(there) == sides(back, turned=True)
    assert there.equal == (contents(a) == contents(b))
    assert there.text()
