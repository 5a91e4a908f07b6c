"""What happens when the page is used: parse, call the library, say what to show.

An action returns updates by the name of the part of the page: a value, or `Props` to change more
than the value, or a `Download`. It knows nothing of the web server, so it can be tested alone.
"""

from __future__ import annotations

from medretrieval.ui.actions.checking import CheckActions
from medretrieval.ui.actions.explaining import ExplainActions
from medretrieval.ui.actions.image import ImageActions
from medretrieval.ui.actions.masks import MaskActions
from medretrieval.ui.actions.searching import SearchActions

__all__ = ["Actions"]


class Actions(ImageActions, SearchActions, ExplainActions, CheckActions, MaskActions):
    """The actions of the page."""
