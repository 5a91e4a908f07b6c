"""What `evaluate` accepts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medretrieval.embedders.registry import DEFAULT_EMBEDDER
from medretrieval.errors import UsageError
from medretrieval.evaluation.methods import METHODS
from medretrieval.evaluation.protocols import PROTOCOLS
from medretrieval.option_values import counts, label_names, names, positive, where
from medretrieval.query_arguments import add_device
from medretrieval.segment_arguments import (
    add_loading,
    add_network,
    loading_options,
    network_options,
)
from medretrieval.segmentation.registry import DEFAULT_SEGMENTER

if TYPE_CHECKING:
    from medretrieval.evaluation.few_shot import FewShotOptions
    from medretrieval.evaluation.sets import EvaluationSet


def add_evaluate(evaluate: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """A sub-command for every protocol."""
    protocols = evaluate.add_subparsers(dest="protocol", required=True, metavar="PROTOCOL")
    add = {"few-shot": _few_shot}
    for name, summary in PROTOCOLS.items():
        add[name](
            protocols.add_parser(
                name, parents=[common], help=summary, description=summary, allow_abbrev=False
            )
        )


def _few_shot(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "table",
        metavar="TABLE.csv",
        type=Path,
        help="as for build, with a column split: database rows are retrieved from, query rows, "
        "which need a mask, segmented",
    )
    sub.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="for the report; started again, a command that was stopped goes on from what is there",
    )
    what = sub.add_argument_group("which cases")
    what.add_argument(
        "--sets",
        type=Path,
        metavar="FILE.json",
        help="several sets in one table: name -> "
        '{"where": {column: value}, "labels": {value: name}} (default: the whole table is one set)',
    )
    what.add_argument("--only", type=names, metavar="A,B", help="of --sets only these")
    what.add_argument(
        "--label-names",
        default="",
        metavar="1=A,2=B",
        help="without --sets: names of the mask values to score (default: as the table says)",
    )
    what.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="without --sets: only these rows of the table (repeatable)",
    )
    what.add_argument(
        "--limit-volumes", type=positive, metavar="N", help="at most N query volumes of each set"
    )
    what.add_argument(
        "--every",
        type=positive,
        default=1,
        metavar="N",
        help="only every N-th of the slices that are segmented otherwise",
    )
    how = sub.add_argument_group("what is compared")
    how.add_argument("--segmenter", default=DEFAULT_SEGMENTER, metavar="NAME")
    how.add_argument("--embedder", default=DEFAULT_EMBEDDER, metavar="NAME")
    how.add_argument(
        "--methods",
        type=names,
        metavar="A,B@16",
        help=f"default: all of {', '.join(METHODS)}; @K for K supports",
    )
    how.add_argument(
        "--supports", type=positive, default=8, metavar="K", help="supports a slice (default: 8)"
    )
    how.add_argument(
        "--curve",
        type=counts,
        metavar="2,4,8",
        help="numbers of supports of a curve, 0 for none (default: 2,4,8,16,32)",
    )
    how.add_argument(
        "--curve-volumes",
        type=positive,
        default=2,
        metavar="N",
        help="of how many query volumes of each set the curve is (default: 2)",
    )
    how.add_argument(
        "--agreement",
        type=positive,
        metavar="N",
        help="compare the agreement without each support with the Dice on N slices a volume",
    )
    how.add_argument("--seed", type=int, default=0, help="of random supports, points, bootstrap")
    how.add_argument("--fresh", action="store_true", help="use no results of an earlier run")
    add_loading(sub)
    add_device(sub)
    add_network(sub)


def few_shot_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `evaluation.few_shot.few_shot`, all but the progress."""
    from medretrieval.segmentation import load_segmenter

    return {
        "sets": _sets(options),
        "out": options.out,
        "options": _compared(options),
        "segmenter": load_segmenter(options.segmenter, **loading_options(options)),
        "changes": network_options(options),
        "embedder": options.embedder,
        "fresh": options.fresh,
        "command": options.asked,
    }


def _sets(options: argparse.Namespace) -> list[EvaluationSet]:
    """The sets that the options of few-shot name."""
    from medretrieval.evaluation.sets import one_set, read_sets

    named = label_names(options.label_names)
    if options.sets is None:
        if options.only:
            raise UsageError("--only chooses from the sets of --sets; without it there is one")
        return [one_set(options.table, named, where(options.where))]
    if named or options.where:
        raise UsageError("--sets says which rows and labels; --where and --label-names go without")
    return read_sets(options.table, options.sets, options.only)


def _compared(options: argparse.Namespace) -> FewShotOptions:
    """What the options of few-shot say about methods and amounts."""
    from medretrieval.evaluation.few_shot import DEFAULT_CURVE, DEFAULT_METHODS, FewShotOptions

    return FewShotOptions(
        methods=DEFAULT_METHODS if options.methods is None else options.methods,
        supports=options.supports,
        curve=DEFAULT_CURVE if options.curve is None else options.curve,
        curve_volumes=options.curve_volumes,
        agreement=options.agreement or 0,
        limit_volumes=options.limit_volumes or 0,
        every=options.every,
        seed=options.seed,
    )
