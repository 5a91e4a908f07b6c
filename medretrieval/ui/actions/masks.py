"""The mask: segmenting the image, and showing what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medretrieval.errors import UsageError
from medretrieval.imaging.orientation import AS_STORED
from medretrieval.types import Progress, no_progress
from medretrieval.ui import asked, content, exports, results, text, words
from medretrieval.ui.actions.base import CHANGED, CORRECTED, NO_IMAGE, Acting
from medretrieval.ui.opened import Opened
from medretrieval.ui.runs import Run
from medretrieval.ui.session import (
    Correction,
    Download,
    Outcome,
    Props,
    Query,
    Session,
    Updates,
)


class MaskActions(Acting):
    """What is done to segment the image."""

    def begin(self, run: Run | None) -> Updates:
        """Get ready for work that can be cancelled; what `run` is still doing is not wanted."""
        if run is not None:
            run.cancel()
        return {"run": Run(), "cancel": Props(visible=True)}

    def cancel(self, run: Run | None) -> Updates:
        """Ask for the end of the work."""
        if run is None or run.over:
            return {}
        run.cancel()
        return {"segment_status": text.status("idle", "Being cancelled ...")}

    def end(self, run: Run | None) -> Updates:
        """Put the button away that cancels, unless other work has begun meanwhile."""
        return {"cancel": Props(visible=False)} if run is None or run.over else {}

    def segment(
        self,
        session: Session,
        number: float,
        run: Run,
        *values: Any,
        progress: Progress = no_progress,
        scope: str,
    ) -> Updates:
        """Segment the shown slice (scope "slice") or every slice ("volume").

        Slices lie for it as they did for the search, if that looked for how they lie.

        Args:
            values: those of the controls, in the order of `asked.DEFAULTS`.

        Raises:
            Cancelled: `run` was cancelled.
        """
        try:
            run.check()
            outcome = self._segment(session, number, values, run.watched(progress), scope)
            run.check()
        finally:
            run.end()
        return {"new_outcome": outcome}

    def _segment(
        self,
        session: Session,
        number: float,
        values: Sequence[Any],
        progress: Progress,
        scope: str,
    ) -> Outcome:
        if session.query is None:  # before an index is opened
            raise UsageError(NO_IMAGE)
        self.backend.open(session.index, progress)
        query, _, shown = self.shown_slice(session, number)
        wanted = asked.asked(dict(zip(asked.DEFAULTS, values, strict=True)))
        if scope == "slice":
            wanted = wanted.of_one_slice()
        orientation = self.orientation(session)
        supports = tuple(item.support for item in session.cart) or None
        made = self.run_segmenter(
            session.index,
            query.volume,
            supports=supports,
            indices=[shown] if scope == "slice" else None,
            orientation=orientation,
            progress=progress,
            **wanted.keywords(),
        )
        return Outcome(
            segmentation=made,
            query=query.token,
            index=session.index,
            scope=scope,
            slice_index=shown if scope == "slice" else None,
            cart=tuple(item.key for item in session.cart),
            asked=wanted,
            supports=supports,
            orientation=made.orientation,
        )

    def orientation(self, session: Session) -> str:
        """How the image is turned to be segmented: as for the search of it, if there was one."""
        query, found = session.query, session.found
        if query is None or found is None or not found.fits(query, session.index):
            return AS_STORED
        return found.result.orientation

    def show_outcome(
        self,
        session: Session,
        window: str,
        number: float,
        label: str | None,
        new: Outcome | None,
    ) -> Updates:
        """Show a finished mask, unless the visitor has gone on to another image or index.

        What was corrected of a former mask until now is kept.

        Args:
            label: the structure that is chosen to be corrected, if there was a mask before.
        """
        if new is None:
            return {}
        query, former = session.query, session.outcome
        if query is None or not new.fits(query, session.index):
            return {"new_outcome": None, "segment_status": text.status("warning", CHANGED)}
        opened = self.backend.open(session.index)
        if former is not None and former.fits(query, session.index):
            new = new.keeping(former, opened.policy)
        shown = self._shown(session, query, opened, window, number, label, new)
        return {"new_outcome": None, **shown}

    def show_correction(
        self,
        session: Session,
        window: str,
        number: float,
        label: str | None,
        new: Correction | None,
    ) -> Updates:
        """Make a finished correction part of the mask as it is by now, and show it.

        It is dropped if the visitor has gone on to another image or index, and if the slice was
        corrected otherwise or segmented by itself meanwhile.

        Args:
            label: the structure that is chosen to be corrected.
        """
        if new is None:
            return {}
        query, outcome = session.query, session.outcome
        if query is None or outcome is None or not new.of.fits(query, session.index):
            return {"new_correction": None, "segment_status": text.status("warning", CHANGED)}
        opened = self.backend.open(session.index)
        made = outcome.applied(new, opened.policy)
        if made is None:
            return {"new_correction": None, "segment_status": text.status("warning", CORRECTED)}
        shown = self._shown(session, query, opened, window, number, label, made)
        return {"new_correction": None, **shown}

    def _shown(
        self,
        session: Session,
        query: Query,
        opened: Opened,
        window: str,
        number: float,
        label: str | None,
        new: Outcome,
    ) -> Updates:
        made = new.segmentation
        colours = content.palette(opened).with_names(made.labels.names.values())
        shown = max(0, min(int(number), query.slices(opened.policy) - 1))
        structures = made.structures()
        png = exports.png_bytes(made.labels)
        kind, line = self._said(query, opened, new, session)
        return {
            "outcome": new,
            "result": results.stage(query, new, opened.policy, window, shown, colours),
            "result_tools": Props(visible=True),
            "result_slice": shown,
            "legend": text.legend(structures, colours),
            "label": results.choices(structures, label),
            "corner": None,
            "agreement_view": "",
            "segment_status": text.status(kind, line),
            "mask_file": Download(exports.MASK_FILE, exports.nifti_bytes(made.labels)),
            "picture_file": Download(exports.PICTURE_MASK_FILE, png, visible=png is not None),
            "settings_file": self.settings(query, opened, session.found, session.cart, new),
        }

    def _said(
        self, query: Query, opened: Opened, made: Outcome, session: Session
    ) -> tuple[str, str]:
        """What was segmented from what, and whether that is reason for a warning."""
        meaningless = not query.synthetic and self.backend.from_phantoms(made)
        missed = made.missed(opened.policy)
        slices = query.slices(opened.policy)
        line = words.segmented_line(made, slices, meaningless=meaningless, missed=missed)
        odd = words.odd_supports([i for i in session.cart if i.key in made.cart], session.found)
        return "warning" if meaningless or odd or missed else "ok", " ".join(
            filter(None, (line, odd))
        )
