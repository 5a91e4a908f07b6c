"""The command line: data on stdout, progress and messages on stderr.

Exit codes: 0 done, 1 failed, 2 wrong use. Each command parses, calls one library function, prints.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medretrieval.arguments import parser
from medretrieval.console import ProgressBar, plain, show, table
from medretrieval.errors import MedRetrievalError
from medretrieval.evaluate_arguments import few_shot_arguments
from medretrieval.option_values import index_parameters, label_names, where
from medretrieval.query_arguments import (
    AS_STORED,
    embedder_options,
    feedback,
    filters,
    query_and_selection,
)
from medretrieval.segment_arguments import loading_options
from medretrieval.segment_command import segment
from medretrieval.share_command import (
    add_embedder,
    card,
    diff,
    drop_embedder,
    pull,
    push,
    remove,
)
from medretrieval.table_command import make_table

if TYPE_CHECKING:
    from medretrieval.types import SearchResult


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    # Native libraries print banners to stderr that no user of a command line needs.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    options = parser().parse_args(args)
    options.asked = shlex.join(["medretrieval", *(sys.argv[1:] if args is None else args)])
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if options.debug else logging.WARNING,
        format="%(levelname)s: %(message)s",
    )
    if not options.debug:
        # What the readers think of a file is said by our own messages.
        warnings.simplefilter("ignore")
        logging.getLogger("nibabel.global").setLevel(logging.ERROR)
    try:
        COMMANDS[options.command](options)
    except MedRetrievalError as error:
        if options.debug:
            raise
        print(f"medretrieval: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of stdout (head, less) has gone: that is not a failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\nmedretrieval: interrupted", file=sys.stderr)
        return 1
    except Exception as error:
        if options.debug:
            raise
        print(
            f"medretrieval: internal error ({type(error).__name__}: {error}); this is a bug. "
            "Run again with --debug for the details",
            file=sys.stderr,
        )
        return 1
    return 0


def _demo(options: argparse.Namespace) -> None:
    from medretrieval.demo import open_demo

    demo = open_demo(rebuild=options.force, progress=ProgressBar(quiet=options.quiet))
    queries = [
        {
            "title": q.title,
            "path": str(q.path),
            "truth": str(q.truth) if q.truth else None,
            "synthetic": q.synthetic,
        }
        for q in demo.queries
    ]
    show(options, {"index": str(demo.index), "queries": queries}, lambda: str(demo.index))
    if not options.json:
        print(f"queries to try it with: {demo.queries[0].path.parent}", file=sys.stderr)


def _build(options: argparse.Namespace) -> None:
    from medretrieval.pipeline import build_index
    from medretrieval.types import SlicePolicy

    out = build_index(
        options.source,
        options.out,
        embedder=options.embedder,
        **embedder_options(options),
        **_cases(options),
        keep=options.keep,
        slices=SlicePolicy(axis=options.axis, window=options.window, crop=options.crop),
        index_kind=options.index_kind,
        index_parameters=index_parameters(options.index_options),
        name=options.name,
        license=options.license,
        origin=options.origin,
        split=options.split,
        float16=options.float16,
        force=options.force,
        skip_bad=options.skip_bad,
        part=options.part,
        engine=options.engine,
        workers=options.workers,
        ray_address=options.ray_address,
        command=options.asked,
        progress=ProgressBar(quiet=options.quiet),
    )
    _say_how_it_is_searched(out)
    show(options, {"index": str(out)}, lambda: str(out))


def _say_how_it_is_searched(index: Path) -> None:
    """Say on stderr why this kind of search was chosen, and what it finds."""
    from medretrieval.index.manifest import read_manifest

    manifest = read_manifest(index)
    if manifest.index_reason is not None:
        print(f"index kind {manifest.index_kind}: {manifest.index_reason}", file=sys.stderr)
    if manifest.recall is not None:
        found = f"{manifest.recall.recall_at_10:.1%} of the ten most similar slices"
        print(f"index kind {manifest.index_kind} finds {found}", file=sys.stderr)


def _cases(options: argparse.Namespace) -> dict[str, Any]:
    """Which images and masks `build` and `append` take, as keyword arguments."""
    return {
        "masks": options.masks,
        "table": options.table,
        "where": where(options.where),
        "modality": options.modality,
        "region": options.region,
        "labels_from_folders": options.labels_from_folders,
        "channel": options.channel,
        "label_names": label_names(options.label_names),
        "allow_one_slice": options.allow_one_slice,
    }


def _append(options: argparse.Namespace) -> None:
    from medretrieval.pipeline import append_index

    out = append_index(
        options.index,
        options.out,
        options.source,
        **embedder_options(options),
        **_cases(options),
        without_embedders=options.without_embedders,
        replace=options.replace,
        note=options.note,
        force=options.force,
        skip_bad=options.skip_bad,
        progress=ProgressBar(quiet=options.quiet),
    )
    show(options, {"index": str(out)}, lambda: str(out))


def _merge(options: argparse.Namespace) -> None:
    from medretrieval.index import merge

    out = merge(
        options.indexes,
        options.out,
        index_kind=options.index_kind,
        index_parameters=index_parameters(options.index_options),
        name=options.name,
        force=options.force,
        command=options.asked,
        progress=ProgressBar(quiet=options.quiet),
    )
    _say_how_it_is_searched(out)
    show(options, {"index": str(out)}, lambda: str(out))


def _memories(options: argparse.Namespace) -> None:
    from medretrieval.segmentation import load_segmenter
    from medretrieval.segmentation.memories import remember_index

    segmenter = load_segmenter(options.segmenter, **loading_options(options))
    done = remember_index(
        options.index,
        segmenter,
        crop=options.crop,
        flips=options.flips,
        labels=options.labels,
        progress=ProgressBar(quiet=options.quiet),
    )
    data = {"index": options.index, "segmenter": segmenter.name, **done.to_json()}
    show(options, data, lambda: "\n".join(f"{key}: {value}" for key, value in data.items()))


def _info(options: argparse.Namespace) -> None:
    from medretrieval.index import open_stores
    from medretrieval.index.changes import changelog

    progress = ProgressBar(quiet=options.quiet)
    stores = open_stores(options.index, verify="full", progress=progress)
    info = stores.info()
    told = dict(info)
    if "changes" in info:  # in words they are read more easily than as fields
        told["changes"] = "".join(f"\n  {line}" for line in changelog(stores.manifest.changes))
    show(options, info, lambda: "\n".join(f"{key}: {plain(v)}" for key, v in told.items()))


def _search(options: argparse.Namespace) -> None:
    from medretrieval.retrieval.engine import open_index
    from medretrieval.retrieval.fusion import search_fused

    progress = ProgressBar(quiet=options.quiet)
    index = open_index(options.index, **embedder_options(options), progress=progress)
    query, select = query_and_selection(options, index)
    # Local weights are those of one embedder.
    others = {**embedder_options(options), "weights": None}
    fused = [open_index(path, **others, progress=progress) for path in options.fuse]
    search = partial(search_fused, [index, *fused]) if fused else index.search
    result = search(
        query,
        mode=options.mode,
        k=options.k,
        slice_index=options.slice,
        select=select,
        filters=filters(options, labels=options.labels),
        feedback=feedback(options),
        orientation=options.orientation,
        sigma=options.sigma,
        candidates=options.candidates,
        top=options.top,
        channel=options.channel,
        allow_one_slice=options.allow_one_slice,
        progress=progress,
    )
    show(options, result.to_json(), lambda: _hits(result))


def _hits(result: SearchResult) -> str:
    """Hits as a table, with the columns that say something."""
    from medretrieval.retrieval.selection import runs

    columns = ["query_slice", "rank", "volume_id", "slice_index", "score", "modality", "region"]
    rows = []
    for hit in result.hits:
        row = hit.to_json()
        row["query_slice"] = hit.matches[0].query_slice if hit.matches else None
        if hit.localization is not None:
            row["found_on"] = runs(match.slice_index for match in hit.localization.slices)
            row["LR"] = hit.localization.ratio
        row["near_duplicate"] = "yes" if hit.near_duplicate else None
        rows.append(row)
    more = [name for name in ("found_on", "LR") if any(name in row for row in rows)]
    more += ["near_duplicate"] if any(hit.near_duplicate for hit in result.hits) else []
    found = table(rows, [*columns, "labels", *more]) if rows else "no hits"
    turned = result.orientation
    return found if turned == AS_STORED else f"{found}\nslices of the query {turned}"


def _explain(options: argparse.Namespace) -> None:
    from medretrieval.retrieval.engine import open_index
    from medretrieval.retrieval.explanation import write_explanation

    progress = ProgressBar(quiet=options.quiet)
    index = open_index(options.index, **embedder_options(options), progress=progress)
    query, select = query_and_selection(options, index)
    found = write_explanation(
        index,
        query,
        options.out,
        volume_id=options.volume,
        slice_index=options.slice,
        mode=options.mode,
        select=select,
        filters=filters(options, labels=options.labels),
        feedback=feedback(options),
        sigma=options.sigma,
        candidates=options.candidates,
        orientation=options.orientation,
        channel=options.channel,
        allow_one_slice=options.allow_one_slice,
        force=options.force,
        progress=progress,
    )
    show(options, found.to_json(), lambda: "\n".join(map(str, found.files)))
    if found.problem is not None:
        raise found.problem


def _evaluate(options: argparse.Namespace) -> None:
    from medretrieval.evaluation.few_shot import few_shot

    progress = ProgressBar(quiet=options.quiet)
    report = few_shot(**few_shot_arguments(options), progress=progress)
    show(options, report, lambda: str(options.out / "report.md"))


def _embedders(options: argparse.Namespace) -> None:
    from medretrieval.embedders import list_embedders

    rows = list_embedders()
    columns = ["name", "status", "paper", "dim", "input", "MB", "license", "revision", "weights"]
    short = [{**r, "revision": (r["revision"] or "-")[:12], "MB": r["size_mb"]} for r in rows]
    show(options, rows, lambda: table(short, columns))


def _segmenters(options: argparse.Namespace) -> None:
    from medretrieval.segmentation import list_segmenters

    rows = list_segmenters()
    columns = ["name", "status", "input", "weights", "revision", "license", "note"]
    show(options, rows, lambda: table(rows, columns))


COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "demo": _demo,
    "build": _build,
    "table": make_table,
    "merge": _merge,
    "append": _append,
    "remove": remove,
    "diff": diff,
    "memories": _memories,
    "add-embedder": add_embedder,
    "drop-embedder": drop_embedder,
    "push": push,
    "pull": pull,
    "card": card,
    "info": _info,
    "search": _search,
    "segment": segment,
    "explain": _explain,
    "evaluate": _evaluate,
    "embedders": _embedders,
    "segmenters": _segmenters,
}
