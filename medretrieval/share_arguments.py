"""What the commands accept that keep an index in order and make it ready to be shared."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_card(sub: argparse.ArgumentParser) -> None:
    """The arguments of `card`."""
    sub.add_argument("index", metavar="INDEX", help="the index folder")
    sub.add_argument(
        "--report",
        dest="reports",
        type=Path,
        action="append",
        default=[],
        metavar="REPORT.json",
        help="what `evaluate` found, for the card (repeatable); one of the same title is replaced",
    )
    sub.add_argument(
        "--repo",
        metavar="ORG/NAME",
        help="the index is on the Hub, or will be: the examples load it from there, at the tag of "
        "its version (or ORG/NAME@REVISION)",
    )
    sub.add_argument(
        "--write", action="store_true", help="into the index: README.md, and the reports for later"
    )


def add_push(sub: argparse.ArgumentParser) -> None:
    """The arguments of `push`."""
    sub.add_argument("index", metavar="INDEX", help="the index folder")
    sub.add_argument("repo", metavar="ORG/NAME", help="the data set of the Hub; made if need be")
    seen = sub.add_mutually_exclusive_group()
    seen.add_argument(
        "--private",
        dest="private",
        action="store_true",
        default=None,
        help="only its owners see it (default for a new one; an existing one stays as it is)",
    )
    seen.add_argument(
        "--public", dest="private", action="store_false", default=None, help="everyone sees it"
    )
    sub.add_argument(
        "--gate",
        choices=("manual", "auto"),
        help="whoever wants it answers questions first, and is let in by its owners or at once",
    )
    sub.add_argument(
        "--images",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="publish images and masks, or embeddings, positions and labels alone (default: as the "
        "source allows; where that is not known, say it)",
    )
    sub.add_argument(
        "--tables",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="embeddings as parquet and index.faiss for users of datasets (default: yes)",
    )
    sub.add_argument(
        "--squash-history",
        action="store_true",
        help="forget all earlier versions there, as after the removal of a patient",
    )
    sub.add_argument("--message", default="", metavar="TEXT", help="of the commit")


def add_pull(sub: argparse.ArgumentParser) -> None:
    """The arguments of `pull`."""
    sub.add_argument(
        "source", metavar="ORG/NAME[@REVISION]", help="a data set of the Hub; default: its main"
    )
    sub.add_argument("out", metavar="OUT", help="the index folder to write")
    sub.add_argument(
        "--embedder",
        dest="embedders",
        action="append",
        metavar="NAME",
        help="only the embeddings of this one, where there are several (repeatable)",
    )
    sub.add_argument("--force", action="store_true", help="replace an existing OUT")


def add_remove(sub: argparse.ArgumentParser) -> None:
    """The arguments of `remove`."""
    sub.add_argument("index", metavar="INDEX", help="the index folder")
    sub.add_argument(
        "out", metavar="OUT", nargs="?", help="the index folder to write (or give --in-place)"
    )
    who = sub.add_mutually_exclusive_group(required=True)
    who.add_argument("--patient", metavar="ID", help="all of a patient, by the id in the source")
    who.add_argument(
        "--pseudonym", metavar="HEX16", help="all of a patient, by patient_id in the index"
    )
    who.add_argument(
        "--volume",
        dest="volumes",
        action="append",
        metavar="ID",
        help="this volume only (repeatable)",
    )
    sub.add_argument(
        "--in-place",
        action="store_true",
        help="replace INDEX itself; nothing of the old one stays in that folder or beside it",
    )
    sub.add_argument(
        "--note", default="", metavar="TEXT", help="for the list of changes; it must name nobody"
    )
    sub.add_argument("--force", action="store_true", help="replace an existing OUT")


def add_diff(sub: argparse.ArgumentParser) -> None:
    """The arguments of `diff`."""
    sub.add_argument("old", metavar="OLD", help="an index folder")
    sub.add_argument("new", metavar="NEW", help="the index folder that it is compared with")


def add_add_embedder(sub: argparse.ArgumentParser) -> None:
    """Which embeddings are added to which index."""
    sub.add_argument("index", metavar="INDEX", help="the index folder; it is changed in place")
    sub.add_argument(
        "--embedder", required=True, metavar="NAME", help="`medretrieval embedders` lists them"
    )
    sub.add_argument("--float16", action="store_true", help="store them at half precision")
    sub.add_argument("--note", default="", metavar="TEXT", help="for the list of changes")


def add_drop_embedder(sub: argparse.ArgumentParser) -> None:
    """Which embeddings are taken out of which index."""
    sub.add_argument("index", metavar="INDEX", help="the index folder; it is changed in place")
    sub.add_argument(
        "--embedder", required=True, metavar="NAME", help="`medretrieval info INDEX` lists them"
    )
    sub.add_argument("--note", default="", metavar="TEXT", help="for the list of changes")
