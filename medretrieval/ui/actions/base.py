"""What all actions of the page share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medretrieval.errors import UsageError
from medretrieval.pipeline import Segmentation
from medretrieval.retrieval.feedback import Feedback
from medretrieval.segmentation.uncertainty import Agreement
from medretrieval.types import SlicePolicy
from medretrieval.ui import content, exports, text
from medretrieval.ui.backend import Backend
from medretrieval.ui.opened import Opened
from medretrieval.ui.session import (
    Cart,
    Download,
    Found,
    Outcome,
    Props,
    Query,
    Session,
    Updates,
)

NO_IMAGE = "load an image first: upload one or click an example"
NO_RESULTS = "there are no results to choose from; find similar cases first"
NO_SEGMENTATION = "there is no mask yet; segment this slice or all slices first"
CHANGED = "The image or the index was changed meanwhile; this result was dropped."
CORRECTED = "The mask of that slice was changed meanwhile; this correction was dropped."
NO_MASK = "The mask will be shown over your image."
READY = ("Ready to search", "Press the button above.")


class Acting:
    """The base of the actions.

    Args:
        backend: indexes and models, shared by all visitors.
        uploads: folder in which the server stores uploads.
        segment, agreement: run the methods of `backend` of these names; replaced where that needs
            another process or device.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        uploads: str | Path,
        segment: Callable[..., Segmentation] | None = None,
        agreement: Callable[..., Agreement] | None = None,
    ) -> None:
        self.backend = backend
        self.uploads = Path(uploads)
        self.run_segmenter = segment or backend.segment
        self.run_agreement = agreement or backend.agreement

    def policy(self, index: str) -> SlicePolicy:
        """How slices are made for an index; the usual way as long as it is not open."""
        opened = self.backend.opened(index)
        return opened.policy if opened else SlicePolicy()

    def shown_slice(self, session: Session, number: float) -> tuple[Query, Opened, int]:
        """The image, the open index, and the slice that the visitor looks at.

        Raises:
            UsageError: there is no image.
        """
        query = session.query
        if query is None:
            raise UsageError(NO_IMAGE)
        opened = self.backend.open(session.index)
        return query, opened, max(0, min(int(number), query.slices(opened.policy) - 1))

    def segmented(self, session: Session) -> Outcome:
        """The mask of the image.

        Raises:
            UsageError: there is none, or it is of another image or index.
        """
        query, outcome = session.query, session.outcome
        if query is None or outcome is None or not outcome.fits(query, session.index):
            raise UsageError(NO_SEGMENTATION)
        return outcome

    def about(self, opened: Opened) -> Updates:
        """The card of an index, and which embedders work here."""
        own = opened.index.manifest.embedder.name
        return {
            "about": content.about(opened),
            "embedders": content.embedders(self.backend.embedders(), own),
        }

    def hit_cards(self, session: Session, number: float) -> str:
        """The results of the session, as seen from slice `number` of the image."""
        if session.found is None:
            raise UsageError(NO_RESULTS)
        opened = self.backend.open(session.found.index)
        return content.hit_cards(session.found, opened, session.cart, session.feedback, int(number))

    def settings(
        self, query: Query, opened: Opened, found: Found | None, cart: Cart, outcome: Outcome | None
    ) -> Download:
        """The settings file, of what was made of this image with this index."""
        written = exports.settings_json(
            query=query,
            index=opened.describe(),
            patient=opened.pseudonym,
            found=found if found and found.fits(query, opened.key) else None,
            cart=cart,
            outcome=outcome if outcome and outcome.fits(query, opened.key) else None,
        )
        return Download(exports.SETTINGS_FILE, written.encode())


def unsegmented() -> Updates:
    """The parts that show a mask, without one."""
    return {
        "outcome": None,
        "result": text.placeholder("No segmentation yet", NO_MASK),
        "result_tools": Props(visible=False),
        "corner": None,
        "agreement_view": "",
        "segment_status": "",
        "mask_file": Download(exports.MASK_FILE, None),
        "picture_file": Download(exports.PICTURE_MASK_FILE, None, visible=False),
    }


def examples_cleared() -> Updates:
    """The parts that show examples of what is wanted and what is not, without any."""
    return {"feedback": Feedback(), "chips": "", "chips_panel": Props(visible=False)}


def structure_names(opened: Opened) -> list[str]:
    """Names of the structures that an index has masks of."""
    return sorted(opened.index.manifest.vocabulary.values())
