"""A bank of slices of the package's phantoms, and episodes drawn from it.

The phantoms are synthetic too: bodies and organs painted from formulas. Each is made once; an
episode shows slices of several of one kind at about the same height.

    python -m training.anatomy BANK.safetensors --cases 24
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from training.fields import Rng, warp_grids

SIDE = 144


def make_bank(out: Path, cases: int, *, first_seed: int = 50_000) -> None:
    """Write `cases` cases of every kind; seeds are far from those of the demo and the tests."""
    from medretrieval.imaging import make_slices
    from medretrieval.phantoms import make_case
    from medretrieval.phantoms.cohort import KINDS
    from medretrieval.types import SlicePolicy

    tensors: dict[str, Tensor] = {}
    for seed in range(cases):
        for kind in KINDS:
            case = make_case(kind, first_seed + seed, quick=True)
            slices = list(make_slices(case.volume, SlicePolicy(), labels=case.labels))
            images = torch.stack([torch.from_numpy(s.image.copy()) for s in slices])[:, None]
            masks = torch.stack([torch.from_numpy(np.asarray(s.mask, np.uint8)) for s in slices])
            size = (SIDE, SIDE)
            small = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True)
            tensors[f"{kind}/{seed}/images"] = small[:, 0].round().to(torch.uint8)
            tensors[f"{kind}/{seed}/labels"] = F.interpolate(masks[:, None], size=size)[:, 0]
        print(f"{seed + 1}/{cases} cases of every kind", file=sys.stderr, flush=True)
    partial = out.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    os.replace(partial, out)


@lru_cache(maxsize=2)
def _bank(path: str) -> tuple[object, dict[str, list[str]]]:
    file = safe_open(path, framework="pt")
    kinds: dict[str, list[str]] = {}
    for name in file.keys():  # type: ignore[no-untyped-call]
        kind, seed, what = name.split("/")
        if what == "images":
            kinds.setdefault(kind, []).append(seed)
    return file, {kind: sorted(seeds) for kind, seeds in sorted(kinds.items())}


def draw_anatomy(rng: Rng, bank: Path, count: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Slices of `count` cases of one kind at about the same height, each turned and bent a little.

    Returns:
        (count, S, S) float32 pictures in 0..1, (count, S, S) int64 labels and the sampling grids
        (count, S, S, 2) that bent them.
    """
    file, kinds = _bank(str(bank))
    kind = str(rng.choice(list(kinds)))
    seeds = kinds[kind]
    picks = rng.choice(len(seeds), count, replace=len(seeds) < count)
    height, spread = rng.uniform(0.05, 0.95), rng.uniform(0.0, 0.12)
    images, labels = [], []
    for pick in picks:
        stack, masks = (
            file.get_slice(f"{kind}/{seeds[pick]}/{what}")  # type: ignore[attr-defined]
            for what in ("images", "labels")
        )
        depth = stack.get_shape()[0]
        z = int(min(max(round((height + rng.normal(0, spread)) * (depth - 1)), 0), depth - 1))
        images.append(stack[z : z + 1][0])
        labels.append(masks[z : z + 1][0])
    grids = warp_grids(rng, count, size, strength=rng.uniform(0, 0.6), pose=rng.uniform(0.2, 2.0))

    def bent(stack: Sequence[Tensor], mode: str) -> Tensor:
        pictures = torch.stack(list(stack))[:, None].float()
        return F.grid_sample(
            pictures, grids, mode=mode, padding_mode="border", align_corners=False
        )[:, 0]

    return bent(images, "bilinear") / 255, bent(labels, "nearest").long(), grids


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int, default=24)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    make_bank(options.out, options.cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
