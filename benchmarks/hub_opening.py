"""What a search in an index of the Hub fetches, beside fetching all of it.

    python -m benchmarks.hub_opening                      20,000 slices of 256 x 256 pixels
    python -m benchmarks.hub_opening --slices 2000        smaller, to try it

Starts the Hub of the tests on this machine, publishes a synthetic index there, and uses it in other
processes with empty caches. The network is that of one machine, so that bytes and requests are what
carries over to others; seconds are those of client, server and disk. All ratios are to
`snapshot_download` of the same data set in the same run. Needs requirements-dev.txt.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measuring import Row, report
from benchmarks.synthetic_index import identity
from medretrieval.index import Case, build
from medretrieval.types import EmbedderIdentity, Grid, LabelVolume, SlicePolicy, Volume

ROOT = Path(__file__).resolve().parents[1]
REPO = "lab/measured"
DEPTH = 100  # slices of a volume
HITS = 10
QUERIES = 20
IMPORTED = (
    "huggingface_hub.file_download",
    "huggingface_hub._snapshot_download",
    "medretrieval.index.group",
    "medretrieval.index.pull",
    "medretrieval.index.searcher",
    "medretrieval.retrieval.engine",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", type=int, default=20_000)
    parser.add_argument("--pixels", type=int, default=256, help="sides of a picture")
    parser.add_argument("--dim", type=int, default=768, help="numbers of an embedding")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median is shown")
    parser.add_argument("--work", type=Path, help="folder for all files (default: temporary)")
    parser.add_argument("--client", choices=CLIENTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        for module in IMPORTED:  # what is measured is not their start
            importlib.import_module(module)
        CLIENTS[options.client](options)
        return
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, work: Path) -> None:
    """Publish an index and print what its users fetch."""
    sys.path.append(str(ROOT / "tests"))
    from hub.client import running_hub

    from medretrieval.index.push import push

    index = build(
        list(cases(options.slices, options.pixels)),
        work / "index",
        embedder=Prepared(options.dim),
        slices=SlicePolicy(axis="axial", window="percentile", max_side=1024),
        name="measured",
        license="cc-by-4.0",
        source="synthetic",
    )
    with running_hub(work / "publisher") as hub:
        push(index, REPO)
        rows = [run_all(hub, options, work / f"user-{turn}") for turn in range(options.repeats)]
    whole = sum(p.stat().st_size for p in (index / "slices").iterdir())
    print(
        f"{options.slices} slices of {options.pixels} x {options.pixels} pixels, "
        f"{whole / options.slices / 1e3:.0f} kB each, embeddings of {options.dim} numbers\n"
    )
    report([summary(name, [found[name] for found in rows], rows) for name in rows[0]])


def summary(name: str, runs: Sequence[Row], all_runs: Sequence[dict[str, Row]]) -> Row:
    """One line of the table: medians, and medians of the ratios within each run."""
    everything = [found["all of it, snapshot_download"] for found in all_runs]

    def share(what: str) -> str:
        return f"{median(a[what] / b[what] for a, b in zip(runs, everything, strict=True)):.3f}"

    return {
        "what": name,
        "MB": f"{median(run['bytes'] for run in runs) / 1e6:.1f}",
        "of all bytes": share("bytes"),
        "requests": int(median(run["requests"] for run in runs)),
        "seconds": f"{median(run['seconds'] for run in runs):.2f}",
        "of the seconds": share("seconds"),
    }


def run_all(hub: Any, options: argparse.Namespace, home: Path) -> dict[str, Row]:
    """Every client once; all but the last begin with empty caches."""
    found: dict[str, Row] = {}
    for client, folder in (("snapshot", "a"), ("pull", "b"), ("first", "c"), ("again", "c")):
        found |= dict(client_stages(hub, options, client, home / folder))
    shutil.rmtree(home)
    return found


def client_stages(
    hub: Any, options: argparse.Namespace, client: str, home: Path
) -> Iterator[tuple[str, Row]]:
    """Run a client in its own process and yield what each of its stages took."""
    own = {"HF_HOME": str(home), "MEDRETRIEVAL_CACHE": str(home / "medretrieval")}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "benchmarks.hub_opening", "--client", client),
            *("--dim", str(options.dim), "--work", str(home / "pulled")),
        ],
        env={**hub.environ, **own},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    hub.reset_log()
    for line in process.stdout:
        done = json.loads(line)
        yield (
            done["name"],
            {
                "seconds": done["seconds"],
                "bytes": hub.bytes_sent(),
                "requests": len(hub.requests()),
            },
        )
        hub.reset_log()
        process.stdin.write("\n")  # it waits, so that the next stage is counted apart
        process.stdin.flush()
    if process.wait():
        raise SystemExit(f"the client {client} failed")


class Stage:
    """Times a stage of a client, tells it, and waits for the answer."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            spent = time.perf_counter() - self._start
            print(json.dumps({"name": self._name, "seconds": spent}), flush=True)
            sys.stdin.readline()


def snapshot(options: argparse.Namespace) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    with Stage("all of it, snapshot_download"):
        snapshot_download(REPO, repo_type="dataset")


def pulled(options: argparse.Namespace) -> None:
    from medretrieval.index.pull import pull

    with Stage("pull, every file hashed"):
        pull(REPO, options.work)


def opened(names: Sequence[str], options: argparse.Namespace) -> None:
    """Open, search, and look at the pictures of the hits, as far as there are names for it."""
    from medretrieval.retrieval.engine import open_index

    query = Prepared(options.dim).vectors(range(QUERIES))
    with Stage(names[0]):
        index = open_index(REPO)
    if len(names) > 1:
        with Stage(names[1]):
            found = index.search((query, range(QUERIES), [None] * QUERIES), mode="slice", k=HITS)
        rows = [hit.row_id for hit in found.hits[:HITS]]
        with Stage(names[2]):
            for row in rows:
                index.store.image(row)


CLIENTS = {
    "snapshot": snapshot,
    "pull": pulled,
    "first": partial(
        opened,
        (
            "open_index by name, the first time",
            f"a search of {QUERIES} slices after that",
            f"the pictures of the {HITS} best hits of a slice",
        ),
    ),
    "again": partial(opened, ("open_index again",)),
}


class Prepared:
    """An embedder whose vectors depend on nothing but the picture's bytes."""

    batch_size = 64

    def __init__(self, dim: int) -> None:
        self.identity: EmbedderIdentity = identity(dim)

    def embed_batch(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        return self.vectors([zlib.crc32(np.ascontiguousarray(image)) for image in images])

    def vectors(self, seeds: Sequence[int]) -> NDArray[np.float32]:
        """(n, dim) unit rows."""
        drawn = [np.random.default_rng(s).standard_normal(self.identity.dim) for s in seeds]
        rows = np.stack(drawn).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cases(slices: int, pixels: int) -> Iterator[Case]:
    """Volumes that cost a PNG as much as a CT does: smooth, with noise; an ellipse annotated."""
    for number, first in enumerate(range(0, slices, DEPTH)):
        depth = min(DEPTH, slices - first)
        yield Case(
            volume_id=f"volume-{number:06d}",
            patient_id=f"patient-{number:06d}",
            region=("chest", "abdomen", "head")[number % 3],
            label_names={1: "organ"},
            load=partial(load, number, depth, pixels),
        )


def load(number: int, depth: int, pixels: int) -> tuple[Volume, LabelVolume]:
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 255, (pixels // 32, pixels // 32), np.uint8)
    smooth = Image.fromarray(coarse).resize((pixels, pixels), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 4, (pixels, pixels, depth)).astype(np.float32)
    voxels = np.asarray(smooth, np.float32)[..., None] + noise
    x, y = np.ogrid[:pixels, :pixels]
    inside = (x - pixels / 2) ** 2 + (y - pixels / 3) ** 2 < (pixels / 5) ** 2
    mask = np.repeat(inside[..., None].astype(np.uint8), depth, axis=2)
    grid = Grid(shape=(pixels, pixels, depth), affine=np.diag([-1.0, -1.0, 2.5, 1.0]))
    return (
        Volume(voxels=voxels, grid=grid, modality="CT"),
        LabelVolume(voxels=mask, grid=grid, names={1: "organ"}),
    )


if __name__ == "__main__":
    main()
