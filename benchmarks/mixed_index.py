"""Whether a query finds its own kind in one index of several annotated sets.

For every query volume it is counted whether the first hit of a search is of the same modality, body
region and set.

    python -m benchmarks.mixed_index --data ../shared/data --out runs/mixed
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from benchmarks.annotated import VOLUMES, annotated_sets
from medretrieval.console import ProgressBar, table
from medretrieval.imaging import read_volume
from medretrieval.pipeline import build_index
from medretrieval.retrieval.engine import open_index

SAME = ("modality", "region", "organ")
MODES = ("count", "weighted", "rerank")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/mixed"))
    parser.add_argument("--sets", nargs="+", choices=VOLUMES, default=list(VOLUMES))
    options = parser.parse_args()
    cases = options.data / "volumes.csv"
    combined = options.out / "index"
    if not combined.exists():
        build_index(cases, combined, where={"split": "database"}, progress=ProgressBar(quiet=False))
    index = open_index(combined)
    with cases.open(newline="") as file:
        kind = {row["volume_id"]: row for row in csv.DictReader(file)}
    rows = []
    for chosen in annotated_sets(options.data, options.sets):
        queries = chosen.queries()
        embedded = [index.query_embeddings(read_volume(query.image)) for query in queries]
        for mode in MODES:
            hits = [index.search(query, mode=mode, k=1).hits[0].volume_id for query in embedded]
            pairs = [(kind[q.volume_id], kind[hit]) for q, hit in zip(queries, hits, strict=True)]
            same = {f"same {c}": sum(a[c] == b[c] for a, b in pairs) for c in SAME}
            rows.append({"set": chosen.name, "mode": mode, "queries": len(queries), **same})
    (options.out / "mixed.json").write_text(json.dumps(rows, indent=2))
    print(table(rows, list(rows[0])))


if __name__ == "__main__":
    main()
