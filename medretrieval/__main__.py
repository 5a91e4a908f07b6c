"""`python -m medretrieval`, and the command `medretrieval`."""

import contextlib
import os
import sys
from typing import NoReturn

from medretrieval import hub
from medretrieval.cli import main


def run() -> NoReturn:
    """Run one command and end the process."""
    code = main()
    if hub.left_behind():  # the client would wait for a transfer that hangs
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    raise SystemExit(code)


if __name__ == "__main__":
    run()
