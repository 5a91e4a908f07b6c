"""How a network is run. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medretrieval.errors import UsageError

Precision = Literal["float32", "bfloat16", "auto"]
Runtime = Literal["torch", "openvino"]


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and how a network is run; never changes what space its embeddings are in.

    Attributes:
        device: "cpu" or "cuda".
        threads: cores to embed on; default is the number of torch's threads.
        precision: of the multiplications. "bfloat16" is faster on processors that have
            instructions for it, and changes embeddings by rounding. "auto" takes it on those if,
            with the weights as loaded, embeddings of test pictures keep a cosine above 0.999.
        runtime: "openvino" compiles the network for this CPU; it needs the package openvino.
    """

    device: str = "cpu"
    threads: int | None = None
    precision: Precision = "float32"
    runtime: Runtime = "torch"

    def __post_init__(self) -> None:
        for what, value, known in (
            ("precision", self.precision, ("float32", "bfloat16", "auto")),
            ("runtime", self.runtime, ("torch", "openvino")),
        ):
            if value not in known:
                raise UsageError(f"{what} is {value!r}; expected {', '.join(known)}")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads is {self.threads}; expected 1 or more, or None")
        if self.runtime == "openvino" and self.device != "cpu":
            raise UsageError(
                f"runtime 'openvino' is for the CPU, not for device {self.device!r}; "
                "use runtime 'torch' there"
            )


DEFAULT_COMPUTE = Compute()
