"""The controls under "Search options"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from medretrieval.errors import InputError, UsageError
from medretrieval.imaging import read_labels
from medretrieval.types import LabelVolume, Volume
from medretrieval.ui import options, panel, text, words
from medretrieval.ui.actions.base import NO_IMAGE, Acting
from medretrieval.ui.opened import Opened
from medretrieval.ui.options import ALL, RANGE, STRUCTURE, Wanted
from medretrieval.ui.session import Props, Session, Updates
from medretrieval.ui.uploads import taken


class OptionActions(Acting):
    """What the controls under "Search options" do before a search."""

    def wanted(self, session: Session, mode: str, values: dict[str, Any]) -> Wanted:
        """What the controls ask for; `values` by the names of `options.DEFAULTS`.

        Raises:
            UsageError: see `options.wanted`.
        """
        opened = self.backend.opened(session.index)
        return options.wanted(
            values,
            mode=mode,
            feedback=session.feedback,
            labels=session.query.labels if session.query else None,
            count=self._count(session),
            whole=bool(opened and opened.whole),
        )

    def _count(self, session: Session) -> int:
        return session.query.slices(self.policy(session.index)) if session.query else 0

    def shown(self, session: Session, mode: str, *values: Any) -> Updates:
        """Show the controls that matter for what is chosen, and say what is in use."""
        opened, by_name = self.backend.opened(session.index), panel.named(values)
        sample = by_name["sample"] or ""
        whole = bool(opened and opened.whole)
        return {
            **panel.shown(mode, by_name["slices"], sample, whole=whole, count=self._count(session)),
            "opt_in_use": self._in_use(session, mode, by_name),
        }

    def _in_use(self, session: Session, mode: str, values: dict[str, Any]) -> str:
        titles = {key: title for title, key in self.backend.choices()}
        try:
            return panel.in_use(self.wanted(session, mode, values), mode, titles)
        except UsageError:  # not complete yet; the search says so
            return ""

    def choose_mode(self, session: Session, number: float, mode: str, *values: Any) -> Updates:
        """Another way of searching; what it cannot do without is filled in to begin with."""
        by_name = panel.named(values)
        changes: dict[str, Any] = {}
        query, count = session.query, self._count(session)
        if mode in options.PART_MODES and by_name["slices"] == ALL and count > 1:
            first, last = panel.around(int(number), count)
            changes = {"slices": RANGE, "first": first, "last": last}
        usual = query is None or query.volume.grid.spacing_known
        if mode in options.SAMPLE_MODES and not by_name["sample"]:
            changes["sample"] = options.SAMPLES[0 if usual else 1]
        if mode not in options.SAMPLE_MODES and by_name["sample"] in options.SAMPLES:
            changes["sample"] = ""
        updates = self.shown(session, mode, *(by_name | changes).values())
        for name, value in changes.items():
            key = panel.PREFIX + name
            updates[key] = Props({**updates.get(key, {}), "value": value})
        if mode in options.PART_MODES + options.SAMPLE_MODES:
            updates["opt_panel"] = Props(open=True)
        return updates

    def choose_column(self, session: Session, column: str | None) -> Updates:
        """Offer the values of a column."""
        return panel.values(self.backend.open(session.index), column)

    def edge(self, session: Session, number: float, name: str) -> Updates:
        """Take the slice that is looked at as the `name` ("first" or "last") of the range."""
        if session.query is None:
            raise UsageError(NO_IMAGE)
        return {panel.PREFIX + name: int(number)}

    def reset(self, session: Session, mode: str) -> Updates:
        """Every option as it was; the mode stays, with the part that it cannot do without."""
        values, count = dict(options.DEFAULTS), self._count(session)
        if mode in options.PART_MODES and count > 1:
            first, last = panel.around(count // 2, count)
            values |= {"slices": RANGE, "first": first, "last": last}
        updates: Updates = {panel.PREFIX + name: value for name, value in values.items()}
        for name, update in self.shown(session, mode, *values.values()).items():
            value = {"value": updates[name]} if name in updates else {}
            updates[name] = Props({**update, **value}) if isinstance(update, Props) else update
        if mode in options.SAMPLE_MODES:
            updates["opt_sample"]["value"] = options.SAMPLES[0]
        return updates

    def load_map(self, session: Session, upload: str | None, names: str | None) -> Updates:
        """Read the label map of the image, of which a structure is searched for.

        Raises:
            UsageError: no image, no label map, or its names cannot be understood.
            InputError: it cannot be read, does not fit the image, or is empty.
        """
        query = session.query
        if not upload:
            raise UsageError("upload a label map of your image first")
        if query is None:
            with taken(upload, self.uploads):  # it is deleted from disk all the same
                raise UsageError(NO_IMAGE)
        given = words.label_names(names)
        opened = self.backend.opened(session.index)
        labels = self.read_map(upload, query.volume, given, opened)
        return {
            "query": replace(query, labels=labels),
            "search_status": text.status(
                "ok", f"Label map with {', '.join(labels.names.values())}."
            ),
            **panel.structures(labels),
            "opt_slices": STRUCTURE,
        }

    def read_map(
        self,
        upload: str,
        volume: Volume,
        names: Mapping[int, str] | None,
        opened: Opened | None,
    ) -> LabelVolume:
        """Read an uploaded label map of an image, and delete it from disk.

        Args:
            names: of its values; by default those of the index.

        Raises:
            InputError: it cannot be read, does not fit the image, or is empty.
        """
        usual = opened.index.manifest.vocabulary if opened else None
        with taken(upload, self.uploads, name="your label map") as path:
            labels = read_labels(path, reference=volume.grid, names=names or usual)
        there = {int(value) for value in np.unique(labels.voxels) if value}
        if not there:
            raise InputError(
                "the label map is empty: every voxel is 0. Expected one in which structures have "
                "the values 1, 2, ...; upload another one"
            )
        return replace(labels, names={v: n for v, n in labels.names.items() if v in there})
