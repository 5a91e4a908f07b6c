"""Indexes of two labs become one, and patients are found in it by either lab's name for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_fakes import POLICY, FakeEmbedder, make_case

from medretrieval.errors import UsageError
from medretrieval.index import append, build, merge, open_store, pseudonym, remove_patient
from medretrieval.index.manifest import read_manifest
from medretrieval.index.release import make_release


def lab(folder: Path, name: str, numbers: range, **more: Any) -> Path:
    cases = [make_case(number) for number in numbers]
    return build(
        cases,
        folder,
        embedder=FakeEmbedder(),
        slices=POLICY,
        name=name,
        license="cc-by-4.0",
        source=name,
        **more,
    )


@pytest.fixture
def both(tmp_path: Path) -> Path:
    a = lab(tmp_path / "a", "lab a", range(3))
    b = lab(tmp_path / "b", "lab b", range(3, 5))
    return merge([a, b], tmp_path / "both", name="both labs")


def test_different_names_need_a_new_one(tmp_path: Path) -> None:
    a = lab(tmp_path / "a", "lab a", range(2))
    b = lab(tmp_path / "b", "lab b", range(2, 4))
    with pytest.raises(UsageError, match="--name"):
        merge([a, b], tmp_path / "both")
    assert not (tmp_path / "both").exists()
    with pytest.raises(UsageError, match="printable"):
        merge([a, b], tmp_path / "both", name="two\nlines")


def test_rows_and_pseudonyms_stay_as_they_are(both: Path, tmp_path: Path) -> None:
    manifest = read_manifest(both)
    assert (manifest.name, manifest.keys) == ("both labs", ("lab a", "lab b"))
    assert manifest.source == "lab a; lab b"
    with (
        open_store(both, verify="full") as store,
        open_store(tmp_path / "a") as a,
        open_store(tmp_path / "b") as b,
    ):
        assert store.patient.names == [*a.patient.names, *b.patient.names]
        np.testing.assert_array_equal(
            store.embeddings, np.concatenate([a.embeddings, b.embeddings])
        )
        patient = make_case(1).patient_id
        assert store.pseudonyms(patient) == tuple(pseudonym(patient, n) for n in manifest.keys)
        assert store.patient.rows_where(store.pseudonyms(patient)).sum() == 6  # volumes 0 and 1


def test_a_patient_of_either_lab_is_removed_by_the_id(both: Path, tmp_path: Path) -> None:
    # One patient has two volumes: 0 and 1, or 2 and 3, of which each lab has one.
    for removed in ([0, 1], [2, 3], [4]):
        case = make_case(removed[0])
        out = remove_patient(both, tmp_path / f"without-{removed[0]}", patient_id=case.patient_id)
        stay = [make_case(number).volume_id for number in range(5) if number not in removed]
        with open_store(out) as store:
            assert list(store.volume_ids) == stay
            assert store.manifest.keys == ("lab a", "lab b")


def test_a_known_patient_keeps_the_pseudonym(both: Path, tmp_path: Path) -> None:
    """Further volumes join the old ones; somebody new is known by the name of the merged index."""
    old, new = make_case(4), make_case(9)
    again = make_case(8)
    again = type(again)(**{**vars(again), "patient_id": old.patient_id})
    out = append(both, tmp_path / "more", [again, new], embedder=FakeEmbedder())
    with open_store(out) as store:
        names = {v: store.patient[int(np.argmax(store.volume == i))]
                 for i, v in enumerate(store.volume_ids)}  # fmt: skip
        assert names[again.volume_id] == names[old.volume_id] == pseudonym(old.patient_id, "lab b")
        assert names[new.volume_id] == pseudonym(new.patient_id, "both labs")
        assert store.manifest.keys == ("lab a", "lab b", "both labs")
    third = lab(tmp_path / "c", "lab c", range(10, 12))
    whole = merge([out, third], tmp_path / "three", name="three labs")
    assert read_manifest(whole).keys == ("lab a", "lab b", "both labs", "lab c")


def test_an_index_without_pictures_is_kept_in_order_too(tmp_path: Path) -> None:
    """What was published without pictures loses a patient, and is merged with another such one."""
    bare = []
    for place, numbers in (("a", range(4)), ("b", range(4, 6))):
        (tmp_path / f"bare-{place}").mkdir()
        source = lab(tmp_path / place, f"lab {place}", numbers)
        folder = tmp_path / f"bare-{place}"
        bare.append(make_release(source, folder, repo="lab/x", images=False).folder)
    removed = remove_patient(bare[0], tmp_path / "removed", volumes=[make_case(1).volume_id])
    both = merge([removed, bare[1]], tmp_path / "both", name="both")
    with open_store(both, verify="full") as store, open_store(tmp_path / "a") as whole:
        assert len(store.volume_ids) == 5
        assert not store.annotated.any()
        assert not store.has_image(0)
        assert store.labels[1] == whole.labels[1] != ()
        np.testing.assert_array_equal(store.embeddings[:3], whole.embeddings[:3])
        with pytest.raises(UsageError, match="its publisher chose so"):
            store.image(0)
    with pytest.raises(UsageError, match="pictures"):
        merge([tmp_path / "a", bare[1]], tmp_path / "mixed", name="mixed")
    with pytest.raises(UsageError, match="no pictures"):
        append(both, tmp_path / "more", [make_case(9)], embedder=FakeEmbedder())


def test_the_name_of_the_first_makes_its_next_version(tmp_path: Path) -> None:
    a = lab(tmp_path / "a", "hearts", range(3))
    b = lab(tmp_path / "b", "lab b", range(4, 6))
    both = merge([a, b], tmp_path / "both", name="hearts")
    manifest = read_manifest(both)
    (change,) = manifest.changes
    assert (manifest.version, change.version, change.volumes, change.slices) == (2, 2, 2, 6)
    assert change.note == "merged with lab b"
    assert manifest.keys == ("hearts", "lab b")
    assert read_manifest(merge([both], tmp_path / "copy")).version == 2
    parts = [lab(tmp_path / n, "hearts", range(3), part=(k, 2)) for k, n in ((1, "p"), (2, "q"))]
    assert read_manifest(merge(parts, tmp_path / "whole")).version == 1


def test_names_that_cannot_be_published_are_noticed_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = dataclasses.replace(make_case(0), volume_id="1.2.840.113619.2.55.3.604688119.971")
    build([case], tmp_path / "uids", embedder=FakeEmbedder(), slices=POLICY, name="uids")
    assert "1 names of volumes look like a DICOM UID" in caplog.text
    assert "604688119" not in caplog.text
