"""Correcting, judging and cancelling a mask on the real page in headless Chromium."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import MARKS, SECONDS, downloaded, example

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
expect.set_options(timeout=60 * SECONDS)
pytestmark = MARKS
PICTURE = "#mr-result .mr-stage:not(.mr-plain) .mr-fit"


def click(page: Any, x: float, y: float) -> None:
    """Click at shares of the width and height of the picture."""
    picture = page.locator(PICTURE)
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def test_a_mask_is_corrected_judged_and_used(visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit()
    example(page, 0)
    page.click("#mr-segment-slice")
    expect(page.locator("#mr-segment-status .mr-ok")).to_contain_text("Segmented slice")
    shape = page.evaluate(
        "s => { const i = document.querySelector(s); return [i.naturalWidth, i.naturalHeight]; }",
        f"{PICTURE} img.mr-base",
    )

    # Without a tool a click does nothing; with one, a point is where the click was.
    click(page, 0.5, 0.5)
    page.locator("#mr-tool input[value=positive]").check()
    click(page, 0.25, 0.4)
    mark = page.locator("#mr-result .mr-stage:not(.mr-plain) .mr-positive")
    expect(mark).to_have_count(1)
    expect(page.locator("#mr-segment-status")).to_contain_text("Corrected by you")
    picture, point = page.locator(PICTURE).bounding_box(), mark.bounding_box()
    assert point["x"] + point["width"] / 2 - picture["x"] == pytest.approx(
        0.25 * picture["width"], abs=2
    )
    with open(downloaded(page, "#mr-settings-file", tmp_path)) as file:
        (made,) = json.load(file)["segmentation"]["corrections"]
    (edit,) = made["edits"]
    assert edit["kind"] == "positive"
    assert edit["at"] == pytest.approx([0.25 * shape[0] - 0.5, 0.4 * shape[1] - 0.5], abs=0.5)

    # A box of two clicks, and undo.
    page.locator("#mr-tool input[value=box]").check()
    click(page, 0.3, 0.3)
    expect(page.locator("#mr-segment-status")).to_contain_text("opposite corner")
    click(page, 0.6, 0.6)
    expect(page.locator("#mr-result .mr-stage:not(.mr-plain) .mr-box")).to_have_count(1)
    page.click("#mr-undo")
    expect(page.locator("#mr-result .mr-stage:not(.mr-plain) .mr-box")).to_have_count(0)
    expect(mark).to_have_count(1)

    # How sure it is, with the scale of the map.
    page.click("#mr-check")
    expect(page.locator("#mr-agreement")).to_contain_text("agreement")
    expect(page.locator("#mr-agreement .mr-scale")).to_contain_text("100 %")
    expect(page.locator("#mr-cancel")).to_be_hidden()

    # It joins the support set, which is saved and loaded again.
    page.click("#mr-add-slice")
    cart = page.locator("#mr-cart .mr-card")
    expect(cart).to_have_count(1)
    page.locator("#mr-own button").first.click()
    saved = downloaded(page, "#mr-set-save", tmp_path)
    assert saved.name == "medretrieval-support-set.zip"
    page.click("#mr-clear")
    expect(cart).to_have_count(0)
    with page.expect_file_chooser() as choosing:
        page.click("#mr-set-upload")
    choosing.value.set_files(saved)
    expect(cart).to_have_count(1)


def test_a_segmentation_is_cancelled(visit: Callable[..., Any], real_backend: Any) -> None:
    page = visit()
    example(page, 1)
    page.click("#mr-segment-volume")
    page.click("#mr-cancel")
    status = page.locator("#mr-segment-status")
    expect(status).to_contain_text("Cancelled.")
    expect(page.locator("#mr-cancel")).to_be_hidden()
    expect(page.locator("#mr-result")).to_contain_text("No segmentation yet")
    page.click("#mr-segment-slice")
    expect(status.locator(".mr-ok")).to_contain_text("Segmented slice")
