"""The command line: data on stdout, progress and messages on stderr.

Exit codes: 0 done, 1 failed, 2 wrong use. Each command parses, calls one library function, prints.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medretrieval.arguments import embedder_options, label_names, parser, where
from medretrieval.console import ProgressBar, plain, table
from medretrieval.errors import MedRetrievalError


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    # Native libraries print banners to stderr that no user of a command line needs.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    options = parser().parse_args(args)
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


def _print(options: argparse.Namespace, data: Any, text: Callable[[], str]) -> None:
    print(json.dumps(data, indent=2, ensure_ascii=False) if options.json else text(), flush=True)


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
    _print(options, {"index": str(demo.index), "queries": queries}, lambda: str(demo.index))
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
        masks=options.masks,
        table=options.table,
        where=where(options.where),
        modality=options.modality,
        region=options.region,
        labels_from_folders=options.labels_from_folders,
        channel=options.channel,
        label_names=label_names(options.label_names),
        slices=SlicePolicy(axis=options.axis, window=options.window),
        index_kind=options.index_kind,
        name=options.name,
        license=options.license,
        origin=options.origin,
        split=options.split,
        float16=options.float16,
        force=options.force,
        skip_bad=options.skip_bad,
        allow_one_slice=options.allow_one_slice,
        progress=ProgressBar(quiet=options.quiet),
    )
    _print(options, {"index": str(out)}, lambda: str(out))


def _info(options: argparse.Namespace) -> None:
    from medretrieval.index import open_store

    info = open_store(options.index).info()
    _print(options, info, lambda: "\n".join(f"{key}: {plain(v)}" for key, v in info.items()))


def _search(options: argparse.Namespace) -> None:
    from medretrieval.retrieval.engine import open_index

    index = open_index(options.index, **embedder_options(options))
    result = index.search(
        options.query,
        mode=options.mode,
        k=options.k,
        slice_index=options.slice,
        modality=options.modality,
        region=options.region,
        labels=options.labels,
        exclude_patient=options.exclude_patient,
        channel=options.channel,
        allow_one_slice=options.allow_one_slice,
        progress=ProgressBar(quiet=options.quiet),
    )
    data = result.to_json()
    columns = ["query_slice", "rank", "volume_id", "slice_index", "score", "modality", "region"]
    rows = [
        {**hit, "query_slice": hit["matches"][0]["query_slice"] if hit["matches"] else None}
        for hit in data["hits"]
    ]
    _print(options, data, lambda: table(rows, [*columns, "labels"]) if rows else "no hits")


def _segment(options: argparse.Namespace) -> None:
    from medretrieval.folders import cache_dir
    from medretrieval.imaging import check_target, read_labels, read_volume, write_labels
    from medretrieval.pipeline import segment
    from medretrieval.retrieval.engine import open_index
    from medretrieval.segmentation import MemoryCache, load_segmenter

    out = Path(options.out)
    query = read_volume(
        options.query, channel=options.channel, allow_one_slice=options.allow_one_slice
    )
    # Before minutes of work for a mask that cannot be written.
    check_target(out, query.grid, overwrite=options.force)
    index = open_index(options.index, **embedder_options(options))
    truth = None
    if options.truth:
        names = label_names(options.truth_names, "--truth-names")
        truth = read_labels(options.truth, reference=query.grid)
        truth = replace(truth, names=names or index.store.vocabulary)
    result = segment(
        index,
        query,
        segmenter=load_segmenter(
            options.segmenter,
            checkpoint=options.checkpoint,
            cache=MemoryCache(folder=cache_dir() / "memories"),
        ),
        support_k=options.support_k,
        labels=options.labels,
        indices=None if options.slice is None else [options.slice],
        exclude_patient=options.exclude_patient,
        progress=ProgressBar(quiet=options.quiet),
    )
    write_labels(result.labels, out, overwrite=options.force)
    data = {"query": query.name, "mask": str(out), **result.to_json()}
    columns = ["value", "name", "voxels", "ml"]
    if truth is not None:
        data["dice"] = result.dice(truth)
        columns.append("dice")
    rows = [
        {**row, "dice": data.get("dice", {}).get(row["name"])}
        for row in data["labels"]
        if row["voxels"] or row["name"] in data.get("dice", {})
    ]
    found = table(rows, columns) if rows else "nothing was found"
    _print(options, data, lambda: f"{out}\n{found}")


def _embedders(options: argparse.Namespace) -> None:
    from medretrieval.embedders import list_embedders

    rows = list_embedders()
    columns = ["name", "status", "paper", "dim", "input", "MB", "license", "revision", "weights"]
    short = [{**r, "revision": (r["revision"] or "-")[:12], "MB": r["size_mb"]} for r in rows]
    _print(options, rows, lambda: table(short, columns))


def _segmenters(options: argparse.Namespace) -> None:
    from medretrieval.segmentation import list_segmenters

    rows = list_segmenters()
    columns = ["name", "status", "input", "weights", "revision", "license", "note"]
    _print(options, rows, lambda: table(rows, columns))


COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "demo": _demo,
    "build": _build,
    "info": _info,
    "search": _search,
    "segment": _segment,
    "embedders": _embedders,
    "segmenters": _segmenters,
}
