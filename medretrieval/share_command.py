"""The commands that keep an index in order and make it ready to be shared."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medretrieval.console import ProgressBar, show
from medretrieval.errors import UsageError
from medretrieval.option_values import index_parameters
from medretrieval.query_arguments import embedder_options


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


def push(options: argparse.Namespace) -> None:
    """Publish an index as a data set of the Hub."""
    from medretrieval.index.push import push as publish

    done = publish(
        options.index,
        options.repo,
        private=options.private,
        gate=options.gate,
        images=options.images,
        tables=options.tables,
        squash_history=options.squash_history,
        message=options.message,
        progress=ProgressBar(quiet=options.quiet),
    )
    if done.withheld is not None:
        print(f"published without images and masks: {done.withheld}", file=sys.stderr)
    if not options.quiet:
        print(done.audience(), file=sys.stderr)
    if done.before_removal:
        print(
            f"what this version removed is still in {', '.join(done.before_removal)} there: give "
            "the same command with --squash-history to forget those",
            file=sys.stderr,
        )
    show(options, done.to_json(), lambda: f"{done.repo}@{done.commit} {done.tag}\n{done.url}")


def pull(options: argparse.Namespace) -> None:
    """Fetch an index from the Hub into a folder."""
    from medretrieval.index.pull import pull as fetch

    out = fetch(
        options.source,
        options.out,
        embedders=options.embedders,
        force=options.force,
        progress=ProgressBar(quiet=options.quiet),
    )
    show(options, {"index": str(out)}, lambda: str(out))


def remove(options: argparse.Namespace) -> None:
    """Write a version of an index without a patient, or without some volumes."""
    from medretrieval.index import remove_patient
    from medretrieval.index.manifest import read_manifest

    if options.in_place == (options.out is not None):
        raise UsageError("say where the new version goes: an OUT folder, or --in-place")
    out = remove_patient(
        options.index,
        options.out,
        patient_id=options.patient,
        pseudonym=options.pseudonym,
        volumes=options.volumes,
        note=options.note,
        force=options.force,
        progress=ProgressBar(quiet=options.quiet),
    )
    manifest = read_manifest(out)
    removed = manifest.changes[-1].removed
    data = {"index": str(out), "version": manifest.version, "removed_volumes": removed}
    show(options, data, lambda: str(out))
    old = "" if options.in_place else f"{options.index}, "
    print(
        f"volumes removed: {removed}; {old}copies elsewhere, older versions and backups still "
        "have them until you delete those",
        file=sys.stderr,
    )


def diff(options: argparse.Namespace) -> None:
    """Print what differs between two indexes."""
    from medretrieval.index import diff as compare

    found = compare(options.old, options.new, progress=ProgressBar(quiet=options.quiet))
    show(options, found.to_json(), found.text)


def add_embedder(options: argparse.Namespace) -> None:
    """Add the embeddings of one more embedder to an index."""
    from medretrieval import pipeline

    out = pipeline.add_embedder(
        options.index,
        embedder=options.embedder,
        **embedder_options(options),
        float16=options.float16,
        index_kind=options.index_kind,
        index_parameters=index_parameters(options.index_options),
        note=options.note,
        progress=ProgressBar(quiet=options.quiet),
    )
    _say(options, str(out))


def drop_embedder(options: argparse.Namespace) -> None:
    """Take the embeddings of an embedder out of an index."""
    from medretrieval.index import drop_embedder

    _say(options, str(drop_embedder(options.index, options.embedder, note=options.note)))


def _say(options: argparse.Namespace, index: str) -> None:
    """Print the index and the embedders that it has now."""
    from medretrieval.index.manifest import read_manifest

    names = list(read_manifest(Path(index)).sets)
    data = {"index": index, "embedders": names}
    show(options, data, lambda: f"{index}\nembedders: {', '.join(names)}")
