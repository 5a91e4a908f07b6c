"""The sets of annotated data beside the project, and the indexes of their database patients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medretrieval.console import ProgressBar
from medretrieval.embedders.registry import DEFAULT_EMBEDDER
from medretrieval.evaluation.index_of import open_set
from medretrieval.evaluation.sets import EvaluationSet, read_sets
from medretrieval.retrieval.engine import Index

DEFINITIONS = Path(__file__).with_name("few_shot_sets.json")
# Those that are volumes, which one table lists.
VOLUMES = ("acdc", "hippocampus", "chaos", "openkbp")


def annotated_sets(data: Path, names: Sequence[str]) -> list[EvaluationSet]:
    """The sets with these names of `DEFINITIONS`."""
    return read_sets(data / "volumes.csv", DEFINITIONS, names)


def index_of(chosen: EvaluationSet, folder: Path) -> Index:
    """The index of the database patients of a set, built in `folder` if it is not there."""
    progress = ProgressBar(quiet=False)
    return open_set(chosen, folder, embedder=DEFAULT_EMBEDDER, progress=progress)
