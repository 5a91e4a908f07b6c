"""The command `segment`: a query and its supports in, a mask file and a table out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medretrieval.console import ProgressBar, show, table
from medretrieval.errors import UsageError
from medretrieval.option_values import label_names
from medretrieval.query_arguments import AS_STORED, embedder_options, filters
from medretrieval.segment_arguments import (
    given_supports,
    loading_options,
    network_options,
    prompts,
    volume_options,
)

_SAME = 0.9999  # cosine of two embeddings of one picture, read from two files


def segment(options: argparse.Namespace) -> None:
    """Segment a query from annotated slices and write its mask."""
    from medretrieval import pipeline
    from medretrieval.folders import memories_dir
    from medretrieval.imaging import check_target, read_labels, read_volume, write_labels
    from medretrieval.retrieval.engine import open_index
    from medretrieval.segmentation import MemoryCache, load_segmenter
    from medretrieval.segmentation.supports import save_supports
    from medretrieval.segmentation.volume import slicing

    out = Path(options.out)
    query = read_volume(
        options.query, channel=options.channel, allow_one_slice=options.allow_one_slice
    )
    # Before minutes of work for a mask that cannot be written.
    check_target(out, query.grid, overwrite=options.force)
    progress = ProgressBar(quiet=options.quiet)
    index = open_index(options.index, **embedder_options(options), progress=progress)
    truth = None
    if options.truth:
        names = label_names(options.truth_names, "--truth-names")
        truth = read_labels(options.truth, reference=query.grid)
        truth = replace(truth, names=names or index.store.vocabulary)
    pointed = prompts(options)
    policy = slicing(index.manifest.slices, query.grid, volume_options(options))
    supports = given_supports(options, policy, index.store.vocabulary)
    if options.agreement:
        _check_agreement(options, pointed, supports)
    how: dict[str, Any] = {
        "segmenter": load_segmenter(
            options.segmenter,
            **loading_options(options),
            cache=MemoryCache(folder=memories_dir()),
        ),
        "support_k": options.support_k,
        "supports": supports,
        "labels": options.labels,
        "filters": filters(options),
        "how": volume_options(options),
        "options": network_options(options),
        "progress": progress,
    }
    result = pipeline.segment(
        index,
        query,
        sets=options.sets,
        indices=None if options.slice is None else [options.slice],
        orientation=options.orientation,
        prompts=pointed,
        **how,
    )
    write_labels(result.labels, out, overwrite=options.force)
    if options.save_supports:
        used = pipeline.used_supports(index, result, supports)
        save_supports(used, options.save_supports, overwrite=options.force)
    data = {"query": query.name, "mask": str(out), **result.to_json()}
    if any(use.score is not None and use.score >= _SAME for use in result.supports):
        print(
            "medretrieval: a support shows the same picture as the query, which is itself a case "
            "of the index; --exclude-patient leaves its patient out",
            file=sys.stderr,
        )
    if options.agreement:
        found = pipeline.agreement(
            index, query, options.slice, orientation=result.orientation, **how
        )
        data["agreement"] = found.to_json()
    if truth is not None:
        data["dice"] = result.dice(truth)
    show(options, data, lambda: f"{out}\n{_listed(data)}")


def _check_agreement(options: argparse.Namespace, pointed: object, supports: Any) -> None:
    """Refuse what has no agreement before a mask is made and written."""
    if options.slice is None:
        raise UsageError("--agreement is of one slice of the query; say which by --slice")
    if pointed:
        raise UsageError(
            "--agreement says how far a mask depends on its supports; ask for it without points "
            "and boxes"
        )
    count = options.support_k if supports is None else len(supports)
    if count < 2:
        raise UsageError(f"--agreement needs at least 2 supports, there is {count}")


def _listed(data: Mapping[str, Any]) -> str:
    """The structures of a segmentation as a table, with the columns that say something."""
    more = [name for name in ("agreement", "dice") if name in data]
    rows = [
        {**row, **{name: data[name].get(row["name"]) for name in more}}
        for row in data["labels"]
        if row["voxels"] or row["name"] in data.get("dice", {})
    ]
    listed = table(rows, ["value", "name", "voxels", "ml", *more]) if rows else "nothing was found"
    absent = [row["name"] for row in data["labels"] if not row["voxels"]]
    if absent:
        listed += f"\nlooked for, not found: {', '.join(absent)}"
    if data["orientation"] != AS_STORED:
        listed += f"\nsegmented with its slices {data['orientation']}; the mask lies as the query"
    return listed
