"""The commands that make an index ready to be shared."""

from __future__ import annotations

import argparse
from pathlib import Path

from medretrieval.console import show


def card(options: argparse.Namespace) -> None:
    """Print the card of an index; write it into the index if that is asked for."""
    from medretrieval.evaluation.summary import read_report
    from medretrieval.index.card import dataset_card, with_evaluations, write_card
    from medretrieval.index.manifest import read_manifest

    index = Path(options.index)
    reports = [read_report(path) for path in options.reports]
    written = None
    if options.write:
        written = str(write_card(index, evaluations=reports, repo=options.repo))
        reports = []  # they are in the manifest now
    manifest = with_evaluations(read_manifest(index), reports)
    text = dataset_card(manifest, repo=options.repo)
    show(options, {"card": text, "path": written}, lambda: text.removesuffix("\n"))
