"""What the benchmarks have in common: times in alternation, peaks, tables."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

Row = dict[str, Any]


def report(rows: Sequence[Row]) -> Sequence[Row]:
    """Print a Markdown table; floats with four digits."""
    columns = list(rows[0])

    def cell(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    print("| " + " | ".join(columns) + " |")
    print("|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(cell(row[name]) for name in columns) + " |")
    print(flush=True)
    return rows


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_turns(
    repeats: int, action: Callable[[], object], baseline: Callable[[], object]
) -> tuple[list[float], list[float]]:
    """Seconds of both, measured in alternation after a first run of each that does not count."""
    action()
    baseline()
    times = [(seconds(action), seconds(baseline)) for _ in range(repeats)]
    own, base = zip(*times, strict=True)
    return list(own), list(base)


def ratio(own: Sequence[float], base: Sequence[float]) -> float:
    return median(a / b for a, b in zip(own, base, strict=True))


def peak_mb(action: Callable[[], object]) -> float:
    """MB that an action allocates at most, beside what is there before."""
    tracemalloc.start()
    try:
        action()
        return round(tracemalloc.get_traced_memory()[1] / 1e6, 1)
    finally:
        tracemalloc.stop()
