"""A page over a tiny real index, with a toy embedder and a toy segmenter in place of networks."""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import nibabel as nib
import numpy as np
import pytest
from browsing import CHROMIUM, DESKTOP, FLAGS, SECONDS, SmallDemo
from numpy.typing import NDArray
from PIL import Image

from medretrieval.demo import Demo, DemoQuery
from medretrieval.imaging import write_volume
from medretrieval.index import Case, build
from medretrieval.retrieval.engine import open_index
from medretrieval.segmentation import SliceSegmentation
from medretrieval.types import (
    EmbedderIdentity,
    Grid,
    LabelVolume,
    Progress,
    SlicePolicy,
    Support,
    Volume,
    no_progress,
)
from medretrieval.ui.actions import Actions
from medretrieval.ui.asked import DEFAULTS as ASKED
from medretrieval.ui.backend import DEMO, DEMO_TITLE, Backend
from medretrieval.ui.corrections import share
from medretrieval.ui.opened import Opened
from medretrieval.ui.options import DEFAULTS
from medretrieval.ui.runs import Run
from medretrieval.ui.session import Session

ROOT = Path(__file__).resolve().parents[2]
POLICY = SlicePolicy(axis="axial", window="percentile", max_side=64)
AFFINE = np.array([[-2.0, 0, 0, 30], [0, -2.5, 0, 30], [0, 0, 5, -10], [0, 0, 0, 1]])


class ToyEmbedder:
    """Means of a 4x4 grid of blocks; counts the pictures that it has seen."""

    batch_size = 8
    identity = EmbedderIdentity(
        name="toy",
        weights="none",
        revision="1",
        weights_sha256="0" * 64,
        preprocessing={},
        pooling="block means",
        dim=17,
    )

    def __init__(self) -> None:
        self.seen = 0

    def embed_batch(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.seen += len(images)
        rows = []
        for image in images:
            grey = np.array(
                Image.fromarray(image).convert("L").resize((4, 4), Image.Resampling.BOX)
            )
            rows.append(np.append(np.asarray(grey).ravel() / 255.0, 0.1))
        vectors = np.array(rows, dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class ToySegmenter:
    """Bright pixels become the first label that the supports show, and prompts are obeyed."""

    name = "toy-segmenter"

    def __init__(self) -> None:
        self.supports: list[Sequence[Support]] = []
        self.prompts: list[Any] = []

    def segment_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        supports: Sequence[Sequence[Support]],
        *,
        labels: Sequence[str] | None = None,
        prompts: Sequence[Any] | None = None,
        progress: Progress = no_progress,
        **changes: Any,
    ) -> list[SliceSegmentation]:
        made = []
        self.prompts.append(prompts)
        for image, chosen in zip(images, supports, strict=True):
            self.supports.append(chosen)
            names = {
                v: n for s in chosen for v, n in s.names.items() if labels is None or n in labels
            }
            value = min(names)
            grey = image if image.ndim == 2 else image[..., 0]
            mask = np.where(grey > 128, value, 0).astype(np.uint8)
            for one in (prompts[len(made)] or {}).values() if prompts else ():
                for inside, places in ((value, one.positive), (0, one.negative)):
                    for x, y in places:
                        mask[round(y), round(x)] = inside
            made.append(
                SliceSegmentation(
                    mask=mask,
                    logits=(mask > 0)[None].astype(np.float32),
                    names={value: names[value]},
                )
            )
            progress(len(made), len(images), "segmenting")
        return made


def block(seed: int, place: tuple[int, int]) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """(24, 20, 5) voxels with a bright block at `place`, and its mask; nothing on slice 0."""
    rng = np.random.default_rng(seed)
    voxels = rng.integers(0, 30, (24, 20, 5)).astype(np.int16)
    mask = np.zeros(voxels.shape, np.uint8)
    x, y = place
    mask[x : x + 8, y : y + 6, 1:] = 1
    voxels[mask == 1] += 200
    return voxels, mask


def case(name: str, seed: int, place: tuple[int, int], label: str, annotated: bool = True) -> Case:
    def load() -> tuple[Volume, LabelVolume | None]:
        voxels, mask = block(seed, place)
        grid = Grid(shape=voxels.shape, affine=AFFINE)
        labels = LabelVolume(voxels=mask, grid=grid, names={1: label})
        return Volume(
            voxels=voxels, grid=grid, modality="CT", name=name
        ), labels if annotated else None

    return Case(
        volume_id=name, patient_id=name, modality="CT", region="abdomen", label_names={1: label},
        load=load,
    )  # fmt: skip


CASES = (
    ("upper-1", 1, (2, 2), "liver", True),
    ("upper-2", 2, (3, 2), "liver", True),
    ("lower-1", 3, (14, 12), "spleen", True),
    ("plain-1", 4, (2, 3), "liver", False),
)


def toy_index(folder: Path, name: str, chosen: slice = slice(None)) -> Path:
    return build(
        [case(*values) for values in CASES[chosen]],
        folder / name, embedder=ToyEmbedder(), slices=POLICY, name=name, license="cc0-1.0",
        source="made for tests",
    )  # fmt: skip


@pytest.fixture(scope="session")
def index_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_index(tmp_path_factory.mktemp("index"), "toy")


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two indexes of two cases each."""
    folder = tmp_path_factory.mktemp("parts")
    return toy_index(folder, "first", slice(0, 2)), toy_index(folder, "second", slice(2, 4))


@pytest.fixture(scope="session")
def queries(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoQuery, ...]:
    folder = tmp_path_factory.mktemp("queries")
    voxels, _ = block(9, (2, 2))
    volume = Volume(voxels=voxels, grid=Grid(shape=voxels.shape, affine=AFFINE), modality="CT")
    write_volume(volume, folder / "volume.nii.gz")
    picture = np.zeros((40, 60), np.uint8)
    picture[5:20, 5:25] = 220
    Image.fromarray(picture).save(folder / "picture.png")
    return (
        DemoQuery(
            title="Synthetic CT of a block",
            path=folder / "volume.nii.gz",
            truth=None,
            synthetic=True,
        ),
        DemoQuery(title="Real picture", path=folder / "picture.png", truth=None, synthetic=False),
    )


class ToyBackend(Backend):
    """The backend with a tiny index as its demo, and toys for networks."""

    def __init__(self, path: Path, queries: tuple[DemoQuery, ...], **options: Any) -> None:
        super().__init__(**options)
        self.path = path
        self.queries = queries
        self.embedder = ToyEmbedder()
        self.model = ToySegmenter()

    def demo(self, progress: Progress = no_progress) -> Demo:
        progress(1, 1, "building the demo")
        return Demo(index=self.path, queries=self.queries)

    def _open(
        self,
        key: str,
        sources: Sequence[str],
        *,
        synthetic: bool,
        progress: Progress = no_progress,
    ) -> Opened:
        index = open_index(sources[0] if len(sources) == 1 else sources, embedder=self.embedder)
        return Opened(key=key, title=DEMO_TITLE, index=index, synthetic=synthetic)

    def _segmenter(self, name: str) -> Any:
        return self.model


@pytest.fixture
def backend(index_path: Path, queries: tuple[DemoQuery, ...]) -> ToyBackend:
    return ToyBackend(index_path, queries)


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    """The folder in which the server stores uploads."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    return folder


class Visitor:
    """Uses the actions as the page does: updates go into the session, the rest is what is shown."""

    STATE = ("query", "found", "cart", "outcome", "feedback")

    def __init__(self, actions: Actions) -> None:
        self.actions = actions
        self.session = Session(index=DEMO)
        self.shown: dict[str, Any] = {}

    def do(self, updates: dict[str, Any]) -> dict[str, Any]:
        state = {name: updates[name] for name in self.STATE if name in updates}
        self.session = Session(
            **{name: state.get(name, getattr(self.session, name)) for name in self.STATE},
            index=self.session.index,
        )
        self.shown |= updates
        return updates

    def example(self, number: int = 0) -> dict[str, Any]:
        return self.do(self.actions.load_example(str(number), DEMO))

    def find(
        self, mode: str = "rerank", k: int = 3, number: int = 2, **options: Any
    ) -> dict[str, Any]:
        """Search; `options` are values of controls under "Search options"."""
        values = ({**DEFAULTS, **options}).values()
        made = self.actions.find(self.session, mode, k, number, *values)
        return self.do(self.actions.show_found(self.session, number, made["new_found"]))

    def rows(self) -> list[dict[str, str]]:
        """The results as exported."""
        text = self.shown["hits_file"].content.decode()
        return list(csv.DictReader(io.StringIO(text)))

    def settings(self) -> dict[str, Any]:
        """The settings as exported."""
        loaded: dict[str, Any] = json.loads(self.shown["settings_file"].content)
        return loaded

    def segment(self, scope: str = "slice", number: int = 2, **options: Any) -> dict[str, Any]:
        """Segment; `options` are values of the controls of `asked.DEFAULTS`."""
        values = {**ASKED, "segmenter": "toy", "support_k": 2, **options}.values()
        made = self.actions.segment(self.session, number, Run(), *values, scope=scope)
        return self.shows(made, number)

    def shows(self, made: dict[str, Any], number: int = 2) -> dict[str, Any]:
        """Show the mask that an action made."""
        if "new_outcome" in made:
            act, new = self.actions.show_outcome, made["new_outcome"]
        else:
            act, new = self.actions.show_correction, made["new_correction"]
        return self.do(act(self.session, "", number, None, new))

    def point(
        self,
        x: float,
        y: float,
        *,
        label: str = "liver",
        tool: str = "positive",
        number: int = 2,
        start: tuple[float, float] | None = None,
        shape: tuple[int, int] = (20, 24),
    ) -> dict[str, Any]:
        """Click on pixel (x, y) of a slice of `shape` (H, W), or draw from `start` to it."""
        made = self.pointed(x, y, label=label, tool=tool, number=number, start=start, shape=shape)
        self.do({k: v for k, v in made.items() if k != "new_correction"})
        return self.shows(made, number) if "new_correction" in made else made

    def pointed(
        self,
        x: float,
        y: float,
        *,
        label: str = "liver",
        tool: str = "positive",
        number: int = 2,
        start: tuple[float, float] | None = None,
        shape: tuple[int, int] = (20, 24),
    ) -> dict[str, Any]:
        """The same, of which nothing is shown yet."""
        places = [share(start or (x, y), shape), share((x, y), shape)]
        corner = self.shown.get("corner")
        return self.actions.point(self.session, places, "", number, label, tool, corner)


@pytest.fixture
def visitor(backend: ToyBackend, uploads: Path) -> Visitor:
    visitor = Visitor(Actions(backend, uploads=uploads))
    visitor.do(visitor.actions.prepare())
    visitor.do(visitor.actions.introduce(DEMO))
    return visitor


_numbers = itertools.count()


@pytest.fixture(scope="session")
def app() -> Iterator[ModuleType]:
    """The module app.py, which is no part of a package."""
    pytest.importorskip("gradio")
    name = f"app_under_test_{next(_numbers)}"
    spec = importlib.util.spec_from_file_location(name, ROOT / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture
def nifti(tmp_path: Path) -> Path:
    """A volume as a NIfTI file whose name and header hold a patient's name."""
    voxels, _ = block(11, (14, 12))
    image = nib.Nifti1Image(voxels, AFFINE)
    image.header["descrip"] = b"Doe^Jane"
    path = tmp_path / "Doe_Jane_1970.nii.gz"
    image.to_filename(path)
    return path


# The page in a browser


@pytest.fixture(scope="session")
def real_backend(tmp_path_factory: pytest.TempPathFactory) -> SmallDemo:
    """The backend of the page in the browser, with real networks."""
    return SmallDemo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def address(app: ModuleType, real_backend: SmallDemo, cache: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(cache))
        page = app.Page(real_backend)
        yield app.launch(page, host="127.0.0.1", port=None)
        page.blocks.close(verbose=False)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Open the page as a new visitor; afterwards nothing was asked of any other host."""
    contexts, elsewhere, errors = [], [], []

    def local(request: Any) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            elsewhere.append(request.url)

    def visit(**options: Any) -> Any:
        context = browser.new_context(**({"viewport": DESKTOP} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60 * SECONDS)
        page.on("request", local)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert elsewhere == []
    assert errors == []
