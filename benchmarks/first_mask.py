"""How long a new user waits: for the first page, for the first search, for the first mask.

Starts `app.py` with an empty cache, asks for the page, then searches and segments a synthetic
heart that is not in the demo index through the page's own endpoints. The first search builds the
demo index.

    python -m benchmarks.first_mask
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gradio_client import Client, handle_file

from medretrieval.console import table
from medretrieval.demo import DEMO_QUERY_SEED
from medretrieval.imaging import write_volume
from medretrieval.phantoms import make_case

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        query = Path(folder) / "query.nii.gz"
        write_volume(make_case("mr-heart", DEMO_QUERY_SEED).volume, query)
        environment = {**os.environ, "MEDRETRIEVAL_CACHE": str(Path(folder) / "cache")}
        start = time.perf_counter()
        server = subprocess.Popen(
            [sys.executable, str(ROOT / "app.py")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            rows = measure(server, query, start)
        finally:
            server.terminate()
            server.wait()
    print(table(rows, ["what", "seconds since start"]))


def measure(server: subprocess.Popen[str], query: Path, start: float) -> list[dict[str, object]]:
    assert server.stdout is not None
    found = next(filter(None, (re.search(r"http://\S+", line) for line in server.stdout)))
    client = Client(found[0], verbose=False)
    times = {"first page": time.perf_counter() - start}
    client.predict(handle_file(query), api_name="/search")
    times["first search, which builds the demo index"] = time.perf_counter() - start
    client.predict(handle_file(query), slice_index=6, api_name="/segment")
    times["first mask, of one slice"] = time.perf_counter() - start
    client.predict(handle_file(query), slice_index=6, api_name="/segment")
    times["second mask"] = time.perf_counter() - start
    return [{"what": k, "seconds since start": round(v, 1)} for k, v in times.items()]


if __name__ == "__main__":
    main()
