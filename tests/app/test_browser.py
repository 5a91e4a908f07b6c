"""The real page in headless Chromium: real readers, real embedder, real sam2-micro, small demo."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from browsing import DESKTOP, MARKS, PHONE, SECONDS, SmallDemo, downloaded, example, upload
from pydicom.data import get_testdata_file

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
expect.set_options(timeout=60 * SECONDS)
pytestmark = MARKS


def test_the_whole_way(visit: Callable[..., Any], real_backend: SmallDemo, tmp_path: Path) -> None:
    page = visit()
    expect(page.get_by_text("Research use only. Not for diagnosis.").first).to_be_visible()
    expect(page.locator("#mr-examples .mr-card")).to_have_count(3)
    assert real_backend.built == 1

    # An example, and its slices.
    query = real_backend.demo().queries[0]
    image, truth = nib.load(query.path), nib.load(query.truth)
    count = image.shape[2]
    here = count // 2 + 1
    example(page, 0)
    shown = page.locator("#mr-viewer .mr-note")
    expect(shown).to_contain_text(f"slice {count // 2} of 0 to {count - 1}")
    page.locator("#mr-slice input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    expect(shown).to_contain_text(f"slice {here} of 0 to {count - 1}")
    # Faster than the answers: the slider is not drawn back.
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(shown).to_contain_text(f"slice {here - 3} of 0 to {count - 1}")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(shown).to_contain_text(f"slice {here} of 0 to {count - 1}")
    expect(page.locator("#mr-slice input[type=range]")).to_have_value(str(here))
    before = page.locator("#mr-viewer img").get_attribute("src")
    page.locator("#mr-window input").click()
    page.get_by_role("option", name="CT bone").click()
    expect(page.locator("#mr-viewer img")).not_to_have_attribute("src", before)

    # Similar cases, and why.
    page.click("#mr-search")
    hits = page.locator("#mr-hits .mr-card")
    expect(hits.first).to_contain_text("synthetic-mr-heart-")
    expect(hits.first).to_contain_text(f"for your {here}")
    expect(hits.first).to_contain_text("LV")
    hits.first.locator(".mr-picture").click()
    expect(page.locator("#mr-why")).to_contain_text("Why #1, synthetic-mr-heart-")

    # The hits as CSV.
    with open(downloaded(page, "#mr-hits-file", tmp_path), newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["volume_id"] for row in rows] == [
        card.locator(".mr-caption span").nth(1).inner_text() for card in hits.all()
    ]

    # The support set.
    cart = page.locator("#mr-cart .mr-card")
    hits.first.get_by_role("button", name="to the support set").click()
    expect(cart).to_have_count(1)
    expect(hits.first).to_contain_text("in the set")
    cart.first.get_by_role("button", name="Remove").click()
    expect(cart).to_have_count(0)
    page.click("#mr-add-all")
    expect(cart).to_have_count(len(rows))

    # One slice.
    page.click("#mr-segment-slice")
    expect(page.locator("#mr-segment-status .mr-ok")).to_contain_text(f"Segmented slice {here}")
    over = page.locator("#mr-result .mr-over")
    expect(over).to_be_visible()
    expect(page.locator("#mr-legend")).to_contain_text("LV")
    page.locator("#mr-opacity input[type=range]").fill("20")
    expect(over).to_have_css("opacity", "0.2")
    expect(page.locator("#mr-result .mr-plain")).to_be_hidden()
    page.check("#mr-side-by-side input")
    expect(page.locator("#mr-result .mr-plain")).to_be_visible()

    # All slices; the mask has the grid of the image, and is a mask of it.
    page.click("#mr-clear")
    expect(cart).to_have_count(0)
    page.click("#mr-segment-volume")
    done = page.locator("#mr-segment-status .mr-ok")
    expect(done).to_contain_text(f"Segmented {count} slices")
    path = downloaded(page, "#mr-mask-file", tmp_path)
    assert path.name == "medretrieval-mask.nii.gz"
    mask = nib.load(path)
    assert mask.shape == image.shape
    assert np.array_equal(mask.affine, image.affine)
    for code in ("qform_code", "sform_code", "xyzt_units"):
        assert mask.header[code] == image.header[code]
    found, true = (np.asarray(m.dataobj) != 0 for m in (mask, truth))
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.5

    # The settings say how all of this was made.
    settings = json.loads(downloaded(page, "#mr-settings-file", tmp_path).read_text())
    assert settings["segmentation"]["segmenter"] == "sam2-micro"
    assert settings["segmentation"]["scope"] == "volume"
    assert settings["index"]["name"] == "small-demo"
    assert [hit["volume_id"] for hit in settings["search"]["hits"]] == [
        r["volume_id"] for r in rows
    ]


def truncated(folder: Path) -> Path:
    image = nib.Nifti1Image(np.arange(8000, dtype=np.int16).reshape(20, 20, 20), np.eye(4))
    data = gzip.compress(image.to_bytes())
    path = folder / "Doe_Jane.nii.gz"
    path.write_bytes(data[: len(data) // 2])
    return path


def renamed(folder: Path) -> Path:
    path = folder / "Doe_Jane.png"
    path.write_text("Dear colleague, please find attached")
    return path


def without_pixels(folder: Path) -> Path:
    found = get_testdata_file("CT_small.dcm", download=False)
    data = pydicom.dcmread(str(found))
    del data.PixelData
    data.PatientName = "Doe^Jane"
    data.save_as(folder / "Doe_Jane.dcm")
    return folder / "Doe_Jane.dcm"


@pytest.mark.parametrize(("make", "words"), [
    (truncated, "truncated"), (renamed, "not"), (without_pixels, "pixel"),
])  # fmt: skip
def test_a_bad_upload_is_explained(
    visit: Callable[..., Any], cache: Path, tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    page = visit()
    upload(page, make(tmp_path))
    alert = page.locator("#mr-image-status [role=alert]")
    expect(alert).to_be_visible()
    expect(alert).to_contain_text("our file")
    expect(alert).to_contain_text(words)
    expect(alert).not_to_contain_text("Traceback")
    expect(page.get_by_test_id("toast-body")).to_contain_text(alert.inner_text().lstrip("!\n "))
    assert "Doe" not in page.inner_text("body")
    left = [path for path in cache.rglob("*Doe*") if path.is_file()]
    assert left == []
    # The page goes on working.
    example(page, 0)
    expect(alert).to_have_count(0)


def test_an_uploaded_dicom_file(visit: Callable[..., Any], cache: Path) -> None:
    page = visit()
    path = Path(str(get_testdata_file("CT_small.dcm", download=False)))
    upload(page, path)
    expect(page.locator("#mr-image-status .mr-ok")).to_contain_text("Your image: CT")
    expect(page.locator("#mr-viewer img")).to_be_visible()
    expect(page.locator("#mr-upload")).not_to_contain_text("CT_small")
    identifiers = [str(pydicom.dcmread(path).get(tag)) for tag in ("PatientName", "PatientID")]
    body = page.inner_text("body")
    assert not [text for text in identifiers if text and text in body]
    assert [f for f in cache.rglob("*") if f.is_file() and "CT_small" in f.name] == []


def test_what_comes_first_is_asked_for(visit: Callable[..., Any]) -> None:
    page = visit()
    page.click("#mr-segment-slice")
    expect(page.locator("#mr-segment-status [role=alert]")).to_contain_text("Load an image first")
    page.click("#mr-search")
    expect(page.locator("#mr-search-status [role=alert]")).to_contain_text("Load an image first")
    page.click("#mr-add-all")
    expect(page.locator("#mr-segment-status [role=alert]")).to_contain_text("find similar cases")


def test_a_picture_from_start_to_mask_by_keyboard(visit: Callable[..., Any]) -> None:
    page = visit()
    page.locator("#mr-examples button").nth(2).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#mr-image-status .mr-ok")).to_contain_text("pixels, spacing unknown")
    expect(page.locator("#mr-segment-volume")).to_be_hidden()
    page.locator("#mr-search").focus()
    page.keyboard.press("Enter")
    add = page.locator("#mr-hits .mr-card").first.get_by_role("button", name="to the support set")
    add.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#mr-cart .mr-card")).to_have_count(1)
    page.locator("#mr-segment-slice").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#mr-legend")).to_contain_text("left lung")
    expect(page.locator("#mr-picture-file")).to_be_enabled()


def test_visitors_do_not_see_each_other(visit: Callable[..., Any]) -> None:
    one, other = visit(), visit()
    expect(other.locator("#mr-examples .mr-card")).to_have_count(3)
    example(one, 1)
    other.click("#mr-search")
    expect(other.locator("#mr-search-status [role=alert]")).to_contain_text("Load an image first")
    expect(other.locator("#mr-viewer img")).to_have_count(0)


CONTRAST = """
(selector) => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const f = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
  };
  const element = document.querySelector(selector);
  let ground = element;
  while (ground && (parse(getComputedStyle(ground).backgroundColor)[3] ?? 1) === 0)
    ground = ground.parentElement;
  const back = ground ? parse(getComputedStyle(ground).backgroundColor) : [255, 255, 255];
  const [a, b] = [light(parse(getComputedStyle(element).color)), light(back)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_readable(visit: Callable[..., Any], scheme: str) -> None:
    page = visit(color_scheme=scheme)
    example(page, 0)
    page.click("#mr-search")
    expect(page.locator("#mr-hits .mr-card").first).to_be_visible()
    page.click("#mr-examples-panel button")
    for selector in (
        "h1", "h2", ".mr-header p", ".mr-limits", ".mr-foot", ".mr-ok", ".mr-caption",
        ".mr-caption span", ".mr-group", ".mr-empty span", "#mr-search", "#mr-segment-volume",
        "#mr-hits button[data-action=add]",
    ):  # fmt: skip
        # WCAG 2.2, 1.4.3 (AA): 4.5 for text, 3 for large text.
        assert page.evaluate(CONTRAST, selector) >= 4.5, selector
    assert page.evaluate(
        "[...document.querySelectorAll('img.mr-base, .mr-cards img')].every(i => i.alt)"
    )


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_is_wider_than_the_screen(visit: Callable[..., Any], viewport: Any) -> None:
    page = visit(viewport=viewport)
    example(page, 0)
    page.click("#mr-search")
    page.locator("#mr-hits .mr-picture").first.click()
    expect(page.locator("#mr-why")).to_contain_text("Why #1")
    page.click("#mr-segment-slice")
    expect(page.locator("#mr-result .mr-over")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    boxes = [page.locator(f"#mr-{name}").bounding_box() for name in ("upload", "index", "cart")]
    if viewport is DESKTOP:
        assert boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"]
    else:
        assert boxes[0]["y"] < boxes[1]["y"] < boxes[2]["y"]
