"""Tiny networks of every family in the official layout, pictures, and a Hub on this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medretrieval.embedders import REGISTRY, EmbedderSpec

sys.path.insert(0, str(Path(__file__).parent))

from published import for_small_pictures

TINY_DIM = 32


@pytest.fixture
def pictures() -> list[np.ndarray]:
    """Smooth and noisy pictures, grey and colour, of several shapes (all uint8)."""
    rng = np.random.default_rng(7)

    def smooth(height: int, width: int) -> np.ndarray:
        y, x = np.mgrid[:height, :width] / max(height, width)
        wave = 127 + 60 * np.sin(9 * x + 4 * y) + 60 * np.cos(15 * y * x)
        return wave.astype(np.uint8)

    return [
        smooth(300, 260),
        np.stack([smooth(96, 128), smooth(96, 128)[::-1], smooth(96, 128)[:, ::-1]], axis=2),
        rng.integers(0, 256, (80, 70), dtype=np.uint8),
        rng.integers(0, 256, (61, 173, 3), dtype=np.uint8),
        smooth(40, 33),
    ]


def _tiny_sizes(name: str) -> tuple[int, int]:
    """Input size, and what is resized to, for a small network; by name, not by the row."""
    size = 56 if "dino" in name and "vitb16" not in name else 32
    return size, size + 8 if name in ("dinov2-small-reg", "dinov2-base") else size


def make_tiny_spec(name: str, **changes: Any) -> EmbedderSpec:
    size, resize_to = _tiny_sizes(name)
    return dataclasses.replace(
        REGISTRY[name], **{"dim": TINY_DIM, "input_size": size, "resize_to": resize_to, **changes}
    )


@pytest.fixture(scope="session")
def tiny_spec() -> Callable[..., EmbedderSpec]:
    """Gives a registered specification for a network of 32-d features and small pictures."""
    return make_tiny_spec


def write_tiny(spec: EmbedderSpec, folder: Path) -> Path:
    """Random weights of a small network of the family of `spec`, as transformers saves them."""
    import torch
    import transformers

    torch.manual_seed(0)
    small = {"hidden_size": TINY_DIM, "num_hidden_layers": 2, "num_attention_heads": 4}
    family = spec.adapter.partition(":")[2]
    if family in ("Dinov2", "Dinov2WithRegisters"):
        # Trained at another size than it is used at, as the published ones are.
        config = getattr(transformers, f"{family}Config")(image_size=70, patch_size=14, **small)
        model = getattr(transformers, f"{family}Model")(config)
    elif family == "ViT":
        config = transformers.ViTConfig(
            image_size=spec.input_size, patch_size=8, intermediate_size=64, **small
        )
        model = transformers.ViTModel(config)
    else:
        config = transformers.ViTMAEConfig(
            image_size=spec.input_size,
            patch_size=8,
            intermediate_size=64,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=32,
            **small,
        )
        model = transformers.ViTMAEForPreTraining(config)
    with torch.no_grad():  # fresh norms and biases are trivial: make every tensor count
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    # Of the published file, not of the row: a row that differs from it is seen.
    stored = for_small_pictures(spec.weights, *_tiny_sizes(spec.name))
    (folder / "preprocessor_config.json").write_text(json.dumps(stored))
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a tiny network for a registered name; copy it before changing it."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = write_tiny(make_tiny_spec(name), tmp_path_factory.mktemp(name))
        return made[name]

    return get


@dataclass
class LocalHub:
    """A server that speaks as much of the Hub's HTTP API as a download needs.

    Attributes:
        files: served as repository `repo` at commit `commit` (also under "main").
        moves_to: the commit that "main" is once the weights were downloaded, if set.
        missing_on_get: a file that is announced but cannot be downloaded, if set.
        error: (status, X-Error-Code) given to every request instead, if set.
        requests: "METHOD /path" of every request so far.
    """

    repo: str = ""
    commit: str = "c0ffee" + 34 * "0"
    files: dict[str, bytes] = field(default_factory=dict)
    moves_to: str | None = None
    missing_on_get: str | None = None
    error: tuple[int, str] | None = None
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if self.error:
            return self.error[0], {"X-Error-Code": self.error[1]}, b""
        moved = any("GET" in r and r.endswith(".safetensors") for r in self.requests)
        head = self.moves_to if self.moves_to and moved else self.commit
        for revision, commit in (("main", head), (self.commit, self.commit), (head, head)):
            prefix = f"/{self.repo}/resolve/{revision}/"
            if path.startswith(prefix):
                body = self.files.get(path.removeprefix(prefix))
                if body is None:
                    headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
                    return 404, headers, b""
                etag = f'"{abs(hash(path)):040x}"'
                return 200, {"X-Repo-Commit": commit, "ETag": etag}, body
        return 404, {"X-Error-Code": "RepoNotFound"}, b""


@pytest.fixture
def local_hub() -> Iterator[LocalHub]:
    hub = LocalHub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            status, headers, body = hub.answer(self.path)
            if self.command == "GET" and self.path.endswith(hub.missing_on_get or "\0"):
                status, headers, body = 410, {}, b""
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script in a fresh interpreter with an empty Hub cache of its own.

    huggingface_hub reads its environment when it is imported, hence the other process.
    """

    def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
        return subprocess.run(
            [sys.executable, "-c", script],
            env={
                **kept,
                "HF_HOME": str(tmp_path / "hf"),
                "HF_HUB_DISABLE_XET": "1",
                "MEDRETRIEVAL_WEIGHTS": str(tmp_path / "no weights"),
                "OMP_NUM_THREADS": "1",
                "NO_PROXY": "127.0.0.1",
                **environment,
            },
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=180,
        )

    return run
