"""Few-shot segmentation of whole sets, by several methods: RAFS, tables I and III and figure 4."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from medretrieval.embedders.registry import DEFAULT_EMBEDDER
from medretrieval.errors import UsageError
from medretrieval.evaluation.cells import Cells, file_name, write_json
from medretrieval.evaluation.index_of import open_set
from medretrieval.evaluation.methods import Method, make_segmenter, parse_method, parse_methods
from medretrieval.evaluation.pages import markdown
from medretrieval.evaluation.report import few_shot_report
from medretrieval.evaluation.sets import EvaluationSet, QueryCase
from medretrieval.segmentation.options import OptionChanges, VolumeOptions
from medretrieval.segmentation.registry import DEFAULT_SEGMENTER
from medretrieval.types import LabelVolume, Progress, Slice, Support, Volume, no_progress

if TYPE_CHECKING:
    from medretrieval.evaluation.queries import Query
    from medretrieval.retrieval.engine import Index
    from medretrieval.segmentation.members import BatchSegmenter
    from medretrieval.segmentation.prompts import Prompts

DEFAULT_METHODS = (
    *("retrieved", "propagated", "random", "multi-atlas", "nearest-mask", "mean-mask"),
    *("points-1", "points-2", "points-1-neg", "points-2-neg"),
)
DEFAULT_CURVE = (2, 4, 8, 16, 32)
AGREEMENT = "agreement"
# Raised when results are computed otherwise than before, so that old ones are not used.
_VERSION = 1

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FewShotOptions:
    """What is compared, and on how much.

    Attributes:
        methods: as `methods.parse_method` reads them; the others are compared to the first.
        supports: how many a slice gets where a method does not say.
        curve: numbers of supports of the curve of the method "retrieved"; empty for no curve.
        curve_volumes: the curve is of this many query volumes of each set; 0 for all.
        agreement: slices of each query volume of which the agreement without each support is
            compared with the Dice; 0 for none.
        limit_volumes: at most this many query volumes of each set, spread evenly; 0 for all.
        every: multiplies `EvaluationSet.every`.
        seed: of random supports, points and bootstrap.
    """

    methods: Sequence[str] = DEFAULT_METHODS
    supports: int = 8
    curve: Sequence[int] = DEFAULT_CURVE
    curve_volumes: int = 2
    agreement: int = 0
    limit_volumes: int = 0
    every: int = 1
    seed: int = 0


def few_shot(
    sets: Sequence[EvaluationSet],
    out: Path,
    *,
    options: FewShotOptions | None = None,
    segmenter: str | BatchSegmenter = DEFAULT_SEGMENTER,
    changes: OptionChanges | None = None,
    embedder: str = DEFAULT_EMBEDDER,
    fresh: bool = False,
    command: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Segment every query volume of every set by every method, and write a report.

    An index is built of the database rows of each set. The supports of a slice are the most similar
    annotated slices of it, of other patients than the query's, whatever the method.

    Args:
        out: folder of report.json, report.md and figures; `indexes` and `cells` in it hold what is
            used again when the same command is given again.
        segmenter: the network under test.
        changes: how it is used, where that differs from its own defaults.
        embedder: what supports are retrieved by.
        fresh: make every result again.
        command: what the report says that it was made by.
        progress: told after every volume and method.

    Returns:
        What report.json holds.

    Raises:
        UsageError: nothing to do, an unknown method, no rows in a table.
        InputError: a case cannot be read.
        UnavailableError: a method or the figures need a package that is not installed.
    """
    from medretrieval.evaluation.figures import draw_figures, pyplot
    from medretrieval.segmentation import load_segmenter

    options = options or FewShotOptions()
    if not sets:
        raise UsageError("there is no set to evaluate")
    methods = parse_methods(options.methods, options.supports)
    if options.agreement and options.supports < 2:
        raise UsageError("the agreement without each support needs at least 2 supports")
    pyplot()  # before hours of work that could not be drawn
    if isinstance(segmenter, str):
        segmenter = load_segmenter(segmenter)
    results, pairs = [], []
    known = []
    for chosen in sets:
        index = open_set(chosen, out / "indexes", embedder=embedder, progress=progress)
        if not chosen.labels:
            chosen = replace(chosen, labels=index.store.vocabulary)
        known.append(chosen)
        study = _Study(chosen, index, out, segmenter, changes or {}, options, fresh, progress)
        found, agreed = study.run(methods)
        results += found
        pairs += agreed
    report = few_shot_report(
        known,
        results,
        pairs,
        segmenter=segmenter.name,
        embedder=embedder,
        changes={name: str(value) for name, value in (changes or {}).items()},
        options={**asdict(options), "methods": list(options.methods), "curve": list(options.curve)},
        command=command,
    )
    write_json(out / "report.json", report)
    (out / "report.md").write_text(markdown(report), encoding="utf-8")
    draw_figures(report, out)
    return report


class _Study:
    """One set: its index, its queries and what is done with them."""

    def __init__(
        self,
        chosen: EvaluationSet,
        index: Index,
        out: Path,
        network: BatchSegmenter,
        changes: OptionChanges,
        options: FewShotOptions,
        fresh: bool,
        progress: Progress,
    ) -> None:
        self._set = chosen
        self._index = index
        self._network = network
        self._changes = changes
        self._options = options
        self._cells = Cells(out / "cells", fresh=fresh)
        self._examples = out / "examples"
        self._progress = progress
        self._every = chosen.every * options.every
        self._stored = cache(self._index.store.support)

    def run(self, main: Sequence[Method]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Scores, one entry a query volume and method; and agreements, one a slice and label."""
        from medretrieval.evaluation.queries import Query

        options = self._options
        curve = [parse_method(f"retrieved@{k}", k) for k in options.curve]
        cases = _spread(self._set.queries(), options.limit_volumes)
        on_curve = _spread(cases, options.curve_volumes)
        todo = [(c, list(dict.fromkeys([*main, *(curve if c in on_curve else ())]))) for c in cases]
        total = sum(len(methods) + bool(options.agreement) for _, methods in todo)
        done = 0
        results: list[dict[str, Any]] = []
        pairs: list[dict[str, Any]] = []
        for case, methods in todo:
            most = max([options.supports, *(method.k for method in methods)])
            query = Query(case, self._index, every=self._every, seed=options.seed, most=most)
            for method in methods:
                make = partial(self._segment, query, method)
                result = self._cells.get(
                    *(self._set.name, str(method), case.volume_id),
                    identity=self._identity(case, method),
                    make=make,
                )
                about = {"set": self._set.name, "method": str(method), "in_table": method in main}
                on = method in curve and case in on_curve
                results.append({**about, "on_curve": on, **result})
                done += 1
                self._progress(done, total, f"{self._set.name} {case.volume_id} {method}")
            if options.agreement:
                method = Method(name="retrieved", k=options.supports)
                found = self._cells.get(
                    *(self._set.name, AGREEMENT, case.volume_id),
                    identity={**self._identity(case, method), "slices": options.agreement},
                    make=partial(self._agree, query, options.supports),
                )
                pairs += [{"set": self._set.name, **pair} for pair in found["pairs"]]
                done += 1
                self._progress(done, total, f"{self._set.name} {case.volume_id} {AGREEMENT}")
        return results, pairs

    def _segment(self, query: Query, method: Method) -> dict[str, Any]:
        """Segment one volume by one method."""
        from medretrieval.evaluation.examples import save_example
        from medretrieval.evaluation.scores import score_volume
        from medretrieval.segmentation.volume import segment_volume

        rows: Mapping[int, Sequence[int]] = {}
        prompts: Mapping[int, Mapping[str, Prompts]] = {}
        spec, labels = method.spec, self._set.labels
        # A slice is helped by its neighbours: what is not scored is segmented all the same.
        indices = query.indices if spec.propagation == "none" else query.every_index
        if spec.source == "retrieved":
            rows = query.retrieved(method.k, indices)
        elif spec.source == "random":
            rows = query.random(method.k)
        else:
            prompts = query.points(labels, spec.positive, spec.negative)
            indices = sorted(prompts)
        volume, truth = query.volume, query.truth

        def choose(piece: Slice) -> list[Support]:
            return [self._stored(row) for row in rows.get(piece.index, ())]

        start, start_cpu = time.perf_counter(), time.process_time()
        if prompts or any(self._stored(row).names for found in rows.values() for row in found):
            found = segment_volume(
                volume,
                self._index.manifest.slices,
                choose,
                make_segmenter(method, self._network),
                how=VolumeOptions(propagation=spec.propagation),
                indices=indices,
                prompts=prompts or None,
                **self._changes,
            )
        else:
            found = _nothing(volume)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
        folder = self._examples / file_name(self._set.name) / file_name(query.case.volume_id)
        save_example(query, found, labels, folder, str(method))
        scores = score_volume(found, truth, labels, axis=query.axis, indices=query.indices)
        return {
            "volume_id": query.case.volume_id,
            "patient": query.patient,
            "slices": len(indices),
            "seconds": round(seconds, 4),
            "cpu_seconds": round(cpu_seconds, 4),
            "scores": {label: asdict(score) for label, score in scores.items()},
        }

    def _agree(self, query: Query, k: int) -> dict[str, Any]:
        """Agreement without each support, and Dice, of some slices of one volume."""
        from medretrieval.evaluation.agreement import agreement_pairs

        indices = _spread(query.indices, self._options.agreement)
        rows, pieces = query.retrieved(k, indices), query.slices(indices)
        supports = [[self._stored(row) for row in rows[piece.index]] for piece in pieces]
        pairs = agreement_pairs(self._network, pieces, supports, self._set.labels, **self._changes)
        return {"pairs": [{"volume_id": query.case.volume_id, **pair} for pair in pairs]}

    def _identity(self, case: QueryCase, method: Method) -> dict[str, Any]:
        """What the result of a volume and a method depends on."""
        stats = [(path.name, path.stat()) for path in (case.image, case.mask)]
        named = method.spec.segmenter == "network"
        return {
            "version": _VERSION,
            "files": [(name, s.st_size, s.st_mtime_ns) for name, s in stats],
            "channel": case.channel,
            "labels": self._set.labels,
            "every": self._every,
            "method": (str(method), asdict(method.spec)),
            "seed": self._options.seed,
            "index": {name: entry.sha256 for name, entry in self._index.manifest.files.items()},
            "segmenter": [_described(self._network), self._changes] if named else None,
        }


def _described(segmenter: BatchSegmenter) -> list[str]:
    """What a result depends on of a segmenter: of a network also its weights and settings."""
    network = getattr(segmenter, "network", None)
    settings = [getattr(network, name, None) for name in ("digest", "image_size", "precision")]
    return [segmenter.name, *map(str, settings), repr(getattr(segmenter, "options", None))]


def _nothing(volume: Volume) -> LabelVolume:
    return LabelVolume(voxels=np.zeros(volume.grid.shape, np.uint8), grid=volume.grid, names={})


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most this many (0: all) of the items, evenly spread."""
    if not 0 < most < len(items):
        return list(items)
    return [items[int((i + 0.5) * len(items) / most)] for i in range(most)]
