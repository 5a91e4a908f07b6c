"""The built-in demo: an index of synthetic phantoms, and queries to try it with."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medretrieval import __version__
from medretrieval.embedders.registry import DEFAULT_EMBEDDER
from medretrieval.errors import IndexFormatError
from medretrieval.folders import cache_dir
from medretrieval.types import LabelVolume, Progress, SlicePolicy, Volume, no_progress

if TYPE_CHECKING:
    from medretrieval.index import Case, IndexStore

logger = logging.getLogger(__name__)

DEMO_SEEDS = range(6)  # cases of the index, per kind
DEMO_QUERY_SEED = 1000  # a case that is not in the index


@dataclass(frozen=True, kw_only=True)
class DemoQuery:
    """A query that the demo offers.

    Attributes:
        truth: label map of the query, None where there is none.
        synthetic: True for phantoms, False for the sample files that pydicom carries.
    """

    title: str
    path: Path
    truth: Path | None
    synthetic: bool


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The built-in demo: an index of synthetic phantoms, and queries that are not in it."""

    index: Path
    queries: tuple[DemoQuery, ...]


def demo_cases(kinds: Iterable[str], seeds: Iterable[int]) -> list[Case]:
    """Phantom cases of every kind and seed, made when they are loaded."""
    from medretrieval.index import Case
    from medretrieval.phantoms import KINDS, make_case

    def case(kind: str, seed: int) -> Case:
        def load() -> tuple[Volume, LabelVolume | None]:
            made = make_case(kind, seed)
            return made.volume, made.labels

        spec = KINDS[kind]
        return Case(
            volume_id=f"synthetic-{kind}-{seed:03d}",
            patient_id=f"synthetic-{kind}-{seed:03d}",
            modality=spec.modality,
            region=spec.region,
            labels=(),
            label_names=dict(spec.labels),
            load=load,
        )

    seeds = list(seeds)
    return [case(kind, seed) for kind in kinds for seed in seeds]


def open_demo(*, rebuild: bool = False, progress: Progress = no_progress) -> Demo:
    """Build the demo on first use, afterwards only check it; return its paths.

    The folder's name carries the version of the package: a new version makes its own demo.
    """
    from medretrieval.embedders import load_embedder
    from medretrieval.index import build, open_store
    from medretrieval.index.sources import SOURCES
    from medretrieval.phantoms import KINDS

    phantoms = SOURCES["phantoms"]
    folder = cache_dir() / f"demo-{__version__}"
    index = folder / "index"
    if rebuild or not _usable(index):
        folder.mkdir(parents=True, exist_ok=True)
        build(
            demo_cases(KINDS, DEMO_SEEDS),
            index,
            embedder=load_embedder(DEFAULT_EMBEDDER),
            slices=SlicePolicy(),
            index_kind="flat",
            name="medretrieval-demo",
            license=phantoms.license,
            source=phantoms.title,
            command="medretrieval demo",
            force=True,
            progress=progress,
        )
    return Demo(index=index, queries=_demo_queries(folder / "queries", open_store(index)))


def _usable(index: Path) -> bool:
    from medretrieval.index import open_store

    try:
        open_store(index)
    except IndexFormatError as error:
        if index.exists():
            logger.warning("the demo index is damaged and is built again: %s", error)
        return False
    return True


def _demo_queries(folder: Path, store: IndexStore) -> tuple[DemoQuery, ...]:
    from pydicom.data import get_testdata_file

    from medretrieval.imaging import write_labels, write_volume
    from medretrieval.phantoms import KINDS, make_case

    folder.mkdir(parents=True, exist_ok=True)
    value_of = {name: value for value, name in store.vocabulary.items()}
    queries = []
    for kind, spec in KINDS.items():
        suffix = ".png" if spec.axis == "picture" else ".nii.gz"
        path, truth = folder / f"{kind}{suffix}", folder / f"{kind}-truth{suffix}"
        if not (path.exists() and truth.exists()):
            case = make_case(kind, DEMO_QUERY_SEED)
            # The same structure has the same value in the index, the truth and a mask made here.
            values = np.zeros(max(case.labels.names) + 1, np.uint8)
            for value, name in case.labels.names.items():
                values[value] = value_of[name]
            labels = LabelVolume(
                voxels=values[case.labels.voxels],
                grid=case.labels.grid,
                names={int(values[v]): name for v, name in case.labels.names.items()},
            )
            write_labels(labels, truth, overwrite=True)
            write_volume(case.volume, path, overwrite=True)
        queries.append(DemoQuery(title=spec.title, path=path, truth=truth, synthetic=True))
    for title, file in (
        ("CT slice (real, pydicom's sample)", "CT_small.dcm"),
        ("MR slice (real, pydicom's sample)", "MR_small.dcm"),
    ):
        found = get_testdata_file(file, download=False)
        if found is not None:
            queries.append(
                DemoQuery(title=title, path=Path(str(found)), truth=None, synthetic=False)
            )
    return tuple(queries)
