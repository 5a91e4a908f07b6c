"""The mask: segmenting the image, and showing what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from medretrieval.errors import UsageError
from medretrieval.imaging.orientation import AS_STORED
from medretrieval.types import Progress, no_progress
from medretrieval.ui import content, exports, text, words
from medretrieval.ui.actions.base import CHANGED, NO_IMAGE, Acting
from medretrieval.ui.session import Download, Outcome, Props, Session, Updates


class MaskActions(Acting):
    """What is done to segment the image."""

    def segment(
        self,
        session: Session,
        number: float,
        segmenter: str,
        support_k: float,
        structures: Sequence[str] | None,
        progress: Progress = no_progress,
        *,
        scope: str,
    ) -> Updates:
        """Segment the shown slice (scope "slice") or every slice ("volume").

        Slices lie for it as they did for the search, if that looked for how they lie.
        """
        query, cart = session.query, session.cart
        if query is None:
            raise UsageError(NO_IMAGE)
        opened = self.backend.open(session.index, progress)
        shown = max(0, min(int(number), query.slices(opened.policy) - 1))
        found = session.found
        turned = found is not None and found.fits(query, session.index)
        orientation = found.result.orientation if found and turned else AS_STORED
        made = self.run_segmenter(
            session.index,
            query.volume,
            segmenter=segmenter,
            support_k=int(support_k),
            supports=[item.support for item in cart] or None,
            labels=list(structures) if structures else None,
            indices=[shown] if scope == "slice" else None,
            orientation=orientation,
            progress=progress,
        )
        outcome = Outcome(
            segmentation=made,
            query=query.token,
            index=session.index,
            scope=scope,
            slice_index=shown if scope == "slice" else None,
            cart=tuple(item.key for item in cart),
            support_k=int(support_k),
            orientation=orientation,
        )
        return {"new_outcome": outcome}

    def show_outcome(
        self, session: Session, window: str, number: float, new: Outcome | None
    ) -> Updates:
        """Show a finished mask, unless the visitor has gone on to another image or index."""
        if new is None:
            return {}
        query = session.query
        if query is None or not new.fits(query, session.index):
            return {"new_outcome": None, "segment_status": text.status("warning", CHANGED)}
        opened = self.backend.open(session.index)
        made = new.segmentation
        colours = content.palette(opened).with_names(made.labels.names.values())
        shown = max(0, min(int(number), query.slices(opened.policy) - 1))
        png = exports.png_bytes(made.labels)
        meaningless = not query.synthetic and self.backend.from_phantoms(new)
        line = words.segmented_line(new, query.slices(opened.policy), meaningless=meaningless)
        return {
            "new_outcome": None,
            "outcome": new,
            "result": content.result(query, new, opened.policy, window, shown, colours),
            "result_tools": Props(visible=True),
            "result_slice": shown,
            "legend": text.legend(made.structures(), colours),
            "segment_status": text.status("warning" if meaningless else "ok", line),
            "mask_file": Download(exports.MASK_FILE, exports.nifti_bytes(made.labels)),
            "picture_file": Download(exports.PICTURE_MASK_FILE, png, visible=png is not None),
            "settings_file": self.settings(query, opened, session.found, session.cart, new),
        }
