"""What the endpoints for programs share."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

import gradio as gr

from medretrieval.errors import MedRetrievalError
from medretrieval.ui import words
from medretrieval.ui.actions import Actions
from medretrieval.ui.connecting import INTERNAL

logger = logging.getLogger(__name__)

HEAVY: dict[str, Any] = {"concurrency_id": "models", "concurrency_limit": 2}


class Answers:
    """The base of the endpoints.

    Args:
        cache: the server's folder for uploads and downloads.
    """

    def __init__(self, actions: Actions, *, cache: str) -> None:
        self._actions = actions
        self._backend = actions.backend
        self._cache = cache
        self._connect()

    def _connect(self) -> None:
        raise NotImplementedError


def text_input(value: str, name: str) -> gr.Textbox:
    return gr.Textbox(value, label=name)


def number_input(value: int | None, name: str) -> gr.Number:
    return gr.Number(value, precision=0, label=name)


def named(names: dict[str, str] | None) -> dict[int, str] | None:
    if not names:
        return None
    return words.label_names(",".join(f"{value}={name}" for value, name in names.items()))


class Answering:
    """Errors of an endpoint as messages for its caller, never as tracebacks."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, MedRetrievalError):
            raise gr.Error(str(error), print_exception=False) from None
        if isinstance(error, Exception):
            logger.error("an endpoint failed", exc_info=error)
            raise gr.Error(INTERNAL, print_exception=False) from None
