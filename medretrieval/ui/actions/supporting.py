"""The support set: annotated slices to segment from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from medretrieval.errors import UsageError
from medretrieval.pipeline import DEFAULT_SUPPORT_K
from medretrieval.types import Support
from medretrieval.ui import content, exports, text, words
from medretrieval.ui.actions.base import NO_RESULTS, Acting, structure_names
from medretrieval.ui.session import (
    Cart,
    CartItem,
    Download,
    Props,
    Session,
    Updates,
    add_to_cart,
    limited,
    own_items,
    remove_from_cart,
    set_item,
)
from medretrieval.ui.uploads import taken


class SupportActions(Acting):
    """What is done with the support set."""

    def add_hit(self, session: Session, number: float, key: str) -> Updates:
        """Add the database slice of a card to the support set; `key` as for `Found.pair`."""
        if session.found is None:
            raise UsageError(NO_RESULTS)
        item = self.backend.open(session.found.index).cart_item(*session.found.pair(key))
        if item is None:
            raise UsageError("that slice is not annotated; choose another one")
        return self._carted(session, number, add_to_cart(session.cart, [item]))

    def add_hits(self, session: Session, number: float) -> Updates:
        """Add the annotated slice that every hit shows to the support set."""
        found = session.found
        if found is None:
            raise UsageError(NO_RESULTS)
        opened = self.backend.open(found.index)
        shown = [opened.cart_item(*pair) for pair in found.pairs(int(number))]
        items = [item for item in shown if item is not None]
        without = len(shown) - len(items)
        note = f" {without} without annotation left out." if without else ""
        return self._carted(session, number, add_to_cart(session.cart, items), note)

    def add_own(
        self,
        session: Session,
        number: float,
        image: str | None,
        mask: str | None,
        names: str | None,
    ) -> Updates:
        """Add the visitor's own annotated image to the support set."""
        if not image or not mask:
            raise UsageError("your own pair needs an image and its mask; upload both")
        items = own_items(self.read_pair(image, mask, session.index, words.label_names(names)))
        return {
            **self._carted(session, number, add_to_cart(session.cart, items)),
            "own_image": None,
            "own_mask": None,
        }

    def read_pair(
        self, image: str, mask: str, index: str, names: Mapping[int, str] | None
    ) -> list[Support]:
        """Read an uploaded annotated image, and delete it from disk.

        Args:
            index: its policy makes the slices.
            names: of the values of the mask; by default those of the index.

        Returns:
            Of a volume as many of its annotated slices as are found for a slice by default, spread
            out evenly.

        Raises:
            InputError: as `supports_from_pair`.
        """
        from medretrieval.segmentation.supports import supports_from_pair

        with (
            taken(image, self.uploads, name="your image") as image_path,
            taken(mask, self.uploads, name="your mask") as mask_path,
        ):
            opened = self.backend.open(index)
            return supports_from_pair(
                image_path,
                mask_path,
                policy=opened.policy,
                names=names or opened.index.manifest.vocabulary,
                at_most=DEFAULT_SUPPORT_K,
            )

    def save_set(self, session: Session) -> Updates:
        """Make a file of the support set."""
        from medretrieval.segmentation.supports import pack_supports

        if not session.cart:
            raise UsageError("the support set is empty; add annotated slices to it first")
        packed = pack_supports([item.support for item in session.cart])
        return {"set_file": Download(exports.SUPPORTS_FILE, packed)}

    def load_set(self, session: Session, number: float, upload: str | None) -> Updates:
        """Add the slices of a saved support set."""
        items = self.read_set(upload, session.index)
        return {
            **self._carted(session, number, add_to_cart(session.cart, items)),
            "set_upload": None,
        }

    def read_set(self, upload: str | None, index: str) -> list[CartItem]:
        """Read an uploaded support set and delete it from disk.

        Slices of the index that is open are told to be that.

        Raises:
            UsageError: there is none, or it has more slices than a set holds here.
            InputError: it is none, or damaged.
        """
        from medretrieval.segmentation.supports import distinct, unpack_supports

        if not upload:
            raise UsageError("choose a support set: the .zip file that this page saves")
        with taken(upload, self.uploads, name="your support set") as path:
            supports = distinct(unpack_supports(path))
        opened = self.backend.opened(index)
        known = [opened.recognised(support) if opened else None for support in supports]
        items = (own or set_item(s) for own, s in zip(known, supports, strict=True))
        return list(limited(items))

    def remove(self, session: Session, number: float, key: str) -> Updates:
        """Take one slice out of the support set."""
        return self._carted(session, number, remove_from_cart(session.cart, key))

    def empty(self, session: Session, number: float) -> Updates:
        """Take everything out of the support set."""
        return self._carted(session, number, ())

    def _carted(self, session: Session, number: float, cart: Cart, note: str = "") -> Updates:
        found = session.found
        opened = self.backend.opened(found.index if found else session.index)
        names = sorted({name for item in cart for name in item.support.names.values()})
        size = f"{len(cart)} slice{'' if len(cart) == 1 else 's'} in the support set."
        odd = words.odd_supports(cart, found)
        line = " ".join(filter(None, (size + note, odd)))
        updates: Updates = {
            "cart": cart,
            "cart_view": content.cart_cards(cart, content.palette(opened)),
            "segment_status": text.status("warning" if odd else "idle", line)
            if cart or note
            else "",
            "structures": Props(
                choices=names if cart or not opened else structure_names(opened), value=[]
            ),
        }
        if found is not None and opened is not None:
            updates["hits"] = self.hit_cards(replace(session, cart=cart), number)
            if session.query is not None:
                updates["settings_file"] = self.settings(
                    session.query, opened, found, cart, session.outcome
                )
        return updates
