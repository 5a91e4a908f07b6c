"""What commands accept about a query and about what of an index may be found, and what it says.

For each group of options a function that adds it, and one that turns it into what the library
takes, so that the same options mean the same in every command.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from medretrieval.embedders.compute import Precision, Runtime
from medretrieval.errors import UsageError
from medretrieval.option_values import label_names, names, positive, span, where
from medretrieval.retrieval.aggregation import DEFAULT_SIGMA
from medretrieval.retrieval.feedback import Feedback
from medretrieval.retrieval.filters import Filters
from medretrieval.retrieval.modes import MODES
from medretrieval.retrieval.selection import DEFAULT_SAMPLE, Selection

if TYPE_CHECKING:
    from medretrieval.retrieval.engine import Index
    from medretrieval.retrieval.query import Query

# As `medretrieval.imaging.ORIENTATIONS`, which loads the readers.
AS_STORED = "as stored"
ORIENTATIONS = (
    *("rotated left", "rotated 180", "rotated right", "flipped left-right", "flipped top-bottom"),
    *("flipped diagonally", "flipped along the other diagonal"),
)


# The embedder


def add_device(sub: argparse.ArgumentParser) -> None:
    """Where embedder and segmenter run; part of `add_embedder`."""
    sub.add_argument("--device", default="cpu", help="where networks run: cpu (default) or cuda")


def add_embedder(sub: argparse.ArgumentParser, *, precision: str | None) -> None:
    """How an embedder is loaded."""
    sub.add_argument(
        "--embedder-weights",
        type=Path,
        metavar="PATH",
        help="local file or folder with the embedder's weights, or its JSON description",
    )
    add_device(sub)
    sub.add_argument(
        "--precision",
        choices=get_args(Precision),
        default=precision,
        help="auto: bfloat16 where the processor gains and embeddings stay "
        f"(default: {precision or 'as the index'})",
    )
    sub.add_argument(
        "--runtime",
        choices=get_args(Runtime),
        default="torch",
        help="openvino compiles the embedder for this CPU (default: torch)",
    )


def embedder_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_embedder` as keyword arguments."""
    return {
        "weights": options.embedder_weights,
        "device": options.device,
        "precision": options.precision,
        "runtime": options.runtime,
    }


# The query


def add_one_slice(sub: argparse.ArgumentParser) -> None:
    """What is read although it may be a mistake."""
    sub.add_argument(
        "--allow-one-slice", action="store_true", help="accept a NIfTI volume of a single slice"
    )


def add_query(sub: argparse.ArgumentParser) -> None:
    """How a query is read and embedded."""
    sub.add_argument("--channel", type=int, default=0, help="channel of a 4-D query (default: 0)")
    sub.add_argument(
        "--orientation",
        default=AS_STORED,
        metavar="NAME",
        help="how the query's slices are turned: any (the way in which they fit the index best), "
        f"or one of {', '.join(ORIENTATIONS)} (default: {AS_STORED})",
    )
    add_embedder(sub, precision=None)
    add_one_slice(sub)


def add_selection(sub: argparse.ArgumentParser, *, one: str) -> None:
    """With which slices of the query to search.

    Args:
        one: what the option --slice is for.
    """
    slices = sub.add_argument_group("which slices of the query")
    slices.add_argument("--slice", type=int, metavar="N", help=one)
    slices.add_argument(
        "--slices", type=span, metavar="A:B", help="only the slices from A to B, both included"
    )
    slices.add_argument(
        "--structure",
        metavar="NAME",
        help="only the smallest run of slices that shows it; also what is localized",
    )
    slices.add_argument(
        "--query-labels", type=Path, metavar="FILE", help="label map that shows the structure"
    )
    slices.add_argument(
        "--query-label-names",
        default="",
        metavar="1=A,2=B",
        help="names of the values of --query-labels (default: as in the index)",
    )
    slices.add_argument(
        "--sample",
        metavar="SAMPLE",
        help="a sample of them: random:N, mm:X (every X mm) or step:N (every N-th) (default: all; "
        f"mode sampled: {DEFAULT_SAMPLE})",
    )
    slices.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of --sample random:N (default: 0)"
    )


def query_and_selection(options: argparse.Namespace, index: Index) -> tuple[Query, Selection]:
    """The query and the options of `add_selection`, but for --slice.

    The query is read here where its label map must be held against it.
    """
    from medretrieval.imaging import read_labels, read_volume
    from medretrieval.retrieval.stored import CASE

    labels = None
    query = options.query
    if options.query_labels is not None:
        if query.startswith(CASE):
            raise UsageError("a case of the index brings its own labels; leave --query-labels out")
        query = read_volume(query, channel=options.channel, allow_one_slice=options.allow_one_slice)
        named = label_names(options.query_label_names, "--query-label-names")
        labels = read_labels(options.query_labels, reference=query.grid)
        labels = replace(labels, names=named or index.store.vocabulary)
    return query, Selection(
        slices=options.slices,
        structure=options.structure,
        labels=labels,
        sample=options.sample,
        seed=options.seed,
    )


# The ranking


def add_ranking(sub: argparse.ArgumentParser, *, mode: str, help: str | None = None) -> None:
    """By what volumes or slices are ranked.

    Args:
        mode: the default.
        help: what the mode is for.
    """
    sub.add_argument("--mode", choices=tuple(MODES), default=mode, help=help)
    sub.add_argument(
        "--sigma",
        type=float,
        default=DEFAULT_SIGMA,
        metavar="S",
        help="mode weighted only: width of the weights as a fraction of the query's slices "
        f"(default: {DEFAULT_SIGMA})",
    )
    sub.add_argument(
        "--candidates",
        type=positive,
        metavar="C",
        help="mode rerank only: re-rank the C volumes with the most hits (default: all that are "
        "hit)",
    )


def add_feedback(sub: argparse.ArgumentParser) -> None:
    """What was judged."""
    judged = sub.add_argument_group("more like this, less like that")
    for name, what in (
        ("--like", "more like this case or slice of the index (repeatable)"),
        ("--unlike", "less like this one, which is left out (repeatable)"),
    ):
        judged.add_argument(
            name, action="append", default=[], metavar="VOLUME_ID[:SLICE]", help=what
        )


def feedback(options: argparse.Namespace) -> Feedback:
    """What was judged, from the options of `add_feedback`."""
    return Feedback(like=tuple(options.like), unlike=tuple(options.unlike))


# What may be found


def add_filters(sub: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What of the index may be found."""
    group = sub.add_argument_group("which slices of the index")
    group.add_argument("--modality", help="only of this modality")
    group.add_argument("--region", help="only of this body region")
    group.add_argument("--patient", metavar="ID", help="only of this patient")
    group.add_argument("--exclude-patient", metavar="ID", help="not of this patient")
    group.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="only with this value of a column that the index stores (repeatable)",
    )
    return group


def add_labels(group: argparse._ArgumentGroup) -> None:
    """The filter by labels; `segment` has another meaning for the option."""
    group.add_argument("--labels", type=names, metavar="A,B", help="only slices that show one")


def filters(options: argparse.Namespace, *, labels: list[str] | None = None) -> Filters:
    """What may be found, from the options of `add_filters`.

    Args:
        labels: of the option of `add_labels`.
    """
    return Filters(
        modality=options.modality,
        region=options.region,
        labels=labels,
        patient=options.patient,
        exclude_patient=options.exclude_patient,
        where=where(options.where) or {},
    )
