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
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medretrieval import __version__
from medretrieval.console import ProgressBar, plain, table
from medretrieval.errors import MedRetrievalError, UsageError
from medretrieval.retrieval.modes import DEFAULT_MODE, MODES

# Named here too, because the table itself (`medretrieval.index.KINDS`) loads faiss.
INDEX_KINDS = ("flat", "hnsw")
# As `medretrieval.imaging.POLICIES`, which loads the readers.
WINDOWS = (
    *("auto", "percentile", "identity"),
    *("ct-lung", "ct-mediastinum", "ct-abdomen", "ct-bone", "ct-brain", "ct-wide"),
)


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
        options.run(options)
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


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON on stdout")
    common.add_argument("--quiet", action="store_true", help="no progress bar on stderr")
    common.add_argument("--debug", action="store_true", help="log details, show tracebacks")

    top = argparse.ArgumentParser(
        prog="medretrieval",
        description="Find similar annotated medical images and segment yours from them with SAM 2. "
        "Research use only. Not for diagnosis.",
    )
    top.add_argument("--version", action="version", version=f"medretrieval {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], None], help: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, parents=[common], help=help, description=help)
        sub.set_defaults(run=run)
        return sub

    demo = command("demo", _demo, "build or open the built-in demo index and print its path")
    demo.add_argument("--force", action="store_true", help="build it again")

    build = command("build", _build, "build an index folder from images and masks")
    build.add_argument("source", metavar="SOURCE", help="folder of images, or a .csv table")
    build.add_argument("out", metavar="OUT", help="the index folder to write")
    build.add_argument("--embedder", default="efficientnet-lite0", metavar="NAME")
    build.add_argument("--masks", metavar="DIR", help="label maps with the images' file names")
    build.add_argument(
        "--table", metavar="CSV", help="table of the cases; its paths are relative to SOURCE"
    )
    build.add_argument("--modality", help="of every image of a folder, e.g. CT")
    build.add_argument("--region", help="body region of every image of a folder")
    build.add_argument(
        "--labels-from-folders", action="store_true", help="sub-folders name the images' labels"
    )
    build.add_argument("--channel", type=int, default=0, help="channel of 4-D volumes (default: 0)")
    build.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="keep only these rows of the table (repeatable)",
    )
    build.add_argument(
        "--label-names", default="", metavar="1=A,2=B", help="names of the mask values"
    )
    build.add_argument("--index", dest="index_kind", choices=INDEX_KINDS, default="flat")
    build.add_argument(
        "--window",
        default="auto",
        metavar="NAME",
        help=f"intensity policy (default: auto): {', '.join(WINDOWS)}",
    )
    build.add_argument(
        "--axis",
        default="acquisition",
        choices=("acquisition", "axial", "coronal", "sagittal"),
        help="the direction in which volumes are sliced",
    )
    build.add_argument("--name", help="name of the index (default: the folder's name)")
    build.add_argument("--license", default="unknown", help="licence of the images")
    build.add_argument("--source", dest="origin", help="where the images come from, for the card")
    build.add_argument("--split", help="which part of a data set this is, for the card")
    build.add_argument("--float16", action="store_true", help="store embeddings at half precision")
    build.add_argument("--skip-bad", action="store_true", help="leave out unreadable cases")
    build.add_argument("--force", action="store_true", help="replace an existing OUT")
    _weights(build)
    _one_slice(build)

    info = command("info", _info, "manifest, counts, size, and what checks out")
    info.add_argument("index", metavar="INDEX")

    search = command("search", _search, "find the most similar slices or volumes")
    search.add_argument("index", metavar="INDEX")
    search.add_argument("query", metavar="QUERY", help="image, volume, DICOM folder or zip")
    search.add_argument("--mode", choices=tuple(MODES), default=DEFAULT_MODE)
    search.add_argument(
        "-k",
        type=_positive,
        default=5,
        help="hits at most, in mode slice for each query slice (default: 5)",
    )
    search.add_argument("--slice", type=int, metavar="N", help="only this slice of the query")
    search.add_argument("--modality", help="only database slices of this modality")
    search.add_argument("--region", help="only database slices of this body region")
    search.add_argument("--labels", type=_names, metavar="A,B", help="only slices that show one")
    _query(search)

    segment = command("segment", _segment, "segment a query from retrieved annotated slices")
    segment.add_argument("index", metavar="INDEX")
    segment.add_argument("query", metavar="QUERY", help="image, volume, DICOM folder or zip")
    segment.add_argument("--out", required=True, metavar="MASK.nii.gz")
    segment.add_argument("--segmenter", default="sam2-micro", metavar="NAME")
    segment.add_argument("--checkpoint", type=Path, metavar="FILE", help="local weights for it")
    segment.add_argument("--support-k", type=_positive, default=8, metavar="K")
    segment.add_argument("--labels", type=_names, metavar="A,B", help="only these structures")
    segment.add_argument("--slice", type=int, metavar="N", help="only this slice of the query")
    segment.add_argument(
        "--truth", type=Path, metavar="MASK", help="a known label map: report the Dice against it"
    )
    segment.add_argument(
        "--truth-names",
        default="",
        metavar="1=A,2=B",
        help="names of the values of --truth (default: as in the index)",
    )
    segment.add_argument("--force", action="store_true", help="replace an existing --out file")
    _query(segment)

    command("embedders", _embedders, "embedders, and what works on this machine now")
    command("segmenters", _segmenters, "segmenters, and what works on this machine now")
    return top


def _weights(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--embedder-weights",
        type=Path,
        metavar="PATH",
        help="local file or folder with the embedder's weights",
    )


def _one_slice(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--allow-one-slice", action="store_true", help="accept a NIfTI volume of a single slice"
    )


def _query(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--channel", type=int, default=0, help="channel of a 4-D query (default: 0)")
    sub.add_argument(
        "--exclude-patient", metavar="ID", help="leave this patient of the index out of the search"
    )
    _weights(sub)
    _one_slice(sub)


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _label_names(text: str, option: str = "--label-names") -> dict[int, str] | None:
    names: dict[int, str] = {}
    for item in _names(text):
        value, equals, name = item.partition("=")
        if not (equals and value.strip().isdecimal() and name.strip()):
            raise UsageError(
                f"{option}: {item!r} is not VALUE=NAME; write for example 1=RV,2=Myo,3=LV"
            )
        names[int(value)] = name.strip()
    return names or None


def _where(items: Sequence[str]) -> dict[str, str] | None:
    pairs = [item.partition("=") for item in items]
    for (column, equals, _), item in zip(pairs, items, strict=True):
        if not (column and equals):
            raise UsageError(f"--where: {item!r} is not COLUMN=VALUE; write e.g. split=database")
    return {column: value for column, _, value in pairs} or None


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
        weights=options.embedder_weights,
        masks=options.masks,
        table=options.table,
        where=_where(options.where),
        modality=options.modality,
        region=options.region,
        labels_from_folders=options.labels_from_folders,
        channel=options.channel,
        label_names=_label_names(options.label_names),
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

    index = open_index(options.index, weights=options.embedder_weights)
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
    from medretrieval.imaging import check_target, read_labels, read_volume, write_labels
    from medretrieval.pipeline import cache_dir, segment
    from medretrieval.retrieval.engine import open_index
    from medretrieval.segmentation import MemoryCache, load_segmenter

    out = Path(options.out)
    query = read_volume(
        options.query, channel=options.channel, allow_one_slice=options.allow_one_slice
    )
    # Before minutes of work for a mask that cannot be written.
    check_target(out, query.grid, overwrite=options.force)
    index = open_index(options.index, weights=options.embedder_weights)
    truth = None
    if options.truth:
        names = _label_names(options.truth_names, "--truth-names")
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
    columns = ["name", "status", "dim", "input", "weights", "revision", "license", "paper"]
    _print(options, rows, lambda: table(rows, columns))


def _segmenters(options: argparse.Namespace) -> None:
    from medretrieval.segmentation import list_segmenters

    rows = list_segmenters()
    columns = ["name", "status", "input", "weights", "revision", "license", "note"]
    _print(options, rows, lambda: table(rows, columns))
