"""Work that a visitor may cancel."""

from __future__ import annotations

import threading

from medretrieval.errors import Cancelled
from medretrieval.types import Progress

CANCELLED = "Cancelled. What was there before is still shown."


class Run:
    """One piece of work: the page may ask for its end, its progress callback obeys."""

    def __init__(self) -> None:
        self._unwanted = threading.Event()
        self._over = threading.Event()

    def cancel(self) -> None:
        """Ask for its end, whether it has begun or not."""
        self._unwanted.set()

    def end(self) -> None:
        """It has come to its end, in whatever way."""
        self._over.set()

    @property
    def over(self) -> bool:
        """Whether it has come to its end."""
        return self._over.is_set()

    def check(self) -> None:
        """Raise Cancelled if it is not wanted any more."""
        if self._unwanted.is_set():
            raise Cancelled(CANCELLED)

    def watched(self, progress: Progress) -> Progress:
        """`progress`, which also raises Cancelled once the work is not wanted any more."""

        def report(done: int, total: int, message: str) -> None:
            self.check()
            progress(done, total, message)

        return report
