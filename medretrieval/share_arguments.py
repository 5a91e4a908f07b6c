"""What the commands accept that make an index ready to be shared."""

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
