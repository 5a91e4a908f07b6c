"""Known sources of images, and whether pictures of them may be passed on."""

from __future__ import annotations

import doctest
import re
from types import ModuleType

import pytest

from medretrieval.index import licenses, sources
from medretrieval.index.licenses import LICENSES, NO_DERIVATIVES, OPEN, license_lines
from medretrieval.index.sources import SOURCES, may_publish_pictures, recognise


def keys(text: str) -> list[str]:
    return [source.key for source in recognise(text)]


def test_rows_are_complete() -> None:
    for key, source in SOURCES.items():
        assert re.fullmatch(r"[a-z0-9-]+", key)
        assert source.homepage == "" or source.homepage.startswith("http")
        assert source.title
        assert source.why
        assert source.citation
        assert source.aliases
        # Terms that allow copies are those of an open licence.
        assert source.images != "allowed" or source.license in OPEN
    assert {source.images for source in SOURCES.values()} == {"allowed", "forbidden", "unknown"}


def test_every_source_is_recognised_by_its_names_and_nothing_else_is() -> None:
    for key, source in SOURCES.items():
        for name in (source.title, key, *source.aliases):
            assert keys(name) == [key], name
        for name in (source.title, *source.aliases):
            assert key in keys(f"slices of {name.upper()}, and of our own"), name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("our hospital", []),
        ("BraTS2021", ["brats"]),
        ("mimic_cxr", ["mimic-cxr"]),
        ("MIMIC-CXR-JPG 2.0", ["mimic-cxr"]),
        ("ACDC; RadImageNet", ["acdc", "radimagenet"]),
        ("radimagenet", ["radimagenet"]),
        ("radiology_ai", ["radimagenet"]),
        ("Task03_Liver", ["msd"]),
        ("TotalSegmentator MRI dataset", ["totalsegmentator-mri"]),
        ("TotalSegmentator CT, TotalSegmentator MRI", ["totalsegmentator", "totalsegmentator-mri"]),
        ("totalsegmentator", ["totalsegmentator"]),
        ("our CT, organs by TotalSegmentator", []),  # the tool made the masks, not the images
        ("macdcx", []),
        ("fetched from Google Drive in chaos", []),
        ("drive", ["drive"]),
        ("demo", []),
    ],
)
def test_whole_words_count(text: str, expected: list[str]) -> None:
    assert keys(text) == expected


@pytest.mark.parametrize(
    ("text", "licence", "allowed"),
    [
        # A source that forbids it wins over all else.
        ("MIMIC-CXR", "cc-by-4.0", "no"),
        ("ACDC, BUSI and CheXpert", "cc0-1.0", "no"),
        ("RadImageNet", "research agreement", "no"),
        # Then one whose terms are not known.
        ("ACDC and BUSI", "cc-by-4.0", "unknown"),
        ("BraTS2021", "cc-by-4.0", "unknown"),
        # Known sources that allow it.
        ("ACDC", "cc-by-nc-sa-4.0", "yes"),
        ("ACDC", "unknown", "yes"),
        ("acdc", "", "yes"),
        ("Medical Segmentation Decathlon, Task09_Spleen", "CC-BY-SA-4.0", "yes"),
        ("ACDC and our hospital", "internal use only", "unknown"),
        ("ACDC", "cc-by-nc-nd-4.0", "unknown"),
        ("synthetic phantoms, computed from formulas; no patient data", "apache-2.0", "yes"),
        # No known source: the licence.
        ("our hospital", "cc-by-4.0", "yes"),
        ("our hospital", " CC0-1.0 ", "yes"),
        ("our hospital", "cc-by-nc-nd-4.0", "unknown"),
        ("our hospital", "unknown", "unknown"),
        ("our hospital", "", "unknown"),
        ("our hospital", "other", "unknown"),
        ("", "", "unknown"),
    ],
)
def test_verdicts(text: str, licence: str, allowed: str) -> None:
    verdict = may_publish_pictures(text, licence)
    assert verdict.allowed == allowed
    assert len(verdict.reason) > 20


def test_reasons_name_the_source_and_its_terms() -> None:
    reason = may_publish_pictures("ACDC, MIMIC-CXR and CheXpert", "cc-by-4.0").reason
    assert "MIMIC-CXR: pictures may not be passed on" in reason
    assert "PhysioNet credentialed" in reason
    assert "Stanford research use agreement" in reason
    assert "ACDC" not in reason
    assert "unverified" in reason
    assert "--source" in may_publish_pictures("scans", "unknown").reason
    assert "no derived works" in may_publish_pictures("scans", "cc-by-nd-4.0").reason
    assert "'internal'" in may_publish_pictures("scans", "internal").reason


def test_licences_are_of_one_kind() -> None:
    assert not OPEN & NO_DERIVATIVES
    assert {name for name in LICENSES if "-nd-" in name} == set(NO_DERIVATIVES)


def test_lines_of_a_licence() -> None:
    assert license_lines(" CC-BY-4.0") == ["license: cc-by-4.0"]
    assert license_lines('of "us": only') == [
        "license: other", 'license_name: "of \\"us\\": only"',
    ]  # fmt: skip


@pytest.mark.parametrize("module", [licenses, sources])
def test_examples(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0
