"""The command `table`: the folder of a known data set in, the table that `build` takes out."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from medretrieval.console import ProgressBar, show
from medretrieval.recipes import LAYOUTS, write_table


def add_table(table: argparse.ArgumentParser) -> None:
    """What the command accepts."""
    titles = "; ".join(f"{layout.name}: {layout.title}" for layout in LAYOUTS.values())
    table.add_argument("layout", metavar="LAYOUT", choices=tuple(LAYOUTS), help=titles)
    table.add_argument("source", metavar="SOURCE", help="the data set, as it is unpacked")
    table.add_argument(
        "out",
        metavar="OUT.csv",
        help="the table to write; files that it needs and the data set lacks go to OUT-files",
    )
    table.add_argument(
        "--skip-missing",
        action="store_true",
        help="leave out cases whose files are not there",
    )
    table.add_argument("--force", action="store_true", help="replace an existing OUT.csv")


def make_table(options: argparse.Namespace) -> None:
    """Write the table and say what it holds."""
    written = write_table(
        options.layout,
        options.source,
        options.out,
        skip_missing=options.skip_missing,
        force=options.force,
        progress=ProgressBar(quiet=options.quiet),
    )
    show(options, {**asdict(written), "table": str(written.table)}, lambda: str(written.table))
    if not options.json:
        left_out = f", {written.missing} left out" if written.missing else ""
        print(
            f"{written.rows} rows, {written.annotated} with a mask, of {written.patients} patients"
            f"{left_out}",
            file=sys.stderr,
        )
