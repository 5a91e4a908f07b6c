"""Seconds a slice for 1 to 32 supports, in every way, beside SAM2VideoPredictor with the same work.

One label, noise pictures, a disc of 7 % of the picture as mask. The predictor gets the supports as
frames with `add_new_mask` and propagates to the query, the next frame, under autocast to bfloat16,
as its authors run it; decoding of its video files is not counted. Ours gets the whole pictures too,
no crop, no second look, and the same network object. Every cell is kept in `--out`: a run that was
interrupted goes on, and `--report` only prints. `--clock cpu` counts seconds of processor time
instead of the clock's, which other work on the machine disturbs less.

    python -m benchmarks.segmentation_speed --out runs/segmentation-speed.json
    OMP_NUM_THREADS=1 python -m benchmarks.segmentation_speed --clock cpu --repeats 1 --out FILE
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measuring import Row, report
from medretrieval.segmentation import REGISTRY, MemoryCache, Segmenter
from medretrieval.segmentation.loading import build
from medretrieval.segmentation.micro import load_micro, standardise
from medretrieval.segmentation.options import OptionChanges, Precision, SegmentationOptions
from medretrieval.segmentation.sam2_backend import Sam2Network
from medretrieval.segmentation.squares import imagenet, square
from medretrieval.types import Support

PREDICTOR = "SAM2VideoPredictor"
# name -> (memories cached, precision, options)
WAYS: dict[str, tuple[bool, Precision, OptionChanges]] = {
    "not cached, bfloat16": (False, "bfloat16", {}),
    # The ways below find the memories that this one leaves in the cache.
    "not cached": (False, "float32", {}),
    "cached": (True, "float32", {}),
    "cached, bfloat16": (True, "bfloat16", {}),
    "cached, pooled": (True, "float32", {"memory": "pooled"}),
    "cached, foreground": (True, "float32", {"memory": "foreground"}),
    "cached, foreground, bfloat16": (True, "bfloat16", {"memory": "foreground"}),
}
SEGMENTERS = ("sam2-micro", "sam2.1-hiera-tiny")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--segmenters", nargs="+", choices=SEGMENTERS, default=list(SEGMENTERS))
    parser.add_argument("--supports", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--ways", nargs="+", choices=[PREDICTOR, *WAYS], default=[PREDICTOR, *WAYS])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--out", type=Path, default=Path("runs/segmentation-speed.json"))
    parser.add_argument("--report", action="store_true", help="print what is there, run nothing")
    options = parser.parse_args()
    cells: list[Row] = json.loads(options.out.read_text()) if options.out.exists() else []
    if not options.report:
        for name in options.segmenters:
            measure(name, cells, options)
    for name in options.segmenters:
        print(f"{name}, seconds a slice (times faster than {PREDICTOR})\n")
        report(lines([cell for cell in cells if cell["segmenter"] == name]))


def measure(name: str, cells: list[Row], options: argparse.Namespace) -> None:
    """Append a cell for every number of supports and way that `cells` does not have yet."""
    done = {(cell["segmenter"], cell["supports"], cell["way"]) for cell in cells}
    todo = [(k, w) for k in options.supports for w in options.ways if (name, k, w) not in done]
    if not todo:
        return
    predictor, ours = networks(name)
    clock = CLOCKS[options.clock]
    for count, way in todo:
        pictures, masks = drawn(count + 1, predictor.image_size)
        if way == PREDICTOR:
            run = predicting(predictor, ours["float32"], pictures, masks[:count])
        else:
            run = segmenting(ours, pictures, masks[:count], *WAYS[way])
        taken = []
        for _ in range(options.repeats):
            action = run()
            start = clock()
            action()
            taken.append(clock() - start)
        cells.append(
            {
                "segmenter": name,
                "supports": count,
                "way": way,
                "seconds": round(median(taken), 3),
                "clock": options.clock,
                "threads": torch.get_num_threads(),
            }
        )
        print(cells[-1], file=sys.stderr, flush=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(cells, indent=1))


def lines(cells: list[Row]) -> list[Row]:
    """A row for every way, a column for every number of supports."""
    seconds = {(cell["way"], cell["supports"]): cell["seconds"] for cell in cells}
    counts = sorted({cell["supports"] for cell in cells})
    rows: list[Row] = []
    for way in (way for way in (PREDICTOR, *WAYS) if any(way == name for name, _ in seconds)):
        row: Row = {"way": way}
        for count in counts:
            own, base = seconds.get((way, count)), seconds.get((PREDICTOR, count))
            times = "" if None in (own, base) or way == PREDICTOR else f" ({base / own:.1f})"
            row[str(count)] = "-" if own is None else f"{own:.3g}{times}"
        rows.append(row)
    return rows


def networks(name: str) -> tuple[Any, dict[Precision, Segmenter]]:
    """SAM2VideoPredictor, random but for the micro network, and segmenters around the same."""
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    torch.manual_seed(0)
    spec = REGISTRY[name]
    if spec.bundled:
        predictor = load_micro(cls=SAM2VideoPredictor)
    else:
        dotted = f"{SAM2VideoPredictor.__module__}.{SAM2VideoPredictor.__qualname__}"
        predictor = build(spec, cls=dotted)
    normalise = standardise if spec.bundled else imagenet
    cache = MemoryCache(max_bytes=2**31)
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    ours = {
        precision: Segmenter(
            Sam2Network(predictor, normalise=normalise, digest=name, precision=precision),
            spec,
            options=SegmentationOptions(),
            cache=cache,
        )
        for precision in precisions
    }
    return predictor, ours


def drawn(count: int, size: int) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Pictures (S, S) of noise and discs as masks."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size
    pictures, masks = [], []
    for _ in range(count):
        y, x = rng.uniform(0.3, 0.7, 2)
        masks.append((np.hypot(rows - y, columns - x) < 0.15).astype(np.uint8))
        noise = rng.integers(0, 100, (size, size))
        pictures.append((noise + 100 * masks[-1]).astype(np.uint8))
    return pictures, masks


def segmenting(
    ours: dict[Precision, Segmenter],
    pictures: list[NDArray[np.uint8]],
    masks: list[NDArray[np.uint8]],
    cached: bool,
    precision: Precision,
    changes: OptionChanges,
) -> Callable[[], Callable[[], object]]:
    """What prepares a repeat and returns what is timed."""
    supports = [
        Support(image=picture, mask=mask, names={1: "disc"}, key=str(number))
        for number, (picture, mask) in enumerate(zip(pictures, masks, strict=False))
    ]
    if cached:
        # What a memory holds does not change the time, and one is made sooner than 32.
        supports = supports[:1] * len(supports)
    segmenter = ours[precision]

    def prepared() -> Callable[[], object]:
        # A query is encoded every time; a segmenter remembers the last.
        segmenter.forget_encodings()
        if cached:
            # Memories made in float32 serve both precisions.
            ours["float32"].prepare(supports)
        else:
            segmenter.cache.clear()
        return lambda: segmenter.segment(pictures[-1], supports, **changes)

    return prepared


def predicting(
    predictor: Any,
    segmenter: Segmenter,
    pictures: list[NDArray[np.uint8]],
    masks: list[NDArray[np.uint8]],
) -> Callable[[], Callable[[], object]]:
    """The same for the predictor. Its frames are the tensors that our network makes."""
    normalise = standardise if segmenter.spec.bundled else imagenet
    frames = torch.cat([normalise(square(p, predictor.image_size)) for p in pictures])

    def prepared() -> Callable[[], object]:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(len(pictures)):
                Image.new("RGB", (32, 32)).save(Path(folder) / f"{number:05d}.jpg")
            with torch.autocast("cpu", torch.bfloat16):
                state = predictor.init_state(folder)
        state["images"], state["cached_features"] = frames, {}
        state["video_height"] = state["video_width"] = predictor.image_size

        def action() -> None:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                for number, mask in enumerate(masks):
                    predictor.add_new_mask(state, number, 1, torch.from_numpy(mask > 0))
                for _ in predictor.propagate_in_video(state, start_frame_idx=len(masks)):
                    pass

        return action

    return prepared


if __name__ == "__main__":
    main()
