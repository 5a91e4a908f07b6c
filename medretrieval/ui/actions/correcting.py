"""Corrections of the mask by points and boxes, and what is done with a corrected slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import numpy as np

from medretrieval.errors import UsageError
from medretrieval.imaging import slice_axis
from medretrieval.imaging.orientation import turn
from medretrieval.pipeline import used_supports
from medretrieval.segmentation.prompts import Edit, Kind, prompts_of
from medretrieval.types import Progress, Support, no_progress
from medretrieval.ui import content, results, text
from medretrieval.ui.actions.supporting import SupportActions
from medretrieval.ui.corrections import Corner, box, dragged, pixel
from medretrieval.ui.opened import Opened
from medretrieval.ui.session import (
    CartItem,
    Correction,
    Outcome,
    Query,
    Session,
    Updates,
    replace_in_cart,
)

BOX: Final = "box"
OFF: Final = "off"
SECOND = "Click the opposite corner of the box."


class CorrectActions(SupportActions):
    """What is done to correct the mask of a slice."""

    def point(
        self,
        session: Session,
        places: Sequence[Sequence[float]],
        window: str,
        number: float,
        label: str | None,
        tool: Kind | Literal["off"],
        corner: Corner | None,
        progress: Progress = no_progress,
    ) -> Updates:
        """Correct the shown slice by a click on its picture, or by drawing a box.

        Args:
            places: where the pointer went down and up, in shares of the picture's extent.
            label: name of the structure that is corrected.
            tool: what a click means.
            corner: the first corner of a box, if it was clicked.
        """
        if tool == OFF:
            return {}
        outcome = self.segmented(session)
        query, opened, shown = self.shown_slice(session, number)
        if not label:
            raise UsageError("choose the structure that you correct, below the tools")
        shape = outcome.mask(opened.policy, shown).shape
        start, end = (pixel(place, shape) for place in places)
        if tool == BOX and dragged(*places):
            corner = Corner(slice_index=shown, label=label, at=start)
        if tool != BOX:
            edit = Edit(label=label, kind=tool, at=end)
        elif corner is not None and (corner.slice_index, corner.label) == (shown, label):
            edit = Edit(label=label, kind=BOX, at=box(corner.at, end))
        else:
            corner = Corner(slice_index=shown, label=label, at=end)
            colours, policy = content.palette(opened), opened.policy
            return {
                "corner": corner,
                "result": results.stage(query, outcome, policy, window, shown, colours, corner),
                "segment_status": text.status("idle", SECOND),
            }
        edits = (*outcome.edits(shown), edit)
        made = self._corrected(query, outcome, opened, shown, edits, progress)
        return {"new_correction": made, "corner": None}

    def undo(self, session: Session, number: float, progress: Progress = no_progress) -> Updates:
        """Take back the last correction of the shown slice."""
        outcome = self.segmented(session)
        query, opened, shown = self.shown_slice(session, number)
        edits = _taken_back(outcome, shown)[:-1]
        made = self._corrected(query, outcome, opened, shown, edits, progress)
        return {"new_correction": made}

    def uncorrect(self, session: Session, number: float) -> Updates:
        """Take back all corrections of the shown slice."""
        outcome = self.segmented(session)
        _, _, shown = self.shown_slice(session, number)
        _taken_back(outcome, shown)
        return {"new_correction": Correction(of=outcome, slice_index=shown, edits=())}

    def _corrected(
        self,
        query: Query,
        outcome: Outcome,
        opened: Opened,
        shown: int,
        edits: tuple[Edit, ...],
        progress: Progress,
    ) -> Correction:
        """These corrections of a slice, which is segmented again if there are any."""
        correction = Correction(of=outcome, slice_index=shown, edits=edits)
        if not edits:
            return correction
        prompts = prompts_of(edits)
        wanted = outcome.asked.of_one_slice()
        if wanted.labels:
            wanted = replace(wanted, labels=tuple(dict.fromkeys([*wanted.labels, *prompts])))
        made = self.run_segmenter(
            outcome.index,
            query.volume,
            supports=self.supports_of(outcome, opened, shown),
            indices=[shown],
            orientation=outcome.orientation,
            prompts={shown: prompts},
            progress=progress,
            **wanted.keywords(),
        )
        return replace(correction, made=made.labels)

    def supports_of(
        self, outcome: Outcome, opened: Opened, index: int
    ) -> tuple[Support, ...] | None:
        """What a slice was segmented from; None if it was not, so that this is retrieved."""
        if outcome.supports is not None:
            return outcome.supports
        made = outcome.segmentation
        uses = tuple(use for use in made.supports if use.query_slice == index)
        if not uses or outcome.asked.how.axis != "index":
            return None
        return tuple(used_supports(opened.index, replace(made, supports=uses)))

    # What is done with it

    def add_slice(self, session: Session, number: float) -> Updates:
        """Add the shown slice with its mask to the support set, as it lies to be segmented."""
        from medretrieval.segmentation.supports import supports_from_labels

        outcome = self.segmented(session)
        query, opened, shown = self.shown_slice(session, number)
        (support,) = supports_from_labels(
            query.volume,
            outcome.segmentation.labels,
            policy=opened.policy,
            source=f"corrected-{query.token[:8]}",
            indices=[shown],
        )
        support = replace(
            support,
            image=np.ascontiguousarray(turn(support.image, outcome.orientation)),
            mask=np.ascontiguousarray(turn(support.mask, outcome.orientation)),
        )
        item = CartItem(
            key=f"corrected/{support.key}",
            support=support,
            title=f"your image \u00b7 slice {shown}",
            modality=query.volume.modality,
        )
        cart = replace_in_cart(session.cart, item)
        return self._carted(session, number, cart, f" Slice {shown} of your image is one of them.")

    def save_version(
        self,
        session: Session,
        number: float,
        folder: str | None,
        name: str | None,
        progress: Progress = no_progress,
    ) -> Updates:
        """Write a new version of the index that has the corrected slices too.

        Args:
            folder: of the new version; it must not exist.
            name: of the case in the index.
        """
        outcome = self.segmented(session)
        query, opened, _ = self.shown_slice(session, number)
        folder, name = (folder or "").strip(), (name or "").strip()
        if not folder or not name:
            raise UsageError(
                "a new version needs a folder that does not exist yet, and a case name"
            )
        slices = sorted(outcome.corrected)
        if not slices:
            raise UsageError(
                "no slice of this image was corrected; point at what is wrong with the mask first"
            )
        labels = outcome.segmentation.labels
        axis = slice_axis(labels.grid, opened.policy.axis)
        out = self.backend.append(
            session.index,
            Path(folder).expanduser(),
            query.volume,
            labels,
            slices,
            volume_id=name,
            note=f"slices {', '.join(map(str, slices))} across axis {axis}, corrected on the page",
            progress=progress,
        )
        more = f"{len(slices)} more annotated slice{'' if len(slices) == 1 else 's'}"
        line = (
            f"Wrote the new version to {out}, with {more}. The index in use stays as it is; open "
            "the new one by its path."
        )
        return {"segment_status": text.status("ok", line)}


def _taken_back(outcome: Outcome, index: int) -> tuple[Edit, ...]:
    """The corrections of a slice, of which there is at least one."""
    edits = outcome.edits(index)
    if not edits:
        raise UsageError("this slice has no corrections to take back")
    return edits
