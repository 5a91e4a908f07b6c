"""A small real demo, and what the tests in a browser do on the page."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from medretrieval.demo import Demo, DemoQuery
from medretrieval.embedders import DEFAULT_EMBEDDER, load_embedder
from medretrieval.imaging import write_labels, write_volume
from medretrieval.index import Case, build
from medretrieval.phantoms import KINDS, make_case
from medretrieval.types import LabelVolume, Progress, SlicePolicy, Volume, no_progress
from medretrieval.ui.backend import Backend

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine (apt install chromium)"),
]
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SECONDS = 1000
DEMO_KINDS = ("mr-heart", "ct-pelvis", "xr-chest")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


class SmallDemo(Backend):
    """The real backend, with a demo of two small phantoms of three kinds."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.built = 0

    def demo(self, progress: Progress = no_progress) -> Demo:
        return self._once.get("demo", self._build, progress)

    def _build(self, progress: Progress) -> Demo:
        self.built += 1
        index = build(
            [demo_case(kind, seed) for kind in DEMO_KINDS for seed in range(2)],
            self.folder / "index",
            embedder=load_embedder(DEFAULT_EMBEDDER),
            slices=SlicePolicy(),
            name="small-demo",
            source="synthetic phantoms",
            progress=progress,
        )
        return Demo(index=index, queries=tuple(map(self._query, DEMO_KINDS)))

    def _query(self, kind: str) -> DemoQuery:
        case = make_case(kind, 1000, quick=True)
        suffix = ".png" if KINDS[kind].axis == "picture" else ".nii.gz"
        path, truth = self.folder / f"{kind}{suffix}", self.folder / f"{kind}-truth{suffix}"
        write_volume(case.volume, path)
        write_labels(case.labels, truth)
        return DemoQuery(title=KINDS[kind].title, path=path, truth=truth, synthetic=True)


def demo_case(kind: str, seed: int) -> Case:
    def load() -> tuple[Volume, LabelVolume | None]:
        made = make_case(kind, seed, quick=True)
        return made.volume, made.labels

    spec = KINDS[kind]
    return Case(
        volume_id=f"synthetic-{kind}-{seed}", patient_id=f"{kind}-{seed}", modality=spec.modality,
        region=spec.region, label_names=dict(spec.labels), load=load,
    )  # fmt: skip


def example(page: Any, number: int) -> None:
    page.locator("#mr-examples button").nth(number).click()
    page.locator("#mr-image-status .mr-ok").wait_for()


def downloaded(page: Any, button: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.click(button)
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def upload(page: Any, path: Path) -> None:
    page.set_input_files("#mr-upload input[type=file]", path)
