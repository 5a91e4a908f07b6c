"""What the command line draws: progress on stderr, rows and values as text."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class ProgressBar:
    """Draws `message  done/total` on stderr, in place on a terminal, a line a step otherwise."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._last = ""
        self._drawn = 0.0

    def __call__(self, done: int, total: int, message: str) -> None:
        if self._quiet:
            return
        now = time.monotonic()
        finished = done >= total
        # Neither a terminal nor a log file gains from hundreds of lines a second.
        if not finished and now - self._drawn < (0.1 if self._terminal else 5.0):
            return
        self._drawn = now
        share = done / total if total else 1.0
        bar = "#" * round(24 * share)
        line = f"[{bar:<24}] {done}/{total} {message}"
        if self._terminal:
            end = "\n" if finished else ""
            print(f"\r{line[:100]:<{len(self._last)}}", end=end, file=sys.stderr, flush=True)
            self._last = "" if finished else line[:100]
        else:
            print(line, file=sys.stderr, flush=True)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as aligned text columns; missing values are shown as "-"."""

    def cell(value: Any) -> str:
        if value is None or value == "" or value == []:
            return "-"
        if isinstance(value, float):
            return f"{value:.4g}"
        return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    lines = [list(columns)] + [[cell(row.get(c)) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(f"{text:<{w}}" for text, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def plain(value: Any) -> str:
    """A JSON value on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={plain(v)}" for key, v in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value)) or "-"
    return str(value)


def show(options: argparse.Namespace, data: Any, text: Callable[[], str]) -> None:
    """Print what a command found on stdout: `data` with --json, else `text()`."""
    print(json.dumps(data, indent=2, ensure_ascii=False) if options.json else text(), flush=True)
