"""Making the clients of this process, and of its children, meet a Hub of the tests.

huggingface_hub and datasets read their environment when they are imported, so that it is of no use
to set it later: the values that they read are replaced where they are kept.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from .server import WRITE_TOKEN, Hub

LOCAL = "127.0.0.1"
ROOT = Path(__file__).parents[2]
RUN_S = 180.0


class LocalHub(Hub):
    """A Hub that the clients of this process meet; what the fixture `hub` gives.

    Attributes:
        home: HF_HOME of the clients; `home / "hub"` is their cache.
        token: with which they are logged in, "ada" of "lab" at first, None for nobody.
    """

    def __init__(self, home: Path, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.home, self._patch = home, patch
        self.token: str | None = None
        self.log_in(WRITE_TOKEN)
        replace_constants(self.url, home, patch)

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment of a child process that is to meet this Hub."""
        dropped = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        return {
            **kept,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "NO_PROXY": LOCAL,
            "no_proxy": LOCAL,
            **({"HF_TOKEN": self.token} if self.token else {}),
        }

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python in another process that meets this Hub, in the root of the project."""
        return subprocess.run(
            [sys.executable, *arguments],
            env={**self.environ, **environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=RUN_S,
        )

    def log_in(self, token: str | None) -> None:
        """Act as the owner of a token (see `add_user`) from now on; None for nobody."""
        self.token = token
        if token is None:
            self._patch.delenv("HF_TOKEN", raising=False)
        else:
            self._patch.setenv("HF_TOKEN", token)

    def limit_retries(self, retries: int = 0) -> None:
        """Let huggingface_hub in this process try again at most `retries` times, without waiting.

        Left alone it tries six times, with 23 s of waiting in all; a broken download also resumes
        five times, after a second each, which keeps its number here.
        """
        from huggingface_hub import file_download
        from huggingface_hub.utils import _http

        for function in (_http.http_backoff, _http.http_stream_backoff):
            # The second is wrapped by contextmanager, which keeps the defaults on what it wraps.
            defaults = getattr(function, "__wrapped__", function).__kwdefaults__ or {}
            self._patch.setitem(defaults, "max_retries", retries)
        hurried = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
        for module in (_http, file_download):
            self._patch.setattr(module, "time", hurried)


def replace_constants(url: str, home: Path, patch: pytest.MonkeyPatch) -> None:
    """Point huggingface_hub and datasets in this process to a Hub and to empty caches."""
    for name in ("HF_OIDC_RESOURCE", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        patch.setenv(name, LOCAL)
    _replace_in_huggingface_hub(url, home, patch)
    _replace_in_datasets(url, home, patch)


def _replace_in_huggingface_hub(url: str, home: Path, patch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _cache_assets, _cache_manager, _http

    cache, assets = str(home / "hub"), str(home / "assets")
    replaced = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_URL_HOSTS": constants.HF_URL_HOSTS | {LOCAL},
        "HF_HOME": str(home),
        "HF_HUB_CACHE": cache,
        "HUGGINGFACE_HUB_CACHE": cache,
        "HF_ASSETS_CACHE": assets,
        "HUGGINGFACE_ASSETS_CACHE": assets,
        "HF_XET_CACHE": str(home / "xet"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "CHECK_FOR_UPDATE_DONE_PATH": str(home / ".check_for_update_done"),
        "AGENT_HARNESSES_PATH": str(home / ".agent_harnesses.json"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_OFFLINE": False,
    }
    for name, value in replaced.items():
        patch.setattr(constants, name, value)
    patch.setattr(_cache_manager, "HF_HUB_CACHE", cache)
    patch.setattr(_cache_assets, "HF_ASSETS_CACHE", assets)
    patch.setattr(_http, "_HUB_ORIGINS", _http._HUB_ORIGINS | {_http._url_origin(url)})
    # Functions such as huggingface_hub.create_repo are methods of this one.
    patch.setattr(hf_api.api, "endpoint", url)
    patch.setattr(hf_api.api, "_whoami_cache", {})


def _replace_in_datasets(url: str, home: Path, patch: pytest.MonkeyPatch) -> None:
    from datasets import config

    data = home / "datasets"
    replaced = {
        "HF_ENDPOINT": url,
        "HUB_DATASETS_URL": url + "/datasets/{repo_id}/resolve/{revision}/{path}",
        "HF_CACHE_HOME": str(home),
        "HF_DATASETS_CACHE": data,
        "HF_MODULES_CACHE": home / "modules",
        "DOWNLOADED_DATASETS_PATH": data / "downloads",
        "EXTRACTED_DATASETS_PATH": data / "downloads" / "extracted",
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_OFFLINE": False,
        # Both would ask hosts other than the Hub.
        "HF_UPDATE_DOWNLOAD_COUNTS": False,
        "USE_PARQUET_EXPORT": False,
    }
    for name, value in replaced.items():
        patch.setattr(config, name, value)


@contextlib.contextmanager
def running_hub(home: Path) -> Iterator[LocalHub]:
    """A Hub that the clients of this process meet within the block; `home` is their HF_HOME.

    Raises:
        AssertionError: it was asked for something that it does not model, or failed itself.
    """
    forget_connections()
    with pytest.MonkeyPatch.context() as patch, LocalHub(home, patch) as hub:
        yield hub
    forget_connections()
    if hub.errors:
        raise AssertionError("\n".join(hub.errors))


def forget_connections() -> None:
    """Close what the clients keep open, and drop file systems that remember another Hub."""
    from huggingface_hub import HfFileSystem
    from huggingface_hub.utils._http import close_session

    HfFileSystem.clear_instance_cache()
    close_session()
