"""The page: upload an image, find similar annotated cases, segment yours from them.

Run it with `python app.py [--port 7860] [--host 127.0.0.1]`, or as a Space. What the page does is
in `medretrieval.ui`; this file is only the way in.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence

# Nothing is reported to anyone. The libraries read this when they are imported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from medretrieval.ui.backend import INDEXES_VARIABLE, Backend, listed_indexes
from medretrieval.ui.page import DEVICE, Page, launch


def main(args: Sequence[str] | None = None) -> None:
    """Serve the page until it is stopped."""
    space = "SPACE_ID" in os.environ
    parser = argparse.ArgumentParser(description="Serve the page.")
    parser.add_argument(
        "--host",
        default=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if space else "127.0.0.1"),
        help="address to listen at (default: this machine only)",
    )
    parser.add_argument(
        "--port", type=int, help="default: GRADIO_SERVER_PORT, else the first free one from 7860"
    )
    options = parser.parse_args(args)
    if "GRADIO_TEMP_DIR" not in os.environ:
        # Files of visitors lie in a folder of this process, which goes when it does.
        os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="medretrieval-page-")
        atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for client in ("httpx", "httpx2"):  # they tell every address, signed ones too
        logging.getLogger(client).setLevel(logging.WARNING)
    # It tells of every instruction set that it looks for and does not find.
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    # A terminated server deletes the files of its visitors, as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    backend = Backend(
        indexes=listed_indexes(os.environ.get(INDEXES_VARIABLE)),
        allow_paths=not space and options.host in ("127.0.0.1", "localhost", "::1"),
        device=os.environ.get("MEDRETRIEVAL_DEVICE", DEVICE),
    )
    page = Page(backend)
    try:
        address = launch(page, host=options.host, port=options.port)
    except OSError as error:  # a port that is taken, or none that is free
        sys.exit(f"the page cannot be served: {error}. Choose another port with --port")
    print(f"medretrieval is at {address}", flush=True)
    page.blocks.block_thread()


if __name__ == "__main__":
    main()
