"""How an event of the page runs an action, and how its updates reach the components."""

from __future__ import annotations

import dataclasses
import html
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from medretrieval.errors import Cancelled, MedRetrievalError
from medretrieval.retrieval.feedback import Feedback
from medretrieval.types import Progress
from medretrieval.ui import text
from medretrieval.ui.actions import Actions
from medretrieval.ui.components import Components
from medretrieval.ui.session import Download, Props, Session, Updates

logger = logging.getLogger(__name__)

INTERNAL = "Internal error: the page failed at this, which is not the fault of your image."
PROGRESS = gr.Progress()


def reporting(progress: gr.Progress) -> Progress:
    """The page's progress bar as the library's progress callback."""

    def report(done: int, total: int, message: str) -> None:
        progress((done, total), desc=message)

    return report


SIZE = len(dataclasses.fields(Session))  # how many components make up a session


def from_values(values: Sequence[Any]) -> Session:
    """The visitor's session from the values of `Components.session`."""
    query, found, cart, outcome, feedback, index = values
    return Session(
        query=query,
        found=found,
        cart=cart or (),
        outcome=outcome,
        feedback=feedback or Feedback(),
        index=index or "",
    )


def with_session(action: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """An action on a session, called with the values that make one up, then its others."""
    return lambda *values, **extra: action(from_values(values[:SIZE]), *values[SIZE:], **extra)


def stored(name: str, data: bytes, folder: str) -> str:
    """Write a file for download; `folder` is the server's cache, which it cleans after a while."""
    return str(gr.processing_utils.save_bytes_to_cache(data, name, folder))


class Connecting:
    """Connects components with actions.

    Args:
        cache: the server's folder for uploads and downloads.
    """

    def __init__(self, parts: Components, actions: Actions, *, cache: str) -> None:
        self._parts = parts
        self._actions = actions
        self._cache = cache
        self._session = parts.session()

    def on(
        self,
        trigger: Callable[..., Any],
        action: Callable[..., dict[str, Any]],
        inputs: Sequence[Any],
        outputs: str,
        status: str,
        *,
        shown: Any = None,
        event: bool = False,
        progress: bool = False,
        heavy: bool = False,
        alone: bool = False,
        spent: Sequence[str] = (),
        failed: Updates | None = None,
        **options: Any,
    ) -> Any:
        """Run `action` on `trigger`; errors go to the status line, never as a traceback.

        Args:
            outputs: names of the parts that the action may change, besides `status`.
            shown: the part over which a progress bar or spinner is drawn; none by default.
            event, progress: whether the action wants the event first, the progress callback last.
            heavy: it runs a network; few of these run at the same time.
            alone: it changes what it was given, such as the mask; none of these run at the same
                time, so that none undoes what another one did.
            spent: uploads to take away when the action fails, as their files are deleted.
            failed: further updates when it fails, of parts that would not be true any more.
        """

        def run(*values: Any, **extra: Any) -> Any:
            try:
                return self.updates(action(*values, **extra)) or gr.skip()
            except Cancelled as error:
                return {getattr(self._parts, status): text.status("idle", str(error))}
            except MedRetrievalError as error:
                message = str(error)
            except Exception:
                logger.exception("an action of the page failed")
                message = INTERNAL
            if message.partition(" ")[0].isalpha():  # not a path or a name of the Hub
                message = message[:1].upper() + message[1:]
            # The page takes this message as HTML.
            # Of a table only the sentence before it, as its columns need the width of the page.
            gr.Warning(html.escape(message.partition("\n")[0]), title="This did not work")
            said: Updates = {status: text.status("error", message), **dict.fromkeys(spent)}
            return self.updates({**(failed or {}), **said})

        def plain(*values: Any) -> Any:
            return run(*values)

        def with_event(event: gr.EventData, *values: Any) -> Any:
            return run(event, *values)

        def with_progress(*values: Any, progress: gr.Progress = PROGRESS) -> Any:
            return run(*values, progress=reporting(progress))

        return trigger(
            with_event if event else with_progress if progress else plain,
            list(inputs),
            [getattr(self._parts, name) for name in dict.fromkeys([*outputs.split(), status])],
            show_progress="hidden" if shown is None else "full",
            show_progress_on=shown,
            concurrency_id="models" if heavy else "mask" if alone else None,
            concurrency_limit=2 if heavy else 1 if alone else 8,
            api_visibility="private",
            **options,
        )

    def updates(self, updates: Mapping[str, Any]) -> dict[Any, Any]:
        """What an action says by the names of the parts, as the server wants it."""
        return {getattr(self._parts, name): self._update(value) for name, value in updates.items()}

    def _update(self, value: Any) -> Any:
        if isinstance(value, Props):
            return gr.update(**value)
        if isinstance(value, Download):
            offered = value.content is not None
            path = (
                stored(value.name, value.content, self._cache)
                if value.content is not None
                else None
            )
            return gr.update(value=path, interactive=offered, visible=value.visible)
        return value
