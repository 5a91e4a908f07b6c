"""An embedder and cases for the tests of the index; also used by the build that gets killed."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.errors import InputError
from medretrieval.index.cases import Case
from medretrieval.types import EmbedderIdentity, Grid, LabelVolume, SlicePolicy, Volume

DIM = 12
POLICY = SlicePolicy(axis="axial", window="percentile", max_side=64)


class FakeEmbedder:
    """Seeded random projection of the first 64 pixels; a vector depends on its picture alone."""

    def __init__(
        self,
        *,
        batch_size: int = 4,
        revision: str = "1",
        before: Callable[[int], None] | None = None,
        change: Callable[[NDArray[np.float32]], NDArray[Any]] | None = None,
        name: str = "fake",
        seed: int = 7,
        dim: int = DIM,
    ) -> None:
        self.batch_size = batch_size
        self.batches: list[int] = []
        self.pictures: list[NDArray[np.uint8]] = []
        self._before = before
        self._change = change
        self._name, self._seed, self._dim = name, seed, dim
        self._projection = np.random.default_rng(seed).standard_normal((65, dim))
        self._revision = revision

    @property
    def identity(self) -> EmbedderIdentity:
        return EmbedderIdentity(
            name=self._name,
            weights=f"seed {self._seed}",
            revision=self._revision,
            weights_sha256=f"{self._seed - 7:064x}",
            preprocessing={"mean": (0.5, 0.5), "size": 8},
            pooling="none",
            dim=self._dim,
        )

    def embed_batch(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        if self._before is not None:
            self._before(len(self.batches))
        self.batches.append(len(images))
        self.pictures += list(images)
        vectors = np.stack([self._vector(image) for image in images]).astype(np.float32)
        return vectors if self._change is None else self._change(vectors)

    def _vector(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        pixels = np.zeros(65)
        flat = image.ravel()[:64].astype(float)
        pixels[: len(flat)] = flat - 128
        pixels[64] = 1
        vector = pixels @ self._projection
        return np.asarray(vector / np.linalg.norm(vector))


class FakeVolumeEmbedder:
    """Seeded random projection of mean, spread and size; takes no volume of modality XX."""

    def __init__(self, *, fail_at: int | None = None, unit: str | None = "volume") -> None:
        self.seen: list[Volume] = []
        self._fail_at = fail_at
        self._projection = np.random.default_rng(8).standard_normal((5, DIM))
        self.identity = EmbedderIdentity(
            name="fake-volumes",
            weights="seed 8",
            revision="1",
            weights_sha256="1" * 64,
            preprocessing={} if unit is None else {"unit": unit, "spacing_mm": (2.0, 2.0, 2.0)},
            pooling="none",
            dim=DIM,
        )

    def embed_volume(self, volume: Volume) -> NDArray[np.float32]:
        if volume.modality == "XX":
            raise InputError(f"{volume.name} is no volume for this embedder")
        if self._fail_at == len(self.seen):
            raise RuntimeError("the machine fails")
        self.seen.append(volume)
        voxels = volume.voxels.astype(float)
        vector = np.array([voxels.mean(), voxels.std(), *volume.grid.shape]) @ self._projection
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def kill_at(batch: int) -> Callable[[int], None]:
    """Kill this process, as a power cut would, when batch number `batch` is about to start."""

    def before(number: int) -> None:
        if number == batch:
            os.kill(os.getpid(), signal.SIGKILL)

    return before


def kill_once(batch: int, marker: Path) -> Callable[[int], None]:
    """As `kill_at`, but only the first process that comes there; it leaves the file `marker`."""

    def before(number: int) -> None:
        if number == batch:
            try:
                marker.touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

    return before


def make_case(
    number: int,
    *,
    depth: int = 3,
    annotated: bool = True,
    names: dict[int, str] | None = None,
    values: Sequence[int] = (1, 2),
    labels: tuple[str, ...] = (),
    color: bool = False,
    load_error: Exception | None = None,
) -> Case:
    """A random volume of `depth` slices; its first slice never shows a structure."""
    rng = np.random.default_rng(number)
    shape = (9, 11, depth)
    grid = Grid(shape=shape, affine=np.diag([-1.5, -1.5, 4.0, 1.0]))
    if color:
        voxels: NDArray[Any] = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    else:
        voxels = rng.normal(100, 30, shape).astype(np.float32)
    mask = rng.choice([0, *values], size=shape).astype(np.uint32)
    mask[..., 0] = 0

    def load() -> tuple[Volume, LabelVolume | None]:
        if load_error is not None:
            raise load_error
        volume = Volume(voxels=voxels, grid=grid, color=color, modality="MR", name=f"v{number}")
        found = {int(v): f"label_{v}" for v in np.unique(mask) if v}
        return volume, LabelVolume(voxels=mask, grid=grid, names=found) if annotated else None

    return Case(
        volume_id=f"volume-{number:03d}",
        patient_id=f"Mueller^Anna-{number // 2}",
        region="chest" if number % 2 else "head",
        labels=labels,
        label_names={1: "RV", 2: "LV"} if names is None else names,
        load=load,
    )


def killed_cases() -> list[Case]:
    """The cases of the build that gets killed: of 1 to 5 slices, some structures without a name."""
    return [
        make_case(n, depth=1 + n % 5, annotated=n % 3 != 0, values=(1, 2, 7 + n)) for n in range(12)
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def rehash(folder: Path) -> None:
    """Make the manifest agree with the files again, as a deliberate forger would."""

    def change(data: dict[str, Any]) -> None:
        for name, entry in data["files"].items():
            content = (folder / name).read_bytes()
            entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    edit_manifest(folder, change)
