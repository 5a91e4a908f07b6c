"""What the commands of the command line accept."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from medretrieval import __version__
from medretrieval.embedders.compute import Precision, Runtime
from medretrieval.embedders.registry import DEFAULT_EMBEDDER
from medretrieval.errors import UsageError
from medretrieval.retrieval.modes import DEFAULT_MODE, MODES
from medretrieval.segmentation.registry import DEFAULT_SEGMENTER

# Named here too, because the table itself (`medretrieval.index.KINDS`) loads faiss.
INDEX_KINDS = ("flat", "hnsw")
# As `medretrieval.imaging.POLICIES`, which loads the readers.
WINDOWS = (
    *("auto", "percentile", "identity"),
    *("ct-lung", "ct-mediastinum", "ct-abdomen", "ct-bone", "ct-brain", "ct-wide"),
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
    _embedder(build, precision="float32")
    _one_slice(build)

    info = command("info", "manifest, counts, size, and what checks out")
    info.add_argument("index", metavar="INDEX")

    search = command("search", "find the most similar slices or volumes")
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

    segment = command("segment", "segment a query from retrieved annotated slices")
    segment.add_argument("index", metavar="INDEX")
    segment.add_argument("query", metavar="QUERY", help="image, volume, DICOM folder or zip")
    segment.add_argument("--out", required=True, metavar="MASK.nii.gz")
    segment.add_argument("--segmenter", default=DEFAULT_SEGMENTER, metavar="NAME")
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

    command("embedders", "embedders, and what works on this machine now")
    command("segmenters", "segmenters, and what works on this machine now")
    return top


def _embedder(sub: argparse.ArgumentParser, *, precision: str | None) -> None:
    sub.add_argument(
        "--embedder-weights",
        type=Path,
        metavar="PATH",
        help="local file or folder with the embedder's weights, or its JSON description",
    )
    sub.add_argument("--device", default="cpu", help="where it runs: cpu (default) or cuda")
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
    """How an embedder is loaded, as keyword arguments."""
    return {
        "weights": options.embedder_weights,
        "device": options.device,
        "precision": options.precision,
        "runtime": options.runtime,
    }


def _one_slice(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--allow-one-slice", action="store_true", help="accept a NIfTI volume of a single slice"
    )


def _query(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--channel", type=int, default=0, help="channel of a 4-D query (default: 0)")
    sub.add_argument(
        "--exclude-patient", metavar="ID", help="leave this patient of the index out of the search"
    )
    _embedder(sub, precision=None)
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


def label_names(text: str, option: str = "--label-names") -> dict[int, str] | None:
    """The names of mask values, written as 1=RV,2=Myo."""
    names: dict[int, str] = {}
    for item in _names(text):
        value, equals, name = item.partition("=")
        if not (equals and value.strip().isdecimal() and name.strip()):
            raise UsageError(
                f"{option}: {item!r} is not VALUE=NAME; write for example 1=RV,2=Myo,3=LV"
            )
        names[int(value)] = name.strip()
    return names or None


def where(items: Sequence[str]) -> dict[str, str] | None:
    """The values that columns of a table must have, each written as COLUMN=VALUE."""
    pairs = [item.partition("=") for item in items]
    for (column, equals, _), item in zip(pairs, items, strict=True):
        if not (column and equals):
            raise UsageError(f"--where: {item!r} is not COLUMN=VALUE; write e.g. split=database")
    return {column: value for column, _, value in pairs} or None
