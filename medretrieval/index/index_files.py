"""The files of an open index: there already, or fetched when they are needed; right in any case."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from medretrieval.errors import IndexFormatError
from medretrieval.index.files import FileEntry
from medretrieval.index.verified import Verified, Verify


class Remote(Protocol):
    """Whence the files of an index folder come that are not in it yet, see `remote.HubFiles`."""

    @property
    def name(self) -> str: ...

    @property
    def blobs(self) -> Path: ...

    def fetch(self, files: Mapping[str, FileEntry]) -> None: ...

    def refuse(self, name: str, error: IndexFormatError) -> IndexFormatError: ...


class IndexFiles:
    """The files of an open index: fetched if they are not there, hashed before they are used.

    Safe to use from several threads.
    """

    def __init__(
        self,
        folder: Path,
        entries: Mapping[str, FileEntry],
        verified: Verified,
        *,
        verify: Verify,
        remote: Remote | None,
    ) -> None:
        self.verify = verify
        self._entries = entries
        self._folder = folder
        self._verified = verified
        self._remote = remote
        self._lock = threading.Lock()

    def check(self, name: str, *, always: bool = False) -> None:
        """Fetch a file if it is not there, and hash it unless it is still what was hashed.

        Args:
            always: also where only sizes are to be checked.

        Raises:
            IndexFormatError: it was changed.
            UnavailableError: it cannot be fetched.
            OSError: it cannot be read.
        """
        entry = self._entries[name]
        if self._remote is not None:
            self._remote.fetch({name: entry})
        elif self.verify == "sizes" and not always:
            return
        with self._lock:
            if self.verify == "full" or not self._verified.holds(name, entry.sha256):
                try:
                    self._verified.check(name, entry)
                except IndexFormatError as error:
                    raise self._refused(name, error) from None
                self._verified.save()

    @property
    def origin(self) -> str | None:
        """ORG/NAME@COMMIT of the Hub whence they come; None if they are this machine's own."""
        return None if self._remote is None else self._remote.name

    @property
    def blobs(self) -> Path | None:
        """See `files.is_linked`."""
        return None if self._remote is None else self._remote.blobs

    def available(self, name: str) -> bool:
        """Whether a file is there, or can be fetched."""
        return self._remote is not None or (self._folder / name).exists()

    def update(self, entries: Mapping[str, FileEntry]) -> None:
        """Take note of what the manifest lists now."""
        self._entries = entries

    def _refused(self, name: str, error: IndexFormatError) -> IndexFormatError:
        return error if self._remote is None else self._remote.refuse(name, error)
