"""Write the averaged weights of a training run as the package's safetensors file.

python -m training.export RUN_FOLDER [OUT]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from medretrieval.segmentation.micro import WEIGHTS, build_micro, load_micro


def export(run: Path, out: Path) -> int:
    """Write the run's averaged weights as float16 and return the step they are from."""
    state = torch.load(run / "state.pt", map_location="cpu", weights_only=True)
    names = [name for name, _ in build_micro().named_parameters()]
    # Buffers are constants of the position encoding and follow the averaged parameters.
    tensors = dict(state["model"]) | dict(zip(names, state["averaged"], strict=True))
    partial = out.with_suffix(".partial")
    save_file(
        {name: tensor.half().contiguous() for name, tensor in tensors.items()},
        partial,
        metadata={"format": "pt", "steps": str(state["step"]), "data": "synthetic only"},
    )
    load_micro(partial)
    os.replace(partial, out)
    return int(state["step"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder of training.train")
    parser.add_argument("out", type=Path, nargs="?", default=WEIGHTS)
    options = parser.parse_args(arguments)
    step = export(options.run, options.out)
    print(f"{options.out}: averaged weights of step {step}, {options.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
