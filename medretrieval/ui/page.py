"""The page as a whole: components, connections, endpoints, and how it is served."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from medretrieval.types import Progress, Volume, no_progress
from medretrieval.ui.actions import Actions
from medretrieval.ui.backend import Backend
from medretrieval.ui.components import KEPT_SECONDS, Components
from medretrieval.ui.connecting import reporting
from medretrieval.ui.endpoints import Endpoints
from medretrieval.ui.endpoints_masks import MaskEndpoints
from medretrieval.ui.wiring import Wiring

try:
    import spaces
except ImportError:  # anywhere but on a Space with ZeroGPU
    spaces = None

DEVICE = "cpu" if spaces is None else "cuda"
MAX_UPLOAD = os.environ.get("MEDRETRIEVAL_MAX_UPLOAD", "600mb")
SESSIONS = 40  # whose state is held in memory at the same time


def on_device(
    method: Callable[..., Any], passes: Callable[[Volume, Mapping[str, Any]], int]
) -> Callable[..., Any]:
    """A method of the backend, on ZeroGPU in the process that has the GPU.

    What goes there and comes back can be pickled; the progress bar is found again there, but what
    cancels the work is not: it then ends as if it had not been cancelled, and is dropped.

    Args:
        method: takes the key of an index, an image and options.
        passes: about how many pictures go through a network.
    """
    if spaces is None:
        return method

    def duration(_key: str, volume: Volume, options: Mapping[str, Any]) -> int:
        return min(20 + passes(volume, options), 240)

    def work(key: str, volume: Volume, options: Mapping[str, Any]) -> Any:
        return method(key, volume, **options, progress=reporting(gr.Progress()))

    work = spaces.GPU(duration=duration)(work)

    def run(key: str, volume: Volume, *, progress: Progress = no_progress, **options: Any) -> Any:
        return work(key, volume, options)

    return run


def slices(volume: Volume, options: Mapping[str, Any]) -> int:
    """How many slices are segmented, at most."""
    indices = options.get("indices")
    return max(volume.grid.shape) if indices is None else len(indices)


def supports(volume: Volume, options: Mapping[str, Any]) -> int:
    """How many annotated slices are left out."""
    given = options.get("supports")
    return int(options.get("support_k", 0)) if given is None else len(given)


class Page:
    """The page over a backend, which all visitors share."""

    def __init__(self, backend: Backend) -> None:
        cache = gr.utils.get_upload_folder()
        self.actions = Actions(
            backend,
            uploads=cache,
            segment=on_device(backend.segment, slices),
            agreement=on_device(backend.agreement, supports),
        )
        with gr.Blocks(
            title="medretrieval",
            analytics_enabled=False,
            delete_cache=(600, KEPT_SECONDS),
            fill_width=True,
        ) as self.blocks:
            self.parts = Components(backend)
            self.wiring = Wiring(self.parts, self.actions, cache=cache)
            self.wiring.connect(self.blocks.load)
            Endpoints(self.actions, cache=cache)
            MaskEndpoints(self.actions, cache=cache)


class Headers:
    """Adds headers to every answer: the page loads nothing from anywhere else."""

    POLICY = (
        "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'"
    )

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        async def sending(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", self.POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self._app(scope, receive, sending)


def theme() -> gr.themes.Base:
    """Calm colours, and fonts of the visitor's own system."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
        spacing_size=gr.themes.sizes.spacing_sm,
    ).set(
        # Enough contrast for small text (WCAG AA) on both grounds.
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        button_secondary_text_color="*neutral_800",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )


def launch(page: Page, *, host: str, port: int | None) -> str:
    """Begin to serve the page; return its address."""
    from starlette.middleware import Middleware

    page.blocks.queue(max_size=32, default_concurrency_limit=8)
    _, address, _ = page.blocks.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        show_error=False,
        quiet=True,
        share=False,
        ssr_mode=False,
        run_history=False,
        max_file_size=MAX_UPLOAD,
        state_session_capacity=SESSIONS,
        footer_links=["api"],
        app_kwargs={"middleware": [Middleware(Headers)]},
        theme=theme(),
        css_paths=[Path(__file__).with_name("page.css")],
    )
    return str(address)
