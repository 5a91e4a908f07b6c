"""Why a case was found: the pairs of slices, all similarities, and where two slices are alike."""

from __future__ import annotations

from typing import Any

from medretrieval.errors import UnavailableError, UsageError
from medretrieval.types import Progress, no_progress
from medretrieval.ui import content, explained
from medretrieval.ui.actions.base import NO_RESULTS, Acting
from medretrieval.ui.opened import Opened
from medretrieval.ui.session import Found, Query, Session, Updates


class ExplainActions(Acting):
    """What a click on a result does."""

    def why(self, session: Session, key: str) -> Updates:
        """Explain a hit by its pairs of slices; `key` as for `Found.pair`."""
        query, found = session.query, session.found
        if query is None or found is None:
            raise UsageError(NO_RESULTS)
        opened = self.backend.open(found.index)
        pair = found.pair(key)
        return {
            "why": content.why(found, *pair, query, opened),
            "maps": "" if opened.whole else explained.WAITING,
            "explaining": None if opened.whole else key,
        }

    def maps(self, session: Session, key: str | None, progress: Progress = no_progress) -> Updates:
        """Draw what takes a moment: the matrix of similarities, and the heat maps of the pair.

        Args:
            key: the hit, as for `Found.pair`; None for nothing.
        """
        query, found = session.query, session.found
        if query is None or found is None or not key or not found.fits(query, session.index):
            return {}
        opened = self.backend.open(found.index)
        hit, match = found.pair(key)
        embedded = self._embedded(query, found, opened, progress)
        parts = [explained.matrix(opened, embedded, found, hit)]
        try:
            parts.append(explained.maps(query, found, opened, hit, match))
        except UnavailableError as error:
            parts.append(explained.unavailable(str(error)))
        return {"maps": explained.panel(parts)}

    def _embedded(self, query: Query, found: Found, opened: Opened, progress: Progress) -> Any:
        if found.embedded is not None:
            return found.embedded
        return opened.index.query_embeddings(
            query.volume,
            indices=found.chosen,
            orientation=found.result.orientation,
            progress=progress,
        )
