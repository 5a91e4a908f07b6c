"""Running an embedder's network by OpenVINO, which compiles it for the CPU at hand.

The network is traced once for one shape of input. As many streams run side by side as there are
threads, each on one core, so that a stream's numbers do not depend on how many there are.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from typing import Any, Literal

import openvino
import torch
from torch.jit._trace import TracerWarning


class _Forward(torch.nn.Module):
    """The whole way from pixels to features as one module, which is what can be traced."""

    def __init__(self, embedder: Any) -> None:
        super().__init__()
        self.network = embedder.network
        self._features = embedder.forward

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self._features(pixels)
        return features


def compiled(
    embedder: Any,
    example: torch.Tensor,
    *,
    threads: int,
    precision: Literal["float32", "bfloat16"],
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that does what `embedder.forward` does, for inputs of the shape of `example`.

    Args:
        example: (n, 3, S, S) float32.
        threads: calls that run at the same time, each on one core.
    """
    transformers = logging.getLogger("transformers")  # tracing makes it warn of what is not asked
    level = transformers.level
    transformers.setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        # Tracing takes what depends on the input's shape for constant, and here it is.
        warnings.simplefilter("ignore", TracerWarning)
        model = openvino.convert_model(
            _Forward(embedder), example_input=example, input=[tuple(example.shape)]
        )
    transformers.setLevel(level)
    network = openvino.Core().compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
        },
    )
    own = threading.local()

    def run(pixels: torch.Tensor) -> torch.Tensor:
        if not hasattr(own, "request"):  # a request holds buffers: one for every thread
            own.request = network.create_infer_request()
        output = own.request.infer({0: pixels.numpy()})[0]
        return torch.from_numpy(output.copy())

    return run
