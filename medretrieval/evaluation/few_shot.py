"""Few-shot segmentation of whole sets, by several methods: RAFS, tables I and III and figure 4."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medretrieval.embedders.registry import DEFAULT_EMBEDDER
from medretrieval.errors import UsageError
from medretrieval.evaluation.cells import Cells, write_json
from medretrieval.evaluation.index_of import open_set
from medretrieval.evaluation.methods import Method, make_segmenter, parse_method, parse_methods
from medretrieval.evaluation.points import draw_points, generator
from medretrieval.evaluation.report import few_shot_report, markdown
from medretrieval.evaluation.scores import score_volume
from medretrieval.evaluation.sets import EvaluationSet, QueryCase
from medretrieval.segmentation.registry import DEFAULT_SEGMENTER
from medretrieval.types import LabelVolume, Progress, Slice, Support, Volume, no_progress

if TYPE_CHECKING:
    from medretrieval.retrieval.engine import Index
    from medretrieval.segmentation.members import BatchSegmenter
    from medretrieval.segmentation.prompts import Prompts

DEFAULT_METHODS = (
    *("retrieved", "random", "multi-atlas", "nearest-mask", "mean-mask"),
    *("points-1", "points-2", "points-1-neg", "points-2-neg"),
)
DEFAULT_CURVE = (2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class FewShotOptions:
    """What is compared, and on how much.

    Attributes:
        methods: as `methods.parse_method` reads them; the first one is what others are compared to.
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
    curve_volumes: int = 4
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
    checkpoint: Path | None = None,
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
        embedder: what supports are retrieved by.
        fresh: make every result again.
        command: what the report says that it was made by.
        progress: told after every volume and method.

    Returns:
        What report.json holds.

    Raises:
        UsageError: nothing to do, an unknown method, no rows in a table.
        InputError: a case cannot be read.
        UnavailableError: a method needs a package that is not installed.
    """
    from medretrieval.segmentation import load_segmenter

    options = options or FewShotOptions()
    if not sets:
        raise UsageError("there is no set to evaluate")
    main = parse_methods(options.methods, options.supports)
    curve = [parse_method(f"retrieved@{k}", k) for k in options.curve]
    if isinstance(segmenter, str):
        segmenter = load_segmenter(segmenter, checkpoint=checkpoint)
    cells = Cells(out / "cells", fresh=fresh)
    results = []
    for chosen in sets:
        study = _Study(chosen, out, segmenter, embedder, options, cells, progress)
        results += study.run(main, curve)
    report = few_shot_report(
        sets,
        results,
        segmenter=segmenter.name,
        embedder=embedder,
        options=asdict(options),
        command=command,
        seed=options.seed,
    )
    write_json(out / "report.json", report)
    (out / "report.md").write_text(markdown(report), encoding="utf-8")
    return report


class _Study:
    """One set: its index, its queries and what is done with them."""

    def __init__(
        self,
        chosen: EvaluationSet,
        out: Path,
        network: BatchSegmenter,
        embedder: str,
        options: FewShotOptions,
        cells: Cells,
        progress: Progress,
    ) -> None:
        self._set = chosen
        self._index = open_set(chosen, out / "indexes", embedder=embedder, progress=progress)
        self._network = network
        self._options = options
        self._cells = cells
        self._progress = progress
        self._every = chosen.every * options.every
        self._stored = cache(self._index.store.support)

    def run(self, main: Sequence[Method], curve: Sequence[Method]) -> list[dict[str, Any]]:
        """One result a query volume and method; `curve` is not run on all volumes."""
        cases = _spread(self._set.queries(), self._options.limit_volumes)
        on_curve = _spread(cases, self._options.curve_volumes)
        results = []
        for number, case in enumerate(cases, start=1):
            query = _Query(case, self._index, self._every, self._options.seed)
            methods = dict.fromkeys(main)
            if case in on_curve:
                methods |= dict.fromkeys(curve)
            largest = max(m.k for m in methods)
            for method in methods:
                result = self._cells.get(
                    self._set.name,
                    str(method),
                    case.volume_id,
                    identity=self._identity(case, method),
                    make=lambda m=method, q=query, k=largest: self._segment(q, m, k),
                )
                results.append(
                    {
                        "set": self._set.name,
                        "method": str(method),
                        "in_table": method in main,
                        "on_curve": method in curve and case in on_curve,
                        **result,
                    }
                )
                done = f"{self._set.name} {case.volume_id} {method}"
                self._progress(number, len(cases), done)
        return results

    def _segment(self, query: _Query, method: Method, largest: int) -> dict[str, Any]:
        """Segment one volume by one method."""
        from medretrieval.segmentation.volume import segment_volume

        model = make_segmenter(method, self._network)
        policy = self._index.manifest.slices
        rows: Mapping[int, Sequence[int]] = {}
        prompts: dict[int, dict[str, Prompts]] = {}
        if method.spec.source == "retrieved":
            rows = {index: found[: method.k] for index, found in query.retrieved(largest).items()}
        elif method.spec.source == "random":
            rows = query.random(method.k)
        else:
            prompts = query.points(self._set.labels, method.spec.positive, method.spec.negative)

        def choose(piece: Slice) -> list[Support]:
            return [self._stored(row) for row in rows.get(piece.index, ())]

        indices = sorted(prompts) if method.spec.source == "points" else query.indices
        start, start_cpu = time.perf_counter(), time.process_time()
        named = any(self._stored(row).names for found in rows.values() for row in found)
        if named or prompts:
            found = segment_volume(
                query.volume, policy, choose, model, indices=indices, prompts=prompts or None
            )
        else:
            found = _nothing(query.volume)
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
        scores = score_volume(
            found, query.truth, self._set.labels, axis=query.axis, indices=query.indices
        )
        return {
            "volume_id": query.case.volume_id,
            "patient": query.patient,
            "slices": len(indices),
            "seconds": round(seconds, 4),
            "cpu_seconds": round(cpu, 4),
            "scores": {label: asdict(score) for label, score in scores.items()},
        }

    def _identity(self, case: QueryCase, method: Method) -> dict[str, Any]:
        """What the result of a volume and a method depends on."""
        manifest = self._index.manifest
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in case.files]
        network = self._network if method.spec.segmenter == "network" else None
        weights = getattr(getattr(network, "network", None), "digest", None)
        return {
            "version": 1,
            "files": files,
            "labels": self._set.labels,
            "every": self._every,
            "method": (str(method), asdict(method.spec)),
            "seed": self._options.seed,
            "index": {name: entry.sha256 for name, entry in manifest.files.items()},
            "segmenter": network and (network.name, weights, repr(getattr(network, "options", ""))),
        }


class _Query:
    """One query volume; read and embedded when the first method needs it."""

    def __init__(self, case: QueryCase, index: Index, every: int, seed: int) -> None:
        self.case = case
        self._index = index
        self._every = every
        self._seed = seed
        self._found: tuple[int, dict[int, list[int]]] = (0, {})

    @cached_property
    def volume(self) -> Volume:
        from medretrieval.imaging import read_volume

        return read_volume(self.case.image, modality=self.case.modality)

    @cached_property
    def truth(self) -> LabelVolume:
        from medretrieval.imaging import read_labels

        return read_labels(self.case.mask, reference=self.volume.grid)

    @cached_property
    def axis(self) -> int:
        from medretrieval.imaging import slice_axis

        return slice_axis(self.volume.grid, self._index.manifest.slices.axis)

    @property
    def indices(self) -> list[int]:
        """The slices that are segmented: every n-th, as far from both ends of the volume."""
        count = self.volume.grid.shape[self.axis]
        return list(range((count - 1) % self._every // 2, count, self._every))

    @property
    def patient(self) -> str:
        """A pseudonym: reports are shared."""
        return self._index.store.pseudonyms(self.case.patient_id)[0]

    @cached_property
    def _allowed(self) -> NDArray[np.bool_]:
        """(rows,) the annotated slices of other patients."""
        store = self._index.store
        own = store.patient.rows_where(store.pseudonyms(self.case.patient_id))
        return np.asarray(store.annotated & ~own)

    def retrieved(self, k: int) -> dict[int, list[int]]:
        """For every slice the rows of its k most similar annotated slices, best first."""
        from medretrieval.retrieval.filters import Filters
        from medretrieval.retrieval.query import embed_query

        if self._found[0] < k:
            own = set(self._index.store.pseudonyms(self.case.patient_id))
            known = not own.isdisjoint(self._index.store.patient.names)
            query = embed_query(
                self.volume,
                self._index.manifest.slices,
                self._index.embedder,
                indices=self.indices,
            )
            found = self._index.supports_each(
                query.embeddings,
                k,
                filters=Filters(exclude_patient=self.case.patient_id if known else None),
            )
            rows = {
                number: own_rows.tolist()
                for number, (own_rows, _) in zip(query.slice_index.tolist(), found, strict=True)
            }
            self._found = (k, rows)
        return self._found[1]

    def random(self, k: int) -> dict[int, list[int]]:
        """For every slice the rows of k annotated slices of other patients, drawn uniformly."""
        rows = np.flatnonzero(self._allowed)
        return {
            index: generator(self._seed, self.case.volume_id, index).permutation(rows)[:k].tolist()
            for index in self.indices
        }

    def points(
        self, labels: Mapping[int, str], positive: int, negative: int
    ) -> dict[int, dict[str, Prompts]]:
        """Points for every structure on every slice that truly shows it."""
        from medretrieval.imaging import extract

        prompts: dict[int, dict[str, Prompts]] = {}
        for index in self.indices:
            shown = extract(self.truth.voxels, self.truth.grid, self.axis, index)
            for value, label in labels.items():
                drawn = draw_points(
                    shown == value,
                    positive=positive,
                    negative=negative,
                    random=generator(self._seed, self.case.volume_id, index, label),
                )
                if drawn is not None:
                    prompts.setdefault(index, {})[label] = drawn
        return prompts


def _nothing(volume: Volume) -> LabelVolume:
    return LabelVolume(voxels=np.zeros(volume.grid.shape, np.uint8), grid=volume.grid, names={})


def _spread(cases: Sequence[QueryCase], most: int) -> list[QueryCase]:
    """At most this many (0: all) of the cases, evenly spread."""
    if not 0 < most < len(cases):
        return list(cases)
    return [cases[round(i)] for i in np.linspace(0, len(cases) - 1, most)]
