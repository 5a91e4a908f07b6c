"""How sure a mask is: it is made again without each of its annotated slices."""

from __future__ import annotations

from medretrieval.types import Progress, no_progress
from medretrieval.ui import results, text
from medretrieval.ui.actions.correcting import CorrectActions
from medretrieval.ui.runs import Run
from medretrieval.ui.session import Session, Updates


class CheckActions(CorrectActions):
    """What is done to judge a mask."""

    def check(
        self,
        session: Session,
        number: float,
        run: Run,
        progress: Progress = no_progress,
    ) -> Updates:
        """Leave each annotated slice of the shown slice out in turn.

        Raises:
            Cancelled: `run` was cancelled.
        """
        try:
            outcome = self.segmented(session)
            query, opened, shown = self.shown_slice(session, number)
            found = self.run_agreement(
                session.index,
                query.volume,
                slice_index=shown,
                supports=self.supports_of(outcome, opened, shown),
                orientation=outcome.orientation,
                progress=run.watched(progress),
                **outcome.asked.for_slice(),
            )
            run.check()
        finally:
            run.end()
        corrected = bool(outcome.edits(shown))
        return {
            "agreement_view": results.agreement(
                found, query, opened.policy, shown, corrected=corrected
            ),
            "segment_status": text.status("ok", f"Checked the mask of slice {shown}."),
        }
