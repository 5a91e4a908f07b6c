"""What the commands of the command line accept."""

from __future__ import annotations

import argparse
from pathlib import Path

from medretrieval import __version__
from medretrieval.embedders.registry import DEFAULT_EMBEDDER
from medretrieval.evaluate_arguments import add_evaluate
from medretrieval.option_values import names, part, positive
from medretrieval.query_arguments import (
    add_device,
    add_embedder,
    add_feedback,
    add_filters,
    add_labels,
    add_one_slice,
    add_query,
    add_ranking,
    add_selection,
)
from medretrieval.retrieval.modes import DEFAULT_MODE
from medretrieval.retrieval.rerank import LOCALIZED_SLICES
from medretrieval.segment_arguments import (
    add_agreement,
    add_loading,
    add_network,
    add_prompts,
    add_supports,
    add_volume,
)
from medretrieval.segmentation.registry import DEFAULT_SEGMENTER
from medretrieval.share_arguments import (
    add_add_embedder,
    add_card,
    add_diff,
    add_drop_embedder,
    add_pull,
    add_push,
    add_remove,
)
from medretrieval.table_command import add_table

# Named here too, because the table itself (`medretrieval.index.KINDS`, and auto) loads faiss.
INDEX_KINDS = ("auto", "flat", "flat-l2", "hnsw", "lsh", "ivf-pq")
# As `medretrieval.imaging.POLICIES`, which loads the readers.
WINDOWS = (
    *("auto", "percentile", "identity"),
    *("ct-lung", "ct-mediastinum", "ct-abdomen", "ct-bone", "ct-brain", "ct-wide"),
)
EXPLAINED_MODE = "rerank"  # it compares all slices with all, as the matrix shows
_SEVERAL = (
    "an index folder, or ORG/NAME[@REVISION] of the Hub; #EMBEDDER behind it for another embedder "
    "than its first; several with commas between them"
)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON on stdout")
    common.add_argument("--quiet", action="store_true", help="no progress bar on stderr")
    common.add_argument("--debug", action="store_true", help="log details, show tracebacks")

    top = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="medretrieval",
        description="Find similar annotated medical images and segment yours from them with SAM 2. "
        "Research use only. Not for diagnosis.",
    )
    top.add_argument("--version", action="version", version=f"medretrieval {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, parents=[common], help=help, description=help, allow_abbrev=False
        )

    demo = command("demo", "build or open the built-in demo index and print its path")
    demo.add_argument("--force", action="store_true", help="build it again")

    build = command("build", "build an index folder from images and masks")
    build.add_argument("source", metavar="SOURCE", help="folder of images, or a .csv table")
    build.add_argument("out", metavar="OUT", help="the index folder to write")
    build.add_argument("--embedder", default=DEFAULT_EMBEDDER, metavar="NAME")
    _cases(build)
    build.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="COLUMN",
        help="store this column of the table too, in clear, to filter by (repeatable)",
    )
    build.add_argument(
        "--index",
        dest="index_kind",
        choices=INDEX_KINDS,
        default="auto",
        help="the kind of search (default: auto, by the number of slices; it says why)",
    )
    _index_options(build)
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
    build.add_argument(
        "--crop",
        default="none",
        choices=("none", "body"),
        help="what of a slice is embedded: all of it (default), or the part that shows the body",
    )
    build.add_argument("--name", help="name of the index (default: the folder's name)")
    build.add_argument("--license", default="unknown", help="licence of the images")
    build.add_argument(
        "--source",
        dest="origin",
        help="where the images come from, for the card; a known source is recognised by its name, "
        "and with it whether pictures may be passed on (docs/sources.md)",
    )
    build.add_argument("--split", help="which part of a data set this is, for the card")
    build.add_argument("--float16", action="store_true", help="store embeddings at half precision")
    build.add_argument("--skip-bad", action="store_true", help="leave out unreadable cases")
    build.add_argument("--force", action="store_true", help="replace an existing OUT")
    _share(build)
    add_embedder(build, precision="float32")
    add_one_slice(build)

    add_table(command("table", "write the table that build takes, of a known data set"))

    merge = command("merge", "write one index with the rows of several, without embedding again")
    merge.add_argument("out", metavar="OUT", help="the index folder to write")
    merge.add_argument("indexes", metavar="INDEX", nargs="+", help="in the order of the rows")
    merge.add_argument(
        "--index",
        dest="index_kind",
        choices=INDEX_KINDS,
        help="the kind of search (default: that of the first)",
    )
    _index_options(merge)
    merge.add_argument(
        "--name",
        help="of the merged index; needed where the indexes have different names. The name of the "
        "first makes its next version",
    )
    merge.add_argument("--force", action="store_true", help="replace an existing OUT")

    _append(command("append", "write a new version of an index with more annotated cases"))

    add_remove(command("remove", "take a patient or some volumes out of an index for good"))
    add_diff(command("diff", "say what differs between two indexes"))

    _memories(command("memories", "compute what SAM 2 remembers of an index's annotated slices"))

    _add_embedder(command("add-embedder", "add the embeddings of one more embedder to an index"))
    add_drop_embedder(
        command("drop-embedder", "take the embeddings of an embedder out of an index")
    )

    add_push(command("push", "publish an index, or a new version of it, on the Hub"))
    add_pull(command("pull", "fetch an index from the Hub into a folder"))
    add_card(command("card", "print or write the dataset card of an index, with evaluations"))

    info = command("info", "manifest, counts, size, and what checks out")
    info.add_argument("index", metavar="INDEX", help=_SEVERAL)

    _search(command("search", "find the most similar slices or volumes"))
    _segment(command("segment", "segment a query from retrieved annotated slices"))
    _explain(command("explain", "show why a query finds a volume: similarities and heat maps"))
    add_evaluate(command("evaluate", "measure methods on annotated data, by a protocol"), common)
    command("embedders", "embedders, and what works on this machine now")
    command("segmenters", "segmenters, and what works on this machine now")
    return top


def _append(append: argparse.ArgumentParser) -> None:
    append.add_argument("index", metavar="INDEX", help="the index folder; it stays as it is")
    append.add_argument("out", metavar="OUT", help="the index folder to write")
    append.add_argument("source", metavar="SOURCE", help="folder of images, or a .csv table")
    _cases(append)
    append.add_argument(
        "--replace",
        action="store_true",
        help="a case of a volume that the index has takes its place",
    )
    append.add_argument(
        "--without-embedder",
        dest="without_embedders",
        action="append",
        default=[],
        metavar="NAME",
        help="the new version lacks the embeddings by this embedder of the index (repeatable)",
    )
    append.add_argument("--note", default="", metavar="TEXT", help="for the list of changes")
    append.add_argument("--skip-bad", action="store_true", help="leave out unreadable cases")
    append.add_argument("--force", action="store_true", help="replace an existing OUT")
    add_embedder(append, precision=None)
    add_one_slice(append)


def _add_embedder(sub: argparse.ArgumentParser) -> None:
    add_add_embedder(sub)
    sub.add_argument(
        "--index",
        dest="index_kind",
        choices=INDEX_KINDS,
        help="the kind of search (default: that of the first embedder)",
    )
    _index_options(sub)
    add_embedder(sub, precision="float32")


def _memories(memories: argparse.ArgumentParser) -> None:
    memories.add_argument("index", metavar="INDEX", help="the index folder to store them in")
    memories.add_argument("--segmenter", default=DEFAULT_SEGMENTER, metavar="NAME")
    add_loading(memories)
    add_device(memories)
    memories.add_argument(
        "--crop",
        choices=("none", "body"),
        default="none",
        help="what of a slice it sees; they serve a segmentation with the same --crop "
        "(default: none)",
    )
    memories.add_argument(
        "--flips",
        action=argparse.BooleanOptionalAction,
        help="also of mirrored slices, for a segmentation with --flips (default: by segmenter)",
    )
    memories.add_argument(
        "--labels", type=names, metavar="A,B", help="only of these structures (default: all)"
    )


def _cases(sub: argparse.ArgumentParser) -> None:
    """Which images and masks, and what is known of them."""
    sub.add_argument("--masks", metavar="DIR", help="label maps with the images' file names")
    sub.add_argument(
        "--table", metavar="CSV", help="table of the cases; its paths are relative to SOURCE"
    )
    sub.add_argument("--modality", help="of every image of a folder, e.g. CT")
    sub.add_argument("--region", help="body region of every image of a folder")
    sub.add_argument(
        "--labels-from-folders", action="store_true", help="sub-folders name the images' labels"
    )
    sub.add_argument(
        "--channel",
        type=int,
        default=0,
        help="of 4-D volumes, where the table does not say it (default: 0)",
    )
    sub.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="keep only these rows of the table (repeatable)",
    )
    sub.add_argument(
        "--label-names", default="", metavar="1=A,2=B", help="names of the mask values"
    )


def _index_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--index-option",
        dest="index_options",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the kind of search, such as efSearch=512 (repeatable)",
    )


def _share(build: argparse.ArgumentParser) -> None:
    """How a build is shared between processes and machines."""
    shared = build.add_argument_group("sharing the work")
    shared.add_argument(
        "--part",
        type=part,
        metavar="I/N",
        help="only the I-th of N blocks of the cases, such as 2/8; merge puts all together",
    )
    shared.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="embed in this process (default), or in several of a Ray cluster",
    )
    shared.add_argument("--workers", type=positive, metavar="N", help="engine ray (default: 2)")
    shared.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="engine ray: a running cluster (default: RAY_ADDRESS, else one is started here)",
    )


def _search(search: argparse.ArgumentParser) -> None:
    search.add_argument("index", metavar="INDEX", help=_SEVERAL)
    search.add_argument(
        "query",
        metavar="QUERY",
        help="image, volume, DICOM folder or zip; or case:VOLUME_ID for a case of the index",
    )
    add_ranking(search, mode=DEFAULT_MODE)
    search.add_argument(
        "--top",
        type=positive,
        default=LOCALIZED_SLICES,
        metavar="L",
        help=f"mode rerank only: slices that localize the query (default: {LOCALIZED_SLICES})",
    )
    search.add_argument(
        "-k",
        type=positive,
        default=5,
        help="hits at most, in mode slice for each query slice (default: 5)",
    )
    search.add_argument(
        "--fuse",
        action="append",
        default=[],
        metavar="INDEX",
        help="another index of the same cases, of another embedder: what both find is ranked "
        "together (repeatable)",
    )
    add_query(search)
    add_selection(search, one="only this slice")
    add_labels(add_filters(search))
    add_feedback(search)


def _segment(segment: argparse.ArgumentParser) -> None:
    segment.add_argument("index", metavar="INDEX", help=_SEVERAL)
    segment.add_argument("query", metavar="QUERY", help="image, volume, DICOM folder or zip")
    segment.add_argument("--out", required=True, metavar="MASK.nii.gz")
    segment.add_argument("--segmenter", default=DEFAULT_SEGMENTER, metavar="NAME")
    add_loading(segment)
    segment.add_argument("--labels", type=names, metavar="A,B", help="only these structures")
    segment.add_argument(
        "--slice",
        type=int,
        metavar="N",
        help="only this slice of the query; with --slice-axis best it counts along that axis",
    )
    segment.add_argument(
        "--truth", type=Path, metavar="MASK", help="a known label map: report the Dice against it"
    )
    segment.add_argument(
        "--truth-names",
        default="",
        metavar="1=A,2=B",
        help="names of the values of --truth (default: as in the index)",
    )
    segment.add_argument(
        "--force", action="store_true", help="replace an existing --out file and --save-supports"
    )
    add_supports(segment)
    add_agreement(segment)
    add_volume(segment)
    add_network(segment)
    add_prompts(segment)
    add_query(segment)
    add_filters(segment)


def _explain(explain: argparse.ArgumentParser) -> None:
    explain.add_argument("index", metavar="INDEX", help=_SEVERAL)
    explain.add_argument("query", metavar="QUERY", help="as for search")
    explain.add_argument(
        "--volume", metavar="ID", help="explain this one (default: the first that --mode finds)"
    )
    explain.add_argument("--out", required=True, metavar="DIR", help="for the pictures and a table")
    explain.add_argument("--force", action="store_true", help="replace files in --out")
    add_ranking(explain, mode=EXPLAINED_MODE, help=f"of the search (default: {EXPLAINED_MODE})")
    add_query(explain)
    add_selection(explain, one="heat maps of this one of them (default: of the best pair)")
    add_labels(add_filters(explain))
    add_feedback(explain)
