"""The search options of the real page in headless Chromium."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from browsing import DESKTOP, MARKS, PHONE, SECONDS, SmallDemo, downloaded, example

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
expect.set_options(timeout=60 * SECONDS)
pytestmark = MARKS


def opened(page: Any) -> None:
    """Open the search options."""
    page.click("#mr-options > button")
    expect(page.locator("#mr-opt-modality")).to_be_visible()


def choose(page: Any, box: str, option: str) -> None:
    page.locator(f"#mr-{box} input").click()
    page.get_by_role("option", name=option).click()


def searched(page: Any) -> Any:
    page.click("#mr-search")
    status = page.locator("#mr-search-status .mr-status")
    expect(status).to_contain_text("similar")
    return status


def test_a_part_of_an_image_is_located_in_cases(visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit()
    example(page, 0)
    expect(page.locator("#mr-opt-modality")).to_be_hidden()
    choose(page, "mode", "A part of it, located")
    # The options open by themselves, with a range around the slice that is shown.
    line = page.locator("#mr-in-use")
    expect(line).to_contain_text("slices")
    page.fill("#mr-opt-first input", "2")
    page.keyboard.press("Tab")
    expect(line).to_contain_text("slices 2 to")
    page.click("#mr-opt-last-here")
    here = page.locator("#mr-slice input[type=range]").input_value()
    expect(line).to_contain_text(f"slices 2 to {here}")
    searched(page)
    card = page.locator("#mr-hits .mr-card").first
    expect(card).to_contain_text(f"of {int(here) - 1} slices")
    expect(card).to_contain_text("on its slice")
    settings = json.loads(downloaded(page, "#mr-settings-file", tmp_path).read_text())
    assert settings["search"]["options"]["slices"] == [2, int(here)]
    assert settings["search"]["hits"][0]["localization"]["slices"]
    # A range that does not exist.
    page.fill("#mr-opt-last input", "99")
    page.click("#mr-search")
    expect(page.locator("#mr-search-status [role=alert]")).to_contain_text("no slice 99")
    # The mode cannot do without a part, so that one is filled in again.
    page.click("#mr-opt-reset")
    expect(page.locator("#mr-opt-last input")).not_to_have_value("99")
    expect(line).to_contain_text("slices")
    searched(page)


def test_a_structure_of_an_own_label_map(
    visit: Callable[..., Any], real_backend: SmallDemo, cache: Path
) -> None:
    page = visit()
    example(page, 0)
    opened(page)
    page.get_by_label("Those of a structure").check()
    page.click("#mr-search")
    expect(page.locator("#mr-search-status [role=alert]")).to_contain_text("No label map")
    truth = real_backend.demo().queries[0].truth
    assert truth is not None
    shown = np.flatnonzero((np.asarray(nib.load(truth).dataobj) == 1).any(axis=(0, 1)))
    page.set_input_files("#mr-opt-map input[type=file]", truth)
    expect(page.locator("#mr-search-status .mr-ok")).to_contain_text("Label map with")
    line = page.locator("#mr-in-use")
    expect(line).to_contain_text("slices with")
    searched(page)
    count = int(shown[-1] - shown[0] + 1)
    expect(page.locator("#mr-hits .mr-card").first).to_contain_text(f"of {count}")
    left = [path for path in cache.rglob("*truth*") if path.is_file() and path.stat().st_size]
    assert left == []


def test_filters_of_the_index(visit: Callable[..., Any]) -> None:
    page = visit()
    example(page, 0)
    opened(page)
    choose(page, "opt-region", "pelvis")
    expect(page.locator("#mr-in-use")).to_contain_text("pelvis")
    searched(page)
    cards = page.locator("#mr-hits .mr-card")
    expect(cards.first).to_contain_text("synthetic-ct-pelvis-")
    choose(page, "opt-modality", "MR")
    expect(page.locator("#mr-in-use")).to_contain_text("MR")
    page.click("#mr-search")
    expect(page.locator("#mr-search-status [role=alert]")).to_contain_text("No case passes")
    expect(cards).to_have_count(0)
    choose(page, "opt-column", "case")
    choose(page, "opt-value", "synthetic-mr-heart-1")
    choose(page, "opt-region", "Any region")
    expect(page.locator("#mr-in-use")).to_contain_text("synthetic-mr-heart-1")
    searched(page)
    expect(cards).to_have_count(1)
    expect(cards.first).to_contain_text("synthetic-mr-heart-1")


def test_a_turned_image_is_found_by_its_orientation(
    visit: Callable[..., Any], real_backend: SmallDemo, tmp_path: Path
) -> None:
    image = nib.load(real_backend.demo().queries[0].path)
    turned = nib.Nifti1Image(np.asarray(image.dataobj)[:, ::-1], image.affine, image.header)
    turned.to_filename(tmp_path / "turned.nii.gz")
    page = visit()
    expect(page.locator("#mr-examples .mr-card")).to_have_count(3)
    page.set_input_files("#mr-upload input[type=file]", tmp_path / "turned.nii.gz")
    expect(page.locator("#mr-image-status .mr-ok")).to_be_visible()
    opened(page)
    page.get_by_label("Try all eight orientations").check()
    expect(page.locator("#mr-in-use")).to_contain_text("eight orientations")
    expect(searched(page)).to_contain_text("mirroring it top to bottom")
    page.click("#mr-segment-slice")
    expect(page.locator("#mr-segment-status .mr-status")).to_contain_text("mask turned back")
    expect(page.locator("#mr-result .mr-over")).to_be_visible()


def test_more_like_this_and_why_by_keyboard(visit: Callable[..., Any]) -> None:
    page = visit()
    example(page, 0)
    searched(page)
    cards = page.locator("#mr-hits .mr-card")
    names = [card.locator(".mr-caption span").nth(1).inner_text() for card in cards.all()]
    less = cards.first.get_by_role("button", name="Less like this")
    less.focus()
    page.keyboard.press("Enter")
    chip = page.locator("#mr-chips .mr-chip")
    expect(chip).to_have_count(1)
    expect(less).to_have_attribute("aria-pressed", "true")
    page.locator("#mr-again").focus()
    page.keyboard.press("Enter")
    expect(cards.first).not_to_contain_text(names[0])
    chip.focus()
    page.keyboard.press("Enter")
    expect(chip).to_have_count(0)
    expect(page.locator("#mr-again")).to_be_hidden()
    # Why: the pair, then the matrix and the heat maps of it.
    cards.first.locator(".mr-picture").focus()
    page.keyboard.press("Enter")
    maps = page.locator("#mr-maps")
    expect(maps.locator(".mr-two img")).to_have_count(2)
    enlarge = maps.get_by_role("button", name="Enlarge")
    enlarge.focus()
    page.keyboard.press("Enter")
    expect(maps.locator("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(maps.locator("dialog")).to_be_hidden()


def test_the_image_itself_is_a_near_duplicate(
    visit: Callable[..., Any], real_backend: SmallDemo, tmp_path: Path
) -> None:
    from browsing import demo_case

    from medretrieval.imaging import write_volume

    volume, _ = demo_case("mr-heart", 1).load()
    write_volume(volume, tmp_path / "copy.nii.gz")
    page = visit()
    expect(page.locator("#mr-examples .mr-card")).to_have_count(3)
    page.set_input_files("#mr-upload input[type=file]", tmp_path / "copy.nii.gz")
    expect(page.locator("#mr-image-status .mr-ok")).to_be_visible()
    searched(page)
    first = page.locator("#mr-hits .mr-card").first
    expect(first).to_contain_text("synthetic-mr-heart-1")
    expect(first.locator(".mr-flag")).to_have_text("near duplicate")
    assert "same picture" in first.locator(".mr-flag").get_attribute("title")


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_options_are_no_wider_than_the_screen(visit: Callable[..., Any], viewport: Any) -> None:
    page = visit(viewport=viewport)
    example(page, 0)
    opened(page)
    page.get_by_label("From … to …").check()
    expect(page.locator("#mr-opt-first")).to_be_visible()
    searched(page)
    page.locator("#mr-hits button[data-action=like]").first.click()
    expect(page.locator("#mr-chips .mr-chip")).to_have_count(1)
    page.locator("#mr-hits .mr-picture").first.click()
    expect(page.locator("#mr-maps .mr-two img")).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, textarea')].filter(e => e.offsetParent && "
        "!(e.innerText || e.ariaLabel || e.title || e.labels?.length || "
        "e.getAttribute('aria-labelledby'))).map(e => e.outerHTML.slice(0, 120))"
    )
    assert unnamed == []
